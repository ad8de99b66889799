//! Checks that every dependency in a manifest is used by the sources that it is declared for.

use std::path::Path;

use anyhow::Result;

use super::metadata::{Dependency, Metadata, Package};
use super::source::{self, Source, is_of_a_word, words};

/// Dependencies that act by being linked: crate, dependency, and what it does.
const BY_BEING_THERE: [(&str, &str, &str); 0] = [];

/// One line for each dependency that nothing mentions.
pub(crate) fn check(root: &Path, metadata: &Metadata) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for package in &metadata.packages {
        let dir = Path::new(&package.manifest_path).parent().unwrap_or(root).strip_prefix(root)?;
        let parts = ["src", "tests", "benches", "build.rs"].map(|part| dir.join(part));
        let there: Vec<_> = parts.into_iter().filter(|part| root.join(part).exists()).collect();
        unused(package, metadata, &source::read(root, &there)?, &mut broken);
    }
    Ok(broken)
}

fn unused(package: &Package, metadata: &Metadata, sources: &[Source], broken: &mut Vec<String>) {
    for Dependency { name, rename, kind } in &package.dependencies {
        let named = BY_BEING_THERE.iter().any(|(of, what, _)| *of == package.name && what == name);
        let ident = rename.as_deref().unwrap_or(metadata.library(name)).replace('-', "_");
        let whose = |source: &&Source| {
            let file = source.file.to_string_lossy();
            match kind.as_deref() {
                Some("dev") => true,
                Some("build") => file.ends_with("build.rs"),
                _ => file.contains("src/"),
            }
        };
        if !named && !sources.iter().filter(whose).any(|source| mentions(&source.text, &ident)) {
            let kind = kind.as_deref().map(|kind| format!("{kind}-")).unwrap_or_default();
            broken.push(format!("{}/Cargo.toml: nothing uses the {kind}dependency {name}", package.name));
        }
    }
}

/// Whether the code contains this word.
fn mentions(text: &str, ident: &str) -> bool {
    text.lines().any(|line| words(line, ident).any(|rest| !rest.starts_with(is_of_a_word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_that_only_comments_and_longer_words_name_is_unused() {
        let package = Package {
            name: "a".into(),
            manifest_path: String::new(),
            dependencies: ["serde-json", "tokio"]
                .map(|name| Dependency { name: name.into(), rename: None, kind: None })
                .into(),
            targets: Vec::new(),
        };
        let metadata = Metadata { packages: Vec::new() };
        let text = "// tokio::spawn\nfn tokio_like() { serde_json::to_string(&1) }\n".to_owned();
        let mut broken = Vec::new();
        unused(&package, &metadata, &[source::parse(Path::new("a/src/lib.rs"), text).unwrap()], &mut broken);
        assert_eq!(broken, ["a/Cargo.toml: nothing uses the dependency tokio"]);
    }
}
