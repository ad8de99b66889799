use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, last)
}

fn machine(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

fn start() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

/// 10.77.0.100 to 10.77.0.`last`, less .101; machine 9 has .200 reserved, machine 8 .102.
fn pool(last: u8) -> Pool {
    Pool {
        range: Some((ip(100), ip(last))),
        taken: [ip(101)].into(),
        reservations: [(machine(9), ip(200)), (machine(8), ip(102))].into(),
        declared: Vec::new(),
        lease_time: HOUR,
    }
}

fn leases(last: u8) -> Leases {
    Leases::new(pool(last), [])
}

fn offer(leases: &mut Leases, n: u8, now: Timestamp) -> Result<Ipv4Addr, Refused> {
    leases.offer(machine(n), ANY, &Aliases::default(), now).map(|(address, _)| address)
}

fn bind(leases: &mut Leases, n: u8, address: Ipv4Addr, now: Timestamp) -> Result<(), Refused> {
    leases.bind(machine(n), address, &Aliases::default(), now).map(drop)
}

#[test]
fn previous_then_never_used_then_longest_ended() {
    let mut l = leases(104);
    let now = start();
    assert_eq!(offer(&mut l, 1, now), Ok(ip(100)));
    assert_eq!(offer(&mut l, 2, now), Ok(ip(103)), ".101 is taken, .102 reserved");
    bind(&mut l, 1, ip(100), now).unwrap();
    bind(&mut l, 2, ip(103), now + Duration::from_secs(10)).unwrap();
    let later = now + 2 * HOUR;
    assert_eq!(offer(&mut l, 3, later), Ok(ip(104)), "never used goes before ended");
    assert_eq!(offer(&mut l, 1, later), Ok(ip(100)), "its previous one");
    assert_eq!(offer(&mut l, 4, later), Ok(ip(103)), "ended, and its machine is away");
    assert_eq!(offer(&mut l, 5, later), Err(Refused::Exhausted));
    assert_eq!(offer(&mut l, 2, later), Err(Refused::Exhausted), "came back too late");
    assert_eq!(offer(&mut l, 9, later), Ok(ip(200)), "a reservation needs no pool");
}

#[test]
fn what_a_client_asks_for_is_given_when_it_is_free() {
    let mut l = leases(110);
    let now = start();
    let wish = |l: &mut Leases, n, a| l.offer(machine(n), a, &Aliases::default(), now).map(|(a, _)| a);
    assert_eq!(wish(&mut l, 1, ip(107)), Ok(ip(107)));
    assert_eq!(wish(&mut l, 2, ip(107)), Ok(ip(100)), "not free");
    assert_eq!(wish(&mut l, 3, ip(50)), Ok(ip(103)), "not in the range");
    assert_eq!(wish(&mut l, 4, ip(102)), Ok(ip(104)), "reserved for another");
    assert_eq!(wish(&mut l, 9, ip(108)), Ok(ip(200)), "its reservation goes first");
}

#[test]
fn one_machine_has_one_lease_whatever_it_calls_itself() {
    let mut l = leases(110);
    let now = start();
    let alias =
        |id: &str, uuid: Option<&str>| Aliases { client_id: Some(id.into()), uuid: uuid.map(str::to_owned) };
    let (rom, _) = l.offer(machine(1), ANY, &alias("01020000000001", Some("u")), now).unwrap();
    let (os, changes) = l.offer(machine(1), ANY, &alias("ff001122", None), now).unwrap();
    assert_eq!(rom, os);
    assert_eq!(l.iter().count(), 1);
    let lease = l.of(machine(1)).unwrap();
    assert_eq!(lease.client_ids, ["01020000000001".to_owned(), "ff001122".to_owned()].into());
    assert_eq!(lease.uuid.as_deref(), Some("u"));
    assert_eq!(changes, [Change::Put(lease.clone())], "an alias is remembered on disk");
    for n in 0..100 {
        l.offer(machine(1), ANY, &alias(&format!("{n:04x}"), None), now).unwrap();
    }
    assert_eq!(l.of(machine(1)).unwrap().client_ids.len(), MAX_CLIENT_IDS);
}

#[test]
fn the_packets_of_one_boot_cost_two_writes() {
    let mut l = leases(110);
    let at = |s| start() + Duration::from_secs(s);
    let none = Aliases::default();
    let (address, first) = l.offer(machine(1), ANY, &none, at(0)).unwrap();
    assert_eq!(first.len(), 1);
    assert_eq!(l.offer(machine(1), ANY, &none, at(1)).unwrap(), (address, vec![]));
    assert_eq!(l.bind(machine(1), address, &none, at(4)).unwrap().len(), 1, "offered became bound");
    assert_eq!(l.bind(machine(1), address, &none, at(20)).unwrap(), [], "the OS asks again");
    assert_eq!(l.bind(machine(1), address, &none, at(1800)).unwrap().len(), 1, "a renewal");
}

#[test]
fn a_new_reservation_moves_the_machine_and_its_old_address_is_free() {
    let mut l = leases(110);
    let now = start();
    l.heard(now, false);
    let old = offer(&mut l, 7, now).unwrap();
    bind(&mut l, 7, old, now).unwrap();
    let mut pool = pool(110);
    pool.reservations.insert(machine(7), ip(150));
    l.set_pool(pool);
    assert_eq!(bind(&mut l, 7, old, now), Err(Refused::NotYours), "its renewal is refused");
    let (address, changes) = l.offer(machine(7), ANY, &Aliases::default(), now).unwrap();
    assert_eq!(address, ip(150));
    assert_eq!(changes.len(), 1);
    let wish = |l: &mut Leases, n, now| l.offer(machine(n), old, &Aliases::default(), now).map(|(a, _)| a);
    assert_ne!(wish(&mut l, 5, now), Ok(old), "it did not take the other one yet");
    bind(&mut l, 7, ip(150), now).unwrap();
    assert_eq!(l.bound(now).map(|l| l.address).collect::<Vec<_>>(), [ip(150)]);
    assert_ne!(wish(&mut l, 6, now), Ok(old), "the kernel may have promised it just before");
    let later = now + Duration::from_secs(3);
    l.heard(later, false);
    assert_eq!(wish(&mut l, 7, later), Ok(ip(150)));
    assert_eq!(wish(&mut l, 4, later), Ok(old));
}

#[test]
fn a_declined_reservation_rests_and_the_machine_gets_another() {
    let mut l = leases(110);
    let now = start();
    assert_eq!(offer(&mut l, 9, now), Ok(ip(200)));
    assert_eq!(l.decline(machine(1), ip(200), now), [], "not its own");
    assert_eq!(l.decline(machine(9), ip(200), now).len(), 1);
    let other = offer(&mut l, 9, now).unwrap();
    assert_ne!(other, ip(200));
    bind(&mut l, 9, other, now).unwrap();
    let rested = now + QUARANTINE + Duration::from_secs(1);
    assert_eq!(bind(&mut l, 9, other, rested), Err(Refused::NotYours), "back to its own");
    assert_eq!(offer(&mut l, 9, rested), Ok(ip(200)));
}

#[test]
fn an_offer_not_taken_is_free_again_and_a_chosen_rival_frees_it_at_once() {
    let mut l = leases(100);
    let now = start();
    assert_eq!(offer(&mut l, 1, now), Ok(ip(100)));
    assert_eq!(offer(&mut l, 2, now), Err(Refused::Exhausted));
    l.withdraw(machine(1), now);
    assert_eq!(offer(&mut l, 2, now), Ok(ip(100)));
    assert_eq!(offer(&mut l, 1, now + OFFER_HOLD), Ok(ip(100)), "machine 2 never asked for it");
    bind(&mut l, 1, ip(100), now + OFFER_HOLD).unwrap();
    l.withdraw(machine(1), now + OFFER_HOLD);
    assert_eq!(offer(&mut l, 2, now + OFFER_HOLD), Err(Refused::Exhausted), "a bound lease is no offer");
}

#[test]
fn a_released_address_is_free_as_soon_as_the_kernel_is_known_not_to_have_promised_it_again() {
    let seconds = |s| start() + Duration::from_secs(s);
    let mut alone = leases(100);
    bind(&mut alone, 1, ip(100), start()).unwrap();
    assert_eq!(alone.release(machine(1), ip(100), start()).len(), 1);
    assert_eq!(alone.release(machine(1), ip(100), start()), [], "said twice, stored once");
    assert_eq!(offer(&mut alone, 2, start()), Ok(ip(100)), "without a kernel that answers: at once");

    let mut l = leases(100);
    l.heard(start(), false);
    bind(&mut l, 1, ip(100), start()).unwrap();
    let until = l.of(machine(1)).unwrap().durable_until;
    l.release(machine(1), ip(100), start());
    assert_eq!(l.speakable(machine(1), start()), None);
    assert_eq!(offer(&mut l, 2, seconds(1)), Err(Refused::Exhausted));
    let stored: Vec<_> = l.iter().map(|l| Lease { expires: l.durable_until, ..l.clone() }).collect();
    let mut back = l.clone();
    assert_eq!(offer(&mut back, 1, seconds(1)), Ok(ip(100)), "it came back");
    back.heard(seconds(300), false);
    assert_eq!(offer(&mut back, 2, seconds(300)), Err(Refused::Exhausted), "an offer makes nothing shorter");
    let mut lost = l.clone();
    lost.heard(seconds(3), true);
    assert_eq!(offer(&mut lost, 2, seconds(3)), Err(Refused::Exhausted), "its ACK's event may be lost");
    assert_eq!(offer(&mut lost, 2, until), Ok(ip(100)));
    let mut restarted = Leases::new(pool(100), stored);
    restarted.heard(Timestamp::MIN, false);
    assert_eq!(offer(&mut restarted, 2, seconds(3)), Err(Refused::Exhausted), "nobody knows any more");
    assert_eq!(offer(&mut restarted, 2, until), Ok(ip(100)));
    l.heard(seconds(3), false);
    assert_eq!(offer(&mut l, 2, seconds(3)), Ok(ip(100)));
}

#[test]
fn a_lease_ends_when_its_machine_was_told_and_not_when_the_store_was() {
    for lease_time in [30, 60, 3600] {
        let lease_time = Duration::from_secs(lease_time);
        let mut l = Leases::new(Pool { lease_time, ..pool(100) }, []);
        l.heard(start(), false);
        bind(&mut l, 1, ip(100), start()).unwrap();
        let end = start() + lease_time;
        assert!(l.of(machine(1)).unwrap().durable_until > end);
        l.heard(end - Duration::from_secs(1), false);
        assert_eq!(offer(&mut l, 2, end - Duration::from_secs(1)), Err(Refused::Exhausted));
        l.heard(end, false);
        assert_eq!(offer(&mut l, 2, end), Ok(ip(100)), "{lease_time:?}");
    }
}

#[test]
fn an_address_is_kept_back_for_each_declared_machine() {
    let declared = vec![machine(1), machine(2)];
    let mut l = Leases::new(Pool { declared: declared.clone(), ..pool(105) }, []);
    let now = start();
    let strangers = |l: &mut Leases, now| (20..30).filter(|n| offer(l, *n, now).is_ok()).count();
    assert_eq!(strangers(&mut l, now), 2, "of .100, .103, .104 and .105");
    assert_eq!(l.room(now), Room { size: 4, free: 2 });
    assert_eq!(
        l.offer(machine(20), ip(105), &Aliases::default(), now).unwrap().0,
        ip(100),
        "not by its number"
    );
    assert_eq!(offer(&mut l, 2, now), Ok(ip(104)));
    assert_eq!(offer(&mut l, 1, now), Ok(ip(105)));
    assert_eq!(offer(&mut l, 31, now), Err(Refused::Exhausted));

    // A machine that takes another address of the range frees the one kept for it.
    let mut l = Leases::new(Pool { declared: declared.clone(), ..pool(105) }, []);
    assert_eq!(offer(&mut l, 1, now), Ok(ip(100)), "the first that is free, as everybody");
    assert_eq!(strangers(&mut l, now), 2);
    assert_eq!(offer(&mut l, 2, now), Ok(ip(104)));

    // Declared when the range is full: the next address that ends is kept, and no machine loses its own.
    let mut l = leases(105);
    let given: Vec<_> = (20..24).map(|n| offer(&mut l, n, now).unwrap()).collect();
    (20..24).zip(&given).for_each(|(n, a)| bind(&mut l, n, *a, now + Duration::from_secs(n.into())).unwrap());
    l.set_pool(Pool { declared, ..pool(105) });
    assert_eq!(offer(&mut l, 1, now), Err(Refused::Exhausted));
    (20..24).zip(&given).for_each(|(n, a)| bind(&mut l, n, *a, now + Duration::from_secs(60)).unwrap());
    let ended = now + 2 * HOUR;
    assert_eq!((30..40).filter(|n| offer(&mut l, *n, ended).is_ok()).count(), 2);
    assert!(offer(&mut l, 1, ended).is_ok() && offer(&mut l, 2, ended).is_ok());
}

#[test]
fn a_machine_that_gave_its_address_back_may_take_another() {
    let mut l = leases(110);
    let now = start();
    bind(&mut l, 1, ip(100), now).unwrap();
    l.release(machine(1), ip(100), now);
    bind(&mut l, 1, ip(105), now).unwrap();
    assert_eq!(offer(&mut l, 2, now), Ok(ip(100)));
}

#[test]
fn an_offer_that_the_kernel_may_have_turned_into_an_ack_is_free_when_that_is_heard_not_to_be_so() {
    let mut l = leases(100);
    let now = start();
    l.heard(now, false);
    assert_eq!(offer(&mut l, 1, now), Ok(ip(100)));
    let speakable = l.speakable(machine(1), now).unwrap();
    assert_eq!(speakable.until, now + OFFER_HOLD + HOUR, "no ACK after the hold");
    l.withdraw(machine(1), now + Duration::from_secs(1));
    let ended = now + OFFER_HOLD;
    assert_eq!(offer(&mut l, 2, ended), Err(Refused::Exhausted), "who knows?");
    l.heard(ended, false);
    assert_eq!(offer(&mut l, 2, ended), Ok(ip(100)));
    l.heard(ended + OFFER_HOLD, true);
    assert_eq!(offer(&mut l, 3, ended + OFFER_HOLD), Err(Refused::Exhausted), "the ACK's event may be lost");
    assert_eq!(offer(&mut l, 3, ended + 2 * HOUR), Ok(ip(100)));
}

#[test]
fn an_address_that_was_only_offered_to_a_machine_that_moved_is_as_good_as_new() {
    let mut l = leases(100);
    let now = start();
    assert_eq!(offer(&mut l, 1, now), Ok(ip(100)));
    assert_eq!(offer(&mut l, 2, now), Err(Refused::Exhausted));
    let mut moved = pool(100);
    moved.reservations.insert(machine(1), ip(150));
    l.set_pool(moved);
    assert_eq!(offer(&mut l, 2, now), Err(Refused::Exhausted), "still machine 1's");
    assert_eq!(offer(&mut l, 1, now), Ok(ip(150)));
    assert_eq!(offer(&mut l, 2, now), Ok(ip(100)));
}

#[derive(Clone, Debug)]
enum Step {
    Offer(u8, u8),
    Bind(u8, u8),
    /// The kernel may have promised the address again before the daemon learnt of the release.
    Release(u8, u8, Option<Hears>),
    Decline(u8, u8),
    Withdraw(u8),
    Wait(u64),
    Restart,
    Failed,
    /// All events of the kernel are read.
    Heard,
    /// The machine asks for the address that it has, and the kernel answers if it may.
    Kernel(u8, Hears),
}

/// Whether the daemon learns of what the kernel did.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Hears {
    AtOnce,
    /// Together with the next events.
    Later,
    Never,
}

