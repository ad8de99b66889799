//! Messages of crashing kernels: netconsole's UDP datagrams, sent from within the oops. They are added to the
//! machine's console as lines of their own, marked with their source; a machine that survives sends the same messages
//! again, in order.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pxe_common::Mac;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use super::{Consoles, Said, Source};
use crate::machines::Machines;

/// netconsole's own default.
pub const PORT: u16 = 6666;

/// A kernel cuts its messages at 1,000 bytes (MAX_PRINT_CHUNK in drivers/net/netconsole.c).
const DATAGRAM_MAX: usize = 2048;
/// Lines of one machine in [`WINDOW`]: an oops has a hundred.
const LINES_MAX: u32 = 2000;
const WINDOW: Duration = Duration::from_secs(60);

/// Takes datagrams until `shutdown`. A sender is known by its address, as a node that reports is.
pub async fn take(socket: UdpSocket, machines: Machines, consoles: Consoles, shutdown: CancellationToken) {
    let mut datagram = vec![0; DATAGRAM_MAX];
    let mut counts: HashMap<Mac, u32> = HashMap::new();
    let mut window = Instant::now();
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut datagram) => received,
            () = shutdown.cancelled() => return,
        };
        // An ICMP error of an earlier datagram; we send none.
        let Ok((len, SocketAddr::V4(from))) = received else { continue };
        let Some(machine) = machines.by_address(*from.ip()) else { continue };
        if window.elapsed() > WINDOW {
            counts.clear();
            window = Instant::now();
        }
        let count = counts.entry(machine.mac).or_default();
        *count += 1;
        if *count > LINES_MAX {
            continue;
        }
        let Some(said) = message(&String::from_utf8_lossy(&datagram[..len])) else { continue };
        let (consoles, now) = (consoles.clone(), Timestamp::now());
        let kept = tokio::task::spawn_blocking(move || consoles.add(machine.mac, said, now)).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!(mac = %machine.mac, %error, "a crash's message is lost");
        }
    }
}

/// Listens on the bridge's address.
pub async fn bind(address: IpAddr) -> std::io::Result<UdpSocket> {
    UdpSocket::bind((address, PORT)).await
}

/// `0,412,8120012,-;Kernel panic - not syncing: …`, as netconsole's extended form has it; `,ncfrag=0/1200` before
/// the semicolon where a message comes in pieces (Documentation/networking/netconsole.rst).
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
