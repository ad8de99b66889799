//! Applies a changed configuration file while everything is running.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Appliance, naming};
use crate::api::documents::Reloaded;
use crate::config::rules::Facts;
use crate::config::{self, Api, Boot, Carousel, Config, Dhcp, Docker, Http, Network, Problem};
use crate::machines::Machines;
use crate::machines::kept::{Done, Kept, Names, Order, OrderError};
use crate::nodes::workload::Workloads;
use crate::operate::launch::Launches;
use crate::provision::image::Wanted;
use crate::serve::dhcp;
use crate::serve::files::{Catalog, OpenRoot, RootError};
use crate::store::WriteError;

/// Why the file can't be applied; everything continues unchanged.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    #[error("{}", lines(.0))]
    Config(Vec<Problem>),
    #[error(transparent)]
    Root(#[from] RootError),
}

impl Appliance {
    /// Applies what can be applied to a running daemon, and reports what waits for the next start.
    pub(super) async fn reload(&self) -> Result<Reloaded, ReloadError> {
        let _one_at_a_time = self.reloading.lock().await;
        let new = config::load(&self.file).map_err(ReloadError::Config)?;
        Ok(self.parts().take_over(new).await?)
    }

    /// Changes the machines that are kept, and has everybody go by it.
    pub(super) async fn order(&self, order: Order) -> Result<Done, OrderError> {
        let _one_at_a_time = self.reloading.lock().await;
        let config = self.config();
        let done = tokio::task::block_in_place(|| self.kept.order(&config, order))?;
        if !done.forgotten.is_empty() {
            let gone: Vec<String> = done.forgotten.iter().map(|node| node.name.clone()).collect();
            tokio::task::block_in_place(|| self.names.forget(&gone))?;
        }
        if done != Done::default() {
            self.parts().publish(self.parts().whole(&config)).await;
        }
        Ok(done)
    }

    /// Names machines that were seen, by the rules, and has everybody go by it.
    pub(super) async fn name(&self, seen: Vec<Facts>) -> Result<(), WriteError> {
        let _one_at_a_time = self.reloading.lock().await;
        self.parts().name(seen).await
    }

    /// Has everybody go by what launches have machines boot.
    pub(super) async fn pinned(&self) {
        let _one_at_a_time = self.reloading.lock().await;
        self.parts().publish(self.parts().whole(&self.config())).await;
    }

    fn parts(&self) -> Parts<'_> {
        Parts {
            config: &self.config,
            kept: &self.kept,
            names: &self.names,
            launches: &self.launches,
            catalog: &self.catalog,
            dhcp: &self.dhcp,
            machines: &self.machines,
            wanted: &self.wanted,
            workloads: &self.workloads,
        }
    }
}

/// The configuration's owner, and the parts that must act when it changes.
struct Parts<'a> {
    config: &'a watch::Sender<Arc<Config>>,
    kept: &'a Kept,
    names: &'a Names,
    launches: &'a Launches,
    catalog: &'a Catalog,
    dhcp: &'a dhcp::Dhcp,
    machines: &'a Machines,
    wanted: &'a Wanted,
    workloads: &'a Workloads,
}

impl Parts<'_> {
    /// Applies what can be applied of `new`. Steps that may fail come first, and change nothing.
    async fn take_over(&self, new: Config) -> Result<Reloaded, RootError> {
        let of_file = self.config.borrow().with_nodes([]);
        let (config, done) = decide(&of_file, new);
        let root = OpenRoot::of(&config)?;

        self.catalog.serve(root);
        let config = self.whole(&config);
        for node in config.nodes.iter().chain(config.nodes.shadowed()) {
            if let Some(problem) = &node.problem {
                tracing::warn!(node = node.name, problem, "of the machines that are kept");
            }
        }
        self.publish(config).await;
        // A rule that is new takes those that were seen before it.
        if let Err(error) = self.name(naming::seen(self.machines)).await {
            tracing::error!("machines were not named: {error}");
        }
        Ok(done)
    }

    async fn name(&self, seen: Vec<Facts>) -> Result<(), WriteError> {
        let config = self.config.borrow().clone();
        if config.rules.is_empty() {
            return Ok(());
        }
        if tokio::task::block_in_place(|| self.names.take(&config, seen))? {
            self.publish(self.whole(&config)).await;
        }
        Ok(())
    }

    /// The configuration with the machines that its file does not declare.
    fn whole(&self, config: &Config) -> Config {
        naming::whole(config, self.kept, self.names, self.launches)
    }

    /// Has everybody go by it.
    async fn publish(&self, config: Config) {
        let config = Arc::new(config);
        self.config.send_replace(config.clone());
        self.machines.declare(&config);
        self.wanted.want(&config);
        self.dhcp.reconfigure(config);
        self.workloads.apply().await;
    }
}

/// The configuration in force from now on when the file contains `new`, and what that changes. Each key is either
/// applied at once, or was used to open something at the start and waits for the next one.
///
/// All addresses in the file were validated against `[network] address`, and all names against each other: if that
/// address waits, all of them do.
///
/// The patterns name every field: a new key does not compile until it is decided here.
fn decide(old: &Config, new: Config) -> (Config, Reloaded) {
    let Config {
        state_dir,
        network,
        dhcp,
        files_root,
        http,
        api,
        boot,
        docker,
        carousel,
        default_profile,
        profiles,
        storage,
        nodes,
        rules,
        workloads,
    } = new;
    let mut keys = Keys { all_wait: old.network.address != network.address, ..Keys::default() };
    let config = Config {
        state_dir: keys.at_the_next_start("state-dir", &old.state_dir, state_dir),
        network: decide_network(&mut keys, &old.network, network),
        dhcp: decide_dhcp(&mut keys, &old.dhcp, dhcp),
        files_root: keys.now("[files]", &old.files_root, files_root),
        http: decide_http(&mut keys, &old.http, http),
        api: decide_api(&mut keys, &old.api, api),
        boot: decide_boot(&mut keys, &old.boot, boot),
        docker: decide_docker(&mut keys, &old.docker, docker),
        carousel: decide_carousel(&mut keys, &old.carousel, carousel),
        default_profile: keys.now("default profile", &old.default_profile, default_profile),
        profiles: keys.now("profiles", &old.profiles, profiles),
        storage: keys.now("storage", &old.storage, storage),
        nodes: keys.now("nodes", &old.nodes, nodes),
        rules: keys.now("rules", &old.rules, rules),
        workloads: keys.now("workloads", &old.workloads, workloads),
    };
    (config, keys.decided)
}

