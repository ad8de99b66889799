//! A packet trace of one machine's boot, written while it happens: every frame to and from its MAC on every bridge
//! port, as pcapng.
//!
//! Nothing is captured until somebody asks, so other machines cost no memory. One packet socket receives from all
//! interfaces, so that frames keep their order; the kernel filters by MAC. Packet sockets get a copy of frames before
//! tc at ingress, and of all transmitted frames, but not of XDP's answers in the driver. So [`Programs`] answer at tc
//! while a trace is running.

mod pcapng;

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pxe_common::Mac;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc};

use crate::base::text::word;
use crate::host::net::packet::{self, PacketSocket, Received};
use crate::host::net::{BridgeInfo, Port, Ports};
use crate::machines::timeline::{Event, Stage, Timeline};
use pcapng::{Direction, Frame};

/// Traces at the same time. Each has a queue in the kernel.
const TRACES_MAX: usize = 8;
/// The kernel's buffer for a trace whose reader is slower than the wire.
const QUEUE: usize = 16 << 20;
/// Frames in one piece of the answer.
const BATCH: usize = 64;
/// Recorded after the boot's end: the packets that close its last connections.
const AFTERMATH: Duration = Duration::from_millis(500);
/// A frame that the host sends passes the bridge right before its port: this many are remembered.
const SENT: usize = 256;

/// The fast path's programs.
pub trait Programs: Send + Sync + 'static {
    /// Answer where packet sockets see it. Ends when [`Programs::untraced`] was called as often.
    fn traced(&self);
    fn untraced(&self);
}

/// Starts traces. Cloning it is cheap.
#[derive(Clone)]
pub struct Tracer {
    bridge: BridgeInfo,
    ports: Ports,
    timeline: Timeline,
    programs: Option<Arc<dyn Programs>>,
    running: Arc<Semaphore>,
}

/// Options of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub mac: Mac,
    /// Continue after the boot's end, until the reader is gone.
    pub follow: bool,
    /// Bytes recorded of each frame.
    pub snap_length: usize,
}

/// Larger than any frame, including segments that the card has yet to split.
pub const SNAP_LENGTH_MAX: usize = 1 << 18;

/// Why a trace can't be started.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("{TRACES_MAX} traces are running already")]
    TooMany,
    #[error("opening a packet socket: {0}")]
    Socket(#[from] io::Error),
}

impl Tracer {
    pub fn new(
        bridge: BridgeInfo,
        ports: Ports,
        timeline: Timeline,
        programs: Option<Arc<dyn Programs>>,
    ) -> Self {
        Self { bridge, ports, timeline, programs, running: Arc::new(Semaphore::new(TRACES_MAX)) }
    }

    /// Starts a trace: when this returns, no frame is missed. Pieces of a pcapng file follow until the machine's boot
    /// has ended or the receiver is dropped.
    pub fn start(&self, wanted: Wanted) -> Result<mpsc::Receiver<Bytes>, TraceError> {
        let permit = self.running.clone().try_acquire_owned().map_err(|_| TraceError::TooMany)?;
        let events = self.timeline.subscribe();
        let socket = PacketSocket::open(0, packet::ALL, &packet::of_machine(wanted.mac))?;
        socket.note_times(QUEUE)?;
        if let Some(programs) = &self.programs {
            programs.traced();
        }
        let trace = Trace {
            wanted,
            bridge: self.bridge.clone(),
            ports: self.ports.clone(),
            known: Vec::new(),
            at: None,
            sent: VecDeque::new(),
            comments: Vec::new(),
            dropped: 0,
            _running: Running { programs: self.programs.clone(), _permit: permit },
        };
        let (pieces, receiver) = mpsc::channel(16);
        tokio::spawn(trace.run(socket, events, pieces));
        Ok(receiver)
    }
}

/// When dropped, lets the programs answer at their best hook again.
struct Running {
    programs: Option<Arc<dyn Programs>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(programs) = &self.programs {
            programs.untraced();
        }
    }
}

/// A trace in progress.
struct Trace {
    wanted: Wanted,
    bridge: BridgeInfo,
    ports: Ports,
    /// Ports that have an interface block, in the blocks' order.
    known: Vec<Port>,
    /// The interface on which the machine was last heard.
    at: Option<u32>,
    /// Fingerprints of the frames that the host last sent through the bridge.
    sent: VecDeque<u64>,
    /// Comments for the next frame.
    comments: Vec<String>,
    dropped: u32,
    _running: Running,
}

