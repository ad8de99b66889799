//! Unusual requests: malformed options, relays of other subnets, and what identifies a machine.

use super::*;

/// A message with these bytes of options behind its type, and no END.
fn with_options(kind: Type, options: &[u8]) -> Vec<u8> {
    let mut bytes = Client::new(kind).message.to_vec().unwrap();
    assert_eq!(bytes.pop(), Some(255));
    bytes.extend_from_slice(options);
    bytes
}

fn relayed(options: &[u8], giaddr: Ipv4Addr) -> Vec<u8> {
    let mut bytes = with_options(Type::Discover, options);
    bytes[field::GIADDR..][..4].copy_from_slice(&giaddr.octets());
    bytes
}

/// From the relay's port 1067.
fn by_relay(server: &mut Server, bytes: &[u8], giaddr: Ipv4Addr) -> Vec<Command> {
    let meta = Meta { source: SocketAddrV4::new(giaddr, 1067), port: port::DHCP_SERVER, behind: 0 };
    server.handle(meta, bytes, now())
}

fn reply_of(commands: &[Command]) -> Option<(To, Message)> {
    commands.iter().find_map(|command| match command {
        Command::Send(reply) => Some((reply.to, Message::decode(&mut Decoder::new(&reply.bytes)).unwrap())),
        _ => None,
    })
}

#[test]
fn an_odd_option_is_counted_and_the_request_answered() {
    let mut server = server();
    let long_id = [&[61, 255][..], &[7; 255]].concat();
    for (options, odd) in [
        (&[50, 0, 255][..], 1),
        (&[57, 1, 5, 255], 2),
        (&[93, 1, 7, 255], 3),
        (&[12, 20, b'a'], 4),
        (&[12], 5),
        (&[61, 0, 12, 0, 255], 5),
        (&long_id, 5),
    ] {
        let outcome = raw(&mut server, &with_options(Type::Discover, options), NONE, 67, now());
        assert_eq!(outcome.reply(Type::Offer).1.yiaddr(), ip(100), "{options:?}");
        assert_eq!(server.counters().odd, odd, "{options:?}");
    }
    let unread = raw(&mut server, &with_options(Type::Discover, &[53, 1]), NONE, 67, now());
    unread.reply(Type::Offer);
    // What can't be answered says why.
    let mut infiniband = Client::new(Type::Discover).message.to_vec().unwrap();
    infiniband[field::HTYPE] = 32;
    for (bytes, why) in [(infiniband, "hardware"), (vec![1; 100], "too-short")] {
        let outcome = raw(&mut server, &bytes, NONE, 67, now());
        outcome.silent();
        assert_eq!((outcome.unanswered, server.counters().malformed[why]), (Some(why), 1));
    }
}

#[test]
fn a_relay_says_where_the_client_is() {
    let (far, near) = (Ipv4Addr::new(10, 99, 0, 1), ip(5));
    let mut server = server();
    let mut answer = |options: &[u8], giaddr| {
        let answer = reply_of(&by_relay(&mut server, &relayed(options, giaddr), giaddr));
        answer.map(|(to, message)| (to, message.yiaddr()))
    };
    let at = |address, port| Some((To::Ip(SocketAddrV4::new(address, port)), ip(100)));
    assert_eq!(answer(&[], far), None, "a subnet that is not configured");
    assert_eq!(answer(&[82, 6, 5, 4, 10, 77, 0, 0], far), at(far, 67), "RFC 3527");
    assert_eq!(answer(&[118, 4, 10, 77, 0, 0], far), at(far, 67), "RFC 3011");
    assert_eq!(answer(&[82, 6, 5, 4, 192, 168, 9, 0], near), None, "the link is another one");
    assert_eq!(answer(&[82, 6, 5, 4, 10, 77, 0, 0, 118, 4, 192, 168, 9, 0], near), at(near, 67));
    assert_eq!(answer(&[82, 2, 19, 0], near), at(near, 1067), "RFC 8357");
    assert_eq!(server.counters().foreign_relay, 2);
    let told = by_relay(&mut server, &relayed(&[], far), far);
    assert!(matches!(told[..], [Command::Unanswered { why: "foreign-relay", .. }]), "{told:?}");
}

