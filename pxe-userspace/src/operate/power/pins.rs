//! The certificates that BMCs showed when they were first asked. A BMC has no name that a CA would vouch for, so its
//! certificate is taken on trust once, and from then on only that one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::base::lock::Unpoisoned as _;
use crate::base::text::{hex, unhex};
use crate::store::{Change, PinRow, ReadError, Store, WriteError};

/// SHA-256 of a certificate.
pub type Fingerprint = [u8; 32];

/// Another certificate is trusted from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NewPin {
    /// `HOST:PORT` of the BMC.
    pub bmc: String,
    /// SHA-256, in hexadecimal.
    pub fingerprint: String,
    /// The one before; `None` if there was none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub before: Option<String>,
}

/// All pins, by `HOST:PORT`. Cloning it is cheap.
#[derive(Clone)]
pub struct Pins(Arc<Inner>);

struct Inner {
    store: Store,
    by_place: Mutex<HashMap<String, Fingerprint>>,
}

impl Pins {
    /// Those that are stored. One that can't be read is left alone, and the log says so.
    pub fn open(store: Store) -> Result<Self, ReadError> {
        let rows = store.reader().pins()?;
        let known = rows.into_iter().filter_map(|PinRow { place, fingerprint, .. }| {
            let parsed = unhex(&fingerprint).and_then(|bytes| bytes.try_into().ok());
            if parsed.is_none() {
                tracing::warn!(place, "a BMC's certificate in the database that can't be read: left alone");
            }
            Some((place, parsed?))
        });
        let by_place = Mutex::new(known.collect());
        Ok(Self(Arc::new(Inner { store, by_place })))
    }

    pub fn get(&self, place: &str) -> Option<Fingerprint> {
        self.0.by_place.lock().unpoisoned().get(place).copied()
    }

    /// From now on, this one is the place's. It is on disk when the future is done.
    pub async fn put(&self, place: &str, fingerprint: Fingerprint) -> Result<NewPin, WriteError> {
        let words = hex(&fingerprint);
        let row = PinRow { place: place.to_owned(), fingerprint: words.clone(), since: Timestamp::now() };
        self.0.store.written(vec![Change::PutPin(row)]).await?;
        let before = self.0.by_place.lock().unpoisoned().insert(place.to_owned(), fingerprint);
        Ok(NewPin { bmc: place.to_owned(), fingerprint: words, before: before.map(|before| hex(&before)) })
    }
}
