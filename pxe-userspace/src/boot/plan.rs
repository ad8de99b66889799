//! Which kernel, initrds and command line a machine gets, or why none.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::paths::{Generated, ImagePart};
use crate::config::{Config, OnExit, Profile};
use crate::machines::Machine;

/// What the plan needs to know of the appliance.
#[derive(Clone, Debug)]
pub struct Appliance {
    pub address: Ipv4Net,
    pub http_port: u16,
    pub router: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
}

impl From<&Config> for Appliance {
    fn from(config: &Config) -> Self {
        Self {
            address: config.network.address,
            http_port: config.http.port,
            router: config.dhcp.router,
            dns: config.dhcp.dns.clone(),
        }
    }
}

impl Appliance {
    /// Where it answers HTTP, without a slash at the end.
    pub fn url(&self) -> String {
        match (self.address.addr(), self.http_port) {
            (address, 80) => format!("http://{address}"),
            (address, port) => format!("http://{address}:{port}"),
        }
    }
}

/// What the plan needs to know of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageFacts {
    /// Of its contents: `sha256:` and hexadecimal digits.
    pub digest: String,
    pub kernel: Part,
    pub stage1: Part,
    pub rootfs: Part,
}

/// A file as it is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Hexadecimal.
    pub sha256: String,
    pub len: u64,
    /// Bytes of memory that it takes once it is unpacked.
    pub unpacked: u64,
}

/// What the loader is to do. Paths have no leading slash.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub kernel: String,
    pub initrds: Vec<String>,
    /// The kernel's command line, a parameter an entry.
    pub cmdline: Vec<String>,
}

/// Why a machine is not booted, in words for its console and the timeline.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("no profile: give the machine one with [[node]] profile, or set [default] profile")]
    NoProfile,
    #[error("image {0} is not here yet: it is being brought in; `bridgehead images` shows how far")]
    Preparing(String),
    #[error("image {reference} could not be brought in: {cause}")]
    NoImage { reference: String, cause: String },
    #[error(
        "image {reference} needs {} MiB of memory and this machine has {} MiB: use a smaller image, or correct [[node]] memory",
        mib(*.needed), mib(*.memory)
    )]
    Memory { reference: String, needed: u64, memory: u64 },
}

/// What firmware's leftovers and pxe-init want beside the archives. Seen under QEMU: GRUB and
/// a Debian kernel with a 1 MiB initrd boot with 112 MiB on BIOS and with 320 MiB on UEFI.
const HEADROOM_BIOS: u64 = 96 << 20;
const HEADROOM_UEFI: u64 = 304 << 20;

/// Plans the boot of `machine` with a profile that names a Docker image.
pub fn image(
    machine: &Machine,
    memory: Option<u64>,
    profile: &Profile,
    reference: &str,
    facts: &ImageFacts,
    appliance: &Appliance,
) -> Result<Plan, Refusal> {
    let needed = memory_needed(facts, machine.is_uefi());
    if let Some(memory) = memory.filter(|m| *m < needed) {
        return Err(Refusal::Memory { reference: reference.to_owned(), needed, memory });
    }
    let path = |name, part: &Part| Generated::Image { digest: part.sha256.clone(), part: name }.to_string();
    let mut cmdline = identity(machine, appliance);
    cmdline.push(format!("bridgehead.digest={}", facts.digest));
    cmdline.push(format!("bridgehead.on-exit={}", on_exit(profile.on_exit)));
    cmdline.extend(words(&profile.cmdline));
    Ok(Plan {
        kernel: path(ImagePart::Kernel, &facts.kernel),
        initrds: vec![path(ImagePart::Stage1, &facts.stage1), path(ImagePart::Rootfs, &facts.rootfs)],
        cmdline,
    })
}

/// Plans the boot of a profile that names its files by hand.
///
/// Nothing of ours is added to the command line: whatever runs there does not know us.
pub fn by_hand(profile: &Profile, kernel: &str, initrds: &[String]) -> Plan {
    let path = |path: &str| path.trim_start_matches('/').to_owned();
    Plan {
        kernel: path(kernel),
        initrds: initrds.iter().map(|i| path(i)).collect(),
        cmdline: words(&profile.cmdline),
    }
}

/// Bytes of memory below which the node would not come up.
///
/// The archives lie in memory, packed, until they are unpacked; unpacked they fill the kernel's
/// rootfs, a tmpfs that takes at most half of the memory.
fn memory_needed(facts: &ImageFacts, uefi: bool) -> u64 {
    let headroom = if uefi { HEADROOM_UEFI } else { HEADROOM_BIOS };
    let packed = facts.stage1.len + facts.rootfs.len;
    let unpacked = facts.stage1.unpacked + facts.rootfs.unpacked;
    (facts.kernel.unpacked + packed + unpacked + headroom).max(2 * unpacked)
}

/// Who the node is and whom it tells how it fares.
fn identity(machine: &Machine, appliance: &Appliance) -> Vec<String> {
    let mut cmdline =
        vec![format!("bridgehead.url={}", appliance.url()), format!("bridgehead.mac={}", machine.mac)];
    if let Some(address) = machine.address {
        cmdline.push(format!("bridgehead.address={address}/{}", appliance.address.prefix_len()));
    }
    if let Some(router) = appliance.router {
        cmdline.push(format!("bridgehead.router={router}"));
    }
    if !appliance.dns.is_empty() {
        let dns: Vec<String> = appliance.dns.iter().map(ToString::to_string).collect();
        cmdline.push(format!("bridgehead.dns={}", dns.join(",")));
    }
    if let Some(name) = &machine.name {
        cmdline.push(format!("bridgehead.name={name}"));
    }
    cmdline
}

fn on_exit(on_exit: OnExit) -> &'static str {
    match on_exit {
        OnExit::PowerOff => "poweroff",
        OnExit::Reboot => "reboot",
        OnExit::Restart => "restart",
        OnExit::Stay => "stay",
    }
}

/// Splits a command line as the kernel does: at white space outside double quotes, which vanish.
fn words(cmdline: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quoted) = (String::new(), false);
    for c in cmdline.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}