/// It would wait in vain, and nobody would know.
#[test]
fn a_machine_of_another_subnet_is_an_event_and_told_of_once_in_a_while() {
    let (far, mut server) = (Ipv4Addr::new(10, 99, 0, 1), server());
    let asks = |server: &mut Server, after: u64| {
        let asks = Client::new(Type::Discover).pxe(7).set(|m| m.set_giaddr(far));
        asks.at(server, now() + Duration::from_secs(after))
    };
    let first = asks(&mut server, 0);
    first.silent();
    assert_eq!((&first.stages[..], first.elsewhere), (&[Stage::Discover, Stage::Failed][..], Some(far)));
    assert!(first.described.is_some(), "`nodes` shows it");
    let last = server.last_elsewhere().map(|last| (last.place, last.mac));
    assert_eq!(last, Some((far, MAC)));
    assert_eq!(asks(&mut server, 4).elsewhere, None);
    assert_eq!(asks(&mut server, 700).elsewhere, Some(far));
    // An operating system there is nobody's boot.
    let system = Client::new(Type::Discover).set(|m| m.set_giaddr(far)).to(&mut server);
    assert_eq!((&system.stages[..], system.elsewhere), (&[][..], None));
}

/// RFC 5107: the client renews with its relay, which hands it on to us.
#[test]
fn a_relay_may_stand_in_for_the_server() {
    let (relay, mut server) = (ip(5), server());
    let override_by = |to: Ipv4Addr| [&[82, 6, 11, 4][..], &to.octets()].concat();
    let offer = reply_of(&by_relay(&mut server, &relayed(&override_by(relay), relay), relay)).unwrap().1;
    assert_eq!(offer.opts().get(OptionCode::ServerIdentifier), Some(&DhcpOption::ServerIdentifier(relay)));
    let [a, b, c, d] = relay.octets();
    let asks = [&[53, 1, 3, 54, 4, a, b, c, d, 50, 4, 10, 77, 0, 100][..], &override_by(relay)].concat();
    let mut request = relayed(&[], relay);
    request.truncate(field::OPTIONS);
    request.extend(asks);
    let commands = by_relay(&mut server, &request, relay);
    let (_, ack) = reply_of(&commands).expect("it is to us");
    assert_eq!(ack.opts().msg_type(), Some(Type::Ack));
    assert_eq!(ack.siaddr(), NONE, "an operating system's: the boot server would still be the appliance");
    assert!(!commands.iter().any(|c| matches!(c, Command::Rival(_))), "{commands:?}");
    // The same words without a relay are a request to another server.
    request[field::GIADDR..][..4].fill(0);
    assert!(reply_of(&by_relay(&mut server, &request, relay)).is_none());
}

#[test]
fn a_machine_is_told_its_name_and_what_is_configured() {
    let mut config = config();
    config.nodes = vec![node(MAC, None)].into();
    config.dhcp.search = vec!["rack.example".into()];
    config.dhcp.mtu = Some(1400);
    let minutes = |n: u64| Some(Duration::from_secs(60 * n));
    (config.dhcp.renewal_time, config.dhcp.rebinding_time) = (minutes(1), minutes(2));
    let mut server = Server::new(config.clone().into(), []);
    let offer = Client::new(Type::Discover).to(&mut server);
    let options = offer.reply(Type::Offer).1.opts().clone();
    let has = |option: DhcpOption| assert_eq!(options.get(OptionCode::from(&option)), Some(&option));
    has(DhcpOption::Hostname("n1".into()));
    has(DhcpOption::DomainName("lab.example".into()));
    has(DhcpOption::InterfaceMtu(1400));
    has(DhcpOption::Renewal(60));
    has(DhcpOption::Rebinding(120));
    let Some(DhcpOption::DomainSearch(search)) = options.get(OptionCode::DomainSearch) else {
        panic!("{options:?}")
    };
    let search: Vec<_> = search.iter().map(ToString::to_string).collect();
    assert_eq!(search, ["lab.example.", "rack.example."]);

    // A client with a small limit gets its address and the way to the network; an unknown machine has no name.
    let mut small = config.clone();
    small.dhcp.options = [(224, vec![9; 150])].into();
    let mut server = Server::new(small.into(), []);
    let crowded =
        Client::new(Type::Discover).pxe(0).option(DhcpOption::ClientIdentifier(vec![7; 60])).to(&mut server);
    let options = crowded.reply(Type::Offer).1.opts().clone();
    assert!(options.contains(OptionCode::Router) && !options.contains(OptionCode::Hostname));
    config.nodes = Default::default();
    let stranger = Client::new(Type::Discover).to(&mut Server::new(config.into(), []));
    assert!(!stranger.reply(Type::Offer).1.opts().contains(OptionCode::Hostname));
}
