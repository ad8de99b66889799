//! What a container is made from, as a label on it says.
//!
//! A daemon that starts adopts a container whose label is the one that it would write itself, and replaces one with
//! another label. So two builds must produce the same bytes, or an upgrade restarts every workload.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::container::{NetworkSpec, Place, Spec};
use crate::base::text::hex;
use crate::config::{Volume, Workload};

/// Written as JSON and hashed. Names and order stay. A key that is new here is left out where a workload does not say
/// it, so that what was made before there was such a key keeps its identity.
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

/// Of a container of `spec`, made from this image and joined to the bridge with this index.
pub(super) fn of(spec: &Spec, image_id: &str, bridge_index: u32) -> String {
    let Spec { workload, place, owner } = spec;
    // When it is started again and where it may run do not change what it is. Its address is the place's.
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

/// What earlier builds wrote: `Debug` output, which is theirs for as long as [`Spec`] and what is in it stay as they
/// are. A container with it is adopted, too; the label can't be changed while the container lives.
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

    /// Where this fails, an upgrade restarts everybody's workloads: say so in the changelog, or don't.
    #[test]
    fn every_build_comes_to_the_same_identity() {
        assert_eq!(of(&spec(), "sha256:1", 3), "d203c9031b5b07269aedd88ad56ab3b9");
        assert_eq!(of(&on_a_node(), "sha256:1", 0), "0d12bc075405d019cfb3c44672061e36");
    }

    /// As builds wrote it that had no [`of`]. Once it fails, they are too old to be adopted from: remove [`former`].
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
