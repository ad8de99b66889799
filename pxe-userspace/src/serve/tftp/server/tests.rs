//! The server alone: its inputs, its Commands, and when it wants to be called.

mod random;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use pxe_common::Mac;
use pxe_common::map;
use pxe_common::tftp::Blocks;

use super::*;
use crate::machines::timeline::Stage;
use crate::provision::blob::Blob;
use crate::serve::files::{Files, OpenError, Opened};

const MS: u64 = 1_000_000;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 100), 2070);
/// Long enough for all block numbers here.
const LEN: u64 = 1 << 20;

/// Every path is a kernel of this many bytes.
struct Kernel;

impl Files for Kernel {
    fn open(&self, _: &str, _: Ipv4Addr) -> Result<Opened, OpenError> {
        static BLOB: std::sync::OnceLock<Blob> = std::sync::OnceLock::new();
        let blob = BLOB.get_or_init(|| Blob::from_bytes(vec![7; LEN as usize])).clone();
        Ok(Opened { blob, stage: Some(Stage::Kernel) })
    }
}

fn server() -> Server {
    Server::new(SERVER, (40000..40008).collect(), 1500, Arc::default())
}

fn read(options: &str) -> Vec<u8> {
    format!("\0\x01kernel\0octet\0{}", options.replace(' ', "\0")).into_bytes()
}

fn ack(block: u16) -> Vec<u8> {
    [&[0, 4], &block.to_be_bytes()[..]].concat()
}

fn commands(server: &mut Server) -> Vec<Command> {
    std::iter::from_fn(|| server.next_command()).collect()
}

/// Only what is sent: blocks, or `None` for another packet.
fn sent(commands: &[Command]) -> Vec<Option<Blocks>> {
    let sent = commands.iter().filter_map(|command| match command {
        Command::Send(Outgoing { what: What::Blocks { blocks, .. }, .. }) => Some(Some(*blocks)),
        Command::Send(Outgoing { what: What::Packet(_), .. }) => Some(None),
        _ => None,
    });
    sent.collect()
}

fn blocks(first: u32, last: u32) -> Vec<Option<Blocks>> {
    vec![Some(Blocks { first, last })]
}

/// The files to open. Questions to the kernel bring nothing new, and other Commands are dropped.
fn jobs(server: &mut Server, now_ns: u64) -> Vec<Job> {
    let mut jobs = Vec::new();
    while let Some(command) = server.next_command() {
        match command {
            Command::Open(job) => jobs.push(*job),
            Command::Look(look) => server.on_looked(look, None, now_ns),
            _ => {}
        }
    }
    jobs
}

fn looks(commands: Vec<Command>) -> Vec<Look> {
    let looks = commands.into_iter().filter_map(|command| match command {
        Command::Look(look) => Some(look),
        _ => None,
    });
    looks.collect()
}

fn closes(commands: &[Command]) -> Vec<SessionKey> {
    let closes = commands.iter().filter_map(|command| match command {
        Command::Close(key) => Some(*key),
        _ => None,
    });
    closes.collect()
}

/// Opens the file of an accepted request.
fn open(server: &mut Server, job: &Job, in_kernel: bool, now_ns: u64) -> map::Session {
    let mut accepted = job.run(&Kernel, None, || now_ns).unwrap();
    accepted.in_kernel = in_kernel;
    let transfer = *accepted.transfer.session();
    server.on_opened(job, Ok(accepted), now_ns);
    map::Session {
        transfer,
        blob: 1,
        sums: 1,
        idle_ns: IDLE.as_nanos() as u64,
        opened_ns: now_ns,
        sent_by_xdp: 0,
        sent_by_tc: 0,
        stations: Stations::ANY,
        unused: [0; 4],
    }
}

/// A transfer that was just opened; its number of data port, its key and the kernel's view of it.
fn started(
    server: &mut Server,
    client: SocketAddrV4,
    options: &str,
    in_kernel: bool,
    now_ns: u64,
) -> (usize, SessionKey, map::Session) {
    server.on_request(client, &read(options), now_ns);
    let [job] = &jobs(server, now_ns)[..] else { panic!("one file is opened") };
    let session = open(server, job, in_kernel, now_ns);
    assert_eq!(sent(&commands(server)), [None], "the OACK");
    (job.port, job.key, session)
}

