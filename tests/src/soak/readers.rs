//! TFTP clients that read files which are replaced meanwhile (RFC 1350, 2347, 2348, 2349, 7440).
//!
//! A transfer must have one content from beginning to end: one that the file had between the request and the first
//! answer. Candidates are ruled out as bytes arrive; when none is left, the bytes are wrong.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Now, Tally};
use crate::appliance::ADDRESS;
use crate::load::Numbers;
use crate::net::Host;

const READERS: usize = 64;
/// Ports of each reader.
const PORTS: usize = 16;
/// A port rests this long if something may still arrive at it: the answer to a retransmitted request, or to an aborted
/// one. After a clean end it is reused at once.
const REST: Duration = Duration::from_secs(40);
/// Exchanges of one reader before it is the next one's turn.
const TURN: u32 = 8;
/// Transfers between two replacements of a file.
const REPLACE_EVERY: u64 = 40;
/// Packets lost on the readers' cable, in percent, of each direction.
const LOSS: f64 = 0.05;
/// iPXE's shortest timer is a quarter of this.
const RETRY: Duration = Duration::from_secs(1);
/// A transfer without a new block for this long is lost, not counting the time without a daemon.
const PATIENCE: Duration = Duration::from_secs(15);

/// Smaller files never enter the kernel, so their transfers end when the daemon is killed.
const DAEMONS_OWN: usize = 16 << 10;

/// Around the boundaries of blocks and of the block map's chunks; the last has more than 65,535 blocks of 8 bytes.
const LENGTHS: [usize; 15] = [
    0, 1, 511, 512, 1467, 1469, 30_001, 65_535, 65_536, 65_537, 100_000, 1_000_000, 2_000_000, 4_000_000,
    800_000,
];
/// As firmware and loaders request; sizes that no frame holds must be reduced by the server.
const BLKSIZES: [u16; 9] = [512, 512, 1024, 1024, 1428, 1432, 1468, 8192, 65_464];
const WINDOWS: [u16; 7] = [1, 1, 1, 4, 8, 16, 64];

type Content = Arc<Vec<u8>>;

pub(super) struct Readers {
    readers: Vec<Reader>,
    files: Files,
    server: SocketAddrV4,
    numbers: Numbers,
    /// Transfers since a file was replaced.
    begun: u64,
}

/// The files, each with its number as its name.
struct Files {
    root: PathBuf,
    contents: Vec<Content>,
}

struct Reader {
    /// Its ports: some transfers reuse the previous one's, as firmware does.
    ports: Vec<Port>,
    /// Whether it retransmits its ACKs. GRUB does not, and waits for the server to retransmit.
    insists: bool,
    transfer: Option<Transfer>,
}

struct Port {
    socket: UdpSocket,
    free_from: Instant,
}

struct Transfer {
    port: usize,
    /// Whether packets may arrive after its end.
    untidy: bool,
    /// How often a daemon had been killed when it began.
    kills: u32,
    file: usize,
    /// The contents that the file may have had when it was opened.
    candidates: Vec<Content>,
    request: Vec<u8>,
    asked: (u16, u16),
    /// The server's end, from the first answer on.
    server: Option<SocketAddr>,
    blksize: usize,
    window: u32,
    /// Blocks received in order.
    received: u32,
    since_ack: u32,
    /// A block was missing, and the one before it was acknowledged again (RFC 7440 section 4): once per gap.
    gap: bool,
    /// Ends the transfer with an ERROR after this many blocks.
    quits_after: Option<u32>,
    /// On the clock that runs only while there is a daemon.
    progress: Duration,
    sent: Instant,
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, asked: (blksize, window), server, received, gap, .. } = self;
        let len = self.candidates.iter().map(|content| content.len()).max().unwrap_or_default();
        write!(
            f,
            "file {file} of {len} bytes from {server:?}, blksize {blksize} and window {window} asked for, "
        )?;
        write!(f, "after block {received}{}", if *gap { ", with a gap" } else { "" })
    }
}

