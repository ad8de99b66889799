//! Validates a parsed file: one pass finds every semantic error.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;
use pxe_common::dhcp::option;
use toml::Spanned;

use super::file::{DhcpTable, File};
use super::findings::Findings;
use super::segment::Segment;
use super::values::is_host_label;
use super::{
    Api, Boot, Config, Dhcp, DhcpMode, Docker, Http, Network, assignment, carousel, entries, rules, storage,
    values, workloads,
};

/// Nodes renew at half of the lease time (RFC 2131 section 4.4.5): a shorter lease only adds traffic.
const LEASE_MIN: Duration = Duration::from_secs(30);
/// A longer lease holds addresses of machines that are long gone.
const LEASE_MAX: Duration = Duration::from_secs(365 * 86_400);
const LEASE_DEFAULT: Duration = Duration::from_secs(3600);

/// Bytes a second. At less than 1 Mbit/s a kernel takes minutes to one machine, and never reaches several.
const LOWEST_CEILING: u64 = 125_000;

const STATE_DIR: &str = "/var/lib/bridgehead";
const ASSETS: &str = "/usr/share/bridgehead";
const ASSETS_VARIABLE: &str = "BRIDGEHEAD_ASSETS";
/// The API's socket if the configuration names none.
pub const API_SOCKET: &str = "/run/bridgehead/api.sock";
/// The longest path of a Unix socket, in bytes with the terminating zero (`sun_path`, unix(7)).
const SOCKET_PATH_MAX: usize = 108;
const HTTP_PORT: u16 = 80;
const TLS_PORT: u16 = 7443;

/// The configuration, or `None` if a value that others depend on is missing. It is valid only if `findings` is empty.
pub(super) fn validate(raw: &File, findings: &mut Findings<'_>) -> Option<Config> {
    let network = network(raw, findings);
    let segment = Segment::new(network.address);
    let dhcp = dhcp(raw, &segment, findings);
    let mut profiles = entries::profiles(raw, findings);
    entries::enrolling(&dhcp, &mut profiles, raw, findings);
    let storage = storage::plans(raw, findings);
    let default_profile = entries::default_profile(raw, &profiles, &dhcp, findings);
    let mut claimed = HashMap::from([(segment.own, "the appliance's own".to_owned())]);
    let nodes = entries::nodes(raw, &segment, &profiles, &mut claimed, findings);
    let rules = rules::rules(raw, &profiles, findings);
    let http = http(raw, findings);
    let carousel = carousel::carousel(raw, &network, findings);
    let engines = assignment::docker_nodes(&nodes, &profiles, &storage, default_profile.as_ref());
    let workloads = workloads::of(raw, &segment, &dhcp, &http, &engines, &mut claimed, findings);
    let directory = findings.directory();
    let at = |path: &Spanned<PathBuf>| directory.join(path.get_ref());
    Some(Config {
        state_dir: raw.state_dir.as_ref().map_or_else(|| STATE_DIR.into(), at),
        api: api(raw, &segment, &http, findings),
        network,
        dhcp,
        files_root: raw.files.as_ref().map(|f| at(&f.root)),
        http,
        boot: Boot {
            ipxe: raw.boot.ipxe,
            assets: raw.boot.assets.as_ref().map_or_else(
                || std::env::var_os(ASSETS_VARIABLE).map_or_else(|| ASSETS.into(), PathBuf::from),
                at,
            ),
        },
        docker: Docker { socket: raw.docker.socket.as_ref().map(at) },
        carousel,
        default_profile,
        profiles,
        storage,
        nodes: nodes.into(),
        rules,
        workloads,
    })
}

