//! `bridgehead node`: machines that are declared while the daemon runs.

use std::collections::BTreeMap;
use std::io::{Read as _, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use axum::body::Body;
use clap::{Args, Subcommand};
use pxe_common::Mac;
use pxe_contract::failure::ErrorDocument;
use serde_json::json;

use super::{AskError, Client, Reading, print, read, show};
use crate::api::client::Sent;
use crate::api::documents::NodesChanged;
use crate::base::text::percent;
use crate::config::{Node, Power, PowerTable, Rescue, size};
use crate::machines::Machine;
use crate::machines::kept::Patch;

/// What `--set` says of power.
const POWER: &str = "power.";

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Declare a machine: its name, and what it is to be.
    ///
    /// It takes effect at once, as a [[node]] of the configuration file does, and is kept in the database.
    #[command(after_help = "\
Examples:
  bridgehead node add n1 --mac 52:54:00:77:00:01
  bridgehead node add n2 --mac 52:54:00:77:00:02 --address 10.77.0.12 --profile web \\
      --label gpu --set rack=a1 --set slot=17 \\
      --set power.redfish=https://10.0.0.12 --set power.credentials=rack")]
    Add {
        /// The machine's name, and its host name.
        name: String,
        #[arg(long)]
        mac: Mac,
        #[command(flatten)]
        said: Said,
        #[command(flatten)]
        reading: Reading,
    },
    /// Change machines that are kept. What is not named stays as it is.
    #[command(after_help = "\
Examples:
  bridgehead node set n1 --profile db                   another profile, from its next boot on
  bridgehead node set n1 --mac 52:54:00:77:00:09        it has another network card
  bridgehead node set 'n[1-40]' --label gpu --set rack=a1
  bridgehead node set label=gpu --unset profile         the default profile again")]
    Set {
        /// Names, n[1-40], MAC addresses, label=L, profile=P, fact=KEY:VALUE, all; several of them.
        #[arg(value_name = "SELECTOR", required = true)]
        selector: Vec<String>,
        /// Another name. Of one machine.
        #[arg(long)]
        name: Option<String>,
        /// Another network card. Of one machine.
        #[arg(long)]
        mac: Option<Mac>,
        #[command(flatten)]
        said: Said,
        /// Take a label away.
        #[arg(long, value_name = "LABEL")]
        no_label: Vec<String>,
        /// Take a value away: address, profile, rescue, memory, labels, power, or a key.
        #[arg(long, value_name = "KEY")]
        unset: Vec<String>,
        #[command(flatten)]
        reading: Reading,
    },
    /// Forget machines that are kept. From their next boot on they are unknown.
    Rm {
        /// Names, n[1-40], MAC addresses, label=L, profile=P, fact=KEY:VALUE, all; several of them.
        #[arg(value_name = "SELECTOR", required = true)]
        selector: Vec<String>,
        #[command(flatten)]
        reading: Reading,
    },
    /// Declare a machine that was seen, and that no file and no rule declares; or keep one as a rule made it.
    Adopt {
        #[arg(value_name = "MAC")]
        mac: Mac,
        /// What it is called [default: the rule's name, else `m` and its MAC address]
        name: Option<String>,
        #[command(flatten)]
        reading: Reading,
    },
    /// Declare the machines of a table: all of them, or none where a line is wrong.
    ///
    /// CSV with a head: name, mac, and where wanted address, profile, rescue, memory, labels (with spaces between),
    /// power (`redfish=URL credentials=NAME`); any other column is a key. A machine of a name that is kept already is replaced; others stay. `-` is standard input.
    #[command(after_help = "\
Example:
  name,mac,address,profile,labels,rack,slot
  n1,52:54:00:77:00:01,10.77.0.11,web,gpu fast,a1,17
  n2,52:54:00:77:00:02,,,,a1,18")]
    Import {
        #[arg(value_name = "FILE.csv")]
        file: PathBuf,
        #[command(flatten)]
        reading: Reading,
    },
    /// Print the machines that are kept as a table that `node import` takes. Those of the file are not in it.
    Export(Reading),
}

