//! Each cause, produced from its events.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use pxe_common::Mac;
use pxe_common::dhcp::Firmware;
use pxe_contract::paths::{LoadFailure, LoadStep};

use super::*;
use crate::machines::event::{AnsweredBy, Event};

const MAC: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);
const UEFI: &str = "UEFI x86-64 PXE";
const BIOS: &str = "BIOS PXE";
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);

/// What happens to a machine, at which second.
enum What {
    Stage(Stage, &'static str),
    Failed(&'static str),
    Note(Note),
}
use What::{Failed, Note as N, Stage as S};

fn at(seconds: f64) -> Timestamp {
    Timestamp::from_microsecond((seconds * 1e6) as i64).unwrap()
}

fn event(seconds: f64, stage: Stage, detail: &str, cause: Option<&str>) -> Event {
    Event {
        id: 0,
        time: at(seconds),
        node: None,
        mac: MAC,
        address: None,
        stage,
        answered_by: AnsweredBy::Daemon,
        bytes: None,
        duration: None,
        detail: (!detail.is_empty()).then(|| detail.to_owned()),
        cause: cause.map(str::to_owned),
        late: false,
        firmware: detail.parse().ok(),
    }
}

fn watch(happened: impl IntoIterator<Item = (f64, What)>) -> Watch {
    let mut watch = Watch::default();
    for (seconds, what) in happened {
        match what {
            S(stage, detail) => drop(watch.reached(&event(seconds, stage, detail, None))),
            Failed(cause) => drop(watch.reached(&event(seconds, Stage::Failed, "", Some(cause)))),
            N(note) => watch.noticed(MAC, note, at(seconds)),
        }
    }
    watch
}

/// DISCOVER to ACK, in the time that firmware takes.
fn bound(firmware: &'static str) -> Vec<(f64, What)> {
    vec![
        (0.0, S(Stage::Discover, firmware)),
        (0.0, S(Stage::Offer, firmware)),
        (4.0, S(Stage::Request, firmware)),
        (4.0, S(Stage::Ack, firmware)),
    ]
}

fn upto(firmware: &'static str, stage: Stage, planned: bool) -> Vec<(f64, What)> {
    let files = [
        (4.2, Stage::Loader, "boot/grub-x64.efi"),
        (4.4, Stage::Config, "grub/grub.cfg-01-52"),
        (5.0, Stage::Kernel, "boot/aa/kernel"),
        (6.0, Stage::Initrd, "boot/aa/stage1"),
        (12.0, Stage::Stage1, "Linux 6.1"),
        (13.0, Stage::Image, "sha256:aa"),
        (14.0, Stage::Workload, "hello:1"),
    ];
    let mut happened = bound(firmware);
    for (seconds, of, detail) in files.into_iter().filter(|(_, of, _)| *of <= stage) {
        let detail =
            if of == Stage::Loader && !firmware.contains("UEFI") { "boot/grub-bios.0" } else { detail };
        happened.push((seconds - 0.05, N(opened(detail))));
        happened.push((seconds, N(sent(detail))));
        if planned && of == Stage::Config {
            happened.push((seconds - 0.02, N(Note::Planned(plan()))));
        }
        happened.push((seconds, S(of, detail)));
    }
    happened
}

fn plan() -> Planned {
    Planned {
        reports: true,
        initrds: 2,
        needed: Some(474 << 20),
        memory: None,
        consoles: vec!["ttyS0".into()],
    }
}

fn opened(path: &str) -> Note {
    Note::Opened { path: path.into(), bytes: 1 << 20, blksize: Some(1468) }
}

fn sent(path: &str) -> Note {
    Note::Sent { path: path.into(), repeated: 0 }
}

fn stalled(path: &str, acked: u32) -> Note {
    Note::Stalled { path: path.into(), acked, blocks: 715, blksize: 1468, repeated: 8 }
}

const KERNEL: &str = "boot/aa/kernel";
const OWN_INITRD: &str = "boot/node/52:54:00:77:00:01";

/// GRUB closes a file by an error.
fn closed(path: &str) -> Note {
    Note::Aborted { path: path.into(), code: 0, message: "closed".into(), acked: 1, blocks: 99 }
}

fn module_missing(name: &str) -> Note {
    Note::NotServed { path: format!("/grub/x86_64-efi/{name}.mod"), why: "no such file".into() }
}

/// Its loader fetched its configuration and these, and asked again.
fn not_loaded<const N: usize>(
    step: LoadStep,
    locked: bool,
    flaw: Option<&str>,
    fetched: [(f64, What); N],
) -> Vec<(f64, What)> {
    let failure = LoadFailure { step, locked };
    let note = Note::NotLoaded { failure, flaw: flaw.map(str::to_owned) };
    let again = [
        (50.0, What::Note(note)),
        (50.0, What::Note(Note::Planned(plan()))),
        (50.0, What::Note(opened("grub.cfg-01"))),
        (50.0, What::Note(sent("grub.cfg-01"))),
    ];
    with(with(upto(UEFI, Stage::Config, true), fetched), again)
}

/// Its address is another server's, whose ACK named a next server.
fn by_proxy(firmware: &'static str, next: Option<Ipv4Addr>) -> Vec<(f64, What)> {
    let mut happened = upto(firmware, Stage::Loader, false);
    happened.retain(|(_, what)| !matches!(what, S(Stage::Ack, _)));
    let named = next.map(|next| (4.0, N(Note::NextServer { server: OTHER, next })));
    with(happened, named)
}

fn with(mut happened: Vec<(f64, What)>, more: impl IntoIterator<Item = (f64, What)>) -> Vec<(f64, What)> {
    happened.extend(more);
    happened
}

/// What happened, words that the first cause has, and words of its evidence or remedy.
type Case = (Kind, Vec<(f64, What)>, &'static str, &'static str);

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    let taken = |taken| N(Note::OtherServer { server: OTHER, taken });
    let asks = |seconds, firmware| [(seconds, S(Stage::Discover, firmware)), (seconds, S(Stage::Offer, firmware))];
    let loader = "boot/grub-x64.efi";
    let stage1_said = |said| with(upto(UEFI, Stage::Stage1, true), [(15.0, Failed(said))]);
    vec![
        (Kind::OtherDhcpServer, with(asks(0.0, UEFI).into(), [(4.0, taken(true))]),
            "took the offer of another DHCP server, 10.77.0.9", "option 54"),
        (Kind::OtherDhcpServer, with(asks(0.0, BIOS).into(), [(0.1, taken(false)), (0.2, taken(false))]),
            "10.77.0.9, answers it", "overheard"),
        (Kind::OfferNotTaken, asks(0.0, BIOS).into_iter().chain(asks(1.0, BIOS)).chain(asks(3.0, BIOS)).collect(),
            "offers were sent 3 times", "offer, 3 times in 3.0 s"),
        (Kind::NoAddress, vec![(0.0, S(Stage::Discover, UEFI)), (4.0, S(Stage::Discover, UEFI))],
            "offered none (2 DISCOVER)", "discover, 2 times"),
        (Kind::NoAddress, vec![(0.0, S(Stage::Discover, UEFI)), (0.0, Failed("no free address: every address of dhcp.range is leased"))],
            "no free address", "[dhcp] range"),
        (Kind::Queued, vec![(0.0, S(Stage::Discover, UEFI)), (0.0, N(Note::Waits { before: 7 })), (4.0, S(Stage::Discover, UEFI)), (4.0, N(Note::Waits { before: 3 }))],
            "waits for its turn", "kept: 3 before it"),
        (Kind::WrongArchitecture, bound("network boot of architecture 11"),
            "architecture 11", "option 93: 11"),
        (Kind::WrongArchitecture, with(bound(UEFI), [(4.2, N(opened("boot/grub-bios.0"))), (4.3, N(sent("boot/grub-bios.0"))), (4.3, S(Stage::Loader, "boot/grub-bios.0"))]),
            "does not run on UEFI", "asked for boot/grub-bios.0"),
        (Kind::NothingFetched, bound(BIOS), "asked for no file", "ack: BIOS PXE"),
        (Kind::TransferStalled, with(bound(UEFI), [(4.2, N(opened(loader))), (40.0, N(stalled(loader, 340)))]),
            "after block 340 of 715", "8 times"),
        (Kind::TransferStalled, with(bound(UEFI), [(4.2, N(opened(loader))), (40.0, N(stalled(loader, 0)))]),
            "after block 0 of 715", "smaller MTU"),
        (Kind::TransferStalled, with(bound(UEFI), [(4.2, N(opened(loader))), (40.0, N(stalled(loader, 340))), (40.0, Failed("stopped answering after block 340 of 715 of x over TFTP"))]),
            "after block 340 of 715 of boot", "no acknowledgement for 30 s"),
        (Kind::TransferStalled, with(upto(UEFI, Stage::Config, true), [(5.0, N(opened("boot/aa/kernel"))), (6.0, N(Note::Cut { path: "boot/aa/kernel".into(), sent: 77, bytes: 100 }))]),
            "77 of 100 bytes", "connection ended"),
        (Kind::TransferAborted, with(bound(BIOS), [(4.2, N(opened("boot/grub-bios.0"))), (4.3, N(Note::Aborted { path: "boot/grub-bios.0".into(), code: 3, message: "Disk full".into(), acked: 17, blocks: 99 }))]),
            "at block 17 of 99", "Disk full"),
        (Kind::FileNotServed, with(upto(BIOS, Stage::Config, true), [(5.0, N(Note::NotServed { path: "vmlinuz".into(), why: "file not found".into() }))]),
            "asked for vmlinuz", "file not found"),
        // The kernel's ring tells the end of one file after the daemon told that the next one is not there.
        (Kind::FileNotServed, with(upto(UEFI, Stage::Config, true), [(5.0, N(opened(KERNEL))), (5.1, N(Note::NotServed { path: "initrd".into(), why: "file not found".into() })), (5.1, N(sent(KERNEL))), (5.1, S(Stage::Kernel, KERNEL))]),
            "asked for initrd", "file not found"),
        (Kind::SecureBoot, upto(UEFI, Stage::Loader, false), "UEFI fetched the loader", "no configuration"),
        (Kind::SecureBoot, not_loaded(LoadStep::Kernel, true, None, [(4.5, N(opened(KERNEL))), (4.6, N(sent(KERNEL)))]),
            "refuses the kernel", "could not load the kernel"),
        (Kind::NextServer, by_proxy(UEFI, None), "asks the server that this one names", "did not give it its address"),
        (Kind::NextServer, by_proxy(BIOS, Some(OTHER)), "not the appliance", "names 10.77.0.9 as next server"),
        (Kind::NextServer, by_proxy(UEFI, Some(Ipv4Addr::UNSPECIFIED)), "not the appliance", "names no next server"),
        (Kind::OtherSubnet, vec![(0.0, S(Stage::Discover, UEFI)), (0.0, Failed("it asks from behind 10.88.0.1, of a subnet that is not served: 10.77.0.0/24 is"))],
            "behind 10.88.0.1", "one subnet"),
        (Kind::WrongArchitecture, with(upto(UEFI, Stage::Loader, false), [(4.3, N(Note::NotServed { path: "dtb/".into(), why: "no such file".into() }))]),
            "U-Boot", "asked for dtb/"),
        (Kind::FileNotServed, not_loaded(LoadStep::Kernel, false, None, [(4.5, N(Note::NotServed { path: "/vmlinuz".into(), why: "no such file".into() }))]),
            "asked for /vmlinuz", "could not load the kernel"),
        (Kind::SecureBoot, not_loaded(LoadStep::Kernel, true, None, [(4.5, N(module_missing("linuxefi"))), (4.5, N(opened(KERNEL))), (4.6, N(sent(KERNEL)))]),
            "refuses the kernel", "could not load the kernel"),
        (Kind::MemoryTooSmall, not_loaded(LoadStep::Kernel, false, None, [(4.5, N(module_missing("video"))), (4.5, N(opened(KERNEL))), (4.6, N(closed(KERNEL)))]),
            "could not load the kernel", "474 MiB"),
        (Kind::FileNotServed, not_loaded(LoadStep::Kernel, false, None, [(4.5, N(module_missing("linux")))]),
            "linux.mod", "could not load the kernel"),
        (Kind::TransferStalled, not_loaded(LoadStep::Initrd, false, None, [(4.5, N(opened(KERNEL))), (40.0, N(stalled(KERNEL, 3)))]),
            "after block 3 of 715", "could not load the initrds"),
        (Kind::NotBootable, not_loaded(LoadStep::Kernel, false, Some("x.efi is no Linux kernel"), [(4.5, N(opened("x.efi"))), (4.6, N(closed("x.efi")))]),
            "no Linux kernel", "closed x.efi after block 1 of 99"),
        (Kind::MemoryTooSmall, not_loaded(LoadStep::Kernel, false, None, [(4.5, N(opened(KERNEL))), (4.6, N(closed(KERNEL)))]),
            "could not load the kernel", "474 MiB"),
        (Kind::MemoryTooSmall, not_loaded(LoadStep::Initrd, false, None, [(4.5, N(opened(OWN_INITRD))), (4.5, N(sent(OWN_INITRD)))]),
            "could not load the initrds", "out of memory"),
        (Kind::NotBootable, not_loaded(LoadStep::Initrd, true, None, [(4.5, N(opened(KERNEL))), (4.6, N(sent(KERNEL)))]),
            "GRUB without HTTP", "cargo xtask setup"),
        (Kind::NotBootable, not_loaded(LoadStep::Boot, false, None, [(4.5, N(opened(OWN_INITRD))), (4.5, N(sent(OWN_INITRD)))]),
            "could not start it", "could not start the kernel"),
        (Kind::LoaderSilent, upto(BIOS, Stage::Loader, false), "asked for nothing", "no configuration"),
        (Kind::NotBootable, with(upto(UEFI, Stage::Config, false), [(4.4, Failed("image a could not be brought in: no such image"))]),
            "could not be brought in", "image add"),
        (Kind::Silent, upto(UEFI, Stage::Kernel, true), "fell silent after its kernel", "474 MiB"),
        (Kind::KernelSilent, upto(UEFI, Stage::Initrd, true), "nothing was heard since", "474 MiB"),
        (Kind::OtherSystem, with(upto(UEFI, Stage::Initrd, true), [(20.0, N(Note::SystemAsked))]),
            "not our stage 1", "vendor class"),
        (Kind::Stage1Network, with(upto(UEFI, Stage::Initrd, true), [(20.0, N(Note::Refused { what: Refusal::Address, why: "10.77.0.8 is not the address of n1".into() }))]),
            "another address", "10.77.0.8"),
        (Kind::TokenRefused, with(upto(UEFI, Stage::Initrd, true), [(20.0, N(Note::Refused { what: Refusal::Session, why: "this is not the session of n1's boot".into() }))]),
            "without the certificate", "not the session"),
        (Kind::TokenRefused, with(upto(UEFI, Stage::Image, true), [(20.0, N(Note::Refused { what: Refusal::Token, why: "10.77.0.8 asked".into() }))]),
            "given no session", "10.77.0.8"),
        (Kind::TokenRefused, stage1_said("the appliance did not give the volumes' keys: 403"), "volumes' keys", "boot it again"),
        (Kind::DigestMismatch, stage1_said("the image is damaged: SHA-256 aa of what arrived, bb announced"), "SHA-256 aa", "image rm"),
        (Kind::MemoryTooSmall, stage1_said("the kernel could not unpack all of the initrd (write error): the machine has too little memory for the image"),
            "write error", "474 MiB"),
        (Kind::MemoryTooSmall, with(upto(UEFI, Stage::Config, false), [(4.4, Failed("image a needs 474 MiB of memory in one stage and this machine has 320 MiB"))]),
            "needs 474 MiB", "smaller image"),
        (Kind::Stage1Failed, stage1_said("mounting tmpfs at /run: no such device"), "mounting tmpfs", "console"),
        (Kind::WorkloadEnded, with(upto(UEFI, Stage::Workload, true), [(20.0, Failed("exit status: 3"))]), "exit status: 3", "last words"),
        (Kind::Silent, upto(UEFI, Stage::Stage1, true), "fell silent after stage1", "Linux 6.1"),
    ]
}

#[test]
fn each_cause_is_told_from_what_produces_it() {
    for (kind, happened, words, evidence) in cases() {
        let mut watch = watch(happened);
        // A boot that was not reported as failed falls silent.
        let silent = watch.silent(at(1000.0), |_, _| true);
        let why = watch.why(MAC, at(1000.0)).unwrap();
        assert!(why.failed, "{kind:?}: {why:#?}");
        let first = &why.causes[0];
        assert_eq!(first.kind, kind, "{why:#?}");
        assert!(first.words.contains(words), "{kind:?}: {why:#?}");
        let rest = serde_json::to_string(first).unwrap();
        assert!(rest.contains(evidence), "{evidence}: {why:#?}");
        assert!(!first.evidence.is_empty() && !first.remedy.is_empty(), "{why:#?}");
        for (_, said) in silent {
            assert!(said.starts_with("nothing heard for ") && said.contains(&first.words), "{said}");
        }
        assert_eq!(watch.failures().collect::<Vec<_>>(), [(kind, 1)]);
    }
}

#[test]
fn every_cause_of_a_failure_has_a_case_and_every_cause_a_row_in_the_manual() {
    let covered: BTreeSet<Kind> = cases().iter().map(|(kind, ..)| *kind).collect();
    let manual = include_str!("../../../../docs/why.md");
    let all = [
        Kind::OtherDhcpServer,
        Kind::NoAddress,
        Kind::Queued,
        Kind::OfferNotTaken,
        Kind::LinkLate,
        Kind::WrongArchitecture,
        Kind::NothingFetched,
        Kind::TransferAborted,
        Kind::TransferStalled,
        Kind::FileNotServed,
        Kind::OtherSubnet,
        Kind::NextServer,
        Kind::SecureBoot,
        Kind::LoaderSilent,
        Kind::NotBootable,
        Kind::ImagePreparing,
        Kind::MemoryTooSmall,
        Kind::KernelSilent,
        Kind::OtherSystem,
        Kind::Stage1Network,
        Kind::DigestMismatch,
        Kind::TokenRefused,
        Kind::Stage1Failed,
        Kind::WorkloadEnded,
        Kind::Silent,
        Kind::Slow,
    ];
    for kind in all {
        assert!(kind.is_harmless() || covered.contains(&kind), "{kind:?} is not produced");
        let row = format!("| `{}` |", text::word(kind));
        assert!(manual.contains(&row), "docs/why.md has no row {row}");
    }
}

#[test]
fn a_boot_that_is_well_has_no_cause() {
    for stage in [
        Stage::Ack,
        Stage::Loader,
        Stage::Config,
        Stage::Kernel,
        Stage::Initrd,
        Stage::Stage1,
        Stage::Workload,
    ] {
        for firmware in [UEFI, BIOS] {
            let mut watch = watch(upto(firmware, stage, true));
            let soon = watch.why(MAC, at(0.0)).unwrap().last + jiff::SignedDuration::from_secs(5);
            assert_eq!(watch.why(MAC, soon).unwrap().causes, [], "{stage:?}");
            let all = watch.all(soon);
            assert!(all.iter().all(|why| !why.done && why.causes.is_empty()), "{all:#?}");
            assert!(watch.silent(soon, |_, _| true).is_empty());
        }
    }
    // A workload runs for as long as it likes; so does a kernel that does not know us.
    let mut running = watch(upto(UEFI, Stage::Workload, true));
    assert!(running.silent(at(1e6), |_, _| true).is_empty());
    assert_eq!(running.asks(MAC, Some(Firmware::UefiX64), at(1e6)), None, "a reboot is no failure");
    let by_hand = Planned { reports: false, initrds: 1, needed: None, ..plan() };
    let happened = with(upto(BIOS, Stage::Initrd, false), [(4.5, N(Note::Planned(by_hand)))]);
    assert!(watch(happened).silent(at(1e6), |_, _| true).is_empty());
}

#[test]
fn a_machine_that_asks_anew_gave_up_and_one_that_asks_again_did_not() {
    // EDK2's waits, then GRUB asking nothing.
    let mut asking = watch(vec![(0.0, S(Stage::Discover, UEFI)), (0.0, S(Stage::Offer, UEFI))]);
    for seconds in [4.0, 12.0, 28.0] {
        assert_eq!(asking.asks(MAC, Some(Firmware::UefiX64), at(seconds)), None);
        asking.reached(&event(seconds, Stage::Discover, UEFI, None));
    }
    assert_eq!(asking.why(MAC, at(29.0)).unwrap().began, at(0.0), "still the same attempt");
    let said = asking.asks(MAC, Some(Firmware::UefiX64), at(100.0)).unwrap();
    assert!(said.starts_with("it began anew after offer: an offer was sent"), "{said}");

    let mut rebooted = watch(upto(UEFI, Stage::Loader, false));
    assert_eq!(rebooted.asks(MAC, Some(Firmware::IpxeUefiX64), at(9.0)), None, "its loader was iPXE");
    let said = rebooted.asks(MAC, Some(Firmware::UefiX64), at(9.0)).unwrap();
    assert!(said.starts_with("it began anew after loader: UEFI fetched the loader"), "{said}");
    rebooted.reached(&event(9.0, Stage::Failed, "", Some(&said)));
    rebooted.reached(&event(9.0, Stage::Discover, UEFI, None));
    let why = rebooted.why(MAC, at(9.5)).unwrap();
    assert!(!why.failed && why.causes.is_empty(), "{why:#?}");
    assert_eq!(why.before.unwrap().causes[0].kind, Kind::SecureBoot);
    assert_eq!(rebooted.failures().collect::<Vec<_>>(), [(Kind::SecureBoot, 1)]);

    let mut hasty = watch(bound(UEFI));
    assert_eq!(
        hasty.asks(MAC, Some(Firmware::UefiX64), at(4.5)),
        None,
        "no machine boots within half a second"
    );
}

/// It asks for half a minute: that is one boot, and one cause.
#[test]
fn firmware_that_is_refused_an_address_asks_again_within_the_same_boot() {
    let words = "it asks from behind 10.88.0.1, of a subnet that is not served: 10.77.0.0/24 is";
    let mut refused = Watch::default();
    for seconds in [0.0, 1.0, 3.0, 7.0, 100.0] {
        refused.reached(&event(seconds, Stage::Discover, BIOS, None));
        assert!(refused.reached(&event(seconds, Stage::Failed, "", Some(words))));
        let why = refused.why(MAC, at(seconds)).unwrap();
        assert!(why.failed && why.causes[0].kind == Kind::OtherSubnet, "{why:#?}");
        assert_eq!(why.before.is_some(), seconds > 50.0, "{why:#?}");
    }
}

#[test]
fn a_transfer_under_way_is_no_silence_and_one_of_an_earlier_boot_no_news() {
    let kernel = "boot/aa/kernel";
    let mut loading = watch(with(upto(UEFI, Stage::Config, true), [(5.0, N(opened(kernel)))]));
    assert!(loading.silent(at(500.0), |_, _| true).is_empty());
    loading.noticed(MAC, Note::Progress { path: kernel.into(), percent: 50 }, at(500.0));
    let said = loading.asks(MAC, Some(Firmware::UefiX64), at(501.0)).unwrap();
    assert!(said.contains("began anew while boot/aa/kernel was sent, 50 %"), "{said}");
    loading.reached(&event(501.0, Stage::Discover, UEFI, None));
    // The daemon notices the stall long after the machine has started over.
    loading.noticed(MAC, stalled(kernel, 12), at(502.0));
    loading.reached(&event(502.0, Stage::Ack, UEFI, None));
    assert_eq!(loading.why(MAC, at(600.0)).unwrap().causes[0].kind, Kind::NothingFetched);
}

#[test]
fn a_late_link_shows_in_secs_or_in_offers_that_were_not_heard() {
    // iPXE's fourth message says 28; its first 4, its second 10.
    for (secs, late) in [(0, false), (4, false), (10, false), (28, true)] {
        let happened = with(upto(BIOS, Stage::Workload, true), [(0.0, N(Note::Secs(secs)))]);
        let mut watch = Watch::default();
        for (seconds, what) in happened {
            match what {
                S(stage, detail) => drop(watch.reached(&event(seconds, stage, detail, None))),
                N(note @ Note::Secs(_)) => watch.noticed(MAC, note, at(seconds)),
                _ => {}
            }
        }
        let causes = watch.why(MAC, at(30.0)).unwrap().causes;
        assert_eq!(causes.first().map(|c| c.kind), late.then_some(Kind::LinkLate), "{secs}");
    }
    let mut happened = vec![];
    for seconds in [0.0, 4.0, 12.0] {
        happened.extend([(seconds, S(Stage::Discover, UEFI)), (seconds, S(Stage::Offer, UEFI))]);
    }
    happened.extend([(16.0, S(Stage::Request, UEFI)), (16.0, S(Stage::Ack, UEFI))]);
    let why = watch(happened).why(MAC, at(17.0)).unwrap();
    assert_eq!(why.causes[0].kind, Kind::LinkLate);
    assert!(why.causes[0].words.contains("for 16 s"), "{why:#?}");
}

#[test]
fn a_loader_that_goes_round_has_failed_until_it_gets_further() {
    let mut looping = watch(upto(UEFI, Stage::Config, true));
    let not_there = |watch: &mut Watch, path: &str, seconds| {
        watch.noticed(MAC, Note::NotServed { path: path.into(), why: "no such file".into() }, at(seconds));
    };
    let asks = |watch: &mut Watch, step, seconds| {
        let note = Note::NotLoaded { failure: LoadFailure { step, locked: false }, flaw: None };
        let NotLoaded { words, news } = watch.not_loaded(MAC, note, at(seconds)).unwrap();
        if news {
            watch.reached(&event(seconds, Stage::Failed, "", Some(&words)));
        }
        watch.noticed(MAC, Note::Planned(plan()), at(seconds));
        watch.reached(&event(seconds, Stage::Config, "", None));
        (words, news)
    };
    // The kernel is not there, then it is, and an initrd is not.
    for (round, seconds) in [10.0, 15.0, 20.0].into_iter().enumerate() {
        not_there(&mut looping, "/vmlinuz", seconds - 4.0);
        let (words, news) = asks(&mut looping, LoadStep::Kernel, seconds);
        assert_eq!(news, round == 0, "it is told once");
        assert!(words.starts_with("its loader tries again and again: it asked for /vmlinuz"), "{words}");
        let why = looping.why(MAC, at(seconds + 1.0)).unwrap();
        assert!(why.failed && why.causes[0].kind == Kind::FileNotServed, "{why:#?}");
    }
    for seconds in [25.0, 30.0] {
        let over = looping.reached(&event(seconds - 4.0, Stage::Kernel, "vmlinuz", None));
        assert_eq!(over, seconds > 25.0, "only the first time it is further than before");
        not_there(&mut looping, "/initrd", seconds - 3.0);
        let (words, news) = asks(&mut looping, LoadStep::Initrd, seconds);
        assert!(news == (seconds < 26.0) && words.contains("asked for /initrd"), "{words}");
    }
    assert_eq!(looping.failures().collect::<Vec<_>>(), [(Kind::FileNotServed, 2)]);
    assert!(looping.silent(at(500.0), |_, _| true).is_empty(), "it has failed already");
    // All of it is there. A machine that is silent then has started the kernel.
    assert!(looping.reached(&event(31.0, Stage::Kernel, "vmlinuz", None)));
    assert!(!looping.reached(&event(32.0, Stage::Initrd, "initrd", None)));
    assert!(looping.why(MAC, at(33.0)).unwrap().causes.is_empty());
    assert_eq!(looping.why(MAC, at(150.0)).unwrap().causes[0].kind, Kind::KernelSilent);
    looping.reached(&event(151.0, Stage::Stage1, "Linux", None));
    assert!(!looping.why(MAC, at(152.0)).unwrap().failed);
}

#[test]
fn a_loader_that_is_given_itself_is_told() {
    let mut watch = watch(upto(UEFI, Stage::Loader, false));
    for n in 1..4 {
        let seconds = 4.2 + 2.0 * f64::from(n);
        assert!(watch.why(MAC, at(seconds)).unwrap().causes.is_empty());
        watch.reached(&event(seconds - 1.0, Stage::Discover, "iPXE (UEFI x86-64)", None));
        watch.reached(&event(seconds, Stage::Loader, "grub/x86_64-efi.efi", None));
    }
    let causes = watch.why(MAC, at(11.0)).unwrap().causes;
    assert!(causes[0].kind == Kind::LoaderSilent && causes[0].words.contains("4 times"), "{causes:#?}");
}

#[test]
fn an_image_on_its_way_is_waited_for() {
    let preparing = N(Note::Preparing { image: "web:1".into() });
    let watch = watch(with(upto(UEFI, Stage::Config, false), [(4.4, preparing)]));
    let causes = watch.why(MAC, at(6.0)).unwrap().causes;
    assert_eq!(causes[0].kind, Kind::ImagePreparing);
}

#[test]
fn slow_is_what_takes_longer_than_it_does_here() {
    let mut watch = Watch::default();
    let machine = |n: u8| Mac([2, 0, 0, 0, 0, n]);
    let boot = |watch: &mut Watch, n: u8, kernel: f64| {
        for (seconds, what) in upto(UEFI, Stage::Workload, true) {
            let late = if seconds >= 5.0 { kernel } else { 0.0 };
            match what {
                S(stage, detail) => {
                    watch.reached(&Event { mac: machine(n), ..event(seconds + late, stage, detail, None) });
                }
                N(note) => watch.noticed(machine(n), note, at(seconds)),
                Failed(_) => {}
            }
        }
    };
    (0..9).for_each(|n| boot(&mut watch, n, f64::from(n) / 10.0));
    assert_eq!(watch.all(at(100.0)), []);
    boot(&mut watch, 9, 20.0);
    let all = watch.all(at(100.0));
    let [why] = all.as_slice() else { panic!("{all:#?}") };
    assert_eq!((why.mac, why.failed, why.causes[0].kind), (machine(9), false, Kind::Slow));
    assert!(why.causes[0].words.starts_with("slow: kernel took 20.6 s; here it takes 1."), "{why:#?}");
    // One that has just begun, and waits for its ACK.
    watch.reached(&event(200.0, Stage::Discover, UEFI, None));
    watch.reached(&event(200.0, Stage::Offer, UEFI, None));
    assert!(watch.why(MAC, at(204.0)).unwrap().causes.is_empty());
    let causes = watch.why(MAC, at(213.0)).unwrap().causes;
    assert!(causes[0].words.starts_with("slow: request is waited for since 13.0 s"), "{causes:#?}");

    let (_, workload) = watch.pace().since_discover().last().unwrap();
    assert_eq!(workload.counts.iter().sum::<u64>(), 10);
    assert!(workload.sum > 10.0 * 14.0);
}

#[test]
fn what_an_earlier_daemon_recorded_is_read_again() {
    let mut earlier = watch(upto(UEFI, Stage::Loader, false));
    let said = earlier.asks(MAC, Some(Firmware::UefiX64), at(9.0)).unwrap();
    let again = watch(with(
        upto(UEFI, Stage::Loader, false),
        [(9.0, Failed(Box::leak(said.into_boxed_str()))), (9.0, S(Stage::Discover, UEFI))],
    ));
    assert_eq!(again.why(MAC, at(9.5)).unwrap().before.unwrap().causes[0].kind, Kind::SecureBoot);
}

#[test]
fn machines_are_forgotten_oldest_first() {
    let mut watch = Watch::default();
    for n in 0..40_000u32 {
        let [_, b, c, d] = n.to_be_bytes();
        let mac = Mac([6, 0, 0, b, c, d]);
        watch.reached(&Event { mac, ..event(f64::from(n), Stage::Discover, UEFI, None) });
    }
    let seen = |n: u32| {
        let [_, b, c, d] = n.to_be_bytes();
        watch.why(Mac([6, 0, 0, b, c, d]), at(1e6)).is_some()
    };
    assert!(seen(39_999) && !seen(0));
}
