//! Tests against the kernel, each in a network namespace of its own, verified with `ip`.

use std::process::Command;
use std::time::Duration;

use super::*;
use crate::config::FastPath;

pub(crate) const HTTP: Http = Http { port: 8080, tls_port: 8443 };

/// Runs `test` on a thread in a new network namespace, which vanishes with the thread.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: making a network namespace takes root");
        return;
    }
    let done = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a namespace of its own");
        test();
    })
    .join();
    if let Err(panic) = done {
        std::panic::resume_unwind(panic);
    }
}

pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip runs");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("ip prints text")
}

/// Everything that set-up may change, as text; without indices and carrier states of veths.
fn picture() -> String {
    let links = ip("-br link");
    let links: Vec<String> = links
        .lines()
        .map(|l| {
            let words: Vec<&str> = l.split_whitespace().collect();
            let up = words.last().is_some_and(|flags| flags.contains(",UP"));
            format!("{} {} up={up}", words[0], words[2])
        })
        .collect();
    let words = ip("-o link");
    let words: Vec<&str> = words.split_whitespace().collect();
    let masters: Vec<&[&str]> = words.windows(2).filter(|w| w[0] == "master").collect();
    // Without the operational state in the second column, which changes with a delay.
    let addresses = ip("-4 -br addr");
    let addresses: Vec<Vec<&str>> = addresses
        .lines()
        .map(|l| l.split_whitespace().enumerate().filter(|(i, _)| *i != 1).map(|(_, w)| w).collect())
        .collect();
    format!("{}\n{masters:?}\n{addresses:?}", links.join("\n"))
}

pub(crate) fn network(bridge: &str, ports: &[&str]) -> Network {
    Network {
        bridge: bridge.into(),
        address: "10.77.0.1/24".parse().expect("a network"),
        ports: ports.iter().map(|p| (*p).to_owned()).collect(),
        fast_path: FastPath::Off,
        ceiling: None,
    }
}

pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

async fn next(events: &mut mpsc::UnboundedReceiver<PortEvent>) -> PortEvent {
    tokio::time::timeout(Duration::from_secs(5), events.recv()).await.expect("in time").expect("an event")
}

fn added(event: &PortEvent) -> &str {
    match event {
        PortEvent::Added(port) => &port.name,
        PortEvent::Removed(port) => panic!("{} was removed", port.name),
    }
}

fn removed(event: &PortEvent) -> &str {
    match event {
        PortEvent::Removed(port) => &port.name,
        PortEvent::Added(port) => panic!("{} was added", port.name),
    }
}

#[test]
fn a_bridge_is_made_and_given_back() {
    in_namespace(|| {
        let state = tempfile::tempdir().unwrap();
        ip("link add eth1 type veth peer name peer1");
        let before = picture();
        run(async {
            let mut bridge = Bridge::set_up(&network("pxe0", &["eth1"]), &HTTP, state.path()).await.unwrap();
            let details = ip("-d link show pxe0");
            for word in
                ["UP", "stp_state 0", "forward_delay 0", "mcast_snooping 0", &bridge.info().mac.to_string()]
            {
                assert!(details.contains(word), "{word} not in {details}");
            }
            assert!(ip("-4 addr show pxe0").contains("inet 10.77.0.1/24"));
            assert!(ip("link show eth1").contains("master pxe0"));
            assert!(ip("link show eth1").contains(",UP"));
            assert_eq!(bridge.ports().now().len(), 1);
            assert_eq!(added(&next(&mut bridge.events()).await), "eth1");
            bridge.restore().await.unwrap();
        });
        assert_eq!(picture(), before);
        assert!(!state.path().join("network.json").exists());
    });
}

#[test]
fn an_adopted_bridge_keeps_what_was_there() {
    in_namespace(|| {
        let state = tempfile::tempdir().unwrap();
        for command in [
            "link add br0 type bridge",
            "link add eth1 type veth peer name peer1",
            "link add other type veth peer name peer2",
            "link set other master br0 up",
            "link set br0 up",
            "addr add 192.0.2.1/24 dev br0",
        ] {
            ip(command);
        }
        let before = picture();
        run(async {
            let bridge =
                Bridge::set_up(&network("br0", &["eth1", "other"]), &HTTP, state.path()).await.unwrap();
            assert_eq!(bridge.ports().now().len(), 2);
            assert!(ip("-4 addr show br0").contains("inet 10.77.0.1/24"));
            drop(bridge);
        });
        assert_eq!(picture(), before);
    });
}

