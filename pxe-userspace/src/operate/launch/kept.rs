//! Launches in the store.

use crate::store::{Change, LaunchEventRow, LaunchMachineRow, LaunchRow, ReadError, Store};

use super::model::{Launch, LaunchEvent, Member};

/// Every launch. One that can't be read is left alone, and the log says so.
pub(super) fn launches(store: &Store) -> Result<Vec<Launch>, ReadError> {
    let rows = store.reader().launches()?;
    Ok(rows.into_iter().filter_map(|LaunchRow { id, body }| read(&body, id)).collect())
}

/// The machines of one, by their turn.
pub(super) fn members(store: &Store, launch: u64) -> Result<Vec<Member>, ReadError> {
    let rows = store.reader().launch_machines(launch)?;
    Ok(rows.into_iter().filter_map(|row| read(&row.body, launch)).collect())
}

fn read<T: serde::de::DeserializeOwned>(body: &str, launch: u64) -> Option<T> {
    serde_json::from_str(body)
        .inspect_err(|error| {
            tracing::warn!(launch, %error, "a launch in the database that can't be read: left alone");
        })
        .ok()
}

/// All of a new one.
pub(super) fn whole(launch: &Launch, members: &[Member]) -> Vec<Change> {
    let machines = (0..).zip(members).map(|(turn, member)| put_member(launch.id, turn, member));
    std::iter::once(put(launch)).chain(machines).collect()
}

pub(super) fn put(launch: &Launch) -> Change {
    Change::PutLaunch(LaunchRow { id: launch.id, body: text(launch) })
}

pub(super) fn put_member(launch: u64, turn: u32, member: &Member) -> Change {
    Change::PutLaunchMachine(LaunchMachineRow { launch, turn, mac: member.mac, body: text(member) })
}

pub(super) fn add_event(event: &LaunchEvent) -> Change {
    Change::AddLaunchEvent(LaunchEventRow { id: event.id, launch: event.launch, body: text(event) })
}

fn text(document: &impl serde::Serialize) -> String {
    serde_json::to_string(document).expect("it has only text keys")
}
