//! Design invariant 4: for every frame that the kernel answers, the daemon would have sent the
//! same bytes to the same place. Random requests, and those of real firmware, go to the daemon, to the
//! engine as the programs use it, and to the programs themselves where they can be loaded.

use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use pxe_common::map::{EventKind, Lease as KernelLease};
use pxe_common::verdict::Hook;
use pxe_common::wire::{Checksum, Datagram, HEADERS_LEN};

use super::corpus::{CORPUS, frames};
use super::*;
use crate::base::clock::boot_time_ns;
use crate::dataplane::Dataplane;
use crate::dataplane::tests::{TC_ACT_REDIRECT, TC_ACT_UNSPEC, XDP_PASS, XDP_TX, loaded_with_events, run};
use crate::serve::dhcp::{LeaseMap as _, kernel};

const BRIDGE_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const OTHER_MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

/// The answer of the engine, as the programs use it, and its destination.
fn answer_of_engine(lease: &KernelLease, frame: &[u8]) -> Option<(Datagram, Vec<u8>)> {
    let datagram = Datagram::parse(frame.first_chunk().unwrap(), frame.len()).unwrap();
    let (packet, request) = super::parse(&frame[HEADERS_LEN..]).ok()?;
    let answer = dhcp::covered(&request, &datagram, lease, boot_time_ns()).ok()?;
    let mut out = [0; BUFFER];
    let len = dhcp::build(&mut out, answer.kind, &request, &packet, &lease.grant).ok()?;
    Some((Datagram { payload_len: len as u16, ..answer.headers }, out[..len].to_vec()))
}

fn answer_of_daemon(server: &mut Server, frame: &[u8]) -> Option<Reply> {
    let datagram = Datagram::parse(frame.first_chunk().unwrap(), frame.len()).unwrap();
    let source = SocketAddrV4::new(datagram.source, datagram.source_port);
    let meta = Meta { source, port: datagram.destination_port, behind: 0 };
    let commands = server.handle(meta, &frame[HEADERS_LEN..], now());
    commands.into_iter().find_map(|c| if let Command::Send(reply) = c { Some(reply) } else { None })
}

fn frame_of(datagram: Datagram, message: &[u8]) -> Vec<u8> {
    let datagram = Datagram { payload_len: message.len() as u16, ..datagram };
    [&datagram.headers(Checksum::ZERO.bytes(message))[..], message].concat()
}

/// A server that has given `mac` an address, and the kernel's lease for it.
fn bound(mac: Mac) -> (Server, Ipv4Addr, KernelLease) {
    let mut server = server();
    let none = Aliases::default();
    let (address, _) = server.leases.offer(mac, NONE, &none, now()).unwrap();
    server.leases.bind(mac, address, &none, now()).unwrap();
    let standing = server.standing(mac, now()).expect("a bound lease stands");
    (server, address, kernel::lease(&standing, BRIDGE_MAC, now()))
}

/// The kernel answers exactly as expected, at both hooks, or leaves the frame as it is.
fn check_programs(dataplane: &Dataplane, frame: &[u8], expected: Option<&[u8]>) {
    for (hook, answered, passed) in
        [(Hook::Xdp, XDP_TX, XDP_PASS), (Hook::Tc, TC_ACT_REDIRECT, TC_ACT_UNSPEC)]
    {
        let (verdict, out) = run(dataplane, hook, frame);
        match expected {
            Some(expected) => {
                assert_eq!(verdict, answered, "{hook:?}: {:?}", dataplane.counters());
                assert!(out == expected, "{hook:?}:\n{out:02x?}\nis not\n{expected:02x?}");
            }
            None => assert!((verdict, &out[..]) == (passed, frame), "{hook:?}: {verdict}"),
        }
    }
}

