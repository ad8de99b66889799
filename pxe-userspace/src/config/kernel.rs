//! Files by hand: whether they are there, and whether a kernel is one that loaders start.

use std::io::Read as _;
use std::path::Path;

/// So much of a file's beginning tells.
pub const START: usize = 0x206;

/// A bzImage's header (Linux, Documentation/arch/x86/boot.rst): what GRUB's `linux` looks for.
pub fn is_linux(start: &[u8]) -> bool {
    start.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && start.get(0x202..0x206) == Some(b"HdrS")
}

/// What to say of a file that is none.
pub fn no_linux(path: &str) -> String {
    format!(
        "{path} is no Linux kernel for x86 PCs (it has no bzImage header), and GRUB starts nothing else: \"invalid magic \
         number\". What iPXE starts, an EFI program say, boots on machines whose firmware is iPXE, with [boot] ipxe = \
         \"script\""
    )
}

/// Why `path` can't be served from below `root`, where that shows without following links that lead out of it.
pub fn missing(root: &Path, path: &str) -> Option<String> {
    let file = root.join(path.trim_start_matches('/'));
    let words = match file.metadata() {
        Ok(meta) if meta.is_file() => return None,
        Ok(_) => "is not a file".to_owned(),
        // A link by the names of the root itself may lead somewhere there.
        Err(_) if file.symlink_metadata().is_ok() => return None,
        Err(error) => format!("is not there ({error})"),
    };
    Some(format!("{path} {words}: it would be {}", file.display()))
}

/// [`no_linux`] of a file that is there.
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
