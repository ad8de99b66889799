use proptest::option::of as maybe;
use proptest::prelude::*;

use super::*;

const LINE: &str = "BOOT_IMAGE=x console=ttyS0 bridgehead.url=http://10.77.0.1 bridgehead.mac=52:54:00:77:00:0A \
    bridgehead.address=10.77.0.100/24 bridgehead.router= bridgehead.dns=10.77.0.1,1.1.1.1 bridgehead.search=lab.example,example bridgehead.ntp=10.77.0.1 bridgehead.mtu=1400 \"bridgehead.name=n 1\" \
    bridgehead.on-exit=stay bridgehead.restarts=3 bridgehead.on-failure=ssh bridgehead.logs=off bridgehead.run=docker bridgehead.digest=sha256:abc bridgehead.lease=3600 \
    bridgehead.stage2=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef,4096";

#[test]
fn reads_every_key() {
    let settings = Settings::parse(LINE).unwrap();
    assert_eq!(
        settings,
        Settings {
            appliance: Some("10.77.0.1:80".parse().unwrap()),
            mac: "52:54:00:77:00:0a".into(),
            address: Ipv4Addr::new(10, 77, 0, 100),
            prefix: 24,
            name: "n 1".into(),
            boot: BootSettings {
                router: None,
                dns: Vec::from([Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(1, 1, 1, 1)]),
                search: Vec::from(["lab.example".into(), "example".into()]),
                ntp: Vec::from([Ipv4Addr::new(10, 77, 0, 1)]),
                mtu: Some(1400),
                name: Some("n 1".into()),
                hold: false,
                on_exit: OnExit::Stay,
                engine: true,
                enrol: false,
                restarts: Some(3),
                on_failure: OnFailure::Ssh,
                logs: false,
                modules: Vec::new(),
                digest: Some("sha256:abc".into()),
                stage2: Some(Stage2 { sha256: "0123456789abcdef".repeat(4), size: 4096 }),
                lease: Duration::from_secs(3600),
            },
        }
    );
}

#[test]
fn what_is_not_said_is_as_documented() {
    let line = "bridgehead.mac=52:54:00:77:00:01 bridgehead.address=10.77.0.2/24";
    let settings = Settings::parse(line).unwrap();
    assert_eq!((settings.name.as_str(), settings.appliance), ("node-525400770001", None));
    assert_eq!(settings.boot, BootSettings::default());
    assert!(Settings::parse(&format!("{line} bridgehead.hold")).unwrap().boot.hold);
}

#[test]
fn says_which_key_is_missing_or_wrong() {
    assert_eq!(Settings::parse("quiet"), Err(SettingsError::Missing("mac")));
    let wrong = format!("{LINE} bridgehead.address=10.77.0.100");
    let error = Settings::parse(&wrong).unwrap_err().to_string();
    assert_eq!(error, "bridgehead.address=10.77.0.100: expected ADDRESS/PREFIX, such as 10.77.0.100/24");
    let wrong = format!("{LINE} bridgehead.on-exit=explode");
    assert!(matches!(Settings::parse(&wrong), Err(SettingsError::Invalid { key: "on-exit", .. })));
}

/// A newer appliance may send more, but not give the same words another meaning.
#[test]
fn words_of_a_newer_version_are_passed_over_and_values_are_not() {
    let newer = format!("{LINE} bridgehead.colour=red bridgehead.dance");
    assert_eq!(Settings::parse(&newer), Settings::parse(LINE));
    for (word, words) in [
        ("bridgehead.on-exit=hibernate", "expected poweroff, reboot, restart or stay"),
        ("bridgehead.on-failure=vnc", "expected ssh, console or off"),
        ("bridgehead.run=podman", "expected docker or enrol"),
        ("bridgehead.url=https://10.77.0.1", "expected http://ADDRESS[:PORT]"),
        ("bridgehead.stage2=blake3:00,1", "expected sha256:DIGITS,BYTES"),
    ] {
        let error = Settings::parse(&format!("{LINE} {word}")).unwrap_err().to_string();
        assert!(error.starts_with(word) && error.ends_with(words), "{error}");
    }
}

