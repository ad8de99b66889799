//! Changes, as statements.

use rusqlite::{Connection, Transaction, params};

use crate::store::{Change, Document, LeaseRow};

/// How many events are kept. Older ones are deleted.
const EVENTS_KEPT: u64 = 1_000_000;

/// How many of one machine's events are kept, among those that changed its stage. A machine that reports without end
/// can't displace the others' events.
const EVENTS_OF_MACHINE: u64 = 2_000;

/// Each event whose id is a multiple of this has its machine's events counted. Machines that add many are found soon,
/// and the others cost little.
const COUNTED_EVERY: u64 = 32;
/// How many audit entries are kept: one a minute for two months. An entry has some hundred bytes, and 8 KiB at most.
const AUDIT_KEPT: u64 = 100_000;
/// Of launches. A launch of a thousand machines has some ten thousand.
const LAUNCH_EVENTS_KEPT: u64 = 200_000;

/// Applies all changes, or none.
pub(super) fn apply(db: &mut Connection, changes: &[&Change]) -> Result<(), rusqlite::Error> {
    let transaction = db.transaction()?;
    let mut last_event = None;
    for change in changes {
        one(&transaction, change)?;
        if let Change::AddEvent(event) = change {
            last_event = Some(event.id);
        }
    }
    // This deletes as many rows as were added, by the primary key: it is cheap enough for each transaction.
    if let Some(last) = last_event {
        let forget = "DELETE FROM event WHERE id <= ?";
        transaction.prepare_cached(forget)?.execute([last.saturating_sub(EVENTS_KEPT)])?;
    }
    transaction.commit()
}

fn one(db: &Transaction<'_>, change: &Change) -> Result<(), rusqlite::Error> {
    match change {
        Change::PutLease(lease) => put_lease(db, lease)?,
        Change::RemoveLease(address) => {
            db.prepare_cached("DELETE FROM lease WHERE address = ?")?.execute([address.to_string()])?;
        }
        Change::AddEvent(event) => {
            let insert = "INSERT OR REPLACE INTO event (id, mac, body, moves) VALUES (?, ?, ?, ?)";
            let values = params![event.id, event.mac.to_string(), event.body, event.moves];
            db.prepare_cached(insert)?.execute(values)?;
            if event.id % COUNTED_EVERY == 0 {
                // Served by the index of the events that changed a stage.
                let forget = "DELETE FROM event WHERE moves AND mac = ?1 AND id <= (
                    SELECT id FROM event WHERE moves AND mac = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)";
                db.prepare_cached(forget)?.execute(params![event.mac.to_string(), EVENTS_OF_MACHINE])?;
            }
        }
        Change::PutDocument(document, mac, text) => {
            let insert = match document {
                Document::Hold => "INSERT OR REPLACE INTO hold (mac, hold) VALUES (?, ?)",
                Document::KernelTrial => "INSERT OR REPLACE INTO kernel_trial (mac, history) VALUES (?, ?)",
                Document::BootSession => "INSERT OR REPLACE INTO boot_session (mac, boot) VALUES (?, ?)",
                Document::Facts => "INSERT OR REPLACE INTO facts (mac, facts) VALUES (?, ?)",
            };
            db.prepare_cached(insert)?.execute(params![mac.to_string(), text])?;
        }
        Change::RemoveDocument(document, mac) => {
            let delete = match document {
                Document::Hold => "DELETE FROM hold WHERE mac = ?",
                Document::KernelTrial => "DELETE FROM kernel_trial WHERE mac = ?",
                Document::BootSession => "DELETE FROM boot_session WHERE mac = ?",
                Document::Facts => "DELETE FROM facts WHERE mac = ?",
            };
            db.prepare_cached(delete)?.execute([mac.to_string()])?;
        }
        Change::SetAssignments(assignments) => {
            db.prepare_cached("DELETE FROM assignment")?.execute([])?;
            for assignment in assignments {
                db.prepare_cached("INSERT INTO assignment (workload, node) VALUES (?, ?)")?
                    .execute(params![assignment.workload, assignment.node])?;
            }
        }
        Change::AddVolumeKey(id, key) => {
            let insert = "INSERT INTO volume_key (owner, plan, volume, nonce, sealed) VALUES (?, ?, ?, ?, ?)";
            let values = params![id.owner, id.plan, id.volume, key.nonce, key.sealed];
            db.prepare_cached(insert)?.execute(values)?;
        }
        Change::AddToken(token) => {
            let insert = "INSERT INTO token (name, hash, role, added, expires) VALUES (?, ?, ?, ?, ?)";
            let (added, expires) = (token.added.to_string(), token.expires.map(|time| time.to_string()));
            db.prepare_cached(insert)?
                .execute(params![token.name, token.hash, token.role, added, expires])?;
        }
        Change::RemoveToken(name) => {
            db.prepare_cached("DELETE FROM token WHERE name = ?")?.execute([name])?;
        }
        Change::PutNode(node) => {
            let insert = "INSERT OR REPLACE INTO node (name, mac, body) VALUES (?, ?, ?)";
            db.prepare_cached(insert)?.execute(params![node.name, node.mac.to_string(), node.body])?;
        }
        Change::RemoveNode(name) => {
            db.prepare_cached("DELETE FROM node WHERE name = ?")?.execute([name])?;
        }
        Change::PutNamed(named) => {
            let insert = "INSERT OR REPLACE INTO named (name, facts) VALUES (?, ?)";
            db.prepare_cached(insert)?.execute(params![named.name, named.facts])?;
        }
        Change::RemoveNamed(name) => {
            db.prepare_cached("DELETE FROM named WHERE name = ?")?.execute([name])?;
        }
        Change::PutCredentials(_)
        | Change::RemoveCredentials(_)
        | Change::PutPin(_)
        | Change::SetLogins(_) => identity(db, change)?,
        Change::PutLaunched(_)
        | Change::RemoveLaunched(_)
        | Change::PutLaunch(_)
        | Change::RemoveLaunch(_)
        | Change::PutLaunchMachine(_)
        | Change::AddLaunchEvent(_) => launch(db, change)?,
        Change::AddAudit(entry) => {
            let insert = "INSERT INTO audit (id, body) VALUES (?, ?)";
            db.prepare_cached(insert)?.execute(params![entry.id, entry.body])?;
            let forget = "DELETE FROM audit WHERE id <= ?";
            db.prepare_cached(forget)?.execute([entry.id.saturating_sub(AUDIT_KEPT)])?;
        }
    }
    Ok(())
}

