//! The present contents of the node's disks: devices from sysfs, signatures from util-linux's blkid, and where there
//! is none, whether it is all zeros.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use pxe_contract::storage::{DiskKind, Storage};

use super::plan;
use super::seen::{Array, Content, Disk, Partition, Seen, Superblock};
use super::tools::{self, ToolError};

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("reading {device}: {source}")]
    Read { device: String, source: io::Error },
}

/// Kernel names that are no disks, or not the node's own.
const NO_DISKS: [&str; 10] = ["loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd", "mtd", "rbd"];

/// Looks at every disk, and at the plan's open volumes. The caller knows what is mounted.
pub(crate) fn look(wanted: &Storage, mounted: &BTreeSet<String>) -> Result<Seen, ProbeError> {
    let mut seen = Seen { mounted: mounted.clone(), ..Seen::default() };
    for name in disk_names() {
        seen.disks.push(disk(&name)?);
    }
    for (index, volume) in wanted.volumes.iter().enumerate() {
        let device = plan::array_device(index);
        let members = members(&device);
        if !members.is_empty() {
            let array = Array { members, content: content(&device)? };
            seen.arrays.insert(volume.name.clone(), array);
        }
        let mapped = format!("/dev/mapper/{}", plan::mapping(&volume.name));
        if Path::new(&mapped).exists() {
            seen.opened.insert(volume.name.clone(), content(&mapped)?);
        }
    }
    Ok(seen)
}

/// The kernel's names of disks that can be written to.
pub(crate) fn disk_names() -> BTreeSet<String> {
    let is_ours = |name: &String| {
        let attribute = |of| read(&format!("/sys/block/{name}/{of}"));
        is_disk(name)
            && attribute("ro").as_deref() == Some("0")
            && attribute("size").is_some_and(|size| size != "0")
    };
    let names = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    names.filter_map(|entry| entry.file_name().into_string().ok()).filter(is_ours).collect()
}

/// Whether the kernel's name is that of a disk of the node's own.
pub(crate) fn is_disk(name: &str) -> bool {
    !NO_DISKS.iter().any(|prefix| name.starts_with(prefix))
}

fn disk(name: &str) -> Result<Disk, ProbeError> {
    let device = format!("/dev/{name}");
    let path = fs::canonicalize(format!("/sys/block/{name}")).unwrap_or_default();
    let path = path.strip_prefix("/sys").unwrap_or(&path);
    let rotates = read(&format!("/sys/block/{name}/queue/rotational")).as_deref() == Some("1");
    let content = match content(&device)? {
        Content::Table { uuid, .. } => Content::Table { uuid, partitions: partitions(name)? },
        other => other,
    };
    Ok(Disk {
        serial: serial(&Path::new("/sys/block").join(name)),
        target: target(&path.to_string_lossy()),
        path: format!("/{}", path.display()),
        // In sectors of 512 bytes, whatever the disk's own sector size is.
        size: read(&format!("/sys/block/{name}/size")).and_then(|s| s.parse::<u64>().ok()).unwrap_or(0) * 512,
        kind: match (name.starts_with("nvme"), rotates) {
            (true, _) => DiskKind::Nvme,
            (false, true) => DiskKind::Hdd,
            (false, false) => DiskKind::Ssd,
        },
        content,
        device,
    })
}

/// The serial number of a disk, by its directory in sysfs: virtio and NVMe have it as text, SCSI and ATA disks in a page of
/// vital product data (SPC-4, 7.8.17).
pub(crate) fn serial(disk: &Path) -> Option<String> {
    let text = ["serial", "device/serial"].iter().find_map(|file| read(&disk.join(file).to_string_lossy()));
    let page = || {
        let page = fs::read(disk.join("device/vpd_pg80")).ok()?;
        Some(String::from_utf8_lossy(page.get(4..)?).into_owned())
    };
    let serial = text.or_else(page)?.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned();
    Some(serial).filter(|serial| !serial.is_empty())
}

/// The iSCSI target of a disk whose path below /sys leads over a session.
fn target(path: &str) -> Option<String> {
    let session = path.split('/').find(|part| {
        part.strip_prefix("session").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    })?;
    read(&format!("/sys/class/iscsi_session/{session}/targetname"))
}

fn partitions(disk: &str) -> Result<Vec<Partition>, ProbeError> {
    let directory = format!("/sys/block/{disk}");
    let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
    let names = entries.filter(|entry| entry.path().join("partition").exists());
    let names: BTreeSet<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let partition = |name: &String| {
        let device = format!("/dev/{name}");
        let signature = blkid(&device)?;
        let uuid = signature.get("PART_ENTRY_UUID").cloned().unwrap_or_default();
        Ok(Partition { uuid, content: judge(&device, signature)?, device })
    };
    names.iter().map(partition).collect()
}

