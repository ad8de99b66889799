//! Whatever inputs arrive, in whatever order, a transfer has a deadline, and an input leads to few Commands.

use proptest::prelude::*;

use super::*;

/// The most Commands of one input: a request ends seven transfers, each with three, and opens a file.
const COMMANDS_MAX: usize = 3 * 8 + 2;
/// The most for each transfer that is due: it ends, with two notes, a line of the timeline, and its grant.
const COMMANDS_PER_DUE: usize = 4;

#[derive(Clone, Debug)]
enum Input {
    Request {
        client: u8,
        options: &'static str,
    },
    /// A file that waits is opened, by the fast path at once, later or not; or it fails.
    Opened {
        which: usize,
        in_kernel: bool,
        later: bool,
        fails: bool,
    },
    /// An ACK of a transfer, at this distance from its last one.
    Ack {
        which: usize,
        by: i8,
    },
    Error {
        which: usize,
    },
    /// The kernel moves a transfer on, or its client ends it there.
    Kernel {
        which: usize,
        aborts: bool,
    },
    /// The kernel reports an event of a transfer.
    Event {
        which: usize,
        aborted: bool,
    },
    /// A pending question is answered.
    Looked {
        which: usize,
        forgotten: bool,
    },
    TakenBack {
        which: usize,
    },
    /// The kernel is asked to take one over, and has its file, or not yet, or never will.
    HandedOver {
        which: usize,
        taken: u8,
    },
    Closed {
        which: usize,
    },
    Time {
        ms: u64,
    },
}

fn input() -> impl Strategy<Value = Input> {
    let options = prop_oneof![
        Just(""),
        Just("blksize 1024 "),
        Just("blksize 8 windowsize 16 "),
        Just("timeout 9 "),
        Just("timeout 255 "),
        Just("blksize x "),
    ];
    let which = any::<usize>();
    prop_oneof![
        5 => (0..3u8, options).prop_map(|(client, options)| Input::Request { client, options }),
        5 => (which, any::<bool>(), any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(which, in_kernel, later, fails)| Input::Opened { which, in_kernel, later, fails }),
        9 => (which, -2..3i8).prop_map(|(which, by)| Input::Ack { which, by }),
        1 => which.prop_map(|which| Input::Error { which }),
        6 => (which, prop::bool::weighted(0.1)).prop_map(|(which, aborts)| Input::Kernel { which, aborts }),
        2 => (which, any::<bool>()).prop_map(|(which, aborted)| Input::Event { which, aborted }),
        9 => (which, prop::bool::weighted(0.1))
            .prop_map(|(which, forgotten)| Input::Looked { which, forgotten }),
        4 => which.prop_map(|which| Input::TakenBack { which }),
        6 => (which, 0..3u8).prop_map(|(which, taken)| Input::HandedOver { which, taken }),
        4 => which.prop_map(|which| Input::Closed { which }),
        9 => prop_oneof![Just(1u64), Just(11), Just(99), Just(301), Just(5_000), Just(31_000)]
            .prop_map(|ms| Input::Time { ms }),
    ]
}

/// A server, and its pending answers.
struct Play {
    server: Server,
    now_ns: u64,
    kernels: HashMap<SessionKey, map::Session>,
    jobs: Vec<Job>,
    looks: Vec<Look>,
    take_backs: Vec<(SessionKey, BlockNo)>,
    hand_overs: Vec<HandOver>,
    closes: Vec<SessionKey>,
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]
    #[test]
    fn no_transfer_is_ever_without_a_deadline(inputs in prop::collection::vec(input(), 1..200)) {
        let mut play = Play {
            server: server(),
            now_ns: 1_000 * MS,
            kernels: HashMap::new(),
            jobs: Vec::new(),
            looks: Vec::new(),
            take_backs: Vec::new(),
            hand_overs: Vec::new(),
            closes: Vec::new(),
        };
        for input in inputs {
            let most = play.take(input);
            play.check(most);
        }
        play.end();
    }
}