/// What a packet meant.
enum News {
    Nothing,
    /// It is this side's turn.
    Turn,
    /// The last block has arrived.
    Whole,
    /// The transfer ended in another way.
    Over,
}

impl Readers {
    /// Clients on `host`, which has an address, of files in `root`.
    pub(super) fn new(host: &Host, root: &Path, seed: u64) -> Result<Self> {
        let mut numbers = Numbers::new(seed ^ 0x7f79);
        let mut files = Files { root: root.to_owned(), contents: Vec::new() };
        for (file, len) in LENGTHS.iter().enumerate() {
            files.contents.push(Content::default());
            files.replace(file, *len, &mut numbers)?;
        }
        let reader = |insists| -> Result<Reader> {
            let port = || -> io::Result<Port> {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.set_nonblocking(true)?;
                Ok(Port { socket, free_from: Instant::now() })
            };
            let ports = (0..PORTS).map(|_| port()).collect::<Result<_, _>>()?;
            Ok(Reader { ports, insists, transfer: None })
        };
        let readers = host.inside(|| (0..READERS).map(|n| reader(n % 2 == 0)).collect::<Result<_>>())?;
        let server = SocketAddrV4::new(ADDRESS.parse()?, 69);
        Ok(Self { readers, files, server, numbers, begun: 0 })
    }

    /// A turn for each reader. False when there was nothing to do.
    pub(super) fn turn(&mut self, now: Now, tally: &mut Tally) -> Result<bool> {
        let mut busy = false;
        for index in 0..self.readers.len() {
            busy |= self.turn_of(index, now, tally)?;
        }
        if self.begun >= REPLACE_EVERY {
            self.begun = 0;
            self.replace(tally)?;
        }
        Ok(busy)
    }

    fn turn_of(&mut self, index: usize, now: Now, tally: &mut Tally) -> Result<bool> {
        let Self { readers, files, server, numbers, begun } = self;
        let reader = &mut readers[index];
        let Some(transfer) = &mut reader.transfer else {
            let port = numbers.below(PORTS as u32) as usize;
            let Port { socket, free_from } = &reader.ports[port];
            if *free_from > now.wall {
                return Ok(false);
            }
            let transfer = Transfer::new(port, tally.kills, files, numbers, now);
            // Drain packets of an earlier transfer of this port.
            while receive(socket, &mut [0; 1])?.is_some() {}
            transfer.send(socket, *server, numbers)?;
            reader.transfer = Some(transfer);
            *begun += 1;
            return Ok(true);
        };
        let Port { socket, free_from } = &mut reader.ports[transfer.port];
        if transfer.untidy {
            *free_from = now.wall + REST;
        }
        let mut buffer = [0; 2048];
        let mut exchanges = 0;
        while exchanges < TURN
            && let Some((len, from)) = receive(socket, &mut buffer)?
        {
            if numbers.happens(LOSS) {
                continue;
            }
            match transfer.take(from, &buffer[..len], now, tally)? {
                News::Nothing => continue,
                News::Turn => {}
                over @ (News::Whole | News::Over) => {
                    if matches!(over, News::Whole) {
                        // This ACK is never lost, because the server would otherwise retransmit the last block
                        // to a port that soon has another transfer (RFC 1350 section 6).
                        transfer.acknowledge(socket, from)?;
                        tally.transfers += 1;
                        tally.tftp += 1;
                    }
                    reader.transfer = None;
                    return Ok(true);
                }
            }
            tally.tftp += 1;
            exchanges += 1;
            if transfer.quits_after.is_some_and(|after| after <= transfer.received) {
                send(socket, b"\0\x05\0\x08enough\0", transfer.server.unwrap_or((*server).into()))?;
                *free_from = now.wall + REST;
                reader.transfer = None;
                return Ok(true);
            }
            transfer.sent = now.wall;
            transfer.send(socket, *server, numbers)?;
        }
        if exchanges == 0 && now.wall - transfer.sent > RETRY {
            if now.served - transfer.progress > PATIENCE {
                if tally.kills > transfer.kills && transfer.is_the_daemons() {
                    tally.interrupted += 1;
                } else {
                    tally.transfers_lost += 1;
                    tally.tell(|| format!("{transfer:?} stopped"));
                }
                *free_from = now.wall + REST;
                reader.transfer = None;
            } else if reader.insists || transfer.server.is_none() {
                tally.retries += 1;
                transfer.untidy |= transfer.server.is_none();
                transfer.sent = now.wall;
                transfer.send(socket, *server, numbers)?;
            }
        }
        Ok(exchanges > 0)
    }

