//! What changes on pages, rendered once for all who look at one.
//!
//! A task asks the register every [`TICK`] which machines were touched, and makes a [`Frame`] of those whose row is
//! another now, with the events of the timeline since, and with what changed of the site. Viewers send frames as they are,
//! in order, from a ring of bounded size. Who asks for a frame that is no longer there (a slow reader, somebody who comes
//! back late, or who looked at an earlier run of the daemon) is told to fetch the page anew: its contents are the truth,
//! and frames only what changes of it.
//!
//! While nobody looks at a page, nothing is noted or rendered.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::Bytes;
use jiff::Timestamp;
use pxe_common::Mac;
use serde_json::{Map, Value, json};
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::chart;
use super::rows::{EventRow, Row, key};
use super::site::{Counts, Health, Site};
use crate::api::{ApiState, read};
use crate::base::lock::Unpoisoned as _;
use crate::machines::Machines;
use crate::machines::timeline::Event;

/// Changes within this time are one frame.
const TICK: Duration = Duration::from_millis(250);
/// How long somebody who fetched a page may take to ask for its stream.
const PATIENCE: Duration = Duration::from_secs(60);
/// Frames that are kept for viewers who are behind: half a minute at the most frequent.
const FRAMES_MAX: usize = 128;
/// And their bytes.
const BYTES_MAX: usize = 8 << 20;
/// Events of a frame for a page of all machines: nobody reads more of them in a quarter of a second.
const EVENTS_MAX: usize = 20;

/// A place in the sequence of frames: what is behind it, somebody has not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// This run of the daemon. Another run's frames have other numbers.
    run: u64,
    frame: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.run, self.frame)
    }
}

impl FromStr for Position {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (run, frame) = text.split_once('-').ok_or(())?;
        let number = |text| u64::from_str_radix(text, 16).map_err(drop);
        Ok(Self { run: number(run)?, frame: number(frame)? })
    }
}

/// Changes of a moment.
#[derive(Debug)]
pub(super) struct Frame {
    number: u64,
    /// The whole of it, as JSON.
    all: Bytes,
    /// Of each machine that it is about, its row's change.
    rows: Vec<(Mac, String)>,
    events: Vec<(Mac, String)>,
}

impl Frame {
    /// What it says of one machine, as JSON; `None` if that is nothing.
    fn of(&self, mac: Mac) -> Option<Bytes> {
        let mut rows = self.rows.iter().filter(|(its, _)| *its == mac).map(|(_, row)| row.as_str());
        let events: Vec<&str> =
            self.events.iter().filter(|(its, _)| *its == mac).map(|(_, event)| event.as_str()).collect();
        let row = rows.next();
        (row.is_some() || !events.is_empty()).then(|| {
            let row = row.unwrap_or_default();
            format!("{{\"m\":{{{row}}},\"e\":[{}]}}", events.join(",")).into()
        })
    }
}

/// What a viewer is to be sent.
#[derive(Debug)]
pub(super) enum Next {
    /// Each frame's position, and the changes that it says of what the viewer looks at.
    Frames(Vec<(Position, Option<Bytes>)>),
    /// Some of what changed is not known any more: the page is to be fetched again. From here on, frames are what follows.
    Anew(Position),
}

/// The frames, and the state of the site. Cloning it is cheap.
#[derive(Clone)]
pub struct Live(Arc<Inner>);

struct Inner {
    run: u64,
    machines: Machines,
    ring: Mutex<Ring>,
    site: Mutex<Site>,
    newest: watch::Sender<u64>,
    /// Somebody looks at a page, and the task slept.
    woken: Notify,
}

#[derive(Default)]
struct Ring {
    frames: VecDeque<Arc<Frame>>,
    bytes: usize,
    /// The number of the frame before the first one that is kept.
    before: u64,
    /// Whether changes are noted.
    awake: bool,
    /// When a page was last asked for.
    asked: Option<Instant>,
}

impl Live {
    pub fn new(machines: Machines) -> Self {
        let run = Timestamp::now().as_microsecond().unsigned_abs();
        let (newest, _) = watch::channel(0);
        let (ring, site) = Default::default();
        Self(Arc::new(Inner { run, machines, ring, site, newest, woken: Notify::new() }))
    }

