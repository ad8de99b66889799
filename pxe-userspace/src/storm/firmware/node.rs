//! What runs on a machine after its loader: Linux with our pxe-init, as far as the network sees it.

use std::net::SocketAddrV4;

use pxe_common::Mac;
use pxe_contract::facts::Told;
use pxe_contract::report::{Report, Reported};
use pxe_contract::{paths, settings};
use serde::Serialize;

use super::hardware;

/// The stages that pxe-init reports, in order.
pub(in super::super) const REPORTS: [Reported; 3] = [Reported::Stage1, Reported::Image, Reported::Workload];

/// Where the node reports, from its kernel's command line; `None` for kernels that are not ours.
pub(in super::super) fn appliance<'a>(cmdline: impl IntoIterator<Item = &'a str>) -> Option<SocketAddrV4> {
    cmdline.into_iter().find_map(settings::appliance)
}

/// The server and the path of an `http://` URL with an address in it.
pub(in super::super) fn server(url: &str) -> Option<(SocketAddrV4, &str)> {
    let host = url.strip_prefix("http://")?;
    let (server, path) = host.find('/').map_or((url, "/"), |at| url.split_at(url.len() - host.len() + at));
    Some((settings::endpoint(server)?, path))
}

/// A report as pxe-init sends it.
pub(in super::super) fn report(to: SocketAddrV4, mac: Mac, stage: Reported, uptime: f64) -> Vec<u8> {
    let (detail, uptime) = (Some("storm".to_owned()), Some((uptime * 1000.0).round() / 1000.0));
    post(to, paths::node::REPORT, &Report { detail, uptime, ..Report::new(mac, stage) })
}

/// The machine's facts, as pxe-init tells them.
pub(in super::super) fn facts(to: SocketAddrV4, mac: Mac, uuid: [u8; 16], uefi: bool) -> Vec<u8> {
    post(to, paths::node::FACTS, &Told { mac, facts: hardware::of(mac, uuid, uefi) })
}

fn post(to: SocketAddrV4, path: &str, document: &impl Serialize) -> Vec<u8> {
    let body = serde_json::to_string(document).expect("it has only text keys");
    format!(
        "POST {path} HTTP/1.1\r\nHost: {to}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// A request as iPXE sends it.
pub(in super::super) fn get(from: SocketAddrV4, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nConnection: close\r\nUser-Agent: iPXE/1.0.0+\r\nHost: {from}\r\n\r\n")
        .into_bytes()
}
