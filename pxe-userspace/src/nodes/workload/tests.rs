use std::path::Path;
use std::process::Command;

use bollard::Docker;
use jiff::Timestamp;

use super::*;
use crate::config::{self, Protocol, PublishedPort, Workload};
use crate::nodes::engine::testing::{BRIDGE, with_engine};

fn config(state_dir: &Path, workloads: Vec<Workload>) -> Config {
    Config {
        state_dir: state_dir.to_owned(),
        network: config::Network {
            bridge: BRIDGE.into(),
            address: "10.99.0.1/24".parse().unwrap(),
            ports: Vec::new(),
            fast_path: config::FastPath::Off,
            ceiling: None,
        },
        dhcp: config::Dhcp {
            mode: config::DhcpMode::Authoritative,
            range: Some(([10, 99, 0, 200].into(), [10, 99, 0, 253].into())),
            lease_time: Duration::from_secs(3600),
            renewal_time: None,
            rebinding_time: None,
            router: Some([10, 99, 0, 254].into()),
            dns: Vec::new(),
            domain: None,
            search: Vec::new(),
            mtu: None,
            ntp: Vec::new(),
            options: Default::default(),
            unknown: config::Unknown::Boot,
        },
        files_root: None,
        http: config::Http { port: 80, tls_port: 7443 },
        api: config::Api { socket: config::API_SOCKET.into(), listen: None, names: Vec::new() },
        boot: config::Boot { ipxe: config::IpxeLoader::Grub, assets: "/nonexistent".into() },
        docker: config::Docker { socket: None },
        carousel: crate::config::Carousel::default(),
        default_profile: None,
        profiles: Vec::new(),
        storage: Vec::new(),
        nodes: vec![config::Node {
            address: Some([10, 99, 0, 199].into()),
            ..config::Node::new("n1", pxe_common::Mac([2, 0, 0, 0, 0, 1]))
        }]
        .into(),
        rules: Vec::new(),
        workloads,
    }
}

/// The nodes' engines, of which there are none.
fn fleet(config: &Config) -> Fleet {
    let store = crate::store::Store::open(&config.state_dir.join("bridgehead.db")).unwrap();
    let machines = crate::machines::Machines::new(config);
    let timeline = crate::machines::timeline::Timeline::open(store.clone(), machines.clone()).unwrap();
    Fleet::open(&config.state_dir, store, machines, timeline).unwrap()
}

fn workload(name: &str, script: &str, restart: Restart) -> Workload {
    Workload {
        name: name.into(),
        image: "busybox:test".into(),
        command: vec!["/bin/busybox".into(), "sh".into(), "-c".into(), script.into()],
        environment: [("GREETING".to_owned(), "hello".to_owned())].into(),
        ports: Vec::new(),
        address: None,
        restart,
        volumes: Vec::new(),
        on: None,
    }
}

#[test]
fn an_address_is_neither_leased_nor_promised() {
    let mut two = workload("two", "", Restart::Never);
    two.address = Some([10, 99, 0, 198].into());
    let mut config = config(Path::new("/s"), vec![workload("one", "", Restart::Never), two]);
    let assigned = address::assign(&config, &BTreeMap::new());
    // .254 is the router, .200 to .253 are leased, .199 is a machine's, .198 the other workload's.
    assert_eq!(assigned["one"], Some([10, 99, 0, 197].into()));
    assert_eq!(assigned["two"], Some([10, 99, 0, 198].into()));

    // A new workload before it does not take a running one's address.
    config.workloads.insert(0, workload("new", "", Restart::Never));
    let current = [("one".to_owned(), [10, 99, 0, 197].into())].into();
    let assigned = address::assign(&config, &current);
    assert_eq!(assigned["one"], Some([10, 99, 0, 197].into()));
    assert_eq!(assigned["new"], Some([10, 99, 0, 196].into()));

    config.dhcp.range = Some(([10, 99, 0, 2].into(), [10, 99, 0, 254].into()));
    assert_eq!(address::assign(&config, &current)["one"], None, "it is leased to others now");
}

