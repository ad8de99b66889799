//! A configuration's text: a problem names an existing line, and says what is wrong and what is right.
use std::path::Path;

use bridgehead::config;

pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Err(problems) = config::parse(text, Path::new("bridgehead.toml")) else { return };
    assert!(!problems.is_empty(), "refused without a reason");
    let lines = text.split('\n').count();
    for problem in problems {
        assert!((1..=lines).contains(&problem.line), "{problem} of {lines} lines");
        assert!(!problem.what.is_empty() && !problem.right.is_empty(), "{problem}");
    }
}
