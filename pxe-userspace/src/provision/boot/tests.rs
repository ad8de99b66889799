use std::io::Write as _;
use std::process::{Command, Stdio};

use pxe_common::Mac;
use pxe_contract::paths::{GRUB_BIOS, ImagePart, LoadFailure, LoadStep};

use super::*;
use crate::config::{OnExit, Profile, Rescue, Source, Stages};
use crate::machines::Machine;

const MAC: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);
const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn machine() -> Machine {
    Machine {
        name: Some("n1".into()),
        address: Some([10, 77, 0, 11].into()),
        firmware: Some(pxe_common::dhcp::Firmware::Bios),
        ..Machine::new(MAC)
    }
}

fn profile(cmdline: &str) -> Profile {
    Profile {
        kernel: None,
        modules: Vec::new(),
        name: "web".into(),
        source: Source::Image("hello-metal:latest".into()),
        cmdline: cmdline.into(),
        on_exit: OnExit::PowerOff,
        restarts: None,
        rescue: Rescue::Console,
        logs: true,
        stages: Stages::Auto,
        storage: None,
        run: crate::config::Run::Image,
    }
}

fn appliance() -> Appliance {
    Appliance {
        address: "10.77.0.1/24".parse().unwrap(),
        http_port: 80,
        tls_port: 7443,
        router: Some([10, 77, 0, 1].into()),
        dns: vec![[9, 9, 9, 9].into(), [1, 1, 1, 1].into()],
        search: vec!["lab.example".into()],
        ntp: vec![[10, 77, 0, 1].into()],
        mtu: Some(1400),
        lease_time: std::time::Duration::from_secs(3600),
    }
}

fn facts(unpacked: u64) -> ImageFacts {
    ImageFacts {
        digest: format!("sha256:{DIGEST}"),
        kernel: Part { sha256: DIGEST.into(), len: 8 << 20, unpacked: 37 << 20 },
        stage1: Part { sha256: DIGEST.into(), len: 4 << 20, unpacked: 12 << 20 },
        rootfs: Part { sha256: DIGEST.into(), len: unpacked / 3, unpacked },
        stage2: None,
    }
}

fn plan_with(memory: Option<u64>, cmdline: &str, unpacked: u64) -> Result<Plan, Refusal> {
    plan::image(
        &machine(),
        memory,
        &profile(cmdline),
        "hello-metal:latest",
        &facts(unpacked),
        Rescue::Console,
        &appliance(),
    )
}

