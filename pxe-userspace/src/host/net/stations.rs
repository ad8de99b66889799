//! Behind which port of the bridge a station is: the bridge itself learned it from the station's frames.

use std::time::{Duration, Instant};

use nix::net::if_::if_indextoname;
use pxe_common::Mac;

use super::BridgeInfo;
use super::links::{Asker, Seen};

/// When asking failed, it is not tried again before this.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// The bridge's forwarding table, one look-up at a time.
pub struct Stations {
    bridge: u32,
    asker: Option<Asker>,
    failed: Option<Instant>,
}

impl Stations {
    pub fn of(bridge: &BridgeInfo) -> Self {
        Self { bridge: bridge.index, asker: None, failed: None }
    }

    /// The index of the port; `None` when the bridge does not know. Two system calls.
    pub fn port_of(&mut self, station: Mac) -> Option<u32> {
        self.look(station).map(|seen| seen.port)
    }

    fn look(&mut self, station: Mac) -> Option<Seen> {
        if self.failed.is_some_and(|at| at.elapsed() < AGAIN_AFTER) {
            return None;
        }
        let asked = match &self.asker {
            Some(asker) => asker.seen(self.bridge, station),
            None => Asker::new().and_then(|asker| self.asker.insert(asker).seen(self.bridge, station)),
        };
        asked.unwrap_or_else(|error| {
            tracing::debug!(%error, "which station is behind which port is not known");
            (self.asker, self.failed) = (None, Some(Instant::now()));
            None
        })
    }

    /// How long ago the bridge saw a frame of the station; `None` when it has forgotten it, which takes it five minutes
    /// unless it is set otherwise. Frames that XDP answers do not reach the bridge.
    pub fn heard_ago(&mut self, station: Mac) -> Option<Duration> {
        self.look(station).and_then(|seen| seen.ago)
    }

    /// The port's name. One system call more.
    pub fn port_name_of(&mut self, station: Mac) -> Option<String> {
        if_indextoname(self.port_of(station)?).ok()?.into_string().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{HTTP, in_namespace, ip, network, run};
    use super::*;
    use crate::host::net::Bridge;

    #[test]
    fn the_bridge_knows_behind_which_port_a_station_is() {
        in_namespace(|| {
            let state = tempfile::tempdir().unwrap();
            for n in 1..=2 {
                ip(&format!("link add eth{n} type veth peer name peer{n}"));
                ip(&format!("link set peer{n} up"));
            }
            run(async {
                let bridge =
                    Bridge::set_up(&network("pxe0", &["eth1", "eth2"]), &HTTP, state.path()).await.unwrap();
                let fdb = |arguments: &str| {
                    let arguments = arguments.split(' ');
                    let done = std::process::Command::new("bridge").arg("fdb").args(arguments).status();
                    assert!(done.unwrap().success());
                };
                fdb("add 02:00:00:00:00:07 dev eth1 master dynamic");
                fdb("add 02:00:00:00:00:08 dev eth2 master dynamic");
                let mut stations = Stations::of(bridge.info());
                let link = |name: &str| {
                    let shown = ip(&format!("-o link show {name}"));
                    shown.split(':').next().and_then(|index| index.parse().ok())
                };
                for _ in 0..2 {
                    assert_eq!(stations.port_of(Mac([2, 0, 0, 0, 0, 7])), link("eth1"));
                    assert_eq!(stations.port_of(Mac([2, 0, 0, 0, 0, 8])), link("eth2"));
                    assert_eq!(stations.port_of(Mac([2, 0, 0, 0, 0, 9])), None);
                    assert!(stations.heard_ago(Mac([2, 0, 0, 0, 0, 7])).is_some());
                    assert_eq!(stations.heard_ago(Mac([2, 0, 0, 0, 0, 9])), None);
                    assert_eq!(stations.port_name_of(Mac([2, 0, 0, 0, 0, 8])), Some("eth2".to_owned()));
                }
                bridge.restore().await.unwrap();
            });
        });
    }
}