#[test]
fn a_lock_step_transfer_wants_to_be_called_at_its_timeout_and_no_sooner() {
    let mut server = server();
    assert_eq!(server.next_timeout(), None);
    let (port, ..) = started(&mut server, CLIENT, "blksize 1024 ", false, 0);
    assert_eq!(server.next_timeout(), Some(300 * MS));
    for block in 0..100 {
        server.on_packet(port, CLIENT, &ack(block), u64::from(block + 1) * MS);
        assert_eq!(sent(&commands(&mut server)), blocks(u32::from(block) + 1, u32::from(block) + 1));
    }
    // When it is due it is entered again, for the last ACK's time.
    assert_eq!(server.next_timeout(), Some(300 * MS));
    server.on_timeout(300 * MS);
    assert!(commands(&mut server).is_empty());
    assert_eq!(server.next_timeout(), Some(400 * MS));
    server.on_timeout(399 * MS);
    assert_eq!((commands(&mut server).len(), server.next_timeout()), (0, Some(400 * MS)));

    let mut repeats = Vec::new();
    while let Some(at) = server.next_timeout() {
        server.on_timeout(at);
        let commands = commands(&mut server);
        if sent(&commands) == blocks(100, 100) {
            repeats.push(at / MS);
        } else {
            assert_eq!(at, 30_100 * MS, "the client is gone");
            let [
                Command::Tell(Tell::Fetching(_, None)),
                Command::Tell(Tell::Note(..)),
                Command::Tell(Tell::Record(failed)),
            ] = &commands[..]
            else {
                panic!("{commands:?}");
            };
            assert_eq!(failed.stage, Stage::Failed);
        }
    }
    assert_eq!(repeats[..5], [400, 1_000, 2_200, 4_600, 9_400]);
    assert!(server.is_idle() && server.clients.is_empty());
}

#[test]
fn an_ack_puts_forward_what_silence_had_put_off() {
    let mut server = server();
    let (port, ..) = started(&mut server, CLIENT, "blksize 1024 windowsize 4 ", false, 0);
    server.on_packet(port, CLIENT, &ack(0), MS);
    assert_eq!(sent(&commands(&mut server)), blocks(1, 4), "one command a window");
    for at in [301, 901, 2_101] {
        // The first time it is only entered again.
        server.on_timeout((at - 1) * MS);
        assert!(commands(&mut server).is_empty());
        server.on_timeout(at * MS);
        assert_eq!(sent(&commands(&mut server)), blocks(1, 4));
    }
    assert_eq!(server.next_timeout(), Some(4_501 * MS));
    server.on_packet(port, CLIENT, &ack(4), 2_200 * MS);
    assert_eq!(sent(&commands(&mut server)), blocks(5, 8));
    assert_eq!((server.next_timeout(), server.deadlines.len()), (Some(2_500 * MS), 1));
}

#[test]
fn where_blocks_are_lost_the_next_timeout_follows_the_clients_rounds() {
    let mut server = server();
    let (port, ..) = started(&mut server, CLIENT, "blksize 1024 ", false, 0);
    let (mut at, mut block) = (0, 0);
    let mut rounds = |server: &mut Server, count: u16| {
        for _ in 0..count {
            at += 2 * MS;
            server.on_packet(port, CLIENT, &ack(block), at);
            block += 1;
            assert_eq!(sent(&commands(server)).len(), 1);
        }
        at
    };
    let at = rounds(&mut server, 60);
    server.on_timeout(at + 300 * MS);
    assert_eq!(sent(&commands(&mut server)).len(), 1, "a block was lost");
    let at = rounds(&mut server, 60);
    assert!(server.next_timeout().unwrap() <= at + 20 * MS);
    server.on_timeout(at + 20 * MS - 1);
    assert_eq!((commands(&mut server).len(), server.next_timeout()), (0, Some(at + 20 * MS)));
    server.on_timeout(at + 20 * MS);
    assert_eq!(sent(&commands(&mut server)).len(), 1);
    assert_eq!(server.next_timeout(), Some(at + 60 * MS));
}