#[test]
fn endpoints_are_addresses_with_or_without_a_port() {
    assert_eq!(endpoint("http://10.0.0.1:8080/"), Some("10.0.0.1:8080".parse().unwrap()));
    for bad in ["https://10.0.0.1", "http://name", "10.0.0.1", "http://10.0.0.1/path"] {
        assert_eq!(endpoint(bad), None, "{bad}");
    }
    assert_eq!(appliance("bridgehead.url=http://10.0.0.1"), Some("10.0.0.1:80".parse().unwrap()));
    assert_eq!(appliance("bridgehead.urls=http://10.0.0.1"), None);
}

#[test]
fn stage_2_is_a_digest_and_a_size() {
    let stage2 = Stage2::parse;
    let digest = "0123456789abcdef".repeat(4);
    assert!(stage2(&format!("sha256:{digest},1")).is_some());
    for bad in ["", "sha256:ab,1", &digest, &format!("sha256:{digest}"), &format!("sha256:{digest},0")] {
        assert_eq!(stage2(bad), None, "{bad}");
    }
    assert_eq!(stage2(&format!("sha256:{},1", digest.replace('0', "/"))), None);
}

#[test]
fn modules_are_a_list_and_the_last_one_counts() {
    let modules_wanted = |line| Words(cmdline::words(line)).list(key::MODULES);
    let line = "bridgehead.modules=dummy quiet bridgehead.modules=bonding,,8021q";
    assert_eq!(modules_wanted(line), ["bonding", "8021q"]);
    assert!(modules_wanted("quiet bridgehead.modules=").is_empty());
}

#[test]
fn rescue_is_a_word_of_its_own() {
    assert!(rescue_wanted("quiet bridgehead.rescue"));
    assert!(rescue_wanted("bridgehead.rescue=1 quiet"));
    assert!(!rescue_wanted("quiet \"x=bridgehead.rescue \" bridgehead.rescuer"));
}

prop_compose! {
    fn boot_settings()(
        router in maybe(any::<Ipv4Addr>()),
        dns in proptest::collection::vec(any::<Ipv4Addr>(), 0..3),
        ntp in proptest::collection::vec(any::<Ipv4Addr>(), 0..3),
        search in proptest::collection::vec("[a-z]{1,5}\\.example", 0..3),
        (lease, restarts, size, mtu) in (any::<u32>(), maybe(any::<u32>()), maybe(1u64..), maybe(any::<u16>())),
        [hold, engine, logs] in any::<[bool; 3]>(),
        name in maybe("[a-z][a-z0-9-]{0,8}"),
        digest in maybe("sha256:[0-9a-f]{64}"),
        on_exit in proptest::sample::select(&OnExit::ALL[..]),
        on_failure in proptest::sample::select(&OnFailure::ALL[..]),
        modules in proptest::collection::vec("[a-z0-9_]{1,8}", 0..3),
        sha256 in "[0-9a-f]{64}",
    ) -> BootSettings {
        let lease = Duration::from_secs(lease.into());
        let stage2 = size.map(|size| Stage2 { sha256, size });
        BootSettings {
            router, dns, search, ntp, mtu, lease, hold, name, digest, on_exit, engine, restarts, on_failure, logs,
            modules, stage2,
            // One thing runs.
            enrol: !engine && restarts.is_none(),
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        appliance: SocketAddrV4,
        mac in "([0-9a-f]{2}:){5}[0-9a-f]{2}",
        address: Ipv4Addr,
        prefix in 1u8..=32,
        boot in boot_settings(),
    ) {
        let identity = Identity { appliance, mac: &mac, address: Some((address, prefix)) };
        let line = cmdline::append(&identity.words().join(" "), &boot.words());
        let name = boot.name.clone().unwrap_or_else(|| format!("node-{}", mac.replace(':', "")));
        let appliance = Some(appliance);
        prop_assert_eq!(Settings::parse(&line), Ok(Settings { appliance, mac, address, prefix, name, boot }));
    }
}