    /// Gives a file another content, of the same length or of another.
    fn replace(&mut self, tally: &mut Tally) -> Result<()> {
        let file = self.numbers.below(LENGTHS.len() as u32) as usize;
        let len = match self.numbers.below(2) {
            0 => self.files.contents[file].len(),
            _ => LENGTHS[self.numbers.below(LENGTHS.len() as u32) as usize],
        };
        self.files.replace(file, len, &mut self.numbers)?;
        tally.replaced += 1;
        for transfer in self.readers.iter_mut().filter_map(|r| r.transfer.as_mut()) {
            if transfer.file == file && transfer.server.is_none() {
                transfer.candidates.push(self.files.contents[file].clone());
            }
        }
        Ok(())
    }
}

impl Files {
    fn replace(&mut self, file: usize, len: usize, numbers: &mut Numbers) -> Result<()> {
        let content = Content::new(numbers.bytes(len));
        fs::create_dir_all(&self.root)?;
        let (new, path) = (self.root.join("new"), self.root.join(file.to_string()));
        fs::write(&new, &*content)?;
        fs::rename(&new, &path).with_context(|| format!("replacing {}", path.display()))?;
        self.contents[file] = content;
        Ok(())
    }
}

impl Transfer {
    fn new(port: usize, kills: u32, files: &Files, numbers: &mut Numbers, now: Now) -> Self {
        let mut pick = |len: usize| numbers.below(len as u32) as usize;
        let file = pick(LENGTHS.len());
        let (mut blksize, mut window) = (BLKSIZES[pick(BLKSIZES.len())], WINDOWS[pick(WINDOWS.len())]);
        // Block numbers that wrap, but rarely, because these files take many exchanges.
        if pick(200) == 0 {
            (blksize, window) = (8, 64);
        }
        let quits_after = (pick(30) == 0).then(|| pick(60) as u32);
        let mut request = format!("\0\x01{file}\0octet\0");
        if blksize != 512 {
            request += &format!("blksize\0{blksize}\0");
        }
        if window != 1 {
            request += &format!("windowsize\0{window}\0");
        }
        if pick(2) == 0 {
            request += "tsize\x000\0";
        }
        Self {
            port,
            untidy: false,
            kills,
            file,
            candidates: vec![files.contents[file].clone()],
            request: request.into_bytes(),
            asked: (blksize, window),
            server: None,
            // Valid if the server supports no options.
            blksize: 512,
            window: 1,
            received: 0,
            since_ack: 0,
            gap: false,
            quits_after,
            progress: now.served,
            sent: now.wall,
        }
    }

    /// Sends the request, or the newest ACK, unless it is lost.
    fn send(&self, socket: &UdpSocket, server: SocketAddrV4, numbers: &mut Numbers) -> Result<()> {
        if numbers.happens(LOSS) {
            return Ok(());
        }
        match self.server {
            Some(server) => self.acknowledge(socket, server),
            None => send(socket, &self.request, server.into()),
        }
    }

    fn acknowledge(&self, socket: &UdpSocket, server: SocketAddr) -> Result<()> {
        let [high, low] = (self.received as u16).to_be_bytes();
        send(socket, &[0, 4, high, low], server)
    }

