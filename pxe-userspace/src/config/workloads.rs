//! Workloads on the appliance and on nodes, and who has which address and port.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use toml::Spanned;

use super::assignment::{self, DockerNode};
use super::entries::{claim, image_reference};
use super::file::{File, WorkloadTable};
use super::findings::Findings;
use super::segment::Segment;
use super::{Dhcp, ENGINE_PORT, Http, Protocol, PublishedPort, Workload, values};

pub(super) fn of(
    raw: &File,
    segment: &Segment,
    dhcp: &Dhcp,
    http: &Http,
    nodes: &[DockerNode<'_>],
    claimed: &mut HashMap<Ipv4Addr, String>,
    findings: &mut Findings<'_>,
) -> Vec<Workload> {
    let mut taken = Taken::by_the_appliance(http);
    let mut workloads: Vec<Workload> = Vec::new();
    for table in &raw.workloads {
        let WorkloadTable { name, image, command, environment, address, restart, volumes, on, .. } = table;
        let label = name.get_ref();
        if !is_container_name(label) {
            findings.add(
                name.span(),
                format!("`{label}` can't be a workload's name"),
                "Docker takes letters, digits, `_`, `.` and `-`, the first a letter or digit",
            );
        } else if workloads.iter().any(|w| w.name == *label) {
            findings.add(name.span(), format!("two workloads are called `{label}`"), "rename one");
        }
        image_reference(image, "nginx:latest", "docker load --input", findings);
        for variable in
            environment.keys().filter(|v| v.get_ref().is_empty() || v.get_ref().contains(['=', '\0']))
        {
            findings.add(
                variable.span(),
                format!("`{}` can't be a variable's name", variable.get_ref()),
                "write NAME = \"value\"",
            );
        }
        if let Some(address) = address {
            claim(address, format!("workload `{label}`'s"), segment, claimed, findings);
            own_address(address, table, dhcp, findings);
        }
        workloads.push(Workload {
            name: label.clone(),
            image: image.get_ref().clone(),
            command: command.clone(),
            environment: environment.iter().map(|(k, v)| (k.get_ref().clone(), v.clone())).collect(),
            ports: taken.publish(table, findings),
            address: address.as_ref().map(|a| *a.get_ref()),
            restart: *restart,
            volumes: assignment::volumes(volumes, findings),
            on: on.as_ref().and_then(|on| assignment::on(on, !volumes.is_empty(), nodes, findings)),
        });
    }
    workloads
}

/// Reports what conflicts with a workload's own address: nodes, ports, the DHCP range.
fn own_address(address: &Spanned<Ipv4Addr>, table: &WorkloadTable, dhcp: &Dhcp, findings: &mut Findings<'_>) {
    if table.on.is_some() {
        findings.add(
            address.span(),
            "a workload on nodes has no address of its own",
            "remove `address`, and give it `ports`: they answer at its node's address",
        );
    }
    if dhcp.range.is_some_and(|(first, last)| (first..=last).contains(address.get_ref())) {
        findings.add(
            address.span(),
            format!("{} lies in [dhcp] range, so a node could get it, too", address.get_ref()),
            "use an address outside the range",
        );
    }
    if let Some(port) = table.ports.first() {
        findings.add(
            port.span(),
            "a workload with an address of its own publishes no ports",
            "remove `ports`: every port answers at its address",
        );
    }
}

/// A port on the appliance or on every node (`None`), or on the named node.
type Place<'a> = (Option<&'a str>, u16, Protocol);

/// Who has which published port, in words for messages.
struct Taken<'a> {
    here: HashMap<Place<'a>, String>,
    on_nodes: HashMap<Place<'a>, String>,
}

impl<'a> Taken<'a> {
    fn by_the_appliance(http: &Http) -> Self {
        let here = [
            (http.port, Protocol::Tcp, "the appliance's HTTP"),
            (http.tls_port, Protocol::Tcp, "the appliance's HTTPS"),
            (67, Protocol::Udp, "DHCP"),
            (69, Protocol::Udp, "TFTP"),
            (4011, Protocol::Udp, "PXE"),
            (6666, Protocol::Udp, "netconsole"),
        ];
        let on_nodes = [(ENGINE_PORT, Protocol::Tcp, "the node's Docker engine")];
        let places = |of: &[(u16, Protocol, &str)]| {
            of.iter().map(|(port, protocol, whose)| ((None, *port, *protocol), (*whose).to_owned())).collect()
        };
        Self { here: places(&here), on_nodes: places(&on_nodes) }
    }

    fn publish(&mut self, table: &'a WorkloadTable, findings: &mut Findings<'_>) -> Vec<PublishedPort> {
        let WorkloadTable { name, ports, on, .. } = table;
        let mut published = Vec::new();
        for port in ports {
            let Some(parsed) = values::published_port(port.get_ref()) else {
                let right = "write it as \"8080:80\" or \"53:53/udp\"";
                findings.add(port.span(), format!("`{}` is no port mapping", port.get_ref()), right);
                continue;
            };
            let (node, holders) = match on {
                None => (None, &mut self.here),
                Some(on) => (on.get_ref().node.as_ref(), &mut self.on_nodes),
            };
            let place = (node.map(|n| n.get_ref().as_str()), parsed.host, parsed.protocol);
            // On a group of nodes, the scheduler keeps workloads apart that publish the same port.
            let alone = on.is_none() || node.is_some();
            let holder = holders.get(&place).or_else(|| holders.get(&(None, parsed.host, parsed.protocol)));
            if let Some(holder) = holder.filter(|_| alone || parsed.host == ENGINE_PORT) {
                findings.add(
                    port.span(),
                    format!("port {} is {holder}'s already", parsed.host),
                    "use another host port",
                );
            } else if alone {
                holders.insert(place, format!("workload `{}`", name.get_ref()));
            }
            published.push(parsed);
        }
        published
    }
}

fn is_container_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}
