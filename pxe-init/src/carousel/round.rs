//! Receiving a round.

use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::mpsc::{self, TrySendError};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use pxe_contract::hex;
use pxe_contract::round::{Offer, Reception};
use pxe_contract::symbols::{Content, HEADER, Header};

use super::Store;
use super::assembly::Assembly;
use super::rounds::Rounds;
use crate::fetch::Remote;

/// Without a packet for this long, a round does not reach this machine: a switch snoops IGMP and there is no querier.
const SILENCE: Duration = Duration::from_secs(2);
/// The same after the first packet: the sender may be busy, as an appliance that sends by HTTP may be.
const PAUSE: Duration = Duration::from_secs(5);
/// The period over which a round's progress is compared with HTTP's.
const JUDGED_EVERY: Duration = Duration::from_secs(5);
/// The least interval between requested reports.
const POLLED_EVERY: Duration = Duration::from_millis(100);
/// How often the time is checked while nothing arrives.
const TICK: Duration = Duration::from_millis(50);
/// Decoding a block takes some milliseconds, in which further packets arrive.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Why a round is left before the image is complete.
#[derive(Debug, thiserror::Error)]
pub(super) enum Left {
    #[error("the round does not reach this machine (does a switch filter multicast?)")]
    Silent,
    #[error("the round brought {0} kB/s of use, and HTTP would bring {1}")]
    Slow(u64, u64),
    #[error("the group can't be joined ({0})")]
    NotJoined(io::Error),
}

/// Listens until the image is complete, or until something else is better; returns which.
pub(super) fn listen(
    remote: &Remote,
    rounds: &Rounds,
    offer: Offer,
    assembly: &mut Assembly,
    store: &mut impl Store,
) -> io::Result<Option<Left>> {
    let socket = match join(remote.server.address(), &offer) {
        Ok(socket) => socket,
        Err(error) => return Ok(Some(Left::NotJoined(error))),
    };
    // Reports are sent on a thread of their own, so that a slow connection costs no packets.
    std::thread::scope(|scope| {
        let (reports, queue) = mpsc::sync_channel::<Reception>(1);
        let (answers, answered) = mpsc::channel();
        let mut rounds = rounds.clone();
        scope.spawn(move || {
            for report in queue {
                if let Some(offer) = rounds.ask(&report) {
                    let _ = answers.send(offer);
                }
            }
        });
        let listening =
            Listening { image: hex::prefix(&remote.sha256).unwrap_or_default(), offer, assembly, store };
        listening.run(&socket, &reports, &answered)
    })
}

/// Joins the group on the interface that leads to the appliance.
fn join(appliance: Ipv4Addr, offer: &Offer) -> io::Result<UdpSocket> {
    let probe = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // This sends nothing.
    probe.connect((appliance, offer.group.port()))?;
    let IpAddr::V4(own) = probe.local_addr()?.ip() else {
        return Err(io::Error::other("the boot interface has no address"));
    };
    // Bound to the group, the socket receives nothing else, not even the appliance's UDP to other groups.
    let socket = UdpSocket::bind(offer.group)?;
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        // Without privileges, as much as the system allows.
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    }
    socket.join_multicast_v4(offer.group.ip(), &own)?;
    socket.set_read_timeout(Some(TICK))?;
    Ok(socket)
}

struct Listening<'a, S> {
    image: [u8; 8],
    offer: Offer,
    assembly: &'a mut Assembly,
    store: &'a mut S,
}

impl<S: Store> Listening<'_, S> {
    fn run(
        mut self,
        socket: &UdpSocket,
        reports: &mpsc::SyncSender<Reception>,
        answered: &mpsc::Receiver<Offer>,
    ) -> io::Result<Option<Left>> {
        let mut packet = vec![0; HEADER + usize::from(self.offer.symbol_size) + 1];
        let begun = Instant::now();
        let (mut heard, mut reported, mut judged) = (begun, begun, begun);
        let (mut sequence, mut came, mut polled, mut useful) = (0, 0, false, 0u64);
        loop {
            let content = match socket.recv(&mut packet) {
                Ok(len) => self.accept(&packet[..len]),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => None,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => None,
                Err(error) => return Ok(Some(Left::NotJoined(error))),
            };
            let now = Instant::now();
            if let Some((header, payload)) = content {
                heard = now;
                came += 1;
                sequence = sequence.max(header.sequence.saturating_add(1));
                match header.content {
                    Content::Poll => polled = true,
                    Content::Symbol { block, symbol } => {
                        if self.assembly.add(block, symbol, payload, self.store)? {
                            useful += payload.len() as u64;
                        }
                        if self.assembly.complete() {
                            return Ok(None);
                        }
                    }
                }
            }
            if now - heard > if came > 0 { PAUSE } else { SILENCE } {
                return Ok(Some(Left::Silent));
            }
            let since = now - reported;
            if since > Duration::from_millis(self.offer.report_every) || polled && since > POLLED_EVERY {
                let report = Reception { sequence, came, lacks: self.assembly.lacks(), done: false };
                // If a report is still queued, the next one soon follows.
                if !matches!(reports.try_send(report), Err(TrySendError::Full(_))) {
                    (reported, polled) = (now, false);
                }
                if let Some(offer) = answered.try_iter().last() {
                    self.offer.http_rate = offer.http_rate;
                    self.offer.report_every = offer.report_every;
                }
            }
            let judging = now - judged;
            if judging > JUDGED_EVERY {
                let rate = useful * 1000 / judging.as_millis() as u64;
                if rate < self.offer.http_rate {
                    return Ok(Some(Left::Slow(rate / 1000, self.offer.http_rate / 1000)));
                }
                (judged, useful) = (now, 0);
            }
        }
    }

    /// Accepts a packet of this image with the round's geometry.
    fn accept<'p>(&self, packet: &'p [u8]) -> Option<(Header, &'p [u8])> {
        Header::parse(packet)
            .filter(|(header, _)| header.image == self.image && header.len == self.assembly.len())
    }
}
