//! Traffic between hosts' own network stacks: every byte and every datagram must arrive.

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::clients::Fetch;
use lab::dnsmasq::Dnsmasq;
use lab::load::Numbers;
use lab::net::Host;
use lab::process::{output, wait_for};
use lab::world::World;
use nix::sys::socket::{setsockopt, sockopt};

pub(crate) const A: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
pub(crate) const B: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 12);
pub(crate) const C: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 13);

const TCP_BYTES: usize = 32 << 20;
const DATAGRAMS: usize = 300;
const PATIENCE: Duration = Duration::from_secs(60);

/// Exchanges all kinds of traffic between `a` and `b`.
pub(crate) fn carried(world: &World, a: &Host, b: &Host) -> Result<()> {
    tcp(a, b).context("TCP")?;
    pings(a, b)?;
    // The largest datagram in one jumbo frame, and one that is fragmented.
    for len in [1000, 8972, 30_000] {
        let to = SocketAddr::from((B, 4000));
        datagrams(a, b, to, len).with_context(|| format!("datagrams of {len} bytes"))?;
    }
    // Multicast groups: a private one, and mDNS's in both protocols (RFC 6762).
    for group in [Ipv4Addr::new(239, 77, 0, 1), Ipv4Addr::new(224, 0, 0, 251)] {
        datagrams(a, b, (group, 5353).into(), 1400).with_context(|| format!("group {group}"))?;
    }
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
    let interface = a.inside(|| Ok(nix::net::if_::if_nametoindex("eth0")?))?;
    let group = SocketAddrV6::new(group, 5353, 0, interface);
    datagrams(a, b, group.into(), 1400).with_context(|| format!("group {group}"))?;
    another_tftp_server(world, a, b).context("another TFTP server")
}

/// Bytes in both directions at once, in segments as large as the stack makes them.
fn tcp(a: &Host, b: &Host) -> Result<()> {
    let listener = b.inside(|| Ok(TcpListener::bind((B, 4000))?))?;
    let near = a.inside(|| Ok(TcpStream::connect((B, 4000))?))?;
    let (far, _) = listener.accept()?;
    std::thread::scope(|scope| {
        let ways = [(&near, &far, 1), (&far, &near, 2)].map(|(mut from, mut to, seed)| {
            let sender = scope.spawn(move || -> Result<()> {
                from.set_write_timeout(Some(PATIENCE))?;
                Ok(from.write_all(&Numbers::new(seed).bytes(TCP_BYTES))?)
            });
            let receiver = scope.spawn(move || -> Result<()> {
                to.set_read_timeout(Some(PATIENCE))?;
                let mut bytes = vec![0; TCP_BYTES];
                to.read_exact(&mut bytes)?;
                ensure!(bytes == Numbers::new(seed).bytes(TCP_BYTES), "other bytes arrived");
                Ok(())
            });
            [sender, receiver]
        });
        ways.into_iter().flatten().try_for_each(|thread| thread.join().expect("no panic"))
    })
}

/// Echoes, a whole run without a loss: plain, the largest in one jumbo frame, in fragments, and by IPv6 after neighbour
/// discovery.
fn pings(a: &Host, b: &Host) -> Result<()> {
    let ping = |args: &[&str]| -> Result<String> {
        output(a.command("ping").args(["-q", "-i", "0.005", "-W", "2"]).args(args))
    };
    let (v4, v6) = (B.to_string(), format!("{}%eth0", link_local(b)));
    // Both ends take a second or two to be sure of their address (RFC 4862 section 5.4).
    wait_for(PATIENCE, || Ok(ping(&["-c", "1", &v6]).ok())).context("IPv6")?;
    for args in [
        ["-c", "300", "-s", "56", &v4],
        ["-c", "100", "-s", "8972", &v4],
        ["-c", "50", "-s", "30000", &v4],
        ["-c", "100", "-s", "8952", &v6],
    ] {
        let whole = if args[3] == "30000" { "dont" } else { "do" };
        // On a busy machine an echo is lost occasionally even with nothing attached. A program that dropped one would
        // drop it every time.
        let mut said = Ok(String::new());
        let whole = ["-M", whole];
        let lossless = (0..5).any(|_| {
            said = ping(&[&args[..], &whole].concat());
            said.as_ref().is_ok_and(|said| said.contains(" 0% packet loss"))
        });
        ensure!(lossless, "ping {args:?}, five times: {said:?}");
    }
    Ok(())
}

