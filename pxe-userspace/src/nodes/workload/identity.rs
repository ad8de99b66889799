//! The identity of a container's spec, which is stored in a label.
//!
//! When a daemon starts, it adopts a container whose label is the one that it would write itself, and replaces one with
//! another label. So two builds must produce the same bytes, or an upgrade restarts every workload.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::container::{NetworkSpec, Place, Spec};
use crate::base::text::hex;
use crate::config::{Volume, Workload};

/// Written as JSON and hashed. Names and order must not change. A new key is left out if a workload does not set it, so
/// that existing containers keep their identity.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Identity<'a> {
    owner: &'a str,
    name: &'a str,
    image: &'a str,
    image_id: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    command: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    environment: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<String>,
    /// Name and path.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<(&'a str, &'a str)>,
    #[serde(flatten)]
    place: Where<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
enum Where<'a> {
    Bridge { name: &'a str, index: u32, network: Ipv4Net, address: Option<Ipv4Addr> },
    Node(&'a str),
}

/// The identity of a container of `spec` with this image, on the bridge with this index.
pub(super) fn of(spec: &Spec, image_id: &str, bridge_index: u32) -> String {
    let Spec { workload, place, owner } = spec;
    // The restart policy and the nodes where it may run are not part of its identity. Its address is in the place.
    let Workload { name, image, command, environment, ports: _, address: _, restart: _, volumes, on: _ } =
        workload;
    let identity = Identity {
        owner,
        name,
        image,
        image_id,
        command,
        environment,
        ports: spec.ports(),
        volumes: volumes.iter().map(|Volume { name, path }| (name.as_str(), path.as_str())).collect(),
        place: match place {
            Place::Appliance { address, network: NetworkSpec { bridge, address: network } } => {
                Where::Bridge { name: bridge, index: bridge_index, network: *network, address: *address }
            }
            Place::Node(name) => Where::Node(name),
        },
    };
    let text = serde_json::to_vec(&identity).expect("it has only text keys");
    digest(&text)
}

/// The label of earlier builds: `Debug` output, which stays the same as long as [`Spec`] and its contents do. A
/// container with it is adopted, too, because the label can't be changed while the container exists.
pub(super) fn former(spec: &Spec, image_id: &str, bridge_index: u32) -> String {
    digest(format!("{spec:?} {image_id} {bridge_index}").as_bytes())
}

fn digest(text: &[u8]) -> String {
    hex(&Sha256::digest(text)[..16])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Group, On, Protocol, PublishedPort, Restart};

    fn spec() -> Spec {
        let workload = Workload {
            name: "web".into(),
            image: "nginx:1".into(),
            command: vec!["nginx".into(), "-g".into()],
            environment: [("A".to_owned(), "b".to_owned())].into(),
            ports: vec![PublishedPort { host: 8080, container: 80, protocol: Protocol::Tcp }],
            address: None,
            restart: Restart::Always,
            volumes: vec![Volume { name: "data".into(), path: "/data".into() }],
            on: None,
        };
        let network = NetworkSpec { bridge: "pxe0".into(), address: "10.77.0.1/24".parse().unwrap() };
        let place = Place::Appliance { address: Some([10, 77, 0, 9].into()), network };
        Spec { workload, place, owner: "0123456789ab".into() }
    }

    fn on_a_node() -> Spec {
        let mut spec = spec();
        spec.workload =
            Workload { command: Vec::new(), ports: Vec::new(), volumes: Vec::new(), ..spec.workload };
        Spec { place: Place::Node("n1".into()), ..spec }
    }

    /// If this fails, an upgrade restarts everybody's workloads: say so in the changelog, or avoid the change.
    #[test]
    fn every_build_comes_to_the_same_identity() {
        assert_eq!(of(&spec(), "sha256:1", 3), "d203c9031b5b07269aedd88ad56ab3b9");
        assert_eq!(of(&on_a_node(), "sha256:1", 0), "0d12bc075405d019cfb3c44672061e36");
    }

    /// As written by builds without [`of`]. When it fails, they are too old for adopting their containers: remove
    /// [`former`].
    #[test]
    fn containers_of_earlier_builds_are_known() {
        assert_eq!(former(&spec(), "sha256:1", 3), "ee66c777a2b18b36401476eeb648eaed");
        assert_eq!(former(&on_a_node(), "sha256:1", 0), "3f5102c24137c4bb0e9ae7e32a484362");
    }

    #[test]
    fn what_makes_another_container_is_another_identity() {
        let one = of(&spec(), "sha256:1", 3);
        let other = |change: &dyn Fn(&mut Spec)| {
            let mut spec = spec();
            change(&mut spec);
            of(&spec, "sha256:1", 3) != one
        };
        assert!(of(&spec(), "sha256:2", 3) != one && of(&spec(), "sha256:1", 4) != one);
        assert!(other(&|s| s.owner.push('0')));
        assert!(other(&|s| s.workload.image.push('2')));
        assert!(other(&|s| s.workload.command.push("x".into())));
        assert!(other(&|s| s.workload.environment.clear()));
        assert!(other(&|s| s.workload.ports[0].protocol = Protocol::Udp));
        assert!(other(&|s| s.workload.volumes[0].path.push('x')));
        assert!(other(&|s| s.place = Place::Node("n1".into())));
        assert!(!other(&|s| s.workload.restart = Restart::Never));
        assert!(!other(&|s| s.workload.on = Some(On { group: Group::Node("n1".into()), count: None })));
    }
}
