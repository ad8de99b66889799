//! The commands against a daemon of the API's tests.

use clap::{CommandFactory as _, Parser as _};

use super::*;
use crate::api::tests::Daemon;
use crate::machines::timeline::{Happened, Stage, Who};

pub(crate) async fn run(api: &str, words: &str) -> Result<String, AskError> {
    let words = format!("bridgehead {words} --api {api}");
    let cli = Cli::try_parse_from(words.split_whitespace()).unwrap();
    let Command::Ask(what) = cli.command else { panic!("{words} asks nothing") };
    tokio::task::spawn_blocking(move || {
        let mut out = Vec::new();
        ask(what, &mut out).map(|()| String::from_utf8(out).unwrap())
    })
    .await
    .unwrap()
}

#[test]
fn the_tree_is_sound() {
    Cli::command().debug_assert();
}

/// Firmware tries its next way: that the last one failed is still what is known.
#[test]
fn why_does_not_forget_while_firmware_tries_its_next_way() {
    use crate::machines::diagnosis::{Cause, Kind, Past};
    use jiff::Timestamp;
    let cause = Cause {
        kind: Kind::SecureBoot,
        words: "UEFI fetched the loader".into(),
        evidence: Vec::new(),
        remedy: "switch it off".into(),
    };
    let now = Timestamp::UNIX_EPOCH;
    let before = Past { began: now, ended: now, stage: Some(Stage::Loader), causes: vec![cause] };
    let mut why = Why {
        node: Some("n1".into()),
        mac: pxe_common::Mac([2; 6]),
        began: now,
        last: now,
        stage: Some(Stage::Offer),
        failed: false,
        done: false,
        causes: Vec::new(),
        before: Some(before),
    };
    let said = show::all_why(std::slice::from_ref(&why), &[]);
    assert!(
        said.contains("secure-boot: UEFI fetched") && !said.contains("nothing is wrong, as far"),
        "{said}"
    );
    assert!(!show::why(&why).contains("nothing is wrong, as far"));
    // It came up in the end.
    (why.done, why.stage) = (true, Some(Stage::Workload));
    assert!(show::all_why(std::slice::from_ref(&why), &[]).starts_with("nothing is wrong with any"));
    let said = show::all_why(&[], &["machines behind 10.88.0.1 ask".into()]);
    assert!(said.ends_with("\nALERT: machines behind 10.88.0.1 ask\n"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_for_people_and_for_scripts() {
    let daemon = Daemon::start().await;
    let api = daemon.api.display().to_string();
    let status = run(&api, "status").await.unwrap();
    assert!(status.contains("bridge pxe0 10.77.0.1/24 52:54:00:77:00:01"), "{status}");
    assert!(status.contains("eth1  tc         no \"XDP\""), "{status}");
    let nodes = run(&format!("unix://{api}"), "nodes 52:54:00:77:00:01").await.unwrap();
    assert!(
        nodes.lines().nth(1).is_some_and(|l| l.starts_with("-     52:54:00:77:00:01  127.0.0.1")),
        "{nodes}"
    );
    for command in ["status", "nodes", "files", "images", "profiles", "workloads", "reload", "image gc"] {
        let json = run(&api, &format!("{command} --json")).await.unwrap();
        serde_json::from_str::<serde_json::Value>(&json).unwrap_or_else(|e| panic!("{command}: {e}: {json}"));
        assert!(!run(&api, command).await.unwrap().is_empty(), "{command}");
    }

    daemon.timeline.record(Happened::new(Who::Mac("52:54:00:77:00:01".parse().unwrap()), Stage::Discover));
    let events = run(&api, "events").await.unwrap();
    assert!(events.ends_with("  52:54:00:77:00:01  discover  daemon\n"), "{events}");
    let json = run(&api, "events --json --node 52:54:00:77:00:01").await.unwrap();
    assert_eq!(serde_json::from_str::<Event>(&json).unwrap().id, 1);

    let added = run(&api, "image add hello:1").await.unwrap();
    assert!(added.starts_with("exporting (5 B)\nIMAGE"), "{added}");
    assert_eq!(run(&api, "image rm reg.example/a/b:1").await.unwrap(), "removed reg.example/a/b:1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_say_what_to_do() {
    let daemon = Daemon::start().await;
    let api = daemon.api.display().to_string();
    for (command, words) in [
        ("leases", "the database is busy; try again"),
        ("nodes n9", "no machine is called `n9`"),
        ("events --node other", "no machine is called `other`"),
        ("image add missing", "no such image; docker image ls"),
    ] {
        let error = run(&api, command).await.unwrap_err().to_string();
        assert!(error.contains(words), "{command}: {error}");
    }
    drop(daemon);
    // Port 1 of the loopback: nothing listens there.
    let error = run("127.0.0.1:1", "status").await.unwrap_err().to_string();
    assert!(error.starts_with("no daemon answers at 127.0.0.1:1 "), "{error}");
    assert!(error.contains("is `bridgehead serve` running?"), "{error}");
}
