//! Launches with their store, their driver, and machines whose power is a flag.

use std::collections::HashMap as Map;
use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::engine::Places;
use super::healthy::HealthUrl;
use super::model::{Changed, Outcome, Phase, Reach, State};
use super::order::{Known, Order, Ready};
use super::*;
use crate::config::nodes::PinnedImage;
use crate::config::{self, Config};
use crate::machines::Machines;
use crate::machines::timeline::{Follower, Happened, Stage, Timeline, Who};

const CONFIG: &str = r#"
    network = { bridge = "pxe0", address = "10.77.0.1/16" }
    dhcp = { range = ["10.77.0.100", "10.77.0.199"] }
    default = { profile = "web" }
    [[profile]]
    name = "web"
    image = "a"
    [[node]]
    name = "n1"
    mac = "02:00:00:00:00:01"
    [[node]]
    name = "n2"
    mac = "02:00:00:00:00:02"
"#;

fn config() -> Config {
    config::parse(CONFIG, Path::new("/c.toml")).unwrap_or_else(|p| panic!("{p:?}"))
}

fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

/// BMCs, and what they were told.
#[derive(Clone, Default)]
struct Rack(Arc<Mutex<Bmcs>>);

#[derive(Default)]
struct Bmcs {
    on: Map<Mac, bool>,
    switched: Vec<(Mac, bool)>,
    pinned: usize,
    /// Actions are performed, and nobody hears of it.
    deaf: bool,
}

impl Site for Rack {
    fn is_on(&self, mac: Mac) -> BoxFuture<'_, Result<Option<bool>, SiteError>> {
        let on = self.0.lock().unwrap().on.get(&mac).copied().unwrap_or(false);
        async move { Ok(Some(on)) }.boxed()
    }
    fn switch(&self, mac: Mac, on: bool) -> BoxFuture<'_, Result<(), SiteError>> {
        let mut bmcs = self.0.lock().unwrap();
        bmcs.on.insert(mac, on);
        bmcs.switched.push((mac, on));
        if bmcs.deaf { std::future::pending().boxed() } else { async { Ok(()) }.boxed() }
    }
    fn boot_again(&self, _: Mac) {}
    fn places(&self) -> Places {
        Places::default()
    }
    fn pinned(&self) -> BoxFuture<'_, ()> {
        self.0.lock().unwrap().pinned += 1;
        async {}.boxed()
    }
    fn check(&self, _: Mac, url: HealthUrl) -> BoxFuture<'_, Result<(), SiteError>> {
        assert_eq!(url.to_string(), "http://{address}:80/");
        async { Ok(()) }.boxed()
    }
}

struct Told(Launches);

impl Follower for Told {
    fn began(&self, _: Mac, _: Option<std::net::Ipv4Addr>) {}
    fn reached(&self, _: Mac, _: Stage, _: Option<&str>) {}
    fn happened(&self, event: &Event) {
        self.0.happened(event);
    }
}

