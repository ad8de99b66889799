//! BMCs: OpenIPMI's simulator, whose chassis control starts and ends a virtual machine.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::machine::Spec;
use crate::process::Process;
use crate::world::World;

pub const USER: &str = "operator";
pub const PASSWORD: &str = "rack-a1-secret";

/// A machine that is off, and the BMC that switches it. Dropping it ends both.
pub struct Bmc {
    pub port: u16,
    /// The script that the simulator calls, beside which its files are.
    script: PathBuf,
    simulator: Process,
}

impl Drop for Bmc {
    fn drop(&mut self) {
        if let Some(machine) = self.machine() {
            let _ = Command::new("kill").args(["-9", &machine.to_string()]).status();
        }
    }
}

impl Bmc {
    pub fn start(world: &World, spec: &Spec) -> Result<Self> {
        // Nobody else has ports in the world.
        let port = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let path = |what: &str| world.path(format!("{}.{what}", spec.name));
        let script = path("chassis");
        fs::write(&script, chassis(&spec.qemu(world, None)?)?)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        let lan = format!(
            "name \"{}\"\nset_working_mc 0x20\n  startlan 1\n    addr 127.0.0.1 {port}\n    priv_limit admin\n    \
             allowed_auths_admin none md2 md5 straight\n    allowed_auths_operator none md2 md5 straight\n    \
             guid a123456789abcdefa123456789abcdef\n  endlan\n  chassis_control \"{}\"\n  \
             user 2 true \"{USER}\" \"{PASSWORD}\" admin 10 none md2 md5 straight\n",
            spec.name,
            script.display()
        );
        fs::write(path("lan"), lan)?;
        // A BMC without sensors.
        let commands =
            "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nmc_enable 0x20\n";
        fs::write(path("emu"), commands)?;
        fs::create_dir_all(path("state"))?;
        let mut simulator = Command::new("ipmi_sim");
        simulator.args(["-n", "-c"]).arg(path("lan")).arg("-f").arg(path("emu")).arg("-s").arg(path("state"));
        let simulator =
            Process::start(&mut simulator, &path("ipmi.log")).context("is openipmi installed?")?;
        Ok(Self { port, script, simulator })
    }

    /// How often the machine was switched, in order: `on`, `off`.
    pub fn switched(&self) -> Result<Vec<String>> {
        let lines = fs::read_to_string(self.file("switched")).unwrap_or_default();
        Ok(lines.lines().map(str::to_owned).collect())
    }

    /// What the machine was last told to boot, once.
    pub fn boots(&self) -> Option<String> {
        Some(fs::read_to_string(self.file("boot")).ok()?.trim().to_owned())
    }

    /// The process of the machine, if it is on.
    pub fn machine(&self) -> Option<u32> {
        let pid = fs::read_to_string(self.file("machine")).ok()?.trim().parse().ok()?;
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // A zombie waits for a parent that is no more.
        (!state.contains(") Z ")).then_some(pid)
    }

    /// From now on it says that the machine is on, whatever it is.
    pub fn lie(&self) -> Result<()> {
        Ok(fs::write(self.file("lies"), "")?)
    }

    /// Ends the simulator, and not the machine.
    pub fn vanish(&mut self) -> Result<()> {
        self.simulator.kill()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.script.with_added_extension(name)
    }
}

/// As ipmi_sim calls it: `get NAME…`, `set NAME VALUE…`.
fn chassis(qemu: &Command) -> Result<String> {
    let words = std::iter::once(qemu.get_program()).chain(qemu.get_args());
    let quoted: Vec<String> = words
        .map(|word| Ok(format!("'{}'", word.to_str().context("a word")?.replace('\'', "'\\''"))))
        .collect::<Result<_>>()?;
    Ok(format!(
        r#"#!/bin/sh
op=$1; shift
is_on() {{ [ -s "$0.machine" ] && kill -0 "$(cat "$0.machine")" 2>/dev/null; }}
on() {{ {qemu} </dev/null >"$0.qemu.log" 2>&1 & echo $! >"$0.machine"; echo on >>"$0.switched"; }}
off() {{ kill -9 "$(cat "$0.machine")"; rm -f "$0.machine"; echo off >>"$0.switched"; }}
while [ $# -gt 0 ]; do case "$op $1" in
    'get power') if [ -e "$0.lies" ] || is_on; then echo power:1; else echo power:0; fi; shift ;;
    get*) echo "$1:default"; shift ;;
    'set power') if [ "$2" = 1 ]; then is_on || on; else ! is_on || off; fi; shift 2 ;;
    'set boot') echo "$2" >"$0.boot"; shift 2 ;;
    *) shift 2 ;;
esac; done
"#,
        qemu = quoted.join(" "),
    ))
}
