//! Power by IPMI 2.0 over LAN (RMCP+, IPMI v2.0 section 13), which `ipmitool` speaks: docs/decisions/024-power.md.
//!
//! The password goes to its standard input. Arguments and environment of a process can be seen by others.

use zeroize::Zeroizing;

use super::credentials::{Login, bounded};
use super::{BootOnce, Driver, Limits, Mode, NetBoot, PowerError, State, child};

const PROGRAM: &str = "ipmitool";
/// Of IPMI 2.0 (section 22.30, Set User Password).
const PASSWORD_MAX: usize = 20;
/// Seconds until `ipmitool` asks again, and how often it does.
const RETRY: [&str; 4] = ["-N", "2", "-R", "3"];

pub(super) struct Ipmi {
    host: String,
    port: u16,
    login: Login,
    limits: Limits,
}

impl Ipmi {
    pub(super) fn new(
        host: String,
        port: u16,
        login: Option<Login>,
        limits: Limits,
    ) -> Result<Self, PowerError> {
        let login = login.ok_or_else(|| PowerError::CredentialsWanted { bmc: host.clone() })?;
        if login.password.len() > PASSWORD_MAX {
            return Err(PowerError::LongPassword(login.name));
        }
        Ok(Self { host, port, login, limits })
    }

    /// `ipmitool` with these words behind its own.
    async fn chassis(&self, words: &[&str]) -> Result<String, PowerError> {
        let port = self.port.to_string();
        // `-v` has it say why a session was not opened, and nothing of the password.
        let own = [
            "-v",
            "-I",
            "lanplus",
            "-H",
            &self.host,
            "-p",
            &port,
            "-U",
            &self.login.user,
            "-f",
            "/dev/stdin",
        ];
        let privilege = ["-L", "OPERATOR"];
        let all = own.iter().chain(&RETRY).chain(&privilege).chain(&["chassis"]).chain(words);
        let arguments: Vec<String> = all.map(|word| (*word).to_owned()).collect();
        let mut password = Zeroizing::new(Vec::with_capacity(PASSWORD_MAX + 1));
        password.extend_from_slice(self.login.password.as_bytes());
        password.push(b'\n');
        match child::run(PROGRAM, &arguments, Some(password), self.limits.request).await {
            Ok(ended) if ended.status.success() => Ok(ended.stdout),
            Ok(ended) => Err(self.refused(words, &ended.stderr)),
            // Over UDP, one that is slow and one that is not there look alike.
            Err(PowerError::Overran { limit, .. }) => {
                let why = format!("ipmitool has no answer of it after {} s", limit.as_secs());
                Err(PowerError::Unreachable { bmc: self.place(), why })
            }
            Err(other) => Err(other),
        }
    }

    /// By `ipmitool`'s words, which are all that it gives.
    fn refused(&self, words: &[&str], said: &str) -> PowerError {
        let bmc = self.place();
        let line = |parts: &[&str]| {
            let found = said.lines().find(|line| parts.iter().any(|part| line.contains(part)));
            found.map(|line| self.login.scrub(line.trim_start_matches(['>', ' '])))
        };
        // The messages that authenticate (section 13.20 to 13.23).
        if let Some(said) = line(&["RAKP 2", "RAKP 4", "unauthorized name", "required privilege"]) {
            return PowerError::Denied { bmc, credentials: self.login.name.clone(), said };
        }
        if let Some(why) = line(&["Address lookup", "Get Auth Capabilities error", "Unable to establish"]) {
            return PowerError::Unreachable { bmc, why };
        }
        // Its last line is that of the command.
        let said = self.login.scrub(said.lines().last().unwrap_or_default());
        PowerError::Rejected { bmc, asked: format!("chassis {}", words.join(" ")), said }
    }
}

impl Driver for Ipmi {
    async fn state(&mut self) -> Result<State, PowerError> {
        let printed = self.chassis(&["power", "status"]).await?;
        match printed.lines().last().unwrap_or_default().trim() {
            "Chassis Power is on" => Ok(State::On),
            "Chassis Power is off" => Ok(State::Off),
            other => Err(PowerError::SaysNothing { program: PROGRAM.to_owned(), said: bounded(other) }),
        }
    }

    async fn switch(&mut self, on: bool) -> Result<(), PowerError> {
        self.chassis(&["power", if on { "on" } else { "off" }]).await.map(drop)
    }

    /// IPMI knows PXE alone, and says nothing of HTTP (section 28.13, boot device selector).
    async fn boot_once(&mut self, boot: BootOnce) -> Result<Option<BootOnce>, PowerError> {
        let words: &[&str] = match boot.mode {
            Mode::Uefi => &["bootdev", "pxe", "options=efiboot"],
            Mode::Bios => &["bootdev", "pxe"],
        };
        self.chassis(words).await?;
        Ok(Some(BootOnce { from: NetBoot::Pxe, ..boot }))
    }

    fn place(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}
