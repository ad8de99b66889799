//! Fuzz targets for libFuzzer, all in one program: `cargo xtask fuzz` builds it and runs one process per target.
#![no_main]

mod targets;

use std::sync::LazyLock;

use libfuzzer_sys::arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use targets::Target;

/// The target of this process.
const VARIABLE: &str = "BRIDGEHEAD_FUZZ";

static CHOSEN: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var(VARIABLE).unwrap_or_default();
    let found = targets::ALL.iter().find(|(target, _)| *target == name);
    found.unwrap_or_else(|| panic!("{VARIABLE}={name:?} names no target")).1
});

fuzz_target!(|bytes: &[u8]| CHOSEN(bytes));

/// The bytes as a value of type `T`, if there are enough of them.
fn shaped<'a, T: Arbitrary<'a>>(bytes: &'a [u8]) -> Option<T> {
    T::arbitrary_take_rest(Unstructured::new(bytes)).ok()
}