#[test]
fn the_kernel_is_asked_when_its_transfer_may_stall_and_while_it_does() {
    let mut server = server();
    let (_, key, mut kernel) = started(&mut server, CLIENT, "blksize 1024 ", true, 0);
    kernel.transfer.on_ack(BlockNo(0), 5 * MS);
    kernel.transfer.on_ack(BlockNo(1), 250 * MS);
    let ask = |server: &mut Server, at: u64, kernel: &map::Session| {
        server.on_timeout(at);
        let asked = looks(commands(server));
        for look in asked {
            assert_eq!(look.key, key);
            server.on_looked(look, Some(kernel), at);
        }
        commands(server)
    };
    let told = ask(&mut server, 300 * MS, &kernel);
    assert!(matches!(told[..], [Command::Tell(Tell::Fetching(..))]), "it got on by itself: {told:?}");
    assert_eq!(server.next_timeout(), Some(550 * MS));
    assert_eq!(sent(&ask(&mut server, 550 * MS, &kernel)), blocks(2, 2), "it stalls");

    // From now on its client may come back at any time, and only the kernel would know.
    assert_eq!(server.next_timeout(), Some(650 * MS));
    assert!(ask(&mut server, 650 * MS, &kernel).is_empty());
    assert_eq!(server.next_timeout(), Some(750 * MS));
    kernel.transfer.on_ack(BlockNo(2), 700 * MS);
    assert!(sent(&ask(&mut server, 750 * MS, &kernel)).is_empty());
    assert_eq!(server.next_timeout(), Some(1_000 * MS), "300 ms after its ACK");

    // Nobody answers any more: not the client and, once, not the kernel.
    let mut last = 0;
    while let Some(at) = server.next_timeout().filter(|at| *at < 30_700 * MS) {
        assert!(at > last, "time goes on");
        last = at;
        let _ = ask(&mut server, at, &kernel);
    }
    server.on_timeout(30_700 * MS);
    assert_eq!(looks(commands(&mut server)).len(), 1);
    assert_eq!(server.next_timeout(), Some(60_700 * MS), "an answer that stays away is no end");
    let told = ask(&mut server, 60_700 * MS, &kernel);
    assert_eq!(closes(&told), [key]);
    assert_eq!(server.next_timeout(), None);
    server.on_closed(&key);
    assert!(server.is_idle());
}

#[test]
fn an_ack_that_the_kernel_passes_is_answered_from_where_the_kernel_stopped() {
    let mut server = server();
    let (port, key, mut kernel) = started(&mut server, CLIENT, "blksize 1024 ", true, 0);
    server.on_packet(port, CLIENT, &ack(3), 9 * MS);
    let [Command::TakeBack { key: taken, ack: passed }] = commands(&mut server)[..] else { panic!() };
    assert_eq!((taken, passed), (key, BlockNo(3)));
    for block in 0..3 {
        kernel.transfer.on_ack(BlockNo(block), 8 * MS);
    }
    server.on_taken_back(&key, passed, Some(&kernel), 9 * MS);
    assert_eq!(sent(&commands(&mut server)), blocks(4, 4));
    server.on_packet(port, CLIENT, &ack(4), 10 * MS);
    assert_eq!(sent(&commands(&mut server)), blocks(5, 5), "no more is asked of the kernel");
    server.on_packet(port, CLIENT, b"\0\x05\0\0\0", 11 * MS);
    assert_eq!(closes(&commands(&mut server)), [key], "but its grant goes at the end");
}

#[test]
fn a_port_rests_until_its_grant_is_closed() {
    let mut server = server();
    let mut resting = Vec::new();
    for n in 0..8 {
        let (port, key, _) = started(&mut server, CLIENT, "blksize 1024 ", true, n * MS);
        server.on_packet(port, CLIENT, b"\0\x05\0\x08\0", n * MS);
        assert_eq!(closes(&commands(&mut server)), [key]);
        resting.push(key);
    }
    server.on_request(CLIENT, &read("blksize 512 "), 9 * MS);
    assert!(commands(&mut server).is_empty(), "the client asks again");
    server.on_closed(&resting[5]);
    server.on_request(CLIENT, &read("blksize 512 "), 10 * MS);
    let [Job { key, close_first: false, .. }] = jobs(&mut server, 10 * MS)[..] else {
        panic!("one port is free")
    };
    assert_eq!(key, resting[5]);
}

