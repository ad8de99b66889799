use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use axum::http::HeaderMap;
use pxe_common::verdict::counter_name;

use super::*;
use crate::api::documents::Tier;
use crate::machines::diagnosis::BUCKETS;
use crate::serve::tftp;

/// The numbers of an appliance with a fast path, in which every counter was used.
pub(in super::super) fn measures() -> Measures {
    let hook = |first: u64| (0..).map_while(counter_name).zip(first..).collect();
    let pacing = dhcp::PacingStatus { most: Some(9), under_way: 2, waiting: 1, capacity: Some(125_000_000) };
    let counters = dhcp::Counters { offers: 7, malformed: [("runt", 3)].into(), ..Default::default() };
    let room = dhcp::Room { size: 100, free: 95 };
    Measures {
        version: "1.2.3",
        started: Timestamp::from_microsecond(1_500_000).unwrap(),
        alerts: 1,
        ports: vec![
            PortStatus { name: "eth1".into(), tier: Tier::Tc, reason: Some("no \"XDP\"".into()) },
            PortStatus { name: "a\"b\\c".into(), tier: Tier::XdpAndTc, reason: None },
        ],
        dhcp: dhcp::Status {
            counters,
            rivals: Vec::new(),
            bound: 5,
            room,
            forged: None,
            elsewhere: None,
            pacing,
        },
        tftp: tftp::Stats::default().read().map(|(name, _)| (name, 4)).collect(),
        kernel: Some(KernelMeasures {
            counters: dataplane::Counters { xdp: hook(100), tc: hook(500) },
            published_bytes: 1 << 20,
        }),
    }
}

fn scrape() -> Scrape {
    let mut ack = Histogram::default();
    (ack.counts[0], ack.counts[3], ack.counts[BUCKETS.len()], ack.sum) = (4, 2, 1, 701.5);
    Scrape {
        measures: measures(),
        boots: Boots {
            stages: vec![(Stage::Ack, ack.clone()), (Stage::Workload, ack)],
            failures: vec![(Cause::DigestMismatch, 2), (Cause::WrongArchitecture, 1)],
            transfers: 3,
        },
        machines: [(None, 1), (Some(Stage::Failed), 2)].into(),
        http_sent_bytes: 1 << 33,
    }
}

fn assert_has(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|l| l == *line), "{line} not in\n{text}");
    }
}

#[test]
fn what_goes_up_and_down_is_a_gauge_and_a_sum_has_its_unit() {
    let text = scrape().render(Format::Text);
    assert_has(
        &text,
        &[
            "# TYPE bridgehead_build_info gauge",
            "bridgehead_build_info{version=\"1.2.3\"} 1",
            "bridgehead_start_time_seconds 1.5",
            "bridgehead_port_info{port=\"eth1\",tier=\"tc\"} 1",
            // Escaped.
            "bridgehead_port_info{port=\"a\\\"b\\\\c\",tier=\"xdp-and-tc\"} 1",
            "# TYPE bridgehead_dhcp_bound gauge",
            "bridgehead_dhcp_bound 5",
            "# TYPE bridgehead_dhcp_offers_total counter",
            "bridgehead_dhcp_offers_total 7",
            "bridgehead_dhcp_malformed_total{reason=\"runt\"} 3",
            "bridgehead_boots_limit 9",
            "bridgehead_nodes{stage=\"failed\"} 2",
            "bridgehead_boot_failures_total{cause=\"wrong-architecture\"} 1",
            "bridgehead_boot_stage_seconds_bucket{stage=\"ack\",le=\"1\"} 6",
            "bridgehead_boot_stage_seconds_bucket{stage=\"ack\",le=\"+Inf\"} 7",
            "bridgehead_boot_stage_seconds_sum{stage=\"workload\"} 701.5",
            "# TYPE bridgehead_sent_bytes_total counter",
            "bridgehead_sent_bytes_total{tier=\"xdp\"} 101",
            "bridgehead_sent_bytes_total{tier=\"daemon\"} 4",
            "bridgehead_sent_bytes_total{tier=\"http\"} 8589934592",
            "bridgehead_tftp_handed_back_total 4",
            "bridgehead_kernel_replies_total{tier=\"tc\"} 500",
            "# TYPE bridgehead_kernel_published_bytes gauge",
            "bridgehead_kernel_published_bytes 1048576",
            "bridgehead_transfers 3",
        ],
    );
    let passed = "bridgehead_kernel_passed_frames_total{tier=\"tc\",reason=\"no-program\"} ";
    assert!(text.contains(passed), "{text}");
}

