//! The text form of values, the same everywhere: in JSON, logs, paths and the database.

use std::error::Error;
use std::fmt::Write as _;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

/// A MAC address, for serde.
pub mod mac {
    use pxe_common::Mac;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(mac: &Mac, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(mac)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Mac, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

/// For serde, a machine's firmware, if it is known.
pub mod firmware {
    use pxe_common::dhcp::Firmware;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(firmware: &Option<Firmware>, s: S) -> Result<S::Ok, S::Error> {
        match firmware {
            Some(firmware) => s.collect_str(firmware),
            None => s.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Firmware>, D::Error> {
        let text = Option::<String>::deserialize(d)?;
        text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}

/// RFC 3339, always with microseconds: text of fixed width sorts and aligns. For serde.
pub fn micros<S: Serializer>(time: &Timestamp, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(&format_args!("{time:.6}"))
}

/// [`micros`] for an optional time.
pub fn micros_if_any<S: Serializer>(time: &Option<Timestamp>, s: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => micros(time, s),
        None => s.serialize_none(),
    }
}

/// A unit variant as in JSON: `xdp-and-tc`.
pub fn word(value: impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

pub use pxe_contract::hex::{decode as unhex, encode as hex};

/// Base64 with padding (RFC 4648 section 4).
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let index = bits >> (18 - 6 * digit) & 63;
            encoded.push(if digit <= group.len() { DIGITS[index as usize].into() } else { '=' });
        }
    }
    encoded
}

/// Percent-encodes characters that are neither unreserved (RFC 3986 section 2.3) nor in `also`.
pub fn percent(text: &str, also: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b) || also.as_bytes().contains(&b);
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if plain(byte) {
            encoded.push(byte.into());
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

/// Without control characters, because the text is printed on terminals and written to files of lines. Characters that
/// only reorder others are escaped: they would show a text that nobody wrote.
pub fn one_line(text: &str) -> String {
    escaped(text, |into, c| match c {
        c if turns_around(c) => into.extend(c.escape_unicode()),
        _ => into.push(' '),
    })
}

/// The same for untrusted text of which nothing should get lost: control characters are escaped, too.
pub fn visible(text: &str) -> String {
    escaped(text, |into, c| match c {
        '\0'..='\x1f' => into.extend(['^', char::from(c as u8 + b'@')]),
        '\x7f' => into.push_str("^?"),
        c => into.extend(c.escape_unicode()),
    })
}

/// The same for several lines of a command's output: the last step, which escapes what no other step did.
pub fn visible_lines(text: &str) -> String {
    text.split('\n').map(visible).collect::<Vec<_>>().join("\n")
}

fn escaped(text: &str, escape: impl Fn(&mut String, char)) -> String {
    let mut into = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if c.is_control() || turns_around(c) => escape(&mut into, c),
            c => into.push(c),
        }
    }
    into
}

/// Whether the character changes the direction of others, or ends a line without being a control character (Unicode
/// standard annex 9, section 2; annex 14, BK).
pub fn turns_around(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// An error and its sources, in one line. Most of our errors name their source in their own words.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let source_words = source.to_string();
        if !words.contains(&source_words) {
            words = format!("{words}: {source_words}");
        }
        next = source.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings() {
        assert_eq!(hex(&[0, 0x0a, 0xff]), "000aff");
        assert_eq!(percent("deb ian/é~", "/"), "deb%20ian/%C3%A9~");
        assert_eq!(percent("a/b", ""), "a%2Fb");
        // RFC 4648 section 10.
        let vectors = ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|text| base64(text.as_bytes()));
        assert_eq!(vectors, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
        assert_eq!(one_line("a\nb\u{1b}[0m\u{202e}"), "a b [0m\\u{202e}");
        assert_eq!(
            visible("\u{1b}]0;x\u{7}\r\n\u{9b}1m\u{2067}é\u{7f}"),
            "^[]0;x^G^M^J\\u{9b}1m\\u{2067}é^?"
        );
    }

    #[test]
    fn lines_stay_lines() {
        assert_eq!(visible_lines("a\u{1b}[2J\n\u{202e}b\n"), "a^[[2J\n\\u{202e}b\n");
    }

    #[test]
    fn a_chain_says_nothing_twice() {
        #[derive(Debug, thiserror::Error)]
        #[error("reading f: {source}")]
        struct Named {
            source: std::io::Error,
        }
        #[derive(Debug, thiserror::Error)]
        #[error("starting")]
        struct Unnamed(#[source] Named);

        let error = Unnamed(Named { source: std::io::ErrorKind::NotFound.into() });
        assert_eq!(chain(&error), "starting: reading f: entity not found");
    }
}
