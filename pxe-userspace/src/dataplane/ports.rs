//! The programs on the bridge's ports.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use aya::pin::PinError;
use aya::programs::links::{FdLink, LinkError};
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, TcAttachType, XdpMode};
use nix::net::if_::if_nametoindex;
use pxe_common::map::name;
use pxe_common::verdict::Hook;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pins::Pins;
use super::programs::{KernelStatus, Programs, Unusable};
use crate::base::text::chain;
use crate::config::FastPath;
use crate::host::net::offload::{self, has_device};

/// Where a port's frames are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// In the driver where it has room, at tc otherwise.
    XdpAndTc,
    /// In the driver where it has room, by the daemon otherwise.
    Xdp,
    /// At tc.
    Tc,
    /// By the daemon.
    Off,
}

/// A port, its tier, and why it has no better one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct PortStatus {
    pub name: String,
    pub tier: Tier,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

pub(super) struct Ports {
    programs: Programs,
    pins: Option<Pins>,
    attached: BTreeMap<String, Port>,
    /// The number of running packet traces: see [`Ports::traced`].
    traces: usize,
    /// There is a ceiling, which frames from XDP would bypass.
    ceiling: bool,
    /// Ports, by index, whose driver attaches an XDP program but never runs it.
    blind: BTreeSet<u32>,
}

struct Port {
    index: u32,
    wanted: FastPath,
    xdp: Option<Attached>,
    tc: Option<Attached>,
    reason: Option<String>,
}