/// What is said of a machine beside its name and MAC address.
#[derive(Debug, Args)]
pub struct Said {
    /// Reserve this address for it.
    #[arg(long, value_name = "ADDRESS")]
    address: Option<Ipv4Addr>,
    /// What it boots [default: the default profile]
    #[arg(long)]
    profile: Option<String>,
    /// What workloads are assigned by, and selectors choose by.
    #[arg(long, value_name = "LABEL")]
    label: Vec<String>,
    /// Whatever else you want to know of it: rack=a1, slot=17. How its power is switched: power.redfish=URL,
    /// power.ipmi=HOST, power.credentials=NAME, power.wol=true (docs/power.md).
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// How it can be reached when its boot failed, in place of the profile's: ssh, console or off.
    #[arg(long, value_parser = rescue)]
    rescue: Option<Rescue>,
    /// Its memory, 512M or 4G: an image that does not fit is refused before it tries.
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    memory: Option<u64>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn rescue(text: &str) -> Result<Rescue, String> {
    serde_json::from_value(text.into()).map_err(|_| "ssh, console or off".to_owned())
}

fn memory(text: &str) -> Result<u64, String> {
    size(text).ok_or_else(|| "a size, such as 512M or 4G".to_owned())
}

pub(super) fn run(command: NodeCommand, out: &mut dyn Write) -> Result<(), AskError> {
    match command {
        NodeCommand::Add { name, mac, said, reading } => {
            let Said { address, profile, label, set, rescue, memory } = said;
            let (power, keys) = power_among(set)?;
            let power = power.map(Power::try_from).transpose().map_err(|fault| usage(fault.to_string()))?;
            let keys = keys.into_iter().collect();
            let node =
                Node { address, profile, labels: label, keys, rescue, memory, power, ..Node::new(name, mac) };
            let client = Client::new(&reading.api);
            let machine: Machine = client.document(client.post("/api/nodes", Some(&json!(node)))?)?;
            print(&reading, &machine, out, |machine| show::nodes(std::slice::from_ref(machine)))
        }
        NodeCommand::Set { selector, name, mac, said, no_label, unset, reading } => {
            let patch = patch(name, mac, said, no_label, unset)?;
            let client = Client::new(&reading.api);
            let changed: NodesChanged =
                client.document(client.patch(&selected(&selector), &json!(patch))?)?;
            print(&reading, &changed, out, show::nodes_changed)
        }
        NodeCommand::Rm { selector, reading } => {
            let client = Client::new(&reading.api);
            let changed: NodesChanged = client.document(client.delete(&selected(&selector))?)?;
            print(&reading, &changed, out, show::nodes_changed)
        }
        NodeCommand::Adopt { mac, name, reading } => {
            let client = Client::new(&reading.api);
            let body = name.map_or_else(|| json!({}), |name| json!({ "name": name }));
            let path = format!("/api/nodes/{}/adopt", percent(&mac.to_string(), ":"));
            let machine: Machine = client.document(client.post(&path, Some(&body))?)?;
            print(&reading, &machine, out, |machine| show::nodes(std::slice::from_ref(machine)))
        }
        NodeCommand::Import { file, reading } => {
            let table = table(&file).map_err(|source| AskError::File { path: file, source })?;
            let client = Client::new(&reading.api);
            let sent = Sent { content_type: "text/csv", body: Body::from(table), lines: false };
            let changed: NodesChanged = client.document(client.send("/api/nodes.csv", sent)?)?;
            print(&reading, &changed, out, show::nodes_changed)
        }
        NodeCommand::Export(reading) if reading.json => {
            read::<Vec<Machine>>(&reading, "/api/nodes?origin=kept", out, |_| String::new())
        }
        NodeCommand::Export(reading) => {
            let client = Client::new(&reading.api);
            let mut table = Vec::new();
            // Whole, or not at all: half a table would be imported as one.
            client
                .get("/api/nodes.csv")?
                .read_to_end(&mut table)
                .map_err(|_| AskError::Cut { api: reading.api.clone() })?;
            out.write_all(&table).map_err(AskError::Output)
        }
    }
}

fn table(file: &Path) -> std::io::Result<Vec<u8>> {
    if file != Path::new("-") {
        return std::fs::read(file);
    }
    let mut table = Vec::new();
    std::io::stdin().lock().read_to_end(&mut table)?;
    Ok(table)
}

fn selected(selector: &[String]) -> String {
    format!("/api/nodes?select={}", percent(&selector.join(","), ""))
}

fn patch(
    name: Option<String>,
    mac: Option<Mac>,
    said: Said,
    no_label: Vec<String>,
    unset: Vec<String>,
) -> Result<Patch, AskError> {
    let Said { address, profile, label, set, rescue, memory } = said;
    let (power, set) = power_among(set)?;
    let keys: BTreeMap<String, Option<String>> =
        set.into_iter().map(|(key, value)| (key, Some(value))).collect();
    let mut patch = Patch {
        name,
        mac,
        address: address.map(Some),
        profile: profile.map(Some),
        rescue: rescue.map(Some),
        memory: memory.map(Some),
        power: power.map(Some),
        labels: None,
        add_labels: label,
        remove_labels: no_label,
        keys,
    };
    for key in unset {
        match key.as_str() {
            "address" => patch.address = Some(None),
            "profile" => patch.profile = Some(None),
            "rescue" => patch.rescue = Some(None),
            "memory" => patch.memory = Some(None),
            "power" => patch.power = Some(None),
            "labels" => patch.labels = Some(Vec::new()),
            _ => drop(patch.keys.insert(key, None)),
        }
    }
    Ok(patch)
}

/// What is said of power (`power.redfish=URL`), and the other keys.
type Parted = (Option<PowerTable>, Vec<(String, String)>);

fn power_among(set: Vec<(String, String)>) -> Result<Parted, AskError> {
    let (of_power, keys): (Vec<_>, Vec<_>) = set.into_iter().partition(|(key, _)| key.starts_with(POWER));
    let words: Vec<(&str, &str)> =
        of_power.iter().map(|(key, value)| (&key[POWER.len()..], value.as_str())).collect();
    let table = (!words.is_empty()).then(|| PowerTable::of_words(&words)).transpose();
    Ok((table.map_err(usage)?, keys))
}

fn usage(error: String) -> AskError {
    let hint = "docs/power.md has each way with an example".to_owned();
    AskError::Refused(ErrorDocument { error, hint })
}
