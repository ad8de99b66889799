//! A ceiling on the bandwidth that boots take of a port, by the kernel's own shaper: HTB (tc-htb(8)) at the port's root.
//!
//! ```text
//! b00d:            htb
//! ├── b00d:1       boots: never more than the ceiling
//! │   ├── b00d:10  datagrams (TFTP, DHCP): at least half of it, the rest when b00d:11 does not use it
//! │   └── b00d:11  streams (HTTP): the same
//! └── b00d:20      everything else, unshaped; nine times the share of a boot where the link itself is full
//! ```
//!
//! Frames are classified by their headers: UDP from the appliance's own address, and TCP from its HTTP ports. That holds
//! for the daemon's sockets and for frames that a program at tc sends back. Frames from XDP bypass queueing disciplines,
//! so ports with a ceiling are answered at tc. Frames above the ceiling are queued and not dropped, because GRUB never
//! asks for a block again.

use std::io;
use std::net::Ipv4Addr;

use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage as Route;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use super::links::Links;

/// The major number of our disciplines, by which they are recognised after a crash.
const MAJOR: u16 = 0xb00d;
const BOOTS: u16 = 1;
const DATAGRAMS: u16 = 0x10;
const STREAMS: u16 = 0x11;
const OTHERS: u16 = 0x20;

/// 100 Gbit/s: more than a port has, so that other traffic than boots is never shaped.
const UNSHAPED: u64 = 12_500_000_000;

/// Bytes that a class may send in its turn, where the link is full: classes within their rate take turns
/// (sch_htb.c, htb_dequeue_tree). At least a jumbo frame.
const TURN: u32 = 9216;
const TURN_OF_OTHERS: u32 = 2 * 9 * TURN;

/// The longest queue, in frames. Admission keeps it to what the ceiling lets through in a tenth of a second.
const FRAMES: u32 = 16_384;

/// The bandwidth that boots may take of each port, and how their frames are recognised.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ceiling {
    pub(super) bytes_per_second: u64,
    pub(super) address: Ipv4Addr,
    /// Of HTTP and HTTPS.
    pub(super) http_ports: [u16; 2],
}

/// Why the ceiling does not hold on a port.
#[derive(Debug, thiserror::Error)]
pub(super) enum ShapeError {
    #[error(
        "it has a queueing discipline of its own ({0}): take it off (`tc qdisc del dev PORT root`), or shape there"
    )]
    Taken(String),
    #[error("the kernel takes no {what}: {source}")]
    Refused { what: &'static str, source: io::Error },
}

impl Links {
    /// Whether the port's root is free for a ceiling, or has one of ours.
    pub(super) async fn can_be_shaped(&self, index: u32) -> Result<(), ShapeError> {
        match self.root_discipline(index).await? {
            // The kernel's default discipline has no number.
            None | Some((TcHandle { major: 0 | MAJOR, .. }, _)) => Ok(()),
            Some((_, kind)) => Err(ShapeError::Taken(kind)),
        }
    }

    /// Sets the ceiling of a port, in place of one that an earlier run left.
    pub(super) async fn shape(&self, index: u32, ceiling: &Ceiling) -> Result<(), ShapeError> {
        self.unshape(index).await?;
        let at = |parent, minor, kind, options| message(index, parent, Some(minor), kind, options);
        let (root, boots) = (TcHandle::ROOT, class(BOOTS));
        let half = ceiling.bytes_per_second / 2;
        let full = ceiling.bytes_per_second;
        self.ask(Route::NewQueueDiscipline(at(root, 0, "htb", htb())), "htb").await?;
        for (parent, minor, rate, most, turn) in [
            (class(0), BOOTS, full, full, TURN),
            (boots, DATAGRAMS, half, full, TURN),
            (boots, STREAMS, half, full, TURN),
            (class(0), OTHERS, UNSHAPED, UNSHAPED, TURN_OF_OTHERS),
        ] {
            let message = at(parent, minor, "htb", htb_class(rate, most, turn));
            self.ask(Route::NewTrafficClass(message), "class of htb").await?;
        }
        self.leaf(index, DATAGRAMS, "pfifo", FRAMES.to_ne_bytes().to_vec()).await?;
        // Fair shares for connections, and short queues; where the kernel lacks it, htb's default queue.
        for minor in [STREAMS, OTHERS] {
            let _ = self.leaf(index, minor, "fq_codel", Vec::new()).await;
        }
        let from = Key { offset: 12, mask: u32::MAX, value: ceiling.address.to_bits() };
        let protocol = |number: u32| Key { offset: 8, mask: 0x00ff_0000, value: number << 16 };
        self.filter(index, 1, DATAGRAMS, &[from, protocol(17)]).await?;
        for (priority, port) in (2..).zip(ceiling.http_ports) {
            // Our own packets have no IP options.
            let port = Key { offset: 20, mask: 0xffff_0000, value: u32::from(port) << 16 };
            self.filter(index, priority, STREAMS, &[from, protocol(6), port]).await?;
        }
        Ok(())
    }