fn network(raw: &File, findings: &mut Findings<'_>) -> Network {
    let table = &raw.network;
    let bridge = table.bridge.get_ref();
    if !is_interface_name(bridge) {
        findings.add(
            table.bridge.span(),
            format!("`{bridge}` can't be a bridge's name"),
            "an interface's name has 1 to 15 characters, none of them `/`, `:` or white space",
        );
    }
    let address = *table.address.get_ref();
    let span = table.address.span();
    if address.prefix_len() == 0 || address.prefix_len() > 30 {
        findings.add(
            span,
            format!("{address} has no room for nodes"),
            "use a prefix of /1 to /30, such as 10.77.0.1/24",
        );
    } else if address.addr() == address.network() || address.addr() == address.broadcast() {
        findings.add(
            span,
            format!("{} is the network's own or broadcast address", address.addr()),
            format!(
                "give the appliance a host's address, such as {}/{}",
                first_host(address),
                address.prefix_len()
            ),
        );
    } else if !is_unicast(address.addr()) {
        findings.add(
            span,
            format!("{} is no host's address", address.addr()),
            "use a private range, such as 10.77.0.1/24",
        );
    }
    let mut seen: Vec<&String> = Vec::new();
    for port in &table.ports {
        let name = port.get_ref();
        if !is_interface_name(name) {
            findings.add(
                port.span(),
                format!("`{name}` can't be an interface's name"),
                "`ip link` lists them",
            );
        } else if name == bridge {
            findings.add(
                port.span(),
                format!("`{name}` is the bridge itself"),
                "ports are the interfaces behind it",
            );
        } else if seen.contains(&name) {
            findings.add(port.span(), format!("`{name}` is listed twice"), "remove one");
        }
        seen.push(name);
    }
    let ceiling = table.ceiling.as_ref().and_then(|text| {
        let rate = values::rate(text.get_ref()).filter(|rate| *rate >= LOWEST_CEILING);
        if rate.is_none() {
            let what = format!("`{}` is no rate that machines could boot at", text.get_ref());
            findings.add(text.span(), what, "bits a second, at least 1M: `800M`, `2.5G`");
        }
        rate
    });
    Network {
        bridge: bridge.clone(),
        address,
        ports: table.ports.iter().map(|p| p.get_ref().clone()).collect(),
        fast_path: table.fast_path,
        ceiling,
    }
}

fn first_host(net: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from_bits(net.network().to_bits() | 1)
}

fn is_unicast(address: Ipv4Addr) -> bool {
    !(address.is_multicast()
        || address.is_loopback()
        || address.octets()[0] == 0
        || address.octets()[0] >= 240)
}

/// The same rule as the kernel's `dev_valid_name`.
fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.contains(|c: char| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control())
}

