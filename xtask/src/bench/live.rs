//! XDP alone: test runs with live frames (`BPF_F_TEST_XDP_LIVE_FRAMES`), one core.
//!
//! The kernel gives a program frames in whole pages, as drivers of real network cards do, and sends its answers: here
//! out of a veth pair whose far end counts and drops them. The time is that of the program, of sending the frame and
//! of the drop, without a card's driver. Every run is one file in lock-step, from its first ACK to the one before its
//! last. Each ACK is made by `limit_ack` (which says why), and passed on by a tail call, for both sides alike.

use std::num::NonZeroU16;
use std::time::Duration;

use ::lab::load::Numbers;
use ::lab::load::cpu::Cpus;
use ::lab::net::{self, ip};
use ::lab::process::wait_for;
use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap, HashOfMaps, MapData, PerCpuArray, ProgramArray};
use aya::programs::{ProgramFd, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use pxe_common::Mac;
use pxe_common::map::{
    CHUNK_STRIDE, Chunk, Part, SUMS_PER_PAGE, Session, SessionKey, Stations, SumPage, name,
};
use pxe_common::tftp;
use pxe_common::verdict::Hook;
use pxe_common::wire::{Checksum, Datagram, HEADERS_LEN};

use super::limit::{self, BLKSIZE, PORT};

/// Larger than a core's own caches, like a machine's initrd.
const FILE_LEN: usize = (64 << 20) + 77;
const HEAD_LEN: usize = HEADERS_LEN + tftp::HEADER_LEN;
/// Inner arrays differ in length (linux/bpf.h).
const BPF_F_INNER_MAP: u32 = 1 << 12;

/// Every request, apart from the block number.
const ACK: Datagram = Datagram {
    source_mac: Mac([0x52, 0x54, 0, 0x77, 0, 1]),
    destination_mac: Mac([2, 0, 0, 0, 0, 1]),
    source: std::net::Ipv4Addr::new(10, 77, 0, 100),
    destination: std::net::Ipv4Addr::new(10, 77, 0, 1),
    source_port: 25300,
    destination_port: PORT,
    payload_len: tftp::HEADER_LEN as u16,
};

/// What is measured.
#[derive(Clone, Copy)]
pub(super) enum Program {
    Bridgehead,
    Limit,
}

pub(super) struct Live {
    limit: Ebpf,
    measured: ProgramArray<MapData>,
    number: Array<MapData, u32>,
    arrived: PerCpuArray<MapData, u64>,
    sessions: HashMap<MapData, SessionKey, Session>,
    session: Session,
    programs: [ProgramFd; 2],
    /// Keeps its programs, and the targets of the entry: the kernel empties a map of programs that nobody holds.
    _bridgehead: (Ebpf, ProgramArray<MapData>),
    /// `struct xdp_md`: the frame's length, and its ingress port.
    context: Vec<u8>,
}

impl Live {
    /// Loads both sides' programs, and the file for ours.
    pub(super) fn new() -> Result<Self> {
        let content = Numbers::new(1468).bytes(FILE_LEN);
        let (mut bridgehead, mut limit) = (bridgehead()?, limit::object(FILE_LEN, BLKSIZE)?);
        let (blksize, window) = (NonZeroU16::new(BLKSIZE).context("blocks have bytes")?, NonZeroU16::MIN);
        let transfer =
            tftp::Session::new(FILE_LEN as u64, blksize, window, 100).ok().context("too many blocks")?;
        let session = Session {
            transfer,
            blob: 1,
            sums: 1,
            idle_ns: u64::MAX,
            opened_ns: 0,
            sent_by_xdp: 0,
            sent_by_tc: 0,
            stations: Stations::ANY,
            unused: [0; 4],
        };
        let entry = load(&mut bridgehead, name::entry(Hook::Xdp))?;
        let part = load(&mut bridgehead, name::part(Hook::Xdp, Part::Tftp))?;
        let programs = [entry, load(&mut limit, "limit_xdp")?];
        for program in ["limit_ack", "limit_sink"] {
            load(&mut limit, program)?;
        }
        let mut parts: ProgramArray<_> = map(&mut bridgehead, name::XDP_PARTS)?.try_into()?;
        parts.set(Part::Tftp as u32, &part, 0)?;
        // After loading the programs, because a map that is taken out of its object before would be closed.
        publish(&mut bridgehead, &content)?;
        let mut ack: Array<_, [u64; 6]> = map(&mut limit, "ACK")?.try_into()?;
        ack.set(0, acknowledgement(), 0)?;
        let mut live = Self {
            measured: map(&mut limit, "MEASURED")?.try_into()?,
            number: map(&mut limit, "NUMBER")?.try_into()?,
            arrived: map(&mut limit, "ARRIVED")?.try_into()?,
            sessions: map(&mut bridgehead, name::SESSIONS)?.try_into()?,
            context: context(lay_wire(&mut limit)?),
            limit,
            session,
            programs,
            _bridgehead: (bridgehead, parts),
        };
        live.check(&content)?;
        Ok(live)
    }

    /// Transfers whole files for at least this long: returns the blocks, and the seconds they took.
    pub(super) fn run(&mut self, program: Program, duration: Duration, cpus: &Cpus) -> Result<(u64, f64)> {
        cpus.be_client()?;
        let (mut blocks, mut spent) = (0, Duration::ZERO);
        while spent < duration {
            blocks += u64::from(self.session.transfer.blocks() - 1);
            spent += self.file(program)?;
        }
        cpus.leave_to_client()?;
        Ok((blocks, spent.as_secs_f64()))
    }

    /// Every block but the last, short one.
    fn file(&mut self, program: Program) -> Result<Duration> {
        self.begin(program)?;
        let blocks = self.session.transfer.blocks() - 1;
        let arrived = self.arrived()?;
        let options = TestRunOptions {
            data_in: Some(&[0; 60]),
            ctx_in: Some(&self.context),
            repeat: blocks,
            // The kernel's own batch size, that of a NAPI poll.
            attrs: TestRunAttrs::new().xdp_live_frames(64),
            ..TestRunOptions::default()
        };
        let each = self.acks()?.test_run(options).context("a test run with live frames")?.duration;
        wait_for(Duration::from_secs(1), || {
            Ok((self.arrived()? - arrived == u64::from(blocks)).then_some(()))
        })
        .with_context(|| format!("{} of {blocks} blocks came out", self.arrived().unwrap_or(0) - arrived))?;
        Ok(each * blocks)
    }

    /// Checks one frame's bytes before any is counted: the file's first block, or zeros from the bouncing program.
    fn check(&mut self, content: &[u8]) -> Result<()> {
        let zeros = vec![0; BLKSIZE.into()];
        for (program, data) in [(Program::Bridgehead, &content[..BLKSIZE.into()]), (Program::Limit, &zeros)] {
            self.begin(program)?;
            let mut out = vec![0; 4096];
            let options = TestRunOptions {
                data_in: Some(&[0; 60]),
                data_out: Some(&mut out),
                ..TestRunOptions::default()
            };
            let len = self.acks()?.test_run(options)?.data_size_out as usize;
            let head: Option<&[u8; HEADERS_LEN]> = out[..len].first_chunk();
            let reply = head.and_then(|head| Datagram::parse(head, len).ok());
            ensure!(reply == Some(ACK.reply(4 + BLKSIZE)), "no DATA came back: {reply:?}");
            ensure!(out[HEADERS_LEN..HEAD_LEN] == [0, 3, 0, 1] && out[HEAD_LEN..len] == *data, "wrong bytes");
        }
        Ok(())
    }

    /// Resets the next ACK to the first one.
    fn begin(&mut self, program: Program) -> Result<()> {
        self.sessions.insert(SessionKey::of(&ACK), self.session, 0)?;
        self.number.set(0, 0, 0)?;
        Ok(self.measured.set(0, &self.programs[program as usize], 0)?)
    }

    fn acks(&self) -> Result<&Xdp> {
        Ok(self.limit.program("limit_ack").context("limit_ack")?.try_into()?)
    }

    fn arrived(&self) -> Result<u64> {
        Ok(self.arrived.get(&0, 0)?.iter().sum())
    }
}

/// The ACK and padding, as 64-bit words.
fn acknowledgement() -> [u64; 6] {
    let payload = [0, 4, 0, 0];
    let bytes = [&ACK.headers(Checksum::ZERO.bytes(&payload))[..], &payload, &[0, 0]].concat();
    std::array::from_fn(|n| u64::from_ne_bytes(*bytes[8 * n..].first_chunk().expect("48 bytes")))
}

/// The appliance's programs as the daemon loads them, without debug lines.
fn bridgehead() -> Result<Ebpf> {
    let path = ::lab::target().join("bpf/pxe-ebpf");
    let mut loader = EbpfLoader::new();
    // aya-log's level: the verifier removes code that is off.
    loader.override_global("AYA_LOG_LEVEL", &0u8, true);
    loader.load_file(&path).with_context(|| format!("loading {}", path.display()))
}

fn load(ebpf: &mut Ebpf, name: &str) -> Result<ProgramFd> {
    let program: &mut Xdp = ebpf.program_mut(name).with_context(|| name.to_owned())?.try_into()?;
    program.load().with_context(|| format!("loading {name}"))?;
    Ok(program.fd()?.try_clone()?)
}

fn map(ebpf: &mut Ebpf, name: &str) -> Result<aya::maps::Map> {
    ebpf.take_map(name).with_context(|| format!("the object has no map {name}"))
}

/// Publishes a file as `Session` refers to it: blob 1, sums 1.
#[expect(clippy::needless_borrows_for_generic_args, reason = "by value it is 66 KiB on the stack")]
fn publish(ebpf: &mut Ebpf, content: &[u8]) -> Result<()> {
    let mut blobs: HashOfMaps<_, u32, Array<MapData, Chunk>> = map(ebpf, name::BLOBS)?.try_into()?;
    let count = (content.len() / CHUNK_STRIDE + 1) as u32;
    let (mut array, mut chunk) = (Array::create(count, BPF_F_INNER_MAP)?, Box::new(Chunk([0; _])));
    for (index, from) in (0..count).zip((0..).step_by(CHUNK_STRIDE)) {
        let bytes = &content[from..content.len().min(from + chunk.0.len())];
        chunk.0[..bytes.len()].copy_from_slice(bytes);
        array.set(index, &*chunk, 0)?;
    }
    blobs.insert(1, &array, 0)?;

    let mut tables: HashOfMaps<_, u32, Array<MapData, SumPage>> = map(ebpf, name::SUMS)?.try_into()?;
    let blocks: Vec<_> = content.chunks(BLKSIZE.into()).collect();
    let pages = blocks.chunks(SUMS_PER_PAGE);
    let mut array = Array::create(pages.len() as u32, BPF_F_INNER_MAP)?;
    for (index, blocks) in (0..).zip(pages) {
        let mut page = SumPage([0; _]);
        for (sum, block) in page.0.iter_mut().zip(blocks) {
            *sum = Checksum::ZERO.bytes(block).folded();
        }
        array.set(index, &page, 0)?;
    }
    Ok(tables.insert(1, &array, 0)?)
}

/// A veth pair with the sink at both ends: live frames can enter only by a port that has a program itself, and leave
/// only by one whose other end has one. Returns the port's index.
fn lay_wire(limit: &mut Ebpf) -> Result<u32> {
    ip(["link", "add", "live0", "type", "veth", "peer", "name", "live1"])?;
    let sink: &mut Xdp = limit.program_mut("limit_sink").context("limit_sink")?.try_into()?;
    for end in ["live0", "live1"] {
        ip(["link", "set", end, "up"])?;
        sink.attach(end, XdpMode::Driver)?;
    }
    net::index("live0")
}

/// data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
fn context(port: u32) -> Vec<u8> {
    [0, 60, 0, port, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect()
}
