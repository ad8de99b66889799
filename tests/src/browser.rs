//! A real browser, Debian's Chromium, driven through chromedriver by WebDriver (W3C, section 6) and, where that has no
//! word for it, by the DevTools protocol.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::process::{PATIENCE, Process, wait_for};
use crate::world::World;

/// What a test needs of it.
pub const PROGRAMS: [&str; 2] = ["chromium", "chromedriver"];

/// Nothing that a browser does on its own account: updates, lists of dangerous sites, suggestions.
const QUIET: [&str; 10] = [
    "--headless=new",
    // Root's browser has no sandbox of its own. It is in the test's namespaces, and sees our pages only.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--disable-features=OptimizationHints,MediaRouter,Translate,AutofillServerCommunication",
];

const PORT: u16 = 9515;

/// A browser with one window. Dropping it ends it.
pub struct Browser {
    driver: Option<Process>,
    session: String,
    net_log: PathBuf,
}

/// The width and height of a window, in CSS pixels.
pub type Size = (u32, u32);

impl Browser {
    /// Starts one, as somebody who has never been here.
    pub fn start(world: &World) -> Result<Self> {
        let port = format!("--port={PORT}");
        let mut command = Command::new("chromedriver");
        command.arg(port).env("HOME", world.dir());
        let driver = Process::start(&mut command, &world.path("chromedriver.log"))?;
        wait_for(PATIENCE, || Ok(TcpStream::connect(("127.0.0.1", PORT)).ok()))
            .context("chromedriver does not listen")?;
        let net_log = world.path("net-log.json");
        let profile = format!("--user-data-dir={}", world.path("profile").display());
        let log = format!("--log-net-log={}", net_log.display());
        let arguments: Vec<&str> = QUIET.into_iter().chain([&*profile, &*log]).collect();
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "binary": "/usr/bin/chromium", "args": arguments },
        } } });
        let session = ask("POST", "/session", Some(&wanted))?;
        let session =
            session["sessionId"].as_str().with_context(|| format!("no session: {session}"))?.to_owned();
        Ok(Self { driver: Some(driver), session, net_log })
    }

    fn command(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        ask(method, &format!("/session/{}/{path}", self.session), body)
    }

    pub fn open(&self, url: &str) -> Result<()> {
        self.command("POST", "url", Some(&json!({ "url": url }))).map(drop)
    }

    /// What a script returns; it begins with `return`.
    pub fn script(&self, script: &str) -> Result<Value> {
        self.command("POST", "execute/sync", Some(&json!({ "script": script, "args": [] })))
            .with_context(|| script.chars().take(200).collect::<String>())
    }

    /// The same of a script that calls its last argument when it is done.
    pub fn script_later(&self, script: &str) -> Result<Value> {
        self.command("POST", "execute/async", Some(&json!({ "script": script, "args": [] })))
    }

    /// Waits until a script's value is true.
    pub fn until(&self, script: &str) -> Result<()> {
        let held = wait_for(PATIENCE, || Ok((self.script(script)? == true).then_some(())));
        held.with_context(|| {
            let shows = self.script("return document.body.innerText").unwrap_or_default();
            format!(
                "`{script}` does not become true; the page shows:\n{}",
                shows.as_str().unwrap_or_default()
            )
        })
    }

    /// The text of an element, as it is shown.
    pub fn text(&self, selector: &str) -> Result<String> {
        let text = self.script(&format!("return document.querySelector({selector:?})?.innerText ?? null"))?;
        Ok(text.as_str().with_context(|| format!("the page has no {selector}"))?.to_owned())
    }

    /// Clicks on an element.
    pub fn click(&self, selector: &str) -> Result<()> {
        let element = self.element(selector)?;
        self.command("POST", &format!("element/{element}/click"), Some(&json!({}))).map(drop)
    }

    /// Types into an element.
    pub fn write(&self, selector: &str, text: &str) -> Result<()> {
        let element = self.element(selector)?;
        self.command("POST", &format!("element/{element}/value"), Some(&json!({ "text": text }))).map(drop)
    }

    fn element(&self, selector: &str) -> Result<String> {
        let found = json!({ "using": "css selector", "value": selector });
        let found = self.command("POST", "element", Some(&found)).with_context(|| selector.to_owned())?;
        let id = found.as_object().and_then(|element| element.values().next()?.as_str().map(str::to_owned));
        id.with_context(|| format!("no element {selector}"))
    }

    /// Presses a key, wherever the focus is: `\u{e004}` is the tabulator, `\u{e007}` Enter (WebDriver, section 17.4.2).
    pub fn press(&self, key: char) -> Result<()> {
        let actions = json!({ "actions": [{ "type": "key", "id": "keys", "actions": [
            { "type": "keyDown", "value": key }, { "type": "keyUp", "value": key },
        ] }] });
        self.command("POST", "actions", Some(&actions)).map(drop)
    }

    /// Answers the question that a page asks.
    pub fn accept(&self) -> Result<()> {
        self.command("POST", "alert/accept", Some(&json!({}))).map(drop)
    }

    /// A command of the DevTools protocol.
    pub fn devtools(&self, command: &str, parameters: &Value) -> Result<Value> {
        let body = json!({ "cmd": command, "params": parameters });
        self.command("POST", "goog/cdp/execute", Some(&body)).with_context(|| command.to_owned())
    }

    /// From now on the window has this size, and people want dark pages, or light ones.
    pub fn shows(&self, (width, height): Size, dark: bool) -> Result<()> {
        let is_phone = width < 600;
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone });
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics)?;
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", &features).map(drop)
    }

    /// The window as a PNG.
    pub fn picture(&self, file: &Path) -> Result<()> {
        let picture = self.command("GET", "screenshot", None)?;
        let bytes = from_base64(picture.as_str().context("a picture")?)?;
        fs::write(file, bytes).with_context(|| file.display().to_string())
    }

    /// Ends it, and returns every URL that pages asked the network for, as the browser's own log has them. What the browser
    /// asks by itself, such as whether it is the newest, no page can help; the log says of those that no origin asks.
    pub fn end(mut self) -> Result<Vec<String>> {
        ask("DELETE", &format!("/session/{}", self.session), None)?;
        let driver = self.driver.take().context("it runs")?;
        drop(driver);
        let text = fs::read_to_string(&self.net_log).context("the network log")?;
        let log: Value = serde_json::from_str(&text).context("the network log is JSON")?;
        let start =
            log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"].as_u64().context("its constants")?;
        let events = log["events"].as_array().context("its events")?;
        let starts = events.iter().filter(|event| event["type"].as_u64() == Some(start));
        let parameters = starts.map(|event| &event["params"]);
        let of_pages =
            parameters.filter(|of| of["initiator"].as_str().is_some_and(|origin| origin != "not an origin"));
        let urls = of_pages.filter_map(|of| of["url"].as_str().map(str::to_owned));
        Ok(urls.collect())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if self.driver.is_some() {
            // The driver's end is the browser's in any case.
            let _ = ask("DELETE", &format!("/session/{}", self.session), None);
        }
    }
}

