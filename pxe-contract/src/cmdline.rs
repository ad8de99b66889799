//! A kernel's command line: words and back.

use alloc::borrow::{Cow, ToOwned as _};
use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};
use core::fmt;

/// A double quote that is not closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenQuote;

impl fmt::Display for OpenQuote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a double quote without its partner")
    }
}

impl core::error::Error for OpenQuote {}

/// Splits a kernel's own command line into words. A quote that is not closed extends to the end.
pub fn words(line: &str) -> Vec<String> {
    split(line, |c| c.is_ascii_whitespace()).0
}

/// The words of a line that somebody wrote for a kernel, separated by blanks and tabs. A line break stays in its word,
/// so that the caller can refuse it.
pub fn written(line: &str) -> Result<Vec<String>, OpenQuote> {
    match split(line, |c| matches!(c, ' ' | '\t')) {
        (words, false) => Ok(words),
        (_, true) => Err(OpenQuote),
    }
}

/// A word as it is written in a line, in double quotes if it has a blank.
///
/// A word with a double quote in it can't be passed to a kernel, because there are no escapes.
pub fn quoted(word: &str) -> Cow<'_, str> {
    if word.contains(' ') { format!("\"{word}\"").into() } else { word.into() }
}

/// The line with more words at its end, where they take precedence: of a parameter that is given twice, the last counts.
pub fn append(line: &str, words: &[String]) -> String {
    words.iter().fold(line.trim_end().to_owned(), |line, word| format!("{line} \"{word}\""))
}

/// Splits as the kernel does (`next_arg` in lib/cmdline.c): at white space outside double quotes, which may enclose a
/// word or its value, and are removed. There are no escapes. Also returns whether a quote was left open.
fn split(line: &str, is_white: impl Fn(char) -> bool) -> (Vec<String>, bool) {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match (c, words.last_mut()) {
            ('"', _) => quoted = !quoted,
            (c, _) if is_white(c) && !quoted => words.push(String::new()),
            (c, Some(word)) => word.push(c),
            (_, None) => {}
        }
    }
    words.retain(|word| !word.is_empty());
    (words, quoted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn white_space_outside_quotes_is_between_words() {
        assert_eq!(words("a \t b=\"c d\"\n\"e f\"g  "), ["a", "b=c d", "e fg"]);
        assert_eq!(words("a \"b c"), ["a", "b c"]);
        assert_eq!(words(" \"\" "), [""; 0]);
    }

    #[test]
    fn a_line_that_was_written_keeps_its_breaks_and_closes_its_quotes() {
        assert_eq!(written("a\tb \"c d\"").unwrap(), ["a", "b", "c d"]);
        assert_eq!(written("a\nb c").unwrap(), ["a\nb", "c"]);
        assert_eq!(written("a \"b"), Err(OpenQuote));
    }

    proptest! {
        #[test]
        fn words_that_were_put_into_a_line_are_read_back(
            all in proptest::collection::vec("[a-z=. ]{0,6}[a-z]", 0..6),
        ) {
            let line = all.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
            prop_assert_eq!(words(&line), all.clone());
            prop_assert_eq!(words(&append("", &all)), all);
        }
    }
}
