//! Drives the launches: stores what an engine decided, has it done, and tells the engine what came of it.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use pxe_common::Mac;
use std::sync::Arc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::engine::{Answer, Command, Engine, Heard, Input, Output};
use super::healthy::HealthUrl;
use super::model::LaunchEvent;
use super::{Driven, Going, LAUNCHES_KEPT, Launches, Site, SiteError, kept, launched};
use crate::machines::timeline::Timeline;
use crate::store::Change;

/// Inputs that are taken before their outcome is stored.
const BATCH: usize = 512;

/// Events of the timeline that are read at a time.
const PAGE: usize = 1024;

/// A power action that takes longer has failed. Its driver gives up before; but it may have to wait for its turn.
const ANSWERS_WITHIN: Duration = Duration::from_secs(900);

/// How often places among the boots are looked for, where machines wait for one.
const LOOKS_EVERY: Duration = Duration::from_secs(1);

/// Where an output could not be stored, it is tried again after this.
const STORES_AGAIN: Duration = Duration::from_secs(2);

/// Drives all launches until `shutdown`.
pub async fn drive(mut driven: Driven, site: Arc<dyn Site>, timeline: Timeline, shutdown: CancellationToken) {
    let launches = driven.launches.clone();
    let mut due = match launches.catch_up(&timeline) {
        Ok(ids) => ids,
        Err(error) => {
            tracing::error!("what happened to launched machines meanwhile is not known: {error}");
            launches.state().engines.keys().copied().collect()
        }
    };
    let mut inputs = Vec::new();
    loop {
        for id in std::mem::take(&mut due) {
            tokio::select! {
                () = launches.advance(id, &site) => {}
                () = shutdown.cancelled() => return,
            }
        }
        let next = launches.next_timeout(Timestamp::now());
        tokio::select! {
            received = driven.inputs.recv_many(&mut inputs, BATCH) => if received == 0 { return },
            () = tokio::time::sleep(next.unwrap_or(Duration::MAX)), if next.is_some() => {
                due = launches.state().engines.keys().copied().collect();
            }
            () = shutdown.cancelled() => return,
        }
        let now = Timestamp::now();
        let mut state = launches.state();
        for (id, input) in inputs.drain(..) {
            if let Some(engine) = state.engines.get_mut(&id) {
                engine.take(input, now);
                due.insert(id);
            }
        }
    }
}

impl Launches {
    /// What the timeline has of launched machines that no earlier daemon told the launches.
    fn catch_up(&self, timeline: &Timeline) -> Result<BTreeSet<u64>, crate::store::ReadError> {
        let mut state = self.state();
        let ids: BTreeSet<u64> = state.engines.keys().copied().collect();
        let Some(mut after) = state.engines.values().map(|engine| engine.launch().seen).min() else {
            return Ok(ids);
        };
        loop {
            let page = timeline.since(after, PAGE)?;
            let Some(last) = page.last() else { return Ok(ids) };
            after = last.id;
            for event in &page {
                for engine in state.engines.values_mut() {
                    engine.take(Input::Event(Heard::from(event)), event.time);
                }
            }
        }
    }

    /// How long until something is due.
    fn next_timeout(&self, now: Timestamp) -> Option<Duration> {
        let state = self.state();
        let waits = state.engines.values().any(Engine::waits_for_place).then_some(LOOKS_EVERY);
        let due = state.engines.values().filter_map(Engine::next_timeout).min();
        let due = due.map(|due| due.duration_since(now).try_into().unwrap_or(Duration::ZERO));
        waits.into_iter().chain(due).min()
    }

    /// Asks the engine what follows, stores it, and has it done.
    async fn advance(&self, id: u64, site: &Arc<dyn Site>) {
        let places = site.places();
        let (mut out, changes, mut written, last_event) = {
            let mut state = self.state();
            let now = Timestamp::now();
            let Some(engine) = state.engines.get_mut(&id) else { return };
            let out = engine.poll(places, now);
            if out.is_empty() {
                return;
            }
            let changes = state.changes(id, &out, now);
            // Handed over under the lock: whoever launches a machine that is free from now on is stored after this.
            let written = self.0.store.written(changes.clone());
            state.free_those_through(id);
            (out, changes, Box::pin(written), state.last_event)
        };
        // What can't be stored is not done. Meanwhile the engine waits for its answers.
        while let Err(error) = written.await {
            tracing::error!(launch = id, "a launch stands still: {error}");
            tokio::time::sleep(STORES_AGAIN).await;
            written = Box::pin(self.0.store.written(changes.clone()));
        }
        if !out.pins.is_empty() {
            self.0.pins.put(std::mem::take(&mut out.pins));
            site.pinned().await;
        }
        self.close(id);
        let _ = self.0.stored.send_replace(last_event);
        for command in out.commands {
            self.perform(id, command, site);
        }
    }

