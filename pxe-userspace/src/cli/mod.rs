//! The command line: its arguments, and the commands that ask a running daemon.

mod access;
mod debug;
mod facts;
mod kernel;
mod launch;
mod node;
mod power;
mod rules;
mod sending;
mod show;
#[cfg(test)]
pub(crate) mod tests;
mod top;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::client::{Client, Place, Reading};
use crate::api::documents::{self, Collected, ImageLine, Rekey, Reloaded};
use crate::base::text::{self, percent};
use crate::config::{Config, FastPath, Problem};
use crate::dataplane;
use crate::machines::Machine;
use crate::machines::diagnosis::Why;
use crate::machines::timeline::Event;
use crate::storm::Storm;

pub use crate::api::client::AskError;

/// PXE-boots bare metal from Docker images.
#[derive(Debug, Parser)]
#[command(name = "bridgehead", version, max_term_width = 100, after_help = START)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

const START: &str = "\
To start: write a configuration (docs/configuration.md has the least that boots something), then
  bridgehead check --config FILE      what is wrong with it, if anything
  bridgehead serve --config FILE      run it; `ready` is printed when it answers packets
  bridgehead events --follow          power a machine on, and see how far it gets
  bridgehead status                   is everything well?

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration. The log's level is BRIDGEHEAD_LOG (info).";

const LAUNCH: &str = "\
What it does with each machine, in its turn:
  it pins what the machine boots from now on, as an image's digest: a month later it boots the same, until the next launch;
  it powers on what is off, and restarts what runs something else;
  it follows the boot until the machine is healthy;
  what is stuck it powers off and on, --tries times in all, and then sets aside, with the cause that `why` has.
Machines without `power` wait for somebody who switches them on, which is said before.

Examples:
  bridgehead launch all --image hello-metal --dry-run            what would be done
  bridgehead launch all --image hello-metal --wait               and until all are healthy
  bridgehead launch label=gpu --profile train --canary 1 --at-a-time 20 --max-failed 5% --wait
  bridgehead launch 'n[1-40]' --image web:2 --healthy 'http://{address}:8080/health' --deadline 1h
  bridgehead launches; bridgehead launch show 7                  how far it is, machine by machine
  bridgehead launch cancel 7; bridgehead launch undo 7           end it; back to what was before

Exit codes of --wait: 0 every machine is healthy, 1 not, with names and causes. docs/launch.md tells it from the start.";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the appliance in the foreground.
    ///
    /// Logs go to stderr; `ready` on stdout says that packets are answered. SIGHUP applies a changed
    /// configuration file, SIGTERM and SIGINT end the daemon and give the network back as it was. Needs
    /// root, or CAP_NET_ADMIN, CAP_NET_RAW, CAP_NET_BIND_SERVICE, and CAP_BPF for the fast path.
    Serve(Serve),
    /// Validate a configuration file without changing anything.
    ///
    /// Exit code 0, or 2 with FILE:LINE:COLUMN, what is wrong and what would be right for each fault.
    Check(ConfigFile),
    /// Power on a thousand simulated machines before an appliance of yours.
    ///
    /// Each has its own MAC address and behaves as its firmware does, from DISCOVER to the reports of its init; what it
    /// loads is verified. Prints when each stage was reached, what failed and why, and what it cost. Exit code 0 when
    /// all that --expect says holds, 1 when not, 2 for wrong usage. Needs root, or CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN.
    Storm(Storm),
    /// The process in which the daemon has archives read. Only the daemon starts it.
    #[command(hide = true)]
    ImportChild,
    #[command(flatten)]
    Ask(Ask),
}

#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    pub file: ConfigFile,
    /// Serve nothing: take off the fast path that a killed daemon left running, and end.
    #[arg(long)]
    pub detach_fast_path: bool,
}

#[derive(Debug, Args)]
pub struct ConfigFile {
    /// The configuration: docs/configuration.md has every key.
    #[arg(long, value_name = "FILE", default_value = "/etc/bridgehead/config.toml")]
    pub config: PathBuf,
}

