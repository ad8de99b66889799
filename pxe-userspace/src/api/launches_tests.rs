//! Launches through the API, of machines that somebody switches on by hand.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use pxe_common::Mac;
use pxe_common::dhcp::Firmware;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::documents::{Asked, Progress};
use super::tests::{Daemon, curl};
use super::{Failure, LaunchOrder};
use crate::api::{launch_failure, launch_refused};
use crate::cli::tests::run;
use crate::config::Config;
use crate::config::nodes::PinnedImage;
use crate::machines::Machines;
use crate::machines::timeline::{Event, Follower, Happened, Stage, Timeline, Who};
use crate::operate::launch::engine::Places;
use crate::operate::launch::healthy::HealthUrl;
use crate::operate::launch::model::{Judged, Reach};
use crate::operate::launch::order::{self, Known, Ready};
use crate::operate::launch::{Launches, Site, SiteError, drive};
use crate::store::Store;

/// The machine of the configuration's file.
const FILED: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 0xf1]);

struct Told(Launches);

impl Follower for Told {
    fn began(&self, _: Mac, _: Option<std::net::Ipv4Addr>) {}
    fn reached(&self, _: Mac, _: Stage, _: Option<&str>) {}
    fn happened(&self, event: &Event) {
        self.0.happened(event);
    }
}

/// Machines without power, which are well when their workload is up.
struct ByHand;

impl Site for ByHand {
    fn is_on(&self, _: Mac) -> BoxFuture<'_, Result<Option<bool>, SiteError>> {
        unreachable!("they have no power")
    }
    fn switch(&self, _: Mac, _: bool) -> BoxFuture<'_, Result<(), SiteError>> {
        unreachable!("they have no power")
    }
    fn boot_again(&self, _: Mac) {}
    fn places(&self) -> Places {
        Places::default()
    }
    fn pinned(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
    fn check(&self, _: Mac, _: HealthUrl) -> BoxFuture<'_, Result<(), SiteError>> {
        async { Ok(()) }.boxed()
    }
}

pub(super) fn launches(
    store: &Store,
    timeline: &Timeline,
    _machines: &Machines,
    stop: &CancellationToken,
) -> Launches {
    let (launches, driven) = Launches::open(store.clone(), Timestamp::now()).unwrap();
    timeline.call(Told(launches.clone()));
    tokio::spawn(drive(driven, Arc::new(ByHand), timeline.clone(), stop.clone()));
    launches
}

pub(super) async fn launch(
    config: Config,
    launches: Launches,
    order: LaunchOrder,
    dry: bool,
    by: String,
    progress: mpsc::Sender<Progress>,
) -> Result<Asked, Failure> {
    let now = Timestamp::now();
    let understood = order.understand(&config, now).map_err(|error| launch_refused(&error))?;
    launches.free(understood.machines()).map_err(launch_failure)?;
    let _ = progress.send(Progress { step: "layer 1 of 1".into(), bytes: None }).await;
    let reference = understood.image.clone().unwrap();
    let pinned = PinnedImage { name: format!("{reference}@sha256:1"), reference, digest: "sha256:2".into() };
    let ready = Ready { pinned, has_health_check: false };
    let known = |_| Known { reach: Reach::None, up_since: None, held: false };
    let planned = understood.plan(Some(&ready), known, &by, 0, now);
    let notes = planned.notes.clone();
    let launch = match dry {
        true => planned.dry(),
        false => launches.begin(planned, now).await.map_err(launch_failure)?,
    };
    Ok(Asked { dry_run: dry, notes, launch })
}

pub(super) async fn undo(launches: Launches, id: u64, by: String) -> Result<Asked, Failure> {
    let (of, members) = launches.undone(id).map_err(launch_failure)?;
    let now = Timestamp::now();
    let planned = order::undo(&of, members, |_| Judged::Url, |_| Reach::None, &by, 0, now);
    let notes = planned.notes.clone();
    let launch = launches.begin(planned, now).await.map_err(launch_failure)?;
    Ok(Asked { dry_run: false, notes, launch })
}

fn boots(daemon: &Daemon, mac: Mac) {
    let who = Who::Mac(mac);
    daemon.timeline.record(Happened::new(who, Stage::Discover).firmware(Firmware::Bios));
    daemon.timeline.record(Happened::new(who, Stage::Workload));
}

