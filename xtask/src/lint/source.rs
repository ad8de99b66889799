//! The workspace's own sources, parsed.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use syn::{Attribute, Expr, Item, ItemMod, Lit, Meta};

/// A file of one of the crates' `src`.
pub(crate) struct Source {
    /// From the workspace's root.
    pub(crate) file: PathBuf,
    pub(crate) text: String,
    pub(crate) items: Vec<Item>,
    /// Compiled for tests only.
    pub(crate) is_test: bool,
}

/// Every file of these directories of the workspace, and these files.
pub(crate) fn read(root: &Path, places: &[PathBuf]) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for place in places.iter().map(|place| root.join(place)) {
        match place.is_dir() {
            true => read_dir(root, &place, &mut sources)?,
            false => read_file(root, &place, &mut sources)?,
        }
    }
    let tests: HashSet<PathBuf> = sources.iter().flat_map(test_modules).collect();
    for source in &mut sources {
        source.is_test = source.file.ancestors().any(|part| tests.contains(&part.with_extension("")));
    }
    sources.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(sources)
}

fn read_dir(root: &Path, dir: &Path, into: &mut Vec<Source>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            read_dir(root, &path, into)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            read_file(root, &path, into)?;
        }
    }
    Ok(())
}

fn read_file(root: &Path, path: &Path, into: &mut Vec<Source>) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    into.push(parse(path.strip_prefix(root)?, text)?);
    Ok(())
}

pub(crate) fn parse(file: &Path, text: String) -> Result<Source> {
    let items = syn::parse_file(&text).with_context(|| file.display().to_string())?.items;
    Ok(Source { file: file.to_owned(), text, items, is_test: false })
}

/// The modules, without an extension, that a file declares for tests only.
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