    /// Removes the ceiling of a port, if there is one.
    pub(super) async fn unshape(&self, index: u32) -> Result<(), ShapeError> {
        if !matches!(self.root_discipline(index).await?, Some((TcHandle { major: MAJOR, .. }, _))) {
            return Ok(());
        }
        let message = message(index, TcHandle::ROOT, Some(0), "htb", Vec::new());
        self.ask(Route::DelQueueDiscipline(message), "end of htb").await
    }

    async fn root_discipline(&self, index: u32) -> Result<Option<(TcHandle, String)>, ShapeError> {
        let all = self.disciplines(index).await.map_err(|e| refused("look at its queues", e))?;
        let root = all.into_iter().find(|m| m.header.parent == TcHandle::ROOT);
        Ok(root.map(|message| {
            let kind = message.attributes.iter().find_map(|a| match a {
                TcAttribute::Kind(kind) => Some(kind.clone()),
                _ => None,
            });
            (message.header.handle, kind.unwrap_or_default())
        }))
    }

    async fn leaf(
        &self,
        index: u32,
        of: u16,
        kind: &'static str,
        options: Vec<u8>,
    ) -> Result<(), ShapeError> {
        self.ask(Route::NewQueueDiscipline(message(index, class(of), None, kind, options)), kind).await
    }

    async fn filter(&self, index: u32, priority: u32, to: u16, keys: &[Key]) -> Result<(), ShapeError> {
        const ETH_P_IP: u16 = 0x0800;
        let mut message = message(index, class(0), None, "u32", u32_match(to, keys));
        message.header.info = priority << 16 | u32::from(ETH_P_IP.to_be());
        self.ask(Route::NewTrafficFilter(message), "u32 filter").await
    }

    async fn ask(&self, message: Route, what: &'static str) -> Result<(), ShapeError> {
        let mut message = NetlinkMessage::from(message);
        let flags = match &message.payload {
            NetlinkPayload::InnerMessage(Route::DelQueueDiscipline(_)) => 0,
            NetlinkPayload::InnerMessage(Route::NewTrafficFilter(_)) => NLM_F_CREATE | NLM_F_EXCL,
            _ => NLM_F_CREATE | NLM_F_REPLACE,
        };
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        self.request(message).await.map_err(|error| refused(what, error))
    }
}

fn refused(what: &'static str, source: io::Error) -> ShapeError {
    ShapeError::Refused { what, source }
}

fn class(minor: u16) -> TcHandle {
    TcHandle { major: MAJOR, minor }
}

fn message(index: u32, parent: TcHandle, minor: Option<u16>, kind: &str, options: Vec<u8>) -> TcMessage {
    const TCA_OPTIONS: u16 = 2;
    let mut message = TcMessage::with_index(index as i32);
    message.header.parent = parent;
    message.header.handle = minor.map_or(TcHandle::UNSPEC, class);
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    if !options.is_empty() {
        message.attributes.push(TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, options)));
    }
    message
}

/// `TCA_HTB_INIT`: `struct tc_htb_glob` (linux/pkt_sched.h).
fn htb() -> Vec<u8> {
    let (version, rate_to_quantum, default, debug, direct) = (3, 10, u32::from(OTHERS), 0, 0);
    attribute(2, &words(&[version, rate_to_quantum, default, debug, direct]))
}

/// `TCA_HTB_PARMS`, `TCA_HTB_RATE64` and `TCA_HTB_CEIL64`: `struct tc_htb_opt`.
fn htb_class(rate: u64, most: u64, turn: u32) -> Vec<u8> {
    // `struct tc_ratespec` with TC_LINKLAYER_ETHERNET: the kernel computes times itself, without a table.
    let spec = |rate: u64| {
        let mut bytes = vec![0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
        bytes
    };
    let (level, priority) = (0, 0);
    let tail = words(&[burst(rate), burst(most), turn, level, priority]);
    let parameters = [spec(rate), spec(most), tail].concat();
    let (rate, most) = (rate.to_ne_bytes(), most.to_ne_bytes());
    [attribute(1, &parameters), attribute(6, &rate), attribute(7, &most)].concat()
}

/// The burst, as the time that it takes at this rate, in ticks of 64 ns: 5 ms, but at least two jumbo
/// frames.
fn burst(rate: u64) -> u32 {
    let bytes = (rate / 200).max(u64::from(2 * TURN));
    let ticks = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1)) / 64;
    u32::try_from(ticks).unwrap_or(u32::MAX)
}

/// Four bytes of a packet, from its IP header on.
#[derive(Clone, Copy)]
struct Key {
    offset: u32,
    mask: u32,
    value: u32,
}

/// `TCA_U32_CLASSID` and `TCA_U32_SEL`: `struct tc_u32_sel` (linux/pkt_cls.h), terminal.
fn u32_match(to: u16, keys: &[Key]) -> Vec<u8> {
    let mut selector = vec![1, 0, keys.len() as u8];
    selector.resize(16, 0);
    for Key { offset, mask, value } in keys {
        selector.extend(mask.to_be_bytes());
        selector.extend(value.to_be_bytes());
        selector.extend(offset.to_ne_bytes());
        selector.extend([0; 4]);
    }
    let class = u32::from(class(to)).to_ne_bytes();
    [attribute(1, &class), attribute(5, &selector)].concat()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A netlink attribute, with its padding.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
