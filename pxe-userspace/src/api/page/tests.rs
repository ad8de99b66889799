//! Pages as a browser fetches them, by curl.

use axum::http::Method;
use jiff::Timestamp;
use pxe_common::Mac;
use serde_json::{Value, json};

use crate::api::routes::table;
use crate::api::tests::{Answer, Daemon, MAC, curl};
use crate::machines::timeline::{Happened, Stage, Who};
use crate::operate::access::Role;

const EVIL: &str = "<script>alert(1)</script>\u{1b}[2J\u{202e}";

struct Browser {
    daemon: Daemon,
    token: String,
}

impl Browser {
    async fn start(role: Role) -> Self {
        let daemon = Daemon::start().await;
        let (_, token) = daemon.access.tokens.add("browser", role, None, Timestamp::now()).unwrap();
        Self { token: format!("Authorization: Bearer {}", *token), daemon }
    }

    async fn answer(&self, path: &str) -> Answer {
        let accept = "Accept: text/html,application/xhtml+xml";
        curl(self.daemon.api_by_tcp, path, &["-H", &self.token, "-H", accept]).await
    }

    async fn get(&self, path: &str) -> String {
        let answer = self.answer(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", String::from_utf8_lossy(&answer.body));
        assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"), "{path}");
        String::from_utf8(answer.body).unwrap()
    }

    /// The messages of the stream behind a page, as far as there are any.
    async fn stream(&self, query: &str) -> Vec<(String, String, Value)> {
        let answer = curl(self.daemon.api_by_tcp, &format!("/live?{query}"), &["-H", &self.token]).await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some("text/event-stream")),
            "{query}"
        );
        let text = String::from_utf8(answer.body).unwrap();
        let field = |message: &str, name: &str| {
            message.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
        };
        text.split("\n\n")
            .filter_map(|message| {
                let data = serde_json::from_str(&field(message, "data")?).unwrap();
                Some((field(message, "event")?, field(message, "id").unwrap_or_default(), data))
            })
            .collect()
    }
}

