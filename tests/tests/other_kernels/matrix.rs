//! Kernel x card x mode: what is declared for each, and the table of results.

use std::fmt::{self, Write as _};
use std::fs;
use std::path::Path;

use anyhow::{Error, Result};
use lab::guest::card::Virtio;
use lab::guest::{Card, Suite};

use crate::row::{By, Report};

/// A kernel with a card, and the fast path's expected result.
pub(crate) struct Row {
    pub(crate) suite: Suite,
    pub(crate) card: Card,
    /// `[network] fast-path`.
    pub(crate) mode: &'static str,
    /// As `bridgehead status` prints it.
    pub(crate) tier: &'static str,
    /// Who answers a lease of a known machine, and blocks that are requested one by one.
    pub(crate) lock_step: By,
    /// Who answers if several blocks are requested at once.
    pub(crate) windows: By,
}

const fn row(
    suite: Suite,
    card: Card,
    mode: &'static str,
    tier: &'static str,
    lock_step: By,
    windows: By,
) -> Row {
    Row { suite, card, mode, tier, lock_step, windows }
}

const VIRTIO: Card = Card::VIRTIO;
const QUEUES: Card = Card::Virtio(Virtio { queues: 4, ..Virtio::PLAIN });
/// Its driver then has buffers for larger frames, and passes no incoming frame to XDP (`receive_big` in virtio_net.c),
/// though it accepts the program: the appliance detaches it when it notices.
/// it takes the program: the appliance takes that off when it notices.
const SINGLE_BUFFERS: Card = Card::Virtio(Virtio { mergeable: false, ..Virtio::PLAIN });
const NO_CSUM: Card = Card::Virtio(Virtio { guest_csum: false, ..Virtio::PLAIN });
const NO_GSO: Card = Card::Virtio(Virtio { guest_gso: false, ..Virtio::PLAIN });
const BARE: Card = Card::Virtio(Virtio {
    mergeable: false,
    guest_csum: false,
    guest_gso: false,
    host_offloads: false,
    ..Virtio::PLAIN
});

/// The first row of each kernel is part of every run.
#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = {
    use By::{Daemon, Tc, Xdp};
    use Card::{E1000e, Igb, Vmxnet3};
    use Suite::{Backports, Bookworm, Trixie};
    &[
        row(Bookworm,  VIRTIO,         "auto", "xdp-and-tc", Xdp,    Tc),
        row(Bookworm,  VIRTIO,         "xdp",  "xdp",        Xdp,    Daemon),
        row(Bookworm,  VIRTIO,         "tc",   "tc",         Tc,     Tc),
        row(Bookworm,  VIRTIO,         "off",  "off",        Daemon, Daemon),
        row(Bookworm,  QUEUES,         "auto", "xdp-and-tc", Xdp,    Tc),
        row(Bookworm,  SINGLE_BUFFERS, "auto", "tc",         Tc,     Tc),
        row(Bookworm,  NO_CSUM,        "auto", "xdp-and-tc", Xdp,    Tc),
        row(Bookworm,  NO_GSO,         "auto", "xdp-and-tc", Xdp,    Tc),
        row(Bookworm,  BARE,           "auto", "xdp-and-tc", Xdp,    Tc),
        row(Bookworm,  BARE,           "tc",   "tc",         Tc,     Tc),
        row(Bookworm,  E1000e,         "auto", "tc",         Tc,     Tc),
        row(Bookworm,  Vmxnet3,        "auto", "tc",         Tc,     Tc),
        row(Bookworm,  Igb,            "auto", "xdp-and-tc", Xdp,    Tc),

        row(Trixie,    VIRTIO,         "auto", "xdp-and-tc", Xdp,    Tc),
        row(Trixie,    VIRTIO,         "xdp",  "xdp",        Xdp,    Daemon),
        row(Trixie,    VIRTIO,         "tc",   "tc",         Tc,     Tc),
        row(Trixie,    VIRTIO,         "off",  "off",        Daemon, Daemon),
        row(Trixie,    QUEUES,         "auto", "xdp-and-tc", Xdp,    Tc),
        row(Trixie,    SINGLE_BUFFERS, "auto", "tc",         Tc,     Tc),
        row(Trixie,    NO_CSUM,        "auto", "xdp-and-tc", Xdp,    Tc),
        row(Trixie,    NO_GSO,         "auto", "xdp-and-tc", Xdp,    Tc),
        row(Trixie,    BARE,           "auto", "xdp-and-tc", Xdp,    Tc),
        row(Trixie,    BARE,           "tc",   "tc",         Tc,     Tc),
        row(Trixie,    E1000e,         "auto", "tc",         Tc,     Tc),
        row(Trixie,    Vmxnet3,        "auto", "xdp-and-tc", Xdp,    Tc),
        row(Trixie,    Vmxnet3,        "xdp",  "xdp",        Xdp,    Daemon),
        row(Trixie,    Vmxnet3,        "tc",   "tc",         Tc,     Tc),
        row(Trixie,    Igb,            "auto", "xdp-and-tc", Xdp,    Tc),

        row(Backports, VIRTIO,         "auto", "xdp-and-tc", Xdp,    Tc),
        row(Backports, VIRTIO,         "tc",   "tc",         Tc,     Tc),
    ]
};

impl Row {
    /// Whether frames carry their offload state over the cable, because the card is offered some offload.
    pub(crate) fn vnet_hdr(&self) -> bool {
        !matches!(self.card, Card::Virtio(Virtio { host_offloads: false, guest_csum: false, .. }))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.suite.name(), self.card, self.mode)
    }
}

/// The table, one line per row.
#[derive(Default)]
pub(crate) struct Table(String);

impl Table {
    pub(crate) fn report(&mut self, row: &Row, report: &Report) {
        let Report { kernel, tier, reason, lease, lock_step, windows, .. } = report;
        self.line(row, kernel, &format!("{tier} | {lease} | {lock_step} | {windows} | {}", cell(reason)));
    }

    pub(crate) fn missing(&mut self, row: &Row, why: &str) {
        self.line(row, row.suite.name(), &format!("not tested | | | | {}", cell(why)));
    }

    pub(crate) fn fault(&mut self, row: &Row, fault: &Error) {
        self.line(row, row.suite.name(), &format!("**fault** | | | | {}", cell(&format!("{fault:#}"))));
    }

    fn line(&mut self, row: &Row, kernel: &str, rest: &str) {
        let _ =
            writeln!(self.0, "| {} | {kernel} | {} | {} | {rest} |", row.suite.words(), row.card, row.mode);
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        const HEAD: &str = "| release | kernel | card | `fast-path` | tier | lease by | lock-step by | windows by | \
             what was refused, in the kernel's words |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
        Ok(fs::write(path, format!("{HEAD}{}", self.0))?)
    }
}

/// Text that does not break its cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
