use std::collections::BTreeMap;
use std::time::Duration;

use dhcproto::v4::{self, DhcpOption, Message, MessageType as Type, OptionCode};
use dhcproto::{Decodable as _, Decoder, Encodable as _};
use pxe_common::dhcp::field;

use super::asked::uuid;
use super::*;
use crate::config;
use crate::machines::timeline::AnsweredBy;
use crate::serve::dhcp::LeaseState;

#[path = "server_tests/corpus.rs"]
mod corpus;
#[path = "server_tests/odd.rs"]
mod odd;
#[path = "server_tests/pace.rs"]
mod pace;
#[path = "server_tests/parity.rs"]
mod parity;

const MAC: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, last)
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn config() -> Config {
    Config {
        state_dir: "/nonexistent".into(),
        network: config::Network {
            bridge: "pxe0".into(),
            address: "10.77.0.1/24".parse().unwrap(),
            ports: Vec::new(),
            fast_path: config::FastPath::Off,
            ceiling: None,
        },
        dhcp: config::Dhcp {
            mode: DhcpMode::Authoritative,
            range: Some((ip(100), ip(109))),
            lease_time: Duration::from_secs(3600),
            renewal_time: None,
            rebinding_time: None,
            router: Some(SERVER),
            dns: vec![ip(1), ip(2)],
            domain: Some("lab.example".into()),
            search: Vec::new(),
            mtu: None,
            ntp: Vec::new(),
            options: BTreeMap::new(),
            unknown: config::Unknown::Boot,
        },
        files_root: None,
        http: config::Http { port: 80, tls_port: 7443 },
        api: config::Api { socket: config::API_SOCKET.into(), listen: None, names: Vec::new() },
        boot: config::Boot { ipxe: config::IpxeLoader::Grub, assets: "/nonexistent".into() },
        docker: config::Docker { socket: None },
        carousel: crate::config::Carousel::default(),
        default_profile: Some("web".into()),
        profiles: vec![config::Profile {
            kernel: None,
            modules: Vec::new(),
            name: "web".into(),
            source: config::Source::Image("hello".into()),
            cmdline: String::new(),
            on_exit: config::OnExit::PowerOff,
            restarts: None,
            rescue: config::Rescue::Console,
            logs: true,
            stages: config::Stages::Auto,
            storage: None,
            run: config::Run::Image,
        }],
        storage: Vec::new(),
        nodes: Default::default(),
        rules: Vec::new(),
        workloads: Vec::new(),
    }
}

fn node(mac: Mac, address: Option<Ipv4Addr>) -> config::Node {
    config::Node { address, ..config::Node::new("n1", mac) }
}

/// A request as dhcproto writes it.
struct Client {
    message: Message,
    source: Ipv4Addr,
    port: u16,
}

impl Client {
    fn new(kind: Type) -> Self {
        let mut message = Message::new_with_id(7, NONE, NONE, NONE, NONE, &MAC.0);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        Self { message, source: NONE, port: port::DHCP_SERVER }
    }

    fn option(mut self, option: DhcpOption) -> Self {
        self.message.opts_mut().insert(option);
        self
    }

    fn requested(self, address: Ipv4Addr) -> Self {
        self.option(DhcpOption::RequestedIpAddress(address))
    }

    fn server(self, address: Ipv4Addr) -> Self {
        self.option(DhcpOption::ServerIdentifier(address))
    }

    fn pxe(self, arch: u16) -> Self {
        self.option(DhcpOption::ClassIdentifier(b"PXEClient:Arch".to_vec()))
            .option(DhcpOption::ClientSystemArchitecture(arch.into()))
    }

    fn set(mut self, edit: impl FnOnce(&mut Message) -> &mut Message) -> Self {
        edit(&mut self.message);
        self
    }

    fn source(self, source: Ipv4Addr) -> Self {
        Self { source, ..self }
    }

    fn to(self, server: &mut Server) -> Outcome {
        self.at(server, now())
    }

