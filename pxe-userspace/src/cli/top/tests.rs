use jiff::{SignedDuration, Timestamp};
use pxe_common::Mac;
use pxe_contract::stage::Stage;

use super::site::{Site, Totals};
use super::*;
use crate::api::documents::{BridgeStatus, PortStatus, Status, Tier};
use crate::api::tests::Daemon;
use crate::cli::tests::run;
use crate::machines::diagnosis::{Cause, Kind, Why};
use crate::machines::{Fetching, Machine};

fn site() -> Site {
    let began = Timestamp::UNIX_EPOCH;
    let machine = |n: u8, stage| {
        let mac = Mac([2, 0, 0, 0, 0, n]);
        Machine { name: Some(format!("n{n}")), stage: Some(stage), ..Machine::new(mac) }
    };
    let mut machines: Vec<_> = (1..=6).map(|n| machine(n, Stage::Workload)).collect();
    machines.extend((7..=9).map(|n| machine(n, Stage::Kernel)));
    machines[7].fetching = Some(Fetching { path: "boot/aa/kernel".into(), percent: 50 });
    machines.push(machine(10, Stage::Failed));
    let why = |machine: &Machine, failed, cause: Option<(Kind, &str)>| Why {
        node: machine.name.clone(),
        mac: machine.mac,
        began,
        last: began,
        stage: Some(Stage::Kernel),
        failed,
        done: false,
        causes: cause
            .map(|(kind, words)| Cause { kind, words: words.into(), evidence: vec![], remedy: "x".into() })
            .into_iter()
            .collect(),
        before: None,
    };
    let boots = vec![
        why(&machines[6], false, Some((Kind::Slow, "slow: kernel took 20 s"))),
        why(&machines[7], false, None),
        why(&machines[9], true, Some((Kind::SecureBoot, "UEFI did not run it"))),
    ];
    let status = Status {
        version: "1".into(),
        started: began,
        bridge: BridgeStatus {
            name: "pxe0".into(),
            address: "10.77.0.1/24".parse().unwrap(),
            mac: Mac([2; 6]),
        },
        pool: None,
        boots: None,
        pacing: Default::default(),
        ports: vec![PortStatus { name: "eth1".into(), tier: Tier::Xdp, reason: None }],
        fast_path: None,
        alerts: vec!["another DHCP server answers".into()],
        counters: [("kernel.xdp.reply-bytes".to_owned(), 3 << 20), ("http.sent-bytes".to_owned(), 1 << 10)]
            .into(),
    };
    Site::new(began + SignedDuration::from_secs(12), status, machines, boots)
}

#[test]
fn a_screen_has_stages_rates_boots_and_causes() {
    let site = site();
    let before = Totals([f64::from(1 << 20), 0.0, 0.0, 0.0]);
    let text = frame::text(&site, &site.sent.since(&before, 2.0), "there:1", SCREEN);
    let line =
        |words: &str| text.lines().find(|l| l.contains(words)).unwrap_or_else(|| panic!("{words}:\n{text}"));
    assert!(text.starts_with("bridgehead at there:1, 00:00:12Z: 10 machines, 2 booting    q ends"), "{text}");
    line("ALERT: another DHCP server");
    let bar = |stage| line(stage).chars().filter(|c| *c == '█').count();
    assert!(
        bar("│workload ") > bar("│kernel ") && bar("│kernel ") > bar("│failed ") && bar("│failed ") > 0,
        "{text}"
    );
    assert_eq!(bar("│stage1 "), 0);
    assert!(line("│xdp").contains("1.0 MiB/s") && line("│xdp").contains("3.0 MiB"), "{text}");
    assert!(line("│http").contains("512 B/s"), "{text}");
    line("│eth1: xdp");
    assert!(line("│n7 ").contains("kernel      12.0 s  slow: kernel took 20 s"), "{text}");
    assert!(line("│n8 ").contains("50 % of boot/aa/kernel"), "{text}");
    assert!(line("secure-boot").contains("   1 secure-boot        n10: UEFI did not run it"), "{text}");
}

#[test]
fn a_screen_of_any_size_is_drawn() {
    let site = site();
    for width in [1, 7, 20, 80, 300] {
        for height in [1, 3, 10, 24, 100] {
            let text = frame::text(&site, &site.sent, "there:1", (width, height));
            assert!(text.lines().count() <= usize::from(height));
        }
    }
    let text = rendered(SCREEN, |f| frame::draw(f, &site, &site.sent, "there:1", Some("no daemon answers")));
    assert!(text.starts_with("no news: no daemon answers"), "{text}");
}

#[test]
fn a_daemon_that_began_anew_has_no_negative_rates() {
    let (more, less) = (Totals([9.0, 8.0, 7.0, 6.0]), Totals([1.0, 10.0, 7.0, 8.0]));
    assert_eq!(less.since(&more, 2.0), Totals([0.0, 1.0, 0.0, 1.0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn once_prints_a_screen() {
    let daemon = Daemon::start().await;
    let text = run(&daemon.api.display().to_string(), "top --once --interval 0.1").await.unwrap();
    assert!(text.contains("machines by stage") && text.contains("│daemon"), "{text}");
    let error = run("127.0.0.1:1", "top --once").await.unwrap_err().to_string();
    assert!(error.contains("no daemon answers"), "{error}");
}