/// Who the appliance is before BMCs, who they are, and who is logged in.
fn identity(db: &Transaction<'_>, change: &Change) -> Result<(), rusqlite::Error> {
    match change {
        Change::PutCredentials(row) => {
            let insert = "INSERT OR REPLACE INTO credentials (name, user, nonce, sealed, added) VALUES (?, ?, ?, ?, ?)";
            let values = params![row.name, row.user, row.nonce, row.sealed, row.added.to_string()];
            db.prepare_cached(insert)?.execute(values)?;
        }
        Change::RemoveCredentials(name) => {
            db.prepare_cached("DELETE FROM credentials WHERE name = ?")?.execute([name])?;
        }
        Change::PutPin(pin) => {
            let insert = "INSERT OR REPLACE INTO pin (place, fingerprint, since) VALUES (?, ?, ?)";
            let values = params![pin.place, pin.fingerprint, pin.since.to_string()];
            db.prepare_cached(insert)?.execute(values)?;
        }
        Change::SetLogins(logins) => {
            db.prepare_cached("DELETE FROM login")?.execute([])?;
            for login in logins {
                db.prepare_cached("INSERT INTO login (hash, ends, body) VALUES (?, ?, ?)")?
                    .execute(params![login.hash, login.ends.to_string(), login.body])?;
            }
        }
        // The rest: not called with.
        _ => unreachable!("no change of an identity"),
    }
    Ok(())
}

/// The tables of launches.
fn launch(db: &Transaction<'_>, change: &Change) -> Result<(), rusqlite::Error> {
    match change {
        Change::PutLaunched(pin) => {
            let insert = "INSERT OR REPLACE INTO launched (mac, body) VALUES (?, ?)";
            db.prepare_cached(insert)?.execute(params![pin.mac.to_string(), pin.body])?;
        }
        Change::RemoveLaunched(mac) => {
            db.prepare_cached("DELETE FROM launched WHERE mac = ?")?.execute([mac.to_string()])?;
        }
        Change::PutLaunch(launch) => {
            let insert = "INSERT OR REPLACE INTO launch (id, body) VALUES (?, ?)";
            db.prepare_cached(insert)?.execute(params![launch.id, launch.body])?;
        }
        Change::RemoveLaunch(id) => {
            db.prepare_cached("DELETE FROM launch WHERE id = ?")?.execute([id])?;
            db.prepare_cached("DELETE FROM launch_machine WHERE launch = ?")?.execute([id])?;
        }
        Change::PutLaunchMachine(machine) => {
            let insert =
                "INSERT OR REPLACE INTO launch_machine (launch, turn, mac, body) VALUES (?, ?, ?, ?)";
            let values = params![machine.launch, machine.turn, machine.mac.to_string(), machine.body];
            db.prepare_cached(insert)?.execute(values)?;
        }
        Change::AddLaunchEvent(event) => {
            let insert = "INSERT OR REPLACE INTO launch_event (id, launch, body) VALUES (?, ?, ?)";
            db.prepare_cached(insert)?.execute(params![event.id, event.launch, event.body])?;
            let forget = "DELETE FROM launch_event WHERE id <= ?";
            db.prepare_cached(forget)?.execute([event.id.saturating_sub(LAUNCH_EVENTS_KEPT)])?;
        }
        // The rest: the caller hands no others over.
        _ => {}
    }
    Ok(())
}

fn put_lease(db: &Transaction<'_>, lease: &LeaseRow) -> Result<(), rusqlite::Error> {
    let insert = "INSERT OR REPLACE INTO lease (address, mac, state, durable_until, client_ids, uuid)
                  VALUES (?, ?, ?, ?, ?, ?)";
    let client_ids: Vec<&str> = lease.client_ids.iter().map(String::as_str).collect();
    db.prepare_cached(insert)?.execute(params![
        lease.address.to_string(),
        lease.mac.to_string(),
        lease.state,
        lease.durable_until.to_string(),
        client_ids.join(" "),
        lease.uuid,
    ])?;
    Ok(())
}