    /// Performs a command on a task of its own.
    fn perform(&self, id: u64, command: Command, site: &Arc<dyn Site>) {
        let (launches, site) = (self.clone(), site.clone());
        match command {
            Command::BootAgain { mac } => site.boot_again(mac),
            Command::Ask { mac, tries } => drop(tokio::spawn(async move {
                let answer = match within(site.is_on(mac)).await {
                    Ok(Some(true)) => Answer::IsOn,
                    Ok(Some(false)) => Answer::IsOff,
                    Ok(None) => Answer::Unknown,
                    Err(SiteError(words)) => Answer::Failed(words),
                };
                launches.tell(id, Input::Power { mac, tries, answer });
            })),
            Command::Switch { mac, tries, on } => drop(tokio::spawn(async move {
                let answer = match within(site.switch(mac, on)).await {
                    Ok(()) => Answer::Done,
                    Err(SiteError(words)) => Answer::Failed(words),
                };
                launches.tell(id, Input::Power { mac, tries, answer });
            })),
            Command::Check { mac, tries } => {
                let Some(url) = self.url_of(id) else { return };
                drop(tokio::spawn(async move {
                    let said = site.check(mac, url).await.map_err(|SiteError(words)| words);
                    launches.tell(id, Input::Checked { mac, tries, said });
                }));
            }
        }
    }

    fn url_of(&self, id: u64) -> Option<HealthUrl> {
        let state = self.state();
        state.engines.get(&id)?.launch().terms.healthy.as_deref()?.parse().ok()
    }

    /// Takes a launch that is over, and stored, out of those that go on.
    fn close(&self, id: u64) {
        let mut state = self.state();
        let Going { engines, over, .. } = &mut *state;
        if engines.get(&id).is_none_or(|engine| !engine.is_over()) {
            return;
        }
        if let Some(engine) = engines.remove(&id) {
            over.insert(id, engine.launch().clone());
        }
        while over.len() > LAUNCHES_KEPT
            && let Some((oldest, _)) = over.pop_first()
        {
            drop(self.0.store.written(vec![Change::RemoveLaunch(oldest)]));
        }
    }
}

impl Going {
    /// A machine that is through is another launch's to have.
    fn free_those_through(&mut self, id: u64) {
        let Some(engine) = self.engines.get(&id) else { return };
        let is_through =
            |mac: &Mac| engine.is_over() || engine.member(*mac).is_none_or(|member| member.state.is_final());
        self.taken.retain(|mac, launch| *launch != id || !is_through(mac));
    }

    /// What an output changes in the store, with its events numbered.
    fn changes(&mut self, id: u64, out: &Output, now: Timestamp) -> Vec<Change> {
        let engine = &self.engines[&id];
        let mut changes: Vec<Change> = launched::changes(&out.pins).collect();
        if out.launch {
            changes.push(kept::put(engine.launch()));
        }
        let changed = (0..).zip(engine.members()).filter(|(_, member)| out.members.contains(&member.mac));
        changes.extend(changed.map(|(turn, member)| kept::put_member(id, turn, member)));
        for change in &out.events {
            self.last_event += 1;
            let event = LaunchEvent { id: self.last_event, time: now, launch: id, change: change.clone() };
            tracing::info!(launch = id, change = ?event.change, "launch");
            changes.push(kept::add_event(&event));
        }
        changes
    }
}

async fn within<T>(asked: impl Future<Output = Result<T, SiteError>>) -> Result<T, SiteError> {
    let late = |_| SiteError(format!("its power did not answer within {} s", ANSWERS_WITHIN.as_secs()));
    timeout(ANSWERS_WITHIN, asked).await.map_err(late)?
}