/// What a running daemon is asked.
#[derive(Debug, Subcommand)]
pub enum Ask {
    /// Health, the fast path's tier on each port, counters.
    Status(Reading),
    /// Machines seen or declared, and how far each one is.
    ///
    /// DECLARED says where: FILE:LINE, `database` (`bridgehead node`), or the rule that took it.
    Nodes {
        /// Only these: names, n[1-40], MAC addresses, label=L, profile=P, fact=KEY:VALUE, all; several of them.
        #[arg(value_name = "SELECTOR")]
        selector: Vec<String>,
        #[command(flatten)]
        reading: Reading,
    },
    /// Declare machines while the daemon runs: add, change, remove; adopt what was seen; tables in and out.
    ///
    /// They are kept in the database, beside those of the configuration file, and say the same: docs/machines.md.
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Switch machines' power, and ask whether they are on: by Redfish, IPMI, Wake-on-LAN or a command of yours.
    ///
    /// `power = { … }` of a node says how: docs/power.md. Exit code 1 when one machine failed; each is named with its
    /// cause.
    #[command(subcommand, after_help = power::TEACH)]
    Power(power::PowerCommand),
    /// Have machines boot something: power them on, watch them until they are healthy, try again what fails.
    #[command(after_help = LAUNCH)]
    Launch(launch::LaunchArgs),
    /// The launches that there were, the newest first.
    Launches(Reading),
    /// What a machine is made of: model, serial numbers, CPU, memory, disks, network cards, and the switch that it is on.
    ///
    /// As it told in its last boot; the timeline says what was different from the one before. Selectors go by it, as in
    /// `bridgehead nodes 'fact=memory:>=64G'`, and rules: docs/machines.md.
    Facts {
        #[arg(value_name = "NAME|MAC")]
        node: String,
        #[command(flatten)]
        reading: Reading,
    },
    /// Addresses given to machines.
    Leases(Reading),
    /// Files below the files root.
    Files(Reading),
    /// Imported images.
    Images(Reading),
    /// What machines can boot.
    Profiles(Reading),
    /// Containers on the appliance.
    Workloads(Reading),
    /// The timeline: what happened to each machine, in order.
    Events {
        /// Go on with what happens.
        #[arg(long, short)]
        follow: bool,
        /// Only this machine's events, by name or MAC address.
        #[arg(long, value_name = "NAME|MAC")]
        node: Option<String>,
        /// Only events with a larger id.
        #[arg(long, value_name = "ID", default_value_t = 0)]
        after: u64,
        #[command(flatten)]
        reading: Reading,
    },
    /// Why a machine does not boot, or boots slowly: causes, what was seen, what to do.
    ///
    /// Also while it still boots. Without a machine, every one of whose last boot there is something to say.
    Why {
        #[arg(value_name = "NAME|MAC")]
        node: Option<String>,
        #[command(flatten)]
        reading: Reading,
    },
    /// The whole site on one screen, as it goes: machines by stage, what is sent, slow boots, causes.
    ///
    /// `q` ends it.
    Top(top::Top),
    /// Stop a machine's next boots in stage 1, with a shell on its console, until it is released.
    ///
    /// Its network is up and its image loaded, but not looked at. `bridgehead nodes` shows it as held. A
    /// machine that runs goes on; reboot it.
    Hold {
        /// The machine, by name or MAC address.
        #[arg(value_name = "NAME|MAC")]
        node: String,
        /// Only its next boot.
        #[arg(long)]
        once: bool,
        #[command(flatten)]
        reading: Reading,
    },
    /// Let a held machine go on with its boot, or one whose boot failed boot again, within seconds.
    Release {
        #[arg(value_name = "NAME|MAC")]
        node: String,
        #[command(flatten)]
        reading: Reading,
    },
    /// Say that it is the machine itself that boots, so that its boot gets the keys of its volumes.
    ///
    /// A boot that begins while its machine seems to run gets none: somebody else may ask in its name (docs/trust.md).
    /// Look at the machine first. The word is good for the boot whose keys were kept back; if there is none, for one
    /// that begins within 15 minutes.
    Rekey {
        #[arg(value_name = "NAME|MAC")]
        node: String,
        #[command(flatten)]
        reading: Reading,
    },
    /// How to log in to a machine whose boot failed or is held: address, password, host key.
    ///
    /// Where its profile or node says rescue = "ssh". The password is of this boot and good for one login. Compare
    /// the host key's fingerprint with what ssh shows. `bridgehead release` boots the machine again.
    Rescue {
        #[arg(value_name = "NAME|MAC")]
        node: String,
        #[command(flatten)]
        reading: Reading,
    },
    /// What a machine's kernel and stage 1 said on its console, in its last boot.
    ///
    /// From the kernel's first line on, as soon as stage 1 has a network. The last boots are kept, also
    /// through restarts of the daemon. Control characters are shown as `^[` and the like. `crash:` marks what a
    /// dying kernel sent by itself.
    Console(debug::Spoken),
    /// What a machine's workload writes to its standard outputs, in its last boot.
    ///
    /// The workload runs on a terminal, so both outputs are one. The last boots are kept, also through restarts
    /// of the daemon; a workload that writes faster than is sent loses lines, and the text says how many.
    /// Control characters are shown as `^[` and the like.
    Logs(debug::Spoken),
    /// Write a packet trace of a machine's boot, for Wireshark.
    ///
    /// Every frame from and to the machine on the bridge's ports, as pcapng. Start it, then power the machine
    /// on; it ends by itself when the workload runs or the boot failed. Comments on the frames say which the
    /// kernel's programs answered, and the timeline's stages. While a trace runs, XDP is off: packet sockets
    /// see nothing of what it answers.
    Trace(debug::Trace),
    /// Bring images in, and remove them.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Kernels to boot images with, in place of their own or the stock one.
    ///
    /// An image boots with the kernel that its profile names, else its own, else the default one, else the stock one of
    /// set-up. A machine that does not reach stage 1 with a new kernel twice is sent the last one that it came up with,
    /// and the timeline says so.
    #[command(subcommand)]
    Kernel(kernel::KernelCommand),
    /// Apply a changed configuration file, as SIGHUP does; no transfer is dropped.
    Reload(Reading),
    /// Tokens: who may use the API by TCP, and for what.
    ///
    /// By the socket nobody needs one. docs/api.md says what each role may do.
    #[command(subcommand)]
    Token(access::TokenCommand),
    /// What was changed: when, by whom, before and after.
    Audit(access::Following),
    /// Print an address of the page that lets a browser in, once.
    Login(access::Login),
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Import an image from the Docker engine, an OCI layout's directory or a tar archive.
    ///
    /// What exists as a path is taken for one, and sent to the daemon; `NAME:TAG` names an image of the engine's. An
    /// image that is here already is made anew only when it has changed.
    Add {
        #[arg(value_name = "REF|DIR|TAR")]
        image: String,
        #[command(flatten)]
        reading: Reading,
    },
    /// Remove an imported image. Its data stays until `image gc`.
    Rm {
        #[arg(value_name = "REF")]
        image: String,
        #[command(flatten)]
        reading: Reading,
    },
    /// Delete stored data that no image refers to.
    Gc(Reading),
}

