//! `curl` plays a node without a session, and a person.

use serde_json::json;

use crate::api::tests::{Daemon, MAC, curl};
use crate::machines::timeline::Stage;

fn told(mac: &str, gib: u64) -> String {
    let memory = json!({ "installed": gib << 30 });
    json!({ "mac": mac, "facts": { "system": { "serial": "S1", "colour": "red" }, "memory": memory } })
        .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_tells_its_facts_and_people_read_them() {
    let daemon = Daemon::start().await;
    let mac = MAC.to_string();
    let post = async |path: &str, body: String| {
        curl(daemon.boot, path, &["-H", "Content-Type: application/json", "-d", &body]).await
    };
    let path = format!("/api/nodes/{mac}/facts");
    let ask = async || curl(daemon.api, &path, &[]).await;
    assert_eq!(ask().await.status, 404, "it has told nothing");
    assert_eq!(post("/node/facts", told(&mac, 16)).await.status, 204);
    let answer = ask().await;
    assert_eq!((answer.status, &answer.json()["system"]["serial"]), (200, &json!("S1")));

    assert_eq!(post("/node/facts", told(&mac, 12)).await.status, 204);
    daemon.timeline.flush();
    let events = daemon.timeline.since(0, 100).unwrap();
    let warned = events.iter().find(|event| event.stage == Stage::Warning).unwrap();
    assert_eq!(warned.cause.as_deref(), Some("4.0 GiB less memory than last time: 12.0 GiB"));

    assert_eq!(post("/node/facts", told("52:54:00:77:00:02", 16)).await.status, 403, "another's");
    assert_eq!(post("/node/facts", "{}".into()).await.status, 400);
    // Longer than what a command's argument may be.
    let long = daemon.file("long");
    std::fs::write(&long, format!("{}{}", told(&mac, 16), " ".repeat(super::BODY_MAX))).unwrap();
    assert_eq!(post("/node/facts", format!("@{}", long.display())).await.status, 400);
    let statuses =
        [post("/node/facts", told(&mac, 16)).await.status, post("/node/facts", told(&mac, 16)).await.status];
    let more = post("/node/facts", told(&mac, 16)).await.status;
    assert!(statuses == [204, 204] && more == 503, "four at once, and no fifth: {statuses:?} {more}");

    let standing = json!({ "mac": mac }).to_string();
    assert_eq!(post("/node/enrolled", standing).await.status, 200, "it is nobody yet");
}
