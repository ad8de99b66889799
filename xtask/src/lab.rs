//! `cargo xtask lab`: commands in a running lab.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::shell::exit_code;

/// Run a command, or a shell, inside a lab that `cargo xtask run` started in another terminal
///
/// `cargo xtask lab -- bridgehead nodes` asks its appliance; `cargo xtask lab -- docker image ls` its engine.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The lab's directory name below target/lab; the newest when not given
    #[arg(long)]
    id: Option<String>,
    /// Only list the labs that run
    #[arg(long)]
    list: bool,
    /// A shell in the virtual machine of `cargo xtask guest`, until Ctrl-D
    #[arg(long, conflicts_with = "command")]
    guest: bool,
    /// The command; a shell when not given
    #[arg(last = true)]
    command: Vec<String>,
}

pub(crate) fn lab(arguments: &Arguments) -> Result<ExitCode> {
    let mut labs = ::lab::world::running()?;
    if arguments.list {
        for (dir, pid) in labs {
            println!("{}  first process {pid}", dir.display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(id) = &arguments.id {
        labs.retain(|(dir, _)| dir.file_name().is_some_and(|name| name == id.as_str()));
    }
    let (dir, pid) = labs.first().context("no such lab is running; `cargo xtask run` starts one")?;
    if arguments.guest {
        return shell_in_guest(&dir.join("guest.shell"));
    }
    let mut command = match arguments.command.split_first() {
        Some((program, rest)) => {
            let mut command = ::lab::world::join(*pid, program);
            command.args(rest);
            command
        }
        None => ::lab::world::join(*pid, "sh"),
    };
    if let Some(path) = path_in_lab(*pid)? {
        command.env("PATH", path);
    }
    Ok(exit_code(command.status().context("starting nsenter (util-linux)")?))
}

/// Our PATH with the lab's `bridgehead` first.
fn path_in_lab(pid: u32) -> Result<Option<std::ffi::OsString>> {
    let environment =
        std::fs::read_to_string(format!("/proc/{pid}/environ")).context("the lab's environment")?;
    let program = environment.split('\0').find_map(|e| e.strip_prefix("BRIDGEHEAD_BIN="));
    let Some(dir) = program.and_then(|p| Path::new(p).parent()) else { return Ok(None) };
    let path = std::env::var_os("PATH").unwrap_or_default();
    Ok(Some(std::env::join_paths(std::iter::once(dir.to_owned()).chain(std::env::split_paths(&path)))?))
}

/// Passes lines from the terminal to the machine's second serial port, and shows its output here.
fn shell_in_guest(socket: &Path) -> Result<ExitCode> {
    let port = UnixStream::connect(socket).with_context(|| format!("{}: no machine", socket.display()))?;
    let mut said = port.try_clone()?;
    let printer = std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::stdout()));
    std::io::copy(&mut std::io::stdin(), &mut &port)?;
    // The last output is still to come: the end of the shell's output answers an `exit`.
    port.shutdown(std::net::Shutdown::Write)?;
    printer.join().expect("the printer does not panic")?;
    Ok(ExitCode::SUCCESS)
}
