//! The stages of a boot, read by tshark from a capture at the machine's own card, so that no server measures itself.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::machine::CAPTURE_EPOCH;
use crate::process::output;

/// Seconds since power-on at which a stage was reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stages {
    pub discover: Option<f64>,
    pub ack: Option<f64>,
    /// The last byte of each file was acknowledged.
    pub loader: Option<f64>,
    pub kernel: Option<f64>,
    pub initrd: Option<f64>,
    /// The first connection that the booted system opens: pxe-init reports that it runs.
    pub init: Option<f64>,
}

/// Names of the files that stages end with, as the client asks for them.
#[derive(Clone, Debug)]
pub struct Files {
    pub loader: String,
    pub kernel: String,
    /// The last one that is loaded.
    pub initrd: String,
}

/// One TFTP transfer.
struct Transfer<'a> {
    file: &'a str,
    port: &'a str,
    last_ack: f64,
}

/// The fields that tshark prints, in the order in which [`stages`] reads them.
const FIELDS: [&str; 9] = [
    "frame.time_epoch",
    "eth.src",
    "dhcp.option.dhcp",
    "tftp.opcode",
    "tftp.source_file",
    "udp.srcport",
    "udp.dstport",
    "tcp.flags.syn",
    "tcp.dstport",
];

/// The stages in the capture at `path` of the machine with `mac`.
pub fn stages(path: &Path, mac: &str, files: &Files) -> Result<Stages> {
    let mut tshark = Command::new("tshark");
    tshark.args(["-n", "-l", "-T", "fields", "-Y", "dhcp or udp or tcp", "-r"]).arg(path);
    for field in FIELDS {
        tshark.args(["-e", field]);
    }
    read(&output(&mut tshark)?, mac, files)
}

fn read(rows: &str, mac: &str, files: &Files) -> Result<Stages> {
    let mut stages = Stages::default();
    let mut transfers: Vec<Transfer<'_>> = Vec::new();
    for row in rows.lines() {
        let fields: Vec<&str> = row.split('\t').collect();
        let fields: [&str; FIELDS.len()] = fields.try_into().ok().context("a row of tshark's")?;
        let [time, source, dhcp, tftp, file, from_port, to_port, syn, tcp_port] = fields;
        let time = time.parse::<f64>()? - CAPTURE_EPOCH;
        let from_machine = source.eq_ignore_ascii_case(mac);
        match (from_machine, dhcp, tftp) {
            (true, "1", _) => stages.discover = stages.discover.or(Some(time)),
            (false, "5", _) => stages.ack = Some(time),
            (true, _, "1") => transfers.push(Transfer { file, port: from_port, last_ack: time }),
            // Acknowledgements; tshark may not know them by name after a port was reused.
            (true, ..) if !from_port.is_empty() && to_port != "69" => {
                if let Some(transfer) = transfers.iter_mut().rev().find(|t| t.port == from_port) {
                    transfer.last_ack = time;
                }
            }
            (true, ..) if matches!(syn, "1" | "True") && tcp_port == "80" => {
                stages.init = stages.init.or(Some(time));
            }
            _ => {}
        }
    }
    let end = |name: &str| {
        let same = |t: &&Transfer<'_>| t.file.trim_start_matches('/') == name.trim_start_matches('/');
        transfers.iter().rev().find(same).map(|t| t.last_ack)
    };
    stages.loader = end(&files.loader);
    stages.kernel = end(&files.kernel);
    stages.initrd = end(&files.initrd);
    Ok(stages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_read_from_its_rows() {
        let files = Files { loader: "l".into(), kernel: "k".into(), initrd: "i".into() };
        let rows = "\
946684802.0\t52:54:00:77:00:01\t1\t\t\t68\t67\t\t
946684804.0\t52:54:00:77:00:01\t1\t\t\t68\t67\t\t
946684805.0\t02:00:00:00:00:01\t5\t\t\t67\t68\t\t
946684806.0\t52:54:00:77:00:01\t\t1\tl\t2000\t69\t\t
946684806.5\t52:54:00:77:00:01\t\t4\tl\t2000\t3000\t\t
946684807.0\t52:54:00:77:00:01\t\t1\t/k\t2001\t69\t\t
946684808.0\t02:00:00:00:00:01\t\t3\t/k\t3000\t2001\t\t
946684807.5\t52:54:00:77:00:01\t\t\t\t2001\t3001\t\t
946684809.0\t52:54:00:77:00:01\t\t1\t/i\t2000\t69\t\t
946684809.5\t52:54:00:77:00:01\t\t4\t/i\t2000\t3002\t\t
946684811.0\t52:54:00:77:00:01\t\t\t\t\t\t1\t80
946684812.0\t52:54:00:77:00:01\t\t\t\t\t\t1\t80
";
        let stages = read(rows, "52:54:00:77:00:01", &files).unwrap();
        let want = Stages {
            discover: Some(2.0),
            ack: Some(5.0),
            loader: Some(6.5),
            kernel: Some(7.5),
            initrd: Some(9.5),
            init: Some(11.0),
        };
        assert_eq!(stages, want);
    }
}
