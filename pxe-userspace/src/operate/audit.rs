//! The audit of people's changes: when, who, what, before and after.
//!
//! An entry contains no secrets: callers record a token's name only, and nothing of a password.

use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use super::access::Caller;
use crate::base::lock::Unpoisoned as _;
use crate::store::{AuditRow, Change, ReadError, Store};

/// Maximum bytes of `before` and `after`, each, in JSON.
const VALUE_MAX: usize = 3 * 1024;
/// Maximum characters of any other text.
const TEXT_MAX: usize = 256;

/// One change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "AuditEntry")]
pub struct Entry {
    /// In ascending order; gaps have no meaning.
    pub id: u64,
    #[serde(serialize_with = "crate::base::text::micros")]
    pub time: Timestamp,
    #[serde(flatten)]
    pub caller: Caller,
    #[serde(flatten)]
    pub did: Did,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Did {
    /// An action, as words separated by dots: `node.hold`.
    pub what: String,
    /// The object: a machine, an image, a token.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub on: Option<String>,
    #[serde(skip_serializing_if = "Value::is_null", default)]
    pub before: Value,
    #[serde(skip_serializing_if = "Value::is_null", default)]
    pub after: Value,
}

impl Did {
    pub fn new(what: &str) -> Self {
        Self { what: what.to_owned(), ..Self::default() }
    }

    pub fn on(self, on: impl Into<String>) -> Self {
        Self { on: Some(on.into()), ..self }
    }

    pub fn before(self, before: impl Serialize) -> Self {
        Self { before: value(before), ..self }
    }

    pub fn after(self, after: impl Serialize) -> Self {
        Self { after: value(after), ..self }
    }
}

fn value(value: impl Serialize) -> Value {
    let value = serde_json::to_value(value).expect("documents have only text keys");
    // A name of a megabyte must not fill the audit.
    if value.to_string().len() > VALUE_MAX { Value::String("too long to be kept".to_owned()) } else { value }
}

/// The audit. Cloning it is cheap.
#[derive(Clone)]
pub struct Audit(Arc<Inner>);

struct Inner {
    store: Store,
    /// Held while an entry is passed to the store, so that ids are stored in order.
    last: Mutex<u64>,
    stored: watch::Sender<u64>,
}

impl Audit {
    pub fn open(store: Store) -> Result<Self, ReadError> {
        let last = store.reader().last_audit_id()?;
        Ok(Self(Arc::new(Inner { store, last: Mutex::new(last), stored: watch::Sender::new(last) })))
    }

    /// Records an entry, which is on disk when this returns. Blocks. If the disk refuses it, the log has the entry.
    pub fn record(&self, caller: &Caller, did: Did, now: Timestamp) {
        let on = did.on.map(|on| on.chars().take(TEXT_MAX).collect());
        let mut entry = Entry { id: 0, time: now, caller: caller.clone(), did: Did { on, ..did } };
        let pending = {
            let mut last = self.0.last.lock().unpoisoned();
            *last += 1;
            entry.id = *last;
            let body = serde_json::to_string(&entry).expect("it has only text keys");
            self.0.store.write(vec![Change::AddAudit(AuditRow { id: entry.id, body })])
        };
        match pending.wait() {
            Ok(()) => drop(self.0.stored.send_if_modified(|stored| {
                let newer = entry.id > *stored;
                *stored = (*stored).max(entry.id);
                newer
            })),
            Err(error) => tracing::error!(?entry, "not kept in the audit: {error}"),
        }
    }

    /// Entries with an id above `after`, oldest first, at most `limit`.
    pub fn since(&self, after: u64, limit: usize) -> Result<Vec<Entry>, ReadError> {
        let rows = self.0.store.reader().audit_since(after, limit)?;
        Ok(rows.into_iter().filter_map(|row| serde_json::from_str(&row.body).ok()).collect())
    }

    /// Entries with an id below `before`, newest first, at most `limit`.
    pub fn before(&self, before: u64, limit: usize) -> Result<Vec<Entry>, ReadError> {
        let rows = self.0.store.reader().audit_before(before, limit)?;
        Ok(rows.into_iter().filter_map(|row| serde_json::from_str(&row.body).ok()).collect())
    }

    /// The newest stored entry's id.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.0.stored.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::access::{Role, Through};

    #[test]
    fn entries_are_kept_in_order_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Audit::open(Store::open(&dir.path().join("db")).unwrap()).unwrap();
        let audit = open();
        let watch = audit.watch();
        let now = Timestamp::UNIX_EPOCH;
        let did = Did::new("node.hold").on("n1").before(Value::Null).after("until-released");
        audit.record(&Caller::local(0), did, now);
        assert!(watch.has_changed().unwrap());
        let long = Did::new("image.add").on("x".repeat(1 << 20)).after("y".repeat(1 << 20));
        audit.record(&Caller::signal(), long, now);
        drop(audit);

        let entries = open().since(0, 9).unwrap();
        let [first, second] = entries.as_slice() else { panic!("{entries:?}") };
        assert_eq!((first.id, &*first.caller.who, first.caller.uid), (1, "root", Some(0)));
        assert_eq!((first.caller.through, first.caller.role), (Through::Socket, Role::Admin));
        assert_eq!((first.did.on.as_deref(), &first.did.before), (Some("n1"), &Value::Null));
        assert_eq!(first.did.after, "until-released");
        assert_eq!((second.id, second.did.after.as_str()), (2, Some("too long to be kept")));
        assert_eq!(second.did.on.as_ref().map(String::len), Some(TEXT_MAX));
        assert_eq!(open().since(1, 9).unwrap().len(), 1);
    }

    /// The table's size is limited.
    #[test]
    fn what_is_older_than_the_newest_hundred_thousand_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).unwrap();
        let row = |id| Change::AddAudit(AuditRow { id, body: "{}".into() });
        store.write(vec![row(1), row(2), row(100_001)]).wait().unwrap();
        let ids: Vec<u64> = store.reader().audit_since(0, 9).unwrap().iter().map(|row| row.id).collect();
        assert_eq!(ids, [2, 100_001]);
    }
}