    /// Where a page begins that is written now: whatever changes from here on will be in a frame behind it.
    pub(super) fn position(&self) -> Position {
        let mut ring = self.ring();
        ring.asked = Some(Instant::now());
        if !ring.awake {
            ring.awake = true;
            // From now on they are noted.
            self.0.machines.touched();
            self.0.woken.notify_one();
        }
        self.here()
    }

    fn here(&self) -> Position {
        Position { run: self.0.run, frame: *self.0.newest.borrow() }
    }

    /// Learns of further frames.
    pub(super) fn follow(&self) -> watch::Receiver<u64> {
        self.0.newest.subscribe()
    }

    /// What is behind a position; of one machine only if one is named.
    pub(super) fn behind(&self, position: Position, of: Option<Mac>) -> Next {
        let ring = self.ring();
        let here = self.here();
        if position.run != here.run || position.frame > here.frame || position.frame < ring.before {
            return Next::Anew(here);
        }
        let frames = ring.frames.iter().filter(|frame| frame.number > position.frame);
        let at = |number| Position { run: here.run, frame: number };
        let said = |frame: &Frame| match of {
            None => Some(frame.all.clone()),
            Some(mac) => frame.of(mac),
        };
        Next::Frames(frames.map(|frame| (at(frame.number), said(frame))).collect())
    }

    /// The site as it was last looked at.
    pub(super) fn site(&self) -> Site {
        self.0.site.lock().unpoisoned().clone()
    }

    fn add(&self, changes: Changes) {
        let mut ring = self.ring();
        let number = *self.0.newest.borrow() + 1;
        let frame = changes.frame(number);
        ring.bytes += frame.len();
        ring.frames.push_back(Arc::new(frame));
        while ring.frames.len() > FRAMES_MAX || ring.bytes > BYTES_MAX {
            let Some(old) = ring.frames.pop_front() else { break };
            ring.bytes -= old.len();
            ring.before = old.number;
        }
        drop(ring);
        self.0.newest.send_replace(number);
    }

    /// Nobody looks: changes are no longer noted. Whoever was here before starts anew.
    fn sleep(&self) -> bool {
        let mut ring = self.ring();
        let looked = ring.asked.is_some_and(|asked| asked.elapsed() < PATIENCE);
        if looked || self.0.newest.receiver_count() > 0 {
            return false;
        }
        let number = *self.0.newest.borrow() + 1;
        *ring = Ring { before: number, ..Ring::default() };
        self.0.newest.send_replace(number);
        self.0.machines.forget_touched();
        true
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().unpoisoned()
    }
}

impl Frame {
    /// The bytes that it takes, about.
    fn len(&self) -> usize {
        let parts = self.rows.iter().chain(&self.events).map(|(_, text)| text.len() + 32);
        self.all.len() + parts.sum::<usize>()
    }
}

/// What was found to have changed since the last frame.
#[derive(Debug, Default)]
struct Changes {
    rows: Vec<(Mac, String)>,
    events: Vec<(Mac, String)>,
    site: Map<String, Value>,
    alerts: Option<Vec<String>>,
    /// Machines came or went.
    others: bool,
    /// Events were missed.
    gap: bool,
}

impl Changes {
    fn is_empty(&self) -> bool {
        let Self { rows, events, site, alerts, others, gap } = self;
        rows.is_empty() && events.is_empty() && site.is_empty() && alerts.is_none() && !others && !gap
    }

    fn frame(self, number: u64) -> Frame {
        let texts =
            |of: &[(Mac, String)]| of.iter().map(|(_, text)| text.clone()).collect::<Vec<_>>().join(",");
        let last = self.events.len().saturating_sub(EVENTS_MAX);
        let mut all = format!("{{\"m\":{{{}}},\"e\":[{}]", texts(&self.rows), texts(&self.events[last..]));
        if !self.site.is_empty() {
            all += &format!(",\"s\":{}", Value::Object(self.site));
        }
        if let Some(alerts) = self.alerts {
            all += &format!(",\"l\":{}", json!({ "alerts": alerts }));
        }
        if self.others || self.gap {
            all += ",\"others\":true";
        }
        all.push('}');
        Frame { number, all: all.into(), rows: self.rows, events: self.events }
    }
}

