//! The programs on the bridge's ports.

use std::collections::BTreeMap;
use std::path::Path;

use aya::Ebpf;
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::xdp::XdpLink;
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode};
use pxe_common::map::name;
use serde::{Deserialize, Serialize};

use crate::config::FastPath;

/// Where a port's frames are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PortStatus {
    pub name: String,
    pub tier: Tier,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

pub(super) struct Ports {
    ebpf: Ebpf,
    attached: BTreeMap<String, Port>,
}

/// Links are the kernel's and end with their file descriptors: also when the daemon is killed.
struct Port {
    xdp: Option<XdpLink>,
    tc: Option<SchedClassifierLink>,
    reason: Option<String>,
}

impl Ports {
    pub(super) fn new(ebpf: Ebpf) -> Self {
        Self { ebpf, attached: BTreeMap::new() }
    }

    pub(super) fn attach(&mut self, port: &str, wanted: FastPath) -> PortStatus {
        self.detach(port);
        let mut reasons = Vec::new();
        let xdp = match wanted {
            FastPath::Auto if !has_device(port) => {
                reasons.push("xdp: a virtual port, whose buffers have no room for answers".to_owned());
                None
            }
            FastPath::Auto | FastPath::Xdp => {
                self.attach_xdp(port).map_err(|error| reasons.push(format!("xdp: {}", chain(&error)))).ok()
            }
            FastPath::Tc | FastPath::Off => None,
        };
        let tc = match wanted {
            FastPath::Auto | FastPath::Tc => {
                self.attach_tc(port).map_err(|error| reasons.push(format!("tc: {}", chain(&error)))).ok()
            }
            FastPath::Xdp | FastPath::Off => None,
        };
        if wanted == FastPath::Off {
            reasons.push("fast-path = \"off\"".to_owned());
        }
        let reason = (!reasons.is_empty()).then(|| reasons.join("; "));
        let attached = Port { xdp, tc, reason };
        let status = attached.status(port);
        tracing::info!(port, tier = ?status.tier, reason = status.reason, "fast path");
        self.attached.insert(port.to_owned(), attached);
        status
    }

    pub(super) fn detach(&mut self, port: &str) {
        self.attached.remove(port);
    }

    pub(super) fn status(&self) -> Vec<PortStatus> {
        self.attached.iter().map(|(name, port)| port.status(name)).collect()
    }

    /// Native mode only: generic XDP has the skb's checksum state without the helpers to keep it,
    /// and tc does the same work on the same skb.
    fn attach_xdp(&mut self, port: &str) -> Result<XdpLink, ProgramError> {
        let program: &mut Xdp = self.program(name::XDP)?;
        let link = program.attach(port, XdpMode::Driver)?;
        program.take_link(link)
    }

    fn attach_tc(&mut self, port: &str) -> Result<SchedClassifierLink, ProgramError> {
        let program: &mut SchedClassifier = self.program(name::TC)?;
        // tcx (Linux 6.6) and not a clsact filter: a filter would outlive a daemon that is killed.
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let link = program.attach_with_options(port, TcAttachType::Ingress, order)?;
        program.take_link(link)
    }

    fn program<'a, P>(&'a mut self, name: &str) -> Result<&'a mut P, ProgramError>
    where
        &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
    {
        self.ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
    }

    #[cfg(test)]
    pub(super) fn ebpf(&self) -> &Ebpf {
        &self.ebpf
    }
}

impl Port {
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

/// Whether a driver with hardware, or a hypervisor's, is behind the port. On veth and tap
/// `bpf_xdp_adjust_tail` always fails for want of tailroom, and what XDP sends back over a veth is
/// lost unless the other end polls, too.
fn has_device(port: &str) -> bool {
    Path::new("/sys/class/net").join(port).join("device").exists()
}

/// An error and its sources in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}
