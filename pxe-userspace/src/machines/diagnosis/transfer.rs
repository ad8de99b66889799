//! Between ACK and the last file.

use pxe_common::dhcp::Firmware;
use pxe_contract::stage::Stage;

use super::boot::Note;
use super::{Boot, Cause, Evidence, Kind};

/// ERROR 8 (RFC 2347): a client ends the transfer because of its options. EDK2 asks for a file's size so,
/// "User aborted the transfer", and means no failure. GRUB closes files that it has seen enough of, too, but
/// goes on with others: what matters is the last transfer.
pub(super) const OPTIONS_REFUSED: u16 = 8;
pub(super) const CLOSED: u16 = 0;

/// The smallest block size that a path with a smaller MTU than Ethernet's may not carry.
const LARGE_BLOCK: u16 = 1300;

/// It has an address and loads nothing.
pub(super) fn nothing_fetched(boot: &Boot) -> Option<Cause> {
    if let Some(cause) = wrong_architecture(boot).or_else(|| broken(boot)) {
        return Some(cause);
    }
    let cause = Cause::new(
        Kind::NothingFetched,
        "it has an address and asked for no file",
        "see on its console what the ROM says; its boot order may go on to a disk; a firewall between may drop UDP port \
         69; an old ROM may want the boot file in the packet's `file` field: `bridgehead trace` shows what it was sent",
    );
    Some(cause.with(boot.evidence(Stage::Ack)))
}

/// The loader has its configuration, and not all of the files in it.
pub(super) fn files_missing(boot: &Boot) -> Option<Cause> {
    broken(boot).or_else(|| preparing(boot)).or_else(|| {
        let last = boot.last_stage()?;
        let cause = Cause::new(
            Kind::Silent,
            format!("it fell silent after its {}", crate::base::text::word(last)),
            "see on its console what the loader says: a file too large for its memory ends GRUB with \"out of memory\"",
        );
        Some(cause.with(boot.evidence(last)).with(memory(boot)))
    })
}

/// The image is being imported.
pub(super) fn preparing(boot: &Boot) -> Option<Cause> {
    // A plan since then means that the image is there.
    let (time, note) =
        boot.notes.iter().rev().find(|(_, n)| matches!(n, Note::Preparing { .. } | Note::Planned(_)))?;
    let Note::Preparing { image } = note else { return None };
    let cause = Cause::new(
        Kind::ImagePreparing,
        format!("image {image} is not here yet: the loader asks again until it is"),
        "wait; `bridgehead images` and the daemon's log say how far it is",
    );
    Some(cause.seen(*time, "the loader was told to ask again"))
}

/// There is no loader for the firmware's architecture, or it got the loader of another one.
pub(super) fn wrong_architecture(boot: &Boot) -> Option<Cause> {
    let firmware = boot.firmware()?;
    let asked = boot.stages.get(&Stage::Discover)?;
    if let Firmware::Other(arch) = firmware {
        let cause = Cause::new(
            Kind::WrongArchitecture,
            format!("its firmware is of architecture {arch}, for which there is no loader"),
            "machines boot as x86-64: by BIOS (0), UEFI (7, 9) or UEFI HTTP Boot (16); a 32-bit UEFI, ARM or RISC-V \
             machine can't",
        );
        return Some(cause.seen(asked.first, format!("its DISCOVER says so in option 93: {arch}")));
    }
    if let Some(cause) = u_boot(boot, firmware) {
        return Some(cause);
    }
    let (time, path) = opened(boot).find(|(_, path)| is_others_loader(path, boot.is_uefi()))?;
    let cause = Cause::new(
        Kind::WrongArchitecture,
        format!("it loads {path}, which does not run on {firmware}"),
        "somebody else names its boot file: a second DHCP server, or an option 67 given by number in [dhcp]; take it \
         away, and the loader for each firmware is chosen here",
    );
    Some(
        cause
            .seen(asked.first, format!("its firmware: {firmware}"))
            .seen(time, format!("it asked for {path}")),
    )
}

/// U-Boot of 32 bits says that it is a UEFI of 64, and refuses the loader for that.
fn u_boot(boot: &Boot, firmware: Firmware) -> Option<Cause> {
    let (time, path) = boot.notes.iter().find_map(|(time, note)| match note {
        Note::NotServed { path, .. } if is_u_boots(path) => Some((*time, path)),
        _ => None,
    })?;
    if boot.has(Stage::Config) {
        return None;
    }
    let cause = Cause::new(
        Kind::WrongArchitecture,
        format!(
            "its firmware is U-Boot, which does not run the loader that it asks for as {firmware}: a U-Boot of 32 bits, \
                 which says that it has 64"
        ),
        "machines boot as x86-64: use a U-Boot of 64 bits or another firmware; its console has its own words",
    );
    Some(cause.with(boot.evidence(Stage::Loader)).seen(time, format!("it asked for {path}, as U-Boot does")))
}

/// By the names of GRUB's images: those of BIOS end in `.0` or `.pxe`, those of UEFI in `.efi`.
fn is_others_loader(path: &str, uefi: bool) -> bool {
    if uefi { path.ends_with(".0") || path.ends_with(".pxe") } else { path.ends_with(".efi") }
}

fn opened(boot: &Boot) -> impl Iterator<Item = (jiff::Timestamp, &str)> {
    boot.notes.iter().filter_map(|(time, note)| match note {
        Note::Opened { path, .. } => Some((*time, path.as_str())),
        _ => None,
    })
}

