//! One workload's container in an engine, the appliance's or a node's, and the network that the containers on the
//! appliance share.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error as DockerError;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, EndpointIpamConfig, EndpointSettings, HealthStatusEnum,
    HostConfig, Ipam, IpamConfig, Network, NetworkCreateRequest, NetworkingConfig, PortBinding,
    RestartPolicy, RestartPolicyNameEnum,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, ListNetworksOptionsBuilder,
    RemoveContainerOptionsBuilder, StopContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use futures_util::StreamExt as _;
use ipnet::Ipv4Net;

use super::{Health, identity};
use crate::config::{Protocol, PublishedPort, Volume, Workload};
use crate::nodes::engine::NoEngine;

/// The label of everything that we create in the engine. By it leftovers of a crash are found.
const LABEL: &str = "bridgehead";
const LABEL_OWNER: &str = "bridgehead.owner";
const LABEL_WORKLOAD: &str = "bridgehead.workload";
const LABEL_SPEC: &str = "bridgehead.spec";

const BRIDGE_NAME: &str = "com.docker.network.bridge.name";

/// How often the state of a health check is polled.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// Seconds that a workload has to exit after its stop signal, as with `docker stop`.
const STOP_SECONDS: i32 = 10;

/// Everything that determines a container. A container that was created from another spec is replaced.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Spec {
    pub(super) workload: Workload,
    pub(super) place: Place,
    /// Distinguishes appliances that share an engine.
    pub(super) owner: String,
}

/// The engine that it runs in, and how it is reached there.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Place {
    /// In the appliance's engine, with an address of its own on the bridge.
    Appliance { address: Option<Ipv4Addr>, network: NetworkSpec },
    /// In a node's engine, reached by its published ports.
    Node(String),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct NetworkSpec {
    pub(super) bridge: String,
    /// The bridge's own address with the prefix.
    pub(super) address: Ipv4Net,
}

#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    #[error(transparent)]
    NoEngine(#[from] NoEngine),
    #[error("the Docker engine has no image {image}. Pull or build it there first: `docker pull {image}`")]
    NoImage { image: String },
    #[error("there is no bridge {bridge} ({source})")]
    NoBridge { bridge: String, source: nix::Error },
    #[error(
        "no address is free for it on {network}: give it one with `address`, or make [dhcp] range smaller"
    )]
    NoAddress { network: Ipv4Net },
    #[error("the Docker engine of node {0} does not answer")]
    NodeAway(String),
    #[error(
        "the node's engine has image {image} as {there}, the appliance's as {here}: it changed meanwhile, or one of \
         them keeps images in containerd, which names them differently"
    )]
    OtherImage { image: String, here: String, there: String },
    #[error("the Docker engine could not {what}: {source}")]
    Engine { what: &'static str, source: DockerError },
}

impl WorkloadError {
    pub(super) fn engine(what: &'static str) -> impl FnOnce(DockerError) -> Self {
        move |source| Self::Engine { what, source }
    }
}

/// The network that a container joins.
pub(super) struct Joined {
    name: String,
    /// A bridge that was recreated under the same name has another index; a container on the old one has lost its
    /// network.
    bridge_index: u32,
}

/// A container's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Running,
    /// Created, but never started.
    Created,
    Exited(i64),
}

impl Spec {
    pub(super) fn container_name(&self) -> String {
        format!("bridgehead-{}-{}", self.owner, self.workload.name)
    }

    /// Published ports in Docker's notation.
    pub(super) fn ports(&self) -> Vec<String> {
        self.workload.ports.iter().map(|port| format!("{}:{}", port.host, container_port(port))).collect()
    }

    pub(super) fn address(&self) -> Option<Ipv4Addr> {
        match &self.place {
            Place::Appliance { address, .. } => *address,
            Place::Node(_) => None,
        }
    }

    pub(super) fn node(&self) -> Option<&String> {
        match &self.place {
            Place::Appliance { .. } => None,
            Place::Node(name) => Some(name),
        }
    }

    fn labels(&self, image_id: &str, bridge_index: u32) -> HashMap<String, String> {
        let mut labels = owner_labels(&self.owner);
        labels.insert(LABEL_WORKLOAD.into(), self.workload.name.clone());
        labels.insert(LABEL_SPEC.into(), identity::of(self, image_id, bridge_index));
        labels
    }

