//! Where people reach the appliance: always at the socket, and by TCP if configured.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use nix::ifaddrs::getifaddrs;

use super::Appliance;
use super::start::{Starting, listen};
use crate::api::page::{self, Live};
use crate::api::people::{self, Socket};
use crate::api::{Access, ApiState, BootState, Hosts, api_router};
use crate::config::Config;
use crate::operate::access::{Logins, Tokens};
use crate::store::Store;

/// Serves the API until shutdown.
pub(super) async fn serve(
    config: &Config,
    appliance: &Arc<Appliance>,
    boot: BootState,
    store: Store,
    socket: Socket,
    starting: &mut Starting<'_>,
) -> anyhow::Result<()> {
    let addresses = own_addresses()?;
    let names = config.api.names.clone();
    let hosts = Hosts { addresses: addresses.clone(), names: names.clone() };
    let pages = config.api.listen.map_or_else(Vec::new, |listen| pages(listen, &addresses, &names));
    let (tokens, logins) = (Tokens::open(store.clone())?, Logins::open(store)?);
    let access = Access::new(tokens, logins, appliance.audit.clone(), hosts, pages);
    let trust = boot.trust.clone();
    let live = Live::new(boot.machines.clone());
    let (launches, powers) = (appliance.launches.clone(), appliance.powers.clone());
    let images = appliance.clone();
    let state = ApiState { boot, appliance: appliance.clone(), images, access, launches, powers, live };
    let router = api_router(state.clone());

    let Starting { parts, shutdown } = starting;
    parts.spawn(page::watch(state, shutdown.clone()).map(Ok));
    parts.spawn(socket.serve(router.clone(), shutdown.clone()).map(Ok));
    if let Some(address) = config.api.listen {
        let listener = listen(address, "[api] listen").await?;
        let tls = match address.ip().is_loopback() {
            true => None,
            false => Some(trust.authority().people(&addresses, &names)?),
        };
        parts.spawn(people::serve(listener, tls, router, shutdown.clone()).map(Ok));
    }
    Ok(())
}

/// This host's addresses at the start.
fn own_addresses() -> anyhow::Result<Vec<IpAddr>> {
    let interfaces = getifaddrs().context("asking for this host's addresses")?;
    let mut addresses: Vec<IpAddr> = interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect();
    addresses.sort();
    addresses.dedup();
    Ok(addresses)
}

/// URLs of the page for a browser.
fn pages(listen: SocketAddr, addresses: &[IpAddr], names: &[String]) -> Vec<String> {
    let scheme = if listen.ip().is_loopback() { "http" } else { "https" };
    let page = |address: IpAddr| format!("{scheme}://{}", SocketAddr::new(address, listen.port()));
    if !listen.ip().is_unspecified() {
        return vec![page(listen.ip())];
    }
    let named = names.iter().map(|name| format!("{scheme}://{name}:{}", listen.port()));
    let of_others = |address: &&IpAddr| !address.is_loopback() && (address.is_ipv4() || listen.is_ipv6());
    // A link-local address can't be reached without its interface.
    let reached = |address: &&IpAddr| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let by_address = addresses.iter().filter(of_others).filter(reached).map(|address| page(*address));
    named.chain(by_address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_is_sent_where_it_gets_an_answer() {
        let addresses: Vec<IpAddr> =
            ["127.0.0.1", "10.77.0.1", "::1", "fe80::1", "2001:db8::1"].map(|a| a.parse().unwrap()).into();
        let at = |listen: &str, names: &[String]| pages(listen.parse().unwrap(), &addresses, names);
        assert_eq!(at("127.0.0.1:7480", &["x".into()]), ["http://127.0.0.1:7480"]);
        assert_eq!(at("[::1]:7480", &[]), ["http://[::1]:7480"]);
        assert_eq!(at("10.77.0.1:7480", &[]), ["https://10.77.0.1:7480"]);
        assert_eq!(at("0.0.0.0:1", &["b.example".into()]), ["https://b.example:1", "https://10.77.0.1:1"]);
        assert_eq!(at("[::]:1", &[]), ["https://10.77.0.1:1", "https://[2001:db8::1]:1"]);
        assert_eq!(own_addresses().unwrap().iter().filter(|address| address.is_loopback()).count().min(1), 1);
    }
}
