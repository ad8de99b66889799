use super::*;

const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
const B: Mac = Mac([2, 0, 0, 0, 0, 2]);

#[test]
fn an_address_belongs_to_one_machine() {
    let machines = Machines::default();
    let address = Ipv4Addr::new(10, 77, 0, 100);
    machines.bound(A, address);
    machines.bound(B, address);
    assert_eq!(machines.by_address(address).map(|m| m.mac), Some(B));
    assert_eq!(machines.get(A).and_then(|m| m.address), None);
    machines.released(B);
    assert_eq!(machines.by_address(address), None);
}

#[test]
fn who_watches_learns_which_machines_changed() {
    let machines = Machines::default();
    machines.bound(A, Ipv4Addr::new(10, 77, 0, 100));
    assert_eq!(machines.touched(), HashSet::new(), "nobody watched");
    machines.waits(A, 3);
    // B gets what was A's.
    machines.bound(B, Ipv4Addr::new(10, 77, 0, 100));
    assert_eq!(machines.touched(), HashSet::from([A, B]));
    machines.forget_touched();
    machines.waits(A, 2);
    assert_eq!(machines.touched(), HashSet::new());
}

#[test]
fn made_up_machines_are_forgotten_and_real_ones_are_not() {
    let machines = Machines::default();
    machines.bound(A, Ipv4Addr::new(10, 77, 0, 100));
    {
        let mut register = machines.write();
        register.machine(B).name = Some("n1".into());
        register.order = register.by_mac.values().map(Place::of).collect();
    }
    let made_up = |n: u32| {
        let [_, b, c, d] = n.to_be_bytes();
        Mac([6, 0, 0, b, c, d])
    };
    let seen = |n: u32| Timestamp::from_second(n.into()).unwrap();
    for n in 0..3 * MACHINES_MAX as u32 {
        machines.reached(made_up(n), Stage::Discover, seen(n), None);
    }
    assert!(machines.all().len() <= MACHINES_MAX);
    assert!(machines.get(A).is_some() && machines.get(B).is_some());
    let last = 3 * MACHINES_MAX as u32 - 1;
    assert!(machines.get(made_up(last)).is_some() && machines.get(made_up(0)).is_none());
    assert_eq!(machines.all().len(), machines.read().by_mac.len(), "the order has those that there are");
}

/// Ten thousand, a page at a time: each once, in order, and no more of them are looked at than a page has.
#[test]
fn pages_are_all_machines_once_and_copy_no_others() {
    let machines = Machines::default();
    {
        let mut register = machines.write();
        for n in 0..10_000u32 {
            let [_, b, c, d] = n.to_be_bytes();
            let name = (n < 7_000).then(|| format!("n{n}"));
            let mac = Mac([2, 0, 0, b, c, d]);
            register.by_mac.insert(mac, Machine { name, ..Machine::new(mac) });
        }
        register.order = register.by_mac.values().map(Place::of).collect();
    }
    let all = machines.all();
    assert!(all.is_sorted_by_key(|m| (m.name.is_none(), m.name.clone(), m.mac)));
    let (mut after, mut paged) = (None, Vec::new());
    loop {
        let looked = std::cell::Cell::new(0);
        let wanted = |_: &Machine| {
            looked.set(looked.get() + 1);
            true
        };
        let (page, next) = machines.page(after.as_ref(), 100, wanted);
        assert!(page.len() == 100 && looked.get() <= 101, "{} of {}", looked.get(), page.len());
        paged.extend(page);
        let Some(next) = next else { break };
        // As it goes over the wire.
        after = Some(next.to_string().parse::<Place>().unwrap());
        assert_eq!(after, Some(next));
    }
    assert_eq!(paged, all);
    assert_eq!(machines.by_name("n42").and_then(|m| m.name).as_deref(), Some("n42"));
    assert_eq!(machines.by_name("n7000"), None);
    for text in ["", "0", "xyz000000000", "00000000000é"] {
        assert_eq!(text.parse::<Place>(), Err(()), "{text}");
    }
}
