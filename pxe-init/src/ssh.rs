//! Login to a node whose boot stopped: dropbear, with a password that is valid for one login. Its hash comes in an
//! initrd that only this machine gets; the host key is made here, and its fingerprint reported to the appliance.

use std::fs;
use std::io::{self, BufReader, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pxe_contract::paths::file;
use pxe_contract::rescue::Login;

use crate::say;
use crate::system::unblock_signals;

/// What the appliance sent for this boot.
const DOCUMENT: &str = file::RESCUE;
const SERVER: &str = "/usr/sbin/dropbear";
const KEYGEN: &str = "/usr/sbin/dropbearkey";
const HOST_KEY: &str = "/run/bridgehead-host-key";
const SHADOW: &str = "/etc/shadow";

#[derive(Debug, thiserror::Error)]
pub(crate) enum SshError {
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
    #[error("{DOCUMENT}: {0}; this pxe-init and the appliance are of different versions")]
    Invalid(serde_json::Error),
    #[error("{DOCUMENT} has no hash that /etc/shadow could")]
    NoHash,
    #[error("making the host key: {0}")]
    HostKey(String),
}

/// The server.
pub(crate) struct Ssh {
    /// `SHA256:…`, as ssh shows it.
    pub(crate) host_key: String,
    logged_in: Arc<AtomicBool>,
    server: Pid,
}

impl Ssh {
    /// Starts the server. `message` is shown at login.
    pub(crate) fn start(message: &str) -> Result<Self, SshError> {
        let failed = |what| move |source| SshError::Io { what, source };
        let text = fs::read(DOCUMENT).map_err(failed(DOCUMENT))?;
        let Login { password_hash: hash } = serde_json::from_slice(&text).map_err(SshError::Invalid)?;
        if !hash.starts_with("$6$") || hash.contains([':', '\n']) {
            return Err(SshError::NoHash);
        }
        let host_key = make_host_key()?;
        let accounts = || -> io::Result<()> {
            fs::write("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")?;
            fs::write("/etc/group", "root:x:0:\n")?;
            fs::write("/etc/shells", "/bin/sh\n")?;
            fs::write("/etc/motd", format!("\n{message}\n\n"))?;
            set_password(&hash)
        };
        accounts().map_err(failed("writing the files in /etc that a login needs"))?;

        // In the foreground, to standard error, no forwarding, three attempts a connection.
        let mut server = Command::new(SERVER);
        server.args(["-F", "-E", "-r", HOST_KEY, "-p", "22", "-j", "-k", "-T", "3"]);
        server.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut server = unblock_signals(&mut server).spawn().map_err(failed(SERVER))?;
        let logged_in = Arc::new(AtomicBool::new(false));
        if let Some(log) = server.stderr.take() {
            let logged_in = Arc::clone(&logged_in);
            let read = move || watch(BufReader::new(log), &logged_in);
            std::thread::Builder::new()
                .name("ssh".into())
                .spawn(read)
                .map_err(failed("starting a thread"))?;
        }
        say!("root can log in once by SSH; the host key is {host_key}");
        Ok(Self { host_key, logged_in, server: Pid::from_raw(server.id().cast_signed()) })
    }

    /// Whether somebody has logged in, so that the password is no longer valid.
    pub(crate) fn logged_in(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.logged_in)
    }

    /// Ends the server and everything that was started in its sessions, which belong to its children.
    pub(crate) fn stop(&self) {
        let _ = set_password("!");
        let _ = kill(self.server, Signal::SIGTERM);
        // A session is a process of the server's own, one for each connection.
        for pid in processes(SERVER) {
            let _ = kill(pid, Signal::SIGTERM);
        }
    }
}

/// Reads the server's log until it ends. The first login invalidates the password.
fn watch(log: impl io::BufRead, logged_in: &AtomicBool) {
    for line in log.lines().map_while(Result::ok) {
        // `[123] Jan 01 00:00:00 Password auth succeeded for 'root' from 10.77.0.1:5000`
        let words = line.split_once("] ").and_then(|(_, rest)| rest.get(16..)).unwrap_or(&line);
        say!("ssh: {words}");
        if words.starts_with("Password auth succeeded") && !logged_in.swap(true, Ordering::AcqRel) {
            match set_password("!") {
                Ok(()) => say!("ssh: the password is worth nothing from now on"),
                Err(e) => say!("ssh: the password could not be taken out of use: {e}"),
            }
        }
    }
}

/// Replaces the file by one with root's hash, or with `!`, which no password matches.
fn set_password(hash: &str) -> io::Result<()> {
    let new = format!("{SHADOW}.new");
    let _ = fs::remove_file(&new);
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    writeln!(file, "root:{hash}:19000:0:99999:7:::")?;
    fs::rename(new, SHADOW)
}

fn make_host_key() -> Result<String, SshError> {
    let failed = |what| move |source| SshError::Io { what, source };
    let _ = fs::remove_file(HOST_KEY);
    let mut keygen = Command::new(KEYGEN);
    keygen.args(["-t", "ed25519", "-f", HOST_KEY]).env_clear().stdin(Stdio::null());
    let output = unblock_signals(&mut keygen).output().map_err(failed(KEYGEN))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let fingerprint = said.lines().find_map(|line| line.strip_prefix("Fingerprint: "));
    match fingerprint.filter(|_| output.status.success()) {
        Some(fingerprint) => {
            fs::set_permissions(HOST_KEY, fs::Permissions::from_mode(0o600)).map_err(failed(HOST_KEY))?;
            Ok(fingerprint.trim().to_owned())
        }
        None => Err(SshError::HostKey(format!("{said}{}", String::from_utf8_lossy(&output.stderr)))),
    }
}

/// The processes that run a program.
fn processes(program: &str) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.as_os_str() == program)
    })
    .map(Pid::from_raw)
    .collect()
}