    fn at(self, server: &mut Server, now: Timestamp) -> Outcome {
        raw(server, &self.message.to_vec().unwrap(), self.source, self.port, now)
    }
}

fn raw(server: &mut Server, bytes: &[u8], source: Ipv4Addr, port: u16, now: Timestamp) -> Outcome {
    let meta = Meta { source: SocketAddrV4::new(source, 68), port, behind: 0 };
    let mut outcome = Outcome::default();
    for command in server.handle(meta, bytes, now) {
        match command {
            Command::Persist(change) => outcome.changes.push(change),
            Command::Send(reply) => {
                let message = Message::decode(&mut Decoder::new(&reply.bytes)).unwrap();
                outcome.replies.push((reply.to, message));
            }
            Command::Event(happened) => outcome.stages.push(happened.stage),
            Command::Bound { address, .. } => outcome.bound = Some(address),
            Command::Released(_) => outcome.released = true,
            Command::Standing(mac) => assert_eq!(mac, MAC),
            Command::AllStanding | Command::Waits(..) => panic!("there is no ceiling: {command:?}"),
            Command::Forged(mac) => panic!("{mac}: no frame is looked at here"),
            Command::Unanswered { why, .. } => outcome.unanswered = Some(why),
            Command::Rival(rival) => outcome.rivals.push(rival.server),
            Command::Elsewhere(elsewhere) => outcome.elsewhere = Some(elsewhere.place),
            Command::Noted(_, note) => outcome.noted.push(note),
            Command::Unnamed(unnamed) => outcome.unnamed = Some(unnamed),
            Command::Described { firmware, uuid, profile, .. } => {
                outcome.described = Some((firmware, uuid, profile));
            }
        }
    }
    outcome
}

#[derive(Debug, Default)]
struct Outcome {
    unnamed: Option<Unnamed>,
    replies: Vec<(To, Message)>,
    changes: Vec<Change>,
    stages: Vec<Stage>,
    bound: Option<Ipv4Addr>,
    released: bool,
    rivals: Vec<Ipv4Addr>,
    elsewhere: Option<Ipv4Addr>,
    noted: Vec<Note>,
    unanswered: Option<&'static str>,
    described: Option<(Option<Firmware>, Option<String>, Option<String>)>,
}

impl Outcome {
    /// The one reply, of this kind.
    fn reply(&self, kind: Type) -> (To, &Message) {
        let [(to, message)] = &self.replies[..] else { panic!("not one reply: {self:?}") };
        assert_eq!(message.opts().msg_type(), Some(kind));
        (*to, message)
    }

    fn silent(&self) {
        assert!(self.replies.is_empty(), "{self:?}");
    }
}

fn server() -> Server {
    Server::new(config().into(), [])
}

/// A server on which MAC is bound to .100.
fn bound() -> Server {
    let mut server = server();
    let offer = Client::new(Type::Discover).to(&mut server);
    assert_eq!(offer.reply(Type::Offer).1.yiaddr(), ip(100));
    let ack = Client::new(Type::Request).requested(ip(100)).server(SERVER).to(&mut server);
    assert_eq!(ack.reply(Type::Ack).1.yiaddr(), ip(100));
    server
}

fn file(message: &Message) -> Option<String> {
    match message.opts().get(OptionCode::BootfileName) {
        Some(DhcpOption::BootfileName(name)) => Some(String::from_utf8(name.clone()).unwrap()),
        _ => None,
    }
}