#[test]
fn a_request_looks_at_its_clients_transfers_first_and_takes_a_dead_ones_place() {
    let mut server = server();
    let mut kernels = HashMap::new();
    for n in 0..8 {
        let (_, key, kernel) = started(&mut server, CLIENT, &format!("blksize {} ", 512 + n), true, 0);
        kernels.insert(key, kernel);
    }
    let at = 2_000 * MS;
    // One of them is alive.
    let lives = *kernels.keys().next().unwrap();
    kernels.get_mut(&lives).unwrap().transfer.on_ack(BlockNo(0), at);
    server.on_request(CLIENT, &read("blksize 1024 "), at);
    let mut all = Vec::new();
    while let Some(command) = server.next_command() {
        match command {
            Command::Look(look) => {
                let kernel = kernels[&look.key];
                server.on_looked(look, Some(&kernel), at);
            }
            other => all.push(other),
        }
    }
    let closed = closes(&all);
    let opened = all.into_iter().filter_map(|c| if let Command::Open(job) = c { Some(*job) } else { None });
    let [Job { key, close_first: true, .. }] = &opened.collect::<Vec<_>>()[..] else {
        panic!("a dead transfer's ports are taken at once")
    };
    assert_eq!(closed.len(), 6, "the other dead ones end, too");
    assert!(*key != lives && !closed.contains(&lives) && !closed.contains(key));
    assert_eq!(server.transfers.len(), 8);
}

/// A host of the segment that is no machine.
fn neighbour(address: SocketAddrV4) -> Asker {
    let stations = Stations { client: Mac([2, 0, 0, 0, 0, 7]), server: Mac([2, 0, 0, 0, 0, 1]) };
    Asker { sender: Sender { address, stations }, standing: Standing::Neighbour }
}

/// Opens a request, if it is accepted.
fn asked(server: &mut Server, asker: Asker, now_ns: u64) -> bool {
    server.on_request(asker, &read("blksize 1024 windowsize 16 "), now_ns);
    let jobs = jobs(server, now_ns);
    for job in &jobs {
        open(server, job, false, now_ns);
    }
    while server.next_command().is_some() {}
    !jobs.is_empty()
}

/// What is sent from now on, if nobody answers.
fn repeats(server: &mut Server) -> Vec<Vec<Option<Blocks>>> {
    let mut repeats = Vec::new();
    while let Some(at) = server.next_timeout() {
        server.on_timeout(at);
        repeats.extend(Some(sent(&commands(server))).filter(|sent| !sent.is_empty()));
    }
    repeats
}

#[test]
fn who_never_answers_is_asked_five_times_more() {
    for asker in [CLIENT.into(), neighbour(CLIENT)] {
        let mut server = server();
        assert!(asked(&mut server, asker, 0));
        assert_eq!(repeats(&mut server), vec![[None]; 5]);
        assert!(server.is_idle());
        server.on_request(asker, &read(""), 0);
        let [job] = &jobs(&mut server, 0)[..] else { panic!("one file is opened") };
        open(&mut server, job, false, 0);
        assert_eq!(sent(&commands(&mut server)), blocks(1, 1));
        assert_eq!(repeats(&mut server).len(), 5);
    }
}

#[test]
fn a_host_that_is_no_machine_gets_one_block_again_and_no_window() {
    for (asker, last) in [(CLIENT.into(), 16), (neighbour(CLIENT), 1)] {
        let mut server = server();
        server.on_request(asker, &read("blksize 1024 windowsize 16 "), 0);
        let [job] = &jobs(&mut server, 0)[..] else { panic!("one file is opened") };
        open(&mut server, job, false, 0);
        let port = job.port;
        while server.next_command().is_some() {}
        server.on_packet(port, asker.sender, &ack(0), MS);
        assert_eq!(sent(&commands(&mut server)), blocks(1, 16));
        let repeats = repeats(&mut server);
        assert!(repeats.len() > 5 && repeats.iter().all(|sent| *sent == blocks(1, last)), "{repeats:?}");
    }
}