impl Trace {
    async fn run(
        mut self,
        socket: PacketSocket,
        mut events: broadcast::Receiver<Event>,
        pieces: mpsc::Sender<Bytes>,
    ) {
        let mut piece = Vec::new();
        pcapng::section(&mut piece, &format!("Frames of {} on {}", self.wanted.mac, self.bridge.name));
        for port in self.ports.now() {
            self.introduce(port, &mut piece);
        }
        let mut buffer = vec![0; self.wanted.snap_length];
        let mut end = None;
        let mut last = 0;
        loop {
            // The trace ends when its reader is gone.
            if !piece.is_empty() && pieces.send(std::mem::take(&mut piece).into()).await.is_err() {
                return;
            }
            tokio::select! {
                biased;
                () = pieces.closed() => return,
                Ok(event) = events.recv() => {
                    if event.mac == self.wanted.mac {
                        self.comments.push(happened(&event));
                        if matches!(event.stage, Stage::Workload | Stage::Failed) && !self.wanted.follow {
                            end.get_or_insert(tokio::time::Instant::now() + AFTERMATH);
                        }
                    }
                }
                () = until(end) => break,
                ready = socket.readable() => {
                    if let Err(error) = ready {
                        tracing::warn!(%error, "a trace ends early");
                        break;
                    }
                    for _ in 0..BATCH {
                        match socket.try_receive_from(&mut buffer) {
                            Ok(received) => {
                                last = received.nanoseconds;
                                self.frame(&buffer, &received, &mut piece);
                            }
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                            // The error of an interface that disappeared; the socket is still usable.
                            Err(error) => tracing::debug!(%error, "a frame for a trace"),
                        }
                    }
                }
            }
        }
        if self.dropped > 0 && !self.known.is_empty() {
            pcapng::statistics(&mut piece, 0, last, self.dropped.into());
        }
        // The reader is gone, or has everything.
        let _ = pieces.send(piece.into()).await;
    }

    fn frame(&mut self, buffer: &[u8], received: &Received, piece: &mut Vec<u8>) {
        let bytes = &buffer[..received.len.min(buffer.len())];
        if received.dropped > self.dropped {
            let lost = received.dropped - self.dropped;
            self.dropped = received.dropped;
            self.comments
                .push(format!("{lost} frames before this one are missing: the trace was read too slowly"));
        }
        if received.interface == self.bridge.index {
            if received.outgoing {
                self.sent.truncate(SENT - 1);
                self.sent.push_front(fingerprint(bytes));
            }
            // The port's copy is the one on the wire.
            return;
        }
        if !received.outgoing && from(bytes) == Some(self.wanted.mac) {
            self.at = Some(received.interface);
        }
        if self.at.is_some_and(|at| at != received.interface) {
            // A copy of a broadcast to another port.
            return;
        }
        let Some(interface) = self.interface(received.interface, piece) else { return };
        if received.outgoing
            && from(bytes) == Some(self.bridge.mac)
            && !self.sent.contains(&fingerprint(bytes))
        {
            self.comments.push("answered in the kernel (tc)".to_owned());
        }
        let frame = Frame {
            interface,
            nanoseconds: received.nanoseconds,
            bytes,
            len: received.len as u32,
            direction: if received.outgoing { Direction::Out } else { Direction::In },
            comments: &self.comments,
        };
        pcapng::frame(piece, &frame);
        self.comments.clear();
    }

    /// The number of a port's interface block, which is written if there is none yet.
    fn interface(&mut self, index: u32, piece: &mut Vec<u8>) -> Option<u32> {
        let place = match self.known.iter().position(|port| port.index == index) {
            Some(place) => place,
            None => {
                // The host's other interfaces have nothing to do with a machine.
                let port = self.ports.now().into_iter().find(|port| port.index == index)?;
                self.introduce(port, piece);
                self.known.len() - 1
            }
        };
        Some(place as u32)
    }

    fn introduce(&mut self, port: Port, piece: &mut Vec<u8>) {
        pcapng::interface(piece, &port.name, &format!("port of {}", self.bridge.name));
        self.known.push(port);
    }
}

async fn until(end: Option<tokio::time::Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

fn happened(event: &Event) -> String {
    let words = [event.detail.as_deref(), event.cause.as_deref()].into_iter().flatten();
    words.fold(format!("timeline: {} by {}", word(event.stage), word(event.answered_by)), |text, words| {
        format!("{text}, {words}")
    })
}

/// The source address.
fn from(frame: &[u8]) -> Option<Mac> {
    frame.get(6..12)?.try_into().ok().map(Mac)
}

/// Distinguishes frames: identification, sequence numbers and the like are at the beginning.
fn fingerprint(frame: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    frame[..frame.len().min(256)].hash(&mut hasher);
    frame.len().hash(&mut hasher);
    hasher.finish()
}