/// BIOS machines give up before such a port forwards.
#[test]
fn spanning_tree_on_an_adopted_bridge_is_told_until_it_is_off() {
    in_namespace(|| {
        let state = tempfile::tempdir().unwrap();
        ip("link add br0 type bridge stp_state 1 forward_delay 1500");
        ip("link add eth1 type veth peer name peer1");
        run(async {
            let bridge = Bridge::set_up(&network("br0", &["eth1"]), &HTTP, state.path()).await.unwrap();
            assert_eq!(bridge.ports().forwards_after(), Some(30));
            ip("link set br0 type bridge stp_state 0");
            let off = async {
                while bridge.ports().forwards_after().is_some() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), off).await.expect("it is noticed");
            bridge.restore().await.unwrap();
            // Ours has none.
            let bridge = Bridge::set_up(&network("pxe0", &["eth1"]), &HTTP, state.path()).await.unwrap();
            assert_eq!(bridge.ports().forwards_after(), None);
            bridge.restore().await.unwrap();
        });
    });
}

#[test]
fn ports_come_and_go() {
    in_namespace(|| {
        let state = tempfile::tempdir().unwrap();
        ip("link add eth1 type veth peer name peer1");
        run(async {
            let mut bridge = Bridge::set_up(&network("pxe0", &["eth1"]), &HTTP, state.path()).await.unwrap();
            let mut events = bridge.events();
            assert_eq!(added(&next(&mut events).await), "eth1");
            ip("link add veth7 type veth peer name peer7");
            ip("link set veth7 master pxe0");
            assert_eq!(added(&next(&mut events).await), "veth7");
            ip("link set veth7 nomaster");
            assert_eq!(removed(&next(&mut events).await), "veth7");
            ip("link del eth1");
            assert_eq!(removed(&next(&mut events).await), "eth1");
            ip("link add eth1 type veth peer name peer1");
            assert_eq!(added(&next(&mut events).await), "eth1");
            assert!(ip("link show eth1").contains("master pxe0"));
            bridge.restore().await.unwrap();
        });
        assert!(!ip("link show eth1").contains("master"));
        assert!(!ip("link show eth1").contains(",UP"));
    });
}

/// A run that is killed: no destructor runs, and its netlink sockets close.
fn killed(network: &Network, state: &Path) {
    run(async { std::mem::forget(Bridge::set_up(network, &HTTP, state).await.unwrap()) });
}

#[test]
fn the_next_start_takes_over_or_undoes_what_a_killed_one_left() {
    in_namespace(|| {
        let state = tempfile::tempdir().unwrap();
        ip("link add eth1 type veth peer name peer1");
        ip("link add eth2 type veth peer name peer2");
        let before = picture();
        killed(&network("pxe0", &["eth1", "eth2"]), state.path());
        let index = ip("-o link show pxe0").split(':').next().map(str::to_owned);
        // The same bridge with one port less: the bridge stays as it is.
        killed(&network("pxe0", &["eth1"]), state.path());
        assert_eq!(ip("-o link show pxe0").split(':').next().map(str::to_owned), index);
        assert!(ip("link show eth1").contains("master pxe0"));
        assert!(!ip("link show eth2").contains("master"));
        // Another bridge: the first one goes.
        killed(&network("pxe1", &["eth1"]), state.path());
        assert!(!ip("link").contains("pxe0"));
        run(async {
            let bridge = Bridge::set_up(&network("pxe1", &["eth1"]), &HTTP, state.path()).await.unwrap();
            bridge.restore().await.unwrap();
        });
        assert_eq!(picture(), before);
    });
}

#[test]
fn a_journal_of_another_namespace_undoes_nothing() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().to_owned();
    in_namespace(move || {
        ip("link add eth1 type veth peer name peer1");
        killed(&network("pxe0", &["eth1"]), &path);
    });
    in_namespace(move || {
        ip("link add pxe0 type bridge");
        let before = picture();
        run(async {
            Bridge::set_up(&network("pxe1", &[]), &HTTP, state.path())
                .await
                .unwrap()
                .restore()
                .await
                .unwrap();
        });
        assert_eq!(picture(), before);
    });
}

#[test]
fn what_can_not_be_is_refused_and_leaves_nothing() {
    in_namespace(|| {
        let state = tempfile::tempdir().unwrap();
        for command in [
            "link add eth1 type veth peer name peer1",
            "link add eth2 type veth peer name peer2",
            "link add br9 type bridge",
            "link add br8 type bridge",
            "addr add 10.77.0.1/16 dev br8",
            "link set eth2 master br9",
        ] {
            ip(command);
        }
        let before = picture();
        for (bridge, ports, words) in [
            ("pxe0", ["eth1", "eth3"], "no interface is called `eth3`"),
            ("pxe0", ["eth1", "eth2"], "`eth2` is a port of `br9` already"),
            ("peer1", ["eth1", "eth1"], "`peer1` exists and is no bridge"),
            ("br8", ["eth1", "eth1"], "`br8` has 10.77.0.1/16"),
            // A veth's peer can be enslaved, but a bridge can't: fails after the bridge was made.
            ("pxe0", ["eth1", "br9"], "enslaving `br9`"),
        ] {
            let error = run(Bridge::set_up(&network(bridge, &ports), &HTTP, state.path()))
                .err()
                .expect(words)
                .to_string();
            assert!(error.contains(words), "{words} not in {error}");
            assert_eq!(picture(), before, "{words}");
            assert!(!state.path().join("network.json").exists());
        }
    });
}