fn hears() -> impl Strategy<Value = Hears> {
    prop::sample::select(vec![Hears::AtOnce, Hears::AtOnce, Hears::Later, Hears::Later, Hears::Never])
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..10u8, 98..108u8).prop_map(|(n, a)| Step::Offer(n, a)),
        4 => (0..10u8, 98..108u8).prop_map(|(n, a)| Step::Bind(n, a)),
        1 => (0..10u8, 98..108u8, prop::option::of(hears())).prop_map(|(n, a, again)| Step::Release(n, a, again)),
        1 => (0..10u8, 98..108u8).prop_map(|(n, a)| Step::Decline(n, a)),
        1 => (0..10u8).prop_map(Step::Withdraw),
        2 => (0..4000u64).prop_map(Step::Wait),
        1 => Just(Step::Restart),
        1 => Just(Step::Failed),
        2 => Just(Step::Heard),
        4 => (0..10u8, hears()).prop_map(|(n, hears)| Step::Kernel(n, hears)),
    ];
    prop::collection::vec(step, 1..120)
}

/// What a client and a disk believe, kept apart from the code under test.
#[derive(Default)]
struct World {
    disk: BTreeMap<Ipv4Addr, Lease>,
    /// Until when each machine may use which address, by the ACKs it got.
    told: HashMap<Mac, (Ipv4Addr, Timestamp)>,
    resting: BTreeMap<Ipv4Addr, Timestamp>,
    /// What the kernel was told: address, durable end.
    kernel: HashMap<Mac, (Ipv4Addr, Timestamp)>,
    /// The kernel's events that are not read yet.
    told_by_kernel: Vec<(Mac, Ipv4Addr)>,
    /// An event of the kernel was lost.
    lost: bool,
}