fn dhcp(raw: &File, segment: &Segment, findings: &mut Findings<'_>) -> Dhcp {
    let nothing = DhcpTable::default();
    let (table, span) = match &raw.dhcp {
        Some(table) => (table.get_ref(), table.span()),
        None => (&nothing, 0..0),
    };
    let range = table.range.as_ref().map(|range| {
        let [first, last] = *range.get_ref();
        let fault = segment.fault(first).or_else(|| segment.fault(last)).or_else(|| {
            if first > last {
                Some((
                    format!("the range ends at {last}, before its start"),
                    format!("write [\"{last}\", \"{first}\"]"),
                ))
            } else if (first..=last).contains(&segment.own) {
                Some((
                    format!("the range holds the appliance's own address {}", segment.own),
                    "start after it, or end before it".to_owned(),
                ))
            } else {
                None
            }
        });
        if let Some((what, right)) = fault {
            findings.add(range.span(), what, right);
        }
        (first, last)
    });
    if table.mode == DhcpMode::Authoritative && range.is_none() {
        findings.add(
            span,
            "[dhcp] has no range to give addresses from",
            format!(
                "set range = [\"FIRST\", \"LAST\"] within {}, or mode = \"proxy\" beside another DHCP server, or mode = \"off\"",
                segment.net
            ),
        );
    }
    let lease_time = lease_time(table, findings);
    let mut set = |text: &Option<Spanned<String>>| text.as_ref().and_then(|text| time(text, findings));
    let (renewal_time, rebinding_time) = (set(&table.renewal_time), set(&table.rebinding_time));
    if let Some(router) = &table.router
        && let Some((what, right)) = segment.fault(*router.get_ref())
    {
        findings.add(router.span(), format!("the router {what}"), right);
    }
    let search = table.search.as_ref().map(|search| search.get_ref().to_vec()).unwrap_or_default();
    let domain = table.domain.as_ref().map(|domain| (domain.span(), domain.get_ref()));
    let searched = table.search.as_ref().into_iter().flat_map(|list| search.iter().map(|d| (list.span(), d)));
    for (span, domain) in domain.into_iter().chain(searched) {
        if !domain.split('.').all(is_host_label) {
            findings.add(span, format!("`{domain}` is no domain name"), "write it as \"lab.example\"");
        }
    }
    if let Some(mtu) = table.mtu.as_ref().filter(|mtu| !MTU.contains(mtu.get_ref())) {
        let what = format!("an MTU of {} bytes is out of bounds", mtu.get_ref());
        findings.add(mtu.span(), what, "use 576 to 9216");
    }
    let options = dhcp_options(table, findings);
    let dhcp = Dhcp {
        mode: table.mode,
        range: range.filter(|_| table.mode == DhcpMode::Authoritative),
        lease_time,
        renewal_time,
        rebinding_time,
        router: table.router.as_ref().map(|r| *r.get_ref()),
        dns: table.dns.to_vec(),
        domain: table.domain.as_ref().map(|d| d.get_ref().clone()),
        search,
        mtu: table.mtu.as_ref().map(|mtu| *mtu.get_ref()).or_else(|| mtu_of(&options)),
        ntp: table.ntp.to_vec(),
        options,
        unknown: table.unknown,
    };
    check_renewals(table, &dhcp, findings);
    dhcp
}

fn lease_time(table: &DhcpTable, findings: &mut Findings<'_>) -> Duration {
    let Some(text) = &table.lease_time else { return LEASE_DEFAULT };
    match time(text, findings) {
        Some(time) if !(LEASE_MIN..=LEASE_MAX).contains(&time) => {
            findings.add(
                text.span(),
                format!("a lease of {} is out of bounds", text.get_ref()),
                "use 30s to 365d",
            );
            LEASE_DEFAULT
        }
        time => time.unwrap_or(LEASE_DEFAULT),
    }
}

/// Checks T1, T2 and the lease time against each other.
fn check_renewals(table: &DhcpTable, dhcp: &Dhcp, findings: &mut Findings<'_>) {
    let Some(text) = table.renewal_time.as_ref().or(table.rebinding_time.as_ref()) else { return };
    let [renewal, rebinding] = dhcp.renewals();
    if renewal.is_zero() || renewal >= rebinding || rebinding >= dhcp.lease_time {
        let what = "renewal-time, rebinding-time and lease-time are not in this order";
        findings.add(
            text.span(),
            what,
            "without them renewal is at one half and rebinding at 7/8 of lease-time",
        );
    }
}

fn time(text: &Spanned<String>, findings: &mut Findings<'_>) -> Option<Duration> {
    let time = values::duration(text.get_ref());
    if time.is_none() {
        let what = format!("`{}` is no duration", text.get_ref());
        findings.add(text.span(), what, "write it as \"90s\", \"1h\" or \"1h30m\"");
    }
    time
}

/// From the datagram size that every IPv4 host accepts (RFC 791) to jumbo frames.
const MTU: std::ops::RangeInclusive<u16> = 576..=9216;

/// The MTU, if option 26 has a valid one.
fn mtu_of(options: &BTreeMap<u8, Vec<u8>>) -> Option<u16> {
    let value = options.get(&option::MTU)?.as_slice().try_into().ok()?;
    Some(u16::from_be_bytes(value)).filter(|mtu| MTU.contains(mtu))
}

