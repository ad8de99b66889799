//! `curl` and `openssl` play the node, a thief, and an eavesdropper.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use pxe_common::Mac;
use serde_json::json;

use crate::api::tests::{Answer, Daemon, MAC, curl, curl_with};
use crate::base::text::hex;
use crate::machines::timeline::{Event, Stage};
use crate::nodes::trust::Scope;
use crate::store::Store;

const REPORT: &str = r#"{"mac": "52:54:00:77:00:01", "stage": "stage1"}"#;

/// A key and a request for its certificate, made by openssl.
struct Node<'a> {
    daemon: &'a Daemon,
    name: &'static str,
    request: Vec<u8>,
}

impl<'a> Node<'a> {
    fn new(daemon: &'a Daemon, name: &'static str) -> Self {
        let made = Command::new("openssl")
            .args([
                "req",
                "-new",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-subj",
                "/",
            ])
            .args(["-outform", "DER", "-keyout"])
            .arg(daemon.file(&format!("{name}.key")))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self { daemon, name, request: made.stdout }
    }

    async fn trade(&self, mac: Mac, token: &str, from: &str) -> Answer {
        let body =
            json!({ "mac": mac.to_string(), "token": token, "request": hex(&self.request) }).to_string();
        let answer = self.post(&["--interface", from], "/node/session", &body).await;
        if answer.status == 200 {
            let certificate = answer.json()["certificate"].as_str().unwrap().to_owned();
            std::fs::write(self.daemon.file(&format!("{}.pem", self.name)), certificate).unwrap();
        }
        answer
    }

    /// With the certificate that it got.
    async fn says(&self, path: &str, body: &str) -> Answer {
        let (key, pem) = (format!("{}.key", self.name), format!("{}.pem", self.name));
        let (key, pem) = (self.daemon.file(&key), self.daemon.file(&pem));
        self.post(&["--key", key.to_str().unwrap(), "--cert", pem.to_str().unwrap()], path, body).await
    }

    async fn post(&self, arguments: &[&str], path: &str, body: &str) -> Answer {
        let ca = self.daemon.file("ca.pem");
        let json = ["--cacert", ca.to_str().unwrap(), "-H", "Content-Type: application/json", "-d", body];
        curl_with("https", self.daemon.tls, path, &[arguments, &json].concat()).await
    }
}

async fn plain(to: SocketAddr, path: &str, body: &str) -> Answer {
    curl(to, path, &["-H", "Content-Type: application/json", "-d", body]).await
}

fn issue(daemon: &Daemon, keys: Option<Scope>) -> String {
    daemon.trust.restarted(MAC);
    daemon.trust.issue(MAC, Ipv4Addr::LOCALHOST, keys).unwrap().to_string()
}

