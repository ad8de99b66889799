//! A round's thread: reads the image, encodes symbols, sends them.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pxe_contract::hex;
use pxe_contract::round::{Offer, Reception};
use pxe_contract::symbols::{Content, Geometry, HEADER, Header};
use raptorq::{ObjectTransmissionInformation, SourceBlockEncoder};
use socket2::{Domain, Protocol, Socket, Type};

use super::pace::Pace;
use super::schedule::{Schedule, Step};
use crate::base::lock::Unpoisoned as _;
use crate::config;
use crate::provision::blob::Blob;

/// A multiple of a cache line that, with all headers, also fits a tunnel's MTU.
const SYMBOL_SIZE: u16 = 1408;
/// Symbols per block: 1.4 MB. Larger blocks take longer to decode per byte. Smaller blocks more often lose more symbols
/// than the average, and each such block needs a repair of its own.
const BLOCK_SYMBOLS: u16 = 1024;
/// IPv4 and UDP headers.
const IP_UDP: usize = 28;
const ETHERNET: usize = 14;
/// A sender that is later than this does not catch up: the burst would overflow a queue.
const LATE: Duration = Duration::from_millis(5);

/// A round in progress.
pub(super) struct Round {
    schedule: Mutex<Schedule>,
    geometry: Geometry,
    group: SocketAddrV4,
    ended: AtomicBool,
}

impl Round {
    /// Starts sending; `None` if the image or the bridge's MTU is too small.
    pub(super) fn open(
        settings: &config::Carousel,
        address: Ipv4Addr,
        mtu: u32,
        sha256: &str,
        image: &Blob,
        now: Instant,
    ) -> io::Result<Option<Arc<Self>>> {
        let room = u16::try_from(mtu).unwrap_or(u16::MAX).saturating_sub((HEADER + IP_UDP) as u16);
        let symbol_size = room.min(SYMBOL_SIZE) & !7;
        let Some(geometry) = Geometry::new(image.len(), symbol_size, BLOCK_SYMBOLS) else { return Ok(None) };
        let Some(id) = hex::prefix::<8>(sha256) else { return Ok(None) };
        // Images get different groups, as far as there are enough: switches with IGMP snooping keep them apart.
        let hosts = u32::MAX.checked_shr(settings.group.prefix_len().into()).unwrap_or(0);
        let group = settings.group.network().to_bits() | (u32::from(id[0]) & hosts);
        let group = SocketAddrV4::new(group.into(), settings.port);
        let socket = socket(address, group)?;
        let packet = usize::from(symbol_size) + HEADER + IP_UDP + ETHERNET;
        let pace = Pace::new(settings.ceiling, packet, now);
        let schedule = Mutex::new(Schedule::new(geometry, pace, now));
        let round = Arc::new(Self { schedule, geometry, group, ended: AtomicBool::new(false) });
        let sending = Sending { round: round.clone(), socket, image: image.clone(), id, block: None };
        std::thread::Builder::new().name("carousel".to_owned()).spawn(move || sending.run())?;
        tracing::info!(image = sha256, %group, bytes = image.len(), "a multicast round begins");
        Ok(Some(round))
    }

    pub(super) fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Processes a report, and returns the offer for the receiver; `None` if HTTP is better for it.
    pub(super) fn report(&self, from: Ipv4Addr, report: &Reception, now: Instant) -> Option<Offer> {
        let mut schedule = self.schedule();
        schedule.report(from, report, now);
        if schedule.has_spent(from) {
            return None;
        }
        let receivers = schedule.receivers().max(1) as u64;
        Some(Offer {
            group: self.group,
            symbol_size: self.geometry.symbol_size(),
            block_symbols: BLOCK_SYMBOLS,
            // A hundred reports a second in total.
            report_every: (receivers * 10).clamp(250, 5000),
            http_rate: schedule.pace.through() as u64 / receivers,
        })
    }

    /// Sets its share of the ceiling, as one of `rounds` rounds.
    pub(super) fn share(&self, ceiling: f64, rounds: usize) {
        self.schedule().pace.set_ceiling(ceiling / rounds as f64);
    }

    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unpoisoned()
    }
}

