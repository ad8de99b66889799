//! BMCs: OpenIPMI's simulator, whose chassis control starts and ends a virtual machine.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use lab::machine::Spec;
use lab::process::Process;
use lab::world::World;

pub(crate) const USER: &str = "operator";
pub(crate) const PASSWORD: &str = "rack-a1-secret";

/// A machine that is off, and the BMC that switches it. Dropping it ends both.
pub(crate) struct Bmc {
    pub port: u16,
    /// A line for each time that the machine was switched on or off.
    switched: PathBuf,
    pid: PathBuf,
    _simulator: Process,
}

impl Drop for Bmc {
    fn drop(&mut self) {
        if let Ok(pid) = fs::read_to_string(&self.pid) {
            let _ = Command::new("kill").args(["-9", pid.trim()]).status();
        }
    }
}

impl Bmc {
    pub(crate) fn start(world: &World, spec: &Spec) -> Result<Self> {
        // Nobody else has ports in the world.
        let port = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let path = |what: &str| world.path(format!("{}.{what}", spec.name));
        let (script, switched, pid) = (path("chassis"), path("switched"), path("pid"));
        fs::write(&script, chassis(&spec.qemu(world, None)?, &switched, &pid)?)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        fs::write(&switched, "")?;
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
        let log = path("ipmi.log");
        let simulator = Process::start(&mut simulator, &log).context("is openipmi installed?")?;
        Ok(Self { port, switched, pid, _simulator: simulator })
    }

    /// How often the machine was switched, in order.
    pub(crate) fn switched(&self) -> Result<Vec<String>> {
        Ok(fs::read_to_string(&self.switched)?.lines().map(str::to_owned).collect())
    }
}

/// As ipmi_sim calls it: `get NAME…`, `set NAME VALUE…`.
fn chassis(qemu: &Command, switched: &std::path::Path, pid: &std::path::Path) -> Result<String> {
    let words = std::iter::once(qemu.get_program()).chain(qemu.get_args());
    let quoted: Vec<String> = words
        .map(|word| Ok(format!("'{}'", word.to_str().context("a word")?.replace('\'', "'\\''"))))
        .collect::<Result<_>>()?;
    Ok(format!(
        "#!/bin/sh\npid={pid:?}\nswitched={switched:?}\n\
         is_on() {{ [ -s \"$pid\" ] && kill -0 \"$(cat \"$pid\")\" 2>/dev/null; }}\n\
         on() {{ {qemu} </dev/null >/dev/null 2>&1 & echo $! > \"$pid\"; echo on >> \"$switched\"; }}\n\
         off() {{ kill -9 \"$(cat \"$pid\")\"; rm -f \"$pid\"; echo off >> \"$switched\"; }}\n\
         op=$1; shift\n\
         while [ $# -gt 0 ]; do\n\
           case \"$op $1\" in\n\
             'get power') if is_on; then echo power:1; else echo power:0; fi; shift;;\n\
             get*) echo \"$1:default\"; shift;;\n\
             'set power') if [ \"$2\" = 1 ]; then is_on || on; else ! is_on || off; fi; shift 2;;\n\
             *) shift 2;;\n\
           esac\n\
         done\n",
        qemu = quoted.join(" "),
    ))
}