/// Makes frames of what changes, until `stop`.
pub async fn watch(state: ApiState, stop: CancellationToken) {
    let live = state.live.clone();
    loop {
        tokio::select! {
            () = live.0.woken.notified() => {}
            () = stop.cancelled() => return,
        }
        tokio::select! {
            () = attend(&state) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Makes frames until nobody looks.
async fn attend(state: &ApiState) {
    let live = &state.live;
    let mut events = state.boot.timeline.subscribe();
    let mut known = Known::of(&state.boot.machines);
    let mut sampled = None;
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut changes = Changes::default();
        known.look(&state.boot.machines, &mut changes);
        take(&mut events, &mut changes);
        if sampled.is_none_or(|at: Instant| at.elapsed() >= Duration::from_secs(chart::EVERY)) {
            let seconds = sampled.map_or(chart::EVERY as f64, |at| at.elapsed().as_secs_f64());
            sampled = Some(Instant::now());
            health(state, seconds, &mut changes).await;
        }
        if !changes.rows.is_empty() || changes.others {
            let counts = state.boot.machines.look(|all| Counts::of(all));
            let mut site = live.0.site.lock().unpoisoned();
            if site.counts != counts {
                counts.patch(&mut changes.site);
                site.counts = counts;
            }
        }
        if !changes.is_empty() {
            live.add(changes);
        }
        if live.sleep() {
            return;
        }
    }
}

/// What pages say of each machine, as far as it was sent.
struct Known(HashMap<Mac, u64>);

impl Known {
    fn of(machines: &Machines) -> Self {
        let now = Timestamp::now();
        Self(machines.look(|all| all.map(|machine| (machine.mac, digest(&Row::of(machine, now)))).collect()))
    }

    fn look(&mut self, machines: &Machines, changes: &mut Changes) {
        let now = Timestamp::now();
        for mac in machines.touched() {
            let Some(machine) = machines.get(mac) else {
                changes.others |= self.0.remove(&mac).is_some();
                continue;
            };
            let row = Row::of(&machine, now);
            let before = self.0.insert(mac, digest(&row));
            changes.others |= before.is_none();
            if before != Some(digest(&row)) {
                let text = serde_json::to_string(&row).expect("a row has only text keys");
                changes.rows.push((mac, format!("\"{}\":{text}", key(mac))));
            }
        }
    }
}

fn digest(row: &Row) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(row)
}

fn take(events: &mut broadcast::Receiver<Event>, changes: &mut Changes) {
    loop {
        match events.try_recv() {
            Ok(event) => {
                let row = serde_json::to_string(&EventRow::of(&event)).expect("a row has only text keys");
                changes.events.push((event.mac, row));
            }
            Err(TryRecvError::Lagged(_)) => changes.gap = true,
            Err(TryRecvError::Empty | TryRecvError::Closed) => return,
        }
    }
}

async fn health(state: &ApiState, seconds: f64, changes: &mut Changes) {
    let health = match read::whole_status(state.clone()).await {
        Ok(status) => Health::of(&status),
        Err(error) => return tracing::warn!(%error, "the page does not know how the appliance is"),
    };
    let mut site = state.live.0.site.lock().unpoisoned();
    site.chart.sample(health.sent, seconds);
    site.chart.patch(&mut changes.site);
    if health.wave != site.health.wave {
        changes.site.insert("wave".into(), json!({ "text": health.wave }));
    }
    if health.alerts != site.health.alerts {
        changes.alerts = Some(health.alerts.clone());
    }
    site.health = health;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machines::timeline::Stage;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn frames(next: Next) -> Vec<(Position, Option<String>)> {
        match next {
            Next::Frames(frames) => frames
                .into_iter()
                .map(|(at, said)| (at, said.map(|said| String::from_utf8(said.to_vec()).unwrap())))
                .collect(),
            Next::Anew(at) => panic!("anew at {at}"),
        }
    }

    #[test]
    fn what_changed_is_told_once_and_to_whom_it_concerns() {
        let machines = Machines::default();
        machines.reached(A, Stage::Kernel, Timestamp::UNIX_EPOCH, None);
        let live = Live::new(machines.clone());
        let start = live.position();
        assert_eq!(start.to_string().parse(), Ok(start));
        let mut known = Known::of(&machines);
        let mut look = || {
            let mut changes = Changes::default();
            known.look(&machines, &mut changes);
            changes
        };
        machines.reached(A, Stage::Initrd, Timestamp::UNIX_EPOCH, None);
        machines.get_or_insert(A);
        let changes = look();
        assert!(changes.rows.len() == 1 && !changes.others);
        live.add(changes);
        machines.get_or_insert(A);
        assert!(look().is_empty(), "it was looked up, and is as it was");
        machines.reached(B, Stage::Discover, Timestamp::UNIX_EPOCH, None);
        let changes = look();
        assert!(changes.others, "a machine that was not there");
        live.add(changes);

        let all = frames(live.behind(start, None));
        assert_eq!(all.len(), 2);
        let first: Value = serde_json::from_str(all[0].1.as_ref().unwrap()).unwrap();
        assert_eq!(first["m"]["020000000001"]["s"], "initrd");
        assert_eq!(first["m"]["020000000001"]["k"], "m-kernel");
        let second: Value = serde_json::from_str(all[1].1.as_ref().unwrap()).unwrap();
        assert_eq!(
            (&second["others"], &second["m"]["020000000002"]["k"]),
            (&json!(true), &json!("m-address"))
        );
        let of_b = frames(live.behind(start, Some(B)));
        assert!(of_b[0].1.is_none() && of_b[1].1.as_ref().unwrap().contains("discover"), "{of_b:?}");
        assert!(frames(live.behind(all[1].0, None)).is_empty(), "nothing since");
        assert_eq!(frames(live.behind(all[0].0, None)), all[1..]);
    }

    #[test]
    fn who_is_too_far_behind_starts_anew_and_memory_is_bounded() {
        let live = Live::new(Machines::default());
        let start = live.position();
        let change = |text: &str| Changes { rows: vec![(A, text.to_owned())], ..Changes::default() };
        for _ in 0..FRAMES_MAX {
            live.add(change("\"a\":{}"));
        }
        assert_eq!(frames(live.behind(start, None)).len(), FRAMES_MAX);
        live.add(change("\"a\":{}"));
        let Next::Anew(here) = live.behind(start, None) else { panic!("some are gone") };
        assert!(frames(live.behind(here, None)).is_empty());
        let large = "x".repeat(1 << 20);
        for _ in 0..20 {
            live.add(change(&large));
        }
        let ring = live.ring();
        assert!(ring.bytes <= BYTES_MAX && ring.frames.len() < 8, "{}", ring.frames.len());
        assert_eq!(ring.bytes, ring.frames.iter().map(|frame| frame.len()).sum::<usize>());
        drop(ring);
        // Of another run, or never sent.
        for position in [Position { run: here.run + 1, ..here }, Position { frame: here.frame + 100, ..here }]
        {
            assert!(matches!(live.behind(position, None), Next::Anew(_)), "{position}");
        }
        for text in ["", "-", "1", "x-1", "1-x", "1-1-1", "-1-1"] {
            assert_eq!(text.parse::<Position>(), Err(()), "{text}");
        }
    }

    #[test]
    fn a_crowd_of_events_is_cut_for_who_looks_at_all_machines() {
        let events = (0..100).map(|n| (A, format!("{{\"id\":{n}}}"))).collect();
        let frame = Changes { events, ..Changes::default() }.frame(1);
        let all: Value = serde_json::from_slice(&frame.all).unwrap();
        let one: Value = serde_json::from_slice(&frame.of(A).unwrap()).unwrap();
        assert_eq!(all["e"].as_array().unwrap().len(), EVENTS_MAX);
        assert_eq!(all["e"][EVENTS_MAX - 1]["id"], 99, "the newest");
        assert_eq!(one["e"].as_array().unwrap().len(), 100);
    }
}
