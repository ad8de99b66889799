//! A Range header: a part is never empty, and always inside.
use bridgehead::api::fuzzing::range;

pub(crate) fn run(bytes: &[u8]) {
    let Some((len, header)) = crate::shaped::<(u64, &str)>(bytes) else { return };
    if let Some(part) = range(header, len) {
        assert!(part.start < part.end && part.end <= len);
    }
}
