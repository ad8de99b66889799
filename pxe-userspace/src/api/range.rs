//! The Range header (RFC 9110 section 14).

use std::ops::Range;

/// What to answer to a Range header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// 200: no range, or one that a server may ignore (malformed, other units, several).
    Whole,
    /// 206.
    Part(Range<u64>),
    /// 416.
    Unsatisfiable,
}

impl Wanted {
    /// Of a representation of `len` bytes. Several ranges get the whole: no boot client asks for
    /// them, and section 14.2 allows it.
    pub(super) fn parse(header: &str, len: u64) -> Self {
        let Some((unit, range)) = header.split_once('=') else { return Self::Whole };
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return Self::Whole;
        }
        let Some((first, last)) = range.trim().split_once('-') else { return Self::Whole };
        match (position(first), position(last)) {
            // The last bytes, this many of them.
            (None, Some(suffix)) if first.is_empty() => match suffix.min(len) {
                0 => Self::Unsatisfiable,
                suffix => Self::Part(len - suffix..len),
            },
            (Some(first), last_byte) if last.is_empty() || last_byte.is_some() => {
                let last = last_byte.unwrap_or(u64::MAX);
                if last < first {
                    Self::Whole
                } else if first >= len {
                    Self::Unsatisfiable
                } else {
                    Self::Part(first..last.saturating_add(1).min(len))
                }
            }
            _ => Self::Whole,
        }
    }
}

/// Digits only; a number that is too large means "beyond the end".
fn position(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn of_ten_bytes() {
        for (header, wanted) in [
            ("bytes=0-3", Wanted::Part(0..4)),
            ("bytes=4-", Wanted::Part(4..10)),
            ("bytes=9-9", Wanted::Part(9..10)),
            ("bytes=5-99", Wanted::Part(5..10)),
            ("bytes=-3", Wanted::Part(7..10)),
            ("bytes=-99", Wanted::Part(0..10)),
            ("Bytes=0-0", Wanted::Part(0..1)),
            ("bytes=0-99999999999999999999999", Wanted::Part(0..10)),
            ("bytes=10-", Wanted::Unsatisfiable),
            ("bytes=99999999999999999999999-", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=3-2", Wanted::Whole),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=a-b", Wanted::Whole),
            ("bytes=1", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("lines=0-1", Wanted::Whole),
            ("", Wanted::Whole),
        ] {
            assert_eq!(Wanted::parse(header, 10), wanted, "{header}");
        }
        assert_eq!(Wanted::parse("bytes=0-", 0), Wanted::Unsatisfiable);
        assert_eq!(Wanted::parse("bytes=-1", 0), Wanted::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn a_part_is_never_empty_and_inside(header in "bytes=[0-9]{0,21}-[0-9]{0,21}", len in any::<u64>()) {
            if let Wanted::Part(part) = Wanted::parse(&header, len) {
                prop_assert!(part.start < part.end && part.end <= len);
            }
        }

        #[test]
        fn nothing_panics(header in "\\PC*", len in any::<u64>()) {
            Wanted::parse(&header, len);
        }
    }
}