    fn take(&mut self, from: SocketAddr, packet: &[u8], now: Now, tally: &mut Tally) -> Result<News> {
        // Of an earlier transfer of this port (RFC 1350 section 4).
        if self.server.is_some_and(|server| server != from) {
            return Ok(News::Nothing);
        }
        let first = self.server.is_none();
        match packet {
            [0, 6, options @ ..] if self.received == 0 => {
                self.server = Some(from);
                if first {
                    self.granted(options, tally)?;
                    self.progress = now.served;
                }
                Ok(News::Turn)
            }
            // A retransmission of an earlier transfer of this port, to one that has seen no answer yet.
            [0, 3, number @ ..] if first && (self.has_options() || !number.starts_with(&[0, 1])) => {
                Ok(News::Nothing)
            }
            [0, 3, high, low, data @ ..] => {
                self.server = Some(from);
                Ok(self.data(u16::from_be_bytes([*high, *low]), data, now, tally))
            }
            [0, 5, _, code, words @ ..] => {
                tally.transfers_lost += 1;
                let words = String::from_utf8_lossy(words);
                tally.tell(|| format!("{self:?}: error {code}: {words}"));
                Ok(News::Over)
            }
            _ => Ok(News::Nothing),
        }
    }

    /// Reads an OACK: at most the requested values, and the length that the file had.
    fn granted(&mut self, options: &[u8], tally: &mut Tally) -> Result<()> {
        let words: Vec<_> =
            options.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).to_lowercase()).collect();
        let value = |name: &str| -> Option<usize> {
            words.chunks_exact(2).find(|w| w[0] == name).and_then(|w| w[1].parse().ok())
        };
        let (blksize, window) = (value("blksize").unwrap_or(512), value("windowsize").unwrap_or(1));
        let (most, widest) = self.asked;
        ensure!(
            (8..=usize::from(most)).contains(&blksize) && (1..=usize::from(widest)).contains(&window),
            "granted blksize {blksize} and window {window}, asked for {most} and {widest}"
        );
        (self.blksize, self.window) = (blksize, window as u32);
        if let Some(len) = value("tsize") {
            self.candidates.retain(|content| content.len() == len);
            if self.candidates.is_empty() {
                tally.wrong_bytes += 1;
                tally.tell(|| format!("file {} never had the length {len}", self.file));
            }
        }
        Ok(())
    }

    fn is_the_daemons(&self) -> bool {
        self.candidates.iter().all(|content| content.len() < DAEMONS_OWN)
    }

    /// Whether it begins with an OACK, because the server knows each of its options.
    fn has_options(&self) -> bool {
        !self.request.ends_with(b"octet\0")
    }

    fn data(&mut self, number: u16, data: &[u8], now: Now, tally: &mut Tally) -> News {
        let ahead = number.wrapping_sub(self.received as u16);
        if ahead != 1 {
            // The last block again means that the server did not get its ACK. A later block means that some are
            // missing.
            let missing = (2..=self.window).contains(&ahead.into()) && !self.gap;
            self.gap |= missing;
            let repeated = ahead == 0 && self.received > 0;
            self.since_ack = 0;
            return if repeated || missing { News::Turn } else { News::Nothing };
        }
        let at = self.received as usize * self.blksize;
        self.candidates.retain(|content| {
            content.get(at..).is_some_and(|rest| rest[..rest.len().min(self.blksize)] == *data)
        });
        if self.candidates.is_empty() {
            tally.wrong_bytes += data.len().max(1) as u64;
            let Self { file, blksize, .. } = *self;
            tally
                .tell(|| format!("file {file}: block {number} of {blksize} bytes, from {at}: not its bytes"));
            return News::Over;
        }
        self.received += 1;
        self.since_ack += 1;
        self.gap = false;
        self.progress = now.served;
        tally.bytes += data.len() as u64;
        if data.len() < self.blksize {
            return News::Whole;
        }
        if self.since_ack < self.window {
            return News::Nothing;
        }
        self.since_ack = 0;
        News::Turn
    }
}

/// A packet and where it came from, if one is there.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Result<Option<(usize, SocketAddr)>> {
    match socket.recv_from(buffer) {
        Ok(received) => Ok(Some(received)),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e).context("receiving"),
    }
}

fn send(socket: &UdpSocket, packet: &[u8], to: SocketAddr) -> Result<()> {
    match socket.send_to(packet, to) {
        // Lost, as on any wire.
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(()),
        result => result.map(drop).context("sending"),
    }
}