/// Asks chromedriver, and returns the value of its answer.
fn ask(method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut stream = TcpStream::connect(("127.0.0.1", PORT)).context("chromedriver")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{PORT}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = Vec::new();
    // It may leave the connection open whatever was asked for: the length says where the answer ends.
    let mut piece = [0; 65536];
    let (head, body) = loop {
        if let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
            let length =
                head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            let length: usize = length.with_context(|| format!("no length: {head}"))?;
            if answer.len() >= end + 4 + length {
                break (head, answer[end + 4..end + 4 + length].to_vec());
            }
        }
        let read = stream.read(&mut piece)?;
        ensure!(read > 0, "chromedriver's answer to {path} ends early");
        answer.extend_from_slice(&piece[..read]);
    };
    let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let answer: Value = serde_json::from_slice(&body).context("chromedriver's answer is JSON")?;
    if status != "200" {
        bail!("{method} {path}: {}: {}", answer["value"]["error"], answer["value"]["message"]);
    }
    Ok(answer["value"].clone())
}

/// RFC 4648, section 4.
fn from_base64(text: &str) -> Result<Vec<u8>> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => Ok(c - b'A'),
        b'a'..=b'z' => Ok(c - b'a' + 26),
        b'0'..=b'9' => Ok(c - b'0' + 52),
        b'+' => Ok(62),
        b'/' => Ok(63),
        other => bail!("{other:#x} in Base64"),
    };
    let digits = text.trim_end_matches('=').bytes().map(value).collect::<Result<Vec<u8>>>()?;
    let group = |group: &[u8]| {
        let bits =
            group.iter().fold(0u32, |bits, digit| bits << 6 | u32::from(*digit)) << (6 * (4 - group.len()));
        bits.to_be_bytes()[1..group.len()].to_vec()
    };
    Ok(digits.chunks(4).flat_map(group).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_rfc_4648() {
        for (plain, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(from_base64(encoded).unwrap(), plain.as_bytes());
        }
        assert!(from_base64("Zm9v-").is_err());
    }
}
