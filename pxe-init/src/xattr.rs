//! Extended attributes of the image's files (xattr(7)). A cpio archive can't hold them, so they come in
//! `/image.json`, and are set once the kernel has unpacked the files. The one that matters most
//! is `security.capability`: with it `ping` works for users other than root.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use pxe_contract::hex;
use pxe_contract::image::Xattr;

use crate::system::set_xattr;

/// Sets the attribute of a file that is open with O_PATH only, because really opening a device or FIFO
/// has side effects.
pub(crate) fn set(file: &OwnedFd, xattr: &Xattr) -> io::Result<()> {
    let value = hex::decode(&xattr.value).ok_or(io::ErrorKind::InvalidData)?;
    let name = CString::new(xattr.name.as_str())?;
    // fsetxattr(2) refuses such a descriptor; its path in /proc works.
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    set_xattr(&path, &name, &value)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::OpenOptionsExt as _;
    use std::process::Command;

    use nix::libc;

    use super::*;

    /// CAP_NET_RAW, effective, as `setcap cap_net_raw+ep` writes it (linux/capability.h, revision 2).
    const NET_RAW: &str = "0100000200200000000000000000000000000000";

    #[test]
    fn a_file_has_its_capability_again() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("skipped: file capabilities are root's to give");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ping");
        fs::write(&path, "x").unwrap();
        let file: OwnedFd = File::options().read(true).custom_flags(libc::O_PATH).open(&path).unwrap().into();
        let attribute = |value: &str| Xattr {
            path: "ping".into(),
            name: "security.capability".into(),
            value: value.into(),
        };
        set(&file, &attribute(NET_RAW)).unwrap();
        // Verified with libcap's own tool, if it is installed.
        match Command::new("getcap").arg(&path).output() {
            Ok(output) => {
                let text = String::from_utf8(output.stdout).unwrap();
                assert!(text.contains("cap_net_raw=ep"), "{text}");
            }
            Err(_) => eprintln!("skipped in part: getcap is not installed (apt install libcap2-bin)"),
        }
        // Not hexadecimal; and nothing that the kernel accepts as a capability.
        for bad in ["0", "0g", "00"] {
            assert!(set(&file, &attribute(bad)).is_err(), "{bad}");
        }
    }
}