#[test]
fn a_boot_from_discover_to_ack() {
    let mut server = server();
    let offer = Client::new(Type::Discover).pxe(0).to(&mut server);
    let (to, message) = offer.reply(Type::Offer);
    assert_eq!(to, To::Link { mac: MAC, address: ip(100) }, "iPXE wants unicast");
    assert_eq!(file(message).as_deref(), Some("grub/i386-pc.0"));
    assert_eq!(offer.stages, [Stage::Discover, Stage::Offer]);
    assert_eq!(offer.changes.len(), 1);
    assert_eq!(offer.described, Some((Some(Firmware::Bios), None, Some("web".into()))));
    let ack = Client::new(Type::Request).pxe(0).requested(ip(100)).server(SERVER).to(&mut server);
    assert_eq!(ack.stages, [Stage::Request, Stage::Ack]);
    assert_eq!((ack.bound, ack.changes.len()), (Some(ip(100)), 1));
    let options = ack.reply(Type::Ack).1.opts().clone();
    assert_eq!(options.get(OptionCode::Router), Some(&DhcpOption::Router(vec![SERVER])));
    let dns = DhcpOption::DomainNameServer(vec![ip(1), ip(2)]);
    assert_eq!(options.get(OptionCode::DomainNameServer), Some(&dns));
    assert_eq!(options.get(OptionCode::DomainName), Some(&DhcpOption::DomainName("lab.example".into())));
}

#[test]
fn replies_go_where_rfc2131_section_4_1_says() {
    let broadcast = To::Link { mac: Mac::BROADCAST, address: Ipv4Addr::BROADCAST };
    let flags = v4::Flags::default().set_broadcast();
    let offer = Client::new(Type::Discover).set(|m| m.set_flags(flags)).to(&mut server());
    assert_eq!(offer.reply(Type::Offer).0, broadcast);
    let relayed = Client::new(Type::Discover).set(|m| m.set_giaddr(ip(5))).to(&mut server());
    assert_eq!(relayed.reply(Type::Offer).0, To::Ip(SocketAddrV4::new(ip(5), 67)));
    let renewal = Client::new(Type::Request).set(|m| m.set_ciaddr(ip(100))).to(&mut bound());
    assert_eq!(renewal.reply(Type::Ack).0, To::Ip(SocketAddrV4::new(ip(100), 68)));
    let nak = Client::new(Type::Request).set(|m| m.set_ciaddr(ip(200))).to(&mut bound());
    assert_eq!(nak.reply(Type::Nak).0, broadcast, "its address is what is wrong");
    let foreign = Client::new(Type::Discover).set(|m| m.set_giaddr([10, 78, 0, 1])).to(&mut server());
    foreign.silent();
}

#[test]
fn requests_in_every_state_of_a_client() {
    let init_reboot = |address| Client::new(Type::Request).requested(address);
    init_reboot(ip(100)).to(&mut bound()).reply(Type::Ack);
    init_reboot(ip(101)).to(&mut bound()).reply(Type::Nak);
    init_reboot([192, 168, 1, 5].into()).to(&mut bound()).reply(Type::Nak);
    let adopted = init_reboot(ip(105)).to(&mut server());
    adopted.reply(Type::Ack);
    assert_eq!(adopted.changes.len(), 1, "the store was lost: it is free, and ours");
    let selecting = Client::new(Type::Request).requested(ip(101)).server(SERVER);
    selecting.to(&mut bound()).reply(Type::Nak);
    let rebinding = Client::new(Type::Request).set(|m| m.set_ciaddr(ip(100)));
    let later = now() + Duration::from_secs(5000);
    rebinding.at(&mut bound(), later).reply(Type::Ack);
    let mut server = bound();
    Client::new(Type::Request).to(&mut server).silent();
    assert_eq!(server.counters().senseless, 1);
}

#[test]
fn a_release_and_a_decline() {
    let mut server = bound();
    let other = Client::new(Type::Release).server(ip(9)).set(|m| m.set_ciaddr(ip(100)));
    assert!(!other.to(&mut server).released, "meant for another server");
    let release = Client::new(Type::Release).server(SERVER).set(|m| m.set_ciaddr(ip(100)));
    let release = release.to(&mut server);
    release.silent();
    assert!(release.released && release.changes.len() == 1);
    let again = Client::new(Type::Discover).to(&mut server);
    assert_eq!(again.reply(Type::Offer).1.yiaddr(), ip(100), "the address it had");

    let decline = Client::new(Type::Decline).server(SERVER).requested(ip(100)).to(&mut server);
    decline.silent();
    assert_eq!(decline.stages, [Stage::Failed]);
    let next = Client::new(Type::Discover).requested(ip(100)).to(&mut server);
    assert_eq!(next.reply(Type::Offer).1.yiaddr(), ip(101));
}

