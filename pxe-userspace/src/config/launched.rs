//! What launches have machines boot, in place of what they are declared with. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use pxe_common::Mac;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::nodes::BOOTS_NOTHING;
use super::{Config, Node};
use crate::base::text;

/// What a launch has a machine boot, until the next launch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Launched {
    /// In place of the profile that it is declared with.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub profile: Option<String>,
    /// In place of the profile's image.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image: Option<PinnedImage>,
    /// The launch that did it.
    pub launch: u64,
    #[serde(serialize_with = "text::micros")]
    pub since: Timestamp,
}

/// An image that does not change when its tag moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct PinnedImage {
    /// What it was called: `hello-metal:latest`.
    pub reference: String,
    /// What it is called for good: `hello-metal@sha256:…`.
    pub name: String,
    /// Of its root file system, as `bridgehead images` shows it.
    pub digest: String,
}

impl Launched {
    /// Whether both have a machine boot the same.
    pub fn is_same(&self, other: &Self) -> bool {
        let name = |pin: &Self| pin.image.as_ref().map(|image| image.name.clone());
        self.profile == other.profile && name(self) == name(other)
    }
}

impl Config {
    /// The configuration in which these machines boot what launches have them boot. It has no others.
    pub fn with_launched(mut self, pins: &HashMap<Mac, Launched>) -> Self {
        let mut nodes = std::mem::take(&mut self.nodes);
        for node in nodes.all.iter_mut() {
            if let Some(pin) = pins.get(&node.mac) {
                // What is the matter with the profile that it does not boot is nothing that anybody misses.
                let problem = node.problem.clone().filter(|problem| !problem.starts_with(BOOTS_NOTHING));
                *node = Arc::new(Node { launched: Some(pin.clone()), problem, ..Node::clone(node) });
                self.find_profile(node);
            }
        }
        Self { nodes, ..self }
    }
}
