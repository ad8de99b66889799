//! The API against its own description, `GET /api/openapi.json`: schemathesis makes requests from it, sound and unsound
//! ones, and judges the answers.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{Appliance, address_only};
use lab::needs::Needs;
use lab::net::Host;
use lab::process::output;
use lab::world::{self, World};
use serde_json::Value;

const API: &str = "http://127.0.0.1:7480";
const NODE: &str = "\n[[node]]\nname = \"n1\"\nmac = \"52:54:00:77:00:01\"\n";
const ROLES: [&str; 3] = ["viewer", "operator", "admin"];

/// Those of schemathesis, and that of `hooks.py`.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance,role_is_enforced";

/// How much is asked.
struct Amount {
    /// Of each operation.
    examples: usize,
    phases: &'static str,
    /// As each role, at least.
    cases: u64,
}

#[test]
fn each_role_gets_what_the_document_says_and_nothing_that_it_forbids() {
    world::test(needs(), |world| ask(world, &Amount { examples: 6, phases: "fuzzing", cases: 200 }));
}

/// A quarter of an hour: `cargo xtask test -- --ignored ten_thousand_requests_as_each_role`.
#[test]
#[ignore = "long"]
fn ten_thousand_requests_as_each_role_find_nothing() {
    world::test(needs(), |world| {
        ask(world, &Amount { examples: 300, phases: "examples,coverage,fuzzing", cases: 10_000 })
    });
}

fn needs() -> Needs<'static> {
    Needs::of(&["ip", "curl"]).processors(1)
}

fn ask(world: &World, amount: &Amount) -> Result<()> {
    let st = lab::peers::schemathesis();
    if !st.is_file() {
        eprintln!("skipped: {} is not installed (cargo xtask setup)", st.display());
        return Ok(());
    }
    let host = Host::new("h1", 1)?;
    let appliance = Appliance::start(world, &(address_only(world, &[host.port()], "auto") + NODE))?;
    fs::write(world.path("files/ten"), "0123456789")?;
    appliance.run(&["node", "add", "n2", "--mac", "52:54:00:77:00:02"])?;
    let document = world.path("openapi.json");
    fs::write(&document, described(&appliance)?)?;
    for role in ROLES {
        let token = appliance.run(&["token", "add", &format!("the-{role}-of-this-test"), "--role", role])?;
        judge(world, &st, &document, role, token.trim(), amount)
            .with_context(|| format!("as {role}; the daemon's log:\n{}", errors(appliance.log())))?;
    }
    ensure!(appliance.run(&["status"])?.contains("bridge pxe0"), "it still answers");
    appliance.stop()?;
    Ok(())
}

/// The document, as any viewer gets it.
fn described(appliance: &Appliance) -> Result<String> {
    let token = appliance.run(&["token", "add", "reader-of-this-test", "--role", "viewer"])?;
    let header = format!("Authorization: Bearer {}", token.trim());
    let url = format!("{API}/api/openapi.json");
    let text = output(Command::new("curl").args(["-sS", "-m", "20", "-H", &header, &url]))?;
    let document: Value = serde_json::from_str(&text).context("the document is JSON")?;
    let paths = document["paths"].as_object().context("it has paths")?.len();
    ensure!(document["openapi"] == "3.1.0" && paths > 25, "{paths} paths");
    Ok(text)
}

/// Runs schemathesis as one role.
fn judge(world: &World, st: &Path, document: &Path, role: &str, token: &str, amount: &Amount) -> Result<()> {
    let directory = world.path(role);
    fs::create_dir(&directory)?;
    let report = directory.join("report.json");
    let hooks = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api");
    let mut command = Command::new(st);
    command.arg("run").arg(document).args(["--url", API, "--checks", CHECKS, "--phases", amount.phases]);
    command.args(["--max-examples", &amount.examples.to_string(), "--seed", "1", "--workers", "2"]);
    command.args(["--generation-database", "none", "--request-timeout", "20", "--no-color"]);
    command.args(["--continue-on-failure", "--no-shrink", "--warnings", "off"]);
    command.args(["--suppress-health-check", "all"]);
    command.arg("--report").arg("json").arg("--report-json-path").arg(&report);
    if role != "viewer" {
        // Packets of a machine that does not boot have no end.
        command.args(["--exclude-path", "/api/nodes/{name}/trace"]);
    }
    command.current_dir(directory).env("PYTHONPATH", hooks).env("PYTHONDONTWRITEBYTECODE", "1");
    command.env("SCHEMATHESIS_HOOKS", "hooks").env("BRIDGEHEAD_ROLE", role).env("BRIDGEHEAD_TOKEN", token);
    let ended = command.output().context("running schemathesis")?;
    let said = String::from_utf8_lossy(&ended.stdout);
    ensure!(ended.status.success(), "{said}\n{}", String::from_utf8_lossy(&ended.stderr));
    let report: Value = serde_json::from_str(&fs::read_to_string(&report)?)?;
    let cases = generated(&report).with_context(|| format!("the report has no count: {report}"))?;
    eprintln!("as {role}: {cases} requests");
    ensure!(cases >= amount.cases, "only {cases} requests:\n{said}");
    Ok(())
}

/// The number of requests, wherever the report has it.
fn generated(report: &Value) -> Option<u64> {
    let found = lab::appliance::find(report, &|fields| fields.get("generated").is_some_and(Value::is_u64))?;
    found["generated"].as_u64()
}

/// The last errors of the daemon's log.
fn errors(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("ERROR")).collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}
