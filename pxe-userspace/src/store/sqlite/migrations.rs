//! Migrations from the layout of any earlier version to the present one.
//!
//! `user_version` counts the migrations that were done. Each is one transaction together with its count, so that
//! a power cut in the middle leaves the database as it was before it.

use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::{OpenError, unusable};

/// From an empty file on. One that was released is never changed: what it lacks is another migration.
const MIGRATIONS: &[&str] = &[
    // 0.1.0. Each owner made its table when it needed it first: any of them may be missing.
    "
    CREATE TABLE IF NOT EXISTS lease (
        address       TEXT PRIMARY KEY,
        mac           TEXT NOT NULL,
        state         TEXT NOT NULL,
        durable_until TEXT NOT NULL,
        client_ids    TEXT NOT NULL,
        uuid          TEXT
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS event (
        id    INTEGER PRIMARY KEY,
        mac   TEXT NOT NULL,
        body  TEXT NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS event_by_mac ON event (mac, id);
    CREATE TABLE IF NOT EXISTS hold (
        mac   TEXT PRIMARY KEY,
        hold  TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS kernel_trial (
        mac      TEXT PRIMARY KEY,
        history  TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS boot_session (
        mac  TEXT NOT NULL PRIMARY KEY,
        boot TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS volume_key (
        owner  TEXT NOT NULL,
        plan   TEXT NOT NULL,
        volume TEXT NOT NULL,
        nonce  BLOB NOT NULL,
        sealed BLOB NOT NULL,
        PRIMARY KEY (owner, plan, volume)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS assignment (
        workload TEXT NOT NULL,
        node     TEXT NOT NULL,
        PRIMARY KEY (workload, node)
    ) STRICT, WITHOUT ROWID;
    ",
    // How far each machine was is asked at every start. It took reading every event, up to a million.
    "
    ALTER TABLE event ADD COLUMN moves INTEGER NOT NULL DEFAULT 1;
    UPDATE event SET moves = 0
        WHERE json_valid(body) AND (body ->> 'stage' = 'warning' OR body ->> 'late' IS NOT NULL);
    CREATE INDEX event_that_moves ON event (mac, id) WHERE moves;
    DROP INDEX event_by_mac;
    ",
    // Who may use the API by TCP, and what people changed.
    "
    CREATE TABLE token (
        name    TEXT PRIMARY KEY,
        hash    TEXT NOT NULL,
        role    TEXT NOT NULL,
        added   TEXT NOT NULL,
        expires TEXT
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE audit (
        id    INTEGER PRIMARY KEY,
        body  TEXT NOT NULL
    ) STRICT;
    ",
    // Machines that people keep here, and what machines are called that a rule took.
    "
    CREATE TABLE node (
        name  TEXT PRIMARY KEY,
        mac   TEXT NOT NULL,
        body  TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE named (
        name   TEXT PRIMARY KEY,
        facts  TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    ",
    // Who the appliance is before BMCs, and the certificates that they showed.
    "
    CREATE TABLE credentials (
        name   TEXT PRIMARY KEY,
        user   TEXT NOT NULL,
        nonce  BLOB NOT NULL,
        sealed BLOB NOT NULL,
        added  TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE pin (
        place        TEXT PRIMARY KEY,
        fingerprint  TEXT NOT NULL,
        since        TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    ",
    // Browsers stay logged in over a restart. And a machine's own events are asked for by its page: those that move it
    // have an index already.
    "
    CREATE TABLE login (
        hash  TEXT NOT NULL,
        ends  TEXT NOT NULL,
        body  TEXT NOT NULL
    ) STRICT;
    CREATE INDEX event_that_stays ON event (mac, id) WHERE NOT moves;
    ",
    // Launches, their machines and events, and what they have machines boot.
    "
    CREATE TABLE launched (
        mac   TEXT PRIMARY KEY,
        body  TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE launch (
        id    INTEGER PRIMARY KEY,
        body  TEXT NOT NULL
    ) STRICT;
    CREATE TABLE launch_machine (
        launch  INTEGER NOT NULL,
        turn    INTEGER NOT NULL,
        mac     TEXT NOT NULL,
        body    TEXT NOT NULL,
        PRIMARY KEY (launch, mac)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE launch_event (
        id      INTEGER PRIMARY KEY,
        launch  INTEGER NOT NULL,
        body    TEXT NOT NULL
    ) STRICT;
    ",
    // What machines are made of.
    "
    CREATE TABLE facts (
        mac    TEXT PRIMARY KEY,
        facts  TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    ",
];

/// The layout of today.
pub(super) const LAYOUT: i64 = MIGRATIONS.len() as i64;

/// Brings the database at `path` to today's layout.
pub(super) fn run(db: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let failed = |source| unusable(path, source);
    let found: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    let Some(todo) = usize::try_from(found).ok().and_then(|done| MIGRATIONS.get(done..)) else {
        return Err(OpenError::Newer { path: path.to_owned(), found, known: LAYOUT });
    };
    if found == 0 && !is_empty(db).map_err(failed)? {
        let found = "it has tables, and none of them is Bridgehead's".to_owned();
        return Err(OpenError::Damaged { path: path.to_owned(), found });
    }
    for (migration, from) in todo.iter().zip(found..) {
        step(db, migration, from + 1).map_err(|source| OpenError::Migrate {
            path: path.to_owned(),
            from,
            to: from + 1,
            source: source.into(),
        })?;
        if from > 0 {
            tracing::info!(path = %path.display(), from, to = from + 1, "the database was brought to a newer layout");
        }
    }
    Ok(())
}

/// One migration and its count, or neither.
fn step(db: &mut Connection, migration: &str, layout: i64) -> Result<(), rusqlite::Error> {
    let transaction = Transaction::new(db, TransactionBehavior::Immediate)?;
    transaction.execute_batch(migration)?;
    transaction.pragma_update(None, "user_version", layout)?;
    transaction.commit()
}

fn is_empty(db: &Connection) -> Result<bool, rusqlite::Error> {
    db.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))
}

/// For a test that stops in the middle.
#[cfg(test)]
pub(super) fn statements_to_2() -> impl Iterator<Item = &'static str> {
    MIGRATIONS[1].split_inclusive(';').filter(|statement| !statement.trim().is_empty())
}
