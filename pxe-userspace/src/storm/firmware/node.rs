//! What runs on a machine after its loader: Linux with our pxe-init, as far as the network sees it.

use std::net::SocketAddrV4;

use pxe_common::Mac;
use pxe_contract::report::{Report, Reported};
use pxe_contract::{paths, settings};

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
    let body = serde_json::to_string(&Report { detail, uptime, ..Report::new(mac, stage) });
    let body = body.expect("a report has only text keys");
    format!(
        "POST {} HTTP/1.1\r\nHost: {to}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        paths::node::REPORT,
        body.len()
    )
    .into_bytes()
}

/// A request as iPXE sends it.
pub(in super::super) fn get(from: SocketAddrV4, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nConnection: close\r\nUser-Agent: iPXE/1.0.0+\r\nHost: {from}\r\n\r\n")
        .into_bytes()
}
