use pxe_common::Mac;

use super::*;
use crate::store::{Document, EventRow, Store};

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

fn refused(path: &Path) -> OpenError {
    open(path).err().unwrap_or_else(|| panic!("{} was opened", path.display()))
}

#[test]
fn what_is_not_ours_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("noise.db"), [b'x'; 8192]).unwrap();
    let error = refused(&path("noise.db"));
    assert!(matches!(error, OpenError::Damaged { .. }) && error.to_string().contains("noise.db"), "{error}");

    assert!(matches!(refused(&path("no/such/dir.db")), OpenError::Open { .. }));

    let foreign = Connection::open(path("foreign.db")).unwrap();
    foreign.execute_batch("CREATE TABLE lease (tenant TEXT, rent INTEGER)").unwrap();
    let error = refused(&path("foreign.db"));
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    let tables: i64 = foreign.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
    assert_eq!(tables, 1);

    open(&path("new.db")).unwrap();
    open(&path("new.db")).unwrap();
    let db = Connection::open(path("new.db")).unwrap();
    db.pragma_update(None, "user_version", migrations::LAYOUT + 1).unwrap();
    let error = refused(&path("new.db")).to_string();
    assert!(error.contains("newer Bridgehead's (its layout is 9, this program knows 8)"), "{error}");
}

#[test]
fn a_damaged_page_is_found_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let store = Store::open(&path).unwrap();
    for id in 1..2000 {
        let body = "x".repeat(100);
        store.post(Change::AddEvent(EventRow { id, mac: MAC, moves: true, body }));
    }
    store.flush();
    let db = Connection::open(&path).unwrap();
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop((store, db));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    let error = refused(&path);
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

/// A state directory of Bridgehead 0.1.0, made by that program: tests/data/0.1.0/README.md.
const RELEASED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/0.1.0/bridgehead.db");

/// Everything that a reader sees.
fn contents(store: &Store) -> String {
    let reader = store.reader();
    let mut leases = reader.leases().unwrap();
    leases.sort_by_key(|lease| lease.address);
    format!(
        "{leases:#?} {:#?} {:#?} {:#?} {:?}",
        reader.events_since(0, usize::MAX >> 1).unwrap(),
        Document::ALL.map(|document| reader.documents(document).unwrap()),
        reader.assignments().unwrap(),
        reader.has_volume_keys().unwrap(),
    )
}

fn released(dir: &Path) -> PathBuf {
    let path = dir.join("bridgehead.db");
    std::fs::copy(RELEASED, &path).unwrap();
    path
}

/// SQLite itself reads the rows before and after.
#[test]
fn a_database_of_0_1_0_is_migrated_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = released(dir.path());
    let before = rows(&Connection::open(&path).unwrap());
    let store = Store::open(&path).unwrap();
    let db = Connection::open(&path).unwrap();
    assert_eq!(rows(&db), before);
    let layout: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(layout, migrations::LAYOUT);

    let reader = store.reader();
    let events = reader.events_since(0, 1000).unwrap();
    let unmoved: Vec<&EventRow> = events.iter().filter(|event| !event.moves).collect();
    assert!(!unmoved.is_empty() && unmoved.len() < events.len());
    for event in unmoved {
        assert!(event.body.contains(r#""warning""#) || event.body.contains(r#""late""#), "{event:?}");
    }
    let last = reader.last_events().unwrap();
    assert!(last.iter().all(|event| event.moves));
    for document in Document::ALL {
        let came_later = document == Document::Facts;
        assert_eq!(reader.documents(document).unwrap().is_empty(), came_later, "{document:?}");
    }
    assert!(!reader.leases().unwrap().is_empty() && !reader.assignments().unwrap().is_empty());
    assert!(reader.has_volume_keys().unwrap());
    assert!(reader.nodes().unwrap().is_empty() && reader.named().unwrap().is_empty());
    assert!(reader.credentials().unwrap().is_empty() && reader.pins().unwrap().is_empty());

    let contents = contents(&store);
    drop(store);
    assert_eq!(self::contents(&Store::open(&path).unwrap()), contents, "once is enough");
}

/// The rows of 0.1.0's tables, without columns that came later.
fn rows(db: &Connection) -> Vec<String> {
    let tables = [
        ("lease", "address, mac, state, durable_until, client_ids, uuid"),
        ("event", "id, mac, body"),
        ("hold", "mac, hold"),
        ("kernel_trial", "mac, history"),
        ("boot_session", "mac, boot"),
        ("volume_key", "owner, plan, volume, hex(nonce), hex(sealed)"),
        ("assignment", "workload, node"),
    ];
    let mut rows = Vec::new();
    for (table, columns) in tables {
        let mut query = db.prepare(&format!("SELECT json_array({columns}) FROM {table} ORDER BY 1")).unwrap();
        let found = query.query_map([], |row| row.get::<_, String>(0)).unwrap();
        rows.extend(found.map(|row| format!("{table} {}", row.unwrap())));
    }
    rows
}

/// A power cut during a migration: the files that are on the disk then open as if it had never begun.
#[test]
fn an_interrupted_migration_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let whole = {
        let dir = tempfile::tempdir().unwrap();
        contents(&Store::open(&released(dir.path())).unwrap())
    };
    let path = released(dir.path());
    let db = Connection::open(&path).unwrap();
    // Pages go to the disk as soon as they are changed, long before the commit.
    db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA cache_size = 1; BEGIN IMMEDIATE").unwrap();
    let before = rows(&db);
    for (done, statement) in migrations::statements_to_2().enumerate() {
        db.execute_batch(statement).unwrap();
        let cut = dir.path().join(format!("cut-{done}"));
        std::fs::create_dir(&cut).unwrap();
        for file in ["bridgehead.db", "bridgehead.db-wal"] {
            std::fs::copy(dir.path().join(file), cut.join(file)).unwrap();
        }
        let copy = cut.join("bridgehead.db");
        assert_eq!(rows(&Connection::open(&copy).unwrap()), before, "cut after {done} statements");
        assert_eq!(contents(&Store::open(&copy).unwrap()), whole, "cut after {done} statements");
    }
}

/// A failed migration says what failed, and leaves the database to the program that made it.
#[test]
fn a_migration_that_fails_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = released(dir.path());
    let db = Connection::open(&path).unwrap();
    db.execute_batch("DROP INDEX event_by_mac").unwrap();
    let before = rows(&db);
    let error = refused(&path);
    assert!(matches!(error, OpenError::Migrate { from: 1, to: 2, .. }), "{error}");
    assert_eq!(rows(&db), before);
    let layout: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(layout, 1);
    db.execute_batch("CREATE INDEX event_by_mac ON event (mac, id)").unwrap();
    open(&path).unwrap();
}
