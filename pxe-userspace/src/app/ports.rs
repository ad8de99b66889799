//! The fast path on the bridge ports, as they come and go.

use std::sync::Arc;
use std::time::Duration;

use pxe_common::map::Event;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Appliance;
use super::serving::Totals;
use crate::base::lock::Unpoisoned as _;
use crate::config::FastPath;
use crate::dataplane::{self, Dataplane, KernelStatus, LoadError, Pins, ProgramState, Sinks, Tier};
use crate::host::net::PortEvent;
use crate::serve::dhcp;

/// Events that are queued for their consumers. If those are slow, the ring fills up, and events without room are
/// counted there.
const EVENTS: usize = 4096;

/// How often to check whether the fast path is serving.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The fast path, or the reason why there is none.
#[derive(Clone)]
pub(super) struct Loaded {
    pub(super) dataplane: Option<Arc<Dataplane>>,
    /// Why the fast path is off, as text.
    pub(super) off_because: Option<String>,
}

/// Events from the programs.
pub(super) struct Told {
    pub(super) dhcp: mpsc::Receiver<dhcp::Told>,
    pub(super) tftp: mpsc::Receiver<Event>,
}

/// Loads the programs, unless the configuration says not to. A kernel that rejects them costs speed, not service.
///
/// What a killed daemon left on `ports`, the bridge's, is taken over; on other ports it is removed.
pub(super) fn load(
    wanted: FastPath,
    pins: Pins,
    ports: &[String],
    shutdown: &CancellationToken,
) -> (Loaded, Told) {
    let (dhcp_sink, dhcp) = mpsc::channel(EVENTS);
    let (tftp_sink, tftp) = mpsc::channel(EVENTS);
    let told = Told { dhcp, tftp };
    if wanted == FastPath::Off {
        remove_left(&pins, ports);
        let off_because = Some("[network] fast-path = \"off\"".into());
        return (Loaded { dataplane: None, off_because }, told);
    }
    let debug = tracing::enabled!(target: "pxe_ebpf", tracing::Level::DEBUG);
    let loaded = Dataplane::load_pinned(wanted, debug, pins.clone()).or_else(|error| match error {
        LoadError::Pins(_) => {
            tracing::warn!(%error, "a restart will interrupt the fast path");
            Dataplane::load(wanted, debug)
        }
        error => Err(error),
    });
    let loaded = match loaded {
        Ok((dataplane, events, logs)) => {
            if let Err(error) = dataplane.keep_only(ports) {
                tracing::warn!(%error, "programs of an earlier daemon may be left on other ports");
            }
            let telling = events.run(Sinks { dhcp: dhcp_sink, tftp: tftp_sink }, shutdown.clone());
            tokio::spawn(async {
                if let Err(error) = telling.await {
                    tracing::warn!(%error, "what the programs do is not heard of");
                }
            });
            let forwarding = logs.run(shutdown.clone());
            tokio::spawn(async {
                if let Err(error) = forwarding.await {
                    tracing::warn!(%error, "the programs' debug lines are lost");
                }
            });
            Loaded { dataplane: Some(Arc::new(dataplane)), off_because: None }
        }
        Err(error) => {
            remove_left(&pins, ports);
            tracing::warn!(%error, "fast path off: the daemon answers everything itself");
            Loaded { dataplane: None, off_because: Some(error.to_string()) }
        }
    };
    (loaded, told)
}

fn remove_left(pins: &Pins, ports: &[String]) {
    if let Err(error) = dataplane::remove_left(pins, ports) {
        tracing::warn!(%error, "the fast path of an earlier daemon is left");
    }
}

/// Attaches to the ports that exist by now, so that requests are answered on the same path as later from the moment the
/// daemon is ready.
pub(super) fn attach_present(
    events: &mut mpsc::UnboundedReceiver<PortEvent>,
    loaded: &Loaded,
    wanted: FastPath,
) {
    while let Ok(event) = events.try_recv() {
        changed(event, loaded, wanted);
    }
}

/// Attaches to every port that joins the bridge, until the daemon ends.
pub(super) async fn follow(
    mut events: mpsc::UnboundedReceiver<PortEvent>,
    loaded: Loaded,
    wanted: FastPath,
    shutdown: CancellationToken,
) {
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = shutdown.cancelled() => return,
        };
        let Some(event) = event else { return };
        changed(event, &loaded, wanted);
    }
}

/// Periodically checks whether the programs complete the transfers that they get.
pub(super) async fn watch(appliance: Arc<Appliance>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            _ = tick.tick() => appliance.look_at_fast_path(),
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

impl Appliance {
    fn look_at_fast_path(&self) {
        let Some(dataplane) = &self.fast_path.dataplane else { return };
        let counters = dataplane.counters();
        let ports = dataplane.ports();
        // tc is the last hook for a frame, if it is attached.
        let at_tc = ports.iter().any(|port| matches!(port.tier, Tier::Tc | Tier::XdpAndTc));
        let with_xdp = ports.into_iter().filter(|port| matches!(port.tier, Tier::Xdp | Tier::XdpAndTc));
        let received = with_xdp.filter_map(|port| Some((port.name.clone(), received(&port.name)?))).collect();
        let (granted, handed_back) = self.tftp.granted_and_handed_back();
        let seen_by_xdp = counters.frames_at_xdp();
        let passed = if at_tc { counters.tc } else { counters.xdp };
        let mut serving = self.serving.lock().unpoisoned();
        let before = serving.complaint().map(str::to_owned);
        let blind = serving.look(Totals { granted, handed_back, passed, seen_by_xdp, received });
        blind.iter().for_each(|port| dataplane.sees_nothing_by_xdp(port));
        if let Some(complaint) = serving.complaint().filter(|now| before.as_deref() != Some(now)) {
            tracing::warn!("{complaint}");
        }
    }

    /// What is wrong with the fast path, as text.
    pub(super) fn fast_path_alerts(&self) -> Vec<String> {
        let Some(dataplane) = &self.fast_path.dataplane else { return Vec::new() };
        let KernelStatus { kernel, programs } = dataplane.kernel();
        let refused = programs.into_iter().filter(|program| program.state == ProgramState::Refused);
        let mut alerts: Vec<String> = refused
            .map(|program| {
                format!(
                    "Linux {kernel} refused the program {}, and what it answers is answered more slowly: {}. \
                     `bridgehead status` has the verifier's words; docs/fast-path.md says which kernels take it",
                    program.name,
                    program.reason.unwrap_or_default()
                )
            })
            .collect();
        alerts.extend(dataplane.not_taken().map(|why| {
            format!("the fast path does not serve: transfers can't be handed to the kernel, and the daemon sends them: {why}")
        }));
        let serving = self.serving.lock().unpoisoned();
        alerts.extend(serving.complaint().map(str::to_owned));
        alerts
    }
}

/// Frames that a port has received, by its driver's counter.
fn received(port: &str) -> Option<u64> {
    let path = format!("/sys/class/net/{port}/statistics/rx_packets");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn changed(event: PortEvent, loaded: &Loaded, wanted: FastPath) {
    let Some(dataplane) = &loaded.dataplane else { return };
    match event {
        PortEvent::Added(port) => {
            dataplane.attach(&port.name, wanted);
        }
        PortEvent::Removed(port) => {
            dataplane.detach(&port.name);
        }
    }
}