fn warnings(daemon: &Daemon) -> Vec<Event> {
    daemon.timeline.flush();
    let events = daemon.timeline.since(0, 1000).unwrap();
    events.into_iter().filter(|event| event.stage == Stage::Warning).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_with_a_session_speaks_by_it_alone() {
    let daemon = Daemon::start().await;
    let node = Node::new(&daemon, "node");
    assert_eq!(plain(daemon.boot, "/node/report", REPORT).await.status, 204, "a boot without a token");
    let token = issue(&daemon, None);
    let body = json!({ "mac": MAC.to_string(), "token": token, "request": hex(&node.request) }).to_string();
    assert_eq!(plain(daemon.boot, "/node/session", &body).await.status, 403, "in clear text");
    assert_eq!(node.trade(MAC, &token, "127.0.0.1").await.status, 200);
    assert_eq!(node.says("/node/report", REPORT).await.status, 204);
    let again = node.trade(MAC, &token, "127.0.0.1").await;
    assert_eq!(again.status, 200, "the answer was lost");
    assert_eq!(again.header("cache-control"), Some("no-store"));

    let refused = plain(daemon.boot, "/node/report", REPORT).await;
    assert_eq!(refused.status, 403);
    let without = node.post(&[], "/node/report", REPORT).await;
    assert_eq!(without.status, 403, "by TLS, without the certificate");
    for path in ["/node/held", "/node/console"] {
        let lines = json!({ "mac": MAC.to_string(), "boot": "b", "first": 0, "uptime": 1.0, "lines": [] });
        assert_eq!(plain(daemon.boot, path, &lines.to_string()).await.status, 403, "{path}");
    }
    assert_eq!(warnings(&daemon), []);

    // The next boot.
    issue(&daemon, None);
    assert_eq!(node.says("/node/report", REPORT).await.status, 403, "the session of the boot before");
    assert_eq!(plain(daemon.boot, "/node/report", REPORT).await.status, 204, "it could not trade its token");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_token_is_refused_and_told_of() {
    let daemon = Daemon::start().await;
    let (node, thief) = (Node::new(&daemon, "node"), Node::new(&daemon, "thief"));
    let other = Mac([0x52, 0x54, 0, 0x77, 0, 2]);

    let used = issue(&daemon, None);
    assert_eq!(node.trade(MAC, &used, "127.0.0.1").await.status, 200);
    let refused = thief.trade(MAC, &used, "127.0.0.1").await;
    assert_eq!(refused.status, 403);
    assert_eq!(refused.json()["error"], "the token is refused: it was used before");
    assert_eq!(node.says("/node/report", REPORT).await.status, 204, "the session goes on");

    for (mac, from) in [(other, "127.0.0.1"), (MAC, "127.0.0.2")] {
        let token = issue(&daemon, None);
        let refused = thief.trade(mac, &token, from).await;
        assert_eq!(refused.status, 403);
        let words = refused.json()["error"].as_str().unwrap().to_owned();
        assert!(words.contains("it is another machine's, 52:54:00:77:00:01 at 127.0.0.1"), "{words}");
        assert_eq!(node.trade(MAC, &token, "127.0.0.1").await.status, 403, "it is no secret any more");
    }
    let told = warnings(&daemon);
    assert_eq!(told.len(), 5);
    assert!(told.iter().all(|event| event.mac == MAC));
    let cause = told[3].cause.as_deref().unwrap();
    assert!(cause.contains("came from 52:54:00:77:00:01 at 127.0.0.2"), "{cause}");

    assert_eq!(thief.trade(MAC, &"0".repeat(64), "127.0.0.1").await.status, 403);
    assert_eq!(warnings(&daemon).len(), 5, "a guess is nobody's");
    let garbled = thief.post(&[], "/node/session", "secret").await;
    assert_eq!(garbled.status, 400);
    assert!(!String::from_utf8_lossy(&garbled.body).contains("secret"));
    // The register still has the stage that the node itself reported.
    let machine = curl(daemon.api, "/api/nodes/52:54:00:77:00:01", &[]).await.json();
    assert_eq!(machine["stage"], "stage1");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_volumes_are_for_the_session_of_a_boot_that_may_have_them() {
    let daemon = Daemon::start().await;
    let node = Node::new(&daemon, "node");
    let (path, body) = ("/node/storage-keys", json!({ "mac": MAC.to_string() }).to_string());
    let scope = Scope { owner: "n1".into(), plan: "data".into(), volumes: vec!["db".into()] };

    let token = issue(&daemon, Some(scope));
    assert_eq!(plain(daemon.boot, path, &body).await.status, 403, "before there is a session");
    assert_eq!(node.trade(MAC, &token, "127.0.0.1").await.status, 200);
    assert_eq!(plain(daemon.boot, path, &body).await.status, 403, "in clear text");
    let answer = node.says(path, &body).await;
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")));
    let keys = answer.json()["keys"].as_object().unwrap().clone();
    assert_eq!(keys.keys().collect::<Vec<_>>(), ["db"]);
    let key = keys["db"].as_str().unwrap();
    assert_eq!(key.len(), 64);
    daemon.timeline.flush();
    for path in ["status", "nodes", "leases", "files", "profiles", "workloads", "events", "images"] {
        let document = curl(daemon.api, &format!("/api/{path}"), &[]).await.body;
        let document = String::from_utf8(document).unwrap();
        assert!(!document.contains(key) && !document.contains(&token), "{document}");
    }

    let token = issue(&daemon, None);
    assert_eq!(node.trade(MAC, &token, "127.0.0.1").await.status, 200);
    assert_eq!(node.says(path, &body).await.status, 403, "its plan releases none");
    let garbled = node.says(path, "secret").await;
    assert_eq!(garbled.status, 400);
    assert!(!String::from_utf8_lossy(&garbled.body).contains("secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_session_gets_its_keys_by_a_persons_word_only() {
    let daemon = Daemon::start().await;
    let (node, second) = (Node::new(&daemon, "node"), Node::new(&daemon, "second"));
    let (path, body) = ("/node/storage-keys", json!({ "mac": MAC.to_string() }).to_string());
    let scope = || Some(Scope { owner: "n1".into(), plan: "data".into(), volumes: vec!["db".into()] });
    let token = issue(&daemon, scope());
    assert_eq!(node.trade(MAC, &token, "127.0.0.1").await.status, 200);
    assert!(daemon.trust.issue(MAC, Ipv4Addr::LOCALHOST, scope()).is_err(), "it runs");

    let rekey = "/api/nodes/52:54:00:77:00:01/rekey";
    let rekeyed = curl(daemon.api, rekey, &["-X", "POST"]).await;
    assert_eq!(rekeyed.status, 200, "{}", String::from_utf8_lossy(&rekeyed.body));
    let rekeyed = rekeyed.json();
    assert_eq!((&rekeyed["keys"], rekeyed["until"].is_string()), (&json!("next-boot"), true));
    let token = daemon.trust.issue(MAC, Ipv4Addr::LOCALHOST, scope()).unwrap();
    assert_eq!(second.trade(MAC, &token, "127.0.0.1").await.status, 200);
    assert_eq!(second.says(path, &body).await.status, 200);
    assert_eq!(node.says(path, &body).await.status, 403, "the session of the boot before");
    let told = warnings(&daemon);
    assert_eq!(told.len(), 1);
    assert!(told[0].cause.as_deref().unwrap().contains("said that it is the machine"), "{told:?}");
    let audit = curl(daemon.api, "/api/audit", &[]).await.body;
    let audit = String::from_utf8(audit).unwrap();
    assert!(audit.contains("node.rekey") && audit.contains("next-boot"), "{audit}");
    assert_eq!(curl(daemon.api, "/api/nodes/nobody/rekey", &["-X", "POST"]).await.status, 404);
}

/// Sessions outlive the daemon: nodes go on after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_kept() {
    let daemon = Daemon::start().await;
    let node = Node::new(&daemon, "node");
    let token = issue(&daemon, None);
    assert_eq!(node.trade(MAC, &token, "127.0.0.1").await.status, 200);
    let state = daemon.file("");
    let again = crate::nodes::trust::Trust::open(
        &state,
        Store::open(&state.join("db")).unwrap(),
        daemon.timeline.clone(),
    )
    .unwrap();
    assert!(!again.speaks_for(MAC, None));
    assert!(again.issue(MAC, Ipv4Addr::LOCALHOST, None).is_ok(), "which machines run is not known any more");
    let database = std::fs::read(daemon.file("db")).unwrap();
    assert!(!database.windows(token.len()).any(|window| window == token.as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn papers_for_an_engine_are_for_the_session_of_a_declared_docker_node() {
    const CONFIG: &str = r#"
        network = { bridge = "pxe0", address = "10.77.0.1/24" }
        dhcp = { mode = "off" }
        profile = [{ name = "docker", run = "docker" }]
        node = [{ name = "n1", mac = "52:54:00:77:00:01", profile = "docker" }]
    "#;
    let daemon = Daemon::start().await;
    let node = Node::new(&daemon, "node");
    let body = |request: &str| json!({ "mac": MAC.to_string(), "request": request }).to_string();
    let good = body(&hex(&node.request));
    assert_eq!(plain(daemon.boot, "/node/engine", &good).await.status, 403, "not in clear text");
    assert_eq!(node.trade(MAC, &issue(&daemon, None), "127.0.0.1").await.status, 200);
    assert_eq!(node.says("/node/engine", &good).await.status, 403, "it is not declared");
    let config =
        crate::config::parse(CONFIG, std::path::Path::new("/c.toml")).unwrap_or_else(|p| panic!("{p:?}"));
    daemon.fleet.declare(&config, |_, _| async {});
    assert_eq!(plain(daemon.boot, "/node/engine", &good).await.status, 403, "not without the session");
    assert_eq!(node.says("/node/engine", &body("noise")).await.status, 400);
    let answer = node.says("/node/engine", &good).await;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    for part in ["authority", "certificate"] {
        assert!(answer.json()[part].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    }
}