#[test]
fn inform_is_answered_without_a_lease() {
    let mut server = server();
    let inform = Client::new(Type::Inform).set(|m| m.set_ciaddr(ip(50))).to(&mut server);
    let (to, ack) = inform.reply(Type::Ack);
    assert_eq!(to, To::Ip(SocketAddrV4::new(ip(50), 68)));
    assert_eq!(ack.yiaddr(), NONE);
    assert!(!ack.opts().contains(OptionCode::AddressLeaseTime));
    assert!(ack.opts().contains(OptionCode::SubnetMask));
    assert!(inform.changes.is_empty());
    Client::new(Type::Inform).source(ip(50)).to(&mut server).reply(Type::Ack);
    Client::new(Type::Inform).set(|m| m.set_ciaddr([8, 8, 8, 8])).to(&mut server).silent();
}

/// The machine is named first, also where strangers are given nothing; then what it asked for is answered.
#[test]
fn a_machine_that_a_rule_may_take_is_named_before_it_is_answered() {
    let text = "network = { bridge = \"b\", address = \"10.77.0.1/24\" }\n\
        dhcp = { range = [\"10.77.0.100\", \"10.77.0.199\"], unknown = \"ignore\" }\n\
        [[profile]]\nname = \"web\"\nimage = \"a\"\n\
        [[rule]]\nmatch = { mac = \"MACS\" }\nname = \"c{n:03}\"\nprofile = \"web\"\n";
    let text = text.replace("MACS", &MAC.to_string()[..5]);
    let config = config::parse(&text, std::path::Path::new("/c.toml")).unwrap_or_else(|p| panic!("{p:?}"));
    let mut server = Server::new(config.clone().into(), []);
    let asked = Client::new(Type::Discover).pxe(7).to(&mut server);
    let unnamed = asked.unnamed.expect("it is to be named");
    assert_eq!((unnamed.facts.mac, asked.replies.len(), asked.stages.len()), (MAC, 0, 0));
    // No rule took it after all: it is a stranger.
    let now = Timestamp::now();
    assert!(server.handle_named(unnamed.meta, &unnamed.datagram, now).is_empty());
    // An operating system that asks is no machine that boots.
    Client::new(Type::Discover).to(&mut server).silent();

    let named = config::Node {
        profile: Some("web".into()),
        origin: config::Origin::Rule(config::Place("/c.toml:6".into())),
        ..config::Node::new("c001", MAC)
    };
    server.reconfigure(config.with_nodes([&Arc::new(named)]).into());
    let commands = server.handle_named(unnamed.meta, &unnamed.datagram, now);
    let sent = commands.iter().filter(|command| matches!(command, Command::Send(_))).count();
    assert_eq!(sent, 1, "{commands:?}");
    let offer = Client::new(Type::Discover).pxe(7).to(&mut server);
    assert_eq!(
        file(offer.reply(Type::Offer).1).as_deref(),
        Some("grub/x86_64-efi.efi"),
        "and from now on at once"
    );
}

