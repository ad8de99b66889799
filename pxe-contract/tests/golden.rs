//! What each released version wrote, by its own writers (`golden/VERSION/`), is read by today's readers; and today's
//! writers write what the present version's did, byte by byte.
//!
//! The documents of 0.1.0 were written by the daemon and pxe-init as they were before there was this crate. A version
//! that changes some gets a directory of its own: add what is new to the samples below, then
//! `BRIDGEHEAD_GOLDEN=record cargo test -p pxe-contract --test golden` with the new version in Cargo.toml. What is
//! there is never written again. Samples that an older version wrote otherwise stay, in a module of that version's.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use pxe_contract::blocks::{Block, Blocks};
use pxe_contract::cmdline;
use pxe_contract::console::{Batch, Said, Source};
use pxe_contract::engine::{PapersAnswer, PapersRequest};
use pxe_contract::facts::{
    Board, BootMode, Cpu, Disk, Facts, Firmware, Memory, Module, Neighbour, Nic, System, Told,
};
use pxe_contract::failure::ErrorDocument;
use pxe_contract::image::{Description, HealthCheck, Xattr};
use pxe_contract::paths::{self, GRUB_BIOS, GRUB_EFI_X64, Generated, ImagePart};
use pxe_contract::report::{Report, Reported};
use pxe_contract::rescue::{Login, Standing};
use pxe_contract::round::{Lack, Offer, Reception};
use pxe_contract::settings::{
    BootSettings, Identity, OnExit, OnFailure, Settings, SettingsError, Stage2, authority,
};
use pxe_contract::stage::Stage;
use pxe_contract::storage::{
    DiskKind, DiskSet, Format, Ids, KeysAnswer, KeysRequest, NfsMount, Storage, Target, Volume, Wipe,
};
use pxe_contract::symbols::{Content, Header};
use pxe_contract::ticket::{SessionAnswer, SessionRequest, Ticket};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const MAC: &str = "52:54:00:77:00:01";
const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// A field that no version has.
const NEWER: &str = "of-a-newer-version";

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(VERSION).join(name)
}

/// The document as it was recorded, which is what is written now.
fn golden(name: &str, written: &[u8]) -> Vec<u8> {
    let path = path(name);
    if std::env::var_os("BRIDGEHEAD_GOLDEN").is_some_and(|how| how == "record") && !path.exists() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, written).unwrap();
    }
    let recorded = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(String::from_utf8_lossy(written), String::from_utf8_lossy(&recorded), "{name}");
    recorded
}

/// Written, read, and read with what a newer version may add.
fn is_document<T: Serialize + DeserializeOwned + PartialEq>(name: &str, document: &T) {
    let pretty = ["image", "bridgehead", "storage.", "storage-bare."].iter().any(|n| name.starts_with(n));
    let written =
        if pretty { serde_json::to_vec_pretty(document) } else { serde_json::to_vec(document) }.unwrap();
    let recorded = golden(name, &written);
    let read: T = serde_json::from_slice(&recorded).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(read == *document, "{name}");
    if !name.starts_with("storage.") && !name.starts_with("storage-bare.") {
        let newer = with_unknown_fields(serde_json::from_slice(&recorded).unwrap());
        let read: T = serde_json::from_value(newer).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(read == *document, "{name} of a newer version");
    }
}

fn with_unknown_fields(value: Value) -> Value {
    match value {
        Value::Array(values) => values.into_iter().map(with_unknown_fields).collect(),
        Value::Object(fields) => {
            // `keys` are by volume: all names are known there.
            let deeper = |(name, value): (String, Value)| {
                let value = if name == "keys" { value } else { with_unknown_fields(value) };
                (name, value)
            };
            let unknown = (NEWER.to_owned(), json!({"a": [1, null]}));
            fields.into_iter().map(deeper).chain([unknown]).collect()
        }
        other => other,
    }
}

