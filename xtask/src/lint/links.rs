//! Checks that links in the documents lead to existing files and headings.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result};

use super::source;

/// Each document, from the workspace's root, and its text.
type Documents = BTreeMap<PathBuf, String>;

/// One line for each broken link. Links to other sites are not checked.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let (mut paths, mut documents) = (Vec::new(), Documents::new());
    source::files(root, "md", &mut paths)?;
    for path in paths {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        documents.insert(path.strip_prefix(root)?.to_owned(), text);
    }
    Ok(dead(&documents, |path| root.join(path).exists()))
}

fn dead(documents: &Documents, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut broken = Vec::new();
    for (document, text) in documents {
        for (number, line) in prose(text) {
            for link in links(line).filter(|link| !is_elsewhere(link)) {
                let (file, heading) = link.split_once('#').unwrap_or((link, ""));
                let place = format!("{}:{number}", document.display());
                let target = match file {
                    "" => document.clone(),
                    _ => plain(&document.parent().unwrap_or(Path::new("")).join(file)),
                };
                if !exists(&target) {
                    broken.push(format!("{place}: {} is not there", target.display()));
                } else if let Some(text) = documents.get(&target).filter(|_| !heading.is_empty())
                    && !headings(text).contains(heading)
                {
                    broken.push(format!("{place}: {} has no heading #{heading}", target.display()));
                }
            }
        }
    }
    broken
}

/// The lines outside code blocks, numbered from one.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        (!fence && !in_code).then_some((index + 1, line))
    })
}

/// The targets of `[…](HERE)`.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("](").filter_map(|(at, opening)| {
        let rest = &line[at + opening.len()..];
        Some(&rest[..rest.find(')')?])
    })
}

fn is_elsewhere(link: &str) -> bool {
    link.contains("://") || link.starts_with("mailto:")
}

/// The path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::Normal(name) => plain.push(name),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    plain
}

/// The headings' anchors, in GitHub's form.
fn headings(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for (_, line) in prose(text).filter(|(_, line)| line.starts_with('#')) {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let again = (1..).map(|n| format!("{anchor}-{n}"));
        let free = std::iter::once(anchor.clone()).chain(again).find(|a| !anchors.contains(a));
        anchors.extend(free);
    }
    anchors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_all(documents: &[(&str, &str)]) -> Vec<String> {
        let documents: Documents =
            documents.iter().map(|(path, text)| (path.into(), (*text).to_owned())).collect();
        dead(&documents, |path| documents.contains_key(path))
    }

    #[test]
    fn a_dead_link_is_named_with_its_line() {
        let found = check_all(&[
            ("docs/a.md", "# A\n\nSee [b](b.md), [c](../c.md#no-such), [d](#a).\n"),
            ("c.md", ""),
        ]);
        assert_eq!(
            found,
            ["docs/a.md:3: docs/b.md is not there", "docs/a.md:3: c.md has no heading #no-such"]
        );
    }

    #[test]
    fn other_sites_code_and_repeated_headings_are_none() {
        let text = "# What's `new`?\n## Two words\n## Two words\n[x](https://example.org/#y) [z](#whats-new)\n\
                    [second](#two-words-1)\n```\n[code](nowhere.md)\n```\n";
        assert_eq!(check_all(&[("a.md", text)]), [""; 0]);
    }
}
