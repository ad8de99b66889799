//! Internals of this module for `fuzz/`.

use std::ops::Range;

use super::range::Wanted;

/// The part that a Range header asks for.
pub fn range(header: &str, len: u64) -> Option<Range<u64>> {
    match Wanted::parse(header, len) {
        Wanted::Part(part) => Some(part),
        Wanted::Whole | Wanted::Unsatisfiable => None,
    }
}
