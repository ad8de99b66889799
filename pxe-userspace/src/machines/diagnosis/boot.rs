//! One boot of one machine, as the appliance observed it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use jiff::Timestamp;
use pxe_common::dhcp::Firmware;
use pxe_contract::paths::LoadFailure;
use pxe_contract::stage::Stage;

use super::Evidence;
use crate::base::text::word;
use crate::machines::event::{AnsweredBy, Event};

/// Notes that are kept of one boot. GRUB asks for 13 names, a boot has some ten transfers.
const NOTES_MAX: usize = 96;

/// What was observed of a boot.
#[derive(Clone, Debug)]
pub struct Boot {
    pub began: Timestamp,
    /// The last sign of life.
    pub last: Timestamp,
    firmware: Option<Firmware>,
    pub stages: BTreeMap<Stage, Reached>,
    pub notes: Vec<(Timestamp, Note)>,
    /// Transfers in progress.
    pub open: u32,
    pub end: Option<End>,
    /// What the timeline was last told of a loader that could not load its files.
    pub(super) not_loaded: Option<String>,
}

/// A stage that a machine reached, perhaps several times.
#[derive(Clone, Debug, PartialEq)]
pub struct Reached {
    pub first: Timestamp,
    pub last: Timestamp,
    pub times: u32,
    pub answered_by: AnsweredBy,
    pub bytes: u64,
    /// Seconds that its transfers took.
    pub seconds: f64,
    /// What the first event said.
    pub detail: Option<String>,
}

/// How a boot ended before its time.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    pub time: Timestamp,
    /// A cause that stage 1 or the appliance named; `None` when the machine gave up by itself.
    pub said: Option<String>,
}

/// An observation of a server that is not a stage.
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    /// A DISCOVER's `secs` (RFC 2131 section 2).
    Secs(u16),
    /// It is not offered an address yet: this many machines are before it.
    Waits { before: usize },
    /// Another DHCP server answered it, or it accepted that server's offer.
    OtherServer { server: Ipv4Addr, taken: bool },
    /// The DHCP server beside which we are a proxy gave it its address, and named this server for what comes next.
    NextServer { server: Ipv4Addr, next: Ipv4Addr },
    /// A DHCP client other than firmware asked for an address.
    SystemAsked,
    /// What its loader was told to load.
    Planned(Planned),
    /// Its image is being imported.
    Preparing { image: String },
    /// A transfer began.
    Opened { path: String, bytes: u64, blksize: Option<u16> },
    /// Progress of a transfer.
    Progress { path: String, percent: u8 },
    /// A transfer ended, with this many retransmissions.
    Sent { path: String, repeated: u32 },
    /// The machine aborted a TFTP transfer.
    Aborted { path: String, code: u16, message: String, acked: u32, blocks: u32 },
    /// It stopped acknowledging.
    Stalled { path: String, acked: u32, blocks: u32, blksize: u16, repeated: u32 },
    /// The machine closed an HTTP connection before the whole answer was sent.
    Cut { path: String, sent: u64, bytes: u64 },
    /// What it asked for was not served.
    NotServed { path: String, why: String },
    /// Its loader could not do what it was told, and asks again. A kernel by hand may have a flaw, in words.
    NotLoaded { failure: LoadFailure, flaw: Option<String> },
    /// A request of its stage 1 was refused.
    Refused { what: Refusal, why: String },
}

/// Why a request in the name of a machine was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It came from an address that is not its machine's.
    Address,
    /// It came without the certificate of its machine's boot.
    Session,
    /// Its token is not valid, or no longer.
    Token,
}

/// A boot as its loader was told.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Whether its initrd has our stage 1, which reports.
    pub reports: bool,
    pub initrds: usize,
    /// The memory that it needs and that it is configured to have, in bytes.
    pub needed: Option<u64>,
    pub memory: Option<u64>,
    /// The kernel's consoles.
    pub consoles: Vec<String>,
}

impl Boot {
    pub fn new(now: Timestamp) -> Self {
        Self {
            began: now,
            last: now,
            firmware: None,
            stages: BTreeMap::new(),
            notes: Vec::new(),
            open: 0,
            end: None,
            not_loaded: None,
        }
    }

    /// A stage was reached, or the boot was reported as failed.
    pub fn reached(&mut self, event: &Event) {
        if event.stage == Stage::Warning {
            return;
        }
        self.last = event.time;
        self.firmware = self.firmware.or(event.firmware);
        if event.stage == Stage::Failed {
            let said = event.cause.clone().filter(|cause| !is_of_our_own(cause));
            self.end = Some(End { time: event.time, said });
            return;
        }
        // It goes on after all. A loader that was refused, or could not load its files, asks for its configuration again
        // and again, and may load the first of the files each time.
        let goes_round = match event.stage {
            Stage::Config => true,
            Stage::Kernel | Stage::Initrd => self.has(event.stage),
            Stage::Discover
            | Stage::Offer
            | Stage::Request
            | Stage::Ack
            | Stage::Loader
            | Stage::Stage1
            | Stage::Image
            | Stage::Workload
            | Stage::Failed
            | Stage::Warning => false,
        };
        if !goes_round && !event.late {
            self.end = None;
            self.not_loaded = None;
        }
        let reached = self.stages.entry(event.stage).or_insert_with(|| Reached {
            first: event.time,
            last: event.time,
            times: 0,
            answered_by: event.answered_by,
            bytes: 0,
            seconds: 0.0,
            detail: event.detail.clone(),
        });
        reached.last = event.time;
        reached.times += 1;
        reached.answered_by = event.answered_by;
        reached.bytes += event.bytes.unwrap_or(0);
        reached.seconds += event.duration.unwrap_or(0.0);
    }