/// A daemon as far as launches go. Dropping it is a `kill -9`: nothing is flushed or answered.
struct Daemon {
    launches: Launches,
    timeline: Timeline,
    stop: CancellationToken,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Daemon {
    fn start(dir: &Path, rack: &Rack) -> Self {
        let store = Store::open(&dir.join("db")).unwrap();
        let timeline = Timeline::open(store.clone(), Machines::new(&config())).unwrap();
        let (launches, driven) = Launches::open(store, Timestamp::now()).unwrap();
        timeline.call(Told(launches.clone()));
        let stop = CancellationToken::new();
        tokio::spawn(drive(driven, Arc::new(rack.clone()), timeline.clone(), stop.clone()));
        Self { launches, timeline, stop }
    }

    async fn begin(&self, select: &str) -> Result<Whole, LaunchError> {
        let order = Order {
            select: select.into(),
            image: Some("a:2".into()),
            healthy: Some("http://{address}/".into()),
            ..Order::default()
        };
        let pinned =
            PinnedImage { reference: "a:2".into(), name: "a@sha256:1".into(), digest: "sha256:2".into() };
        let ready = Ready { pinned, has_health_check: false };
        let config = config().with_launched(&self.launches.pins());
        let now = Timestamp::now();
        let (seen, _) = self.timeline.follow();
        let known = |_| Known { reach: Reach::Full, up_since: None, held: false };
        let planned = order.understand(&config, now).unwrap().plan(Some(&ready), known, "root", seen, now);
        self.launches.begin(planned, now).await
    }

    fn boots(&self, n: u8) {
        let who = Who::Mac(mac(n));
        let firmware = pxe_common::dhcp::Firmware::Bios;
        self.timeline.record(Happened::new(who, Stage::Discover).firmware(firmware));
        self.timeline.record(Happened::new(who, Stage::Kernel));
        self.timeline.record(Happened::new(who, Stage::Workload));
    }

    /// Waits for a change that is wanted.
    async fn until(&self, id: u64, wanted: impl Fn(&Whole) -> bool) -> Whole {
        let mut stored = self.launches.watch();
        let waiting = async {
            loop {
                stored.mark_unchanged();
                let whole = self.launches.get(id).unwrap();
                if wanted(&whole) {
                    return whole;
                }
                stored.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("it happens")
    }
}

fn is_at(whole: &Whole, n: usize, state: State) -> bool {
    whole.machines[n - 1].state == state
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_are_switched_on_pinned_and_watched_and_undone() {
    let (dir, rack) = (tempfile::tempdir().unwrap(), Rack::default());
    let daemon = Daemon::start(dir.path(), &rack);
    let id = daemon.begin("all").await.unwrap().launch.id;
    let error = daemon.begin("n2").await.unwrap_err().to_string();
    assert_eq!(error, "n2 is in launch 1, which goes on");
    daemon.until(id, |whole| (1..=2).all(|n| is_at(whole, n, State::Booting))).await;
    assert_eq!(rack.0.lock().unwrap().pinned, 1, "all at once");
    assert!(matches!(daemon.launches.undone(id), Err(LaunchError::GoesOn(1))));
    daemon.boots(1);
    daemon.until(id, |whole| is_at(whole, 1, State::Healthy)).await;
    // One that is through may be launched again.
    let second = daemon.begin("n1").await.unwrap().launch.id;
    daemon.launches.cancel(second, "root").unwrap();
    daemon.until(second, |whole| whole.launch.phase == Phase::Ended).await;
    daemon.boots(2);
    let whole = daemon.until(id, |whole| whole.launch.phase == Phase::Ended).await;
    assert_eq!(whole.launch.verdict.unwrap().outcome, Outcome::Healthy);
    assert_eq!(daemon.launches.pins()[&mac(2)].image.as_ref().unwrap().name, "a@sha256:1");
    assert_eq!(daemon.launches.images().unwrap(), ["a@sha256:1"]);
    let ids: Vec<u64> = daemon.launches.all().iter().map(|launch| launch.id).collect();
    assert_eq!(ids, [2, 1]);

    // A launch is over a moment before that is on disk, and told.
    let ends = |event: &&LaunchEvent| matches!(&event.change, Changed::Phase { phase: Phase::Ended, .. });
    let mut stored = daemon.launches.watch();
    loop {
        stored.mark_unchanged();
        let events = daemon.launches.since(0, 1000).unwrap();
        assert!(events.is_sorted_by_key(|event| event.id));
        if events.iter().filter(ends).count() == 2 {
            break;
        }
        stored.changed().await.unwrap();
    }

    match daemon.launches.undone(id) {
        Ok((_, members)) => {
            // The second launch was cancelled before it changed anything, or pinned the machine anew.
            assert!(members.iter().all(|member| member.target.is_none()));
        }
        Err(error) => assert_eq!(error.to_string(), "n1 was launched since, by launch 2"),
    }
    assert!(matches!(daemon.launches.undone(9), Err(LaunchError::NoLaunch(9))));
    assert!(matches!(daemon.launches.cancel(id, "root"), Err(LaunchError::Over(1))));
}

/// Killed after a machine was switched on, and before anybody knew: it is not switched again.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_does_nothing_twice_and_forgets_nothing() {
    let (dir, rack) = (tempfile::tempdir().unwrap(), Rack::default());
    rack.0.lock().unwrap().deaf = true;
    let daemon = Daemon::start(dir.path(), &rack);
    let id = daemon.begin("all").await.unwrap().launch.id;
    let both = |rack: &Rack| rack.0.lock().unwrap().switched.len() == 2;
    while !both(&rack) {
        tokio::task::yield_now().await;
    }
    drop(daemon);
    rack.0.lock().unwrap().deaf = false;

    let daemon = Daemon::start(dir.path(), &rack);
    daemon.until(id, |whole| (1..=2).all(|n| is_at(whole, n, State::Booting))).await;
    daemon.boots(1);
    daemon.until(id, |whole| is_at(whole, 1, State::Healthy)).await;
    daemon.timeline.flush();
    drop(daemon);

    // Its boot is in the timeline, and no launch was told.
    let store = Store::open(&dir.path().join("db")).unwrap();
    let timeline = Timeline::open(store.clone(), Machines::new(&config())).unwrap();
    let firmware = pxe_common::dhcp::Firmware::Bios;
    timeline.record(Happened::new(Who::Mac(mac(2)), Stage::Discover).firmware(firmware));
    timeline.record(Happened::new(Who::Mac(mac(2)), Stage::Workload));
    timeline.flush();
    drop((timeline, store));

    let daemon = Daemon::start(dir.path(), &rack);
    let whole = daemon.until(id, |whole| whole.launch.phase == Phase::Ended).await;
    assert_eq!(whole.launch.verdict.unwrap().outcome, Outcome::Healthy);
    let mut switched = rack.0.lock().unwrap().switched.clone();
    switched.sort();
    assert_eq!(switched, [(mac(1), true), (mac(2), true)]);
    assert!(daemon.begin("all").await.is_ok(), "the machines are free again");
}