/// Compares all three; returns the reply.
fn check(
    server: &mut Server,
    lease: &KernelLease,
    dataplane: Option<&Dataplane>,
    frame: &[u8],
) -> Option<Vec<u8>> {
    let expected = answer_of_engine(lease, frame);
    let reply = expected.as_ref().map(|(headers, message)| frame_of(*headers, message));
    if let Some(dataplane) = dataplane {
        dataplane.grant(MAC, lease);
        check_programs(dataplane, frame, reply.as_deref());
    }
    let (headers, message) = expected?;
    let sent = answer_of_daemon(server, frame).expect("the daemon answers, too");
    assert!(sent.bytes == message, "{:02x?}\nis not\n{message:02x?}", sent.bytes);
    assert_eq!(sent.from_port, headers.source_port);
    match sent.to {
        To::Ip(to) => assert_eq!(to, SocketAddrV4::new(headers.destination, headers.destination_port)),
        To::Link { mac, address } => {
            assert_eq!((mac, address), (headers.destination_mac, headers.destination));
            assert_eq!(headers.destination_port, port::DHCP_CLIENT);
        }
    }
    reply
}

prop_compose! {
    /// Frames around what a lease of .100 covers: each field is right more often than not.
    fn frame()(
        kind in prop::sample::select(vec![Type::Discover, Type::Request, Type::Request, Type::Inform]),
        ciaddr in prop::sample::select(vec![NONE, NONE, ip(100), ip(101)]),
        giaddr in prop::sample::select(vec![NONE, NONE, ip(2), Ipv4Addr::new(192, 0, 2, 1)]),
        requested in prop::sample::select(vec![NONE, ip(100), ip(100), ip(101)]),
        server in prop::sample::select(vec![NONE, SERVER, SERVER, ip(9)]),
        class in prop::sample::select(vec!["", "PXEClient:Arch", "PXEClient", "HTTPClient", "MSFT 5.0"]),
        arch in prop::sample::select(vec![0u16, 7, 11, 16]),
        ipxe: bool, broadcast: bool, xid: u32,
        max_size in prop::option::of(300u16..2000),
        client_id in prop::option::of(prop::collection::vec(any::<u8>(), 1..120)),
        machine_id in prop::option::of(prop::collection::vec(any::<u8>(), 17)),
        relay_agent in prop::option::of(prop::collection::vec(any::<u8>(), 2..255)),
        station in prop::sample::select(vec![MAC, MAC, MAC, OTHER_MAC]),
        unicast in prop::sample::select(vec![None, None, Some((BRIDGE_MAC, SERVER)), Some((OTHER_MAC, ip(9)))]),
    ) -> Vec<u8> {
        let mut client = Client::new(kind).set(|m| m.set_ciaddr(ciaddr).set_giaddr(giaddr).set_xid(xid));
        client.message.set_flags(if broadcast { 0x8000.into() } else { 0.into() });
        if requested != NONE {
            client = client.requested(requested);
        }
        if server != NONE {
            client = client.server(server);
        }
        if !class.is_empty() {
            client = client.option(DhcpOption::ClassIdentifier(class.into()));
            client = client.option(DhcpOption::ClientSystemArchitecture(arch.into()));
        }
        if ipxe {
            client = client.option(DhcpOption::UserClass(b"iPXE".to_vec()));
        }
        for option in [
            max_size.map(DhcpOption::MaxMessageSize),
            client_id.map(DhcpOption::ClientIdentifier),
            machine_id.map(DhcpOption::ClientMachineIdentifier),
        ] {
            client = option.into_iter().fold(client, Client::option);
        }
        let mut message = client.message.to_vec().unwrap();
        if let Some(agent) = relay_agent.filter(|_| giaddr != NONE) {
            assert_eq!(message.pop(), Some(255));
            message.extend([82, agent.len() as u8]);
            message.extend(agent);
            message.push(255);
        }
        let (destination_mac, destination) = unicast.unwrap_or((Mac::BROADCAST, Ipv4Addr::BROADCAST));
        let relayed = giaddr != NONE;
        let datagram = Datagram {
            source_mac: station,
            destination_mac,
            source: if relayed { giaddr } else { ciaddr },
            destination,
            source_port: if relayed { 67 } else { 68 },
            destination_port: 67,
            payload_len: 0,
        };
        frame_of(datagram, &message)
    }
}

#[test]
fn random_requests_get_the_same_answer_everywhere() {
    let (mut server, address, lease) = bound(MAC);
    assert_eq!(address, ip(100));
    let loaded = loaded_with_events();
    let dataplane = loaded.as_ref().map(|(dataplane, _)| dataplane);
    let answered = std::cell::Cell::new(0);
    let server = std::cell::RefCell::new(&mut server);
    TestRunner::new(Cases::with_cases(2000))
        .run(&frame(), |frame| {
            // A request for another address moves the lease, so each case starts with a new server.
            let (mut fresh, _, _) = bound(MAC);
            std::mem::swap(*server.borrow_mut(), &mut fresh);
            let reply = check(&mut server.borrow_mut(), &lease, dataplane, &frame);
            answered.set(answered.get() + usize::from(reply.is_some()));
            Ok(())
        })
        .unwrap();
    assert!((200..1800).contains(&answered.get()), "both outcomes are tried: {answered:?}");
}

