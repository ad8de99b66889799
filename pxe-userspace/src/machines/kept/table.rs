//! Machines as a table: CSV (RFC 4180) with a head, a machine a line. Pure.
//!
//! `name,mac,address,profile,rescue,memory,labels,power`, and a column for each further key. Labels are separated by
//! spaces, and so is what is said of power: `redfish=URL credentials=NAME`. An empty cell is no value.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use csv::StringRecord;

use super::NODES_MAX;
use crate::base::text::word;
use crate::config::nodes::{COLUMNS, is_key, quoted};
use crate::config::{Node, Power, PowerTable, size, written_size};

/// Bytes of a table.
pub const TABLE_MAX: usize = 16 << 20;

/// What is wrong in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// From 1, the head's included.
    pub line: u64,
    pub what: String,
}

/// Writes machines, which `read` reads again.
pub fn write(nodes: &[Arc<Node>]) -> String {
    let keys: BTreeSet<&str> = nodes.iter().flat_map(|node| node.keys.keys()).map(String::as_str).collect();
    let mut table = csv::Writer::from_writer(Vec::new());
    // A Vec takes everything.
    let _ = table.write_record(COLUMNS.iter().copied().chain(keys.iter().copied()));
    for node in nodes {
        let own = [
            node.name.clone(),
            node.mac.to_string(),
            node.address.map_or_else(String::new, |address| address.to_string()),
            node.profile.clone().unwrap_or_default(),
            node.rescue.map_or_else(String::new, word),
            node.memory.map_or_else(String::new, written_size),
            node.labels.join(" "),
            node.power.clone().map_or_else(String::new, written),
        ];
        let free = keys.iter().map(|key| node.keys.get(*key).cloned().unwrap_or_default());
        let _ = table.write_record(own.into_iter().chain(free));
    }
    String::from_utf8(table.into_inner().unwrap_or_default()).unwrap_or_default()
}

/// Machines with the lines that they stand on, or everything that is wrong in the form of the table.
pub fn read(table: &[u8]) -> Result<Vec<(u64, Node)>, Vec<Wrong>> {
    let wrong = |line, what: String| Wrong { line, what };
    // Spreadsheets begin with a byte order mark.
    let table = table.strip_prefix(b"\xef\xbb\xbf").unwrap_or(table);
    let mut reader = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(table);
    let head = match reader.headers() {
        Ok(head) => head.clone(),
        Err(error) => return Err(vec![wrong(1, words(&error))]),
    };
    let faults = faults_of_head(&head);
    if !faults.is_empty() {
        return Err(faults.into_iter().map(|what| wrong(1, what)).collect());
    }
    let lines = Lines::of(table);
    let (mut nodes, mut faults) = (Vec::new(), Vec::new());
    let mut record = StringRecord::new();
    loop {
        let line = lines.at(reader.position().byte());
        match reader.read_record(&mut record) {
            Ok(false) => break,
            Ok(true) => match node(&head, &record) {
                Ok(_) if nodes.len() >= NODES_MAX => {
                    faults.push(wrong(line, format!("more than {NODES_MAX} machines")));
                    break;
                }
                Ok(node) => nodes.push((line, node)),
                Err(what) => faults.extend(what.into_iter().map(|what| wrong(line, what))),
            },
            Err(error) => {
                faults.push(wrong(line, words(&error)));
                if error.is_io_error() {
                    break;
                }
            }
        }
    }
    if faults.is_empty() { Ok(nodes) } else { Err(faults) }
}

/// Where lines are. The reader counts its own way where they end in CR LF, or are empty.
struct Lines<'a> {
    table: &'a [u8],
    ends: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn of(table: &'a [u8]) -> Self {
        let ends = table.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
        Self { table, ends: ends.collect() }
    }

    /// The line of what is written there or behind it, from 1.
    fn at(&self, byte: u64) -> u64 {
        let at = usize::try_from(byte).unwrap_or(usize::MAX).min(self.table.len());
        let empty = self.table[at..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        self.ends.partition_point(|end| *end < at + empty) as u64 + 1
    }
}

