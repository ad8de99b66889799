//! Files that only root may read: keys.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use zeroize::Zeroizing;

/// Keys have some hundred bytes.
const MAX: usize = 64 * 1024;

/// Writes a file that is either complete or missing, also after a power failure.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = path.with_added_extension("part");
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// The contents, which are wiped from memory when they are dropped.
pub fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    // A buffer that grew would leave copies of its beginning behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX + 1));
    File::open(path)?.take(MAX as u64 + 1).read_to_end(&mut bytes)?;
    match bytes.len() > MAX {
        true => Err(io::ErrorKind::FileTooLarge.into()),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_too_long_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        write(&path, b"secret").unwrap();
        let bytes = read(&path).unwrap();
        assert_eq!((&bytes[..], bytes.capacity()), (&b"secret"[..], MAX + 1), "it was not moved");
        write(&path, &[7; MAX + 1]).unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
