//! Frames that no socket would send, and frames that only look like the appliance's traffic. Each must leave the bridge
//! unchanged, as captured by tcpdump on the other hosts.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::frames::{
    ARP, BROADCAST, Cable, IPV4, IPV6, Mac, SERVICE_VLAN, TCP, UDP, VLAN, ethernet, ipv4, tagged, udp,
    udp_frame,
};
use lab::load::Numbers;
use lab::net::Host;
use lab::process::{PATIENCE, Process, wait_for};
use lab::world::World;

use crate::streams::{A, B, C};

/// Every kind of frame is sent this often, each time with other contents.
const ROUNDS: usize = 30;
const APPLIANCE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// A relay agent, and its server, on the boot segment or on another.
pub(crate) const RELAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 99);

/// The appliance's transfers and leases that a frame can imitate.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lookalike {
    /// The ports of a transfer of host `c`.
    pub(crate) client_port: u16,
    pub(crate) server_port: u16,
}

/// The frames' sender and receivers.
struct Stations {
    /// A machine with a lease in the kernel, if the appliance is running.
    machine: Mac,
    b: Mac,
}

/// Sends all kinds of frames from `crafter`. The first receiver must get each of them, the second those for groups, and
/// both nothing else.
pub(crate) fn carried(world: &World, crafter: &Host, to: [&Host; 2], lookalike: &Lookalike) -> Result<()> {
    let stations = Stations { machine: mac(crafter)?, b: mac(to[0])? };
    let mut numbers = Numbers::new(11);
    let kinds: Vec<_> = (0..ROUNDS).flat_map(|_| kinds(&stations, lookalike, &mut numbers)).collect();
    // The bridge learns where each host is, so that a unicast frame reaches only its receiver.
    for host in to {
        let learn = ethernet(BROADCAST, mac(host)?, 0x88b5, &[0; 50]);
        ensure!(host.inside(|| Cable::open(IPV4))?.send(&learn)?);
    }
    let captures = [
        Capture::start(world, to[0], crafter, "ether src")?,
        Capture::start(world, to[1], crafter, "ether multicast and ether src")?,
    ];
    let cable = crafter.inside(|| Cable::open(IPV4))?;
    for (name, frame) in &kinds {
        ensure!(cable.send(frame)?, "{name}: the queue is full");
        std::thread::sleep(Duration::from_micros(100));
    }
    let groups = kinds.iter().filter(|(_, frame)| frame[0] & 1 == 1);
    for (capture, expected) in captures.into_iter().zip([kinds.iter().collect(), groups.collect::<Vec<_>>()])
    {
        capture.ensure(&expected)?;
    }
    Ok(())
}

/// How many of the frames have a VLAN tag.
pub(crate) fn tagged_frames() -> u64 {
    let stations = Stations { machine: [2; 6], b: [4; 6] };
    let kinds = kinds(&stations, &Lookalike::default(), &mut Numbers::new(1));
    (kinds.iter().filter(|(_, f)| f[12..14] == VLAN.to_be_bytes() || f[12..14] == SERVICE_VLAN.to_be_bytes()))
        .count() as u64
        * ROUNDS as u64
}