#[test]
fn unknown_machines_by_policy() {
    let mut config = config();
    config.dhcp.unknown = config::Unknown::AddressOnly;
    let mut server = Server::new(config.clone().into(), []);
    let offer = Client::new(Type::Discover).pxe(7).to(&mut server);
    assert_eq!(file(offer.reply(Type::Offer).1), None);
    config.nodes = vec![node(MAC, Some(ip(11)))].into();
    server.reconfigure(config.clone().into());
    let offer = Client::new(Type::Discover).pxe(7).to(&mut server);
    let (_, message) = offer.reply(Type::Offer);
    assert_eq!(file(message).as_deref(), Some("grub/x86_64-efi.efi"));
    assert_eq!(message.yiaddr(), ip(11));
    config.dhcp.unknown = config::Unknown::Ignore;
    server.reconfigure(config.clone().into());
    Client::new(Type::Discover).to(&mut server).reply(Type::Offer);
    config.nodes = Default::default();
    server.reconfigure(config.clone().into());
    Client::new(Type::Discover).to(&mut server).silent();
    Client::new(Type::Request).requested([1, 2, 3, 4].into()).to(&mut server).silent();
    assert_eq!(server.counters().ignored, 2);
}

#[test]
fn the_file_for_each_client() {
    let mut config = config();
    config.http.port = 65535;
    config.network.address = "100.100.100.100/8".parse().unwrap();
    config.dhcp.range = Some(([100, 100, 100, 101].into(), [100, 100, 100, 109].into()));
    let mut offered = |ipxe: config::IpxeLoader, client: Client| {
        config.boot.ipxe = ipxe;
        file(client.to(&mut Server::new(config.clone().into(), [])).reply(Type::Offer).1).unwrap()
    };
    let ipxe = || Client::new(Type::Discover).option(DhcpOption::UserClass(b"iPXE".to_vec()));
    let (grub, script) = (config::IpxeLoader::Grub, config::IpxeLoader::Script);
    assert_eq!(offered(grub, ipxe().pxe(0)), "grub/i386-pc.0");
    assert_eq!(offered(grub, ipxe().pxe(7)), "grub/x86_64-efi.efi");
    // The longest names that there are: they must fit a BootFile.
    let url = "http://100.100.100.100:65535";
    assert_eq!(offered(script, ipxe().pxe(0)), format!("{url}/boot/ipxe/{MAC}.ipxe"));
    assert_eq!(offered(script, ipxe().pxe(7)), format!("{url}/boot/ipxe/{MAC}.ipxe"));
    let http = Client::new(Type::Discover)
        .option(DhcpOption::ClassIdentifier(b"HTTPClient:Arch:00016".to_vec()))
        .option(DhcpOption::ClientSystemArchitecture(16.into()));
    assert_eq!(offered(grub, http), format!("{url}/grub/x86_64-efi.efi"));
}

#[test]
fn a_full_pool_says_so() {
    let mut config = config();
    config.dhcp.range = Some((ip(100), ip(100)));
    let mut server = Server::new(config.clone().into(), []);
    Client::new(Type::Discover).to(&mut server).reply(Type::Offer);
    let other = Client::new(Type::Discover).set(|m| m.set_chaddr(&[2, 0, 0, 0, 0, 9]));
    let other = other.to(&mut server);
    other.silent();
    assert_eq!(other.stages, [Stage::Failed]);
    assert_eq!(server.counters().exhausted, 1);
}

#[test]
fn an_operating_systems_lease_is_no_boot() {
    let mut server = bound();
    let renewal = Client::new(Type::Request).set(|m| m.set_ciaddr(ip(100))).to(&mut server);
    assert_eq!((&renewal.stages[..], renewal.bound), (&[][..], Some(ip(100))));
}

#[test]
fn what_a_discover_says_of_a_late_link_is_noted() {
    let mut server = server();
    let asks = |secs| Client::new(Type::Discover).pxe(7).set(|m| m.set_secs(secs));
    assert_eq!(asks(28).to(&mut server).noted, [Note::Secs(28)]);
    assert_eq!(Client::new(Type::Discover).to(&mut server).noted, [Note::SystemAsked], "no firmware");
}

