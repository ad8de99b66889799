//! Tests against the kernel, verified with `tc`.

use std::net::{TcpListener, TcpStream, UdpSocket};

use super::tests::{HTTP, in_namespace, ip, network, run};
use super::*;

fn tc(arguments: &str) -> String {
    let output =
        std::process::Command::new("tc").args(arguments.split_whitespace()).output().expect("tc runs");
    assert!(output.status.success(), "tc {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("tc prints text")
}

/// A port's queues as text, without counters.
fn queues(port: &str) -> String {
    let parts = ["qdisc", "class", "filter"];
    parts.map(|part| tc(&format!("{part} show dev {port}"))).join("--\n")
}

fn under(ceiling: u64, ports: &[&str]) -> Network {
    Network { ceiling: Some(ceiling), ..network("pxe0", ports) }
}

/// Frames that a class has sent.
fn frames(port: &str, class: &str) -> u64 {
    let all = tc(&format!("-s class show dev {port}"));
    let of_class = all.split("class htb ").find(|c| c.starts_with(class)).unwrap_or_else(|| panic!("{all}"));
    let words: Vec<&str> = of_class.split_whitespace().collect();
    let at = words.iter().position(|w| *w == "bytes").expect("a counter");
    words[at + 1].parse().expect("a number")
}

#[test]
fn boots_are_held_under_the_ceiling_and_all_others_are_not() {
    in_namespace(|| {
        let state = tempfile::tempdir().unwrap();
        // The far end is a host of its own, so that frames really leave.
        ip("link add eth1 type veth peer name peer1");
        ip("link set peer1 up");
        ip("link set eth1 up");
        let before = queues("eth1");
        run(async {
            let bridge = Bridge::set_up(&under(100_000_000, &["eth1"]), &HTTP, state.path()).await.unwrap();
            assert_eq!(bridge.ports().now()[0].unshaped, None);
            let classes = tc("class show dev eth1");
            for (class, words) in [
                ("b00d:1 root", "rate 800Mbit ceil 800Mbit"),
                ("b00d:10 ", "rate 400Mbit ceil 800Mbit"),
                ("b00d:11 ", "rate 400Mbit ceil 800Mbit"),
                ("b00d:20 ", "rate 100Gbit ceil 100Gbit"),
            ] {
                let line = classes
                    .lines()
                    .find(|l| l.contains(&format!("htb {class}")))
                    .unwrap_or_else(|| panic!("{classes}"));
                assert!(line.contains(words), "{line}");
            }
            assert!(tc("qdisc show dev eth1").contains("limit 16384p"), "{}", queues("eth1"));

            ip("neigh add 10.77.0.9 lladdr 02:00:00:00:00:09 dev pxe0");
            ip("addr add 10.77.0.2/24 dev pxe0");
            let send = |from: &str, n: usize| {
                let socket = UdpSocket::bind((from, 0)).unwrap();
                (0..n).for_each(|_| assert_eq!(socket.send_to(&[0; 1000], "10.77.0.9:2000").unwrap(), 1000));
            };
            let of = |class| frames("eth1", class);
            let count = || [of("b00d:10"), of("b00d:11"), of("b00d:20")];
            let at_first = count();
            let sent = || {
                let now = count();
                [now[0] - at_first[0], now[1] - at_first[1], now[2] - at_first[2]]
            };
            send("10.77.0.1", 5);
            assert_eq!(sent()[..2], [5, 0], "TFTP's data: {}", tc("-s class show dev eth1"));
            // The host's other addresses are not the appliance's.
            let others = sent()[2];
            send("10.77.0.2", 7);
            assert_eq!(sent()[..2], [5, 0]);
            assert!(sent()[2] >= others + 7);
            bridge.restore().await.unwrap();
        });
        assert_eq!(queues("eth1"), before);
        ip("link del eth1");
    });
}

#[test]
fn http_has_a_class_of_its_own() {
    in_namespace(|| {
        let state = tempfile::tempdir().unwrap();
        ip("netns add far");
        ip("link add eth1 type veth peer name eth0 netns far");
        for command in ["-n far addr add 10.77.0.9/24 dev eth0", "-n far link set eth0 up"] {
            ip(command);
        }
        run(async {
            let bridge = Bridge::set_up(&under(10_000_000, &["eth1"]), &HTTP, state.path()).await.unwrap();
            for (port, class) in
                [(HTTP.port, "b00d:11"), (HTTP.tls_port, "b00d:11"), (HTTP.port + 1, "b00d:20")]
            {
                let before = frames("eth1", class);
                let listener = TcpListener::bind(("10.77.0.1", port)).unwrap();
                // On a thread in the far host's namespace.
                let client = std::thread::spawn(move || {
                    let far = std::fs::File::open("/run/netns/far").unwrap();
                    nix::sched::setns(far, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                    let mut stream = TcpStream::connect(("10.77.0.1", port)).unwrap();
                    std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
                });
                let (mut stream, _) = listener.accept().unwrap();
                std::io::Write::write_all(&mut stream, &vec![0; 1 << 20]).unwrap();
                drop(stream);
                assert_eq!(client.join().unwrap(), 1 << 20);
                assert!(frames("eth1", class) > before + 10, "{}", tc("-s class show dev eth1"));
            }
            bridge.restore().await.unwrap();
        });
        ip("netns del far");
    });
}

#[test]
fn what_a_killed_daemon_left_is_renewed_or_taken_off() {
    in_namespace(|| {
        let state = tempfile::tempdir().unwrap();
        ip("link add eth1 type veth peer name peer1");
        ip("link set peer1 up");
        ip("link set eth1 up");
        let before = queues("eth1");
        run(async {
            std::mem::forget(Bridge::set_up(&under(1_000_000, &["eth1"]), &HTTP, state.path()).await.unwrap())
        });
        run(async {
            std::mem::forget(
                Bridge::set_up(&under(2_000_000, &["eth1"]), &HTTP, state.path()).await.unwrap(),
            );
        });
        assert!(tc("class show dev eth1").contains("ceil 16Mbit"), "{}", queues("eth1"));
        run(async {
            let bridge = Bridge::set_up(&network("pxe0", &["eth1"]), &HTTP, state.path()).await.unwrap();
            assert!(!queues("eth1").contains("htb"), "{}", queues("eth1"));
            bridge.restore().await.unwrap();
        });
        assert_eq!(queues("eth1"), before);
    });
}

#[test]
fn a_port_comes_and_goes_and_one_with_queues_of_its_own_is_left_alone() {
    in_namespace(|| {
        let state = tempfile::tempdir().unwrap();
        for n in 1..=3 {
            ip(&format!("link add eth{n} type veth peer name peer{n}"));
        }
        tc("qdisc add dev eth2 root tbf rate 1mbit burst 10k latency 10ms");
        let theirs = queues("eth2");
        run(async {
            let mut bridge =
                Bridge::set_up(&under(1_000_000, &["eth1", "eth2"]), &HTTP, state.path()).await.unwrap();
            let mut events = bridge.events();
            let ports = bridge.ports().now();
            let why = ports.iter().find(|p| p.name == "eth2").and_then(|p| p.unshaped.clone());
            assert!(why.as_ref().is_some_and(|w| w.contains("tbf")), "{why:?}");
            assert_eq!(queues("eth2"), theirs);
            ip("link set eth3 master pxe0");
            let event = async {
                while let Some(event) = events.recv().await {
                    let (PortEvent::Added(port) | PortEvent::Removed(port)) = &event;
                    if port.name == "eth3" {
                        return event;
                    }
                }
                panic!("no event")
            };
            assert!(matches!(event.await, PortEvent::Added(_)));
            assert!(queues("eth3").contains("htb b00d:"), "{}", queues("eth3"));
            ip("link set eth3 nomaster");
            assert!(matches!(events.recv().await, Some(PortEvent::Removed(_))));
            assert!(!queues("eth3").contains("htb"), "{}", queues("eth3"));
            bridge.restore().await.unwrap();
        });
        assert_eq!(queues("eth2"), theirs);
    });
}