#[test]
fn another_station_is_not_the_client() {
    let mut server = server();
    let asker = neighbour(CLIENT);
    server.on_request(asker, &read("blksize 1024 "), 0);
    let [job] = &jobs(&mut server, 0)[..] else { panic!("one file is opened") };
    open(&mut server, job, false, 0);
    while server.next_command().is_some() {}
    let Stations { client, server: own } = asker.sender.stations;
    for stations in [
        Stations { client: Mac([2, 0, 0, 0, 0, 8]), server: own },
        Stations { client, server: Mac([2, 0, 0, 0, 0, 9]) },
    ] {
        let other = Sender { stations, ..asker.sender };
        for packet in [&ack(0)[..], b"\0\x05\0\0x\0", b"\0\x01x\0octet\0"] {
            server.on_packet(job.port, other, packet, MS);
            assert!(commands(&mut server).is_empty());
        }
    }
    server.on_packet(job.port, asker.sender, &ack(0), MS);
    assert_eq!(sent(&commands(&mut server)), blocks(1, 1));
}

#[test]
fn one_host_keeps_nobody_else_out() {
    let mut server = server();
    let greedy = |port: u32| SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 66), 1024 + port as u16);
    // It asks and asks, and acknowledges nothing.
    for n in 0..5_000 {
        asked(&mut server, neighbour(greedy(n)), u64::from(n) * MS);
    }
    assert!(server.transfers.len() <= MAX_OF_ADDRESS, "{}", server.transfers.len());
    assert!(asked(&mut server, neighbour(CLIENT), 5_000 * MS), "another host is served");

    // Likewise from many addresses.
    let many = |n: u32| SocketAddrV4::new(Ipv4Addr::from(0x0a4d_0300 + n), 2070);
    for n in 0..5_000 {
        asked(&mut server, neighbour(many(n)), 5_000 * MS + u64::from(n) * MS);
    }
    assert_eq!(server.transfers.len(), server.limits.of_others(), "a quarter is kept");
    assert_eq!(server.others, server.transfers.len());
    for n in 0..8 {
        let machine = SocketAddrV4::new(Ipv4Addr::new(10, 77, 9, n), 2070);
        assert!(asked(&mut server, machine.into(), 11_000 * MS), "machines have places of their own");
    }
    assert!(asked(&mut server, neighbour(many(9_000)), 11_000 * MS), "and the oldest gives way");
    while let Some(at) = server.next_timeout() {
        server.on_timeout(at);
        while server.next_command().is_some() {}
    }
    assert!(server.is_idle() && server.clients.is_empty() && server.others == 0);
}

#[test]
fn what_was_answered_gives_way_to_nobody() {
    let mut server = server();
    server.limit(Limits { all: 8 });
    let client = |n: u8| SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, n), 2070);
    for n in 0..6 {
        server.on_request(neighbour(client(n)), &read("blksize 1024 "), 0);
        let [job] = &jobs(&mut server, 0)[..] else { panic!("one file is opened") };
        open(&mut server, job, false, 0);
        let port = job.port;
        while server.next_command().is_some() {}
        server.on_packet(port, neighbour(client(n)).sender, &ack(0), MS);
        while server.next_command().is_some() {}
    }
    server.on_request(neighbour(client(9)), &read(""), 900 * MS);
    assert_eq!(sent(&commands(&mut server)), [None], "too many transfers, try again");
    assert!(asked(&mut server, client(10).into(), 900 * MS), "a machine");
}

