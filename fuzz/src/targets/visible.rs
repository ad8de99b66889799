//! Untrusted text, made visible: nothing in it moves a cursor, ends a line or reorders other text, and harmless text is
//! unchanged.

use bridgehead::base::text::{one_line, turns_around, visible, visible_lines};

pub(crate) fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let harmless = |c: char| !c.is_control() && !turns_around(c);
    for shown in [one_line(&text), visible(&text)] {
        assert!(shown.chars().all(harmless), "{shown:?}");
        assert!(!text.chars().all(harmless) || shown == text, "{text:?} became {shown:?}");
    }
    assert!(visible_lines(&text).chars().all(|c| c == '\n' || harmless(c)));
}