fn kinds(stations: &Stations, lookalike: &Lookalike, numbers: &mut Numbers) -> Vec<(&'static str, Vec<u8>)> {
    let &Stations { machine, b } = stations;
    let &Lookalike { client_port, server_port } = lookalike;
    let mut noise = |most: u32| {
        let len = 8 + numbers.below(most) as usize;
        numbers.bytes(len)
    };
    let at = SocketAddrV4::new;
    let (none, all) = (at(Ipv4Addr::UNSPECIFIED, 68), at(Ipv4Addr::BROADCAST, 67));
    let group = |[.., a, b, c]: [u8; 4]| [0x01, 0, 0x5e, a & 0x7f, b, c];
    let plain = |to, protocol, payload: &[u8]| ethernet(b, machine, IPV4, &ipv4(A, to, protocol, 0, payload));
    let fragment = |stations: (Mac, Mac), to, field, payload: &[u8]| {
        ethernet(stations.1, stations.0, IPV4, &ipv4(A, to, UDP, field, payload))
    };
    let discover = |noise: &[u8]| {
        udp_frame((machine, BROADCAST), none, all, &dhcp(1, machine, Ipv4Addr::UNSPECIFIED, &[], noise))
    };
    let ack = |number: u8| {
        // The last block of a window, so that any answer to it is visible.
        udp_frame((machine, b), at(C, client_port), at(APPLIANCE, server_port), &[0, 4, 0, number])
    };
    let other =
        |message, giaddr, noise: &[u8]| dhcp(message, machine, giaddr, &[54, 4, 10, 77, 0, 12], noise);

    let mut out: Vec<(&'static str, Vec<u8>)> = vec![
        ("UDP to a host", udp_frame((machine, b), at(A, 4001), at(B, 4002), &noise(1400))),
        ("UDP in a jumbo frame", udp_frame((machine, b), at(A, 4001), at(B, 4002), &noise(8900))),
        ("UDP with a wrong checksum", {
            let mut frame = udp_frame((machine, b), at(A, 4001), at(B, 4002), &noise(900));
            frame[40] ^= 0x55;
            frame
        }),
        ("TCP", plain(B, TCP, &noise(1400))),
        ("TCP in a jumbo frame", plain(B, TCP, &noise(8900))),
        ("ICMP", plain(B, 1, &noise(1400))),
        ("an unknown protocol", plain(B, 253, &noise(1400))),
        (
            "a multicast group",
            udp_frame(
                (machine, group([239, 77, 0, 2])),
                at(A, 9),
                at(Ipv4Addr::new(239, 77, 0, 2), 9),
                &noise(1400),
            ),
        ),
        (
            "mDNS",
            udp_frame(
                (machine, group([224, 0, 0, 251])),
                at(A, 5353),
                at(Ipv4Addr::new(224, 0, 0, 251), 5353),
                &noise(1400),
            ),
        ),
        ("mDNS by IPv6", ethernet([0x33, 0x33, 0, 0, 0, 0xfb], machine, IPV6, &ipv6(17, 0xfb, &noise(1300)))),
        (
            "a neighbour solicitation",
            ethernet(
                [0x33, 0x33, 0xff, 0, 0, 9],
                machine,
                IPV6,
                &ipv6(58, 9, &[&[135, 0][..], &noise(22)].concat()),
            ),
        ),
        (
            "DHCPv6",
            ethernet(
                [0x33, 0x33, 0, 1, 0, 2],
                machine,
                IPV6,
                &ipv6(17, 2, &[&[2, 0x22, 2, 0x23][..], &noise(300)].concat()),
            ),
        ),
        ("ARP", ethernet(b, machine, ARP, &[&[0, 1, 8, 0, 6, 4, 0, 2][..], &noise(20)].concat())),
        ("an unknown EtherType", ethernet(b, machine, 0x88b5, &noise(1400))),
        ("LLC", ethernet(b, machine, 60, &[&[0xaa, 0xaa, 3][..], &noise(57)].concat())),
        ("hardly more than a header", ethernet(b, machine, 0x88b5, &noise(4))),
        ("IPv4 with options", {
            let datagram = udp(at(A, 68), at(B, 67), &noise(500));
            ethernet(b, machine, IPV4, &with_options(&ipv4(A, B, UDP, 0, &datagram)))
        }),
        ("a length that lies", {
            let mut frame = udp_frame((machine, BROADCAST), none, all, &noise(500));
            frame[38..40].copy_from_slice(&1400u16.to_be_bytes());
            frame
        }),
    ];
    let message = udp(none, all, &dhcp(1, machine, Ipv4Addr::UNSPECIFIED, &[], &noise(2000)));
    let (first, last) = message.split_at(message.len() / 16 * 8);
    out.extend([
        ("DHCP's first fragment", fragment((machine, BROADCAST), Ipv4Addr::BROADCAST, 0x2000, first)),
        (
            "DHCP's last fragment",
            fragment((machine, BROADCAST), Ipv4Addr::BROADCAST, first.len() as u16 / 8, last),
        ),
        ("a first fragment", fragment((machine, b), B, 0x2000, &noise(1200))),
        ("a fragment in the middle", fragment((machine, b), B, 0x2003, &noise(1200))),
        // A machine that the kernel answers on its own segment, here on another.
        ("DHCP on a VLAN", tagged(&discover(&noise(200)), VLAN, 77)),
        ("DHCP on a VLAN, with a priority", tagged(&discover(&noise(200)), VLAN, 0xa04d)),
        ("DHCP on a service VLAN", tagged(&discover(&noise(200)), SERVICE_VLAN, 78)),
        ("DHCP behind two tags", tagged(&tagged(&discover(&noise(200)), VLAN, 77), SERVICE_VLAN, 79)),
        ("DHCP with only a priority", tagged(&discover(&noise(200)), VLAN, 0xa000)),
        ("TFTP on a VLAN", tagged(&ack(0), VLAN, 77)),
        (
            "TFTP on a VLAN, a host's",
            tagged(
                &udp_frame(
                    (machine, b),
                    at(A, 4003),
                    at(B, 69),
                    &[&b"\0\x01file\0octet\0"[..], &noise(30)].concat(),
                ),
                VLAN,
                77,
            ),
        ),
        ("anything on a VLAN", tagged(&ethernet(b, machine, 0x88b5, &noise(8900)), VLAN, 4094)),
        // The same protocols between others.
        (
            "a relay to another server",
            udp_frame((machine, b), at(RELAY, 67), at(B, 67), &dhcp(1, machine, RELAY, &[], &noise(200))),
        ),
        (
            "a relay of another segment",
            udp_frame(
                (machine, b),
                at(Ipv4Addr::new(192, 0, 2, 9), 67),
                at(B, 67),
                &dhcp(1, machine, Ipv4Addr::new(192, 0, 2, 9), &[], &noise(200)),
            ),
        ),
        (
            "a request to another server",
            udp_frame((machine, BROADCAST), none, all, &other(3, Ipv4Addr::UNSPECIFIED, &noise(200))),
        ),
        (
            "a renewal at another server",
            udp_frame((machine, b), at(A, 68), at(B, 67), &other(3, Ipv4Addr::UNSPECIFIED, &noise(200))),
        ),
        (
            "an INFORM to another server",
            udp_frame(
                (machine, b),
                at(A, 68),
                at(B, 67),
                &dhcp(8, machine, Ipv4Addr::UNSPECIFIED, &[], &noise(200)),
            ),
        ),
        ("another server's reply", udp_frame((machine, b), at(A, 67), at(B, 68), &noise(500))),
        (
            "a request for a file of another server",
            udp_frame(
                (machine, b),
                at(A, 4003),
                at(B, 69),
                &[&b"\0\x01file\0octet\0"[..], &noise(30)].concat(),
            ),
        ),
        (
            "another server's transfer",
            udp_frame(
                (machine, b),
                at(C, client_port),
                at(B, server_port),
                &[&[0, 4, 0, 1][..], &noise(8)].concat(),
            ),
        ),
        (
            "another client's transfer",
            udp_frame((machine, b), at(A, client_port), at(B, server_port), &[0, 4, 0, 2]),
        ),
    ]);
    out
}