/// The kernel's links end with their last holder: a descriptor, or a pin.
enum Attached {
    Link(#[expect(dead_code, reason = "held")] FdLink),
    /// A clsact filter, for kernels without tcx. It stays until it is removed.
    Filter(#[expect(dead_code, reason = "taken off when dropped")] SchedClassifierLink),
}

#[derive(Debug, thiserror::Error)]
enum AttachError {
    #[error("there is no such interface")]
    NoPort(#[source] nix::Error),
    #[error(transparent)]
    Unusable(#[from] Unusable),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("the link can't be held")]
    Link(#[from] LinkError),
    #[error("the link can't be pinned")]
    Pin(#[from] PinError),
}

impl Ports {
    /// With `pins`, links survive a daemon that is killed, and those that one left are taken over.
    pub(super) fn new(programs: Programs, pins: Option<Pins>) -> Self {
        Self { programs, pins, attached: BTreeMap::new(), traces: 0, ceiling: false, blind: BTreeSet::new() }
    }

    /// Ports that are attached from now on have a ceiling.
    pub(super) fn under_ceiling(&mut self) {
        self.ceiling = true;
    }

    pub(super) fn attach(&mut self, port: &str, wanted: FastPath) -> PortStatus {
        let mut reasons = Vec::new();
        let index = match if_nametoindex(port).map_err(AttachError::NoPort) {
            Ok(index) => index,
            Err(error) => {
                reasons.push(chain(&error));
                0
            }
        };
        self.detach(port);
        let (asked, traced) = (wanted, self.traces > 0);
        let wanted = match wanted {
            FastPath::Auto | FastPath::Xdp if self.ceiling => {
                reasons.push("xdp: not with [network] ceiling, which its answers would go past".to_owned());
                FastPath::Tc
            }
            FastPath::Auto | FastPath::Xdp if traced => {
                reasons.push("xdp: not while a trace runs, which would not see its frames".to_owned());
                FastPath::Tc
            }
            FastPath::Auto | FastPath::Xdp if self.blind.contains(&index) => {
                reasons.push("xdp: the driver takes the program and shows it no frame".to_owned());
                FastPath::Tc
            }
            wanted @ (FastPath::Auto | FastPath::Xdp | FastPath::Tc | FastPath::Off) => wanted,
        };
        let xdp = match wanted {
            // On veth and tap `bpf_xdp_adjust_tail` fails for lack of tailroom, and frames that XDP sends back over
            // a veth are lost unless the other end uses NAPI, too.
            FastPath::Auto if !has_device(port) => {
                reasons.push("xdp: a virtual port, whose buffers have no room for answers".to_owned());
                None
            }
            // XDP would take a VLAN's frame for one of the boot segment, and answer it without its tag.
            FastPath::Auto | FastPath::Xdp if takes_tags_off(port) => {
                reasons.push(format!(
                    "xdp: the card takes VLAN tags off before XDP sees a frame; `ethtool -K {port} rxvlan off` keeps them, where it can"
                ));
                None
            }
            FastPath::Auto | FastPath::Xdp if cuts_answers(port) => {
                reasons.push("xdp: the driver sends answers with the request's length".to_owned());
                None
            }
            FastPath::Auto | FastPath::Xdp => {
                self.attach_xdp(index).map_err(|error| reasons.push(format!("xdp: {}", chain(&error)))).ok()
            }
            FastPath::Tc | FastPath::Off => None,
        };
        let tc = match wanted {
            FastPath::Auto | FastPath::Tc => self
                .attach_tc(port, index, &mut reasons)
                .map_err(|error| reasons.push(format!("tc: {}", chain(&error))))
                .ok(),
            FastPath::Xdp | FastPath::Off => None,
        };
        // Detach what an earlier daemon left at a hook that is not wanted any more.
        for (hook, none) in [(Hook::Xdp, xdp.is_none()), (Hook::Tc, tc.is_none())] {
            if let Some(pins) = self.pins.as_ref().filter(|_| none) {
                pins.forget(hook, index);
            }
        }
        if wanted == FastPath::Off {
            reasons.push("fast-path = \"off\"".to_owned());
        }
        let reason = (!reasons.is_empty()).then(|| reasons.join("; "));
        let attached = Port { index, wanted: asked, xdp, tc, reason };
        let status = attached.status(port);
        tracing::info!(port, tier = ?status.tier, reason = status.reason, "fast path");
        self.attached.insert(port.to_owned(), attached);
        status
    }

    /// While traces run, tc answers what XDP answers otherwise: packet sockets see received frames
    /// before tc, and all sent frames, but nothing that XDP does in the driver.
    pub(super) fn traced(&mut self) {
        self.traces += 1;
        let in_driver: Vec<_> =
            self.attached.iter().filter(|(_, port)| port.xdp.is_some()).map(again).collect();
        for (name, wanted) in in_driver {
            self.attach(&name, wanted);
        }
    }

    /// The port has XDP, but XDP sees no frames there: from now on tc answers.
    pub(super) fn blind(&mut self, name: &str) {
        let Some((name, port)) = self.attached.get_key_value(name) else { return };
        self.blind.insert(port.index);
        let (name, wanted) = again((name, port));
        tracing::warn!(port = name, "the driver took the XDP program, and shows it no frame: tc answers");
        self.attach(&name, wanted);
    }

    /// One trace has ended.
    pub(super) fn untraced(&mut self) {
        self.traces -= 1;
        if self.traces > 0 {
            return;
        }
        let held: Vec<_> = self.attached.iter().filter(|(name, port)| port.held(name)).map(again).collect();
        for (name, wanted) in held {
            self.attach(&name, wanted);
        }
    }

    pub(super) fn detach(&mut self, port: &str) {
        let (Some(port), Some(pins)) = (self.attached.remove(port), &self.pins) else { return };
        pins.forget(Hook::Xdp, port.index);
        pins.forget(Hook::Tc, port.index);
    }

    /// Detaches what an earlier daemon left on other ports than these.
    pub(super) fn keep_only(&self, ports: &[String]) -> io::Result<()> {
        let indexes: Vec<u32> = ports.iter().filter_map(|port| if_nametoindex(port.as_str()).ok()).collect();
        self.pins.as_ref().map_or(Ok(()), |pins| pins.keep_only(&indexes))
    }

    pub(super) fn status(&self) -> Vec<PortStatus> {
        self.attached.iter().map(|(name, port)| port.status(name)).collect()
    }

    /// Native mode only: generic XDP has no helpers to keep the skb's checksum state correct, and tc
    /// does the same work on the same skb.
    fn attach_xdp(&mut self, index: u32) -> Result<Attached, AttachError> {
        let left = self.left(Hook::Xdp, index);
        let program = self.programs.xdp()?;
        let replaced = left.and_then(|link| program.attach_to_link(link.try_into().ok()?).ok());
        let id = match replaced {
            Some(id) => id,
            None => program.attach_to_if_index(index, XdpMode::Driver)?,
        };
        let link = program.take_link(id)?.try_into()?;
        self.keep(Hook::Xdp, index, link)
    }

    /// By tcx (Linux 6.6), because a filter would stay when the daemon is killed, and can't be replaced
    /// in one step. Older kernels only have the filter.
    fn attach_tc(
        &mut self,
        port: &str,
        index: u32,
        reasons: &mut Vec<String>,
    ) -> Result<Attached, AttachError> {
        let left = self.left(Hook::Tc, index);
        let program = self.programs.tc()?;
        let replaced = left.and_then(|link| program.attach_to_link(link.try_into().ok()?).ok());
        let id = match replaced {
            Some(id) => id,
            None => {
                let order = TcAttachOptions::TcxOrder(LinkOrder::first());
                match program.attach_with_options(port, TcAttachType::Ingress, order) {
                    Ok(id) => id,
                    Err(error) if lacks_tcx(&error) => {
                        reasons.push("tc: as a filter, the kernel has no tcx (Linux 6.6)".to_owned());
                        return self.attach_filter(port);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        };
        let link = program.take_link(id)?.try_into()?;
        self.keep(Hook::Tc, index, link)
    }

    /// For kernels without tcx.
    fn attach_filter(&mut self, port: &str) -> Result<Attached, AttachError> {
        remove_filters(port);
        // It exists already if others use it, or an earlier daemon did. If it is missing, attaching fails.
        let _ = tc::qdisc_add_clsact(port);
        let program = self.programs.tc()?;
        let options = TcAttachOptions::Netlink(NlOptions::default());
        let id = program.attach_with_options(port, TcAttachType::Ingress, options)?;
        Ok(Attached::Filter(program.take_link(id)?))
    }

    fn left(&self, hook: Hook, index: u32) -> Option<FdLink> {
        self.pins.as_ref()?.left(hook, index)
    }

    fn keep(&self, hook: Hook, index: u32, link: FdLink) -> Result<Attached, AttachError> {
        Ok(Attached::Link(match &self.pins {
            Some(pins) => pins.keep(hook, index, link)?,
            None => link,
        }))
    }

    /// Which programs the kernel accepted.
    pub(super) fn kernel(&self) -> KernelStatus {
        self.programs.status().clone()
    }

    #[cfg(test)]
    pub(super) fn ebpf(&self) -> &aya::Ebpf {
        self.programs.ebpf()
    }
}

/// A port and the mode with which it is attached again.
fn again((name, port): (&String, &Port)) -> (String, FastPath) {
    (name.clone(), port.wanted)
}

impl Port {
    /// Whether only a trace keeps XDP from being tried.
    fn held(&self, name: &str) -> bool {
        match self.wanted {
            FastPath::Xdp => true,
            FastPath::Auto => has_device(name),
            FastPath::Tc | FastPath::Off => false,
        }
    }

    fn status(&self, name: &str) -> PortStatus {
        let tier = match (&self.xdp, &self.tc) {
            (Some(_), Some(_)) => Tier::XdpAndTc,
            (Some(_), None) => Tier::Xdp,
            (None, Some(_)) => Tier::Tc,
            (None, None) => Tier::Off,
        };
        PortStatus { name: name.to_owned(), tier, reason: self.reason.clone() }
    }
}

/// Removes the filters that a killed daemon left on `port`.
pub(super) fn remove_filters(port: &str) {
    // Usually there is none.
    let _ = tc::qdisc_detach_program(port, TcAttachType::Ingress, name::entry(Hook::Tc));
}

/// Kernels before 6.6 do not know the attach type.
fn lacks_tcx(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(e) if e.io_error.raw_os_error() == Some(libc::EINVAL))
}

/// Drivers that send XDP's answer with the request's length (`enetc_rx_swbd_to_xdp_tx_swbd` in Linux 6.12).
const CUT_ANSWERS: [&str; 2] = ["fsl_enetc", "fsl_enetc_vf"];

fn cuts_answers(port: &str) -> bool {
    offload::driver(port).is_some_and(|driver| CUT_ANSWERS.contains(&&*driver))
}

/// A card that can't be asked is assumed to strip tags. A virtual port is not asked: there, XDP is only for
/// experiments, in a lab without VLANs.
fn takes_tags_off(port: &str) -> bool {
    has_device(port) && offload::takes_tags_off(port).unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::{Dataplane, lock};
    use super::*;

    #[test]
    fn a_filter_of_a_killed_daemon_is_replaced_and_taken_off() {
        if !nix::unistd::Uid::effective().is_root() || Command::new("tc").arg("-V").output().is_err() {
            eprintln!("skipped: root and tc are needed");
            return;
        }
        let Ok((dataplane, _, _)) = Dataplane::load(FastPath::Auto, false) else {
            eprintln!("skipped: the programs can't be loaded here, as other tests say");
            return;
        };
        // The namespace belongs to the thread, and vanishes with it.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                run("ip", "link add port type veth peer name other");
                let filters = || run("tc", "filter show dev port ingress").matches("direct-action").count();
                let mut ports = lock(&dataplane.ports);
                let killed = ports.attach_filter("port").unwrap();
                assert_eq!(filters(), 1);
                std::mem::forget(killed);
                let next = ports.attach_filter("port").unwrap();
                assert_eq!(filters(), 1, "replaced");
                drop(next);
                assert_eq!(filters(), 0, "an orderly end");
                std::mem::forget(ports.attach_filter("port").unwrap());
                remove_filters("port");
                assert_eq!(filters(), 0, "--detach-fast-path");
            });
        });
    }

    fn run(program: &str, args: &str) -> String {
        let output = Command::new(program).args(args.split(' ')).output().unwrap();
        assert!(output.status.success(), "{program} {args}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}