/// The address that follows from a host's MAC (RFC 4291 appendix A).
fn link_local(host: &Host) -> String {
    let bytes: Vec<u8> =
        host.mac().split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a MAC")).collect();
    let half = |i: usize, j: usize| u16::from(bytes[i]) << 8 | u16::from(bytes[j]);
    let last = [half(0, 1) ^ 0x0200, half(2, 2) & 0xff00 | 0xff, 0xfe00 | half(3, 3) & 0xff, half(4, 5)];
    Ipv6Addr::new(0xfe80, 0, 0, 0, last[0], last[1], last[2], last[3]).to_string()
}

/// Sends datagrams with different contents; every one must arrive once, unchanged.
fn datagrams(a: &Host, b: &Host, to: SocketAddr, len: usize) -> Result<()> {
    let receiver = b.inside(|| listening(to))?;
    let sender = a.inside(|| match to {
        SocketAddr::V4(_) => {
            let socket = UdpSocket::bind((A, 0))?;
            // The outgoing interface for the group: the host has no other route to it.
            setsockopt(&socket, sockopt::BindToDevice, &"eth0".into())?;
            Ok(socket)
        }
        SocketAddr::V6(_) => Ok(UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?),
    })?;
    let mut numbers = Numbers::new(len as u64);
    let mut expected = HashSet::new();
    for _ in 0..DATAGRAMS {
        let datagram = numbers.bytes(len);
        sender.send_to(&datagram, to)?;
        expected.insert(datagram);
        std::thread::sleep(Duration::from_micros(200));
    }
    let mut buffer = vec![0; 65_536];
    while !expected.is_empty() {
        let received = receiver.recv(&mut buffer);
        let len = received.with_context(|| format!("{} of {DATAGRAMS} are missing", expected.len()))?;
        ensure!(
            expected.remove(&buffer[..len]),
            "a datagram of {len} bytes that was not sent, or came twice"
        );
    }
    Ok(())
}

/// A socket that receives what is sent to this address or group.
fn listening(to: SocketAddr) -> Result<UdpSocket> {
    let socket = match to {
        SocketAddr::V4(to) => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, to.port()))?;
            if to.ip().is_multicast() {
                socket.join_multicast_v4(to.ip(), &B)?;
            }
            socket
        }
        SocketAddr::V6(to) => {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, to.port()))?;
            socket.join_multicast_v6(to.ip(), nix::net::if_::if_nametoindex("eth0")?)?;
            socket
        }
    };
    setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Fetches a file from a server on `b`, through the appliance's bridge.
fn another_tftp_server(world: &World, a: &Host, b: &Host) -> Result<()> {
    let root = world.path("another");
    std::fs::create_dir_all(&root)?;
    let content = Numbers::new(3).bytes(1_000_003);
    std::fs::write(root.join("file"), &content)?;
    let arguments = [
        "--interface=eth0".to_owned(),
        "--enable-tftp".to_owned(),
        format!("--tftp-root={}", root.display()),
    ];
    let _server = Dnsmasq::start(b.command("dnsmasq"), &arguments, &world.path("another.log"))?;
    for fetch in [Fetch::CurlTftp(512), Fetch::CurlTftp(1468)] {
        ensure!(fetch.fetch(world, a, &B.to_string(), "file")? == content, "{fetch:?}: other bytes");
    }
    // Its log is appended to, and the next start must not read this one's line.
    Ok(std::fs::remove_file(world.path("another.log"))?)
}
