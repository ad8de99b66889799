//! Extended attributes of the image's files (xattr(7)). A cpio archive has no place for them, so they
//! come in `/image.json`, and are set once the kernel has unpacked the files. The one that matters most
//! is `security.capability`: with it `ping` works for users other than root.

use std::ffi::CString;
use std::io;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::Mode;
use serde::Deserialize;

use crate::image::Image;

/// One attribute of one file.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Xattr {
    /// Below the image's root.
    path: String,
    name: String,
    /// Hexadecimal.
    value: String,
}

#[derive(Debug, thiserror::Error)]
#[error("the extended attribute {name} of {path} is lost: {source}")]
pub(crate) struct XattrError {
    path: String,
    name: String,
    source: io::Error,
}

impl Xattr {
    /// Gives the image's file its attribute. A symbolic link's own, never that of what it leads to.
    pub(crate) fn set(&self, image: &Image) -> Result<(), XattrError> {
        self.try_set(image).map_err(|source| XattrError {
            path: self.path.clone(),
            name: self.name.clone(),
            source,
        })
    }

    fn try_set(&self, image: &Image) -> io::Result<()> {
        let value = bytes(&self.value).ok_or(io::ErrorKind::InvalidData)?;
        let name = CString::new(self.name.as_str())?;
        // Opening a device or FIFO would do more than name it; fsetxattr(2) refuses such a descriptor,
        // its name in /proc is as good.
        let file = image.open_inside(&self.path, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty())?;
        let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        // SAFETY: both strings end with a zero byte, and the length is the value's; the kernel only reads.
        let set =
            unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
        Ok(Errno::result(set).map(drop)?)
    }
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = hex.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let digits = digits?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    /// CAP_NET_RAW, effective, as `setcap cap_net_raw+ep` writes it (linux/capability.h, revision 2).
    const NET_RAW: &str = "0100000200200000000000000000000000000000";

    #[test]
    fn a_file_has_its_capability_again() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("skipped: file capabilities are root's to give");
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("image");
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::write(root.join("bin/ping"), "x").unwrap();
        let json = dir.path().join("image.json");
        let attribute = |path: &str, value: &str| {
            format!(r#"{{"path":"{path}","name":"security.capability","value":"{value}"}}"#)
        };
        let xattrs =
            [attribute("bin/ping", NET_RAW), attribute("bin/nothing", NET_RAW), attribute("bin/ping", "0")];
        fs::write(&json, format!(r#"{{"argv":["x"],"xattrs":[{}]}}"#, xattrs.join(","))).unwrap();
        let image = Image::open(&root, &json, None).unwrap();

        let [ping, nothing, odd] = image.description.xattrs.as_slice() else { panic!("three attributes") };
        ping.set(&image).unwrap();
        let error = nothing.set(&image).unwrap_err().to_string();
        assert!(
            error.starts_with("the extended attribute security.capability of bin/nothing is lost: "),
            "{error}"
        );
        assert!(odd.set(&image).is_err());

        // The judge is libcap's own reader, where there is one.
        match Command::new("getcap").arg(root.join("bin/ping")).output() {
            Ok(output) => {
                let text = String::from_utf8(output.stdout).unwrap();
                assert!(text.contains("cap_net_raw=ep"), "{text}");
            }
            Err(_) => eprintln!("skipped in part: getcap is not installed (apt install libcap2-bin)"),
        }
    }
}