/// The members of a running array.
fn members(array: &str) -> Vec<String> {
    let name = array.trim_start_matches("/dev/");
    let running = read(&format!("/sys/block/{name}/size")).is_some_and(|size| size != "0");
    let slaves = fs::read_dir(format!("/sys/block/{name}/slaves")).into_iter().flatten().flatten();
    let slaves = slaves.filter_map(|entry| entry.file_name().into_string().ok());
    slaves.filter(|_| running).map(|name| format!("/dev/{name}")).collect()
}

fn content(device: &str) -> Result<Content, ProbeError> {
    judge(device, blkid(device)?)
}

fn judge(device: &str, mut signature: BTreeMap<String, String>) -> Result<Content, ProbeError> {
    let mut take = |key| signature.remove(key).unwrap_or_default();
    let (kind, table) = (take("TYPE"), take("PTTYPE"));
    if !kind.is_empty() {
        let (uuid, label, subsystem) = (take("UUID"), take("LABEL"), take("SUBSYSTEM"));
        return Ok(Content::Superblock(Superblock { kind, uuid, label, subsystem }));
    }
    if !table.is_empty() {
        return Ok(Content::Table { uuid: take("PTUUID"), partitions: Vec::new() });
    }
    let zeros = File::open(device).and_then(|file| is_zeros(&file));
    match zeros {
        Ok(true) => Ok(Content::Blank),
        Ok(false) => Ok(Content::Data),
        Err(source) => Err(ProbeError::Read { device: device.to_owned(), source }),
    }
}

/// What blkid finds, by its names; nothing where there is no signature.
fn blkid(device: &str) -> Result<BTreeMap<String, String>, ProbeError> {
    const NOTHING: i32 = 2;
    const AMBIGUOUS: i32 = 8;
    let output = tools::output("/usr/sbin/blkid", &["-p", "-o", "export", device], None)?;
    match output.status.code() {
        Some(0) => Ok(signature(&String::from_utf8_lossy(&output.stdout))),
        Some(NOTHING) => Ok(BTreeMap::new()),
        Some(AMBIGUOUS) => Ok(BTreeMap::from([("TYPE".into(), "several signatures".into())])),
        _ => Err(ToolError::failed(&format!("blkid {device}"), &output).into()),
    }
}

/// `KEY=VALUE` lines; in values, characters that are special to a shell have a backslash before them.
fn signature(export: &str) -> BTreeMap<String, String> {
    let unescaped = |value: &str| value.replace("\\\\", "\0").replace('\\', "").replace('\0', "\\");
    let pair = |line: &str| line.split_once('=').map(|(key, value)| (key.to_owned(), unescaped(value)));
    export.lines().filter_map(pair).collect()
}

const EDGE: u64 = 1 << 20;
const SAMPLE: u64 = 4096;
const SAMPLES: u64 = 64;

/// Whether the first and last MiB, and samples spread between them, are zeros. Data that has no signature (a raw database,
/// plain dm-crypt, a file system with a damaged superblock) shows in nearly every sample.
fn is_zeros(file: &File) -> io::Result<bool> {
    use std::io::Seek as _;
    let size = (&mut &*file).seek(io::SeekFrom::End(0))?;
    let zeros = |at: u64, len: u64| {
        let mut bytes = vec![0; len.min(size - at) as usize];
        file.read_exact_at(&mut bytes, at)?;
        Ok::<_, io::Error>(bytes.iter().all(|byte| *byte == 0))
    };
    let spread = (1..SAMPLES).map(|n| (size / SAMPLES * n / SAMPLE * SAMPLE, SAMPLE));
    for (at, len) in [(0, EDGE), (size.saturating_sub(EDGE), EDGE)].into_iter().chain(spread) {
        if !zeros(at, len)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_blkid_exports() {
        let found = signature("DEVNAME=/dev/sda1\nLABEL=a\\ b\\\\c\nUUID=6a23\nTYPE=ext4\n");
        assert_eq!((found["LABEL"].as_str(), found["TYPE"].as_str()), ("a b\\c", "ext4"));
        let judged = judge("/dev/null", found).unwrap();
        assert!(matches!(judged, Content::Superblock(s) if s.uuid == "6a23" && s.kind == "ext4"));
        let table = signature("PTUUID=49d2\nPTTYPE=gpt\n");
        assert!(matches!(judge("/dev/null", table).unwrap(), Content::Table { uuid, .. } if uuid == "49d2"));
    }

    #[test]
    fn one_byte_at_an_edge_and_data_in_between_are_seen() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(256 << 20).unwrap();
        assert!(is_zeros(&file).unwrap());
        file.write_all_at(&[1], (256 << 20) - 1).unwrap();
        assert!(!is_zeros(&file).unwrap());
        file.set_len(128 << 20).unwrap();
        assert!(is_zeros(&file).unwrap());
        // Five MiB of data, such as an old file leaves.
        file.write_all_at(&vec![7; 5 << 20], 40 << 20).unwrap();
        assert!(!is_zeros(&file).unwrap());
        for len in [0, 1, 511, 4096, 5000] {
            file.set_len(len).unwrap();
            assert!(is_zeros(&file).unwrap(), "{len}");
        }
    }
}
