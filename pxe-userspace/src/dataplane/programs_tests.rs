//! Programs that a kernel refuses: they are spoilt on purpose in a copy of the object, to get the verifier's own
//! message. The tests need root and the built object, and say so when they are skipped.

use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use pxe_common::map::{Part, name};
use pxe_common::verdict::Hook;

use super::load::OBJECT;
use super::ports::Tier;
use super::programs::{KernelStatus, ProgramState, ProgramStatus};
use super::tests::{
    ACK, STATIONS, TC_ACT_REDIRECT, TC_ACT_UNSPEC, XDP_PASS, XDP_TX, ack_frame, check_data_frame, contents,
    now_ns, run, session,
};
use super::{Dataplane, lock};
use crate::config::FastPath;
use crate::provision::blob::Blob;
use crate::serve::tftp::FastPath as _;

/// `r0 = *(u64 *)(r5 + 0)`: no program has anything in r5 when it begins (RFC 9669 section 4.2).
const SPOILT: [u8; 8] = [0x79, 0x50, 0, 0, 0, 0, 0, 0];

/// The object with these programs spoilt.
pub(super) fn spoil(programs: &[&str]) -> Vec<u8> {
    let file = object::File::parse(OBJECT).unwrap();
    let mut bytes = OBJECT.to_vec();
    for program in programs {
        let symbol = file.symbols().find(|symbol| symbol.name() == Ok(program)).unwrap();
        let section = file.section_by_index(symbol.section_index().unwrap()).unwrap();
        let at = (section.file_range().unwrap().0 + symbol.address()) as usize;
        bytes[at..at + SPOILT.len()].copy_from_slice(&SPOILT);
    }
    bytes
}

/// None when the test has to be skipped.
fn loaded_without(programs: &[&str]) -> Option<Dataplane> {
    // It prints the reason.
    super::tests::loaded()?;
    let (dataplane, ..) = Dataplane::of_object(&spoil(programs), FastPath::Auto, false, None).unwrap();
    dataplane.blobs.take_all_sizes();
    Some(dataplane)
}

fn status(dataplane: &Dataplane, wanted: &str) -> ProgramStatus {
    let KernelStatus { programs, .. } = dataplane.kernel();
    programs.into_iter().find(|program| program.name == wanted).unwrap()
}

/// Whether the hook sends the first block of a transfer.
fn serves_blocks(dataplane: &Dataplane, hook: Hook) -> bool {
    let bytes = contents(5000);
    let blob = Blob::from_bytes(bytes.clone());
    let key = pxe_common::map::SessionKey::of(&ACK);
    dataplane
        .open(key, STATIONS, &blob, session(bytes.len(), 512), now_ns(), Duration::from_secs(30))
        .unwrap();
    let (verdict, frame) = run(dataplane, hook, &ack_frame(0));
    dataplane.close(&key);
    let (answered, passed) = match hook {
        Hook::Xdp => (XDP_TX, XDP_PASS),
        Hook::Tc => (TC_ACT_REDIRECT, TC_ACT_UNSPEC),
    };
    if verdict == answered {
        check_data_frame(&frame, 1, &bytes[..512]);
    } else {
        assert_eq!((verdict, frame), (passed, ack_frame(0)));
    }
    verdict == answered
}

#[test]
fn a_refused_part_leaves_the_other_part_and_the_other_hook() {
    for (hook, other) in [(Hook::Xdp, Hook::Tc), (Hook::Tc, Hook::Xdp)] {
        for part in Part::ALL {
            let refused = name::part(hook, part);
            let Some(dataplane) = loaded_without(&[refused]) else { return };
            let told = status(&dataplane, refused);
            assert_eq!(told.state, ProgramState::Refused);
            assert_eq!(told.reason.as_deref(), Some("R5 !read_ok"));
            assert!(told.verifier.iter().any(|line| line == "R5 !read_ok"), "{told:?}");
            let loaded = |program: &ProgramStatus| program.state == ProgramState::Loaded;
            assert_eq!(dataplane.kernel().programs.iter().filter(|p| loaded(p)).count(), 5);
            assert_eq!(serves_blocks(&dataplane, hook), part == Part::Dhcp);
            assert!(serves_blocks(&dataplane, other));
            let counters = dataplane.counters();
            let counted = if hook == Hook::Xdp { counters.xdp } else { counters.tc };
            assert_eq!(counted["no-program"], u64::from(part == Part::Tftp));
        }
    }
}

#[test]
fn a_port_has_the_tier_that_the_kernel_leaves() {
    let all = Hook::ALL.map(name::entry);
    let tc_parts = Part::ALL.map(|part| name::part(Hook::Tc, part));
    let cases: [(&[&str], FastPath, Tier); 5] = [
        (&[name::entry(Hook::Xdp)], FastPath::Auto, Tier::Tc),
        (&[name::entry(Hook::Xdp)], FastPath::Xdp, Tier::Off),
        (&[name::entry(Hook::Tc)], FastPath::Auto, Tier::Off),
        (&tc_parts, FastPath::Tc, Tier::Off),
        (&all, FastPath::Auto, Tier::Off),
    ];
    for (refused, wanted, tier) in cases {
        let Some(dataplane) = loaded_without(refused) else { return };
        // The namespace belongs to the thread, and vanishes with it.
        let got = std::thread::scope(|scope| {
            let attached = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                let made = std::process::Command::new("ip")
                    .args(["link", "add", "port", "type", "veth", "peer", "name", "other"])
                    .status();
                assert!(made.unwrap().success());
                lock(&dataplane.ports).attach("port", wanted)
            });
            attached.join().unwrap()
        });
        assert_eq!(got.tier, tier, "without {refused:?}: {got:?}");
        if tier == Tier::Off {
            assert!(got.reason.as_ref().is_some_and(|why| why.contains("R5 !read_ok")), "{got:?}");
        }
    }
}

/// `fast-path = "tc"` is also for kernels and drivers with which XDP fails: none of its programs is loaded.
#[test]
fn tc_alone_loads_no_xdp_program() {
    if super::tests::loaded().is_none() {
        return;
    }
    let (dataplane, ..) = Dataplane::load(FastPath::Tc, false).unwrap();
    for ProgramStatus { name, state, .. } in dataplane.kernel().programs {
        let wanted = if name.contains("xdp") { ProgramState::NotNeeded } else { ProgramState::Loaded };
        assert_eq!(state, wanted, "{name}");
    }
}

/// Half of the verifier's limit (`BPF_COMPLEXITY_LIMIT_INSNS`), because another kernel's verifier may follow more paths
/// through the same program. The kernels of the lab's virtual machines are tested in the same way.
#[test]
fn the_verifier_has_half_of_its_limit_to_spare() {
    const HALF: u32 = 500_000;
    let Some(dataplane) = super::tests::loaded() else { return };
    let KernelStatus { kernel, programs } = dataplane.kernel();
    for ProgramStatus { name, instructions, .. } in programs {
        let instructions = instructions.expect("Linux 5.16 and later tell");
        eprintln!("Linux {kernel}: {name}: {instructions} of 1,000,000 instructions");
        assert!(instructions < HALF, "{name}: {instructions}");
    }
}
