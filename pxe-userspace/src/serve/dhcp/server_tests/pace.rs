//! Machines that wait for their turn.

use super::*;

/// A server whose links carry four boots at a time.
fn server() -> Server {
    let mut config = config();
    config.network.ceiling = Some(125_000);
    let server = Server::new(config.into(), []);
    assert_eq!(server.pacing().most(), Some(4));
    server
}

fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 1, n])
}

fn at(seconds: i64) -> Timestamp {
    now() + jiff::SignedDuration::from_secs(seconds)
}

#[derive(Debug, Default)]
struct Told {
    offers: Vec<(Mac, u32)>,
    waits: Vec<(Mac, usize)>,
    standing: Vec<Mac>,
    all_standing: bool,
    /// Details of the DISCOVER events.
    discovers: Vec<String>,
}

fn told(commands: Vec<Command>) -> Told {
    let mut told = Told::default();
    for command in commands {
        match command {
            Command::Send(reply) => {
                let message = Message::decode(&mut Decoder::new(&reply.bytes)).unwrap();
                assert_eq!(message.opts().msg_type(), Some(Type::Offer));
                told.offers.push((Mac(message.chaddr().try_into().unwrap()), message.xid()));
            }
            Command::Waits(mac, before) => told.waits.push((mac, before)),
            Command::Standing(mac) => told.standing.push(mac),
            Command::AllStanding => told.all_standing = true,
            Command::Event(happened) if happened.stage == Stage::Discover => {
                told.discovers.extend(happened.detail);
            }
            _ => {}
        }
    }
    told
}

fn discover(server: &mut Server, n: u8, xid: u32, at: Timestamp) -> Told {
    ask(server, Client::new(Type::Discover).pxe(7), n, xid, at)
}

fn ask(server: &mut Server, client: Client, n: u8, xid: u32, at: Timestamp) -> Told {
    let client = client.set(|m| m.set_chaddr(&mac(n).0).set_xid(xid));
    let meta = Meta { source: SocketAddrV4::new(NONE, 68), port: port::DHCP_SERVER, behind: 0 };
    told(server.handle(meta, &client.message.to_vec().unwrap(), at))
}

/// A server on which four machines boot and two wait.
fn full() -> Server {
    let mut server = server();
    for n in 0..4 {
        assert_eq!(discover(&mut server, n, 1, at(0)).offers, [(mac(n), 1)]);
    }
    for n in 4..6 {
        let told = discover(&mut server, n, 1, at(0));
        assert_eq!((told.offers, told.waits), (vec![], vec![(mac(n), usize::from(n) - 4)]));
        assert_eq!(told.discovers, [format!("UEFI x86-64 PXE, waiting: {} before it", n - 4)]);
    }
    server
}

#[test]
fn whoever_does_not_fit_is_offered_an_address_when_a_boot_has_what_it_needs() {
    let mut server = full();
    assert!(server.leases().of(mac(4)).is_none(), "no address is held for one that waits");
    // It asks again, with another transaction.
    assert_eq!(discover(&mut server, 4, 2, at(4)).waits, [(mac(4), 0)]);
    assert_eq!(server.counters().held, 3);
    assert_eq!(told(server.reached(mac(0), Stage::Kernel, at(5))).offers, []);
    assert_eq!(told(server.reached(mac(0), Stage::Initrd, at(5))).offers, []);
    let late = told(server.tick(at(6), |_| false));
    assert_eq!(late.offers, [(mac(4), 2)], "the last DISCOVER is answered");
    assert_eq!(discover(&mut server, 4, 3, at(6)).offers, [(mac(4), 3)], "asked once more on the way");
    assert_eq!(told(server.tick(at(7), |_| false)).waits, [(mac(5), 0)]);
}

#[test]
fn nobody_waits_past_its_firmware_s_last_discover() {
    let mut server = full();
    for (n, seconds) in [(4, 4), (4, 12), (5, 4)] {
        assert_eq!(discover(&mut server, n, 1, at(seconds)).offers, []);
    }
    let fetches = |_| true;
    assert_eq!(told(server.tick(at(27), fetches)).offers, []);
    assert_eq!(discover(&mut server, 4, 1, at(28)).offers, [(mac(4), 1)]);
    // Its last one was lost, and it still listens.
    assert_eq!(told(server.tick(at(28), fetches)).offers, [(mac(5), 1)]);
}

#[test]
fn operating_systems_and_those_who_boot_nothing_never_wait() {
    let mut server = full();
    let told = ask(&mut server, Client::new(Type::Discover), 8, 1, at(0));
    assert_eq!((told.offers.len(), told.waits.len()), (1, 0));
    assert!(!server.pacing().is_under_way(mac(8)));
    let inert = ask(&mut server, Client::new(Type::Discover).pxe(11), 9, 1, at(0));
    assert_eq!((inert.offers.len(), inert.waits.len()), (1, 0), "no file is offered for its platform");
}

#[test]
fn the_kernel_offers_to_nobody_who_would_have_to_wait() {
    let mut server = server();
    // Ten machines that once booted.
    for n in 0..10 {
        let address = ip(100 + n);
        server.leases.offer(mac(n), address, &Aliases::default(), at(0)).unwrap();
        server.leases.bind(mac(n), address, &Aliases::default(), at(0)).unwrap();
    }
    assert_eq!(server.all_standing(at(0)).count(), 10);
    let told_ = discover(&mut server, 0, 1, at(1));
    assert!(told_.all_standing, "more are known than could boot at once");
    let standing = |server: &Server| {
        let mut macs: Vec<Mac> = server.all_standing(at(1)).map(|(mac, _)| mac).collect();
        macs.sort();
        macs
    };
    assert_eq!(standing(&server), [mac(0)]);
    for n in 1..6 {
        discover(&mut server, n, 1, at(1));
    }
    assert_eq!(standing(&server), [0, 1, 2, 3].map(mac));
    let done = told(server.reached(mac(1), Stage::Failed, at(2)));
    assert!(done.standing.contains(&mac(1)) && done.standing.contains(&mac(4)), "{done:?}");
    assert_eq!(standing(&server), [0, 2, 3, 4].map(mac));
    // Nothing is limited any more.
    let mut config = config();
    config.network.ceiling = None;
    let free = Server::new(config.into(), server.leases().iter().cloned());
    assert_eq!(free.all_standing(at(2)).count(), 10);
}

#[test]
fn machines_that_the_kernel_answers_have_a_place() {
    let mut server = server();
    for n in 0..4 {
        let answered = Answered {
            mac: mac(n),
            address: ip(100 + n),
            firmware: Firmware::Bios,
            message: MessageType::Discover,
            by: AnsweredBy::Tc,
        };
        server.answered(answered, at(0));
    }
    assert_eq!(discover(&mut server, 4, 1, at(0)).waits, [(mac(4), 0)]);
    assert!(told(server.tick(at(60), |_| false)).offers.len() == 1, "they were switched off");
}

#[test]
fn a_faster_link_makes_room_at_once() {
    let mut server = full();
    server.ceiling = None;
    server.set_link_speed(Some(125_000_000));
    assert_eq!(told(server.tick(at(1), |_| true)).offers.len(), 2);
}