#[test]
fn real_firmware_is_answered_by_the_kernel() {
    let loaded = loaded_with_events();
    for (file, firmware, _) in CORPUS {
        let mut replies = 0;
        for frame in frames(file) {
            let Ok(datagram) = Datagram::parse(frame.first_chunk().unwrap(), frame.len()) else { continue };
            if datagram.destination_port != port::DHCP_SERVER {
                continue;
            }
            let (_, request) = super::parse(&frame[HEADERS_LEN..][..datagram.payload_len.into()]).unwrap();
            let mut message = Message::decode(&mut Decoder::new(&frame[HEADERS_LEN..])).unwrap();
            let (mut server, address, lease) = bound(request.mac);
            if request.message == MessageType::Request {
                message.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
            }
            let frame = frame_of(datagram, &message.to_vec().unwrap());
            let dataplane = loaded.as_ref().map(|(dataplane, _)| dataplane);
            dataplane.inspect(|d| d.grant(request.mac, &lease));
            let reply = check(&mut server, &lease, dataplane, &frame).expect(file);

            let reply = Message::decode(&mut Decoder::new(&reply[HEADERS_LEN..])).unwrap();
            let expected = if request.message == MessageType::Discover { Type::Offer } else { Type::Ack };
            assert_eq!(reply.opts().msg_type(), Some(expected), "{file}");
            assert_eq!((reply.yiaddr(), reply.xid()), (address, message.xid()), "{file}");
            assert_eq!(request.firmware, firmware);
            replies += 1;
        }
        assert!(replies >= 2, "{file}");
    }
}

/// A frame from the machine to everybody, as most are.
fn broadcast(client: &Client) -> Vec<u8> {
    let datagram = Datagram {
        source_mac: MAC,
        destination_mac: Mac::BROADCAST,
        source: NONE,
        destination: Ipv4Addr::BROADCAST,
        source_port: 68,
        destination_port: 67,
        payload_len: 0,
    };
    frame_of(datagram, &client.message.to_vec().unwrap())
}

#[test]
fn a_lease_that_is_too_old_or_given_back_is_passed() {
    let Some((dataplane, mut events)) = loaded_with_events() else { return };
    let (_, _, lease) = bound(MAC);
    let discover = broadcast(&Client::new(Type::Discover).pxe(7));
    check_programs(&dataplane, &discover, None);

    dataplane.grant(MAC, &lease);
    let (headers, message) = answer_of_engine(&lease, &discover).unwrap();
    check_programs(&dataplane, &discover, Some(&frame_of(headers, &message)));
    for by in [Hook::Xdp, Hook::Tc] {
        let event = events.next().expect("an event for each answer");
        assert_eq!((event.kind(), event.hook), (Some(EventKind::Offer), by as u16));
        assert_eq!((event.address, event.client()), ([10, 77, 0, 100], (MAC, dhcp::Firmware::UefiX64)));
    }
    assert_eq!(events.next(), None);

    let hour_ns = 3_600_000_000_000;
    let old = KernelLease { durable_until_ns: boot_time_ns() + hour_ns - 1, ..lease };
    dataplane.grant(MAC, &old);
    check_programs(&dataplane, &discover, None);
    assert_eq!(dataplane.counters().tc["dhcp-too-old"], 1);

    for message in [Type::Release, Type::Decline] {
        dataplane.grant(MAC, &lease);
        check_programs(&dataplane, &broadcast(&Client::new(message)), None);
        check_programs(&dataplane, &discover, None);
    }
    let counters = dataplane.counters();
    assert_eq!((counters.xdp["dhcp-ends"], counters.xdp["dhcp-unknown"]), (2, 3));
    assert_eq!((counters.tc["dhcp-ends"], counters.tc["dhcp-offers"]), (0, 1));
    assert_eq!(events.next(), None);
}