#[test]
fn the_command_line_says_who_the_node_is() {
    let plan = plan_with(None, r#"console=ttyS0 dyndbg="file x +p""#, 1 << 20).unwrap();
    assert_eq!(plan.kernel, format!("boot/{DIGEST}/kernel"));
    let node = "boot/node/52:54:00:77:00:01".to_owned();
    assert_eq!(plan.initrds, [format!("boot/{DIGEST}/stage1"), format!("boot/{DIGEST}/image"), node]);
    assert_eq!(
        plan.cmdline,
        [
            "bridgehead.url=http://10.77.0.1",
            "bridgehead.mac=52:54:00:77:00:01",
            "bridgehead.address=10.77.0.11/24",
            "console=ttyS0",
            "dyndbg=file x +p",
        ]
    );
    assert_eq!(
        plan.settings,
        [
            "bridgehead.router=10.77.0.1",
            "bridgehead.dns=9.9.9.9,1.1.1.1",
            "bridgehead.ntp=10.77.0.1",
            "bridgehead.search=lab.example",
            "bridgehead.mtu=1400",
            "bridgehead.lease=3600",
            "bridgehead.name=n1",
            &format!("bridgehead.digest=sha256:{DIGEST}"),
            "bridgehead.on-exit=poweroff",
        ]
    );
    // A profile that names no console gets both, before its own words.
    let plan = plan_with(None, "quiet consoleblank=0", 1 << 20).unwrap();
    assert_eq!(plan.cmdline[3..], ["console=ttyS0,115200", "console=tty0", "quiet", "consoleblank=0"]);
    // Files by hand stay as they are.
    let by_hand = plan::by_hand(&profile("quiet"), "vmlinuz", &[]).unwrap();
    assert_eq!(by_hand.cmdline, ["quiet"]);
    // Files for this machine alone come by HTTP.
    let text = grub::boot("t", None, "10.77.0.1:8080", MAC, &plan);
    let initrds = format!("'/boot/{DIGEST}/image' '(http,10.77.0.1:8080)/boot/node/52:54:00:77:00:01'; then");
    assert!(text.contains(&initrds), "{text}");
}

#[test]
fn what_the_profile_wants_of_the_init_is_among_its_settings() {
    let profile = Profile { restarts: Some(3), logs: false, ..profile("") };
    let facts = facts(1 << 20);
    let settings =
        |rescue| plan::image(&machine(), None, &profile, "x", &facts, rescue, &appliance()).unwrap().settings;
    let ssh = settings(Rescue::Ssh);
    for word in ["bridgehead.restarts=3", "bridgehead.logs=off", "bridgehead.on-failure=ssh"] {
        assert!(ssh.iter().any(|w| w == word), "{ssh:?}");
    }
    assert!(settings(Rescue::Off).contains(&"bridgehead.on-failure=off".to_owned()));
}

#[test]
fn an_image_that_does_not_fit_is_refused_in_words() {
    assert!(plan_with(Some(512 << 20), "", 100 << 20).is_ok());
    let refusal = plan_with(Some(512 << 20), "", 300 << 20).unwrap_err();
    let words = refusal.to_string();
    assert!(words.contains("hello-metal:latest") && words.contains("512 MiB"), "{words}");
    assert!(words.contains("smaller image"), "{words}");
    // The kernel's rootfs may fill half of the memory.
    assert!(plan_with(Some(2 << 30), "", 1100 << 20).is_err());
    assert!(plan_with(None, "", 1100 << 20).is_ok(), "unknown memory refuses nothing");
}

/// Measured: 142 MiB unpacked from 126 boot with 512 MiB and are truncated with 448.
#[test]
fn the_memory_rule_agrees_with_what_was_seen() {
    let facts = ImageFacts {
        stage1: Part { sha256: DIGEST.into(), len: 5 << 20, unpacked: 12 << 20 },
        rootfs: Part { sha256: DIGEST.into(), len: 121 << 20, unpacked: 130 << 20 },
        ..facts(142 << 20)
    };
    let plan = |memory| {
        plan::image(&machine(), Some(memory), &profile(""), "x", &facts, Rescue::Console, &appliance())
    };
    assert!(plan(512 << 20).is_ok());
    assert!(plan(448 << 20).is_err());
}

/// With a stage 2 that is as large as the rootfs archive of a boot in one stage.
fn two_stages(unpacked: u64) -> ImageFacts {
    let facts = facts(unpacked);
    let stage2 = Part { sha256: DIGEST.replace('0', "2"), len: facts.rootfs.len, unpacked: 0 };
    ImageFacts { stage2: Some(stage2), ..facts }
}

fn staged(stages: Stages, memory: Option<u64>, facts: &ImageFacts) -> Result<Plan, Refusal> {
    let profile = Profile { stages, ..profile("") };
    plan::image(&machine(), memory, &profile, "hello-metal:latest", facts, Rescue::Console, &appliance())
}

#[test]
fn two_stages_load_one_initrd_and_name_the_other_file() {
    let facts = two_stages(600 << 20);
    let plan = staged(Stages::Auto, None, &facts).unwrap();
    assert_eq!(plan.initrds, [format!("boot/{DIGEST}/stage1"), Generated::Node(MAC).to_string()]);
    let named = format!("bridgehead.stage2=sha256:{},{}", DIGEST.replace('0', "2"), 200 << 20);
    assert!(plan.settings.contains(&named), "{:?}", plan.settings);
    let choice = plan.choice.unwrap();
    assert_eq!((choice.stages(), choice.why.as_str()), (2, "it has 200 MiB, packed"));
}

#[test]
fn size_and_memory_choose_the_stages() {
    let stages = |memory, facts: &ImageFacts| {
        staged(Stages::Auto, memory, facts).map(|plan| plan.choice.unwrap().stages())
    };
    assert_eq!(stages(None, &two_stages(15 << 20)), Ok(1));
    assert_eq!(stages(None, &two_stages(96 << 20)), Ok(2));
    // In one stage, 90 MiB unpacked and their archive need more than 256 MiB.
    assert_eq!(stages(Some(256 << 20), &two_stages(90 << 20)), Ok(2));
    assert_eq!(stages(Some(512 << 20), &two_stages(90 << 20)), Ok(1));
    // 600 MiB fit into 1 GiB in two stages only.
    assert_eq!(stages(Some(1 << 30), &two_stages(600 << 20)), Ok(2));
    assert!(staged(Stages::One, Some(1 << 30), &two_stages(600 << 20)).is_err());
    let words = stages(Some(256 << 20), &two_stages(600 << 20)).unwrap_err().to_string();
    assert!(words.contains("MiB of memory in two stages and this machine has 256 MiB"), "{words}");
}

#[test]
fn the_profile_decides_against_size() {
    let stages = |stages, facts: &ImageFacts| staged(stages, None, facts).map(|p| p.choice.unwrap().stages());
    assert_eq!(stages(Stages::One, &two_stages(600 << 20)), Ok(1));
    assert_eq!(stages(Stages::Two, &two_stages(1 << 20)), Ok(2));
    assert_eq!(stages(Stages::Auto, &facts(600 << 20)), Ok(1), "a kernel without the modules");
    let words = stages(Stages::Two, &facts(1 << 20)).unwrap_err().to_string();
    assert!(words.contains("its kernel brings no modules for that"), "{words}");
}

#[test]
fn a_command_line_arrives_as_it_was_meant_or_is_refused() {
    // Without the node's identity and the consoles, which come first.
    let own = |cmdline| plan_with(None, cmdline, 1 << 20).map(|p| p.cmdline[5..].to_vec());
    assert_eq!(own("  a \t b=c  ").unwrap(), ["a", "b=c"]);
    assert_eq!(
        own(r#"x=$y {z} a;b >c|d "whole word""#).unwrap(),
        ["x=$y", "{z}", "a;b", ">c|d", "whole word"]
    );
    for bad in
        ["a\nb", "a\0b", "ä", "a=\"b", "a='b'", "a\\b", "${net0/mac}", "#a", "a || b", "a ; b", "\"b && c\""]
    {
        let refusal = own(bad).unwrap_err();
        assert!(matches!(refusal, Refusal::Cmdline { .. }), "{bad}: {refusal}");
    }
}

#[test]
fn a_command_line_that_a_loader_would_cut_is_refused() {
    // As GRUB counts (grub_create_loader_cmdline): the kernel's path is one of the words that it passes on.
    let grub = |plan: &Plan| {
        let words = std::iter::once(format!("/{}", plan.kernel)).chain(plan.cmdline.clone());
        "BOOT_IMAGE=".len() + words.map(|word| word.len() + 1).sum::<usize>() - 1
    };
    let longest = (1700..2000).rev().find_map(|len| plan_with(None, &"x".repeat(len), 1 << 20).ok());
    let longest = longest.expect("some line is short enough");
    // Its buffer has room for 2,047 bytes and a zero. On UEFI it is one byte shorter, and the space after the last
    // word counts, too.
    assert_eq!(grub(&longest), 2045);
    let one_more = "x".repeat(longest.cmdline.last().unwrap().len() + 1);
    let refusal = plan_with(None, &one_more, 1 << 20).unwrap_err().to_string();
    assert!(refusal.contains("is 2046 bytes long") && refusal.contains("shorten it by 1 bytes"), "{refusal}");

    // By hand there are no words of ours, and the path is short, so iPXE's words for initrds are the longer addition.
    let by_hand = |len: usize, initrds: usize| {
        plan::by_hand(&profile(&"x".repeat(len)), "/vmlinuz", &vec!["i".to_owned(); initrds])
    };
    assert!(by_hand(2045 - 20, 0).is_ok() && by_hand(2045 - 19, 0).is_err());
    assert!(by_hand(2045 - 46, 3).is_ok() && by_hand(2045 - 45, 3).is_err());
}

#[test]
fn paths_read_back_and_nothing_else_does() {
    for path in [
        Generated::Loader(GRUB_BIOS),
        Generated::GrubConfig(MAC),
        Generated::GrubConfigByAddress,
        Generated::IpxeScript(MAC),
        Generated::StorageTools,
        Generated::Node(MAC),
        Generated::RescueTools,
        Generated::Image { digest: DIGEST.into(), part: ImagePart::Rootfs },
    ] {
        assert_eq!(Generated::parse(&path.to_string()), Some(path));
    }
    for other in [
        "grub/grub.cfg-0A4D000B",
        "grub/x",
        "boot/abc/kernel",
        "boot/ipxe/x.ipxe",
        "boot/storage/x",
        "boot",
        "",
    ] {
        assert_eq!(Generated::parse(other), None, "{other}");
    }
    let long = format!("boot/{DIGEST}/kernel/x");
    assert_eq!(Generated::parse(&long), None);
}

/// GRUB's own parser judges what we write, hostile text included.
#[test]
fn grub_accepts_every_configuration() {
    let plan = plan_with(None, r#"console=ttyS0 a=b $c ;{} "d e"  `x`"#, 1 << 20).unwrap();
    let own = Generated::GrubConfig(MAC).to_string();
    let refusal = Refusal::NoImage { reference: "it's".into(), cause: "no\nsuch; $thing }".into() };
    let by_hand = Plan {
        kernel: "k".into(),
        initrds: vec![],
        cmdline: vec![],
        settings: vec![],
        choice: None,
        needed: None,
    };
    for text in [
        grub::boot("Bridgehead: n1 boots it's image", Some("it's $x;"), "10.77.0.1", MAC, &plan),
        grub::boot("none", None, "10.77.0.1:8080", MAC, &by_hand),
        grub::refuse("Bridgehead: n1", &own, &refusal),
    ] {
        let Ok(mut check) =
            Command::new("grub-script-check").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()
        else {
            eprintln!("skipped: grub-script-check is not installed (apt install grub-common)");
            return;
        };
        check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = check.wait_with_output().unwrap();
        assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn quotes_and_line_breaks_do_not_leave_their_word() {
    let text = grub::boot(
        "t",
        Some("it's\nreboot"),
        "10.77.0.1",
        MAC,
        &Plan {
            kernel: "k".into(),
            initrds: vec!["i".into()],
            cmdline: vec!["a='; reboot; '".into(), "b=\nreboot".into()],
            settings: vec![],
            choice: None,
            needed: None,
        },
    );
    assert!(text.contains(r"'a='\''; reboot; '\'''"), "{text}");
    assert!(!text.lines().any(|l| l.starts_with("reboot")), "{text}");
}

#[test]
fn an_ipxe_script_names_its_initrds() {
    let plan = plan_with(None, "quiet", 1 << 20).unwrap();
    let text = ipxe::boot("t", None, "http://10.77.0.1", MAC, &plan);
    assert!(text.starts_with("#!ipxe\n"));
    assert!(text.contains(&format!(
        "kernel http://10.77.0.1/boot/{DIGEST}/kernel initrd=initrd0 initrd=initrd1 initrd=initrd2 "
    )));
    assert!(text.contains(&format!("initrd --name initrd1 http://10.77.0.1/boot/{DIGEST}/image")));
}

#[test]
fn ipxe_finds_files_by_hand_below_files() {
    let initrds = ["deb ian/initrd.gz".to_owned()];
    let plan = plan::by_hand(&profile("dyndbg=\"file x +p\""), "/deb ian/linux", &initrds).unwrap();
    let text = ipxe::boot("t", Some("no\n|| reboot"), "http://10.77.0.1", MAC, &plan);
    assert!(
        text.contains("kernel http://10.77.0.1/files/deb%20ian/linux initrd=initrd0 \"dyndbg=file x +p\" ||"),
        "{text}"
    );
    assert!(text.contains("initrd --name initrd0 http://10.77.0.1/files/deb%20ian/initrd.gz ||"), "{text}");
}

/// A loader has no other way to report what failed.
#[test]
fn loaders_ask_again_with_how_far_they_came() {
    let plan = plan_with(None, "quiet", 1 << 20).unwrap();
    let text = grub::boot("t", Some("no such file"), "10.77.0.1", MAC, &plan);
    let order = [
        "echo 'no such file'\n",
        "set bridgehead_at=kernel\n",
        "if linux ",
        "set bridgehead_at=initrd\n",
        "if initrd ",
        "set bridgehead_at=boot\n",
        "boot\n",
        "if [ \"$lockdown\" = y ]; then\n  set bridgehead_at=\"${bridgehead_at}-locked\"\n",
        "set bridgehead_ask=\"/grub/failed/$bridgehead_at/grub.cfg-01-52-54-00-77-00-01\"\n",
        "source \"$bridgehead_ask\"\n",
    ];
    let mut rest = text.as_str();
    for words in order {
        let at = rest.find(words).unwrap_or_else(|| panic!("no {words:?} in its place in {text}"));
        rest = &rest[at + words.len()..];
    }
    let path = "grub/failed/kernel-locked/grub.cfg-01-52-54-00-77-00-01";
    let failure = LoadFailure { step: LoadStep::Kernel, locked: true };
    assert_eq!(Generated::parse(path), Some(Generated::GrubConfigAgain(failure, MAC)));
    let text = ipxe::boot("t", None, "http://10.77.0.1", MAC, &plan);
    let again = "chain --replace http://10.77.0.1/boot/ipxe/failed/${bridgehead-at}/52:54:00:77:00:01.ipxe";
    assert!(text.contains("set bridgehead-at initrd\ninitrd ") && text.contains(again), "{text}");
    let failure = LoadFailure { step: LoadStep::Boot, locked: false };
    let path = "boot/ipxe/failed/boot/52:54:00:77:00:01.ipxe";
    assert_eq!(Generated::parse(path), Some(Generated::IpxeScriptAgain(failure, MAC)));
}

#[test]
fn nothing_in_a_refusal_means_anything_to_ipxe() {
    let cause = "no such; ${net0/mac} || reboot && # end\nreboot";
    let refusal = Refusal::NoImage { reference: "x".into(), cause: cause.into() };
    let text = ipxe::refuse("t", "http://10.77.0.1", "boot/ipxe/x.ipxe", &refusal);
    let echo = text.lines().find(|l| l.contains("could not be brought in")).unwrap();
    assert!(echo.ends_with("no such; $ {net0/mac} reboot end reboot"), "{echo}");
    assert!(text.ends_with("chain --replace http://10.77.0.1/boot/ipxe/x.ipxe || goto again\n"), "{text}");
}
