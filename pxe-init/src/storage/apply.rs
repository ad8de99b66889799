//! Performs the planner's steps with the partitioning, RAID, encryption and file system tools. Each tool gets the UUID
//! that it has to write.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd as _;

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown};
use pxe_contract::storage::Format;

use super::keys::{KeyError, Keys};
use super::plan::{Action, NewPartition};
use super::seen::NEW;
use super::tools::{ToolError, run};
use crate::image::Image;
use crate::say;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("mounting volume `{volume}` at {at}: {source}")]
    Mount { volume: String, at: String, source: io::Error },
}

/// The context of steps, with what later ones have to know.
pub(super) struct Applying<'a> {
    pub(super) image: &'a Image,
    pub(super) keys: Keys<'a>,
    /// Devices whose file systems were made in this boot.
    pub(super) new: BTreeSet<String>,
    pub(super) mounted: BTreeSet<String>,
}

impl Applying<'_> {
    pub(super) fn apply(&mut self, action: &Action) -> Result<(), ApplyError> {
        match action {
            Action::Wipe { device } => {
                say!("storage: wiping {device}");
                run("/usr/sbin/wipefs", &["--all", "--force", "--quiet", device], None)?;
            }
            Action::CreateTable { device, uuid, partitions } => {
                say!("storage: dividing {device}");
                let script = table(uuid, partitions);
                run("/usr/sbin/sfdisk", &["--quiet", "--wipe", "never", device], Some(script.as_bytes()))?;
            }
            Action::CreateArray { volume, device, uuid, level, members } => {
                say!("storage: making {device}, RAID {level} of {}", members.join(", "));
                create_array(volume, device, uuid, *level, members)?;
            }
            Action::AssembleArray { volume: _, device, uuid, members } => {
                let uuid = format!("--uuid={uuid}");
                // Also if members are missing.
                let mut arguments = vec!["--assemble", device, "--run", &uuid];
                arguments.extend(members.iter().map(String::as_str));
                run("/usr/sbin/mdadm", &arguments, None)?;
            }
            Action::AddMember { array, member } => {
                say!("storage: adding {member} to {array}");
                run("/usr/sbin/mdadm", &["--manage", array, "--add", member], None)?;
            }
            Action::FormatLuks { volume, device, uuid } => {
                say!("storage: encrypting {device}");
                self.format_luks(volume, device, uuid)?;
            }
            Action::OpenLuks { volume, device, name } => {
                let arguments = ["open", "--type=luks2", "--key-file=-", device, name];
                run("/usr/sbin/cryptsetup", &arguments, Some(self.keys.of(volume)?))?;
            }
            Action::MakeFilesystem { device, format, uuid, luks } => {
                say!("storage: making {} on {device}", format.name());
                make_filesystem(device, *format, uuid)?;
                if let Some(around) = luks {
                    // From here on it may hold data.
                    run("/usr/sbin/cryptsetup", &["config", "--subsystem=bridgehead", around], None)?;
                }
                self.new.insert(device.clone());
            }
            Action::Mount { volume, device, format, at, options } => {
                let new = self.new.contains(device);
                mount_inside(
                    self.image,
                    device,
                    format.name(),
                    at,
                    options.as_deref().unwrap_or_default(),
                    new,
                )
                .map_err(|source| ApplyError::Mount {
                    volume: volume.clone(),
                    at: at.clone(),
                    source,
                })?;
                self.mounted.insert(volume.clone());
            }
        }
        Ok(())
    }

    fn format_luks(&mut self, volume: &str, device: &str, uuid: &str) -> Result<(), ApplyError> {
        let (uuid, subsystem) = (format!("--uuid={uuid}"), format!("--subsystem={NEW}"));
        let arguments = [
            "luksFormat",
            "--batch-mode",
            "--type=luks2",
            "--cipher=aes-xts-plain64",
            "--key-size=512",
            // A slow derivation protects passphrases. The key is 256 random bits, which can't be guessed however
            // fast the derivation is; it would only cost memory and seconds of each boot.
            "--pbkdf=pbkdf2",
            "--pbkdf-force-iterations=1000",
            "--key-file=-",
            &uuid,
            &subsystem,
            device,
        ];
        Ok(run("/usr/sbin/cryptsetup", &arguments, Some(self.keys.of(volume)?))?)
    }
}

/// For sfdisk(8): sizes are rounded to MiB, to which partitions are aligned.
fn table(uuid: &str, partitions: &[NewPartition]) -> String {
    let mut script = format!("label: gpt\nlabel-id: {uuid}\n");
    for NewPartition { name, uuid, size } in partitions {
        let size = size.map(|bytes| format!("size={}MiB, ", bytes >> 20)).unwrap_or_default();
        script += &format!("{size}type=linux, uuid={uuid}, name=\"{name}\"\n");
    }
    script
}