fn texts(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn lines(words: &[String]) -> String {
    words.iter().map(|word| format!("{word}\n")).collect()
}

#[test]
fn settings() {
    let full = BootSettings {
        router: Some(Ipv4Addr::new(10, 77, 0, 1)),
        dns: vec![Ipv4Addr::new(9, 9, 9, 9), Ipv4Addr::new(1, 1, 1, 1)],
        search: vec![],
        ntp: vec![],
        mtu: None,
        lease: Duration::from_secs(3600),
        hold: true,
        name: Some("n1".into()),
        digest: Some(format!("sha256:{DIGEST}")),
        on_exit: OnExit::Restart,
        engine: true,
        enrol: false,
        restarts: Some(3),
        on_failure: OnFailure::Ssh,
        logs: false,
        modules: texts(&["bonding", "8021q"]),
        stage2: Some(Stage2 { sha256: DIGEST.replace('0', "2"), size: 200 << 20 }),
    };
    let plain = BootSettings {
        hold: false,
        on_exit: OnExit::PowerOff,
        engine: false,
        restarts: None,
        on_failure: OnFailure::Console,
        logs: true,
        modules: vec![],
        stage2: None,
        ..full.clone()
    };
    let least = BootSettings {
        router: None,
        dns: vec![],
        name: None,
        on_exit: OnExit::Stay,
        on_failure: OnFailure::Off,
        ..plain.clone()
    };
    for (name, appliance, address, own, boot) in [
        ("plain", "10.77.0.1:80", true, vec!["console=ttyS0", "dyndbg=file x +p"], plain),
        ("full", "10.77.0.1:8080", true, vec!["quiet"], full),
        ("least", "10.77.0.1:80", false, vec![], least),
    ] {
        let (appliance, address) =
            (appliance.parse().unwrap(), address.then_some((Ipv4Addr::new(10, 77, 0, 11), 24)));
        let mut line = Identity { appliance, mac: MAC, address }.words();
        line.extend(texts(&own));
        let settings = boot.words();
        golden(&format!("settings/{name}.cmdline"), lines(&line).as_bytes());
        golden(&format!("settings/{name}.settings"), lines(&settings).as_bytes());

        let line: Vec<_> = line.iter().map(|word| cmdline::quoted(word)).collect();
        let read = Settings::parse(&cmdline::append(&line.join(" "), &settings));
        let Some((address, prefix)) = address else {
            assert_eq!(read, Err(SettingsError::Missing("address")), "no lease, no boot");
            continue;
        };
        let (appliance, mac, name) = (Some(appliance), MAC.to_owned(), "n1".to_owned());
        assert_eq!(read, Ok(Settings { appliance, mac, address, prefix, name, boot }));
    }
    assert_eq!(authority("10.77.0.1:8080".parse().unwrap()), "10.77.0.1:8080");
}

#[test]
fn paths() {
    let image = |part| Generated::Image { digest: DIGEST.into(), part };
    let mac = || MAC.to_owned();
    let all = [
        Generated::Loader(GRUB_BIOS),
        Generated::Loader(GRUB_EFI_X64),
        Generated::GrubConfig(mac()),
        Generated::GrubConfigByAddress,
        Generated::IpxeScript(mac()),
        Generated::StorageTools,
        Generated::RescueTools,
        Generated::Node(mac()),
        image(ImagePart::Kernel),
        image(ImagePart::Stage1),
        image(ImagePart::Rootfs),
        image(ImagePart::Stage2),
    ];
    golden("paths.txt", lines(&all.each_ref().map(ToString::to_string)).as_bytes());
    for path in all {
        let read: Generated<String> = Generated::parse(&path.to_string()).unwrap();
        // GRUB writes a MAC with dashes; whoever reads it as one, reads both.
        match (&read, &path) {
            (Generated::GrubConfig(read), Generated::GrubConfig(mac)) => {
                assert_eq!(read.replace('-', ":"), *mac);
            }
            _ => assert_eq!(read, path),
        }
    }
    use paths::{file, node};
    let requests = [
        node::SESSION,
        node::REPORT,
        node::HELD,
        node::FAILED,
        node::CONSOLE,
        node::LOGS,
        node::ENGINE,
        node::STORAGE_KEYS,
        &paths::round("{sha256}"),
    ];
    golden("requests.txt", lines(&texts(&requests)).as_bytes());
    let files = [file::IMAGE_DESCRIPTION, file::TICKET, file::STORAGE, file::RESCUE];
    golden("files.txt", lines(&texts(&files)).as_bytes());
}

#[test]
fn stages() {
    is_document("stages.json", &Stage::ALL.to_vec());
}

#[test]
fn images() {
    let xattr =
        |name: &str, value: &str| Xattr { path: "bin/ping".into(), name: name.into(), value: value.into() };
    let description = Description {
        reference: "hello-metal:latest".into(),
        id: "sha256:ab".into(),
        digest: format!("sha256:{DIGEST}"),
        argv: texts(&["/bin/httpd", "-f"]),
        env: texts(&["LANG=C.UTF-8"]),
        cwd: "/srv".into(),
        user: "www:www".into(),
        stop_signal: Some("SIGINT".into()),
        health_check: Some(HealthCheck {
            argv: texts(&["/bin/sh", "-c", "wget -q localhost || exit 1"]),
            interval: 1500,
            timeout: 2000,
            start_period: 9000,
            retries: 5,
        }),
        xattrs: vec![
            xattr("btrfs.compression", "7a737464"),
            xattr("security.capability", "0100000200200000000000000000000000000000"),
            xattr("user.note", "6869"),
        ],
    };
    is_document("image.json", &description);
    // A SquashFS has places for the others.
    let xattrs = description.xattrs[..1].to_vec();
    is_document("image-stage2.json", &Description { xattrs, ..description.clone() });
    let least = Description {
        reference: "least:1".into(),
        id: "sha256:cd".into(),
        digest: description.digest,
        argv: texts(&["/start"]),
        cwd: "/".into(),
        ..Description::default()
    };
    is_document("image-least.json", &least);
    let read: Description = serde_json::from_str("{}").unwrap();
    assert_eq!(read, Description::default(), "what is not said is nothing");
}

#[test]
fn tickets() {
    let ticket = Ticket {
        settings: texts(&["bridgehead.name=n1", "bridgehead.on-exit=poweroff"]),
        profile: "web".into(),
        appliance: "10.77.0.1:7443".parse().unwrap(),
        ca: "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n".into(),
        token: "c2VjcmV0".into(),
        time: 1_767_607_202,
    };
    is_document("bridgehead.json", &ticket);
    let request = SessionRequest { mac: MAC.to_owned(), request: "3081ff".into(), token: "c2VjcmV0".into() };
    is_document("session-request.json", &request);
    let certificate = "-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----\n".to_owned();
    is_document("session-answer.json", &SessionAnswer { certificate });
}

#[test]
fn ways_in() {
    // Its salt is another one each time.
    let recorded = fs::read(path("rescue.json")).unwrap();
    let login: Login = serde_json::from_slice(&recorded).unwrap();
    assert!(login.password_hash.starts_with("$6$"));
    is_document("rescue.json", &login);
    let standing = Standing { host_key: None, logged_in: None, mac: MAC.to_owned() };
    is_document("stands.json", &standing);
    let host_key = Some("SHA256:+abc/def".into());
    is_document("stands-ssh.json", &Standing { host_key, logged_in: Some(true), ..standing });
}

#[test]
fn reports() {
    let report = |stage, detail: Option<&str>, cause: Option<&str>| Report {
        detail: detail.map(str::to_owned),
        cause: cause.map(str::to_owned),
        uptime: Some(4.25),
        ..Report::new(MAC.to_owned(), stage)
    };
    let words = Some("Linux 6.1.0, mounts 12 ms, link 30 ms");
    let stage1 = Report { duration: Some(1.25), ..report(Reported::Stage1, words, None) };
    is_document("report-stage1.json", &stage1);
    is_document("report-image.json", &report(Reported::Image, Some("sha256:aa"), None));
    let fetched = report(Reported::Image, Some("sha256:aa, fetched"), None);
    let fetched = Report { bytes: Some(600_000_000), duration: Some(38.2), ..fetched };
    is_document("report-image-fetched.json", &fetched);
    is_document("report-workload.json", &report(Reported::Workload, Some("hello-metal:latest"), None));
    let why = Some("3 times in a row, the check ended with exit code 1: connection refused");
    is_document("report-unhealthy.json", &report(Reported::Workload, Some("unhealthy"), why));
    let exited = report(Reported::Exited, None, Some("killed by SIGKILL"));
    is_document("report-exited.json", &Report { exit_code: Some(137), ..exited });
    is_document("report-failed.json", &report(Reported::Failed, None, Some("the image's digest is wrong")));

    // The least that anybody may say, as the appliance's tests and docs/api.md have it.
    let least: Report<String> =
        serde_json::from_str(&format!(r#"{{"mac": "{MAC}", "stage": "stage1"}}"#)).unwrap();
    assert_eq!(least, Report::new(MAC.to_owned(), Reported::Stage1));
}

#[test]
fn consoles() {
    let said =
        |uptime, from, text: &str| Said { uptime, from, level: None, partial: false, text: text.into() };
    let lines = vec![
        Said { level: Some(6), ..said(1.53, Source::Kernel, "virtio_net virtio0 ens3: renamed from eth0") },
        said(1.6, Source::Stage1, "bridgehead: a \"quoted\" line"),
    ];
    let boot = "5e0f4f4e-0000-4000-8000-000000000001".to_owned();
    let batch = Batch { mac: MAC.to_owned(), boot, first: 40, uptime: 1.62, lines };
    is_document("console.json", &batch);
    let lines = vec![Said { partial: true, ..said(9.5, Source::Workload, "login: ") }];
    is_document("logs.json", &Batch { first: 0, uptime: 9.75, lines, ..batch });
}

#[test]
fn engines() {
    is_document("engine-request.json", &PapersRequest { mac: MAC.to_owned(), request: "3081ff".into() });
    let pem = |text: &str| format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
    is_document("engine-answer.json", &PapersAnswer { authority: pem("MIIB"), certificate: pem("MIIC") });
}

#[test]
fn facts() {
    let text = |text: &str| Some(text.to_owned());
    let facts = Facts {
        system: System {
            vendor: text("Dell Inc."),
            product: text("PowerEdge R650"),
            version: text("1"),
            serial: text("ABC1234"),
            uuid: text("4c4c4544-0042-4310-8031-c1c04f323334"),
        },
        board: Board { vendor: text("Dell Inc."), product: text("0PJ80M"), serial: text(".ABC1234.CN0.") },
        firmware: Firmware {
            vendor: text("Dell Inc."),
            version: text("1.9.2"),
            date: text("11/17/2022"),
            mode: Some(BootMode::Uefi),
            secure_boot: Some(true),
        },
        cpu: Cpu {
            model: text("Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz"),
            sockets: Some(2),
            cores: Some(64),
            threads: Some(128),
        },
        memory: Memory {
            installed: Some(64 << 30),
            usable: Some(67_247_325_184),
            modules: vec![Module {
                slot: text("A1"),
                size: 64 << 30,
                speed: Some(3200),
                part: text("M393A8G40AB2-CWE"),
                serial: text("35C7A4A1"),
            }],
        },
        disks: vec![Disk {
            name: "nvme0n1".into(),
            model: text("SAMSUNG MZQL23T8HCLS-00A07"),
            serial: text("S64HNE0R123456"),
            size: 3_840_755_982_336,
            rotational: Some(false),
            transport: text("nvme"),
            wear: Some(3),
        }],
        nics: vec![Nic {
            name: "eno1".into(),
            mac: MAC.into(),
            driver: text("tg3"),
            carrier: Some(true),
            speed: Some(1000),
            bus: text("0000:04:00.0"),
        }],
        neighbours: Some(vec![Neighbour {
            nic: "eno1".into(),
            chassis: "00:1c:73:00:00:01".into(),
            port: "Ethernet7".into(),
            port_description: text("rack a1, slot 17"),
            system: text("leaf-a1"),
            vlan: Some(77),
        }]),
        tpm: text("2.0"),
    };
    is_document("facts.json", &Told { mac: MAC.to_owned(), facts: facts.clone() });
    let least = Facts { neighbours: Some(vec![]), nics: facts.nics, ..Facts::default() };
    is_document("facts-least.json", &Told { mac: MAC.to_owned(), facts: least });
    let read: Told<String> = serde_json::from_str(&format!(r#"{{"mac": "{MAC}", "facts": {{}}}}"#)).unwrap();
    assert_eq!(read.facts, Facts::default(), "what is not said is not known");
}

#[test]
fn failures() {
    let error = format!("this is not the session of {MAC}'s boot");
    is_document("refusal.json", &ErrorDocument { error, hint: "a node speaks by HTTPS".into() });
}

fn storage() -> Storage {
    let text = str::to_owned;
    let set = DiskSet {
        name: text("pair"),
        kind: Some(DiskKind::Ssd),
        size: Some((64 << 20, 2 << 40)),
        serials: vec![],
        path: Some(text("*/0000:00:*")),
        iscsi: Some(Target { target: text("iqn.2026-01.lab:d"), portal: text("san.lab"), port: 3260 }),
        tables: texts(&["ba3f861a-9961-8aad-be92-a425ee25b148", "5c3d6909-da1d-8d97-a9d5-f5a1a91c29fd"]),
    };
    let volume = Volume {
        name: text("db"),
        disks: text("pair"),
        size: None,
        raid: Some(1),
        encrypt: true,
        format: Format::Ext4,
        mount: text("/data"),
        options: Some(text("noatime")),
        ids: Ids {
            partitions: texts(&[
                "48428c65-9f19-888f-9b7b-331e38eaf909",
                "7f2e94ad-0280-8ec7-a651-07aa7323d113",
            ]),
            array: text("615b689b-7b55-819c-9c52-b48d5a7489e5"),
            luks: text("1ba0d02d-4b93-8921-bfac-a7c7672bfd30"),
            filesystem: text("aceac7a5-c3b6-8add-a3f5-a6ebcf5f9367"),
        },
    };
    let mount = NfsMount {
        server: text("files.lab"),
        path: text("/export"),
        mount: text("/shared"),
        options: Some(text("ro")),
    };
    Storage {
        plan: text("data"),
        wipe: Wipe::Always,
        serials: texts(&["D1", "D2"]),
        disks: vec![set],
        volumes: vec![volume],
        mounts: vec![mount],
    }
}

#[test]
fn storage_plans() {
    let plan = storage();
    is_document("storage.json", &plan);
    // The same, with nothing that a plan may leave out: for a machine without a name, so with other identities.
    let read: Storage = serde_json::from_slice(&fs::read(path("storage-bare.json")).unwrap()).unwrap();
    is_document("storage-bare.json", &read);
    let (set, volume) = (&read.disks[0], &read.volumes[0]);
    assert_eq!((read.wipe, read.serials.len(), read.mounts.len()), (Wipe::IfBlank, 0, 0));
    assert_eq!((set.kind, set.size, &set.path, &set.iscsi), (None, None, &None, &None));
    assert_eq!((volume.raid, volume.size, volume.format), (None, Some(1 << 30), Format::Xfs));
    assert_eq!((volume.encrypt, &volume.options, set.tables.len()), (false, &None, 1));
    assert_ne!(volume.ids, plan.volumes[0].ids);

    is_document("storage-keys-request.json", &KeysRequest { mac: MAC.to_owned() });
    let keys = BTreeMap::from([("db".into(), "00".repeat(31) + "1f"), ("log".into(), "ff".repeat(32))]);
    is_document("storage-keys-answer.json", &KeysAnswer { keys });
}

/// Half of a plan is worse than none: wherever a newer appliance says more, an older node does nothing.
#[test]
fn a_storage_plan_that_says_more_is_refused_in_words() {
    let plan = serde_json::to_value(storage()).unwrap();
    for place in ["", "/disks/0", "/disks/0/iscsi", "/volumes/0", "/volumes/0/ids", "/mounts/0"] {
        let mut newer = plan.clone();
        newer.pointer_mut(place).unwrap()[NEWER] = json!(1);
        let error = serde_json::from_value::<Storage>(newer).unwrap_err().to_string();
        assert!(error.starts_with(&format!("unknown field `{NEWER}`")), "{place}: {error}");
    }
    for (place, value, words) in [
        ("/wipe", "if-old", "unknown variant `if-old`, expected one of `never`, `if-blank`, `always`"),
        ("/volumes/0/format", "bcachefs", "unknown variant `bcachefs`"),
        ("/disks/0/type", "tape", "unknown variant `tape`"),
    ] {
        let mut newer = plan.clone();
        *newer.pointer_mut(place).unwrap() = json!(value);
        let error = serde_json::from_value::<Storage>(newer).unwrap_err().to_string();
        assert!(error.starts_with(words), "{error}");
    }
}

/// What a reader can't do without is named.
#[test]
fn what_an_older_side_does_not_say_is_named() {
    fn without<T: DeserializeOwned>(name: &str, field: &str) {
        let mut document: Value = serde_json::from_slice(&fs::read(path(name)).unwrap()).unwrap();
        document.as_object_mut().unwrap().remove(field).unwrap();
        let Err(error) = serde_json::from_value::<T>(document) else { panic!("{name} without {field}") };
        assert_eq!(error.to_string(), format!("missing field `{field}`"), "{name}");
    }
    without::<Ticket>("bridgehead.json", "token");
    without::<Storage>("storage.json", "volumes");
    without::<Login>("rescue.json", "password-hash");
    without::<Report<String>>("report-failed.json", "stage");
    without::<Batch<String>>("console.json", "boot");
    without::<SessionAnswer>("session-answer.json", "certificate");
    without::<KeysAnswer>("storage-keys-answer.json", "keys");
    without::<Offer>("round-offer.json", "group");
}

#[test]
fn what_is_unknown_of_values_is_named() {
    fn error<T: DeserializeOwned + Debug>(text: &str) -> String {
        serde_json::from_str::<T>(text).unwrap_err().to_string()
    }
    let stage = error::<Report<String>>(&format!(r#"{{"mac": "{MAC}", "stage": "dancing"}}"#));
    assert!(stage.starts_with("unknown variant `dancing`, expected one of `stage1`"), "{stage}");
    let source = error::<Said>(r#"{"uptime": 1, "from": "firmware", "text": "x"}"#);
    assert!(source.starts_with("unknown variant `firmware`, expected one of `kernel`"), "{source}");
}

#[test]
fn rounds() {
    is_document("round-first.json", &Reception::default());
    is_document("round-done.json", &Reception { done: true, ..Reception::default() });
    let lacks = vec![Lack { first: 3, last: 3, symbols: 12 }, Lack { first: 5, last: 140, symbols: 1024 }];
    is_document("round-report.json", &Reception { sequence: 7000, came: 6900, lacks, done: false });
    let offer = Offer {
        group: "239.255.77.1:7477".parse().unwrap(),
        symbol_size: 1408,
        block_symbols: 1024,
        report_every: 640,
        http_rate: 195_000,
    };
    is_document("round-offer.json", &offer);
    let read: Reception = serde_json::from_str("{}").unwrap();
    assert_eq!(read, Reception::default(), "nothing yet");
}

#[test]
fn symbols() {
    let content = Content::Symbol { block: 0x0a0b_0c0d, symbol: 0x0001_0203 };
    let header = Header { image: *b"ABCDEFGH", len: 0x0102_0304_0506_0708, sequence: 9, content };
    let packet = golden("symbol.bin", &[&header.bytes()[..], b"symbol"].concat());
    assert_eq!(Header::parse(&packet), Some((header, &b"symbol"[..])));
    let poll = Header { content: Content::Poll, ..header };
    assert_eq!(Header::parse(&golden("poll.bin", &poll.bytes())), Some((poll, &b""[..])));
}

/// The list is behind a file that begins with 96 bytes of something else, and has a table behind its two blocks.
#[test]
fn blocks() {
    let first_half = |digest: &str| {
        let mut sha256 = [0; 32];
        sha256[..16].copy_from_slice(&pxe_contract::hex::decode(digest).unwrap());
        sha256
    };
    let mut list = Blocks::from(96);
    // sha256sum's.
    list.add(3, first_half("7692c3ad3540bb803c020b3aee66cd88"));
    list.add(5, first_half("8b5b9db0c13db24256c829aa364aa90c"));
    let file = [&[0; 96][..], b"one", b"three", b"tables", &list.list()].concat();
    let file = golden("blocks.bin", &file);
    let part = |range: std::ops::Range<u64>| {
        Ok::<_, std::convert::Infallible>(file[range.start as usize..range.end as usize].to_vec())
    };
    let Ok(read) = Blocks::read(file.len() as u64, part);
    let read = read.unwrap();
    assert_eq!(read, list);
    let lengths: Vec<u32> = read.blocks().iter().map(|Block { len, .. }| *len).collect();
    assert_eq!((read.start(), read.end(), lengths), (96, 104, vec![3, 5]));
}
