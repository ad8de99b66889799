//! Power by a program of the appliance's owner: `command = ["/usr/local/bin/pdu", "{name}", "{mac}", "{action}"]`.
//!
//! `{action}` is `on`, `off` or `status`; a cycle is `off`, then `on`. Exit code 0 means that it was done. Asked for the
//! status, the program prints `on` or `off` as its first word. It runs without a shell.

use super::credentials::bounded;
use super::{BootOnce, Driver, Limits, PowerError, State, Verb, child};
use crate::config::Node;

pub(super) struct Command {
    words: Vec<String>,
    name: String,
    mac: String,
    limits: Limits,
}

impl Command {
    pub(super) fn new(words: Vec<String>, node: &Node, limits: Limits) -> Self {
        Self { words, name: node.name.clone(), mac: node.mac.to_string(), limits }
    }

    async fn run(&self, verb: Verb) -> Result<String, PowerError> {
        let verb = verb.to_string();
        // One pass, so that nothing in a value is taken for a placeholder: no value has braces.
        let placed = |word: &String| {
            word.replace("{name}", &self.name).replace("{mac}", &self.mac).replace("{action}", &verb)
        };
        let words: Vec<String> = self.words.iter().map(placed).collect();
        let (program, arguments) = words.split_first().ok_or(PowerError::NoPower)?;
        child::run(program, arguments, None, self.limits.program).await?.printed()
    }
}

impl Driver for Command {
    async fn state(&mut self) -> Result<State, PowerError> {
        let printed = self.run(Verb::Status).await?;
        let first = printed.split_whitespace().next().unwrap_or_default();
        match first.to_ascii_lowercase().as_str() {
            "on" => Ok(State::On),
            "off" => Ok(State::Off),
            "unknown" => Ok(State::Unknown),
            _ => Err(PowerError::SaysNothing { program: self.place(), said: bounded(&printed) }),
        }
    }

    async fn switch(&mut self, on: bool) -> Result<(), PowerError> {
        self.run(if on { Verb::On } else { Verb::Off }).await.map(drop)
    }

    async fn boot_once(&mut self, _: BootOnce) -> Result<Option<BootOnce>, PowerError> {
        // It says nothing of boot orders.
        Ok(None)
    }

    fn place(&self) -> String {
        self.words.first().cloned().unwrap_or_default()
    }
}