/// The last transfer did not complete, or did not begin.
///
/// A completed transfer stands where it was begun: the kernel's ring may tell its end after the daemon told of the
/// request that came next.
pub(super) fn broken(boot: &Boot) -> Option<Cause> {
    let mut sent = Vec::new();
    for (time, note) in boot.notes.iter().rev() {
        let last = match note {
            Note::Sent { path, .. } => {
                sent.push(path);
                false
            }
            Note::Opened { path, .. } if sent.contains(&path) => return None,
            Note::Opened { .. } => boot.open > 0,
            Note::Aborted { code, .. } => *code != OPTIONS_REFUSED,
            Note::NotServed { path, .. } => !may_be_missing(path),
            Note::Stalled { .. } | Note::Cut { .. } => true,
            // The rest: no transfers.
            _ => false,
        };
        if last {
            return self::ended(boot, *time, note);
        }
    }
    None
}

/// What is wrong with a transfer that came to this end; nothing where it is well.
pub(super) fn ended(boot: &Boot, time: jiff::Timestamp, note: &Note) -> Option<Cause> {
    let cause = match note {
        Note::Aborted { path, code, message, acked, blocks } => {
            // The kernel programs report only the code.
            let said = match message.as_str() {
                "" => format!("code {code}, {}", meaning(*code)),
                message => format!("code {code}, {message:?}"),
            };
            Cause::new(
                Kind::TransferAborted,
                format!("it broke {path} off at block {acked} of {blocks}, with a TFTP error: {said}"),
                "see what its console says; \"disk full\" and the like mean that the file is larger than the memory \
                 that its firmware has for it",
            )
            .seen(time, format!("TFTP ERROR, {said}"))
        }
        Note::Stalled { path, acked, blocks, blksize, repeated } => {
            stalled(path, *acked, *blocks, *blksize, *repeated, time)
        }
        Note::Cut { path, sent, bytes } => Cause::new(
            Kind::TransferStalled,
            format!("it took {sent} of {bytes} bytes of {path} over HTTP and closed the connection"),
            "see its console; a link that loses frames shows in `ethtool -S` of both ends",
        )
        .seen(time, "the connection ended"),
        Note::NotServed { path, why } => Cause::new(
            Kind::FileNotServed,
            format!("it asked for {path}, which was not served: {why}"),
            "`bridgehead files` and `profiles` list what there is; correct the profile or [files] root",
        )
        .seen(time, format!("{path}: {why}")),
        Note::Opened { path, bytes, blksize } => {
            let percent = progress(boot, path);
            let way = blksize.map_or("HTTP".to_owned(), |b| format!("TFTP, block size {b}"));
            Cause::new(
                Kind::TransferStalled,
                format!("it began anew while {path} was sent, {percent} % of {bytes} bytes"),
                "if nobody reset it, look for loss between it and the appliance: `ethtool -S` of both ends, the \
                 switch's counters; `bridgehead trace` shows the last packets",
            )
            .seen(time, format!("{path} was begun, by {way}"))
        }
        // The rest: not found above.
        _ => return None,
    };
    Some(cause)
}

/// RFC 1350 section 5, RFC 2347.
fn meaning(code: u16) -> &'static str {
    match code {
        1 => "file not found",
        2 => "access violation",
        3 => "disk full or allocation exceeded",
        4 => "illegal operation",
        5 => "unknown transfer",
        6 => "file exists",
        7 => "no such user",
        OPTIONS_REFUSED => "options refused",
        _ => "not defined",
    }
}

/// Names that loaders try and do without: GRUB's configurations by machine and its lists, shim's
/// revocations and certificates, U-Boot's device trees, scripts and menus.
pub(super) fn may_be_missing(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    is_u_boots(path)
        || ["grub.cfg", "revocations", "shim_certificate"].iter().any(|p| name.starts_with(p))
        || [".lst", ".mo", ".pf2"].iter().any(|end| name.ends_with(end))
}

/// What no other firmware asks for.
fn is_u_boots(path: &str) -> bool {
    let path = path.trim_start_matches('/');
    ["dtb/", "pxelinux.cfg/", "boot.scr"].iter().any(|begins| path.starts_with(begins))
}

fn stalled(path: &str, acked: u32, blocks: u32, blksize: u16, repeated: u32, time: jiff::Timestamp) -> Cause {
    let remedy = if acked == 0 && blksize >= LARGE_BLOCK {
        format!(
            "blocks of {blksize} bytes do not reach it and smaller packets do: some link on the way has a smaller MTU \
             than 1500; set it right, or give the appliance's bridge that MTU"
        )
    } else {
        "look for loss between it and the appliance: `ethtool -S` of both ends, the switch's counters, a cable; \
         `bridgehead trace` shows the last packets"
            .to_owned()
    };
    let words = format!("it stopped answering after block {acked} of {blocks} of {path} over TFTP");
    let seen =
        format!("no acknowledgement for 30 s; {repeated} times were blocks of {blksize} bytes sent again");
    Cause::new(Kind::TransferStalled, words, remedy).seen(time, seen)
}

fn progress(boot: &Boot, of: &str) -> u8 {
    let percent = boot.notes.iter().rev().find_map(|(_, note)| match note {
        Note::Progress { path, percent } if path == of => Some(*percent),
        _ => None,
    });
    percent.unwrap_or(0)
}

/// What is known of the machine's memory.
pub(super) fn memory(boot: &Boot) -> Option<Evidence> {
    let planned = boot.planned()?;
    let needed = planned.needed? >> 20;
    let words = match planned.memory {
        Some(memory) => {
            format!("the boot needs {needed} MiB of memory; [[node]] memory says it has {}", memory >> 20)
        }
        None => format!(
            "the boot needs {needed} MiB of memory; how much it has is not configured ([[node]] memory)"
        ),
    };
    Some(Evidence { time: None, words })
}