fn after(page: &str) -> String {
    page.split("data-after=\"").nth(1).unwrap().split('"').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_is_whole_and_what_machines_say_is_no_markup() {
    let browser = Browser::start(Role::Admin).await;
    let happened = Happened::failed(Who::Mac(MAC), format!("cause {EVIL}"));
    browser.daemon.timeline.record(happened.detail(EVIL));
    let evil = Mac([2, 0, 0, 0, 0, 9]);
    browser.daemon.machines.described(evil, None, Some(EVIL.into()), Some(EVIL.into()));
    let pages = table(browser.daemon.access.audit.clone()).into_iter();
    let pages = pages.filter(|(method, path, _)| *method == Method::GET && !path.starts_with("/api"));
    let left_out = ["/metrics", "/live", "/files/{*path}", "/launches/{id}"];
    let mut count = 0;
    for (_, path, _) in pages.filter(|(_, path, _)| !left_out.contains(path)) {
        for path in [path.replace("{name}", &MAC.to_string()), path.replace("{name}", &evil.to_string())] {
            let page = browser.get(&path).await;
            for part in [
                "<html lang=\"en\">",
                "<h1>",
                "<main id=\"main\"",
                "class=\"skip\"",
                "aria-current",
                "</html>",
            ] {
                assert!(page.contains(part), "{path} has no {part}: {page}");
            }
            for part in
                ["<script>", "alert(1)</script>", "\u{1b}", "\u{202e}", "style=", " onclick", "javascript:"]
            {
                assert!(!page.contains(part), "{path} has {part:?}: {page}");
            }
            let mut ids: Vec<&str> =
                page.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
            ids.sort_unstable();
            assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "{path}: {ids:?}");
            // What refers to something, finds it.
            for name in ["aria-labelledby=\"", "aria-describedby=\"", "href=\"#"] {
                for to in page.split(name).skip(1).filter_map(|rest| rest.split('"').next()) {
                    assert!(ids.contains(&to), "{path}: {name}{to}");
                }
            }
            count += 1;
        }
    }
    assert_eq!(count, 2 * 7);
    let machine = browser.get(&format!("/machines/{MAC}")).await;
    assert!(machine.contains("cause &lt;script&gt;alert(1)&lt;/script&gt;^[[2J\\u{202e}"), "{machine}");
    assert_eq!(machine.matches("data-event=").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_shows_what_its_viewer_may_press() {
    let viewer = Browser::start(Role::Viewer).await;
    let operator = Browser::start(Role::Operator).await;
    let admin = Browser::start(Role::Admin).await;
    let machine = format!("/machines/{MAC}");
    let all = "Hold every boot";
    assert!(!viewer.get(&machine).await.contains(all) && operator.get(&machine).await.contains(all));
    for path in ["/", "/machines", &machine, "/launches", "/images"] {
        let page = viewer.get(path).await;
        // But for leaving.
        assert_eq!(page.matches("data-method=").count(), 1, "{path}: {page}");
        assert!(page.contains("data-path=\"/api/login\"") && !page.contains("href=\"/audit\""), "{path}");
    }
    assert!(!operator.get("/images").await.contains("data-path=\"/api/images\""));
    let images = admin.get("/images").await;
    assert!(images.contains("data-path=\"/api/images\"") && images.contains("href=\"/tokens\""));
    for path in ["/audit", "/tokens"] {
        let refused = operator.answer(path).await;
        assert_eq!((refused.status, refused.header("content-type")), (403, Some("text/html; charset=utf-8")));
        assert!(String::from_utf8_lossy(&refused.body).contains("this takes the role admin"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_pages_for_browsers_and_documents_for_programs() {
    let browser = Browser::start(Role::Viewer).await;
    let answer = browser.answer("/machines/n9").await;
    let page = String::from_utf8(answer.body.clone()).unwrap();
    assert_eq!(answer.status, 404);
    assert!(
        page.contains("no machine is called `n9`") && page.contains("`bridgehead nodes` lists them"),
        "{page}"
    );
    assert!(answer.header("content-security-policy").unwrap().contains("script-src 'self'"));
    for path in ["/nothing", "/machines?limit=x", "/launches/7"] {
        assert!((400..500).contains(&browser.answer(path).await.status), "{path}");
    }
    let document = curl(browser.daemon.api_by_tcp, "/machines/n9", &["-H", &browser.token]).await;
    assert!(document.json()["error"].as_str().unwrap().contains("n9"));
    let stranger = curl(browser.daemon.api_by_tcp, "/", &["-H", "Accept: text/html"]).await;
    let page = String::from_utf8(stranger.body.clone()).unwrap();
    assert_eq!((stranger.status, stranger.header("www-authenticate")), (401, Some("bearer")));
    assert!(page.contains("bridgehead login") && !page.contains("<script"), "{page}");
    // What it looks like is for everybody, and nothing else is.
    let style = page.split('"').find(|part| part.ends_with("page.css")).unwrap().to_owned();
    let style = curl(browser.daemon.api_by_tcp, &style, &[]).await;
    assert_eq!((style.status, style.header("content-type")), (200, Some("text/css; charset=utf-8")));
    assert!(style.header("cache-control").unwrap().contains("immutable"));
    assert!(style.header("content-security-policy").unwrap().starts_with("default-src 'none'; form-action"));
    for path in ["/assets/0/page.css", "/assets/x", "/assets/", "/assets/../api/status"] {
        let status = curl(browser.daemon.api_by_tcp, path, &[]).await.status;
        assert!(status == 404 || status == 401, "{path}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_are_filtered_and_paged_by_the_server() {
    let browser = Browser::start(Role::Operator).await;
    for n in 0..120u8 {
        let mac = Mac([2, 0, 0, 0, 1, n]);
        let stage = if n < 5 { Stage::Failed } else { Stage::Kernel };
        browser.daemon.machines.reached(mac, stage, Timestamp::now(), None);
    }
    let rows = |page: &str| page.matches("<tr data-m=").count();
    let first = browser.get("/machines").await;
    assert!(rows(&first) == 100 && first.contains("121 machines, 100 of them here"), "{first}");
    let next = first.split("rel=\"next\" href=\"").nth(1).unwrap().split('"').next().unwrap();
    let second = browser.get(&next.replace("&amp;", "&")).await;
    assert!(
        rows(&second) == 21 && second.contains("First page") && !second.contains("rel=\"next\""),
        "{second}"
    );
    let failed = browser.get("/machines?select=&stage=failed&origin=").await;
    assert!(rows(&failed) == 5 && failed.contains("selected"), "{failed}");
    let one = browser.get("/machines?select=02:00:00:00:01:07").await;
    assert_eq!(rows(&one), 1);
    let wrong = browser.get("/machines?select=n%5B1").await;
    assert!(wrong.contains("a bracket is not closed") && wrong.contains("value=\"n[1\""), "{wrong}");
    assert!(browser.get("/machines?select=n1").await.contains("no machine is meant by"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_after_a_page_was_written_is_in_its_stream_once() {
    let browser = Browser::start(Role::Viewer).await;
    let page = browser.get("/").await;
    let mut newest = browser.daemon.live.follow();
    browser.daemon.timeline.record(Happened::new(Who::Mac(MAC), Stage::Discover));
    let key = super::rows::key(MAC);
    let mut at = after(&page);
    let mut found = Vec::new();
    while found.is_empty() {
        for (event, id, data) in browser.stream(&format!("after={at}")).await {
            assert_eq!(event, "patch");
            at = id;
            found.extend(data["m"].get(&key).map(|row| row["s"].clone()));
            assert_eq!(data["e"].as_array().unwrap().len(), found.len(), "with its event: {data}");
        }
        if found.is_empty() {
            newest.changed().await.unwrap();
        }
    }
    assert_eq!(found, [json!("discover")]);
    let again = browser.stream(&format!("after={at}")).await;
    assert!(again.iter().all(|(_, _, data)| data["m"] == json!({}) && data["e"] == json!([])), "{again:?}");
    // A browser that comes back says by itself where it was.
    let header = ["-H", &browser.token, "-H", &format!("Last-Event-ID: {at}")];
    let back = curl(browser.daemon.api_by_tcp, &format!("/live?after={}", after(&page)), &header).await;
    assert!(!String::from_utf8_lossy(&back.body).contains("discover"));
    // It was another run of the daemon.
    let anew = browser.stream("after=1-1").await;
    assert_eq!(anew[0].0, "anew");
    assert_eq!(
        curl(browser.daemon.api_by_tcp, "/live?after=1&x=1", &["-H", &browser.token]).await.status,
        400
    );
    assert_eq!(curl(browser.daemon.api_by_tcp, "/live?of=n9", &["-H", &browser.token]).await.status, 404);
    let of = browser.stream(&format!("of={MAC}")).await;
    let tails: Vec<&Value> =
        of.iter().filter(|(event, ..)| event == "tail").map(|(_, _, data)| &data["of"]).collect();
    assert_eq!(tails, ["console", "log"]);
}
