//! Machines' power through the API: by the command line, and by curl.

use serde_json::{Value, json};

use super::tests::{Daemon, curl};
use crate::cli::tests::run;

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_told_one_by_one_and_are_in_the_audit() {
    let daemon = Daemon::start().await;
    let api = daemon.api.display().to_string();
    for words in [
        "node add w1 --mac 02:00:00:00:00:01 --set power.wol=true --set rack=a1",
        "node add r1 --mac 02:00:00:00:00:02 --set power.redfish=http://127.0.0.1:1 --set power.credentials=rack",
        "node add x1 --mac 02:00:00:00:00:03",
    ] {
        run(&api, words).await.unwrap();
    }
    let status = run(&api, "power status w1").await.unwrap();
    assert!(status.lines().nth(1).is_some_and(|line| line.starts_with("w1    unknown  wol")), "{status}");
    let failed = run(&api, "power off w1,r1,x1").await.unwrap_err().to_string();
    assert!(failed.starts_with("3 of 3 failed: r1, w1, x1; "), "{failed}");

    let answer = curl(daemon.api, "/api/power?select=all", &[]).await;
    assert_eq!(answer.status, 200);
    let lines: Vec<Value> =
        answer.body.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let kind = |name: &str| lines.iter().find(|line| line["node"] == name).map(|line| line["kind"].clone());
    assert_eq!(kind("r1"), Some(json!("not-set-up")), "its credentials are missing: {lines:?}");
    assert_eq!(kind("x1"), Some(json!("not-set-up")));
    assert_eq!(kind("w1"), Some(Value::Null));
    let audit = run(&api, "audit").await.unwrap();
    for words in
        ["power.off w1", "power.off r1", "power.off x1", "can't off", "no credentials are called rack"]
    {
        assert!(audit.contains(words), "{words}: {audit}");
    }
    assert!(!audit.contains("power.status"), "{audit}");
    for (body, words) in [
        (r#"{"select": "w1", "action": "status"}"#, "GET /api/power"),
        (r#"{"select": "w1", "action": "off", "boot": "pxe"}"#, "boots nothing"),
        (r#"{"select": "nobody", "action": "off"}"#, "no machine is meant by `nobody`"),
        (r#"{"select": "w1", "action": "explode"}"#, "unknown variant"),
    ] {
        let json = ["--json", body];
        let answer = curl(daemon.api, "/api/power", &json).await;
        let said = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(answer.status >= 400 && answer.status < 500 && said.contains(words), "{body}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn how_power_is_switched_is_declared_and_goes_through_a_table() {
    let daemon = Daemon::start().await;
    let api = daemon.api.display().to_string();
    let add =
        "node add r1 --mac 02:00:00:00:00:02 --set power.redfish=https://bmc1 --set power.credentials=rack";
    run(&api, add).await.unwrap();
    run(&api, "node add r2 --mac 02:00:00:00:00:03 --set power.ipmi=bmc-{name}:6230").await.unwrap();
    let table = run(&api, "node export").await.unwrap();
    assert!(
        table.contains(",power\n") && table.contains(",redfish=https://bmc1 credentials=rack\n"),
        "{table}"
    );
    let file = daemon.file("rack.csv");
    std::fs::write(&file, &table).unwrap();
    run(&api, "node rm all").await.ok();
    run(&api, "node rm r[1-2]").await.ok();
    run(&api, &format!("node import {}", file.display())).await.unwrap();
    assert_eq!(run(&api, "node export").await.unwrap(), table);
    run(&api, "node set r1 --set power.credentials=other").await.unwrap();
    let table = run(&api, "node export").await.unwrap();
    assert!(table.contains("redfish=https://bmc1 credentials=other"), "{table}");

    for (words, said) in [
        ("node set r[1-2] --set power.redfish=https://one", "its power is that of node"),
        ("node set r1 --set power.redfish=https://root:secret@bmc", "contains a user"),
        ("node set r1 --set power.watts=7", "power has no key `watts`"),
        ("node set r1 --set power.command=/bin/true", "configuration's file alone"),
        ("node add r3 --mac 02:00:00:00:00:04 --set power.credentials=rack", "says no way to switch it"),
    ] {
        let error = run(&api, words).await.unwrap_err().to_string();
        assert!(error.contains(said), "{words}: {error}");
    }
    let command = r#"{"name": "r4", "mac": "02:00:00:00:00:05", "power": {"command": ["/bin/true"]}}"#;
    let answer = curl(daemon.api, "/api/nodes", &["--json", command]).await;
    let said = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(answer.status == 400 && said.contains("in the configuration's file alone"), "{said}");
    run(&api, "node set r1 --unset power").await.unwrap();
    assert!(!run(&api, "node export").await.unwrap().contains("https://bmc1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_kept_and_never_shown() {
    let daemon = Daemon::start().await;
    let api = daemon.api.display().to_string();
    let put = async |body: &str| {
        curl(daemon.api, "/api/power/credentials/rack", &["-X", "PUT", "--json", body]).await
    };
    let answer = put(r#"{"user": "root", "password": "hunter2hunter2"}"#).await;
    assert_eq!(answer.status, 200);
    let said = |body: &[u8]| String::from_utf8_lossy(body).into_owned();
    assert!(!said(&answer.body).contains("hunter2"));
    let malformed = put(r#"{"user": "root", "password": {"hunter2": 7}}"#).await;
    assert!(
        malformed.status == 400 && !said(&malformed.body).contains("hunter2"),
        "{}",
        said(&malformed.body)
    );
    let listed = run(&api, "power credentials list").await.unwrap();
    assert!(listed.lines().nth(1).is_some_and(|line| line.starts_with("rack  root  ")), "{listed}");
    run(&api, "power credentials rm rack").await.unwrap();
    assert!(run(&api, "power credentials rm rack").await.is_err());
    let audit = run(&api, "audit --json").await.unwrap();
    assert!(audit.contains("power.credentials.add") && audit.contains("power.credentials.rm"), "{audit}");
    assert!(!audit.contains("hunter2"), "{audit}");
}
