//! Which rule of a file takes which machine that the daemon knows: part of `bridgehead check`.

use crate::api::client::{Client, Place};
use crate::config::rules::Facts;
use crate::config::{Config, Origin};
use crate::machines::Machine;

/// The most machines that are named for each rule.
const NAMED: usize = 20;

/// In words; empty if the file has no rules.
pub(super) fn taken(config: &Config) -> String {
    if config.rules.is_empty() {
        return String::new();
    }
    let api = Place { api: config.api.socket.display().to_string(), ca: None };
    let client = Client::with_token(&api, None);
    let machines = client.get("/api/nodes").and_then(|answer| client.document::<Vec<Machine>>(answer));
    match machines {
        Ok(machines) => by_rule(config, &machines),
        Err(error) => format!("rules: which machines they take is known while the daemon runs ({error})\n"),
    }
}

fn by_rule(config: &Config, machines: &[Machine]) -> String {
    let is_open = |machine: &&Machine| {
        let kept = matches!(machine.origin, Some(Origin::Kept));
        !kept && config.node(machine.mac).is_none()
    };
    let mut left: Vec<&Machine> = machines.iter().filter(is_open).collect();
    let mut said = String::new();
    for rule in &config.rules {
        let takes: Vec<&Machine> = left.extract_if(.., |m| rule.matches.fits(&facts(m))).collect();
        said.push_str(&format!("rule {} ({}) takes {}\n", rule.place, rule.name, named(&takes)));
        let may: Vec<&Machine> = left.iter().copied().filter(|m| rule.matches.may_fit(&facts(m))).collect();
        if !may.is_empty() {
            said.push_str(&format!("    and may take, by where it is when it asks, {}\n", named(&may)));
        }
    }
    if !left.is_empty() {
        said.push_str(&format!("no rule takes for sure {}; `bridgehead node adopt` does\n", named(&left)));
    }
    said
}

fn facts(machine: &Machine) -> Facts {
    let Machine { uuid, facts, .. } = machine;
    Facts { uuid: uuid.clone(), hardware: facts.clone(), ..Facts::new(machine.mac) }
}

fn named(machines: &[&Machine]) -> String {
    if machines.is_empty() {
        return "no machine that is known".to_owned();
    }
    let name = |machine: &&Machine| match &machine.name {
        Some(name) => format!("{name} ({})", machine.mac),
        None => machine.mac.to_string(),
    };
    let names: Vec<String> = machines.iter().take(NAMED).map(name).collect();
    let more = machines.len().saturating_sub(NAMED);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn each_known_machine_is_said_to_be_taken_or_not() {
        let text = r#"
            network = { bridge = "pxe0", address = "10.77.0.1/24" }
            dhcp = { range = ["10.77.0.100", "10.77.0.199"], unknown = "ignore" }
            [[rule]]
            match = { mac = "52:54", port = "eth2" }
            name = "edge{n}"
            [[rule]]
            match = { mac = "52:54" }
            name = "c{n:03}"
            [[node]]
            name = "n1"
            mac = "52:54:00:00:00:01"
        "#;
        let config = crate::config::parse(text, Path::new("/c.toml")).unwrap_or_else(|p| panic!("{p:?}"));
        let machine = |mac: &str| Machine::new(mac.parse().unwrap());
        let known = Machine { name: Some("c001".into()), ..machine("52:54:00:00:00:03") };
        let kept = Machine { origin: Some(Origin::Kept), ..machine("52:54:00:00:00:04") };
        let machines = [machine("52:54:00:00:00:01"), known, kept, machine("02:00:00:00:00:01")];
        assert_eq!(
            by_rule(&config, &machines),
            "rule /c.toml:4 (edge{n}) takes no machine that is known\n    \
             and may take, by where it is when it asks, c001 (52:54:00:00:00:03)\n\
             rule /c.toml:7 (c{n:03}) takes c001 (52:54:00:00:00:03)\n\
             no rule takes for sure 02:00:00:00:00:01; `bridgehead node adopt` does\n"
        );
    }
}
