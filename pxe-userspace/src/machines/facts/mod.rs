//! What machines are made of, as they told it in their last boots: kept in the database, compared with what they tell
//! in the next one (`changes`), and its gist in the register, which rules and selectors go by.

mod changes;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use pxe_common::Mac;
use pxe_contract::facts::Facts;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::base::lock::Unpoisoned as _;
use crate::base::text;
use crate::config::facts::Hardware;
use crate::machines::Machines;
use crate::store::{Change, Document, ReadError, Store, WriteError};

/// Machines whose facts are kept. Of more, those that told them first are forgotten.
pub const KEPT_MAX: usize = 32_768;

/// Machines that can be told of at the same time, apart from those that share a place.
const PLACES: usize = 64;

/// A machine's facts, and when it told them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Said {
    #[serde(serialize_with = "text::micros")]
    pub time: Timestamp,
    pub facts: Facts,
}

/// What telling its facts changed about a machine.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// The facts of all machines. Cloning it is cheap.
#[derive(Clone)]
pub struct Known(Arc<Inner>);

struct Inner {
    store: Store,
    machines: Machines,
    /// When each told its facts.
    told: Mutex<HashMap<Mac, Timestamp>>,
    /// Held from reading what a machine said before until what it says now is kept.
    places: [Mutex<()>; PLACES],
    /// Machines whose gist has changed, for who names machines.
    news: Mutex<BTreeSet<Mac>>,
    is_news: Notify,
}

impl Known {
    /// Those that are stored; the register learns their gist. What can't be read is left alone, and the log says so.
    pub fn open(store: Store, machines: Machines) -> Result<Self, ReadError> {
        let mut told = HashMap::new();
        for (mac, body) in store.reader().documents(Document::Facts)? {
            match serde_json::from_str::<Said>(&body) {
                Ok(said) => {
                    machines.made_of(mac, Some(Arc::new(Hardware::from(&said.facts))));
                    told.insert(mac, said.time);
                }
                Err(error) => {
                    tracing::warn!(%mac, %error, "facts in the database that can't be read: left alone");
                }
            }
        }
        let inner = Inner {
            store,
            machines,
            told: Mutex::new(told),
            places: [const { Mutex::new(()) }; PLACES],
            news: Mutex::default(),
            is_news: Notify::new(),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Takes what a machine says of itself: bounded, and without anything that would disturb a terminal. Returns what is
    /// different since it said so last, in words. It is handed to the database when this returns, which blocks.
    pub fn take(&self, mac: Mac, mut facts: Facts, now: Timestamp) -> Result<Vec<String>, TakeError> {
        facts.bound();
        facts.each_text(&mut |words| *words = text::one_line(words));
        // Escapes may be longer than what they stand for.
        facts.bound();
        let inner = &*self.0;
        let place = mac.0.iter().fold(0usize, |sum, byte| sum * 31 + usize::from(*byte)) % PLACES;
        let _one_at_a_time = inner.places[place].lock().unpoisoned();
        let before = self.said(mac)?;
        if let (Some(before), None) = (&before, &facts.neighbours) {
            // It has not listened yet.
            facts.neighbours = before.facts.neighbours.clone();
        }
        let changes = before.as_ref().map_or_else(Vec::new, |said| changes::changes(&said.facts, &facts));
        let hardware = Arc::new(Hardware::from(&facts));
        let body = serde_json::to_string(&Said { time: now, facts }).expect("facts have only text keys");
        let mut writes = vec![Change::PutDocument(Document::Facts, mac, body)];
        writes.extend(self.make_room(mac, now).map(|gone| Change::RemoveDocument(Document::Facts, gone)));
        inner.store.write(writes).wait()?;
        if inner.machines.made_of(mac, Some(hardware)) || before.is_none() {
            inner.news.lock().unpoisoned().insert(mac);
            inner.is_news.notify_one();
        }
        Ok(changes)
    }

    /// What a machine said last.
    pub fn said(&self, mac: Mac) -> Result<Option<Said>, ReadError> {
        if !self.told().contains_key(&mac) {
            return Ok(None);
        }
        let body = self.0.store.reader().document(Document::Facts, mac)?;
        // One that can't be read was left alone, and is replaced now.
        Ok(body.and_then(|body| serde_json::from_str(&body).ok()))
    }

    /// Waits for machines whose gist has changed, and returns them.
    pub async fn news(&self) -> BTreeSet<Mac> {
        loop {
            let news = std::mem::take(&mut *self.0.news.lock().unpoisoned());
            if !news.is_empty() {
                return news;
            }
            // It remembers a call while nobody waits.
            self.0.is_news.notified().await;
        }
    }

    /// Notes that a machine told its facts. The one that is to be forgotten, where there are too many: nobody declared it,
    /// if there is such a one.
    fn make_room(&self, mac: Mac, now: Timestamp) -> Option<Mac> {
        let mut told = self.told();
        told.insert(mac, now);
        if told.len() <= KEPT_MAX {
            return None;
        }
        let machines = &self.0.machines;
        let is_declared = |mac: Mac| machines.get(mac).is_some_and(|machine| machine.origin.is_some());
        let others = told.iter().filter(|(other, _)| **other != mac);
        let oldest =
            others.min_by_key(|(other, time)| (is_declared(**other), **time)).map(|(other, _)| *other)?;
        told.remove(&oldest);
        machines.made_of(oldest, None);
        Some(oldest)
    }

    fn told(&self) -> MutexGuard<'_, HashMap<Mac, Timestamp>> {
        self.0.told.lock().unpoisoned()
    }
}