impl World {
    fn store(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Put(lease) => drop(self.disk.insert(lease.address, lease)),
                Change::Remove(address) => drop(self.disk.remove(&address)),
            }
        }
    }

    /// The kernel may promise this to the machine.
    fn grant(&mut self, mac: Mac, speakable: Option<Speakable>) {
        match speakable {
            Some(may) => self.kernel.insert(mac, (may.address, may.until)),
            None => self.kernel.remove(&mac),
        };
    }

    /// The kernel reports an ACK.
    fn tell(&mut self, mac: Mac, address: Ipv4Addr, hears: Hears) {
        match hears {
            Hears::AtOnce => {}
            Hears::Later => self.told_by_kernel.push((mac, address)),
            Hears::Never => self.lost = true,
        }
    }

    /// An OFFER or ACK of `address` leaves for `mac`.
    fn promised(&self, mac: Mac, address: Ipv4Addr, now: Timestamp) -> Result<(), TestCaseError> {
        prop_assert!(leases(106).allows(mac, address), "{address} is not to be given to {mac}");
        let stored = self.disk.get(&address);
        let durable = stored.is_some_and(|l| l.mac == mac && l.durable_until >= now + HOUR);
        prop_assert!(durable, "{address} for {mac} leaves before it is stored: {stored:?}");
        for (other, (theirs, until)) in &self.told {
            let collides = *theirs == address && *until > now && *other != mac;
            prop_assert!(!collides, "{address} has two machines, {mac} and {other}");
        }
        let rests = self.resting.get(&address).is_some_and(|until| *until > now);
        prop_assert!(!rests, "{address} was declined and is given to {mac}");
        Ok(())
    }
}