impl Play {
    /// Hands the server an input; returns how many Commands it may cause.
    fn take(&mut self, input: Input) -> usize {
        let due = self.server.deadlines.len().min(DUE_AT_ONCE);
        let most = if matches!(input, Input::Time { .. }) { COMMANDS_PER_DUE * due } else { COMMANDS_MAX };
        self.put(input);
        most
    }

    fn put(&mut self, input: Input) {
        let now_ns = self.now_ns;
        match input {
            Input::Request { client, options } => {
                let client = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 100 + client), 2070);
                self.server.on_request(client, &read(options), now_ns);
            }
            Input::Opened { which, in_kernel, later, fails } => {
                let Some(job) = pick(&mut self.jobs, which) else { return };
                if job.close_first {
                    self.kernels.remove(&job.key);
                }
                let mut opened = job.run(&Kernel, None, || now_ns);
                if let Ok(accepted) = &mut opened {
                    accepted.in_kernel = in_kernel;
                    accepted.later = later && !in_kernel;
                }
                match opened {
                    Ok(accepted) if !fails => {
                        if in_kernel {
                            self.kernels.insert(job.key, kernel(*accepted.transfer.session(), now_ns));
                        }
                        self.server.on_opened(&job, Ok(accepted), now_ns);
                    }
                    Ok(_) => self.server.on_opened(&job, Err(Refused::TooManyBlocks), now_ns),
                    Err(refused) => self.server.on_opened(&job, Err(refused), now_ns),
                }
            }
            Input::Ack { which, by } => {
                let Some((client, port, acked)) = self.live(which) else { return };
                let block = (acked as u16).wrapping_add_signed(by.into());
                self.server.on_packet(port, client, &ack(block), now_ns);
            }
            Input::Error { which } => {
                let Some((client, port, _)) = self.live(which) else { return };
                self.server.on_packet(port, client, b"\0\x05\0\x08\0", now_ns);
            }
            Input::Kernel { which, aborts } => {
                let Some(session) = nth(self.kernels.values_mut(), which) else { return };
                if aborts {
                    session.end();
                } else {
                    let ack = session.transfer.in_flight().map_or(0, |blocks| blocks.last);
                    session.transfer.on_ack(BlockNo::of(ack), now_ns);
                    session.sent_by_tc += 1;
                }
            }
            Input::Event { which, aborted } => {
                let Some(key) = nth(self.kernels.keys(), which) else { return };
                let kind = if aborted { EventKind::Aborted } else { EventKind::Mark } as u16;
                let body = Event::of_transfer(key, 8);
                let event = Event { time_ns: now_ns, kind, hook: 1, address: key.client, body };
                self.server.on_event(&event);
            }
            Input::Looked { which, forgotten } => {
                let Some(look) = pick(&mut self.looks, which) else { return };
                let session = self.kernels.get(&look.key).filter(|_| !forgotten);
                self.server.on_looked(look, session, now_ns);
            }
            Input::TakenBack { which } => {
                let Some((key, ack)) = pick(&mut self.take_backs, which) else { return };
                let last = self.kernels.remove(&key);
                self.server.on_taken_back(&key, ack, last.as_ref(), now_ns);
            }
            Input::HandedOver { which, taken } => {
                let Some(over) = pick(&mut self.hand_overs, which) else { return };
                let taken = match taken {
                    0 => Ok(()),
                    1 => Err(Declined::NotYet),
                    _ => Err(Declined::Changed),
                };
                if taken.is_ok() {
                    self.kernels.insert(over.key, kernel(over.session, now_ns));
                }
                self.server.on_handed_over(&over.key, over.blocks, &taken, now_ns);
            }
            Input::Closed { which } => {
                let Some(key) = pick(&mut self.closes, which) else { return };
                self.kernels.remove(&key);
                self.server.on_closed(&key);
            }
            Input::Time { ms } => {
                self.now_ns += ms * MS;
                self.server.on_timeout(self.now_ns);
            }
        }
    }

    /// Takes the Commands, and checks the server.
    fn check(&mut self, most: usize) {
        let commands = commands(&mut self.server);
        assert!(commands.len() <= most, "{commands:?}");
        for command in commands {
            match command {
                Command::Open(job) => self.jobs.push(*job),
                Command::Look(look) => self.looks.push(look),
                Command::TakeBack { key, ack } => self.take_backs.push((key, ack)),
                Command::HandOver(over) => self.hand_overs.push(*over),
                Command::Close(key) => self.closes.push(key),
                Command::Send(_) | Command::Tell(_) => {}
            }
        }
        let idle_ns = IDLE.as_nanos() as u64;
        let mut timed = 0;
        for (key, entry) in &self.server.transfers {
            let armed_ns = match entry {
                Entry::Opening { since_ns, .. } => *since_ns + idle_ns,
                Entry::Live(live) => live.armed_ns.expect("a live transfer has a deadline"),
                Entry::Closing => {
                    assert!(self.closes.contains(key), "its end is on the way");
                    continue;
                }
            };
            timed += 1;
            assert!(self.server.deadlines.has(key, armed_ns), "and it is entered");
            assert!(armed_ns <= self.now_ns + idle_ns, "within the time in which a client is given up");
        }
        assert_eq!(self.server.deadlines.len(), timed, "and nothing else is");
        let counted: usize = self.server.clients.values().map(|client| client.transfers).sum();
        assert_eq!(counted, self.server.transfers.len());
    }

    /// Time alone ends everything, once all pending questions are answered.
    fn end(mut self) {
        for _ in 0..10_000 {
            while let Some(look) = self.looks.pop() {
                self.server.on_looked(look, None, self.now_ns);
                self.check(COMMANDS_MAX);
            }
            while let Some((key, ack)) = self.take_backs.pop() {
                self.server.on_taken_back(&key, ack, None, self.now_ns);
                self.check(COMMANDS_MAX);
            }
            while let Some(over) = self.hand_overs.pop() {
                self.server.on_handed_over(&over.key, over.blocks, &Err(Declined::NotYet), self.now_ns);
                self.check(COMMANDS_MAX);
            }
            while let Some(key) = self.closes.pop() {
                self.server.on_closed(&key);
                self.check(COMMANDS_MAX);
            }
            let Some(at_ns) = self.server.next_timeout() else {
                assert!(self.server.is_idle() && self.server.clients.is_empty());
                return;
            };
            self.now_ns = self.now_ns.max(at_ns);
            self.server.on_timeout(self.now_ns);
            self.check(COMMANDS_PER_DUE * DUE_AT_ONCE);
        }
        panic!("{} transfers do not end", self.server.transfers.len());
    }

    /// A live transfer's client, its data port, and its progress.
    fn live(&self, which: usize) -> Option<(SocketAddrV4, usize, u32)> {
        let live = self.server.transfers.values().filter_map(|entry| match entry {
            Entry::Live(live) => Some((live.client, live.port, live.transfer.session().acked())),
            Entry::Opening { .. } | Entry::Closing => None,
        });
        nth(live, which)
    }
}

fn kernel(transfer: pxe_common::tftp::Session, now_ns: u64) -> map::Session {
    let idle_ns = IDLE.as_nanos() as u64;
    map::Session {
        transfer,
        blob: 1,
        sums: 1,
        idle_ns,
        opened_ns: now_ns,
        sent_by_xdp: 0,
        sent_by_tc: 0,
        stations: Stations::ANY,
        unused: [0; 4],
    }
}

fn pick<T>(from: &mut Vec<T>, which: usize) -> Option<T> {
    let len = from.len();
    (len > 0).then(|| from.swap_remove(which % len))
}

fn nth<T>(of: impl Iterator<Item = T>, which: usize) -> Option<T> {
    let mut all: Vec<T> = of.collect();
    pick(&mut all, which)
}
