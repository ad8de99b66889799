//! A Range header: a part is never empty, and inside.
#![no_main]

use bridgehead::api::fuzzing::range;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, &str)| {
    let (len, header) = input;
    if let Some(part) = range(header, len) {
        assert!(part.start < part.end && part.end <= len);
    }
});
