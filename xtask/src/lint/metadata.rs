//! Cargo's metadata about the workspace's packages.

use std::process::Command;

use anyhow::{Context as _, Result};
use serde::Deserialize;

#[derive(Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
}

#[derive(Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) manifest_path: String,
    pub(crate) dependencies: Vec<Dependency>,
    #[serde(default)]
    pub(crate) targets: Vec<Target>,
}

#[derive(Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) rename: Option<String>,
    /// `dev` or `build`; `None` for normal dependencies.
    pub(crate) kind: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Target {
    pub(crate) kind: Vec<String>,
    pub(crate) name: String,
}

impl Metadata {
    pub(crate) fn read() -> Result<Self> {
        let asked = Command::new("cargo").args(["metadata", "--format-version=1", "--no-deps"]).output()?;
        serde_json::from_slice(&asked.stdout).context("cargo metadata")
    }

    /// A crate's name in code. It may differ from its package's name.
    pub(crate) fn library<'a>(&'a self, package: &'a str) -> &'a str {
        let ours = self.packages.iter().find(|ours| ours.name == package);
        let library = ours.and_then(|ours| ours.targets.iter().find(|t| t.kind.iter().any(|k| k == "lib")));
        library.map_or(package, |library| &library.name)
    }
}