/// A BOOTP request with these options, followed by bytes that no receiver needs to read.
fn dhcp(message: u8, machine: Mac, giaddr: Ipv4Addr, options: &[u8], noise: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
    bytes[4..8].copy_from_slice(&noise[..4]);
    bytes[10] = 0x80;
    bytes[24..28].copy_from_slice(&giaddr.octets());
    bytes[28..34].copy_from_slice(&machine);
    bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
    bytes.extend([53, 1, message]);
    bytes.extend(options);
    bytes.push(255);
    bytes.resize(bytes.len().max(300), 0);
    bytes.extend(&noise[4..]);
    bytes
}

/// The packet with four bytes of options without effect. The identification is lowered by what they add to the header's
/// sum, so that the sum is unchanged.
fn with_options(packet: &[u8]) -> Vec<u8> {
    let mut packet = [&packet[..20], &[1, 1, 1, 1], &packet[20..]].concat();
    let half = |packet: &[u8], at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let (total, id) = (half(&packet, 2) + 4, half(&packet, 4) - 0x0100 - 4 - 0x0202);
    packet[0] = 0x46;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet
}

/// A packet from fe80::77 to ff02::, with these last two bytes.
fn ipv6(next_header: u8, group: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next_header, 255, 0xfe, 0x80]);
    packet.extend([&[0; 13][..], &[0x77, 0xff, 0x02], &[0; 12]].concat());
    packet.extend(group.to_be_bytes());
    packet.extend(payload);
    packet
}

