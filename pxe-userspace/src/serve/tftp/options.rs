//! Option negotiation (RFC 2347, 2348, 2349, 7440). Pure.

use std::num::NonZeroU16;
use std::time::Duration;

use pxe_common::tftp::packet::Options;
use pxe_common::tftp::{BLKSIZE_RANGE, DEFAULT_BLKSIZE, HEADER_LEN};
use pxe_common::wire::{IPV4_LEN, UDP_LEN};

/// Blocks in flight at most. EDK2 asks for 4; larger windows overrun a firmware's receive ring.
const MAX_WINDOW: u16 = 64;

/// The terms of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) blksize: NonZeroU16,
    pub(super) window: NonZeroU16,
    /// The client's; `None` if the server chooses.
    pub(super) timeout: Option<Duration>,
    /// The options of the OACK, in the client's order; empty if none was accepted.
    pub(super) accepted: Vec<(&'static str, u64)>,
}

/// A known option whose value is not a number.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the value of option {0} is not a number")]
pub(super) struct NotANumber(pub(super) &'static str);

/// Agrees on terms for a file of `len` bytes on a network with this MTU.
///
/// An option that is unknown, or whose value the RFC does not allow, is not acknowledged, which
/// means that it does not apply (RFC 2347). A block is never larger than a frame: firmware does not
/// put fragments together.
pub(super) fn agree(options: Options<'_>, len: u64, mtu: u16) -> Result<Terms, NotANumber> {
    let largest = mtu.saturating_sub((IPV4_LEN + UDP_LEN + HEADER_LEN) as u16).max(*BLKSIZE_RANGE.start());
    let mut terms = Terms {
        blksize: nonzero(DEFAULT_BLKSIZE.min(largest)),
        window: NonZeroU16::MIN,
        timeout: None,
        accepted: Vec::new(),
    };
    let accept = |name: &'static str, value: u64, terms: &mut Terms| {
        // An option may appear once; of repeats the first counts.
        let new = terms.accepted.iter().all(|(known, _)| *known != name);
        if new {
            terms.accepted.push((name, value));
        }
        new
    };
    for (name, value) in options.iter() {
        if name.eq_ignore_ascii_case(b"blksize") {
            let asked = number("blksize", value)?;
            if asked >= u64::from(*BLKSIZE_RANGE.start()) {
                let size = asked.min(u64::from(largest)) as u16;
                if accept("blksize", size.into(), &mut terms) {
                    terms.blksize = nonzero(size);
                }
            }
        } else if name.eq_ignore_ascii_case(b"windowsize") {
            let asked = number("windowsize", value)?;
            if asked >= 1 {
                let window = asked.min(MAX_WINDOW.into()) as u16;
                if accept("windowsize", window.into(), &mut terms) {
                    terms.window = nonzero(window);
                }
            }
        } else if name.eq_ignore_ascii_case(b"timeout") {
            let asked = number("timeout", value)?;
            if (1..=255).contains(&asked) && accept("timeout", asked, &mut terms) {
                terms.timeout = Some(Duration::from_secs(asked));
            }
        } else if name.eq_ignore_ascii_case(b"tsize") {
            number("tsize", value)?;
            accept("tsize", len, &mut terms);
        }
    }
    Ok(terms)
}

fn number(name: &'static str, value: &[u8]) -> Result<u64, NotANumber> {
    // Digits only: `parse` alone would take a sign.
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| digits);
    text.and_then(|t| t.parse().ok()).ok_or(NotANumber(name))
}

fn nonzero(value: u16) -> NonZeroU16 {
    NonZeroU16::new(value).unwrap_or(NonZeroU16::MIN)
}

#[cfg(test)]
mod tests {
    use pxe_common::tftp::Packet;

    use super::*;

    fn agreed(options: &str) -> Result<Terms, NotANumber> {
        let request = [b"\0\x01f\0octet\0", options.replace(' ', "\0").as_bytes()].concat();
        let Ok(Packet::Read(request)) = Packet::parse(&request) else { panic!("{options:?} is no request") };
        agree(request.options, 5000, 1500)
    }

    #[test]
    fn edk2_gets_its_window() {
        let terms = agreed("tsize 0 blksize 1468 windowsize 4 ").unwrap();
        assert_eq!((terms.blksize.get(), terms.window.get()), (1468, 4));
        assert_eq!(terms.accepted, [("tsize", 5000), ("blksize", 1468), ("windowsize", 4)]);
    }

    #[test]
    fn no_block_is_larger_than_a_frame_and_no_window_than_ours() {
        let terms = agreed("BLKSIZE 65464 WindowSize 65535 ").unwrap();
        assert_eq!(terms.accepted, [("blksize", 1468), ("windowsize", 64)]);
    }

    #[test]
    fn what_is_not_allowed_or_known_is_not_acknowledged() {
        let terms = agreed("blksize 7 windowsize 0 timeout 256 multicast 1 ").unwrap();
        assert_eq!((terms.blksize.get(), terms.window.get(), terms.timeout), (512, 1, None));
        assert_eq!(terms.accepted, []);
    }

    #[test]
    fn a_value_that_is_no_number_ends_the_negotiation() {
        for bad in ["big", "+1", "-1", "1k", "99999999999999999999999"] {
            assert_eq!(agreed(&format!("blksize {bad} ")), Err(NotANumber("blksize")), "{bad}");
        }
    }

    #[test]
    fn of_repeats_the_first_counts() {
        let terms = agreed("blksize 1024 blksize 512 timeout 3 ").unwrap();
        assert_eq!(terms.accepted, [("blksize", 1024), ("timeout", 3)]);
        assert_eq!((terms.blksize.get(), terms.timeout), (1024, Some(Duration::from_secs(3))));
    }
}
