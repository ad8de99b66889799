//! Finds the tests that the given names mean.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::program::Program;
use crate::paths;

/// The given names.
pub(super) struct Choice {
    names: Vec<String>,
    /// Whether each is a file of tests, so that nothing else has to be built.
    only_files: bool,
}

/// A program, and the tests chosen in it.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) program: Program,
    /// Parts of tests' names; if there are none, all tests.
    pub(super) filters: Vec<String>,
    pub(super) arguments: Vec<String>,
    pub(super) variables: Vec<(&'static str, PathBuf)>,
}

impl Choice {
    /// `everything`: programs other than the chosen ones are needed.
    pub(super) fn of(names: &[String], everything: bool) -> Result<Self> {
        let files = files(paths::root())?;
        let only_files = !everything && !names.is_empty() && names.iter().all(|name| files.contains(name));
        Ok(Self { names: names.to_vec(), only_files })
    }

    pub(super) fn is_all(&self) -> bool {
        self.names.is_empty()
    }

    /// Cargo's arguments for what has to be built.
    pub(super) fn targets(&self) -> Vec<&str> {
        let files = if self.only_files { &self.names[..] } else { &[] };
        files.iter().flat_map(|name| ["--test", name]).collect()
    }

    /// Finds the names among these programs. A name without a match is an error, which suggests similar ones.
    pub(super) fn among(&self, programs: Vec<Program>) -> Result<Vec<Chosen>> {
        let tests = if self.only_files || self.is_all() {
            vec![Vec::new(); programs.len()]
        } else {
            programs.iter().map(tests).collect::<Result<Vec<_>>>()?
        };
        let programs: Vec<(Program, Vec<String>)> = programs.into_iter().zip(tests).collect();
        for name in &self.names {
            let known = programs.iter().any(|(p, tests)| p.name == *name || has(tests, name));
            if !known {
                bail!("no test has `{name}` in its name, and no package or file of tests is called so{}", {
                    let close = close(name, &programs);
                    if close.is_empty() { String::new() } else { format!("; did you mean {close}?") }
                });
            }
        }
        Ok(programs.into_iter().filter_map(|(program, tests)| self.of_program(program, &tests)).collect())
    }

    fn of_program(&self, program: Program, tests: &[String]) -> Option<Chosen> {
        let whole = self.is_all() || self.names.contains(&program.name);
        let filters: Vec<String> =
            if whole { Vec::new() } else { self.names.iter().filter(|n| has(tests, n)).cloned().collect() };
        let chosen = whole || !filters.is_empty();
        chosen.then_some(Chosen { program, filters, arguments: Vec::new(), variables: Vec::new() })
    }
}

fn has(tests: &[String], part: &str) -> bool {
    tests.iter().any(|test| test.contains(part))
}

/// The tests in a program, as it lists them.
fn tests(program: &Program) -> Result<Vec<String>> {
    let mut list = Command::new(&program.path);
    list.args(["--list", "--format", "terse"]).current_dir(&program.directory);
    let output = list.output().with_context(|| format!("starting {}", program.path.display()))?;
    ensure!(output.status.success(), "{} lists no tests ({})", program.path.display(), output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// The files and directories of tests: each is a program of its own.
fn files(root: &Path) -> Result<BTreeSet<String>> {
    let mut files = BTreeSet::new();
    for package in fs::read_dir(root)? {
        let Ok(entries) = fs::read_dir(package?.path().join("tests")) else { continue };
        for path in entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>()? {
            let is_program =
                path.extension() == Some(&OsString::from("rs")) || path.join("main.rs").is_file();
            let stem = path.file_stem().filter(|_| is_program);
            files.extend(stem.map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    Ok(files)
}

/// Up to three names that are most similar to `name`.
fn close(name: &str, programs: &[(Program, Vec<String>)]) -> String {
    let words = programs.iter().flat_map(|(program, tests)| {
        let tests = tests.iter().map(|test| test.rsplit("::").next().unwrap_or(test));
        std::iter::once(program.name.as_str()).chain(tests)
    });
    // The names consist of several words, of which one is given: pairs of letters are a better measure than an edit
    // distance.
    let likeness = |word| strsim::sorensen_dice(name, word);
    let mut close: Vec<(f64, &str)> =
        words.map(|word| (likeness(word), word)).filter(|(likeness, _)| *likeness >= 0.5).collect();
    close.sort_by(|(a, one), (b, other)| b.total_cmp(a).then(one.cmp(other)));
    close.dedup();
    let names: Vec<String> = close.iter().take(3).map(|(_, word)| format!("`{word}`")).collect();
    names.join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(name: &str) -> Program {
        let none = PathBuf::new();
        Program {
            name: name.into(),
            directory: none.clone(),
            source: none.clone(),
            path: none,
            says_needs: true,
        }
    }

    #[test]
    fn a_name_that_means_nothing_is_told_what_it_may_have_meant() {
        let programs = [
            (program("storage"), vec!["a_disk_is_found".to_owned()]),
            (program("pxe-init"), vec!["fetch::tests::a_flipped_bit".to_owned()]),
        ];
        assert_eq!(close("storrage", &programs), "`storage`");
        assert_eq!(close("fliped_bit", &programs), "`a_flipped_bit`");
        assert_eq!(close("xyz", &programs), "");
    }

    #[test]
    fn names_are_files_and_parts_of_tests() {
        let choice =
            |names: &[&str]| Choice { names: names.iter().map(|n| (*n).into()).collect(), only_files: false };
        let tests = ["a_disk_is_found".to_owned(), "another".to_owned()];
        let of = |names: &[&str]| {
            choice(names).of_program(program("storage"), &tests).map(|chosen| chosen.filters)
        };
        assert_eq!(of(&[]), Some(vec![]));
        assert_eq!(of(&["storage", "disk"]), Some(vec![]));
        assert_eq!(of(&["disk", "none"]), Some(vec!["disk".to_owned()]));
        assert_eq!(of(&["clients"]), None);
        assert!(
            files(paths::root()).unwrap().is_superset(&["storage", "other_kernels"].map(String::from).into())
        );
    }
}
