//! Problems of a configuration file, each with its place and a correction.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::file::File;
use super::{Config, Place};

/// One problem of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub what: String,
    /// What would be right.
    pub right: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, what, right } = self;
        write!(f, "{}:{line}:{column}: {what}; {right}", file.display())
    }
}

impl std::error::Error for Problem {}

/// Collects the problems of a text while it is validated.
pub(super) struct Findings<'a> {
    text: &'a str,
    file: &'a Path,
    problems: Vec<Problem>,
    /// Where the text's lines end. Thousands of nodes are given their places, so a line must be found fast.
    ends: Vec<usize>,
}

impl<'a> Findings<'a> {
    pub(super) fn new(text: &'a str, file: &'a Path) -> Self {
        let ends = text.match_indices('\n').map(|(at, _)| at).collect();
        Self { text, file, problems: Vec::new(), ends }
    }

    pub(super) fn add(&mut self, at: Range<usize>, what: impl Into<String>, right: impl Into<String>) {
        let (before, line) = self.before(&at);
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        self.problems.push(Problem {
            file: self.file.to_owned(),
            line,
            column,
            what: what.into(),
            right: right.into(),
        });
    }

    fn before(&self, at: &Range<usize>) -> (&'a str, usize) {
        let before = self.text.get(..at.start).unwrap_or(self.text);
        (before, self.ends.partition_point(|end| *end < before.len()) + 1)
    }

    /// The place of a span, as FILE:LINE.
    pub(super) fn place(&self, at: Range<usize>) -> Place {
        Place(format!("{}:{}", self.file.display(), self.before(&at).1))
    }

    /// The directory that relative paths start from.
    pub(super) fn directory(&self) -> &'a Path {
        self.file.parent().unwrap_or(Path::new(""))
    }

    /// Reads the text's keys and types. Only the first error is reported, because later ones would be guesses.
    pub(super) fn shape(&mut self) -> Option<File> {
        match toml::from_str(self.text) {
            Ok(raw) => Some(raw),
            Err(error) => {
                let at = error.span().unwrap_or(0..0);
                let (what, right) = explain(error.message());
                self.add(at, what, right);
                None
            }
        }
    }

    pub(super) fn result(mut self, config: Option<Config>) -> Result<Config, Vec<Problem>> {
        match config {
            Some(config) if self.problems.is_empty() => Ok(config),
            _ => {
                self.problems.sort_by_key(|p| (p.line, p.column));
                Err(self.problems)
            }
        }
    }
}

/// Splits serde's message into what is wrong and what would be right. For an unknown key or value, serde lists all
/// that it knows (``unknown field `a`, expected one of `b`, `c` ``); one of them is suggested if it is near.
fn explain(message: &str) -> (String, String) {
    let message = message.trim();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    match quoted.split_first() {
        Some((wrong, expected)) if unknown && !expected.is_empty() => {
            let kind = if message.starts_with("unknown field") { "key" } else { "value" };
            let nearest = expected
                .iter()
                .map(|e| (strsim::damerau_levenshtein(wrong, e), *e))
                .filter(|(edits, e)| *edits <= 1.max(e.len() / 3))
                .min();
            let right = match nearest {
                Some((_, nearest)) => format!("did you mean `{nearest}`?"),
                None => format!("here go {}", expected.join(", ")),
            };
            (format!("unknown {kind} `{wrong}`"), right)
        }
        Some((missing, _)) if message.starts_with("missing field") => {
            (format!("`{missing}` is missing"), "add it here".to_owned())
        }
        _ => match message.split_once(", expected ") {
            Some((what, expected)) => (what.to_owned(), format!("here goes {expected}")),
            None => (
                message.replace('\n', ", "),
                "docs/configuration.md has every key with an example".to_owned(),
            ),
        },
    }
}
