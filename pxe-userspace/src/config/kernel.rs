//! Files that profiles name by hand: whether they exist, and whether a kernel is one that loaders can start.

use std::io::Read as _;
use std::path::Path;

/// Bytes at a file's beginning that [`is_linux`] needs.
pub const START: usize = 0x206;

/// Whether a file begins as a bzImage does (Linux, Documentation/arch/x86/boot.rst). GRUB's `linux` checks the same.
pub fn is_linux(start: &[u8]) -> bool {
    start.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && start.get(0x202..0x206) == Some(b"HdrS")
}

/// The message for a file that is no Linux kernel.
pub fn no_linux(path: &str) -> String {
    format!(
        "{path} is no Linux kernel for x86 PCs (it has no bzImage header), and GRUB starts nothing else: \"invalid magic \
         number\". What iPXE starts, an EFI program say, boots on machines whose firmware is iPXE, with [boot] ipxe = \
         \"script\""
    )
}

/// Why `path` can't be served from below `root`; `None` if it can, or if that depends on where a link leads.
pub fn missing(root: &Path, path: &str) -> Option<String> {
    let file = root.join(path.trim_start_matches('/'));
    let words = match file.metadata() {
        Ok(meta) if meta.is_file() => return None,
        Ok(_) => "is not a file".to_owned(),
        // A dangling link may have a target within `root`, where absolute links begin at `root`.
        Err(_) if file.symlink_metadata().is_ok() => return None,
        Err(error) => format!("is not there ({error})"),
    };
    Some(format!("{path} {words}: it would be {}", file.display()))
}

/// The message of [`no_linux`], if the file can be read and is no kernel.
pub fn flaw(root: &Path, path: &str) -> Option<String> {
    let mut start = Vec::new();
    let file = std::fs::File::open(root.join(path.trim_start_matches('/'))).ok()?;
    file.take(START as u64).read_to_end(&mut start).ok()?;
    (!is_linux(&start)).then(|| no_linux(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_known_by_its_header() {
        let mut file = vec![0; START];
        assert!(!is_linux(&file));
        file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        assert!(!is_linux(&file), "a boot sector");
        file[0x202..].copy_from_slice(b"HdrS");
        assert!(is_linux(&file) && !is_linux(&file[..0x205]));
        assert!(!is_linux(b"MZ") && !is_linux(b""));
    }
}