/// A host on the segment writes what it wants: no length of a hardware address or of the packet ends the server.
#[test]
fn a_forged_reply_ends_nothing() {
    let mut server = server();
    let mut forged = vec![0; 240];
    forged[..3].copy_from_slice(&[2, 1, 6]);
    forged[28..34].copy_from_slice(&MAC.0);
    forged[236..].copy_from_slice(&[99, 130, 83, 99]);
    forged.extend([53, 1, 2, 54, 4, 10, 77, 0, 8, 121, 6, 255, 10, 10, 77, 0, 1, 94, 1, 1, 255]);
    let heard = server.overhear(&forged, ip(8), now());
    assert!(heard.iter().any(|c| matches!(c, Command::Rival(r) if r.server == ip(8))), "{heard:?}");
    for hlen in 0..=u8::MAX {
        forged[2] = hlen;
        server.overhear(&forged, ip(8), now());
    }
    for len in 0..forged.len() {
        server.overhear(&forged[..len], ip(8), now());
    }
}

#[test]
fn another_server_is_reported_once_in_a_while() {
    let mut server = server();
    Client::new(Type::Discover).to(&mut server);
    assert!(server.standing(MAC, now()).is_some());
    let chosen = || Client::new(Type::Request).requested(ip(77)).server(ip(9));
    let first = chosen().to(&mut server);
    first.silent();
    assert_eq!(first.rivals, [ip(9)]);
    assert_eq!(first.noted, [Note::OtherServer { server: ip(9), taken: true }]);
    assert_eq!(server.standing(MAC, now()), None, "our offer is withdrawn");
    assert!(chosen().to(&mut server).rivals.is_empty());
    let later = now() + Duration::from_secs(601);
    assert_eq!(chosen().at(&mut server, later).rivals, [ip(9)]);

    let mut reply = Client::new(Type::Offer).server(ip(8)).message;
    reply.set_opcode(v4::Opcode::BootReply);
    let overheard = server.overhear(&reply.to_vec().unwrap(), ip(8), now());
    let answered = Note::OtherServer { server: ip(8), taken: false };
    assert!(
        matches!(&overheard[..], [Command::Noted(MAC, note), Command::Rival(r)] if *note == answered && r.server == ip(8))
    );
    reply.opts_mut().insert(DhcpOption::ServerIdentifier(SERVER));
    assert!(server.overhear(&reply.to_vec().unwrap(), SERVER, now()).is_empty(), "that is us");
    assert_eq!(server.rivals().map(|r| r.packets).collect::<Vec<_>>(), [1, 3]);
}

/// GRUB asks the server that the other one's ACK names.
#[test]
fn beside_a_proxy_the_other_server_s_next_server_is_noted() {
    let mut config = config();
    config.dhcp.mode = DhcpMode::Proxy;
    let mut server = Server::new(Arc::new(config), Vec::new());
    let reply = |kind| {
        let mut reply = Client::new(kind).server(ip(8)).message;
        reply.set_opcode(v4::Opcode::BootReply);
        reply.set_siaddr(ip(2));
        reply.to_vec().unwrap()
    };
    let noted = server.overhear(&reply(Type::Ack), ip(8), now());
    let next = Note::NextServer { server: ip(8), next: ip(2) };
    assert!(matches!(&noted[..], [Command::Noted(MAC, note)] if *note == next), "{noted:?}");
    assert!(server.overhear(&reply(Type::Offer), ip(8), now()).is_empty(), "another server is no rival here");
}

