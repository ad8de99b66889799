//! The page in Debian's Chromium, before a rack of simulated machines.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{ADDRESS, Appliance};
use lab::browser::{Browser, PROGRAMS, Size};
use lab::needs::Needs;
use lab::net::Host;
use lab::process::output;
use lab::rom::Rom;
use lab::world::{self, World};
use lab::{net, storm, workspace};

const PAGE: &str = "http://127.0.0.1:7480";
const UEFI: u16 = 7;
const DESKTOP: Size = (1280, 960);
const PHONE: Size = (390, 844);
const TAB: char = '\u{e004}';
const ENTER: char = '\u{e007}';

/// Only with this in the environment is the picture made anew that README shows.
const PICTURE: &str = "BRIDGEHEAD_PICTURE";

/// axe-core, as `cargo xtask setup` has it from npm.
fn axe() -> PathBuf {
    lab::target().join("axe-core/axe.min.js")
}

/// Four racks of simulated machines; one of them will have its DHCP only.
fn rack(world: &World, appliance: &Appliance, host: &Host) -> Result<()> {
    let table = world.path("rack.csv");
    let mut rows = String::from("name,mac,labels,rack,slot\n");
    for n in 0..48 {
        let label = if n % 6 == 0 { "gpu" } else { "" };
        let (rack, slot) = (["a1", "a2", "b1", "b2"][n / 12], n % 12 + 1 + (n % 12) / 4);
        rows += &format!("{rack}-{slot:02},{}:00:{n:02x},{label},{rack},{slot}\n", storm::MACS);
    }
    rows += &format!("talker,{},,b2,16\n", host.mac());
    fs::write(&table, rows)?;
    appliance.run(&["node", "import", table.to_str().context("a path")?]).map(drop)
}

