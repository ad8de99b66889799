//! Causes that are known and not inferred: those that the appliance or a machine's stage 1 named itself.

use pxe_contract::stage::Stage;

use super::{Boot, Cause, Kind, node, transfer};

/// Words by which a cause is recognised (the first match counts), and what to do. They are from the errors of
/// pxe-init (`fetch`, `image`, `stage2`, `storage/keys`), of `boot::plan::Refusal` and of the leases.
#[rustfmt::skip]
const KNOWN: &[(&str, Kind, &str)] = &[
    ("did not give the volumes' keys", Kind::TokenRefused, ""),
    ("gave this boot no session", Kind::TokenRefused, ""),
    ("image is damaged: SHA-256", Kind::DigestMismatch, REMEDY_DIGEST),
    ("the appliance announced sha256:", Kind::DigestMismatch, REMEDY_DIGEST),
    ("MiB of memory", Kind::MemoryTooSmall, REMEDY_MEMORY),
    ("too little memory", Kind::MemoryTooSmall, REMEDY_MEMORY),
    ("stopped answering after block", Kind::TransferStalled, ""),
    ("no free address", Kind::NoAddress, "see `bridgehead leases`; give [dhcp] range more addresses, or leases less time"),
    ("DHCPDECLINE", Kind::NoAddress, "find who has that address: `ip neigh`, the switch's table"),
    ("of a subnet that is not served", Kind::OtherSubnet, REMEDY_SUBNET),
    ("no profile", Kind::NotBootable, "give the machine a profile"),
    ("could not be brought in", Kind::NotBootable, "`bridgehead profiles` says more; `bridgehead image add` tries again"),
    ("can't boot in two stages", Kind::NotBootable, "add the image again, or set stages = \"one\""),
    ("its tools are not here", Kind::NotBootable, "run `cargo xtask setup`"),
    ("cmdline", Kind::NotBootable, "correct the profile's cmdline"),
];
const REMEDY_DIGEST: &str = "boot it again; if it stays, `bridgehead image rm`, `image gc` and `image add` make the image \
                             anew; if only this machine has it, test its memory";
const REMEDY_SUBNET: &str = "one subnet is served, that of [network] address: boot the machine there, or run an appliance of \
                             its own on the other subnet; [dhcp] mode = \"proxy\" does not serve that either";
const REMEDY_MEMORY: &str =
    "use a smaller image or stages = \"two\"; give the machine more memory, or correct [[node]] memory";

pub(super) fn cause(boot: &Boot, said: &str) -> Cause {
    let known = KNOWN.iter().find(|(words, ..)| said.contains(words));
    // TFTP's observation says more than its line in the timeline.
    if let Some((_, Kind::TransferStalled, _)) = known
        && let Some(cause) = transfer::broken(boot).filter(|c| c.kind == Kind::TransferStalled)
    {
        return cause;
    }
    let (kind, remedy) = match known {
        Some((_, Kind::TokenRefused, _)) => (Kind::TokenRefused, node::token_refused().remedy),
        Some((_, kind, remedy)) => (*kind, (*remedy).to_owned()),
        None if boot.has(Stage::Workload) => {
            (Kind::WorkloadEnded, "`bridgehead console` has its last words".to_owned())
        }
        None if boot.has(Stage::Stage1) => {
            (Kind::Stage1Failed, "`bridgehead console` has what led to it".to_owned())
        }
        None => (Kind::NotBootable, "`bridgehead profiles` and `status` say more".to_owned()),
    };
    let cause = Cause::new(kind, said, remedy);
    let cause = cause.with(boot.last_stage().and_then(|stage| boot.evidence(stage)));
    match kind {
        Kind::MemoryTooSmall => cause.with(transfer::memory(boot)),
        _ => cause,
    }
}