fn socket(address: Ipv4Addr, group: SocketAddrV4) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind(&SocketAddrV4::new(address, 0).into())?;
    socket.set_multicast_if_v4(&address)?;
    // It stays on the boot segment (RFC 2365 limits the scope by address, this by hops).
    socket.set_multicast_ttl_v4(1)?;
    socket.set_multicast_loop_v4(false)?;
    socket.connect(&group.into())?;
    Ok(socket)
}

struct Sending {
    round: Arc<Round>,
    socket: Socket,
    image: Blob,
    id: [u8; 8],
    /// The block that was read last.
    block: Option<Block>,
}

struct Block {
    number: u32,
    /// Complete symbols; the last one is padded with zeros.
    bytes: Vec<u8>,
    encoder: Option<SourceBlockEncoder>,
}

impl Sending {
    fn run(mut self) {
        let begun = Instant::now();
        // When everything sent so far should have left, at the round's rate.
        let mut due = begun;
        let ended = loop {
            let now = Instant::now();
            if let Some(early) =
                due.checked_duration_since(now).filter(|early| *early > Duration::from_millis(1))
            {
                std::thread::sleep(early);
            }
            let mut schedule = self.round.schedule();
            let step = schedule.next(Instant::now());
            let packets = match &step {
                Step::Symbols { symbols, .. } => symbols.end - symbols.start,
                Step::Poll { .. } => 1,
                Step::Wait(_) | Step::End => 0,
            };
            let time = schedule.pace.time(packets);
            drop(schedule);
            due = due.max(Instant::now().checked_sub(LATE).unwrap_or(begun)) + time;
            let sent = match step {
                Step::Symbols { block, symbols, sequence } => self.symbols(block, symbols, sequence),
                Step::Poll { sequence } => self.send(sequence, Content::Poll, &[]),
                Step::Wait(time) => {
                    std::thread::sleep(time);
                    Ok(())
                }
                Step::End => break Ok(()),
            };
            if let Err(error) = sent {
                break Err(error);
            }
        };
        self.round.ended.store(true, Ordering::Release);
        let packets = self.round.schedule().packets();
        let (group, seconds) = (self.round.group, begun.elapsed().as_secs_f64());
        match ended {
            Ok(()) => tracing::info!(%group, packets, seconds, "a multicast round ends"),
            Err(error) => {
                tracing::error!(%group, %error, "a multicast round ends; its machines go on by HTTP")
            }
        }
    }

    fn symbols(&mut self, block: u32, symbols: std::ops::Range<u32>, sequence: u32) -> io::Result<()> {
        let size = self.round.geometry.symbol_size();
        let count = self.round.geometry.symbols(block);
        let mut read = match self.block.take() {
            Some(read) if read.number == block => read,
            _ => self.read(block)?,
        };
        let config = ObjectTransmissionInformation::new(read.bytes.len() as u64, size, 1, 1, 8);
        for (symbol, sequence) in symbols.zip(sequence..) {
            let content = Content::Symbol { block, symbol };
            if symbol < count {
                let at = symbol as usize * usize::from(size);
                self.send(sequence, content, &read.bytes[at..at + usize::from(size)])?;
            } else {
                let encoder =
                    read.encoder.get_or_insert_with(|| SourceBlockEncoder::new(0, &config, &read.bytes));
                for packet in encoder.repair_packets(symbol - count, 1) {
                    self.send(sequence, content, packet.data())?;
                }
            }
        }
        self.block = Some(read);
        Ok(())
    }

    fn read(&self, number: u32) -> io::Result<Block> {
        let geometry = self.round.geometry;
        let mut bytes = vec![0; geometry.symbols(number) as usize * usize::from(geometry.symbol_size())];
        let range = geometry.block(number);
        let len = (range.end - range.start) as usize;
        self.image.read_at(range.start, &mut bytes[..len])?;
        Ok(Block { number, bytes, encoder: None })
    }

    /// A packet that can't be sent counts as lost: receivers report what they lack.
    fn send(&self, sequence: u32, content: Content, payload: &[u8]) -> io::Result<()> {
        let header = Header { image: self.id, len: self.round.geometry.len(), sequence, content };
        let header = header.bytes();
        let parts = [io::IoSlice::new(&header), io::IoSlice::new(payload)];
        if let Err(error) = self.socket.send_vectored(&parts) {
            tracing::debug!(%error, "a multicast packet was not sent");
        }
        Ok(())
    }
}