#[test]
fn policies_and_pauses() {
    assert!(restarts_after(Restart::Always, 0));
    assert!(!restarts_after(Restart::OnFailure, 0) && restarts_after(Restart::OnFailure, 1));
    assert!(!restarts_after(Restart::Never, 1));
    let mut pauses = PAUSES;
    let seconds: Vec<_> = (0..8).map(|_| pauses.pause().as_secs()).collect();
    assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
}

#[test]
fn statuses_are_kebab_case_json() {
    let status = WorkloadStatus {
        name: "w".into(),
        node: Some("n1".into()),
        health: Some(Health::Healthy),
        image: "i".into(),
        state: WorkloadState::Waiting,
        address: None,
        ports: vec!["80:8080/tcp".into()],
        restarts: 2,
        exit_code: Some(1),
        since: Timestamp::UNIX_EPOCH,
        error: None,
    };
    assert_eq!(
        serde_json::to_value(status).unwrap(),
        serde_json::json!({"name": "w", "node": "n1", "health": "healthy", "image": "i", "state": "waiting",
            "ports": ["80:8080/tcp"], "restarts": 2, "exit-code": 1,
            "since": "1970-01-01T00:00:00.000000Z"})
    );
}

#[tokio::test]
async fn without_an_engine_the_workload_has_an_error_and_the_daemon_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::new(&config::Docker { socket: Some(dir.path().join("none")) });
    let config = config(dir.path(), vec![workload("w", "", Restart::Always)]);
    let fleet = fleet(&config);
    let (_configured, config) = watch::channel(Arc::new(config));
    let workloads = Workloads::start(config, engine, fleet).await;
    let status = reached(&workloads, "w", |s| s.state == WorkloadState::Waiting).await;
    assert!(status.error.unwrap().contains("no Docker engine answers at"));
    workloads.stop().await;
    assert!(workloads.list().is_empty());
}

#[test]
fn workloads_run_on_the_bridge_of_a_real_engine() {
    with_engine(async |engine, dir| {
        let docker = engine.connect().await.unwrap();
        load_busybox(&docker).await;
        let mut web = workload(
            "web",
            "mkdir -p /www; echo $GREETING > /www/index.html; exec /bin/busybox httpd -f -p 80 -h /www",
            Restart::Always,
        );
        web.ports = vec![PublishedPort { host: 8080, container: 80, protocol: Protocol::Tcp }];
        let mut missing = workload("missing", "", Restart::Always);
        missing.image = "no-such-image:1".into();
        let (configured, config) = watch::channel(Arc::new(config(
            dir,
            vec![
                web,
                missing,
                workload("once", "exit 3", Restart::Never),
                workload("again", "exit 1", Restart::OnFailure),
            ],
        )));
        let fleet_of = fleet(&config.borrow());
        let workloads = Workloads::start(config, engine.clone(), fleet_of).await;

        let web = reached(&workloads, "web", |s| s.state == WorkloadState::Running).await;
        assert_eq!(web.address, Some([10, 99, 0, 198].into()));
        assert_eq!(get("10.99.0.198:80").await, "hello\n");
        assert_eq!(get("10.99.0.1:8080").await, "hello\n", "the published port");
        let missing = reached(&workloads, "missing", |s| s.error.is_some()).await;
        assert!(missing.error.unwrap().contains("docker pull no-such-image:1"));
        let once = reached(&workloads, "once", |s| s.state == WorkloadState::Exited).await;
        assert_eq!((once.exit_code, once.restarts), (Some(3), 0));
        reached(&workloads, "again", |s| s.restarts >= 2).await;

        // A killed daemon stops nothing; the next one adopts what it declares and finds unchanged, and removes the
        // rest.
        let id = container_id(&docker, &workloads, "web").await;
        for running in std::mem::take(&mut *workloads.0.running.lock().await).into_values() {
            running.task.abort();
        }
        let mut fewer = Config::clone(&configured.borrow());
        fewer.workloads.truncate(1);
        let (configured, config) = watch::channel(Arc::new(fewer.clone()));
        let workloads = Workloads::start(config, engine.clone(), fleet(&fewer)).await;
        reached(&workloads, "web", |s| s.state == WorkloadState::Running).await;
        assert_eq!(container_id(&docker, &workloads, "web").await, id);
        until(async || count(&docker).await == 1).await;

        // After a reload, a changed workload is created anew.
        let mut changed = fewer.clone();
        changed.workloads[0].environment.insert("GREETING".into(), "goodbye".into());
        configured.send_replace(Arc::new(changed));
        workloads.apply().await;
        reached(&workloads, "web", |s| s.state == WorkloadState::Running).await;
        assert_eq!(get("10.99.0.198:80").await, "goodbye\n");

        workloads.stop().await;
        assert_eq!(left(&docker).await, Vec::<String>::new());

        // The same when a reload removes the last one.
        configured.send_replace(Arc::new(fewer.clone()));
        workloads.apply().await;
        reached(&workloads, "web", |s| s.state == WorkloadState::Running).await;
        fewer.workloads.clear();
        configured.send_replace(Arc::new(fewer));
        workloads.apply().await;
        assert!(workloads.list().is_empty());
        assert_eq!(left(&docker).await, Vec::<String>::new());
        // The bridge is still ours, with its address.
        let shown = Command::new("ip").args(["-4", "address", "show", BRIDGE]).output().unwrap();
        assert!(String::from_utf8_lossy(&shown.stdout).contains("10.99.0.1/24"));
    });
}