#[test]
fn what_is_no_request_is_told_so() {
    let mut server = server();
    for (bytes, told) in [
        (&b"\0\x01f\0mail\0"[..], true),
        (b"\0\x01f\0octet", true),
        (b"\0\x07x", true),
        (b"\0\x02f\0octet\0", true),
        (b"\0", false),
        (b"\0\x04\0\0", false),
    ] {
        server.on_request(CLIENT, bytes, 0);
        let errors = commands(&mut server);
        let errors = errors.iter().filter(|command| {
            matches!(command, Command::Send(Outgoing { what: What::Packet(bytes), .. }) if bytes[..2] == [0, 5])
        });
        assert_eq!(errors.count(), usize::from(told), "{bytes:?}");
    }
}

#[test]
fn a_request_in_fragments_is_told_so() {
    let mut server = server();
    for (bytes, told) in [
        (&b"\0\x01AAAAAAAA"[..], true),
        (b"\0\x02AAAAAAAA", true),
        (b"\0\x05\0\0AAAA", false),
        (b"\0\x04", false),
        (b"\0", false),
        (b"", false),
    ] {
        server.on_fragment(CLIENT, bytes);
        let commands = commands(&mut server);
        assert_eq!(commands.len(), usize::from(told), "{bytes:?}");
        for command in commands {
            let Command::Send(Outgoing { to: CLIENT, what: What::Packet(error), .. }) = command else {
                panic!("{command:?}")
            };
            assert_eq!(error[..4], [0, 5, 0, 4]);
        }
    }
    assert!(server.is_idle());
}

#[test]
fn a_path_can_do_nothing_to_a_terminal() {
    let mut server = server();
    server.on_request(CLIENT, b"\0\x01\x1b]0;x\x07\nFAKE\xe2\x80\xae\xff\0octet\0", 0);
    let [Job { path, .. }] = &jobs(&mut server, 0)[..] else { panic!("one file is opened") };
    assert_eq!(path, "^[]0;x^G^JFAKE\\u{202e}\u{fffd}");
}

#[test]
fn four_thousand_transfers_cost_a_packet_nothing_and_a_timeout_only_those_that_are_due() {
    let mut server = server();
    let clients: Vec<SocketAddrV4> = (0..MAX_TRANSFERS as u32)
        .map(|n| SocketAddrV4::new(Ipv4Addr::from(u32::from(*CLIENT.ip()) + n), 2070))
        .collect();
    let mut ports = Vec::new();
    for (n, client) in clients.iter().enumerate() {
        // One a microsecond, so that each has a time of its own.
        ports.push(started(&mut server, *client, "blksize 1024 ", false, n as u64 * 1_000).0);
    }
    server.on_request(SocketAddrV4::new(Ipv4Addr::new(10, 99, 0, 1), 1), &read(""), 5 * MS);
    assert_eq!(sent(&commands(&mut server)), [None], "there are enough of them");
    assert_eq!(server.clients.len(), MAX_TRANSFERS, "and no address is remembered for that");
    assert_eq!(server.deadlines.len(), MAX_TRANSFERS);

    let before = server.deadlines.steps;
    for block in 0..50 {
        for (client, port) in clients.iter().zip(&ports) {
            server.on_packet(*port, *client, &ack(block), 10 * MS + u64::from(block));
            while server.next_command().is_some() {}
        }
    }
    assert_eq!(server.deadlines.steps, before, "no packet moved an entry");
    assert_eq!(server.deadlines.len(), MAX_TRANSFERS);

    server.on_timeout(300 * MS - 1);
    assert_eq!(server.deadlines.steps, before, "nothing was due");
    server.on_timeout(300 * MS + 9_000);
    assert_eq!(server.deadlines.steps - before, 2 * 10, "ten came up, and are entered anew");
    assert!(commands(&mut server).is_empty());
    // All are due: they are handled in parts, with packets in between.
    let mut calls = 0;
    while server.next_timeout().is_some_and(|at| at <= 320 * MS) {
        let before = server.deadlines.steps;
        server.on_timeout(320 * MS);
        assert!(server.deadlines.steps - before <= 2 * DUE_AT_ONCE);
        assert!(commands(&mut server).len() <= 2 * DUE_AT_ONCE);
        calls += 1;
    }
    assert!(calls >= MAX_TRANSFERS / DUE_AT_ONCE);
    assert_eq!(server.deadlines.len(), MAX_TRANSFERS);
}