#[test]
fn a_proxy_names_the_file_and_gives_no_address() {
    let mut config = config();
    config.dhcp.mode = DhcpMode::Proxy;
    let mut server = Server::new(config.clone().into(), []);
    Client::new(Type::Discover).to(&mut server).silent();
    let offer = Client::new(Type::Discover).pxe(7).to(&mut server);
    let (to, message) = offer.reply(Type::Offer);
    assert!(matches!(to, To::Link { mac: Mac::BROADCAST, .. }));
    assert_eq!((message.yiaddr(), file(message).as_deref()), (NONE, Some("grub/x86_64-efi.efi")));
    for absent in [OptionCode::AddressLeaseTime, OptionCode::SubnetMask, OptionCode::Router] {
        assert!(!message.opts().contains(absent));
    }
    let request = Client::new(Type::Request).pxe(7).requested(ip(50)).server(ip(9)).to(&mut server);
    request.silent();
    assert_eq!((request.bound, request.rivals), (Some(ip(50)), vec![]));
    let asks = Client { port: port::PXE, ..Client::new(Type::Request).pxe(7).source(ip(50)) };
    let asks = asks.set(|m| m.set_ciaddr(ip(50))).to(&mut server);
    let (to, ack) = asks.reply(Type::Ack);
    assert_eq!(to, To::Ip(SocketAddrV4::new(ip(50), 68)));
    assert_eq!(file(ack).as_deref(), Some("grub/x86_64-efi.efi"));
    // Without a loader (IANA's processor architecture types): arm64, RISC-V, IA-32 UEFI, one that does not exist.
    for architecture in [0x0b, 0x1b, 0x06, 0xffff] {
        Client::new(Type::Discover).pxe(architecture).to(&mut server).silent();
        let asks = Client { port: port::PXE, ..Client::new(Type::Request).pxe(architecture).source(ip(50)) };
        asks.set(|m| m.set_ciaddr(ip(50))).to(&mut server).silent();
    }
}

#[test]
fn overloaded_split_and_endless_options_are_answered() {
    let mut bytes = Client::new(Type::Discover).message.to_vec().unwrap();
    bytes.truncate(field::OPTIONS);
    let mut overloaded = bytes.clone();
    overloaded[field::FILE..][..7].copy_from_slice(&[53, 1, 1, 61, 2, 1, 2]);
    overloaded[field::SNAME..][..7].copy_from_slice(&[61, 2, 3, 4, 82, 1, 9]);
    overloaded.extend([52, 1, 3, 255]);
    let outcome = raw(&mut server(), &overloaded, NONE, 67, now());
    let offer = outcome.reply(Type::Offer).1;
    let id = DhcpOption::ClientIdentifier(vec![1, 2, 3, 4]);
    assert_eq!(offer.opts().get(OptionCode::ClientIdentifier), Some(&id), "file before sname (RFC 3396)");

    let mut split = bytes.clone();
    split.extend([61, 2, 1, 2, 53, 1, 1, 61, 1, 3, 255]);
    let outcome = raw(&mut server(), &split, NONE, 67, now());
    let id = DhcpOption::ClientIdentifier(vec![1, 2, 3]);
    assert_eq!(outcome.reply(Type::Offer).1.opts().get(OptionCode::ClientIdentifier), Some(&id));

    let mut long = bytes.clone();
    long.extend([0; 900]);
    long.extend([53, 1, 1, 255]);
    raw(&mut server(), &long, NONE, 67, now()).reply(Type::Offer);
}

#[test]
fn a_reply_is_shortened_to_what_the_client_takes() {
    let mut config = config();
    config.dhcp.options = (224..228).map(|code| (code, vec![code; 50])).collect();
    config.dhcp.options.insert(230, vec![7; 100]);
    let mut server = Server::new(config.clone().into(), []);
    assert_eq!(server.scope().left_out, [230], "no room in a grant");
    let with_id = |size| {
        let id = DhcpOption::ClientIdentifier(vec![1; 100]);
        Client::new(Type::Discover).pxe(0).option(id).option(DhcpOption::MaxMessageSize(size))
    };
    let has = |m: &Message, code| m.opts().contains(OptionCode::Unknown(code));
    let whole = with_id(1472).to(&mut server);
    let whole = whole.reply(Type::Offer).1;
    assert!(has(whole, 224) && has(whole, 226) && has(whole, 227));
    let short = with_id(576).to(&mut server);
    let short = short.reply(Type::Offer).1;
    assert!(has(short, 224) && !has(short, 227), "the last go first");
    assert!(short.opts().contains(OptionCode::SubnetMask) && file(short).is_some());
}