async fn reached(workloads: &Workloads, name: &str, is: impl Fn(&WorkloadStatus) -> bool) -> WorkloadStatus {
    let mut found = None;
    until(async || {
        found = workloads.list().into_iter().find(|s| s.name == name && is(s));
        found.is_some() || {
            let list = workloads.list();
            list.iter().any(|s| s.name == name && s.state == WorkloadState::Stopping)
        }
    })
    .await;
    found.unwrap_or_else(|| panic!("{name}: {:?}", workloads.list()))
}

async fn until(mut done: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !done().await {
        assert!(start.elapsed() < Duration::from_secs(60), "it did not come to that in a minute");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The body of an HTTP server's answer. The server may not listen yet.
async fn get(address: &'static str) -> String {
    let mut body = String::new();
    until(async || {
        let output =
            Command::new("curl").args(["-s", "--max-time", "5", &format!("http://{address}/")]).output();
        body = String::from_utf8(output.expect("curl is installed").stdout).unwrap();
        !body.is_empty()
    })
    .await;
    body
}

async fn container_id(docker: &Docker, workloads: &Workloads, name: &str) -> Option<String> {
    let name = format!("bridgehead-{}-{name}", workloads.0.owner);
    docker.inspect_container(&name, None).await.unwrap().id
}

async fn count(docker: &Docker) -> usize {
    let all = bollard::query_parameters::ListContainersOptionsBuilder::default().all(true).build();
    docker.list_containers(Some(all)).await.unwrap().len()
}

/// What we created in the engine and is still there.
async fn left(docker: &Docker) -> Vec<String> {
    let mut names: Vec<_> =
        docker.list_networks(None).await.unwrap().into_iter().filter_map(|n| n.name).collect();
    names.retain(|name| name.starts_with("bridgehead"));
    names.extend((0..count(docker).await).map(|_| "a container".into()));
    names
}

async fn load_busybox(docker: &Docker) {
    use futures_util::TryStreamExt as _;
    let saved = crate::provision::image::testing::saved_busybox("busybox:test");
    let options = bollard::query_parameters::ImportImageOptionsBuilder::default().build();
    let loaded = docker.import_image(options, bollard::body_full(saved.into()), None);
    loaded.try_collect::<Vec<_>>().await.unwrap();
}
