//! Messages of crashing kernels: netconsole's UDP datagrams, sent from within the oops. They are added to the
//! machine's console as lines of their own, marked with their source; a machine that survives sends the same messages
//! again, in order.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pxe_common::Mac;
use pxe_common::wire::{Datagram, EtherType, HEADERS_LEN};
use tokio_util::sync::CancellationToken;

use super::{Consoles, Said, Source};
use crate::host::net::BridgeInfo;
use crate::host::net::packet::{self, PacketSocket};
use crate::machines::segment::{Origin, Segment, Standing};

/// netconsole's own default.
pub const PORT: u16 = 6666;

/// A kernel cuts its messages at 1,000 bytes (MAX_PRINT_CHUNK in drivers/net/netconsole.c).
const DATAGRAM_MAX: usize = 2048;
/// Lines of one machine in [`WINDOW`]: an oops has a hundred.
const LINES_MAX: u32 = 2000;
const WINDOW: Duration = Duration::from_secs(60);

/// The sockets on the bridge.
pub struct Heard {
    link: PacketSocket,
    _port: UdpSocket,
}

/// Takes datagrams until `shutdown`, of machines that hold a lease, from their own stations. Nothing else authenticates
/// them, because a crashing kernel has no keys. So the lines stay marked.
pub async fn take(heard: Heard, segment: Segment, consoles: Consoles, shutdown: CancellationToken) {
    let mut frame = vec![0; HEADERS_LEN + DATAGRAM_MAX];
    let mut counts: HashMap<Mac, u32> = HashMap::new();
    let mut window = Instant::now();
    loop {
        tokio::select! {
            ready = heard.link.readable() => if ready.is_err() { return },
            () = shutdown.cancelled() => return,
        };
        let Ok(len) = heard.link.try_receive(&mut frame) else { continue };
        let Some((mac, datagram)) = of_machine(&frame[..len], &segment) else { continue };
        if window.elapsed() > WINDOW {
            counts.clear();
            window = Instant::now();
        }
        let count = counts.entry(mac).or_default();
        *count += 1;
        if *count > LINES_MAX {
            continue;
        }
        let Some(said) = message(&String::from_utf8_lossy(datagram)) else { continue };
        let (consoles, now) = (consoles.clone(), Timestamp::now());
        let kept = tokio::task::spawn_blocking(move || consoles.add(mac, said, now)).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!(%mac, %error, "a crash's message is lost");
        }
    }
}

/// The machine that sent the frame, and its datagram.
fn of_machine<'a>(frame: &'a [u8], segment: &Segment) -> Option<(Mac, &'a [u8])> {
    let datagram = Datagram::parse_sound(frame.first_chunk()?, frame.len()).ok()?;
    let known = segment.source(datagram.source, datagram.source_mac);
    (known == Origin::Known(Standing::Machine)).then_some(())?;
    let payload = frame.get(HEADERS_LEN..HEADERS_LEN + usize::from(datagram.payload_len))?;
    Some((datagram.source_mac, payload))
}

/// Listens on the bridge.
pub fn bind(bridge: &BridgeInfo) -> io::Result<Heard> {
    let address = bridge.address.addr();
    let port = packet::keep_port(&bridge.name, SocketAddrV4::new(address, PORT))?;
    let link = PacketSocket::open(bridge.index, EtherType::IPV4, &packet::udp_to_any(address, &[PORT]))?;
    Ok(Heard { link, _port: port })
}

/// `0,412,8120012,-;Kernel panic - not syncing: …`, netconsole's extended form; with `,ncfrag=0/1200` before the
/// semicolon if a message comes in pieces (Documentation/networking/netconsole.rst).
fn message(datagram: &str) -> Option<Said> {
    let (head, text) = datagram.split_once(';')?;
    let mut fields = head.split(',');
    let priority: u32 = fields.next()?.parse().ok()?;
    let microseconds: u64 = fields.nth(1)?.parse().ok()?;
    let text = text.lines().next()?;
    let partial = fields.find_map(|field| field.strip_prefix("ncfrag=")).is_some_and(|piece| {
        let (at, of) = piece.split_once('/').unwrap_or_default();
        let end = at.parse::<usize>().unwrap_or_default() + text.len();
        of.parse().is_ok_and(|of: usize| end < of)
    });
    Some(Said {
        uptime: microseconds as f64 / 1e6,
        from: Source::Netconsole,
        level: Some((priority & 7) as u8),
        partial,
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_taken_apart() {
        let said = message("0,412,8120012,-;Kernel panic - not syncing: sysrq triggered crash\n").unwrap();
        assert_eq!((said.uptime, said.level, said.partial), (8.120_012, Some(0), false));
        assert_eq!(said.text, "Kernel panic - not syncing: sysrq triggered crash");
        assert!(message("6,1,2,-,ncfrag=0/9;long").unwrap().partial);
        assert!(!message("6,1,2,-,ncfrag=4/9;piece").unwrap().partial);
        assert_eq!(message("6,1,2,-;text\n SUBSYSTEM=pci\n").unwrap().text, "text");
        for broken in ["", "plain text", "6;x", "6,1,x,-;x", "6,1,2,-;"] {
            assert!(message(broken).is_none(), "{broken}");
        }
    }
}