/// The bridge is set up, its ports are added and shaped, and the programs are loaded only at the start.
fn decide_network(keys: &mut Keys, old: &Network, new: Network) -> Network {
    let Network { bridge, address, ports, fast_path, ceiling } = new;
    Network {
        bridge: keys.at_the_next_start("[network] bridge", &old.bridge, bridge),
        address: keys.at_the_next_start("[network] address", &old.address, address),
        ports: keys.at_the_next_start("[network] ports", &old.ports, ports),
        fast_path: keys.at_the_next_start("[network] fast-path", &old.fast_path, fast_path),
        ceiling: keys.at_the_next_start("[network] ceiling", &old.ceiling, ceiling),
    }
}

/// The mode decides which sockets exist, and whether there is a range. All other keys are contents of replies.
fn decide_dhcp(keys: &mut Keys, old: &Dhcp, new: Dhcp) -> Dhcp {
    let Dhcp {
        mode,
        range,
        lease_time,
        renewal_time,
        rebinding_time,
        router,
        dns,
        domain,
        search,
        mtu,
        ntp,
        options,
        unknown,
    } = new;
    let with_the_mode = if old.mode == mode { Keys::now } else { Keys::at_the_next_start };
    Dhcp {
        mode: keys.at_the_next_start("[dhcp] mode", &old.mode, mode),
        range: with_the_mode(keys, "[dhcp] range", &old.range, range),
        lease_time: keys.now("[dhcp] lease-time", &old.lease_time, lease_time),
        renewal_time: keys.now("[dhcp] renewal-time", &old.renewal_time, renewal_time),
        rebinding_time: keys.now("[dhcp] rebinding-time", &old.rebinding_time, rebinding_time),
        router: keys.now("[dhcp] router", &old.router, router),
        dns: keys.now("[dhcp] dns", &old.dns, dns),
        domain: keys.now("[dhcp] domain", &old.domain, domain),
        search: keys.now("[dhcp] search", &old.search, search),
        mtu: keys.now("[dhcp] mtu", &old.mtu, mtu),
        ntp: keys.now("[dhcp] ntp", &old.ntp, ntp),
        options: keys.now("[dhcp] options", &old.options, options),
        unknown: keys.now("[dhcp] unknown", &old.unknown, unknown),
    }
}

/// Listeners are opened only at the start.
fn decide_http(keys: &mut Keys, old: &Http, new: Http) -> Http {
    let Http { port, tls_port } = new;
    Http {
        port: keys.at_the_next_start("[http] port", &old.port, port),
        tls_port: keys.at_the_next_start("[http] tls-port", &old.tls_port, tls_port),
    }
}

fn decide_api(keys: &mut Keys, old: &Api, new: Api) -> Api {
    let Api { socket, listen, names } = new;
    Api {
        socket: keys.at_the_next_start("[api] socket", &old.socket, socket),
        listen: keys.at_the_next_start("[api] listen", &old.listen, listen),
        names: keys.at_the_next_start("[api] names", &old.names, names),
    }
}

/// Images and stage 1 are built with the assets from the daemon's start.
fn decide_boot(keys: &mut Keys, old: &Boot, new: Boot) -> Boot {
    let Boot { ipxe, assets } = new;
    Boot {
        ipxe: keys.now("[boot] ipxe", &old.ipxe, ipxe),
        assets: keys.at_the_next_start("[boot] assets", &old.assets, assets),
    }
}

fn decide_docker(keys: &mut Keys, old: &Docker, new: Docker) -> Docker {
    let Docker { socket } = new;
    Docker { socket: keys.at_the_next_start("[docker] socket", &old.socket, socket) }
}

/// Rounds in progress share groups, port and ceiling.
fn decide_carousel(keys: &mut Keys, old: &Carousel, new: Carousel) -> Carousel {
    let Carousel { at_least, group, port, ceiling } = new;
    Carousel {
        at_least: keys.at_the_next_start("[carousel] at-least", &old.at_least, at_least),
        group: keys.at_the_next_start("[carousel] group", &old.group, group),
        port: keys.at_the_next_start("[carousel] port", &old.port, port),
        ceiling: keys.at_the_next_start("[carousel] ceiling", &old.ceiling, ceiling),
    }
}

/// Records the decisions about keys that changed.
#[derive(Default)]
struct Keys {
    decided: Reloaded,
    all_wait: bool,
}

impl Keys {
    fn now<T: PartialEq + Clone>(&mut self, key: &str, old: &T, new: T) -> T {
        if self.all_wait {
            return self.at_the_next_start(key, old, new);
        }
        if *old != new {
            self.decided.changed.push(key.to_owned());
        }
        new
    }

    fn at_the_next_start<T: PartialEq + Clone>(&mut self, key: &str, old: &T, new: T) -> T {
        if *old != new {
            self.decided.needs_restart.push(key.to_owned());
        }
        old.clone()
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
#[path = "reload_tests.rs"]
mod tests;
