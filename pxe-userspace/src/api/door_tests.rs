//! Authentication as curl sees it: who is admitted, and what each role may do.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use axum::http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::people::CONNECTIONS_MAX;
use super::routes::table;
use super::tests::{Answer, Daemon, curl};
use crate::api::client::{AskError, Client, Place};
use crate::cli::tests::run;
use crate::operate::access::Role;

const NODE: &str = "52:54:00:77:00:01";

fn token(daemon: &Daemon, role: Role) -> String {
    let (_, secret) = daemon.access.tokens.add(&role.to_string(), role, None, Timestamp::now()).unwrap();
    secret.to_string()
}

/// By TCP, with headers.
async fn ask(daemon: &Daemon, method: &str, path: &str, headers: &[&str]) -> Answer {
    let mut arguments = vec!["-X", method];
    headers.iter().for_each(|header| arguments.extend(["-H", *header]));
    curl(daemon.api_by_tcp, path, &arguments).await
}

fn refused(answer: &Answer) -> String {
    let json = answer.json();
    assert!(json["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{json}");
    json["error"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn by_tcp_nobody_gets_in_without_a_token() {
    let daemon = Daemon::start().await;
    let good = token(&daemon, Role::Admin);
    let now = Timestamp::now();
    let (_, short) = daemon.access.tokens.add("short", Role::Admin, Some(now), now).unwrap();
    for headers in [
        vec![],
        vec!["Authorization: Bearer".to_owned()],
        vec![format!("Authorization: Bearer {}", &good[..good.len() - 1])],
        vec![format!("Authorization: Basic {good}")],
        vec![format!("Authorization: {good}")],
        vec![format!("Authorization: Bearer {}", *short)],
        vec![format!("Cookie: bridgehead={good}")],
        vec!["Cookie: bridgehead=".to_owned(), "Authorization: Bearer x".to_owned()],
    ] {
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        for (method, path, _) in table(daemon.access.audit.clone()) {
            let path = path.replace("{name}", NODE);
            let answer = ask(&daemon, method.as_str(), &path, &headers).await;
            assert_eq!(answer.status, 401, "{method} {path} {headers:?}");
        }
        // Nor does a stranger learn which paths exist.
        for path in ["/nothing", "/api/nodes/%ff", "/files/ten", "/login/x"] {
            let answer = ask(&daemon, "GET", path, &headers).await;
            assert_eq!((answer.status, &*refused(&answer)), (401, "a token is needed"), "{path}");
            assert_eq!(answer.header("www-authenticate"), Some("bearer"));
            assert!(answer.body.len() < 100, "short, for whoever counts what comes out");
        }
        assert_eq!(ask(&daemon, "GET", "/login", &headers).await.status, 403);
    }
    let good = format!("Authorization: bearer {good}");
    assert_eq!(ask(&daemon, "GET", "/api/status", &[&good]).await.status, 200);
    assert_eq!(ask(&daemon, "GET", "/files/ten", &[&good]).await.body, b"0123456789");
    assert_eq!(ask(&daemon, "GET", "/metrics", &[&good]).await.status, 200);
}

/// A request for each route for which its role is sufficient, and that changes nothing that other requests need.
pub(super) fn sample(method: &Method, path: &str) -> (String, Option<Value>) {
    let path = path.replace("/api/nodes/{name}", &format!("/api/nodes/{NODE}")).replace("{*path}", "ten");
    let path = path.replace("/machines/{name}", &format!("/machines/{NODE}"));
    let path = match (method.as_str(), path.as_str()) {
        ("DELETE", "/api/kernels/{name}") => "/api/kernels/6.1~rc1".to_owned(),
        ("DELETE", "/api/images/{*reference}") => "/api/images/reg.example/a/b:1".to_owned(),
        ("DELETE", "/api/tokens/{name}") => "/api/tokens/made".to_owned(),
        ("PUT" | "DELETE", "/api/power/credentials/{name}") => "/api/power/credentials/made".to_owned(),
        ("GET", "/api/power") => format!("/api/power?select={NODE}"),
        (_, path) if path.contains("/{id}") => path.replace("{id}", "7"),
        ("PATCH" | "DELETE", "/api/nodes") => "/api/nodes?select=made".to_owned(),
        _ => path,
    };
    let body = match (method.as_str(), path.as_str()) {
        ("POST", "/api/nodes") => Some(json!({ "name": "made", "mac": "02:00:00:00:00:77" })),
        ("PATCH", "/api/nodes?select=made") => Some(json!({ "labels": ["a"] })),
        ("POST", path) if path.ends_with("/adopt") => Some(json!({})),
        // A table of one column is one text, in JSON as well.
        ("POST", "/api/nodes.csv") => None,
        ("POST", "/api/images") => Some(json!({ "reference": "a" })),
        ("POST", "/api/kernels") => Some(json!({ "source": { "image": "a" } })),
        ("PUT", "/api/default-kernel") => Some(json!({ "name": null })),
        ("POST", "/api/power") => Some(json!({ "select": NODE, "action": "on" })),
        ("PUT", "/api/power/credentials/made") => Some(json!({ "user": "root", "password": "x" })),
        ("POST", "/api/tokens") => Some(json!({ "name": "made", "role": "viewer" })),
        ("POST", "/api/login") => Some(json!({ "role": "viewer" })),
        _ => None,
    };
    (path, body)
}

/// Every route with every role: a request is refused exactly if its role is below the route's. And every change is in
/// the audit, with who made it.
#[tokio::test(flavor = "multi_thread")]
async fn each_route_has_its_least_role_and_each_change_its_entry() {
    let daemon = Daemon::start().await;
    let tokens: BTreeMap<Role, String> =
        [Role::Viewer, Role::Operator, Role::Admin].map(|role| (role, token(&daemon, role))).into();
    let routes = table(daemon.access.audit.clone());
    let mut changes = 0;
    for (method, path, least) in &routes {
        let (path, body) = sample(method, path);
        for (role, token) in &tokens {
            let headers = [format!("Authorization: Bearer {token}"), "Content-Type: application/json".into()];
            let before = daemon.access.audit.since(0, 1000).unwrap().len();
            let body = body.as_ref().map(Value::to_string);
            let mut arguments = vec!["-X", method.as_str(), "-H", &headers[0], "-H", &headers[1]];
            if let Some(body) = &body {
                arguments.extend(["-d", body]);
            }
            let answer = curl(daemon.api_by_tcp, &path, &arguments).await;
            assert_eq!(answer.status == 403, role < least, "{method} {path} as {role}: {}", answer.status);
            assert_ne!(answer.status, 401);
            let kept = daemon.access.audit.since(0, 1000).unwrap();
            let changed = !matches!(*method, Method::GET) && answer.status < 300;
            // Requests for a way in or for packets are recorded, too.
            let told = changed || answer.status == 200 && path.ends_with("/trace");
            assert_eq!(kept.len() - before, usize::from(told), "{method} {path}");
            if let Some(entry) = kept.last().filter(|_| told) {
                changes += 1;
                assert_eq!((&entry.caller.who, entry.caller.role), (&role.to_string(), *role));
                assert_eq!(entry.caller.from, Some("127.0.0.1".parse().unwrap()));
                assert!(!entry.did.what.contains('/'), "the handler says what it does: {entry:?}");
                let text = serde_json::to_string(entry).unwrap();
                assert!(
                    tokens.values().all(|token| !text.contains(&**token)) && !text.contains("bh_"),
                    "{text}"
                );
            }
        }
    }
    assert!(changes > 10, "{changes}");
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.md")).unwrap();
    for (method, path, least) in routes {
        let path = path
            .replace("{name}", "NAME")
            .replace("{id}", "ID")
            .replace("{*path}", "PATH")
            .replace("{*reference}", "REFERENCE");
        let row = format!("| `{method} {path}` | {least} |");
        assert!(page.contains(&row), "docs/api.md has no {row}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_sites_get_nothing_whatever_they_send() {
    let daemon = Daemon::start().await;
    let secret = token(&daemon, Role::Admin);
    let token = format!("Authorization: Bearer {secret}");
    let evil = ["Host: rebind.evil.example:7480", "Origin: http://rebind.evil.example:7480"];
    for path in ["/", "/api/status", "/api/nodes", "/api/nodes/n1/rescue", "/login?code=x", "/nothing"] {
        for headers in [&evil[..], &evil[..1], &[evil[0], &token]] {
            assert_eq!(ask(&daemon, "GET", path, headers).await.status, 421, "{path} {headers:?}");
        }
        assert_eq!(ask(&daemon, "GET", path, &[evil[1], &token]).await.status, 403, "{path}");
        for site in ["cross-site", "same-site"] {
            let site = format!("Sec-Fetch-Site: {site}");
            assert_eq!(ask(&daemon, "GET", path, &[&site, &token]).await.status, 403, "{path} {site}");
        }
    }
    for (method, path) in
        [("POST", "/api/reload"), ("POST", "/api/images/gc"), ("POST", "/api/nodes/n1/hold")]
    {
        let form = "Content-Type: application/x-www-form-urlencoded";
        let answer = ask(&daemon, method, path, &["Origin: http://evil.example", form, &token]).await;
        assert_eq!(answer.status, 403, "{path}");
    }
    let preflight = ["Origin: http://evil.example", "Access-Control-Request-Method: POST"];
    let answer = ask(&daemon, "OPTIONS", "/api/images", &preflight).await;
    assert!(answer.status == 403 && answer.header("access-control-allow-origin").is_none());
    // Nor over the socket, should something relay it.
    assert_eq!(curl(daemon.api, "/api/status", &["-H", "Origin: http://evil.example"]).await.status, 403);
    for host in ["localhost:1", "boot.example.org", "BOOT.example.org:443"] {
        let host = format!("Host: {host}");
        assert_eq!(ask(&daemon, "GET", "/api/status", &[&host, &token]).await.status, 200, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_leaves_with_what_browsers_go_by() {
    let daemon = Daemon::start().await;
    let token = format!("Authorization: Bearer {}", token(&daemon, Role::Viewer));
    for (path, headers) in [
        ("/", vec![&*token]),
        ("/", vec![]),
        ("/nothing", vec![&*token]),
        ("/api/status", vec![&*token]),
        ("/files/ten", vec![&*token]),
        ("/", vec!["Host: evil.example"]),
        ("/api/reload", vec![&*token]),
    ] {
        let answer = ask(&daemon, "GET", path, &headers).await;
        let policy = answer.header("content-security-policy").unwrap();
        assert!(
            policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("x-frame-options"), Some("deny"));
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    let page = ask(&daemon, "GET", "/", &[&token]).await;
    assert_eq!(page.header("cache-control"), Some("no-store"));
    let page = String::from_utf8(page.body).unwrap();
    assert!(!page.contains("<style") && !page.contains("style=") && page.contains("</h1>"), "{page}");
    assert!(page.matches("<script").count() == 1 && page.contains("<script type=\"module\" src="), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_lets_a_browser_in_once_and_a_cookie_from_then_on() {
    let daemon = Daemon::start().await;
    let api = daemon.api.display().to_string();
    let link = run(&api, "login --role operator").await.unwrap();
    let page = format!("http://{}", daemon.api_by_tcp);
    let path = link.trim().strip_prefix(&page).unwrap().to_owned();
    // A HEAD request, as for a chat's link preview, does not use it up.
    assert_eq!(curl(daemon.api_by_tcp, &path, &["--head"]).await.status, 204);
    let entered = curl(daemon.api_by_tcp, &path, &[]).await;
    assert_eq!((entered.status, entered.header("location")), (303, Some("/")));
    let cookie = entered.header("set-cookie").unwrap().to_owned();
    for word in ["httponly", "samesite=strict", "path=/", "max-age=43200"] {
        assert!(cookie.contains(word), "{cookie}");
    }
    assert!(!cookie.contains("secure"), "this is no TLS");
    let again = curl(daemon.api_by_tcp, &path, &[]).await;
    assert_eq!(again.status, 403);
    assert!(refused(&again).contains("was used"));

    let cookie = format!("Cookie: other=1; {}", cookie.split(';').next().unwrap());
    assert_eq!(ask(&daemon, "GET", "/", &[&cookie]).await.status, 200);
    let hold = format!("/api/nodes/{NODE}/hold");
    // A change has to come from the page itself.
    assert_eq!(ask(&daemon, "POST", &hold, &[&cookie]).await.status, 403);
    for foreign in ["Origin: http://localhost:8080", "Sec-Fetch-Site: none", "Sec-Fetch-Site: same-site"] {
        assert_eq!(ask(&daemon, "POST", &hold, &[&cookie, foreign]).await.status, 403, "{foreign}");
    }
    for own in [format!("Origin: {page}"), "Sec-Fetch-Site: same-origin".to_owned()] {
        assert_eq!(ask(&daemon, "POST", &hold, &[&cookie, &own]).await.status, 200, "{own}");
        assert_eq!(ask(&daemon, "POST", "/api/reload", &[&cookie, &own]).await.status, 403, "an operator");
    }
    // A wrong token is no reason to look at the cookie.
    assert_eq!(ask(&daemon, "GET", "/", &[&cookie, "Authorization: Bearer x"]).await.status, 401);
    let audit = run(&api, "audit").await.unwrap();
    assert!(
        audit.contains("(page from 127.0.0.1)  node.hold 52:54:00:77:00:01  - -> \"until-released\""),
        "{audit}"
    );
    assert!(audit.contains("(socket)  login.invite"), "{audit}");

    let viewer = token(&daemon, Role::Viewer);
    let more = ["-H", &format!("Authorization: Bearer {viewer}"), "-H", "Content-Type: application/json"];
    let more =
        curl(daemon.api_by_tcp, "/api/login", &[&more[..], &["-d", r#"{"role": "admin"}"#]].concat()).await;
    assert_eq!(more.status, 403, "nobody invites beyond its own role");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_makes_lists_and_takes_away_tokens() {
    let daemon = Daemon::start().await;
    let api = daemon.api.display().to_string();
    let secret = run(&api, "token add ci --role operator --expires 90d").await.unwrap().trim().to_owned();
    let by_tcp = Place { api: format!("http://{}", daemon.api_by_tcp), ca: None };
    let look = async |token: Option<String>, by_tcp: &Place| {
        let by_tcp = by_tcp.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let client = Client::with_token(&by_tcp, token);
            client.document::<Value>(client.get("/api/status")?)
        });
        looked.await.unwrap()
    };
    assert_eq!(look(Some(secret.clone()), &by_tcp).await.unwrap()["version"], "1.2.3");
    let error = look(None, &by_tcp).await.unwrap_err().to_string();
    assert_eq!(error, "a token is needed; see `bridgehead token add`");
    let elsewhere = Place { api: "http://192.0.2.1:7480".into(), ca: None };
    assert!(matches!(look(Some(secret.clone()), &elsewhere).await, Err(AskError::ClearText { .. })));

    let list = run(&api, "token list").await.unwrap();
    assert!(list.lines().nth(1).is_some_and(|l| l.starts_with("ci    operator  20")), "{list}");
    let json: Value = serde_json::from_str(&run(&api, "token list --json").await.unwrap()).unwrap();
    assert!(
        json[0]["expires"].is_string()
            && json[0].get("token").is_none()
            && !json.to_string().contains(&secret)
    );
    let taken = run(&api, "token add ci --role admin").await.unwrap_err().to_string();
    assert!(taken.contains("there is a token ci already"), "{taken}");
    assert_eq!(run(&api, "token rm ci").await.unwrap(), "removed ci\n");
    assert!(look(Some(secret.clone()), &by_tcp).await.is_err());
    assert!(run(&api, "token rm ci").await.unwrap_err().to_string().contains("no token ci"));

    let audit = run(&api, "audit --json").await.unwrap();
    let entries: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (entries.len(), &entries[0]["what"], &entries[0]["on"]),
        (2, &json!("token.add"), &json!("ci"))
    );
    assert_eq!((&entries[0]["through"], &entries[0]["uid"].is_u64()), (&json!("socket"), &true));
    assert_eq!(
        (&entries[0]["after"]["role"], &entries[1]["before"]["role"]),
        (&json!("operator"), &json!("operator"))
    );
    assert!(!audit.contains(&secret));
    assert_eq!(run(&api, "audit --after 1").await.unwrap().lines().count(), 1);
}

/// The body is the file; a path in the request opens nothing.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_opens_the_files() {
    let daemon = Daemon::start().await;
    let api = daemon.api.display().to_string();
    let file = daemon.file("hello world.tar");
    std::fs::write(&file, vec![7; 3 << 20]).unwrap();
    // Space is no part of a word there.
    let link = daemon.file("hello.tar");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let error = run(&api, &format!("image add {}", link.display())).await.unwrap_err().to_string();
    assert!(error.contains(&format!("{}: 3145728 bytes", link.display())), "{error}");
    let by_path = json!({ "path": file }).to_string();
    let json = ["-H", "Content-Type: application/json", "-d", &by_path];
    let answer = curl(daemon.api, "/api/images", &json).await;
    assert_eq!(answer.status, 400);
    assert!(refused(&answer).contains("unknown field `path`"));

    let layout = daemon.file("layout");
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    std::fs::write(layout.join("blobs/sha256/aa"), "x").unwrap();
    let none = run(&api, &format!("image add {}", layout.display())).await.unwrap_err().to_string();
    assert!(!none.is_empty(), "no index.json");
    std::fs::write(layout.join("index.json"), "{}").unwrap();
    let error = run(&api, &format!("image add {}", layout.display())).await.unwrap_err().to_string();
    assert!(error.contains(&format!("{}: ", layout.display())) && error.contains(" bytes"), "{error}");
    let error = run(&api, &format!("kernel add {}", layout.display())).await.unwrap_err().to_string();
    assert!(error.contains(&layout.display().to_string()), "{error}");
    let left = std::fs::read_dir(daemon.file("")).unwrap().flatten();
    let left: Vec<_> =
        left.map(|entry| entry.file_name()).filter(|n| n.to_string_lossy().starts_with(".tmp")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A thousand connections without a request, and many that follow streams.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_take_no_connection_from_anybody() {
    let daemon = Daemon::start().await;
    let secret = token(&daemon, Role::Viewer);
    let held: Vec<TcpStream> =
        (0..4 * CONNECTIONS_MAX).map(|_| TcpStream::connect(daemon.api_by_tcp).unwrap()).collect();
    let token = format!("Authorization: Bearer {secret}");
    assert_eq!(ask(&daemon, "GET", "/api/status", &[&token]).await.status, 200);
    assert_eq!(curl(daemon.api, "/api/status", &[]).await.status, 200);
    drop(held);

    let follow = |daemon: &Daemon| {
        let mut stream = std::os::unix::net::UnixStream::connect(daemon.api).unwrap();
        stream.write_all(b"GET /api/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        (stream, status)
    };
    let followers: Vec<_> = (0..130).map(|_| follow(&daemon)).collect();
    let let_in = followers.iter().filter(|(_, status)| status == b"HTTP/1.1 200").count();
    assert_eq!(let_in, 128);
    assert_eq!(&followers[129].1, b"HTTP/1.1 503");
    assert_eq!(curl(daemon.api, "/api/status", &[]).await.status, 200, "what is no stream goes on");
    drop(followers);
    loop {
        let (_, status) = follow(&daemon);
        if &status == b"HTTP/1.1 200" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_documents_whatever_was_asked() {
    let daemon = Daemon::start().await;
    for (to, path, status) in [
        (super::tests::To::from(daemon.api), "/api/nodes/%ff", 400),
        (daemon.api.into(), "/api/nodes/%ff/why", 400),
        (daemon.api.into(), "/files/%ff", 400),
        (daemon.api.into(), "/api/events?node=n9", 404),
        (daemon.api.into(), "/api/events?node=02:00:00:00:00:09", 404),
        (daemon.api.into(), "/api/audit?x=1", 400),
        (daemon.api.into(), "/api//status", 404),
        (daemon.boot.into(), "/files/%ff", 400),
        (daemon.boot.into(), "/boot/%ff/kernel", 400),
    ] {
        let answer = curl(to, path, &[]).await;
        assert_eq!(answer.status, status, "{path}");
        refused(&answer);
        assert_eq!(answer.header("content-type"), Some("application/json"), "{path}");
    }
    let deleted = curl(daemon.api, "/api/kernels/%ff", &["-X", "DELETE"]).await;
    assert_eq!(deleted.status, 400);
    refused(&deleted);
}