fn mac(host: &Host) -> Result<Mac> {
    let bytes = host.mac().split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>()?;
    bytes.try_into().ok().context("six bytes")
}

/// tcpdump on a host: it restores VLAN tags that the kernel has removed.
struct Capture {
    tcpdump: Process,
    file: std::path::PathBuf,
    host: String,
}

impl Capture {
    /// Captures frames from `from` that match `filter`.
    fn start(world: &World, on: &Host, from: &Host, filter: &str) -> Result<Self> {
        let host = on.port();
        let (file, log) = (world.path(format!("{host}.pcap")), world.path(format!("{host}.tcpdump")));
        let _ = fs::remove_file(&log);
        let mut command = on.command("tcpdump");
        command.args([
            "-n",
            "-p",
            "-i",
            "eth0",
            "-Q",
            "in",
            "-s",
            "0",
            "-B",
            "65536",
            "--immediate-mode",
            "-U",
            "-Z",
            "root",
            "-w",
        ]);
        command.arg(&file).arg(format!("{filter} {}", from.mac()));
        let mut tcpdump = Process::start(&mut command, &log)?;
        wait_for(PATIENCE, || {
            tcpdump.ensure_running()?;
            Ok(fs::read_to_string(&log)?.contains("listening on").then_some(()))
        })?;
        Ok(Self { tcpdump, file, host })
    }

    /// Waits for these frames. Exactly they must have arrived, each once.
    fn ensure(mut self, expected: &[&(&str, Vec<u8>)]) -> Result<()> {
        // Frames that are missing after this time will not arrive.
        let _ = wait_for(Duration::from_secs(30), || {
            Ok((read(&self.file)?.len() >= expected.len()).then_some(()))
        });
        // A superfluous frame may still be on its way.
        std::thread::sleep(Duration::from_millis(100));
        self.tcpdump.terminate(PATIENCE)?;
        let said = self.tcpdump.last_lines(5);
        ensure!(said.contains("\n    0 packets dropped by kernel"), "the capture itself lost frames: {said}");
        // The frame, how often it is missing, and its name.
        let mut balance: BTreeMap<&[u8], (i64, &str)> = BTreeMap::new();
        for (name, frame) in expected {
            balance.entry(frame).or_insert((0, name)).0 += 1;
        }
        let received = read(&self.file)?;
        for frame in &received {
            balance.entry(frame).or_insert((0, "not sent like this")).0 -= 1;
        }
        balance.retain(|_, (missing, _)| *missing != 0);
        let mut wrong: BTreeMap<(&str, bool), usize> = BTreeMap::new();
        for (missing, name) in balance.values() {
            *wrong.entry((name, *missing > 0)).or_default() += 1;
        }
        ensure!(
            wrong.is_empty(),
            "{}: {} frames of {}; wrong are (kind, whether missing or too many, how many): {wrong:?}",
            self.host,
            received.len(),
            expected.len(),
        );
        Ok(())
    }
}

/// The complete frames in a capture (pcap-savefile(5)), which may still be growing.
fn read(path: &Path) -> Result<Vec<Vec<u8>>> {
    let bytes = fs::read(path)?;
    let mut frames = Vec::new();
    let mut rest = bytes.get(24..).unwrap_or_default();
    while let Some((header, tail)) = rest.split_at_checked(16) {
        let field =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (captured, len) = (field(8) as usize, field(12) as usize);
        let Some((frame, tail)) = tail.split_at_checked(captured) else { break };
        ensure!(captured == len, "a frame of {len} bytes was cut to {captured}");
        frames.push(frame.to_vec());
        rest = tail;
    }
    Ok(frames)
}