#[test]
fn nothing_that_the_servers_count_is_left_out() {
    let known: Vec<&str> =
        families::TFTP.iter().map(|(name, _)| *name).chain([families::TFTP_BYTES]).collect();
    let counted: Vec<&str> = tftp::Stats::default().read().map(|(name, _)| name).collect();
    assert_eq!(counted, known, "families::TFTP has a line for each of tftp::Stats");
    let text = scrape().render(Format::Text);
    for name in (0..).map_while(counter_name).filter(|name| *name != "reply-bytes") {
        let reason = format!("reason=\"{name}\"");
        let alone = format!("kernel_{}_total", name.replace('-', "_"));
        assert!(text.contains(&reason) || text.contains(&alone), "{name} not in\n{text}");
    }
}

#[test]
fn the_format_is_what_the_client_prefers() {
    for (accept, format) in [
        (&[][..], Format::Text),
        (&["*/*"], Format::Text),
        (&["text/plain"], Format::Text),
        (&["application/openmetrics-text"], Format::OpenMetrics),
        (&["Application/OpenMetrics-Text; Version=1.0.0; charset=utf-8, */*;q=0.1"], Format::OpenMetrics),
        // A version that we do not support.
        (&["application/openmetrics-text;version=2.0.0,text/plain;q=0.1"], Format::Text),
        (&["application/openmetrics-text;q=0", "*/*"], Format::Text),
        (&["text/html,application/xhtml+xml,*/*;q=0.8"], Format::Text),
        (&["application/openmetrics-text;q=nonsense"], Format::Text),
        (&["text/plain;q=0.2", "application/openmetrics-text;q=0.3"], Format::OpenMetrics),
        // Prometheus 2.42's, and 3.0's.
        (
            &[
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
               text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            ],
            Format::OpenMetrics,
        ),
        (
            &["application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
               application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
               text/plain;version=0.0.4;q=0.2,*/*;q=0.1"],
            Format::OpenMetrics,
        ),
    ] {
        let mut headers = HeaderMap::new();
        for line in accept {
            headers.append(header::ACCEPT, line.parse().unwrap());
        }
        assert_eq!(accept::preferred(&headers), format, "{accept:?}");
    }
}

#[test]
fn every_family_is_in_the_manual() {
    let manual = include_str!("../../../../docs/metrics.md");
    let text = scrape().render(Format::Text);
    for family in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        let named = [format!("`{family}`"), format!("`{family}{{")].iter().any(|name| manual.contains(name));
        assert!(named, "docs/metrics.md does not name {family}");
    }
}

/// Prometheus' own tool, installed or as set-up unpacked it.
fn promtool() -> Option<PathBuf> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers/usr/bin/promtool");
    let found = [PathBuf::from("promtool"), unpacked]
        .into_iter()
        .find(|program| Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success()));
    if found.is_none() {
        eprintln!("skipped: promtool is not installed (cargo xtask setup)");
    }
    found
}

fn succeeds(output: Output, text: &str) {
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}\n{text}", String::from_utf8_lossy(&said));
}

#[test]
fn promtool_finds_no_fault() {
    let Some(promtool) = promtool() else { return };
    let without_fast_path = Scrape { measures: Measures { kernel: None, ..measures() }, ..scrape() };
    for scrape in [scrape(), without_fast_path] {
        let text = scrape.render(Format::Text);
        let mut checking = Command::new(&promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        checking.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        succeeds(checking.wait_with_output().unwrap(), &text);
    }
}

/// `check metrics` does not read OpenMetrics; the command that makes blocks from it does.
#[test]
fn prometheus_reads_our_openmetrics() {
    let Some(promtool) = promtool() else { return };
    let dir = tempfile::tempdir().unwrap();
    let text = scrape().render(Format::OpenMetrics);
    assert_has(&text, &["# TYPE bridgehead_port info", "# UNIT bridgehead_sent_bytes bytes", "# EOF"]);
    // A block's samples need times.
    let at =
        |line: &str| if line.starts_with('#') { format!("{line}\n") } else { format!("{line} 1700000000\n") };
    let timed: String = text.lines().map(at).collect();
    let file = dir.path().join("metrics");
    std::fs::write(&file, &timed).unwrap();
    let args = ["tsdb", "create-blocks-from", "openmetrics"];
    let output =
        Command::new(promtool).args(args).arg(&file).arg(dir.path().join("blocks")).output().unwrap();
    let said = String::from_utf8_lossy(&[&*output.stdout, &output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}\n{timed}");
}