proptest! {
    #[test]
    fn no_address_has_two_machines_and_none_leaves_before_it_is_stored(steps in steps()) {
        let mut leases = leases(106);
        let mut world = World::default();
        let mut now = start();
        leases.heard(now, false);
        let mut disk_fails = false;
        let none = Aliases::default();
        for step in steps {
            let of = match &step {
                Step::Offer(n, _) | Step::Bind(n, _) | Step::Kernel(n, Hears::AtOnce) | Step::Withdraw(n) => {
                    Some(machine(*n))
                }
                _ => None,
            };
            // A step whose changes are not stored sends nothing.
            let mut commit = |leases: &mut Leases, world: &mut World, changes: Vec<Change>| {
                let failed = std::mem::take(&mut disk_fails) && !changes.is_empty();
                match failed {
                    true => leases.not_durable(&changes),
                    false => world.store(changes),
                }
                !failed
            };
            match step {
                Step::Offer(n, wanted) => {
                    if let Ok((address, changes)) = leases.offer(machine(n), ip(wanted), &none, now)
                        && commit(&mut leases, &mut world, changes)
                    {
                        world.promised(machine(n), address, now)?;
                    }
                }
                Step::Bind(n, wanted) => {
                    if let Ok(changes) = leases.bind(machine(n), ip(wanted), &none, now)
                        && commit(&mut leases, &mut world, changes)
                    {
                        world.promised(machine(n), ip(wanted), now)?;
                        world.told.insert(machine(n), (ip(wanted), now + HOUR));
                    }
                }
                Step::Kernel(n, hears) => {
                    let Some((address, until)) = world.kernel.get(&machine(n)).copied() else { continue };
                    if until < now + HOUR {
                        continue;
                    }
                    world.promised(machine(n), address, now)?;
                    world.told.insert(machine(n), (address, now + HOUR));
                    if hears == Hears::AtOnce {
                        let changes = leases.bind(machine(n), address, &none, now);
                        prop_assert!(changes.is_ok(), "{changes:?}: the kernel said what the daemon would not");
                        commit(&mut leases, &mut world, changes.unwrap());
                    }
                    world.tell(machine(n), address, hears);
                }
                Step::Heard => {
                    for (mac, address) in std::mem::take(&mut world.told_by_kernel) {
                        let Ok(changes) = leases.bind(mac, address, &none, now) else { continue };
                        commit(&mut leases, &mut world, changes);
                        world.grant(mac, leases.speakable(mac, now));
                    }
                    leases.heard(now, std::mem::take(&mut world.lost));
                }
                Step::Release(n, address, again) => {
                    if world.told.get(&machine(n)).is_some_and(|(a, _)| *a == ip(address)) {
                        let changes = leases.release(machine(n), ip(address), now);
                        world.told.remove(&machine(n));
                        if let Some((address, until)) = world.kernel.remove(&machine(n))
                            && let Some(hears) = again
                            && until >= now + HOUR
                        {
                            world.promised(machine(n), address, now)?;
                            world.told.insert(machine(n), (address, now + HOUR));
                            // No event is read between the release and the kernel's answer after it.
                            world.tell(machine(n), address, if hears == Hears::AtOnce { Hears::Later } else { hears });
                        }
                        world.store(changes);
                    }
                }
                Step::Decline(n, address) => {
                    let changes = leases.decline(machine(n), ip(address), now);
                    if !changes.is_empty() {
                        world.told.remove(&machine(n));
                        world.kernel.remove(&machine(n));
                        world.resting.insert(ip(address), now + QUARANTINE);
                        world.store(changes);
                    }
                }
                Step::Withdraw(n) => leases.withdraw(machine(n), now),
                Step::Wait(seconds) => now += Duration::from_secs(seconds),
                Step::Restart => {
                    let stored = world.disk.values().map(|l| Lease { expires: l.durable_until, ..l.clone() });
                    leases = Leases::new(pool(106), stored);
                    leases.heard(Timestamp::MIN, false);
                    // The next daemon's first commands, and the ring that it finds.
                    for n in 0..10 {
                        world.grant(machine(n), leases.speakable(machine(n), now));
                    }
                }
                Step::Failed => disk_fails = true,
            }
            // As `Command::Standing` has it, after the commit.
            if let Some(mac) = of {
                world.grant(mac, leases.speakable(mac, now));
            }
        }
    }

    #[test]
    fn a_pool_is_used_to_its_last_address(last in 100u8..=120, machines in 10u8..60) {
        let mut leases = leases(last);
        let free = (100..=last).filter(|a| *a != 101 && *a != 102).count();
        let given: Vec<_> = (10..10 + machines).map(|n| offer(&mut leases, n, start())).collect();
        let ok: BTreeSet<_> = given.iter().flatten().collect();
        prop_assert_eq!(ok.len(), free.min(machines as usize));
        prop_assert_eq!(given.iter().filter(|g| g.is_err()).count(), machines as usize - ok.len());
    }
}
