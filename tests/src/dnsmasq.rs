//! dnsmasq: the peer in benchmarks, and the rival DHCP server in tests.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::{PATIENCE, Process, wait_for};

/// A running dnsmasq.
pub struct Dnsmasq(Process);

impl Dnsmasq {
    /// Starts `command`, which names dnsmasq (in the world, or on a host), and waits until it serves.
    pub fn start(mut command: Command, args: &[String], log: &Path) -> Result<Self> {
        let leases = log.with_extension("leases");
        // In the foreground, as root, with a log, without DNS and the machine's own configuration.
        command.args(["--keep-in-foreground", "--user=root", "--log-facility=-", "--log-dhcp", "--port=0"]);
        command.args(["--conf-file=/dev/null", "--bind-interfaces", "--no-hosts", "--no-resolv"]);
        command.arg(format!("--dhcp-leasefile={}", leases.display())).args(args);
        let mut process = Process::start(&mut command, log)?;
        wait_for(PATIENCE, || {
            process.ensure_running()?;
            Ok(std::fs::read_to_string(log)?.contains("started, version").then_some(()))
        })
        .context("dnsmasq's start")?;
        Ok(Self(process))
    }

    /// The end of its log.
    pub fn last_lines(&self, count: usize) -> String {
        self.0.last_lines(count)
    }
}