fn words(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => "it is no UTF-8".to_owned(),
        _ => error.to_string(),
    }
}

fn faults_of_head(head: &StringRecord) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut faults: Vec<String> = ["name", "mac"]
        .iter()
        .filter(|column| !head.iter().any(|name| name == **column))
        .map(|column| {
            format!("there is no column {column}; the first line names them: {},…", COLUMNS.join(","))
        })
        .collect();
    for column in head {
        if !COLUMNS.contains(&column) && !is_key(column) {
            faults.push(format!("{} can't be a column's name", quoted(column)));
        } else if !seen.insert(column) {
            faults.push(format!("there are two columns {column}"));
        }
    }
    faults
}

/// A line's machine, or everything that is wrong with it.
fn node(head: &StringRecord, record: &StringRecord) -> Result<Node, Vec<String>> {
    let mut faults = Vec::new();
    if record.len() > head.len() {
        faults.push(format!("it has {} cells, and there are {} columns", record.len(), head.len()));
    }
    let cells: BTreeMap<&str, &str> =
        head.iter().zip(record.iter()).filter(|(_, cell)| !cell.is_empty()).collect();
    let mut needed = |column: &str| {
        let cell = cells.get(column).copied();
        if cell.is_none() {
            faults.push(format!("it has no {column}"));
        }
        cell.unwrap_or_default()
    };
    let (name, mac) = (needed("name"), needed("mac"));
    let mut node = Node::new(name, Default::default());
    match mac.parse() {
        Ok(mac) => node.mac = mac,
        Err(_) if mac.is_empty() => {}
        Err(error) => faults.push(format!("{} is no MAC address: {error}", quoted(mac))),
    }
    if let Some(cell) = cells.get("address") {
        match cell.parse() {
            Ok(address) => node.address = Some(address),
            Err(_) => faults.push(format!("{} is no IPv4 address", quoted(cell))),
        }
    }
    if let Some(cell) = cells.get("rescue") {
        match serde_json::from_value((*cell).into()) {
            Ok(rescue) => node.rescue = Some(rescue),
            Err(_) => faults.push(format!("{} is no rescue: ssh, console or off", quoted(cell))),
        }
    }
    if let Some(cell) = cells.get("memory") {
        match size(cell) {
            Some(bytes) => node.memory = Some(bytes),
            None => faults.push(format!("{} is no size: write it as 512M or 4G", quoted(cell))),
        }
    }
    if let Some(cell) = cells.get("power") {
        match power(cell) {
            Ok(power) => node.power = Some(power),
            Err(fault) => faults.push(fault),
        }
    }
    node.profile = cells.get("profile").map(|cell| (*cell).to_owned());
    let labels = cells.get("labels").into_iter().flat_map(|cell| cell.split_whitespace());
    node.labels = labels.map(str::to_owned).collect();
    let free = cells.iter().filter(|(column, _)| !COLUMNS.contains(*column));
    node.keys = free.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    if faults.is_empty() { Ok(node) } else { Err(faults) }
}

/// How power is switched, in a cell: `KEY=VALUE` for each key.
fn written(power: Power) -> String {
    let PowerTable { redfish, ipmi, wol, command, credentials } = power.into();
    // No machine that is kept has a command.
    debug_assert_eq!(command, None);
    let texts = [("redfish", redfish), ("ipmi", ipmi), ("credentials", credentials)];
    let texts = texts.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value?)));
    texts.chain(wol.map(|wol| format!("wol={wol}"))).collect::<Vec<_>>().join(" ")
}

fn power(cell: &str) -> Result<Power, String> {
    const RIGHT: &str = "redfish=URL, ipmi=HOST or wol=true, and credentials=NAME behind a space";
    let words = cell.split_whitespace().map(|word| {
        word.split_once('=').ok_or_else(|| format!("{} says nothing of power: {RIGHT}", quoted(word)))
    });
    let words = words.collect::<Result<Vec<_>, _>>()?;
    PowerTable::of_words(&words).and_then(|table| Power::try_from(table).map_err(|fault| fault.to_string()))
}
