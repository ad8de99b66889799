//! Storage plans: `[[storage]]` and its validation.

use std::collections::HashSet;

use pxe_contract::storage::{DiskKind, Format, NfsMount, Target, Wipe};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::file::{File, OneOrMany};
use super::findings::Findings;
use super::values::{self, is_host_label};

/// What the disks of a profile's machines hold.
#[derive(Clone, Debug, PartialEq)]
pub struct StoragePlan {
    pub name: String,
    pub wipe: Wipe,
    /// The disks that `wipe = "always"` applies to.
    pub serials: Vec<String>,
    pub release_keys: ReleaseKeys,
    pub disks: Vec<Disks>,
    pub volumes: Vec<Volume>,
    pub mounts: Vec<NfsMount>,
}

/// Who gets the keys of encrypted volumes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReleaseKeys {
    #[default]
    Never,
    /// Any session of a boot. Whoever poses as the machine on the boot segment can get one.
    BootSegment,
}

/// Disks that are partitioned alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Disks {
    pub name: String,
    pub count: usize,
    pub kind: Option<DiskKind>,
    /// Minimum and maximum, in bytes.
    pub size: Option<(u64, u64)>,
    pub serials: Vec<String>,
    /// A pattern for the disk's path below /sys.
    pub path: Option<String>,
    /// `None`: the machine's own disks.
    pub iscsi: Option<Target>,
}