    fn create_body(&self, network: &str, labels: HashMap<String, String>) -> ContainerCreateBody {
        let workload = &self.workload;
        let (host_ip, own_address) = match &self.place {
            Place::Appliance { address, network } => (Some(network.address.addr().to_string()), *address),
            // A node has one address, which may change.
            Place::Node(_) => (None, None),
        };
        let binding = |port: &PublishedPort| PortBinding {
            host_ip: host_ip.clone(),
            host_port: Some(port.host.to_string()),
        };
        let mut bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
        for port in &workload.ports {
            bindings.entry(container_port(port)).or_default().get_or_insert_default().push(binding(port));
        }
        let endpoint = EndpointSettings {
            ipam_config: own_address.map(|address| EndpointIpamConfig {
                ipv4_address: Some(address.to_string()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let volume = |volume: &Volume| format!("{}-{}:{}", self.container_name(), volume.name, volume.path);
        ContainerCreateBody {
            hostname: Some(workload.name.clone()),
            image: Some(workload.image.clone()),
            cmd: (!workload.command.is_empty()).then(|| workload.command.clone()),
            env: Some(workload.environment.iter().map(|(name, value)| format!("{name}={value}")).collect()),
            exposed_ports: Some(bindings.keys().cloned().collect()),
            labels: Some(labels),
            host_config: Some(HostConfig {
                network_mode: Some(network.to_owned()),
                port_bindings: Some(bindings),
                // Named volumes are not removed with the container.
                binds: Some(workload.volumes.iter().map(volume).collect()),
                // The daemon restarts it, because it knows whether the bridge exists.
                restart_policy: Some(RestartPolicy {
                    name: Some(RestartPolicyNameEnum::NO),
                    maximum_retry_count: None,
                }),
                ..Default::default()
            }),
            networking_config: Some(NetworkingConfig {
                endpoints_config: Some(HashMap::from([(network.to_owned(), endpoint)])),
            }),
            ..Default::default()
        }
    }
}

/// The network that a container of `spec` joins.
pub(super) async fn join(docker: &Docker, spec: &Spec) -> Result<Joined, WorkloadError> {
    match &spec.place {
        Place::Appliance { address: None, network } => {
            Err(WorkloadError::NoAddress { network: network.address })
        }
        Place::Appliance { network, .. } => {
            let name = self::network(docker, network, &spec.owner).await?;
            Ok(Joined { name, bridge_index: bridge_index(network)? })
        }
        // The engine's default network.
        Place::Node(_) => Ok(Joined { name: "bridge".into(), bridge_index: 0 }),
    }
}

/// Finds or creates the engine's network on the bridge, and returns its name. A network that others created on that
/// bridge is used unchanged.
///
/// The engine does not change a bridge that existed before its network, nor the bridge's address if that is the
/// network's gateway, not even when the network is removed (seen with 20.10; since moby/libnetwork#1301).
async fn network(docker: &Docker, spec: &NetworkSpec, owner: &str) -> Result<String, WorkloadError> {
    // The engine would create a missing bridge, and then own it.
    bridge_index(spec)?;
    for network in bridge_networks(docker).await? {
        let name = network.name.clone().unwrap_or_default();
        let fits = bridge_of(&network).as_ref() == Some(&spec.bridge)
            && (!is_ours(&network, owner) || gateway_is(&network, spec));
        if fits {
            return Ok(name);
        }
        if is_ours(&network, owner) {
            docker
                .remove_network(&name)
                .await
                .map_err(WorkloadError::engine("remove an outdated network"))?;
        }
    }
    let name = network_name(owner);
    let request = NetworkCreateRequest {
        name: name.clone(),
        driver: Some("bridge".into()),
        ipam: Some(Ipam {
            config: Some(vec![IpamConfig {
                subnet: Some(spec.address.trunc().to_string()),
                gateway: Some(spec.address.addr().to_string()),
                ..Default::default()
            }]),
            ..Default::default()
        }),
        options: Some(HashMap::from([(BRIDGE_NAME.to_owned(), spec.bridge.clone())])),
        labels: Some(owner_labels(owner)),
        ..Default::default()
    };
    docker.create_network(request).await.map_err(WorkloadError::engine("make a network on the bridge"))?;
    Ok(name)
}

/// Removes our own network, if it exists.
pub(super) async fn remove_network(docker: &Docker, owner: &str) -> Result<(), WorkloadError> {
    for network in bridge_networks(docker).await?.iter().filter(|network| is_ours(network, owner)) {
        let name = network.name.as_deref().unwrap_or_default();
        docker.remove_network(name).await.map_err(WorkloadError::engine("remove the network"))?;
    }
    Ok(())
}

/// Removes our containers, except those of the `wanted` workloads.
pub(super) async fn tidy(
    docker: &Docker,
    owner: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<(), WorkloadError> {
    let filters = HashMap::from([("label", vec![format!("{LABEL_OWNER}={owner}")])]);
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    let containers =
        docker.list_containers(Some(options)).await.map_err(WorkloadError::engine("list containers"))?;
    for container in containers {
        let name = container.labels.as_ref().and_then(|labels| labels.get(LABEL_WORKLOAD));
        if name.is_none_or(|name| !wanted(name)) {
            tracing::info!(workload = name, "removing a container that an earlier run left");
            stop(docker, &container.id.unwrap_or_default()).await?;
        }
    }
    Ok(())
}

/// The ID of an image in the engine.
pub(super) async fn image_id(docker: &Docker, image: &str) -> Result<Option<String>, WorkloadError> {
    match docker.inspect_image(image).await {
        Ok(found) => Ok(found.id),
        Err(e) if status(&e) == Some(404) => Ok(None),
        Err(e) => Err(WorkloadError::engine("look at the image")(e)),
    }
}

/// Finds the workload's container, or creates it; one that was created from another spec is replaced.
pub(super) async fn find_or_create(
    docker: &Docker,
    spec: &Spec,
    image_id: &str,
    network: &Joined,
) -> Result<Found, WorkloadError> {
    let name = spec.container_name();
    let labels = spec.labels(image_id, network.bridge_index);
    if let Some(container) = inspect(docker, &name).await? {
        let spec_of = |labels: &HashMap<String, String>| labels.get(LABEL_SPEC).cloned();
        let made_from = container.config.as_ref().and_then(|c| c.labels.as_ref()).and_then(spec_of);
        let former = identity::former(spec, image_id, network.bridge_index);
        if made_from == spec_of(&labels) || made_from == Some(former) {
            return Ok(state(&container));
        }
        stop(docker, &name).await?;
    }
    let options = CreateContainerOptionsBuilder::default().name(&name).build();
    let body = spec.create_body(&network.name, labels);
    docker
        .create_container(Some(options), body)
        .await
        .map_err(WorkloadError::engine("make the container"))?;
    Ok(Found::Created)
}

pub(super) async fn start(docker: &Docker, name: &str) -> Result<(), WorkloadError> {
    docker.start_container(name, None).await.map_err(WorkloadError::engine("start the container"))
}

/// Returns the exit code when the container has stopped, and reports its health check's state meanwhile. As with Docker
/// and on nodes that boot an image, the state is only reported and has no other effect.
pub(super) async fn watch(
    docker: &Docker,
    name: &str,
    mut tell: impl FnMut(Health),
) -> Result<i64, WorkloadError> {
    let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
    let mut waiting = std::pin::pin!(docker.wait_container(name, Some(options)));
    loop {
        tokio::select! {
            ended = waiting.next() => match ended {
                // bollard returns every exit code but 0 as an error.
                Some(Ok(_) | Err(DockerError::DockerContainerWaitError { .. })) | None => break,
                Some(Err(e)) => return Err(WorkloadError::engine("watch the container")(e)),
            },
            () = tokio::time::sleep(LOOK_EVERY) => {
                let container = inspect(docker, name).await?;
                container.as_ref().and_then(health).map(&mut tell);
            }
        }
    }
    match inspect(docker, name).await?.as_ref().map(state) {
        Some(Found::Exited(code)) => Ok(code),
        // Somebody else removed it: it is created again, as after a failure.
        None | Some(Found::Created | Found::Running) => {
            Err(WorkloadError::engine("watch the container")(DockerError::DockerResponseServerError {
                status_code: 404,
                message: format!("{name} is gone"),
            }))
        }
    }
}

/// The state of the image's health check. `None` if it has none.
fn health(container: &ContainerInspectResponse) -> Option<Health> {
    match container.state.as_ref()?.health.as_ref()?.status? {
        HealthStatusEnum::STARTING => Some(Health::Starting),
        HealthStatusEnum::HEALTHY => Some(Health::Healthy),
        HealthStatusEnum::UNHEALTHY => Some(Health::Unhealthy),
        HealthStatusEnum::NONE | HealthStatusEnum::EMPTY => None,
    }
}

/// Stops and removes a container, by name or ID; a missing one is not an error.
pub(super) async fn stop(docker: &Docker, name: &str) -> Result<(), WorkloadError> {
    let options = StopContainerOptionsBuilder::default().t(STOP_SECONDS).build();
    match docker.stop_container(name, Some(options)).await {
        Err(e) if !matches!(status(&e), Some(304 | 404)) => {
            return Err(WorkloadError::engine("stop the container")(e));
        }
        _ => {}
    }
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    match docker.remove_container(name, Some(options)).await {
        Err(e) if status(&e) != Some(404) => Err(WorkloadError::engine("remove the container")(e)),
        _ => Ok(()),
    }
}

async fn inspect(docker: &Docker, name: &str) -> Result<Option<ContainerInspectResponse>, WorkloadError> {
    match docker.inspect_container(name, None).await {
        Ok(container) => Ok(Some(container)),
        Err(e) if status(&e) == Some(404) => Ok(None),
        Err(e) => Err(WorkloadError::engine("look at the container")(e)),
    }
}

fn state(container: &ContainerInspectResponse) -> Found {
    let state = container.state.as_ref();
    if state.and_then(|s| s.running) == Some(true) {
        return Found::Running;
    }
    // A container that never ran has Go's zero time as its start.
    let started = state.and_then(|s| s.started_at.as_deref()).is_some_and(|t| !t.starts_with("0001-"));
    if started { Found::Exited(state.and_then(|s| s.exit_code).unwrap_or_default()) } else { Found::Created }
}

async fn bridge_networks(docker: &Docker) -> Result<Vec<Network>, WorkloadError> {
    let filters = HashMap::from([("driver", vec!["bridge"])]);
    let options = ListNetworksOptionsBuilder::default().filters(&filters).build();
    docker.list_networks(Some(options)).await.map_err(WorkloadError::engine("list networks"))
}

/// The bridge of an engine's network. Its default name is `br-` and the beginning of the ID.
fn bridge_of(network: &Network) -> Option<String> {
    let named = network.options.as_ref().and_then(|options| options.get(BRIDGE_NAME)).cloned();
    named.or_else(|| Some(format!("br-{}", network.id.as_ref()?.get(..12)?)))
}

fn bridge_index(spec: &NetworkSpec) -> Result<u32, WorkloadError> {
    nix::net::if_::if_nametoindex(spec.bridge.as_str())
        .map_err(|source| WorkloadError::NoBridge { bridge: spec.bridge.clone(), source })
}

fn gateway_is(network: &Network, spec: &NetworkSpec) -> bool {
    let configs = network.ipam.as_ref().and_then(|ipam| ipam.config.as_ref());
    configs.into_iter().flatten().any(|config| {
        config.subnet == Some(spec.address.trunc().to_string())
            && config.gateway == Some(spec.address.addr().to_string())
    })
}

fn is_ours(network: &Network, owner: &str) -> bool {
    network.labels.as_ref().and_then(|labels| labels.get(LABEL_OWNER)).is_some_and(|o| o == owner)
}

fn owner_labels(owner: &str) -> HashMap<String, String> {
    HashMap::from([(LABEL.to_owned(), "1".to_owned()), (LABEL_OWNER.to_owned(), owner.to_owned())])
}

fn network_name(owner: &str) -> String {
    format!("bridgehead-{owner}")
}

fn container_port(port: &PublishedPort) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    format!("{}/{protocol}", port.container)
}

fn status(error: &DockerError) -> Option<u16> {
    match error {
        DockerError::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}