fn create_array(
    volume: &str,
    device: &str,
    uuid: &str,
    level: u8,
    members: &[String],
) -> Result<(), ToolError> {
    let options = [
        format!("--uuid={uuid}"),
        format!("--level={level}"),
        format!("--raid-devices={}", members.len()),
        format!("--name={volume}"),
    ];
    let mut arguments = vec!["--create", device, "--run", "--metadata=1.2", "--homehost=any"];
    arguments.extend(options.iter().map(String::as_str));
    if level != 0 {
        // So that after a power cut only regions that were being written are compared again.
        arguments.push("--bitmap=internal");
    }
    arguments.extend(members.iter().map(String::as_str));
    run("/usr/sbin/mdadm", &arguments, None)
}

/// The planner has decided that nothing is there, so the tools must not ask.
fn make_filesystem(device: &str, format: Format, uuid: &str) -> Result<(), ToolError> {
    match format {
        Format::Ext4 => run("/usr/sbin/mke2fs", &["-q", "-F", "-t", "ext4", "-U", uuid, device], None),
        Format::Xfs => run("/usr/sbin/mkfs.xfs", &["-q", "-f", "-m", &format!("uuid={uuid}"), device], None),
        Format::Btrfs => run("/usr/sbin/mkfs.btrfs", &["-q", "-f", "-U", uuid, device], None),
    }
}

/// Mounts below the image's root. A new file system's root gets the owner and mode of the directory that
/// it covers, as Docker does it for a new volume: a database that runs as its own user can write there.
pub(super) fn mount_inside(
    image: &Image,
    device: &str,
    kind: &str,
    at: &str,
    options: &str,
    new: bool,
) -> io::Result<()> {
    let (flags, data) = mount_options(options);
    image.create_dir_all(at, Mode::from_bits_truncate(0o755))?;
    let directory = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let covered = image.open_inside(at, directory, Mode::empty())?;
    let target = format!("/proc/self/fd/{}", covered.as_raw_fd());
    mount(Some(device), target.as_str(), Some(kind), flags, Some(data.as_str()))?;
    if new && !flags.contains(MsFlags::MS_RDONLY) {
        let was = fstat(&covered)?;
        let root = image.open_inside(at, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
        fchown(&root, Some(Uid::from_raw(was.st_uid)), Some(Gid::from_raw(was.st_gid)))?;
        fchmod(&root, Mode::from_bits_truncate(was.st_mode))?;
    }
    Ok(())
}

/// mount(8)'s options: those of every file system are flags, the rest is the file system's own.
fn mount_options(options: &str) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut own = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        flags |= match option {
            "ro" => MsFlags::MS_RDONLY,
            "noatime" => MsFlags::MS_NOATIME,
            "nodiratime" => MsFlags::MS_NODIRATIME,
            "relatime" => MsFlags::MS_RELATIME,
            "nodev" => MsFlags::MS_NODEV,
            "nosuid" => MsFlags::MS_NOSUID,
            "noexec" => MsFlags::MS_NOEXEC,
            "sync" => MsFlags::MS_SYNCHRONOUS,
            "defaults" | "rw" => MsFlags::empty(),
            _ => {
                own.push(option);
                MsFlags::empty()
            }
        };
    }
    (flags, own.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_options_are_divided() {
        let (flags, own) = mount_options("noatime,commit=30,ro,,data=journal");
        assert_eq!(flags, MsFlags::MS_NOATIME | MsFlags::MS_RDONLY);
        assert_eq!(own, "commit=30,data=journal");
    }

    /// Verified with sfdisk and blkid.
    #[test]
    fn sfdisk_makes_the_table_that_was_meant() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        let device = file.path().to_str().unwrap();
        let uuids = ["49d2e5ae-74ee-8eae-8d69-a6d5e13c9b44", "0f4f5b5c-e9dd-8d9c-9dc8-5fda0eb55d5a"];
        let partition = |n: usize, size| NewPartition { name: format!("v{n}"), uuid: uuids[n].into(), size };
        let script = table(uuids[0], &[partition(0, Some(16 << 20)), partition(1, None)]);
        match run("sfdisk", &["--quiet", device], Some(script.as_bytes())) {
            Err(ToolError::Start { .. }) => {
                return eprintln!("skipped: sfdisk is not installed (apt install fdisk)");
            }
            other => other.unwrap(),
        }
        let made = super::super::tools::output("sfdisk", &["--json", device], None).unwrap();
        let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
        let table = &made["partitiontable"];
        assert!(table["id"].as_str().unwrap().eq_ignore_ascii_case(uuids[0]), "{made}");
        let partitions = table["partitions"].as_array().unwrap();
        let uuid = |n: usize| partitions[n]["uuid"].as_str().unwrap().to_ascii_lowercase();
        assert_eq!((uuid(0).as_str(), uuid(1).as_str()), (uuids[0], uuids[1]));
        assert_eq!((&partitions[0]["size"], partitions.len()), (&(32768.into()), 2));
    }
}
