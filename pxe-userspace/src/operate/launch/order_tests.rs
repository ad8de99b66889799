use std::path::Path;

use super::super::LaunchError;
use super::*;
use crate::config;

const CONFIG: &str = r#"
    network = { bridge = "pxe0", address = "10.77.0.1/16" }
    dhcp = { range = ["10.77.0.100", "10.77.0.199"], unknown = "ignore" }
    [files]
    root = "/srv"
    [[profile]]
    name = "web"
    image = "a"
    [[profile]]
    name = "hand"
    kernel = "vmlinuz"
    [[node]]
    name = "n1"
    mac = "52:54:00:77:00:01"
    profile = "web"
    [[node]]
    name = "n2"
    mac = "52:54:00:77:00:02"
    profile = "hand"
    [[node]]
    name = "n3"
    mac = "52:54:00:77:00:03"
"#;

fn config() -> Config {
    config::parse(CONFIG, Path::new("/c.toml")).unwrap_or_else(|p| panic!("{p:?}"))
}

const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

fn mac(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0x77, 0, last])
}

fn order(select: &str) -> Order {
    Order { select: select.into(), image: Some("a:2".into()), ..Order::default() }
}

fn ready() -> Ready {
    let pinned =
        PinnedImage { reference: "a:2".into(), name: "a@sha256:1".into(), digest: "sha256:2".into() };
    Ready { pinned, has_health_check: false }
}

fn by_hand(_: Mac) -> Known {
    Known { reach: Reach::None, up_since: None, held: false }
}

#[test]
fn what_can_not_be_is_refused_in_words() {
    let config = config();
    let profile = |select: &str, profile: &str| Order {
        select: select.into(),
        profile: Some(profile.into()),
        ..Order::default()
    };
    for (order, words) in [
        (order("n9"), "no machine is meant by `n9`"),
        (order("label=gpu"), "no machine is meant by `label=gpu`"),
        (order(""), "no machine is named"),
        (
            Order { profile: Some("web".into()), ..order("n1") },
            "of a profile or of an image, and of one of them",
        ),
        (Order { image: None, ..order("n1") }, "of a profile or of an image, and of one of them"),
        (profile("n1", "wbe"), "no profile is called `wbe`; there is web, hand"),
        (profile("n1", "hand"), "--healthy URL tells"),
        (order("n2"), "n2 boots a kernel by hand (profile hand)"),
        (order("n3"), "n3 has no profile"),
        (order("all"), "n2 boots a kernel by hand"),
        (Order { tries: Some(0), ..order("n1") }, "tries is 0; write 1 to 10"),
        (Order { canary: Some(2), ..order("n1") }, "canary is 2; write 0 to 1"),
        (Order { at_a_time: Some(0), ..order("n1") }, "at-a-time is 0"),
        (Order { deadline: Some(u64::MAX), ..order("n1") }, "deadline is 18446744073709551615"),
        (Order { patience: Some(0), ..order("n1") }, "patience is 0"),
        (
            Order { healthy: Some("http://example.org/".into()), ..order("n1") },
            "only the machine itself is asked",
        ),
    ] {
        let error = order.understand(&config, NOW).unwrap_err().to_string();
        assert!(error.contains(words), "{order:?}: {error}");
    }
}

#[test]
fn a_body_is_taken_as_it_is_written_and_nothing_else() {
    let order: Order = serde_json::from_str(
        r#"{"select": "all", "image": "a", "at-a-time": 3, "max-failed": "5%", "canary": 1, "deadline": 3600}"#,
    )
    .unwrap();
    assert_eq!((order.max_failed, order.at_a_time), (Some(Limit::Percent(5)), Some(3)));
    assert_eq!(serde_json::from_str::<Limit>("7").unwrap(), Limit::Machines(7));
    for wrong in [r#"{"select": "all", "at-time": 3}"#, r#"{"select": "all", "max-failed": "101%"}"#, "{}"] {
        assert!(serde_json::from_str::<Order>(wrong).is_err(), "{wrong}");
    }
    assert_eq!((Limit::Percent(5).of(300), Limit::Percent(5).of(19), Limit::Machines(2).of(1)), (15, 0, 2));
}

#[test]
fn machines_without_power_and_those_that_run_it_are_told_before() {
    let config = config();
    let order = Order { profile: Some("web".into()), image: None, ..order("n1,n3") };
    let understood = order.understand(&config, NOW).unwrap();
    assert_eq!((understood.image.as_deref(), understood.what().as_str()), (Some("a"), "profile web"));
    let planned = understood.clone().plan(Some(&ready()), by_hand, "root", 7, NOW);
    assert_eq!(planned.notes.len(), 1);
    assert!(
        planned.notes[0].contains("by hand: n1 n3; the launch waits for their DISCOVER"),
        "{:?}",
        planned.notes
    );
    let (launch, members) = planned.launch(4, NOW);
    assert_eq!((launch.id, launch.seen, launch.terms.tries), (4, 7, TRIES));
    let pin = members[1].target.clone().unwrap();
    assert_eq!((pin.profile.as_deref(), pin.launch), (Some("web"), 4));
    assert_eq!(members[1].before, None);

    let pins = [(mac(3), pin.clone())].into();
    let config = config.with_launched(&pins);
    assert_eq!(config.profile_of(mac(3)).unwrap().name, "web");
    assert_eq!(config.image_of(mac(3), config.profile_of(mac(3)).unwrap()), Some("a@sha256:1"));
    let later = NOW.checked_add(Duration::from_secs(1)).unwrap();
    let known = |since| move |_| Known { reach: Reach::Full, up_since: Some(since), held: false };
    let understood = order.understand(&config, NOW).unwrap();
    let planned = understood.clone().plan(Some(&ready()), known(later), "root", 7, NOW);
    assert!(planned.members[1].runs && !planned.members[0].runs, "{planned:?}");
    assert_eq!(planned.notes, ["run it already, and go on: n3"]);
    let planned = understood.plan(Some(&ready()), known(NOW), "root", 7, NOW);
    assert!(!planned.members[1].runs, "it came up before the pin");
    // An image alone leaves the profile of the launch before.
    let order = Order { image: Some("a:3".into()), profile: None, ..order };
    let planned = order.understand(&config.with_launched(&[(mac(3), pin)].into()), NOW);
    let error = planned.unwrap().plan(Some(&ready()), by_hand, "root", 7, NOW).members[1].target.clone();
    assert_eq!(error.unwrap().profile.as_deref(), Some("web"));
}

#[test]
fn errors_name_a_few_machines() {
    let many: Vec<(String, u64)> = (1..=9).map(|n| (format!("n{n}"), 3)).collect();
    let words = LaunchError::Taken(many).to_string();
    assert!(
        words.starts_with("n1 is in launch 3, which goes on, n2") && words.ends_with("and 4 more"),
        "{words}"
    );
}
