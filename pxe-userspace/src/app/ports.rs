//! The fast path on the bridge's ports, as they come and go.

use std::sync::Arc;

use pxe_common::map::Event;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::FastPath;
use crate::dataplane::Dataplane;
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

/// Loads the programs, unless the configuration says not to. A kernel that refuses them costs
/// speed, not service. The second value gives what the programs did.
pub(super) fn load(wanted: FastPath, shutdown: &CancellationToken) -> (Loaded, mpsc::Receiver<Event>) {
    let (sink, events) = mpsc::channel(EVENTS);
    if wanted == FastPath::Off {
        let off_because = Some("[network] fast-path = \"off\"".into());
        return (Loaded { dataplane: None, off_because }, events);
    }
    let debug = tracing::enabled!(target: "pxe_ebpf", tracing::Level::DEBUG);
    let loaded = match Dataplane::load(debug) {
        Ok((dataplane, told, logs)) => {
            let telling = told.run(sink, shutdown.clone());
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
            tracing::warn!(%error, "fast path off: the daemon answers everything itself");
            Loaded { dataplane: None, off_because: Some(error.to_string()) }
        }
    };
    (loaded, events)
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
        let (Some(event), Some(dataplane)) = (event, &loaded.dataplane) else { return };
        match event {
            PortEvent::Added(port) => {
                dataplane.attach(&port.name, wanted);
            }
            PortEvent::Removed(port) => {
                dataplane.detach(&port.name);
            }
        }
    }
}
