//! Traces, consoles and held boots, through the API and the command line.

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};

use super::tests::{Daemon, curl};
use crate::cli::tests::run;

const NODE: &str = "52:54:00:77:00:01";

async fn say(daemon: &Daemon, mac: &str, first: u64, texts: &[&str]) -> u16 {
    let lines: Vec<Value> = texts
        .iter()
        .map(|text| json!({ "uptime": 0.25, "from": "kernel", "level": 6, "text": text }))
        .collect();
    let boot = "5e0f4f4e-0b1c-4a87-9d6a-000000000001";
    let body = json!({ "mac": mac, "boot": boot, "first": first, "uptime": 1.0, "lines": lines }).to_string();
    let arguments = ["--header", "Content-Type: application/json", "--data-binary", &body];
    curl(daemon.boot, "/node/console", &arguments).await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_is_taken_kept_and_shown() {
    let daemon = Daemon::start().await;
    let api = daemon.api.display().to_string();
    let error = run(&api, &format!("console {NODE}")).await.unwrap_err().to_string();
    assert!(error.contains("nothing is kept of that boot"), "{error}");

    assert_eq!(say(&daemon, "52:54:00:77:00:02", 0, &["forged"]).await, 403);
    assert_eq!(say(&daemon, NODE, 0, &["Linux", "\u{1b}[2Jgone"]).await, 204);
    assert_eq!(say(&daemon, NODE, 4, &["late"]).await, 204);
    let text = run(&api, &format!("console {NODE}")).await.unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("--- boot of 20"), "{text}");
    let rest = [
        "[    0.250000] Linux",
        "[    0.250000] ^[[2Jgone",
        "--- 2 lines are missing",
        "[    0.250000] late",
    ];
    assert_eq!(lines[1..], rest);
    let json = run(&api, &format!("console {NODE} --json")).await.unwrap();
    let last: Value = serde_json::from_str(json.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["number"], &last["text"], &last["from"]),
        (&json!(4), &json!("late"), &json!("kernel"))
    );

    let path = format!("/api/nodes/{NODE}/console?follow=1");
    let mut followed = follow(daemon.api, &path).await;
    let mut texts = Vec::new();
    while texts.len() < 3 {
        texts.push(followed.next().await);
    }
    // All stored lines have arrived: further ones are followed.
    assert_eq!(say(&daemon, NODE, 4, &["late", "live"]).await, 204);
    texts.push(followed.next().await);
    assert_eq!(texts, ["Linux", "^[[2Jgone", "late", "live"]);
    drop(followed);
    assert_eq!(curl(daemon.api, "/api/nodes/n9/console", &[]).await.status, 404);
    assert_eq!(curl(daemon.api, &format!("/api/nodes/{NODE}/console?back=x"), &[]).await.status, 400);
}

/// A console that is followed.
struct Followed(tokio::io::Lines<tokio::io::BufReader<tokio::net::UnixStream>>);

async fn follow(api: &std::path::Path, path: &str) -> Followed {
    let mut stream = tokio::net::UnixStream::connect(api).await.unwrap();
    // HTTP/1.0, so that the answer has no chunks between its lines.
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
    Followed(tokio::io::BufReader::new(stream).lines())
}

impl Followed {
    /// The next line's text.
    async fn next(&mut self) -> Value {
        loop {
            let line = self.0.next_line().await.unwrap().expect("it goes on");
            if line.starts_with('{') {
                return serde_json::from_str::<Value>(&line).unwrap()["text"].clone();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_workload_says_is_kept_beside_the_console() {
    let daemon = Daemon::start().await;
    let api = daemon.api.display().to_string();
    let error = run(&api, &format!("logs {NODE}")).await.unwrap_err().to_string();
    assert!(error.contains("of workloads whose profile has not logs = false"), "{error}");

    let boot = "5e0f4f4e-0b1c-4a87-9d6a-000000000001";
    let line =
        |text: &str, partial| json!({ "uptime": 2.5, "from": "workload", "partial": partial, "text": text });
    let lines = [line("listening", false), line("login: ", true), line("\u{1b}[31mroot", false)];
    let say = async |mac: &str| {
        let body = json!({ "mac": mac, "boot": boot, "first": 0, "uptime": 3.0, "lines": lines }).to_string();
        let arguments = ["--header", "Content-Type: application/json", "--data-binary", &body];
        curl(daemon.boot, "/node/logs", &arguments).await.status
    };
    assert_eq!(say("52:54:00:77:00:02").await, 403);
    assert_eq!(say(NODE).await, 204);
    assert_eq!(say(NODE).await, 204, "again, as after a lost answer");
    let text = run(&api, &format!("logs {NODE}")).await.unwrap();
    assert!(text.ends_with("Z\nlistening\nlogin: ^[[31mroot\n"), "{text}");
    let json = run(&api, &format!("logs {NODE} --json")).await.unwrap();
    let lines: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[1]["partial"], &lines[1]["from"]), (3, &json!(true), &json!("workload")));
    let error = run(&api, &format!("console {NODE}")).await.unwrap_err().to_string();
    assert!(error.contains("nothing is kept"), "the console is another text: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_is_asked_for_with_bounds() {
    let daemon = Daemon::start().await;
    let trace = async |query: &str| curl(daemon.api, &format!("/api/nodes/{query}"), &[]).await;
    // A machine that was never seen is known by its MAC.
    let answer = trace("02:00:00:00:00:01/trace?snap-length=128").await;
    assert_eq!((answer.status, &*answer.body), (200, &b"02:00:00:00:00:01 128"[..]));
    assert_eq!(answer.header("content-type"), Some("application/x-pcapng"));
    assert_eq!(trace("n9/trace").await.status, 404);
    assert_eq!(trace(&format!("{NODE}/trace?snap-length=1")).await.status, 400);
    assert_eq!(trace(&format!("{NODE}/trace?follow=1")).await.status, 409, "as the fake says");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_held_and_released() {
    let daemon = Daemon::start().await;
    let api = daemon.api.display().to_string();
    let stopped = async |mac: &str| {
        let body = json!({ "mac": mac }).to_string();
        let arguments = ["--header", "Content-Type: application/json", "--data-binary", &body];
        curl(daemon.boot, "/node/held", &arguments).await.status
    };
    let hold = async || {
        let node: Value = curl(daemon.api, &format!("/api/nodes/{NODE}"), &[]).await.json();
        node.get("hold").and_then(Value::as_str).map(str::to_owned)
    };
    assert_eq!(stopped(NODE).await, 204);
    let held = run(&api, &format!("hold {NODE} --once")).await.unwrap();
    assert!(held.contains("- (to be held)"), "{held}");
    assert_eq!(hold().await.as_deref(), Some("once"));
    assert_eq!(stopped("52:54:00:77:00:02").await, 403, "only of itself");
    assert_eq!(stopped(NODE).await, 200);
    assert_eq!(hold().await.as_deref(), Some("reached"));
    assert_eq!(stopped(NODE).await, 200);
    run(&api, &format!("release {NODE}")).await.unwrap();
    assert_eq!((stopped(NODE).await, hold().await), (204, None));
    let json = run(&api, &format!("hold {NODE} --json")).await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["hold"], "until-released");
    let error = run(&api, "hold n9").await.unwrap_err().to_string();
    assert!(error.contains("no machine is called `n9`"), "{error}");
}
