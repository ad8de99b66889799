//! What a database engine must do.

use pxe_common::Mac;

use super::ReadError;
use super::rows::{
    AssignmentRow, AuditRow, Change, CredentialsRow, Document, EventRow, LaunchEventRow, LaunchMachineRow,
    LaunchRow, LaunchedRow, LeaseRow, LoginRow, NamedRow, NodeRow, PinRow, SealedKey, TokenRow, VolumeKeyId,
};

/// An engine's own error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Which transactions survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// All but the most recent ones.
    AllButLast,
    /// All, this one included.
    All,
}

/// A database, for its only writer.
pub trait Engine: Send + 'static {
    /// Applies the changes in order, all of them or none. When this returns, they survive the daemon's end; with
    /// [`Durability::All`] they survive a power cut, too.
    fn apply(&mut self, changes: &[&Change], durability: Durability) -> Result<(), BoxError>;

    /// A reader, which works beside the writer and sees whole transactions.
    fn reader(&self) -> Box<dyn Reader>;
}

/// A database, for everybody else.
pub trait Reader: Send + Sync + 'static {
    /// The database's name in errors.
    fn place(&self) -> String;

    /// Every lease, in any order.
    fn leases(&self) -> Result<Vec<LeaseRow>, ReadError>;

    /// Events with an id above `after`, oldest first, at most `limit`.
    fn events_since(&self, after: u64, limit: usize) -> Result<Vec<EventRow>, ReadError>;

    /// The newest events of a machine with an id above `after`, newest first, at most `limit`.
    fn events_of(&self, mac: Mac, after: u64, limit: usize) -> Result<Vec<EventRow>, ReadError>;

    /// The newest event of each machine that moved it.
    fn last_events(&self) -> Result<Vec<EventRow>, ReadError>;

    /// The newest event's id; 0 when there is none.
    fn last_event_id(&self) -> Result<u64, ReadError>;

    /// Every machine's document of one kind. A row with an invalid MAC address is left out and logged.
    fn documents(&self, document: Document) -> Result<Vec<(Mac, String)>, ReadError>;

    /// One machine's document, if it has one.
    fn document(&self, document: Document, mac: Mac) -> Result<Option<String>, ReadError>;

    /// Where workloads run.
    fn assignments(&self) -> Result<Vec<AssignmentRow>, ReadError>;

    fn volume_key(&self, id: &VolumeKeyId) -> Result<Option<SealedKey>, ReadError>;

    /// Whether there is any volume's key.
    fn has_volume_keys(&self) -> Result<bool, ReadError>;

    /// Every token, in any order.
    fn tokens(&self) -> Result<Vec<TokenRow>, ReadError>;

    /// Every login, oldest first.
    fn logins(&self) -> Result<Vec<LoginRow>, ReadError>;

    /// Entries of the audit with an id below `before`, newest first, at most `limit`.
    fn audit_before(&self, before: u64, limit: usize) -> Result<Vec<AuditRow>, ReadError>;

    /// Entries of the audit with an id above `after`, oldest first, at most `limit`.
    fn audit_since(&self, after: u64, limit: usize) -> Result<Vec<AuditRow>, ReadError>;

    /// The newest audit entry's id; 0 when there is none.
    fn last_audit_id(&self) -> Result<u64, ReadError>;

    /// Every machine that is declared in the database, by name.
    fn nodes(&self) -> Result<Vec<NodeRow>, ReadError>;

    /// Every machine that a rule took, by name.
    fn named(&self) -> Result<Vec<NamedRow>, ReadError>;

    /// All credentials, by name.
    fn credentials(&self) -> Result<Vec<CredentialsRow>, ReadError>;

    /// The certificates that BMCs showed, in no order.
    fn pins(&self) -> Result<Vec<PinRow>, ReadError>;

    /// What launches have machines boot, in no order.
    fn launched(&self) -> Result<Vec<LaunchedRow>, ReadError>;

    /// Every launch, by id.
    fn launches(&self) -> Result<Vec<LaunchRow>, ReadError>;

    /// The machines of one launch, by their turn.
    fn launch_machines(&self, launch: u64) -> Result<Vec<LaunchMachineRow>, ReadError>;

    /// Events of launches with an id above `after`, oldest first, at most `limit`.
    fn launch_events_since(&self, after: u64, limit: usize) -> Result<Vec<LaunchEventRow>, ReadError>;

    /// The newest one's id; 0 when there is none.
    fn last_launch_event_id(&self) -> Result<u64, ReadError>;
}
