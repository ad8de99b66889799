//! A machine's state as a mark: a shape that says without colour, and in a few pixels, how far its boot is. Pure.

use maud::{Markup, html};
use pxe_contract::stage::Stage;
use serde::{Serialize, Serializer};

use crate::machines::Machine;

/// The marks, in the order of a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Mark {
    /// No boot was seen.
    None,
    /// It waits for its turn.
    Waiting,
    /// It asks for an address.
    Address,
    /// It loads its loader, which then asks for its configuration.
    Loader,
    /// It loads kernel and initrd.
    Kernel,
    /// Stage 1 runs, and fetches the image.
    Image,
    Running,
    /// Somebody wants it to wait in stage 1.
    Held,
    Failed,
}

impl Mark {
    pub(super) const ALL: [Self; 9] = [
        Self::None,
        Self::Waiting,
        Self::Address,
        Self::Loader,
        Self::Kernel,
        Self::Image,
        Self::Running,
        Self::Held,
        Self::Failed,
    ];

    pub(super) fn of(machine: &Machine) -> Self {
        if machine.is_held() {
            Self::Held
        } else if machine.waiting.is_some() {
            Self::Waiting
        } else {
            Self::of_stage(machine.stage)
        }
    }

    pub(super) fn of_stage(stage: Option<Stage>) -> Self {
        match stage {
            None | Some(Stage::Warning) => Self::None,
            Some(Stage::Discover | Stage::Offer | Stage::Request | Stage::Ack) => Self::Address,
            Some(Stage::Loader | Stage::Config) => Self::Loader,
            Some(Stage::Kernel | Stage::Initrd) => Self::Kernel,
            Some(Stage::Stage1 | Stage::Image) => Self::Image,
            Some(Stage::Workload) => Self::Running,
            Some(Stage::Failed) => Self::Failed,
        }
    }

    /// Its symbol's id.
    pub(super) fn id(self) -> &'static str {
        match self {
            Self::None => "m-none",
            Self::Waiting => "m-waiting",
            Self::Address => "m-address",
            Self::Loader => "m-loader",
            Self::Kernel => "m-kernel",
            Self::Image => "m-image",
            Self::Running => "m-running",
            Self::Held => "m-held",
            Self::Failed => "m-failed",
        }
    }

    /// What it stands for, in words.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::None => "not seen",
            Self::Waiting => "waiting for its turn",
            Self::Address => "asking for an address",
            Self::Loader => "loader and configuration",
            Self::Kernel => "kernel and initrd",
            Self::Image => "stage 1 and image",
            Self::Running => "running",
            Self::Held => "held",
            Self::Failed => "failed",
        }
    }

    /// The quarters of a boot that are behind it.
    fn quarters(self) -> Option<u8> {
        match self {
            Self::Address => Some(1),
            Self::Loader => Some(2),
            Self::Kernel => Some(3),
            Self::Image => Some(4),
            Self::None | Self::Waiting | Self::Running | Self::Held | Self::Failed => None,
        }
    }
}

/// As a patch names it.
impl Serialize for Mark {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.id())
    }
}

/// The mark in a text's line. The words beside it say the same, so it is hidden from who can't see it.
pub(super) fn mark(mark: Mark) -> Markup {
    html! {
        svg.mark aria-hidden="true" viewBox="0 0 16 16" {
            use data-f="k" href={ "#" (mark.id()) } {}
        }
    }
}

/// The symbols. Each page has them once, and every mark refers to one.
pub(super) fn symbols() -> Markup {
    html! {
        svg.symbols aria-hidden="true" width="0" height="0" {
            @for mark in Mark::ALL {
                symbol id=(mark.id()) viewBox="0 0 16 16" { (shape(mark)) }
            }
        }
    }
}

fn shape(mark: Mark) -> Markup {
    if let Some(quarters) = mark.quarters() {
        // The part of a disc that is filled, clockwise from the top.
        let sector = match quarters {
            1 => "M8 8V3a5 5 0 0 1 5 5z",
            2 => "M8 8V3a5 5 0 0 1 0 10z",
            3 => "M8 8V3a5 5 0 1 1-5 5z",
            _ => "M8 3a5 5 0 1 1 0 10a5 5 0 1 1 0-10z",
        };
        return html! {
            circle.ring.boot cx="8" cy="8" r="6.5" {}
            path.fill.boot d=(sector) {}
        };
    }
    match mark {
        Mark::None => html! { circle.ring.none cx="8" cy="8" r="6.5" stroke-dasharray="2 2" {} },
        Mark::Waiting => html! {
            circle.ring.wait cx="8" cy="8" r="6.5" {}
            path.line.wait d="M8 4.5V8l2.5 1.5" {}
        },
        Mark::Held => html! {
            circle.ring.held cx="8" cy="8" r="6.5" {}
            path.line.held d="M6 5.5v5M10 5.5v5" {}
        },
        Mark::Failed => html! {
            path.fill.fail d="M8 .8 15.2 8 8 15.2.8 8z" {}
            path.line.cut d="M5.8 5.8l4.4 4.4M10.2 5.8l-4.4 4.4" {}
        },
        Mark::Running | Mark::Address | Mark::Loader | Mark::Kernel | Mark::Image => html! {
            circle.fill.run cx="8" cy="8" r="7.2" {}
            path.line.cut d="M4.6 8.3l2.3 2.3 4.4-4.8" {}
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machines::Hold;

    #[test]
    fn every_stage_has_a_mark_and_every_mark_a_shape_of_its_own() {
        let mut machine = Machine::new(pxe_common::Mac([2; 6]));
        assert_eq!(Mark::of(&machine), Mark::None);
        machine.waiting = Some(3);
        assert_eq!(Mark::of(&machine), Mark::Waiting);
        machine.waiting = None;
        machine.hold = Some(Hold::UntilReleased);
        machine.stage = Some(Stage::Kernel);
        assert_eq!(Mark::of(&machine), Mark::Kernel, "it is not there yet");
        machine.stage = Some(Stage::Stage1);
        assert_eq!(Mark::of(&machine), Mark::Held);
        let marks: Vec<Mark> = Stage::ALL.into_iter().map(|stage| Mark::of_stage(Some(stage))).collect();
        let boot = &marks[..marks.len() - 2];
        assert!(boot.is_sorted(), "{boot:?}");

        let shapes: std::collections::BTreeSet<String> =
            Mark::ALL.into_iter().map(|mark| shape(mark).into_string()).collect();
        assert_eq!(shapes.len(), Mark::ALL.len());
        assert!(Mark::ALL.is_sorted());
    }
}
