//! The workspace's own sources, parsed.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use syn::{Attribute, Expr, Item, ItemMod, Lit, Meta};

/// Directories whose files are not the project's own.
const ELSEWHERE: [&str; 3] = ["target", "node_modules", ".git"];

/// A file in the `src` of one of the crates.
pub(crate) struct Source {
    /// From the workspace's root.
    pub(crate) file: PathBuf,
    pub(crate) text: String,
    pub(crate) items: Vec<Item>,
    /// Compiled only for tests.
    pub(crate) is_test: bool,
}

/// Every file in these directories of the workspace, and these files themselves.
pub(crate) fn read(root: &Path, places: &[PathBuf]) -> Result<Vec<Source>> {
    let mut paths = Vec::new();
    for place in places.iter().map(|place| root.join(place)) {
        match place.is_dir() {
            true => files(&place, "rs", &mut paths)?,
            false => paths.push(place),
        }
    }
    let mut sources = Vec::new();
    for path in &paths {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        sources.push(parse(path.strip_prefix(root)?, text)?);
    }
    let tests: HashSet<PathBuf> = sources.iter().flat_map(test_modules).collect();
    for source in &mut sources {
        source.is_test = source.file.ancestors().any(|part| tests.contains(&part.with_extension("")));
    }
    sources.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(sources)
}

/// The files with this extension below a directory, except those that are not the project's own.
pub(crate) fn files(dir: &Path, extension: &str, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() && !ELSEWHERE.iter().any(|name| entry.file_name() == *name) {
            files(&path, extension, into)?;
        } else if kind.is_file() && path.extension().is_some_and(|e| e == extension) {
            into.push(path);
        }
    }
    Ok(())
}

pub(crate) fn parse(file: &Path, text: String) -> Result<Source> {
    let items = syn::parse_file(&text).with_context(|| file.display().to_string())?.items;
    Ok(Source { file: file.to_owned(), text, items, is_test: false })
}

/// The modules, without an extension, that a file declares only for tests.
fn test_modules(source: &Source) -> Vec<PathBuf> {
    let dir = source.file.parent().unwrap_or(Path::new(""));
    let children = match source.file.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod" | "lib" | "main") | None => dir.to_owned(),
        Some(stem) => dir.join(stem),
    };
    let declared = source.items.iter().filter_map(|item| match item {
        Item::Mod(module) if module.content.is_none() && is_for_tests(&module.attrs) => Some(module),
        _ => None,
    });
    let place = |module: &ItemMod| match path_attribute(&module.attrs) {
        Some(path) => dir.join(path).with_extension(""),
        None => children.join(module.ident.to_string()),
    };
    declared.map(place).collect()
}

/// `#[cfg(test)]`.
pub(crate) fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        Meta::Path(_) | Meta::NameValue(_) => false,
    })
}

/// `#[path = "…"]`.
fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(text) => Some(text.value()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    })
}

/// For each place in a line's code, comments aside, where a word begins with `word`: what follows it.
pub(crate) fn words<'a>(line: &'a str, word: &'a str) -> impl Iterator<Item = &'a str> {
    let code = line.split("//").next().unwrap_or_default();
    code.match_indices(word)
        .filter(|(at, _)| !code[..*at].ends_with(is_of_a_word))
        .map(move |(at, _)| &code[at + word.len()..])
}

pub(crate) fn is_of_a_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}