    /// Adds an observation.
    pub fn noticed(&mut self, time: Timestamp, note: Note) {
        match &note {
            Note::Opened { .. } => self.open += 1,
            Note::Sent { path, .. }
            | Note::Aborted { path, .. }
            | Note::Stalled { path, .. }
            | Note::Cut { path, .. } => {
                // The end of an earlier boot's transfer says nothing about this one.
                if !self.notes.iter().any(|(_, n)| matches!(n, Note::Opened { path: p, .. } if p == path)) {
                    return;
                }
                self.open = self.open.saturating_sub(1);
            }
            Note::Secs(_) if self.notes.iter().any(|(_, n)| matches!(n, Note::Secs(_))) => return,
            // The rest: only kept.
            _ => {}
        }
        // An earlier daemon's transfers stall long after their machines have left.
        if !matches!(note, Note::Stalled { .. }) {
            self.last = time;
        }
        if let Note::Progress { path, .. } = &note {
            self.notes.retain(|(_, n)| !matches!(n, Note::Progress { path: p, .. } if p == path));
        }
        if self.notes.len() >= NOTES_MAX {
            self.notes.remove(NOTES_MAX / 2);
        }
        self.notes.push((time, note));
    }

    /// Drops all notes but the evidence that the boot is over.
    pub(super) fn forget_notes(&mut self) {
        self.notes.retain(|(_, note)| matches!(note, Note::Planned(_) | Note::Secs(_)));
        self.notes.shrink_to_fit();
    }

    pub fn last_stage(&self) -> Option<Stage> {
        self.stages.keys().next_back().copied()
    }

    pub fn has(&self, stage: Stage) -> bool {
        self.stages.contains_key(&stage)
    }

    /// How many machines were before it, and when, if it had to wait for its turn.
    pub(super) fn waited(&self) -> Option<(Timestamp, usize)> {
        self.notes.iter().rev().find_map(|(time, note)| match note {
            Note::Waits { before } => Some((*time, *before)),
            _ => None,
        })
    }

    /// Whether it went as far as the appliance can observe. Where pxe-init does not run on the machine, its last file
    /// is the last observation.
    pub fn is_done(&self) -> bool {
        let by_hand = match self.planned() {
            Some(Planned { reports: true, .. }) => false,
            Some(plan) => self.has(Stage::Kernel) && (plan.initrds == 0 || self.has(Stage::Initrd)),
            None => self.has(Stage::Initrd),
        };
        self.has(Stage::Workload) || by_hand && !self.has(Stage::Stage1)
    }

    /// Whether it has ended, or has been silent for longer than is usual at any stage.
    pub fn is_stuck(&self, now: Timestamp) -> bool {
        self.end.is_some() || self.is_quiet(now, self.patience() / 5)
    }

    /// Whether it has been silent for longer than any machine that is still booting.
    pub fn is_silent(&self, now: Timestamp) -> bool {
        self.end.is_none() && !self.is_done() && self.is_quiet(now, self.patience())
    }

    fn is_quiet(&self, now: Timestamp, patience: Duration) -> bool {
        self.open == 0 && since(self.last, now) >= patience
    }

    /// How long a machine at this stage may be silent. Firmware gives up on offers after a minute at
    /// most (EDK2 4 + 8 + 16 + 32 s). A kernel that unpacks an image on a slow machine takes minutes;
    /// stage 1 may make file systems.
    fn patience(&self) -> Duration {
        Duration::from_secs(match self.last_stage() {
            None | Some(Stage::Discover | Stage::Offer | Stage::Request) => 70,
            Some(Stage::Ack | Stage::Loader | Stage::Config | Stage::Kernel) => 60,
            Some(Stage::Initrd) => 300,
            Some(Stage::Stage1 | Stage::Image | Stage::Workload | Stage::Failed | Stage::Warning) => 600,
        })
    }

    /// What its loader was last told.
    pub fn planned(&self) -> Option<&Planned> {
        self.notes.iter().rev().find_map(|(_, note)| match note {
            Note::Planned(planned) => Some(planned),
            _ => None,
        })
    }

    /// The firmware that first asked for an address.
    pub fn firmware(&self) -> Option<Firmware> {
        self.firmware
    }

    pub fn is_uefi(&self) -> bool {
        self.firmware.is_some_and(Firmware::is_uefi)
    }

    /// The stage as evidence.
    pub(super) fn evidence(&self, stage: Stage) -> Option<Evidence> {
        let Reached { first, last, times, bytes, seconds, detail, .. } = self.stages.get(&stage)?;
        let mut words = word(stage);
        if *times > 1 {
            words += &format!(", {times} times in {:.1} s", since(*first, *last).as_secs_f64());
        }
        if let Some(detail) = detail {
            words += &format!(": {detail}");
        }
        if *bytes > 0 {
            words += &format!(", {bytes} bytes in {seconds:.1} s");
        }
        Some(Evidence { time: Some(*first), words })
    }
}

/// The first words of the causes that a [`Watch`](super::Watch) gives to the timeline.
pub(super) const BEGAN_ANEW: &str = "it began anew after";
pub(super) const NOTHING_HEARD: &str = "nothing heard for";
pub(super) const NOT_LOADED: &str = "its loader tries again and again";

fn is_of_our_own(cause: &str) -> bool {
    [BEGAN_ANEW, NOTHING_HEARD, NOT_LOADED].iter().any(|words| cause.starts_with(words))
}

/// From one time to another; zero when a clock was set back between them.
pub(super) fn since(from: Timestamp, to: Timestamp) -> Duration {
    to.duration_since(from).try_into().unwrap_or_default()
}
