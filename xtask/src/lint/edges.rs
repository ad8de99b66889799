//! The rules of dependency: which crate may use which, and which module may do I/O.

use std::path::{Path, PathBuf};

use super::metadata::{Dependency, Metadata};
use super::source::{Source, words};

/// Each crate, and the crates of ours that it may depend on (tests aside).
const CRATES: [(&str, &[&str]); 8] = [
    ("pxe-common", &[]),
    ("pxe-contract", &[]),
    ("pxe-ebpf", &["pxe-common"]),
    ("pxe-userspace", &["pxe-common", "pxe-contract"]),
    ("pxe-init", &["pxe-contract"]),
    ("bridgehead-tests", &[]),
    ("bridgehead-fuzz", &["pxe-common", "pxe-contract", "pxe-init", "pxe-userspace"]),
    // pxe-common for `bench limit`, which runs the kernel programs without the daemon; pxe-contract for the modules of
    // stage 1.
    ("xtask", &["bridgehead-tests", "pxe-common", "pxe-contract"]),
];

/// A crate, a dependency that it must not have even for its tests, and why.
const NEVER: [(&str, &str, &str); 1] =
    [("bridgehead-tests", "pxe-contract", "it judges what crosses, and writes down for itself what that is")];

/// Pure, beside those whose own first lines say "Pure": they compute, and others do. A trailing slash means everything
/// below.
const PURE: [&str; 11] = [
    "pxe-common/src/",
    "pxe-contract/src/",
    "pxe-userspace/src/app/serving",
    "pxe-userspace/src/provision/boot/",
    "pxe-userspace/src/serve/carousel/pace",
    "pxe-userspace/src/serve/carousel/schedule",
    "pxe-userspace/src/serve/dhcp/leases",
    "pxe-userspace/src/serve/dhcp/server",
    "pxe-userspace/src/serve/tftp/server",
    "pxe-userspace/src/serve/tftp/transfer",
    "pxe-userspace/src/dataplane/chunks",
];

/// What pure modules must not mention: I/O, and clocks (time is an argument).
const OUTSIDE: [&str; 8] = [
    "tokio::",
    "aya::",
    "bollard::",
    "rtnetlink::",
    "std::net::UdpSocket",
    "Instant::now",
    "SystemTime::now",
    "Timestamp::now",
];

/// Pure but for one name: aya's marker for plain old data can only be put on a type where the type is.
const POD: &str = "pxe-common/src/pod.rs";

/// The only modules that may use aya's types.
const DATAPLANE: &str = "pxe-userspace/src/dataplane/";

/// The directories of the crates' sources, from the workspace's root.
pub(crate) fn source_dirs() -> Vec<PathBuf> {
    let dir = |name: &str| Path::new(name.strip_prefix("bridgehead-").unwrap_or(name)).join("src");
    CRATES.iter().map(|(name, _)| dir(name)).collect()
}

/// Every violation, as `WHERE: what`.
pub(crate) fn check(sources: &[Source], metadata: &Metadata) -> Vec<String> {
    let mut broken = Vec::new();
    crates(metadata, &mut broken);
    for source in sources {
        modules(&source.file.display().to_string(), &source.text, &mut broken);
    }
    broken
}

fn crates(metadata: &Metadata, broken: &mut Vec<String>) {
    let ours = |name: &str| CRATES.iter().any(|(ours, _)| *ours == name);
    for package in &metadata.packages {
        let Some((_, allowed)) = CRATES.iter().find(|(name, _)| *name == package.name) else {
            broken.push(format!("{}: a crate that xtask/src/lint/edges.rs has no rule for", package.name));
            continue;
        };
        for Dependency { name, kind, .. } in &package.dependencies {
            if kind.is_none() && ours(name) && !allowed.contains(&name.as_str()) {
                broken.push(format!("{}/Cargo.toml: may not depend on {name}", package.name));
            }
            for (_, _, why) in
                NEVER.iter().filter(|(judge, judged, _)| *judge == package.name && *judged == *name)
            {
                broken.push(format!("{}/Cargo.toml: may not depend on {name}: {why}", package.name));
            }
        }
    }
}

fn modules(file: &str, text: &str, broken: &mut Vec<String>) {
    let is_test = file.ends_with("tests.rs") || file.contains("/tests/");
    let says_so = text.lines().take_while(|line| line.starts_with("//!")).any(|line| line.contains("Pure"));
    let pure = (says_so || PURE.iter().any(|p| file.starts_with(p))) && !is_test && file != POD;
    // By convention the tests are at the end of a file.
    for (i, line) in text.lines().enumerate().take_while(|(_, line)| line.trim() != "#[cfg(test)]") {
        let mentions = |what: &str| words(line, what).next().is_some();
        if file.starts_with("pxe-userspace/src/") && !file.starts_with(DATAPLANE) && mentions("aya::") {
            broken.push(format!("{file}:{}: aya's types stay in {DATAPLANE}", i + 1));
        }
        for outside in OUTSIDE.iter().filter(|o| pure && mentions(o)) {
            broken.push(format!("{file}:{}: a pure module mentions {outside}", i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(file: &str, text: &str) -> Vec<String> {
        let mut broken = Vec::new();
        modules(file, text, &mut broken);
        broken
    }

    #[test]
    fn a_pure_module_that_reads_the_clock_is_named_with_its_line() {
        let found = broken("pxe-userspace/src/serve/dhcp/leases.rs", "fn f() {\n    Timestamp::now();\n}\n");
        assert_eq!(
            found,
            ["pxe-userspace/src/serve/dhcp/leases.rs:2: a pure module mentions Timestamp::now"]
        );
    }

    #[test]
    fn comments_tests_and_other_names_are_no_mention() {
        let text =
            "// tokio::spawn\nfn f() { himalaya::climb() }\n#[cfg(test)]\nmod tests { use tokio::test; }\n";
        assert_eq!(broken("pxe-userspace/src/provision/boot/mod.rs", text), [""; 0]);
    }

    #[test]
    fn aya_stays_in_the_dataplane() {
        assert_eq!(broken("pxe-userspace/src/host/net/mod.rs", "use aya::Ebpf;\n").len(), 1);
        assert_eq!(broken("pxe-userspace/src/dataplane/load.rs", "use aya::Ebpf;\n").len(), 0);
    }

    #[test]
    fn a_crate_may_only_use_what_its_rule_names() {
        let text = r#"{"packages":[{"name":"pxe-common","dependencies":[
            {"name":"pxe-userspace","kind":null},{"name":"bridgehead-tests","kind":"dev"}]}]}"#;
        let mut broken = Vec::new();
        crates(&serde_json::from_str(text).unwrap(), &mut broken);
        assert_eq!(broken, ["pxe-common/Cargo.toml: may not depend on pxe-userspace"]);
    }

    #[test]
    fn judges_take_nothing_from_the_contract_not_even_for_their_tests() {
        let text = r#"{"packages":[{"name":"bridgehead-tests","dependencies":[
            {"name":"pxe-contract","kind":"dev"},{"name":"pxe-init","kind":"dev"}]}]}"#;
        let mut broken = Vec::new();
        crates(&serde_json::from_str(text).unwrap(), &mut broken);
        assert_eq!(broken.len(), 1, "{broken:?}");
        assert!(broken[0].starts_with("bridgehead-tests/Cargo.toml: may not depend on pxe-contract: "));
    }
}