fn dhcp_options(table: &DhcpTable, findings: &mut Findings<'_>) -> BTreeMap<u8, Vec<u8>> {
    let mut options = BTreeMap::new();
    for (key, value) in &table.options {
        let Ok(number) = key.get_ref().parse::<u8>() else {
            let what = format!("`{}` is no option's number", key.get_ref());
            findings.add(key.span(), what, "options are named by number, 1 to 254 (RFC 2132)");
            continue;
        };
        if let Some(reason) = values::reserved_option(number) {
            findings.add(key.span(), format!("option {number} can't be set here"), reason);
        }
        let by_name = (number == option::MTU && table.mtu.is_some())
            || (number == option::DOMAIN_SEARCH && table.search.is_some());
        if by_name {
            let what = format!("option {number} is set twice");
            findings.add(key.span(), what, "[dhcp] mtu is option 26, search is option 119: remove one");
        }
        match values::option_bytes(value.get_ref()) {
            Ok(bytes) => {
                if options.insert(number, bytes).is_some() {
                    findings.add(key.span(), format!("option {number} is set twice"), "remove one");
                }
            }
            Err(right) => findings.add(value.span(), format!("option {number} can't be encoded"), right),
        }
    }
    options
}

fn http(raw: &File, findings: &mut Findings<'_>) -> Http {
    let table = raw.http.as_ref();
    let mut read = |port: Option<&Spanned<u16>>, default: u16| {
        if let Some(port) = port.filter(|port| *port.get_ref() == 0) {
            let right = format!("nodes are told the port: name one, such as {default}");
            findings.add(port.span(), "port 0 is none", right);
        }
        port.map_or(default, |port| *port.get_ref())
    };
    let port = read(table.and_then(|http| http.port.as_ref()), HTTP_PORT);
    let tls = table.and_then(|http| http.tls_port.as_ref());
    let tls_port = read(tls, TLS_PORT);
    if port == tls_port {
        let span = tls.or(table.and_then(|http| http.port.as_ref())).map_or(0..0, Spanned::span);
        findings.add(
            span,
            format!("`port` and `tls-port` are both {port}"),
            "files are served on one, and sessions of nodes on the other: name two",
        );
    }
    Http { port, tls_port }
}

fn api(raw: &File, segment: &Segment, http: &Http, findings: &mut Findings<'_>) -> Api {
    let directory = findings.directory();
    let raw = raw.api.as_ref();
    let socket = match raw.and_then(|api| api.socket.as_ref()) {
        None => API_SOCKET.into(),
        Some(written) => {
            let socket = directory.join(written.get_ref());
            if socket.as_os_str().len() >= SOCKET_PATH_MAX {
                findings.add(
                    written.span(),
                    format!("{} is longer than a socket's path can be", socket.display()),
                    format!("less than {SOCKET_PATH_MAX} bytes, such as {API_SOCKET}"),
                );
            }
            socket
        }
    };
    let names = raw.map_or(&[][..], |api| &api.names);
    for name in names {
        if !name.get_ref().split('.').all(is_host_label) {
            findings.add(
                name.span(),
                format!("`{}` is no host's name", name.get_ref()),
                "a name that browsers and programs reach the API by, without a port, such as \"boot.example.org\"",
            );
        }
    }
    let names = names.iter().map(|name| name.get_ref().to_ascii_lowercase()).collect();
    let Some(listen) = raw.and_then(|api| api.listen.as_ref()) else {
        return Api { socket, listen: None, names };
    };
    let address = *listen.get_ref();
    let shared = address.ip().is_unspecified() || address.ip() == segment.own;
    for (port, key) in [(http.port, "port"), (http.tls_port, "tls-port")] {
        if shared && address.port() == port {
            findings.add(
                listen.span(),
                format!("port {port} of {} answers nodes", segment.own),
                format!("give the API another port or address, or change [http] {key}"),
            );
        }
    }
    Api { socket, listen: Some(address), names }
}