/// A line of the talker's console, or of what its workload writes.
fn talk(host: &Host, path: &str, boot: &str, first: u64, text: &str) -> Result<()> {
    let line = format!(r#"{{"uptime": {first}.5, "from": "kernel", "level": 6, "text": "{text}"}}"#);
    let mac = host.mac();
    let batch = format!(
        r#"{{"mac": "{mac}", "boot": "{boot}", "first": {first}, "uptime": {first}.6, "lines": [{line}]}}"#
    );
    let mut curl = host.command("curl");
    curl.args(["--silent", "--fail-with-body", "--max-time", "60", "-H", "Content-Type: application/json"]);
    output(curl.args(["--data", &batch]).arg(format!("http://{ADDRESS}{path}"))).map(drop)
}

/// Every problem that axe-core finds on the page that is shown.
fn problems(browser: &Browser, axe: &str) -> Result<Vec<String>> {
    browser.script(&format!("{axe}; return true"))?;
    let found = browser.script_later(
        "const done = arguments[arguments.length - 1];\
         axe.run({ resultTypes: ['violations'] }).then((found) => done(found.violations.map((v) =>\
         `${v.id}: ${v.help}: ${v.nodes.slice(0, 3).map((n) => n.html + ' ' + n.any.map((c) => c.message).join()).join(' | ')}`)))",
    )?;
    let found = found.as_array().with_context(|| format!("axe says {found}"))?;
    Ok(found.iter().filter_map(|problem| problem.as_str().map(str::to_owned)).collect())
}

/// Looks at every page in both schemes, on a desk and on a phone.
fn accessible(world: &World, browser: &Browser, pages: &[&str]) -> Result<()> {
    let axe = fs::read_to_string(axe()).context("axe-core: cargo xtask setup")?;
    let mut found = BTreeSet::new();
    for path in pages {
        for (size, dark) in [(DESKTOP, false), (DESKTOP, true), (PHONE, false), (PHONE, true)] {
            browser.shows(size, dark)?;
            browser.open(&format!("{PAGE}{path}"))?;
            browser.until("return document.documentElement.classList.contains('scripted')")?;
            let wide = browser.script("return document.documentElement.scrollWidth - innerWidth")?;
            ensure!(wide.as_i64() <= Some(0), "{path} is {wide} px wider than a window of {}", size.0);
            let name = format!(
                "page{}-{}-{}.png",
                path.replace('/', "-"),
                size.0,
                if dark { "dark" } else { "light" }
            );
            browser.picture(&world.path(name))?;
            let problems = problems(browser, &axe)?;
            found.extend(
                problems.into_iter().map(|problem| format!("{path} at {}, dark {dark}: {problem}", size.0)),
            );
        }
    }
    browser.shows(DESKTOP, false)?;
    ensure!(found.is_empty(), "axe-core finds\n{}", found.into_iter().collect::<Vec<_>>().join("\n"));
    Ok(())
}

/// The overview and the list follow a storm, by patches of what they show.
fn storm_is_seen(world: &World, appliance: &Appliance, browser: &Browser) -> Result<()> {
    browser.until("return document.querySelector('#all-machines').textContent === '49'")?;
    ensure!(browser.script("return document.querySelectorAll('.rack').length")? == 4);
    browser.script("window.mark = 'not loaded again'; return true")?;
    let storm = ["--nodes", "48", "--client", "ipxe", "--keep-leases", "--profile", "web", "--spread", "12s"];
    let storm = std::thread::spawn(move || storm::run(&storm));
    browser.until("return Number(document.querySelector('#count-m-kernel').textContent) >= 32")?;
    if std::env::var_os(PICTURE).is_some() {
        browser.picture(&workspace().join("docs/page.png"))?;
    }
    let (code, outcome) = storm.join().expect("it does not panic")?;
    ensure!(code == Some(0), "{outcome:#}");
    // The page says the same as the register.
    let nodes = appliance.json(&["nodes"])?;
    let loaded: Vec<&str> = nodes
        .as_array()
        .into_iter()
        .flatten()
        .filter(|node| node["stage"] == "initrd")
        .filter_map(|node| node["mac"].as_str())
        .collect();
    ensure!(loaded.len() > 40, "{nodes:#}");
    browser.until(&format!(
        "return document.querySelector('#count-m-kernel').textContent === '{}'",
        loaded.len()
    ))?;
    let in_racks = loaded.iter().filter(|mac| !mac.contains(":ff:ff:")).count();
    browser.until(&format!(
        "return [...document.querySelectorAll('.unit use')].filter((u) => u.getAttribute('href') === '#m-kernel').length === {in_racks}"
    ))?;
    ensure!(browser.text("tbody[data-events]")?.contains("initrd"), "no event of the storm is shown");
    unique_events(browser)?;
    ensure!(browser.script("return window.mark")? == "not loaded again");
    browser.picture(&world.path("page-after-storm.png"))
}

fn unique_events(browser: &Browser) -> Result<()> {
    let ids = browser
        .script("return [...document.querySelectorAll('[data-event]')].map((row) => row.dataset.event)")?;
    let ids: Vec<u64> =
        ids.as_array().into_iter().flatten().filter_map(|id| id.as_str()?.parse().ok()).collect();
    ensure!(
        !ids.is_empty() && ids.windows(2).all(|pair| pair[0] > pair[1]),
        "not each once, newest first: {ids:?}"
    );
    Ok(())
}

/// Filters, and opens a machine by keyboard alone.
fn list_is_filtered(browser: &Browser) -> Result<()> {
    browser.open(&format!("{PAGE}/machines"))?;
    browser.press(TAB)?;
    ensure!(browser.script("return document.activeElement.className")? == "skip", "the first stop");
    browser.write("input[name=select]", "label=gpu")?;
    browser.press(ENTER)?;
    browser.until("return location.search.includes('select=label%3Dgpu') && document.querySelectorAll('tr[data-m]').length === 8")?;
    browser.script("document.querySelector('tr[data-m] a').focus(); return true")?;
    browser.press(ENTER)?;
    browser.until("return document.querySelector('h1').textContent === 'a1-01'")?;
    ensure!(browser.text("#events-title ~ .scroll")?.contains("initrd"));
    // A button asks the API, whose answer is shown.
    browser.click("form[data-path$='/hold?once=1'] button")?;
    browser.until(
        "return document.querySelector('output.said').textContent.includes('has no stage 1 to stop in')",
    )
}

#[test]
fn people_before_racks_see_what_happens() {
    world::test(Needs::of(&[&PROGRAMS[..], &["ip", "curl"]].concat()).processors(2), |world| {
        let talker = Host::new("talker", 1)?;
        // By the daemon alone: the kernel tells of its ACKs late, and would leave machines that boot in a moment there.
        let config = storm::config(world, &[talker.port()], None, [300_001, 204_800, 77])?;
        let config = config.replace("[network]\n", "[network]\nfast-path = \"off\"\n")
            + "[api]\nlisten = \"127.0.0.1:7480\"\n";
        let appliance = Appliance::start(world, &config)?;
        rack(world, &appliance, &talker)?;
        let browser = Browser::start(world)?;
        browser.shows(DESKTOP, false)?;
        browser.open(PAGE)?;
        ensure!(browser.text("main")?.contains("bridgehead login"), "a stranger is told how to log in");
        let link = appliance.run(&["login", "--role", "admin"])?;
        browser.open(link.trim())?;
        ensure!(browser.text(".who")?.contains("root, admin"));
        storm_is_seen(world, &appliance, &browser)?;
        list_is_filtered(&browser)?;

        // A machine's console goes on, over a restart of the daemon.
        let rom = Rom::new(&talker, UEFI);
        rom.bind(ADDRESS)?;
        // The lab's hosts have a network of 256 addresses, and the storm's appliance has a larger one.
        net::ip(["-n", "talker", "route", "add", "10.77.0.0/20", "dev", "eth0"])?;
        talk(
            &talker,
            "/node/console",
            "aaaaaaaa-0000-4000-8000-000000000001",
            0,
            "Linux version 6.1 <b>bold</b>",
        )?;
        browser.open(&format!("{PAGE}/machines/talker"))?;
        let console = "return document.querySelector('#console-lines').textContent";
        ensure!(browser.script(console)?.as_str().is_some_and(|text| text.contains("<b>bold</b>")));
        browser.script("window.mark = 'not loaded again'; return true")?;
        talk(
            &talker,
            "/node/console",
            "aaaaaaaa-0000-4000-8000-000000000001",
            1,
            "before \\u001b[2J the restart",
        )?;
        browser.until(&format!("{console}.includes('before ^[[2J the restart')"))?;
        rom.discover(0)?;
        browser.until("return document.querySelectorAll('[data-event]').length >= 4")?;
        appliance.crash()?;
        browser.until("return document.body.hasAttribute('data-lost')")?;
        let appliance = Appliance::start(world, &config)?;
        browser.until("return !document.body.hasAttribute('data-lost')")?;
        rom.bind(ADDRESS)?;
        talk(&talker, "/node/console", "aaaaaaaa-0000-4000-8000-000000000001", 2, "after the restart")?;
        talk(&talker, "/node/logs", "aaaaaaaa-0000-4000-8000-000000000001", 0, "a workload speaks")?;
        browser.until(&format!("{console}.includes('after the restart')"))?;
        browser
            .until("return document.querySelector('#log-lines').textContent.includes('a workload speaks')")?;
        let shown = appliance.run(&["events", "--node", "talker", "--json"])?.lines().count();
        browser.until(&format!("return document.querySelectorAll('[data-event]').length === {shown}"))?;
        unique_events(&browser)?;
        let lines = browser.script(
            "return [...document.querySelectorAll('#console-lines > *')].map((line) => line.textContent)",
        )?;
        ensure!(lines.as_array().is_some_and(|lines| lines.len() == 3), "each line once: {lines}");
        ensure!(browser.script("return window.mark")? == "not loaded again");

        let pages = [
            "/",
            "/machines",
            "/machines/a1-01",
            "/machines/talker",
            "/launches",
            "/images",
            "/audit",
            "/tokens",
        ];
        accessible(world, &browser, &pages)?;

        // A token is shown once, and what was done is in the audit.
        browser.open(&format!("{PAGE}/tokens"))?;
        browser.write("input[name=name]", "ci")?;
        browser.click("form.fields button")?;
        browser.until("return document.querySelector('.secret')?.textContent.startsWith('bh_') ?? false")?;
        browser.until("return document.querySelector('#tokens').textContent.includes('viewer')")?;
        browser.click("form[data-path='/api/tokens/ci'] button")?;
        browser.accept()?;
        browser.until("return document.querySelector('#tokens').textContent.includes('no tokens')")?;
        browser.open(&format!("{PAGE}/audit"))?;
        let audit = browser.text("main")?;
        ensure!(
            audit.contains("token.add") && audit.contains("token.rm") && !audit.contains("bh_"),
            "{audit}"
        );

        // Without script, pages can be read.
        browser.devtools("Emulation.setScriptExecutionDisabled", &serde_json::json!({ "value": true }))?;
        browser.open(&format!("{PAGE}/machines"))?;
        let source = browser.text("main")?;
        ensure!(source.contains("50 machines") && source.contains("a1-01"), "{source}");
        let none = browser.script("return getComputedStyle(document.querySelector('.who form')).display")?;
        ensure!(none == "none", "a button that does nothing is shown: {none}");

        let asked = browser.end()?;
        let elsewhere: Vec<&String> =
            asked.iter().filter(|url| !url.starts_with(&format!("{PAGE}/"))).collect();
        ensure!(!asked.is_empty() && elsewhere.is_empty(), "it asked elsewhere: {elsewhere:?}");
        appliance.stop()?;
        Ok(())
    });
}
