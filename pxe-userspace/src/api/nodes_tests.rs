//! Machines that are declared through the API: by the command line, and by curl.

use serde_json::{Value, json};

use super::tests::{Daemon, MAC, curl};
use crate::cli::tests::run;

async fn json_of(api: &str, words: &str) -> Value {
    let json = run(api, &format!("{words} --json")).await.unwrap_or_else(|error| panic!("{words}: {error}"));
    serde_json::from_str(&json).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_declares_changes_and_forgets_machines() {
    let daemon = Daemon::start().await;
    let api = daemon.api.display().to_string();
    let added = run(&api, "node add n1 --mac 02:00:00:00:00:01 --address 10.77.0.21 --profile db --label gpu --set rack=a1 --memory 4G").await.unwrap();
    assert!(
        added.contains("n1    02:00:00:00:00:01  -        db") && added.contains("database  gpu"),
        "{added}"
    );
    run(&api, "node add n2 --mac 02:00:00:00:00:02").await.unwrap();
    let machine = json_of(&api, "nodes n1").await;
    assert_eq!(
        (&machine["origin"], &machine["reserved"], &machine["labels"], &machine["keys"]),
        (&json!("kept"), &json!("10.77.0.21"), &json!(["gpu"]), &json!({ "rack": "a1" }))
    );
    let filed = json_of(&api, "nodes filed").await;
    assert!(filed["origin"]["file"].as_str().unwrap().starts_with("/c.toml:"), "{filed}");
    let shown = run(&api, "nodes filed").await.unwrap();
    assert!(shown.contains("/c.toml:12"), "{shown}");

    assert_eq!(
        run(&api, "node set n[1-2] --label slow --set slot=3 --unset profile").await.unwrap(),
        "changed n1 n2\n"
    );
    assert_eq!(json_of(&api, "nodes n2").await["keys"], json!({ "slot": "3" }));
    assert_eq!(run(&api, "node set n1 --no-label slow --name n7").await.unwrap(), "added n7\nremoved n1\n");
    let none = run(&api, "node set n7 --label gpu").await.unwrap();
    assert_eq!(none, "nothing to change of 1: they were so already\n");
    let chosen = json_of(&api, "nodes label=gpu,n2").await;
    assert_eq!(
        chosen.as_array().unwrap().iter().map(|m| m["name"].clone()).collect::<Vec<_>>(),
        [json!("n2"), json!("n7")]
    );

    let adopted = run(&api, &format!("node adopt {MAC} n9")).await.unwrap();
    assert!(
        adopted.lines().nth(1).is_some_and(|line| line.starts_with("n9    52:54:00:77:00:01  127.0.0.1")),
        "{adopted}"
    );
    assert_eq!(run(&api, "node rm n9 label=gpu").await.unwrap(), "removed n7 n9\n");
    assert_eq!(json_of(&api, &format!("nodes {MAC}")).await.get("origin"), None, "it is unknown again");

    for (command, words) in [
        (
            "node add filed --mac 02:00:00:00:00:09",
            "its name is node `filed`'s, of the file; changed there: /c.toml:12",
        ),
        ("node set filed --label a", "filed is of the file; changed there: /c.toml:12; nothing was changed"),
        ("node rm n3", "no machine is meant by `n3`; write names, n[1-40]"),
        ("node rm n[1", "`n[1`: a bracket is not closed"),
        ("nodes label=none", "no machine is meant by `label=none`"),
        ("node set n2 --profile wbe", "no profile is called `wbe`; there is web, db"),
        ("node adopt 02:00:00:00:00:99", "`bridgehead node add` takes others"),
        ("node import /nonexistent.csv", "/nonexistent.csv: No such file"),
    ] {
        let error = run(&api, command).await.unwrap_err().to_string();
        assert!(error.contains(words), "{command}: {error}");
    }
    let audit = run(&api, "audit --json").await.unwrap();
    let entries: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let what: Vec<_> = entries
        .iter()
        .map(|entry| (entry["what"].as_str().unwrap(), entry["on"].as_str().unwrap()))
        .collect();
    assert_eq!(
        what,
        [
            ("node.add", "n1"),
            ("node.add", "n2"),
            ("node.set", "n1"),
            ("node.set", "n2"),
            ("node.set", "n1"),
            ("node.set", "n7"),
            ("node.adopt", "n9"),
            ("node.rm", "n7"),
            ("node.rm", "n9"),
        ]
    );
    assert_eq!((&entries[2]["before"]["profile"], entries[2]["after"].get("profile")), (&json!("db"), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_come_in_whole_or_not_at_all() {
    let daemon = Daemon::start().await;
    let api = daemon.api.display().to_string();
    let file = daemon.file("rack.csv");
    std::fs::write(
        &file,
        "name,mac,profile,rack\nn1,02:00:00:00:00:01,wbe,a1\nn2,02:00:00:00:00:01,,a1\nn3,x,,a1\n",
    )
    .unwrap();
    let import = format!("node import {}", file.display());
    let error = run(&api, &import).await.unwrap_err().to_string();
    assert!(
        error.starts_with("line 4 is wrong, and nothing was imported:\nline 4: `x` is no MAC address"),
        "{error}"
    );
    std::fs::write(&file, "name,mac,profile,rack\nn1,02:00:00:00:00:01,wbe,a1\nn2,02:00:00:00:00:01,,a1\n")
        .unwrap();
    let error = run(&api, &import).await.unwrap_err().to_string();
    assert!(error.starts_with("2 lines are wrong, and nothing was imported:\nline 2: "), "{error}");
    assert_eq!(
        json_of(&api, "nodes").await.as_array().unwrap().len(),
        2,
        "the one that was seen, and the file's"
    );

    let rows = |count: u32| -> String {
        let row = |n: u32| format!("c{n:04},02:00:00:00:{:02x}:{:02x},,web,{n}\n", n >> 8, n & 255);
        std::iter::once("name,mac,address,profile,slot\n".to_owned()).chain((0..count).map(row)).collect()
    };
    std::fs::write(&file, rows(1000)).unwrap();
    assert_eq!(run(&api, &import).await.unwrap(), "added 1000 machines\n");
    let exported = run(&api, "node export").await.unwrap();
    assert_eq!(exported.lines().count(), 1001);
    std::fs::write(&file, &exported).unwrap();
    assert_eq!(run(&api, &import).await.unwrap(), "nothing to change of 1000: they were so already\n");
    let audit = run(&api, "audit").await.unwrap();
    assert!(audit.contains("node.import 1000 machines  - -> {\"added\":1000,"), "{audit}");

    // By pages, as the Link header has them.
    let (mut path, mut names) = ("/api/nodes?select=profile%3Dweb&limit=300".to_owned(), Vec::new());
    loop {
        let page = curl(daemon.api, &path, &[]).await;
        assert_eq!(page.status, 200);
        let machines = page.json();
        names.extend(
            machines.as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap_or("-").to_owned()),
        );
        let Some(link) = page.header("link") else { break };
        path = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap().to_owned();
    }
    // Beside those of the table there are the file's and, last, the one that was only seen.
    assert_eq!((names.len(), names.pop().as_deref(), names.is_sorted()), (1002, Some("-"), true));
    for (query, words) in [
        ("limit=0", "a page of 0: 1 to 10000"),
        ("cursor=x", "the cursor is none of ours"),
        ("select=", "no machine is named"),
        ("sel=all", "unknown field `sel`"),
    ] {
        let answer = curl(daemon.api, &format!("/api/nodes?{query}"), &[]).await;
        assert_eq!(answer.status, 400);
        assert!(answer.json()["error"].as_str().unwrap().contains(words), "{query}: {:?}", answer.json());
    }
    let kept = curl(daemon.api, "/api/nodes?origin=kept&stage=none", &[]).await.json();
    assert_eq!(kept.as_array().unwrap().len(), 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_is_checked() {
    let daemon = Daemon::start().await;
    let json = |body: &str| {
        ["-H".to_owned(), "Content-Type: application/json".to_owned(), "-d".to_owned(), body.to_owned()]
    };
    for (method, path, body, status, words) in [
        ("POST", "/api/nodes", "{", 400, "EOF"),
        ("POST", "/api/nodes", r#"{"name": "n1"}"#, 400, "missing field `mac`"),
        (
            "POST",
            "/api/nodes",
            r#"{"name": "n1", "mac": "02:00:00:00:00:01", "adress": "10.77.0.9"}"#,
            400,
            "unknown field `adress`",
        ),
        (
            "POST",
            "/api/nodes",
            r#"{"name": "n1", "mac": "02:00:00:00:00:01", "address": "10.77.0.11"}"#,
            409,
            "its address is node `filed`'s",
        ),
        (
            "POST",
            "/api/nodes",
            r#"{"name": "n1", "mac": "02:00:00:00:00:01", "address": "10.78.0.11", "profile": "x"}"#,
            400,
            "no profile is called `x`",
        ),
        (
            "POST",
            "/api/nodes",
            r#"{"name": "\u001b[2J", "mac": "02:00:00:00:00:01"}"#,
            400,
            "`^[[2J` can't be a node's name",
        ),
        ("PATCH", "/api/nodes", "{}", 400, "missing field `select`"),
        ("PATCH", "/api/nodes?select=filed", "{}", 409, "changed there: /c.toml:12"),
        ("PATCH", "/api/nodes?select=n1", "{}", 404, "no machine is meant by `n1`"),
        ("DELETE", "/api/nodes?select=n%5B1-", "", 400, "a bracket is not closed"),
    ] {
        let sent = json(body);
        let mut arguments: Vec<&str> = vec!["-X", method];
        arguments.extend(sent.iter().map(String::as_str));
        let answer = curl(daemon.api, path, &arguments).await;
        let document = answer.json();
        assert_eq!(answer.status, status, "{method} {path} {body}: {document}");
        assert!(document["error"].as_str().unwrap().contains(words), "{document}");
        assert!(!document["hint"].as_str().unwrap().is_empty());
    }
    // Too large to be a table, and read no further.
    let large = daemon.file("large.csv");
    std::fs::write(&large, vec![b'x'; crate::machines::kept::table::TABLE_MAX + 1]).unwrap();
    let body = format!("@{}", large.display());
    let answer = curl(daemon.api, "/api/nodes.csv", &["-H", "Expect:", "--data-binary", &body]).await;
    assert_eq!(answer.status, 400);
}
