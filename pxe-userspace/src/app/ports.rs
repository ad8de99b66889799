//! The fast path on the bridge's ports, as they come and go.

use std::sync::Arc;

use pxe_common::map::Event;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::FastPath;
use crate::dataplane::{self, Dataplane, LoadError, Pins, Sinks};
use crate::dhcp;
use crate::net::PortEvent;

/// Events on their way to those who note them. When they are slow, the ring fills, and what does
/// not fit is counted there.
const EVENTS: usize = 4096;

/// The fast path, and why there is none.
#[derive(Clone)]
pub(super) struct Loaded {
    pub(super) dataplane: Option<Arc<Dataplane>>,
    /// Why the fast path is off, in words.
    pub(super) off_because: Option<String>,
}

/// What the programs did.
pub(super) struct Told {
    pub(super) dhcp: mpsc::Receiver<dhcp::Told>,
    pub(super) tftp: mpsc::Receiver<Event>,
}

/// Loads the programs, unless the configuration says not to. A kernel that refuses them costs
/// speed, not service.
///
/// What a killed daemon left on `ports`, the bridge's, is taken over; elsewhere it is taken off.
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
    let loaded = Dataplane::load_pinned(debug, pins.clone()).or_else(|error| match error {
        LoadError::Pins(_) => {
            tracing::warn!(%error, "a restart will interrupt the fast path");
            Dataplane::load(debug)
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

/// Attaches to the ports that are there by now, so that whoever is told that the daemon is ready is answered as
/// all others will be.
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