/// A file system on a partition of each disk in a set.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    pub name: String,
    pub disks: String,
    /// Bytes of the partition on each disk; `None`: all that is left.
    pub size: Option<u64>,
    pub raid: Option<u8>,
    pub encrypt: bool,
    pub format: Format,
    pub mount: String,
    pub options: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct StorageTable {
    name: Spanned<String>,
    wipe: Option<Spanned<Wipe>>,
    serials: Option<Spanned<Vec<String>>>,
    #[serde(default)]
    release_keys: ReleaseKeys,
    #[serde(default)]
    disks: Vec<DisksTable>,
    #[serde(default, rename = "volume")]
    volumes: Vec<VolumeTable>,
    #[serde(default, rename = "mount")]
    mounts: Vec<MountTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct DisksTable {
    name: Spanned<String>,
    count: Option<Spanned<usize>>,
    #[serde(rename = "type")]
    kind: Option<DiskKind>,
    size: Option<Spanned<String>>,
    serial: Option<Spanned<OneOrMany<String>>>,
    path: Option<Spanned<String>>,
    iscsi: Option<Spanned<String>>,
    portal: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct MountTable {
    nfs: Spanned<String>,
    mount: Spanned<String>,
    options: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct VolumeTable {
    name: Spanned<String>,
    disks: Spanned<String>,
    size: Option<Spanned<String>>,
    raid: Option<Spanned<u8>>,
    encrypt: Option<Spanned<bool>>,
    #[serde(default)]
    format: Format,
    mount: Spanned<String>,
    options: Option<Spanned<String>>,
}

pub(super) fn plans(raw: &File, findings: &mut Findings<'_>) -> Vec<StoragePlan> {
    let mut plans: Vec<StoragePlan> = Vec::new();
    for table in &raw.storage {
        if plans.iter().any(|plan| plan.name == *table.name.get_ref()) {
            let what = format!("two storage plans are called `{}`", table.name.get_ref());
            findings.add(table.name.span(), what, "rename one");
        }
        plans.push(plan(table, findings));
    }
    plans
}

/// Reports a plan that a profile names and that does not exist.
pub(super) fn known(name: &Spanned<String>, raw: &File, findings: &mut Findings<'_>) {
    let names: Vec<&str> = raw.storage.iter().map(|plan| plan.name.get_ref().as_str()).collect();
    if !names.contains(&name.get_ref().as_str()) {
        let right = match names.as_slice() {
            [] => "add a [[storage]]".to_owned(),
            names => format!("there is {}", names.join(", ")),
        };
        findings.add(name.span(), format!("no storage plan is called `{}`", name.get_ref()), right);
    }
}

fn plan(table: &StorageTable, findings: &mut Findings<'_>) -> StoragePlan {
    label(&table.name, "a storage plan", findings);
    let wipe = table.wipe.as_ref().map(|wipe| *wipe.get_ref()).unwrap_or_default();
    let serials = table.serials.as_ref().map(|serials| serials.get_ref().clone()).unwrap_or_default();
    match (&table.wipe, &table.serials) {
        (Some(written), _) if wipe == Wipe::Always && serials.is_empty() => findings.add(
            written.span(),
            "`always` would wipe no disk",
            "name the disks that may be wiped: serials = [\"…\"]",
        ),
        (_, Some(written)) if wipe != Wipe::Always => findings.add(
            written.span(),
            "`serials` are the disks that wipe = \"always\" means",
            "set that, or remove them; disks are picked by `serial` in [[storage.disks]]",
        ),
        _ => {}
    }
    let mut names = HashSet::new();
    let disks: Vec<Disks> = table.disks.iter().map(|table| disks(table, &mut names, findings)).collect();
    for table in table.disks.iter().filter(|d| table.volumes.iter().all(|v| v.disks != d.name)) {
        let what = format!("no volume is on `{}`", table.name.get_ref());
        findings.add(table.name.span(), what, "add a [[storage.volume]] with it as `disks`, or remove it");
    }
    let mut volumes: Vec<Volume> = Vec::new();
    for written in &table.volumes {
        let volume = volume(written, &disks, &volumes, findings);
        if let Some(encrypt) = written.encrypt.as_ref().filter(|_| volume.encrypt)
            && table.release_keys == ReleaseKeys::Never
        {
            findings.add(
                encrypt.span(),
                "nothing may give a node this volume's key, so it could never be opened",
                "who poses as the machine on the boot segment would get it: where you trust whoever is plugged in \
                 there, set release-keys = \"boot-segment\" in [[storage]]",
            );
        }
        volumes.push(volume);
    }
    let mut mounts: Vec<NfsMount> = Vec::new();
    for written in &table.mounts {
        mounts.push(mount(written, &volumes, &mounts, findings));
    }
    if volumes.is_empty() && mounts.is_empty() {
        let right = "add a [[storage.volume]] or a [[storage.mount]]";
        findings.add(table.name.span(), "the storage plan has no volume and mounts nothing", right);
    }
    let release_keys = table.release_keys;
    StoragePlan { name: table.name.get_ref().clone(), wipe, serials, release_keys, disks, volumes, mounts }
}

fn disks(table: &DisksTable, names: &mut HashSet<String>, findings: &mut Findings<'_>) -> Disks {
    label(&table.name, "disks", findings);
    if !names.insert(table.name.get_ref().clone()) {
        let what = format!("two sets of disks are called `{}`", table.name.get_ref());
        findings.add(table.name.span(), what, "rename one");
    }
    let count = table.count.as_ref().map_or(1, |count| *count.get_ref());
    if let Some(written) = table.count.as_ref().filter(|_| !(1..=32).contains(&count)) {
        findings.add(written.span(), format!("{count} disks are none to divide"), "use 1 to 32");
    }
    let size = table.size.as_ref().and_then(|text| {
        let size = range(text.get_ref());
        if size.is_none() {
            let what = format!("`{}` is no range of sizes", text.get_ref());
            findings.add(text.span(), what, "write it as \"400G..2T\", \"400G..\" or \"..2T\"");
        }
        size
    });
    let serials = table.serial.as_ref().map(|serial| serial.get_ref().to_vec()).unwrap_or_default();
    if let Some(written) = table.serial.as_ref().filter(|_| serials.len() < count) {
        let what = format!("{} can't be {count} disks", values::counted(serials.len(), "serial"));
        findings.add(written.span(), what, "name one for each, or correct `count`");
    }
    if let Some(path) = table.path.as_ref().filter(|path| !path.get_ref().starts_with(['/', '*'])) {
        let what = format!("`{}` is no pattern for a path below /sys", path.get_ref());
        findings.add(path.span(), what, "write it as \"*/0000:00:1f.2/*\"");
    } else if let Some(path) = table.path.as_ref().filter(|path| path.get_ref().starts_with("/dev/")) {
        findings.add(
            path.span(),
            "names below /dev change from boot to boot",
            "use the path below /sys (udevadm info -q path -n /dev/sda), as \"*/0000:00:1f.2/*\"",
        );
    }
    Disks {
        name: table.name.get_ref().clone(),
        count: count.clamp(1, 32),
        kind: table.kind,
        size,
        serials,
        path: table.path.as_ref().map(|path| path.get_ref().clone()),
        iscsi: target(table, findings),
    }
}

/// IANA's port for iSCSI targets (RFC 7143, section 4.3).
const ISCSI_PORT: u16 = 3260;

fn target(table: &DisksTable, findings: &mut Findings<'_>) -> Option<Target> {
    let (name, portal) = match (&table.iscsi, &table.portal) {
        (Some(name), Some(portal)) => (name, portal),
        (Some(name), None) => {
            findings.add(name.span(), "nothing says where the target is", "add portal = \"san.example\"");
            return None;
        }
        (None, Some(portal)) => {
            findings.add(portal.span(), "a portal of no target", "add iscsi = \"iqn.…\", or remove it");
            return None;
        }
        (None, None) => return None,
    };
    // RFC 7143, section 4.2.7.1.
    let text = name.get_ref();
    let kind = ["iqn.", "eui.", "naa."].iter().any(|kind| text.starts_with(kind));
    let plain = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '.' | ':');
    if !kind || text.len() > 223 || !text.chars().all(plain) {
        let right = "write it as \"iqn.2026-01.com.example:disk1\", in lower case";
        findings.add(name.span(), format!("`{text}` is no name of an iSCSI target"), right);
    }
    let text = portal.get_ref();
    let (host, port) = text.split_once(':').map_or((text.as_str(), Some(ISCSI_PORT)), |(host, port)| {
        (host, port.parse().ok().filter(|port| *port != 0))
    });
    if port.is_none() || !is_server(host) {
        let right = "write it as \"san.example\" or \"10.0.0.5:3260\"";
        findings.add(portal.span(), format!("`{text}` is no portal"), right);
    }
    let port = port.unwrap_or(ISCSI_PORT);
    Some(Target { target: name.get_ref().clone(), portal: host.to_owned(), port })
}

fn mount(
    table: &MountTable,
    volumes: &[Volume],
    others: &[NfsMount],
    findings: &mut Findings<'_>,
) -> NfsMount {
    let (server, path) = table.nfs.get_ref().split_once(':').unwrap_or_default();
    if !is_server(server) || !path.starts_with('/') || !path.chars().all(|c| c.is_ascii_graphic()) {
        let what = format!("`{}` is no directory of an NFS server", table.nfs.get_ref());
        findings.add(table.nfs.span(), what, "write it as \"files.example:/export/data\"");
    }
    let at = table.mount.get_ref();
    let taken = |other: &String| *other == *at;
    if let Some((what, right)) = mount_fault(at) {
        findings.add(table.mount.span(), what, right);
    } else if volumes.iter().map(|v| &v.mount).chain(others.iter().map(|m| &m.mount)).any(taken) {
        findings.add(table.mount.span(), format!("something else is mounted at {at}, too"), "change one");
    } else if let Some(inside) = volumes.iter().find(|v| v.mount.starts_with(&format!("{at}/"))) {
        let what = format!("it would cover the volume `{}` at {}", inside.name, inside.mount);
        findings.add(table.mount.span(), what, "volumes are mounted first: change one");
    }
    NfsMount {
        server: server.to_owned(),
        path: path.to_owned(),
        mount: at.clone(),
        options: mount_options(table.options.as_ref(), findings),
    }
}

/// An address or a host name: labels between dots.
fn is_server(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_host_label)
}

/// A name fits into an array's 32 bytes and a partition's 36 characters.
const NAME_MAX: usize = 31;

fn volume(table: &VolumeTable, disks: &[Disks], others: &[Volume], findings: &mut Findings<'_>) -> Volume {
    let name = table.name.get_ref();
    label(&table.name, "a volume", findings);
    if name.len() > NAME_MAX {
        let what = format!("`{name}` is too long for a volume's name");
        findings.add(table.name.span(), what, format!("use at most {NAME_MAX} characters"));
    }
    if others.iter().any(|other| other.name == *name) {
        findings.add(table.name.span(), format!("two volumes are called `{name}`"), "rename one");
    }
    let on = table.disks.get_ref();
    let set = disks.iter().find(|set| set.name == *on);
    if set.is_none() {
        let names: Vec<&str> = disks.iter().map(|set| set.name.as_str()).collect();
        let right = match names.as_slice() {
            [] => "add a [[storage.disks]]".to_owned(),
            names => format!("there is {}", names.join(", ")),
        };
        findings.add(table.disks.span(), format!("no disks are called `{on}`"), right);
    }
    if others.iter().any(|other| other.disks == *on && other.size.is_none()) {
        let what = format!("a volume before this one takes all that is left of `{on}`");
        findings.add(table.disks.span(), what, "give that one a `size`");
    }
    let raid = table.raid.as_ref().map(|raid| *raid.get_ref());
    match (&table.raid, set.map_or(1, |set| set.count)) {
        (Some(written), _) if !matches!(written.get_ref(), 0 | 1 | 10) => {
            findings.add(written.span(), format!("RAID {} is not made", written.get_ref()), "use 0, 1 or 10");
        }
        (Some(written), 1) if set.is_some() => {
            let what = format!("`{on}` is one disk, and RAID takes two");
            findings.add(written.span(), what, "set `count` in its [[storage.disks]], or remove `raid`");
        }
        (None, count @ 2..) => {
            let what = format!("`{on}` are {count} disks, and the volume does not say how it spans them");
            findings.add(table.disks.span(), what, "set raid = 1 (mirrored), 0 (striped) or 10");
        }
        _ => {}
    }
    let size = table.size.as_ref().and_then(|text| {
        let size = values::size(text.get_ref()).filter(|bytes| bytes >> 20 > 0);
        if size.is_none() {
            let what = format!("`{}` is no size of a partition", text.get_ref());
            findings.add(text.span(), what, "write it as \"512M\" or \"40G\"");
        }
        size
    });
    let mount = table.mount.get_ref();
    if let Some((what, right)) = mount_fault(mount) {
        findings.add(table.mount.span(), what, right);
    } else if others.iter().any(|other| other.mount == *mount) {
        findings.add(table.mount.span(), format!("two volumes are mounted at {mount}"), "change one");
    }
    Volume {
        name: name.clone(),
        disks: on.clone(),
        size,
        raid,
        encrypt: table.encrypt.as_ref().is_some_and(|encrypt| *encrypt.get_ref()),
        format: table.format,
        mount: mount.clone(),
        options: mount_options(table.options.as_ref(), findings),
    }
}

fn mount_options(options: Option<&Spanned<String>>, findings: &mut Findings<'_>) -> Option<String> {
    let written = options?;
    if written.get_ref().contains(|c: char| !c.is_ascii_graphic()) {
        let right = "write them as \"noatime,commit=30\"";
        findings.add(written.span(), "mount options have no white space", right);
    }
    Some(written.get_ref().clone())
}

fn label(name: &Spanned<String>, what: &str, findings: &mut Findings<'_>) {
    if !is_host_label(name.get_ref()) {
        let what = format!("`{}` can't be the name of {what}", name.get_ref());
        findings.add(name.span(), what, "use letters, digits and inner hyphens, at most 63");
    }
}

fn mount_fault(mount: &str) -> Option<(String, &'static str)> {
    const KERNELS: [&str; 4] = ["proc", "sys", "dev", "run"];
    let parts: Vec<&str> = mount.strip_prefix('/').unwrap_or_default().split('/').collect();
    if parts.iter().any(|part| matches!(*part, "" | "." | "..")) || mount.contains(char::is_control) {
        Some((format!("`{mount}` is no mount point"), "write it as \"/var/lib/data\""))
    } else if KERNELS.contains(&parts[0]) {
        Some((format!("/{} is the kernel's or the boot's own", parts[0]), "mount the volume elsewhere"))
    } else {
        None
    }
}

/// `400G..2T`; either end may be left out. In bytes.
fn range(text: &str) -> Option<(u64, u64)> {
    let (least, most) = text.split_once("..")?;
    let end = |text: &str, open| if text.is_empty() { Some(open) } else { values::size(text) };
    let (least, most) = (end(least, 0)?, end(most, u64::MAX)?);
    (least <= most && (least, most) != (0, u64::MAX)).then_some((least, most))
}