#[test]
fn what_is_malformed_is_counted_and_dropped() {
    let mut server = server();
    let good = Client::new(Type::Discover).message.to_vec().unwrap();
    let mut untyped = good.clone();
    untyped.truncate(field::OPTIONS);
    untyped.extend([12, 200, b'x']);
    for bytes in [&good[..100], &untyped, &[0; 3000], &[]] {
        raw(&mut server, bytes, NONE, 67, now()).silent();
    }
    let counted: u64 = server.counters().malformed.values().sum();
    assert_eq!(counted, 4, "{:?}", server.counters().malformed);
}

#[test]
fn a_uuid_reads_as_smbios_prints_it() {
    let option: Vec<u8> = (0..17).collect();
    assert_eq!(uuid(&option).as_deref(), Some("04030201-0605-0807-090a-0b0c0d0e0f10"));
    assert_eq!(uuid(&[0; 17]), None);
    assert_eq!(uuid(&option[..16]), None);
}

proptest::proptest! {
    #[test]
    fn random_packets_never_panic(
        options in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..1500),
        fixed: bool,
    ) {
        let mut bytes = Client::new(Type::Discover).message.to_vec().unwrap();
        bytes.truncate(if fixed { field::OPTIONS } else { 0 });
        bytes.extend(options);
        raw(&mut server(), &bytes, NONE, 67, now());
    }
}

#[test]
fn what_the_kernel_answered_is_a_renewal_and_a_stage() {
    let mut server = server();
    Client::new(Type::Discover).to(&mut server);
    let offered = server.standing(MAC, now()).unwrap();
    assert_eq!(offered.durable_until, now() + Duration::from_secs(120 + 3600), "an ACK for two minutes");
    let ack = Answered {
        mac: MAC,
        address: ip(100),
        firmware: Firmware::Bios,
        message: MessageType::Request,
        by: AnsweredBy::Tc,
    };
    let commands = server.answered(ack, now());
    assert!(matches!(&commands[0], Command::Persist(Change::Put(l)) if l.state == LeaseState::Bound));
    let standing = server.standing(MAC, now()).unwrap();
    assert_eq!(standing.grant.address, ip(100).octets());
    assert!(standing.durable_until >= now() + Duration::from_secs(3600 + 1800));

    let answered =
        |message, firmware| Answered { mac: MAC, address: ip(100), firmware, message, by: AnsweredBy::Tc };
    let stages = |commands: &[Command]| -> Vec<_> {
        let happened = commands.iter().filter_map(|c| if let Command::Event(h) = c { Some(h) } else { None });
        happened.map(|h| (h.stage, h.answered_by)).collect()
    };
    let later = now() + Duration::from_secs(1800);
    let discover = server.answered(answered(MessageType::Discover, Firmware::Bios), later);
    assert_eq!(stages(&discover), [(Stage::Discover, AnsweredBy::Tc), (Stage::Offer, AnsweredBy::Tc)]);
    let request = server.answered(answered(MessageType::Request, Firmware::Bios), later);
    assert_eq!(stages(&request), [(Stage::Request, AnsweredBy::Tc), (Stage::Ack, AnsweredBy::Tc)]);
    assert!(matches!(
        request[..3],
        [Command::Persist(_), Command::Standing(MAC), Command::Bound { mac: MAC, .. }]
    ));
    assert_eq!(server.leases().of(MAC).unwrap().expires, later + Duration::from_secs(3600));
    let again = server.answered(answered(MessageType::Request, Firmware::None), later);
    assert!(
        matches!(again[..], [Command::Bound { .. }, Command::Noted(MAC, Note::SystemAsked)]),
        "no stage, nothing new to store: {again:?}"
    );

    Client::new(Type::Release).set(|m| m.set_ciaddr(ip(100))).at(&mut server, later);
    assert_eq!(server.standing(MAC, later), None);
    let other = config::Config { dhcp: config::Dhcp { mode: DhcpMode::Proxy, ..config().dhcp }, ..config() };
    server.reconfigure(other.into());
    assert_eq!(server.all_standing(later).count(), 0);
}