/// What this kernel would give the fast path, found out by handing it the programs and taking them back.
fn fast_path(wanted: FastPath) -> String {
    if wanted == FastPath::Off {
        return "fast path: off, as [network] fast-path says\n".into();
    }
    match dataplane::survey(wanted) {
        Ok(kernel) => show::survey(kernel),
        Err(error) => format!("fast path: unknown: {}\n", text::chain(&error)),
    }
}

/// Validates a configuration file against itself and the system, and says so.
pub fn check(file: &Path) -> Result<Config, Vec<Problem>> {
    let config = crate::config::check(file)?;
    println!(
        "{}: valid: {} profiles, {} nodes, {} workloads on {} ({})",
        file.display(),
        config.profiles.len(),
        config.nodes.len(),
        config.workloads.len(),
        config.network.bridge,
        config.network.address,
    );
    print!("{}", fast_path(config.network.fast_path));
    print!("{}", text::visible_lines(&rules::taken(&config)));
    if !config.boot.assets.is_dir() {
        eprintln!(
            "warning: {} is missing: `serve` needs the netboot images there (`cargo xtask setup`)",
            config.boot.assets.display()
        );
    }
    Ok(config)
}

/// Asks the daemon and prints its answer to `out`.
pub fn ask(what: Ask, out: &mut dyn Write) -> Result<(), AskError> {
    match run(what, out) {
        // `bridgehead events | head` is done when head is.
        Err(AskError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

fn run(what: Ask, out: &mut dyn Write) -> Result<(), AskError> {
    match what {
        Ask::Status(reading) => read::<documents::Status>(&reading, "/api/status", out, show::status),
        Ask::Nodes { selector, reading } => nodes(&selector, &reading, out),
        Ask::Node(command) => node::run(command, out),
        Ask::Power(command) => power::run(command, out),
        Ask::Launch(args) => launch::run(args, out),
        Ask::Launches(reading) => launch::list(&reading, out),
        Ask::Facts { node, reading } => {
            let path = format!("/api/nodes/{}/facts", percent(&node, ""));
            read(&reading, &path, out, facts::facts)
        }
        Ask::Leases(reading) => read(&reading, "/api/leases", out, show::leases),
        Ask::Files(reading) => read(&reading, "/api/files", out, show::files),
        Ask::Images(reading) => read(&reading, "/api/images", out, show::images),
        Ask::Profiles(reading) => read(&reading, "/api/profiles", out, show::profiles),
        Ask::Workloads(reading) => read(&reading, "/api/workloads", out, show::workloads),
        Ask::Events { follow, node, after, reading } => {
            let node = node.map_or_else(String::new, |n| format!("&node={}", percent(&n, "")));
            let path = format!("/api/events?after={after}&follow={}{node}", u8::from(follow));
            let client = Client::new(&reading.api);
            client.lines::<Event>(client.get(&path)?, |event, line| match reading.json {
                true => out.write_all(line),
                false => {
                    writeln!(out, "{}", text::visible_lines(&show::event(&event))).and_then(|()| out.flush())
                }
            })
        }
        Ask::Why { node: None, reading } => {
            // Why a machine is not even seen, nobody but the appliance's own state tells.
            let alerts = match reading.json {
                true => Vec::new(),
                false => {
                    let client = Client::new(&reading.api);
                    client.document::<documents::Status>(client.get("/api/status")?)?.alerts
                }
            };
            read::<Vec<Why>>(&reading, "/api/why", out, |all| show::all_why(&all, &alerts))
        }
        Ask::Why { node: Some(node), reading } => {
            let path = format!("/api/nodes/{}/why", percent(&node, ""));
            read::<Why>(&reading, &path, out, |why| show::why(&why))
        }
        Ask::Top(what) => top::top(what, out),
        Ask::Hold { node, once, reading } => {
            let client = Client::new(&reading.api);
            let path = format!("/api/nodes/{}/hold?once={}", percent(&node, ""), u8::from(once));
            let machine: Machine = client.document(client.post(&path, None)?)?;
            print(&reading, &machine, out, |machine| show::nodes(std::slice::from_ref(machine)))
        }
        Ask::Release { node, reading } => {
            let client = Client::new(&reading.api);
            let path = format!("/api/nodes/{}/hold", percent(&node, ""));
            let machine: Machine = client.document(client.delete(&path)?)?;
            print(&reading, &machine, out, |machine| show::nodes(std::slice::from_ref(machine)))
        }
        Ask::Rekey { node, reading } => {
            let client = Client::new(&reading.api);
            let path = format!("/api/nodes/{}/rekey", percent(&node, ""));
            let rekey: Rekey = client.document(client.post(&path, None)?)?;
            print(&reading, &rekey, out, show::rekey)
        }
        Ask::Rescue { node, reading } => {
            let path = format!("/api/nodes/{}/rescue", percent(&node, ""));
            read(&reading, &path, out, show::way_in)
        }
        Ask::Console(what) => debug::console(what, out),
        Ask::Logs(what) => debug::logs(what, out),
        Ask::Trace(what) => debug::trace(what, out),
        Ask::Image(command) => image(command, out),
        Ask::Kernel(command) => kernel::run(command, out),
        Ask::Token(command) => access::token(command, out),
        Ask::Audit(following) => access::audit(following, out),
        Ask::Login(login) => access::login(login, out),
        Ask::Reload(reading) => {
            let client = Client::new(&reading.api);
            let done: Reloaded = client.document(client.post("/api/reload", None)?)?;
            print(&reading, &done, out, show::reloaded)
        }
    }
}

/// One that is named is one document; what may be several is a list.
fn nodes(selector: &[String], reading: &Reading, out: &mut dyn Write) -> Result<(), AskError> {
    match selector {
        [] => read::<Vec<Machine>>(reading, "/api/nodes", out, |all| show::nodes(&all)),
        [one] if one != "all" && !one.contains(['[', '=', ',', ' ']) => {
            let path = format!("/api/nodes/{}", percent(one, ""));
            read::<Machine>(reading, &path, out, |machine| show::nodes(&[machine]))
        }
        several => {
            let path = format!("/api/nodes?select={}", percent(&several.join(","), ""));
            read::<Vec<Machine>>(reading, &path, out, |all| show::nodes(&all))
        }
    }
}

fn image(command: ImageCommand, out: &mut dyn Write) -> Result<(), AskError> {
    match command {
        ImageCommand::Add { image, reading } => {
            let client = Client::new(&reading.api);
            let answer = match sending::image(&client, Path::new(&image))? {
                Some((sent, query)) => client.send(&format!("/api/images?{query}"), sent)?,
                None => client.post("/api/images", Some(&serde_json::json!({ "reference": image })))?,
            };
            let mut outcome = None;
            client.lines::<ImageLine>(answer, |line, raw| {
                if reading.json {
                    out.write_all(raw)?;
                }
                match line {
                    ImageLine::Progress(step) if !reading.json => writeln!(out, "{}", show::progress(&step))?,
                    ImageLine::Progress(_) => {}
                    ImageLine::Done(image) => {
                        if !reading.json {
                            write!(out, "{}", show::image_added(*image))?;
                        }
                        outcome = Some(Ok(()));
                    }
                    ImageLine::Failed(failure) => outcome = Some(Err(failure)),
                }
                out.flush()
            })?;
            match outcome {
                Some(Ok(())) => Ok(()),
                Some(Err(failure)) => Err(AskError::Refused(failure)),
                None => Err(AskError::Cut { api: reading.api }),
            }
        }
        ImageCommand::Rm { image, reading } => {
            let client = Client::new(&reading.api);
            client.delete(&format!("/api/images/{}", percent(&image, "/:@")))?;
            print(&reading, &serde_json::json!({ "removed": [image] }), out, |_| format!("removed {image}\n"))
        }
        ImageCommand::Gc(reading) => {
            let client = Client::new(&reading.api);
            let done: Collected = client.document(client.post("/api/images/gc", None)?)?;
            print(&reading, &done, out, show::collected)
        }
    }
}

fn read<T: DeserializeOwned + Serialize>(
    reading: &Reading,
    path: &str,
    out: &mut dyn Write,
    show: impl FnOnce(T) -> String,
) -> Result<(), AskError> {
    let client = Client::new(&reading.api);
    let answer = client.get(path)?;
    if reading.json {
        // As the daemon has it: a newer one may say more than this program knows.
        let document: serde_json::Value = client.document(answer)?;
        return print(reading, &document, out, |_| String::new());
    }
    let document: T = client.document(answer)?;
    out.write_all(text::visible_lines(&show(document)).as_bytes()).map_err(AskError::Output)
}

fn print<T: Serialize>(
    reading: &Reading,
    document: &T,
    out: &mut dyn Write,
    show: impl FnOnce(&T) -> String,
) -> Result<(), AskError> {
    let text = match reading.json {
        true => format!("{:#}\n", serde_json::to_value(document).expect("documents have only text keys")),
        false => text::visible_lines(&show(document)),
    };
    out.write_all(text.as_bytes()).map_err(AskError::Output)
}
