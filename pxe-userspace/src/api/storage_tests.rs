use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use crate::api::tests::{Daemon, MAC, curl};
use crate::config::storage::ReleaseKeys;
use crate::config::{self, StoragePlan};
use crate::machines::Machine;

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_for_the_token_of_a_boot_and_nothing_else() {
    const CONFIG: &str = r#"
        network = { bridge = "pxe0", address = "10.77.0.1/24" }
        dhcp = { mode = "off" }
        [[storage]]
        name = "data"
        release-keys = "boot-segment"
        disks = [{ name = "one" }]
        volume = [{ name = "db", disks = "one", size = "1G", encrypt = true, mount = "/db" }, { name = "x", disks = "one", mount = "/x" }]
    "#;
    let daemon = Daemon::start().await;
    let ask = async |token: &str| {
        let body = format!(r#"{{"mac": "{MAC}", "token": "{token}"}}"#);
        curl(daemon.boot, "/node/storage-keys", &["-H", "Content-Type: application/json", "-d", &body]).await
    };
    let mut config = config::parse(CONFIG, Path::new("/c.toml")).unwrap_or_else(|p| panic!("{p:?}"));
    let plan = &mut config.storage[0];
    let machine = Machine { address: Some(Ipv4Addr::LOCALHOST), ..Machine::new(MAC) };
    let token = |plan: &StoragePlan, client| {
        let document = daemon.storage.document(&machine, plan, client, Instant::now());
        let document: Value = serde_json::from_str(&document).unwrap();
        document.get("token").map(|token| token.as_str().unwrap().to_owned())
    };

    assert_eq!(token(plan, Ipv4Addr::new(127, 0, 0, 2)), None, "it is not the machine that asks");
    let first = token(plan, Ipv4Addr::LOCALHOST).unwrap();
    assert_eq!(ask("guessed").await.status, 403);
    assert_eq!(ask(&first).await.status, 403, "after a guess");
    let second = token(plan, Ipv4Addr::LOCALHOST).unwrap();
    let answer = ask(&second).await;
    assert_eq!(answer.status, 200);
    let keys: Value = serde_json::from_slice(&answer.body).unwrap();
    let keys = keys["keys"].as_object().unwrap();
    assert_eq!(keys.keys().collect::<Vec<_>>(), ["db"]);
    assert_eq!(keys["db"].as_str().unwrap().len(), 64);
    assert_eq!(ask(&second).await.status, 403, "used");

    plan.release_keys = ReleaseKeys::Never;
    assert_eq!(token(plan, Ipv4Addr::LOCALHOST), None);
    let garbled = curl(daemon.boot, "/node/storage-keys", &["-d", "secret"]).await;
    assert_eq!(garbled.status, 400);
    assert!(!String::from_utf8_lossy(&garbled.body).contains("secret"));
}
