//! `bridgehead power`: machines' power, and who the appliance is before BMCs.

use std::io::{BufRead as _, IsTerminal as _, Write};
use std::os::fd::AsFd;

use clap::{Args, Subcommand, ValueEnum};
use nix::sys::termios::{self, LocalFlags, SetArg};
use pxe_contract::failure::ErrorDocument;
use serde_json::json;
use zeroize::Zeroizing;

use super::{AskError, Client, Reading, print, read, show};
use crate::api::documents::PowerResult;
use crate::base::text::percent;
use crate::operate::power::credentials::{Known, SECRET_MAX};
use crate::operate::power::pins::NewPin;

pub(super) const TEACH: &str = "\
To start: tell the appliance how a machine's power is switched, then switch it
  bridgehead power credentials add rack --user root       the BMCs' user; its password is asked for
  bridgehead node set n1 --set power.redfish=https://10.0.0.11 --set power.credentials=rack
  bridgehead power status n1
  bridgehead power cycle n1 --boot pxe

In the configuration file, [[node]] has one of
  power = { redfish = \"https://10.0.0.11\", credentials = \"rack\" }
  power = { ipmi = \"10.0.0.11\", credentials = \"rack\" }
  power = { wol = true }                                  it can be woken, and no more
  power = { command = [\"/usr/local/bin/pdu\", \"{name}\", \"{action}\"] }";

#[derive(Debug, Subcommand)]
pub enum PowerCommand {
    /// Switch machines on. One that is on stays as it is.
    #[command(after_help = "\
Examples:
  bridgehead power on n1
  bridgehead power on 'n[1-40]' --boot pxe      boots from the network this once, whatever its boot order says
  bridgehead power on label=gpu --json")]
    On(Order),
    /// Switch machines off, at once: their operating systems are not asked.
    Off {
        #[command(flatten)]
        which: Which,
    },
    /// Switch machines off and on again; those that are off, on.
    Cycle(Order),
    /// Whether machines are on, as their BMCs say, and when the appliance heard of them last.
    ///
    /// 32 are asked at a time. A machine that a magic packet wakes has nobody to ask: of it there is only when it was
    /// heard of. What a BMC says against what the appliance heard is an error.
    Status {
        #[command(flatten)]
        which: Which,
    },
    /// Accept the certificate that a machine's BMC shows now.
    ///
    /// The first one that a BMC ever shows is taken on trust, and from then on no other. When it was replaced, compare the
    /// fingerprint with the BMC's own page first, or say which one it must have.
    Trust {
        #[arg(value_name = "NAME|MAC")]
        node: String,
        /// SHA-256 of the certificate, as `openssl x509 -fingerprint -sha256` prints it.
        #[arg(long, value_name = "SHA-256")]
        fingerprint: Option<String>,
        #[command(flatten)]
        reading: Reading,
    },
    /// Users and passwords of BMCs, kept sealed, and named by `credentials = NAME`.
    #[command(subcommand)]
    Credentials(CredentialsCommand),
}

#[derive(Debug, Subcommand)]
pub enum CredentialsCommand {
    /// Keep a user and a password. The password is asked for, or read from standard input as one line.
    #[command(after_help = "\
Examples:
  bridgehead power credentials add rack --user root
  pass show bmc/rack | bridgehead power credentials add rack --user root
  bridgehead node set 'n[1-40]' --set power.credentials=rack")]
    Add {
        /// What they are called.
        name: String,
        #[arg(long)]
        user: String,
        #[command(flatten)]
        reading: Reading,
    },
    /// Those that are kept, without their passwords.
    List(Reading),
    /// Forget a user and a password.
    Rm {
        name: String,
        #[command(flatten)]
        reading: Reading,
    },
}

#[derive(Debug, Args)]
pub struct Which {
    /// Names, n[1-40], MAC addresses, label=L, profile=P, all; several of them.
    #[arg(value_name = "SELECTOR", required = true)]
    selector: Vec<String>,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Debug, Args)]
pub struct Order {
    #[command(flatten)]
    which: Which,
    /// Boot from the network this once: by PXE, or by UEFI HTTP Boot where the BMC knows it.
    #[arg(long, value_enum)]
    boot: Option<Boot>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Boot {
    Pxe,
    Http,
}

pub(super) fn run(command: PowerCommand, out: &mut dyn Write) -> Result<(), AskError> {
    match command {
        PowerCommand::On(order) => switch("on", order, out),
        PowerCommand::Cycle(order) => switch("cycle", order, out),
        PowerCommand::Off { which } => switch("off", Order { which, boot: None }, out),
        PowerCommand::Status { which: Which { selector, reading } } => {
            let client = Client::new(&reading.api);
            let path = format!("/api/power?select={}", percent(&selector.join(","), ""));
            let answer = client.get(&path)?;
            results(&client, answer, &reading, out)
        }
        PowerCommand::Trust { node, fingerprint, reading } => {
            let client = Client::new(&reading.api);
            let path = format!("/api/nodes/{}/trust", percent(&node, ""));
            let body = fingerprint.map_or_else(|| json!({}), |it| json!({ "fingerprint": it }));
            let pin: NewPin = client.document(client.post(&path, Some(&body))?)?;
            print(&reading, &pin, out, show::pin)
        }
        PowerCommand::Credentials(command) => credentials(command, out),
    }
}

fn switch(action: &str, order: Order, out: &mut dyn Write) -> Result<(), AskError> {
    let Order { which: Which { selector, reading }, boot } = order;
    let client = Client::new(&reading.api);
    let boot = boot.map(|boot| match boot {
        Boot::Pxe => "pxe",
        Boot::Http => "http",
    });
    let body = json!({ "select": selector.join(","), "action": action, "boot": boot });
    let answer = client.post("/api/power", Some(&body))?;
    results(&client, answer, &reading, out)
}

/// All results, by name, and an error where one machine failed.
fn results(
    client: &Client,
    answer: crate::api::client::Answer,
    reading: &Reading,
    out: &mut dyn Write,
) -> Result<(), AskError> {
    let mut results: Vec<PowerResult> = Vec::new();
    client.lines::<PowerResult>(answer, |result, _| {
        results.push(result);
        Ok(())
    })?;
    results.sort_by(|a, b| (&a.node, a.mac).cmp(&(&b.node, b.mac)));
    print(reading, &results, out, |results| show::power(results))?;
    let failed: Vec<String> =
        results.iter().filter(|result| result.error.is_some()).map(PowerResult::label).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let error = format!("{} of {} failed: {}", failed.len(), results.len(), failed.join(", "));
    let hint = "their causes are above; docs/power.md says what each means".to_owned();
    Err(AskError::Refused(ErrorDocument { error, hint }))
}

fn credentials(command: CredentialsCommand, out: &mut dyn Write) -> Result<(), AskError> {
    match command {
        CredentialsCommand::Add { name, user, reading } => {
            let password =
                password(&user).map_err(|source| AskError::File { path: "standard input".into(), source })?;
            let client = Client::new(&reading.api);
            let path = format!("/api/power/credentials/{}", percent(&name, ""));
            let body = json!({ "user": user, "password": password.as_str() });
            let known: Known = client.document(client.put(&path, &body)?)?;
            print(&reading, &known, out, |known| format!("{} is {} before BMCs\n", known.name, known.user))
        }
        CredentialsCommand::List(reading) => {
            read::<Vec<Known>>(&reading, "/api/power/credentials", out, |all| show::credentials(&all))
        }
        CredentialsCommand::Rm { name, reading } => {
            let client = Client::new(&reading.api);
            client.delete(&format!("/api/power/credentials/{}", percent(&name, "")))?;
            print(&reading, &json!({ "removed": [name] }), out, |_| format!("removed {name}\n"))
        }
    }
}

/// One line of standard input; on a terminal it is asked for, and not shown.
fn password(user: &str) -> std::io::Result<Zeroizing<String>> {
    let stdin = std::io::stdin();
    let hidden =
        if stdin.is_terminal() { Some(Hidden::on(stdin.as_fd().try_clone_to_owned()?)?) } else { None };
    if hidden.is_some() {
        eprint!("Password of {user}: ");
        std::io::stderr().flush()?;
    }
    // One allocation: nothing of it is left behind where a longer one was needed.
    let mut line = Zeroizing::new(String::with_capacity(2 * SECRET_MAX));
    let mut limited = std::io::Read::take(stdin.lock(), SECRET_MAX as u64 + 2);
    limited.read_line(&mut line)?;
    if hidden.is_some() {
        eprintln!();
    }
    let length = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(length);
    Ok(line)
}

/// A terminal that does not show what is typed, until this is dropped.
struct Hidden {
    terminal: std::os::fd::OwnedFd,
    before: termios::Termios,
}

impl Hidden {
    fn on(terminal: std::os::fd::OwnedFd) -> std::io::Result<Self> {
        let before = termios::tcgetattr(&terminal)?;
        let mut without = before.clone();
        without.local_flags.remove(LocalFlags::ECHO);
        termios::tcsetattr(&terminal, SetArg::TCSAFLUSH, &without)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(&self.terminal, SetArg::TCSAFLUSH, &self.before);
    }
}