const HEALTHY: &str = "--healthy http://{address}/";

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_launches_waits_and_undoes() {
    let daemon = Daemon::start().await;
    let api = daemon.api.display().to_string();
    let dry = run(&api, &format!("launch all --image hello {HEALTHY} --dry-run")).await.unwrap();
    assert!(dry.contains("by hand: filed; the launch waits for their DISCOVER"), "{dry}");
    assert!(dry.contains("nothing was done") && dry.contains("hello@sha256:1"), "{dry}");
    assert_eq!(run(&api, "launches").await.unwrap(), "nothing was launched\n");

    let waiting = {
        let api = api.clone();
        tokio::spawn(async move { run(&api, &format!("launch filed --image hello {HEALTHY} --wait")).await })
    };
    let mut stored = daemon.launches.watch();
    stored.wait_for(|id| *id > 0).await.unwrap();
    boots(&daemon, FILED);
    let told = waiting.await.unwrap().unwrap();
    assert!(told.starts_with("layer 1 of 1\nnote: "), "{told}");
    assert!(
        told.contains("filed         booting at workload") && told.contains("filed         healthy"),
        "{told}"
    );
    assert!(told.ends_with("launch 1: all 1 machines are healthy\n"), "{told}");
    let shown = run(&api, "launch show 1").await.unwrap();
    assert!(shown.contains("image hello") && shown.contains("filed  healthy"), "{shown}");

    let undone = run(&api, "launch undo 1").await.unwrap();
    assert!(undone.contains("launch 2 goes on"), "{undone}");
    let refused = run(&api, &format!("launch filed --image hello {HEALTHY}")).await.unwrap_err().to_string();
    assert!(
        refused.contains("filed is in launch 2, which goes on; a machine is in one launch at a time"),
        "{refused}"
    );
    let begun = |launches: &Launches| launches.get(2).unwrap().machines[0].tries == 1;
    while !begun(&daemon.launches) {
        stored.changed().await.unwrap();
    }
    run(&api, "launch cancel 2").await.unwrap();
    let ended = run(&api, "launch show 2 --wait").await.unwrap_err().to_string();
    assert!(
        ended.contains("launch 2: cancelled by root: 0 of 1 machines are healthy, 1 set aside"),
        "{ended}"
    );
    for (command, words) in [
        ("launch n9 --image hello", "no machine is meant by `n9`"),
        ("launch filed --profile wbe", "no profile is called `wbe`; there is web, db"),
        ("launch filed --image hello --healthy http://example.org/", "only the machine itself is asked"),
        ("launch show 9", "there is no launch 9; `bridgehead launches` lists them"),
        ("launch cancel 1", "launch 1 is over"),
        ("launch undo 1", "filed was unpinned since; undo that one first"),
    ] {
        let error = run(&api, command).await.unwrap_err().to_string();
        assert!(error.contains(words), "{command}: {error}");
    }
    let audit = run(&api, "audit --json").await.unwrap();
    let what: Vec<Value> =
        audit.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["what"].clone()).collect();
    assert_eq!(what, [json!("launch"), json!("launch.undo"), json!("launch.cancel")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_launches_and_follows() {
    let daemon = Daemon::start().await;
    let body =
        r#"{"select": "filed", "image": "hello", "healthy": "http://{address}/", "max-failed": "50%"}"#;
    let answer = curl(daemon.api, "/api/launches?dry-run=true", &["--json", body]).await;
    let asked: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status, &asked["dry-run"], &asked["id"]), (200, &json!(true), &json!(0)));
    let answer = curl(daemon.api, "/api/launches", &["--json", body]).await;
    let asked: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status, &asked["id"], &asked["max-failed"]), (200, &json!(1), &json!("50%")));
    assert_eq!(asked["machines"][0]["target"]["image"]["name"], "hello@sha256:1");
    boots(&daemon, FILED);
    let mut stored = daemon.launches.watch();
    let over = |launches: &Launches| launches.get(1).unwrap().launch.verdict.is_some();
    while !over(&daemon.launches) {
        stored.changed().await.unwrap();
    }
    let answer = curl(daemon.api, "/api/launch-events?launch=1", &[]).await;
    let lines = String::from_utf8(answer.body).unwrap();
    let events: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.first().unwrap()["machine"]["state"], "booting");
    let states: Vec<&str> = events.iter().filter_map(|event| event["machine"]["stage"].as_str()).collect();
    assert_eq!(states.first(), Some(&"discover"));
    for (path, status) in
        [("/api/launches/x", 400), ("/api/launches/7", 404), ("/api/launch-events?launch=x", 400)]
    {
        assert_eq!(curl(daemon.api, path, &[]).await.status, status, "{path}");
    }
    for body in ["{}", "[]", r#"{"select": "all", "image": "a", "max-failed": -1}"#] {
        assert_eq!(curl(daemon.api, "/api/launches", &["--json", body]).await.status, 400, "{body}");
    }
}
