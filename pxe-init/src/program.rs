//! Finding the workload's program in the image, and saying why it can't run. exec(2) says "No such
//! file" for a missing program and for a missing interpreter alike, and "Exec format error" for
//! another processor's program: people lose hours to both.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fstat};

use crate::image::Image;

#[derive(Debug, PartialEq, thiserror::Error)]
pub enum ProgramError {
    #[error("{name:?} is not in the image: looked in {looked}")]
    NotFound { name: String, looked: String },
    #[error("{path} in the image is not executable: its mode is {mode:03o}")]
    NotExecutable { path: String, mode: u32 },
    #[error("{path} in the image needs the interpreter {interpreter}, which is not there{hint}")]
    NoInterpreter { path: String, interpreter: String, hint: &'static str },
    #[error("{path} in the image is a program for {found}, this machine is {here}")]
    OtherMachine { path: String, found: String, here: &'static str },
    #[error("{path} in the image is neither an ELF program nor a script that begins with #!")]
    UnknownFormat { path: String },
}

/// The absolute path, inside the image, of the program `name`; `path` and `cwd` as exec would use
/// them.
pub(crate) fn find(image: &Image, name: &str, path: &str, cwd: &str) -> Result<String, ProgramError> {
    let inside = |p: &str| if p.starts_with('/') { p.to_owned() } else { format!("{cwd}/{p}") };
    let candidates: Vec<String> = if name.contains('/') {
        vec![inside(name)]
    } else {
        path.split(':').map(|dir| format!("{}/{name}", inside(dir))).collect()
    };
    let mut not_executable = None;
    for candidate in &candidates {
        match mode(image, candidate) {
            Some(mode) if mode & 0o111 != 0 => {
                check_format(image, candidate)?;
                return Ok(candidate.clone());
            }
            Some(mode) => not_executable = Some((candidate, mode)),
            None => {}
        }
    }
    match not_executable {
        Some((path, mode)) => Err(ProgramError::NotExecutable { path: path.clone(), mode }),
        None => {
            let looked = if name.contains('/') { candidates.join(", ") } else { path.to_owned() };
            Err(ProgramError::NotFound { name: name.to_owned(), looked })
        }
    }
}

/// The permissions of a regular file.
fn mode(image: &Image, path: &str) -> Option<u32> {
    let file = image.open_inside(path, OFlag::O_PATH, Mode::empty()).ok()?;
    let stat = fstat(file.as_fd()).ok()?;
    let regular = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits();
    regular.then_some(stat.st_mode & 0o7777)
}

fn check_format(image: &Image, path: &str) -> Result<(), ProgramError> {
    let Ok(file) = image.open_inside(path, OFlag::O_RDONLY, Mode::empty()).map(File::from) else {
        // A program may be executable but not readable; then only exec can tell.
        return Ok(());
    };
    let mut head = [0; 256];
    let len = file.read_at(&mut head, 0).unwrap_or_default();
    let (interpreter, hint) = match &head[..len] {
        [b'#', b'!', line @ ..] => {
            let line = line.split(|b| *b == b'\n').next().unwrap_or_default();
            let line = String::from_utf8_lossy(line);
            let hint = if line.ends_with('\r') { ": the script has DOS line ends" } else { "" };
            (line.split([' ', '\t']).find(|w| !w.is_empty()).map(str::to_owned), hint)
        }
        [0x7f, b'E', b'L', b'F', ..] => {
            let machine = u16::from_le_bytes([head[18], head[19]]);
            check_machine(path, machine)?;
            (elf_interpreter(&file, &head), ": it is linked for a C library that the image does not have")
        }
        _ => return Err(ProgramError::UnknownFormat { path: path.to_owned() }),
    };
    match interpreter {
        Some(interpreter) if mode(image, &interpreter).is_none() => {
            Err(ProgramError::NoInterpreter { path: path.to_owned(), interpreter, hint })
        }
        _ => Ok(()),
    }
}

/// e_machine of the ELF header.
fn check_machine(path: &str, machine: u16) -> Result<(), ProgramError> {
    // 32-bit x86 runs on x86-64, too.
    let (here, runs): (_, &[u16]) =
        if cfg!(target_arch = "aarch64") { ("aarch64", &[183]) } else { ("x86-64", &[62, 3]) };
    if runs.contains(&machine) {
        return Ok(());
    }
    let found = match machine {
        3 => "x86".to_owned(),
        40 => "arm".to_owned(),
        62 => "x86-64".to_owned(),
        183 => "aarch64".to_owned(),
        243 => "RISC-V".to_owned(),
        other => format!("ELF machine {other}"),
    };
    Err(ProgramError::OtherMachine { path: path.to_owned(), found, here })
}

/// The contents of PT_INTERP of a 64-bit little-endian program. None when it is static, or when
/// the file is something that only exec can judge.
fn elf_interpreter(file: &File, head: &[u8; 256]) -> Option<String> {
    const CLASS_64: u8 = 2;
    const PT_INTERP: u32 = 3;
    if head[4] != CLASS_64 {
        return None;
    }
    let u64_at = |b: &[u8], at: usize| Some(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?));
    let table = u64_at(head, 32)?;
    let count = u16::from_le_bytes([head[56], head[57]]);
    for i in 0..u64::from(count) {
        let mut entry = [0; 56];
        file.read_exact_at(&mut entry, table.checked_add(i * 56)?).ok()?;
        if entry[..4] == PT_INTERP.to_le_bytes() {
            let len = usize::try_from(u64_at(&entry, 32)?).ok().filter(|l| *l <= 4096)?;
            let mut name = vec![0; len];
            file.read_exact_at(&mut name, u64_at(&entry, 8)?).ok()?;
            let name = String::from_utf8(name).ok()?;
            return Some(name.trim_end_matches('\0').to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    struct Fixture {
        _dir: tempfile::TempDir,
        image: Image,
    }

    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("image");
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::create_dir_all(root.join("opt")).unwrap();
        let json = dir.path().join("image.json");
        fs::write(&json, r#"{"argv":["x"]}"#).unwrap();
        let put = |path: &str, contents: &[u8], mode: u32| {
            fs::write(root.join(path), contents).unwrap();
            fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
        };
        // This test's own binary: a program for this machine that names an interpreter.
        put("bin/dynamic", &fs::read(std::env::current_exe().unwrap()).unwrap(), 0o755);
        put("bin/sh", b"#!/bin/sh\n", 0o755);
        put("bin/script", b"#! /bin/sh -e\necho\n", 0o755);
        put("bin/dos", b"#!/bin/sh\r\n", 0o755);
        put("bin/text", b"echo hello\n", 0o755);
        put("bin/data", b"#!/bin/sh\n", 0o644);
        put("bin/empty", b"", 0o755);
        let mut arm = vec![0; 64];
        arm[..5].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2]);
        arm[18] = 183;
        put("bin/arm", &arm, 0o755);
        symlink("/bin/script", root.join("opt/link")).unwrap();
        Fixture { image: Image::open(&root, &json, None).unwrap(), _dir: dir }
    }

    #[test]
    fn programs_are_found_as_exec_would() {
        let Fixture { image, _dir } = fixture();
        assert_eq!(find(&image, "script", "/opt:/bin", "/").as_deref(), Ok("/bin/script"));
        assert_eq!(find(&image, "/opt/link", "", "/").as_deref(), Ok("/opt/link"));
        assert_eq!(find(&image, "./script", "/nowhere", "/bin").as_deref(), Ok("/bin/./script"));
    }

    #[test]
    fn what_can_not_run_is_explained() {
        let Fixture { image, _dir } = fixture();
        for (name, words) in [
            ("nothing", "\"nothing\" is not in the image: looked in /opt:/bin"),
            ("bin", "is not in the image"),
            ("data", "/bin/data in the image is not executable: its mode is 644"),
            ("dos", "which is not there: the script has DOS line ends"),
            ("text", "neither an ELF program nor a script"),
            ("empty", "neither an ELF program nor a script"),
            (
                "dynamic",
                "needs the interpreter /lib64/ld-linux-x86-64.so.2, which is not there: it is linked",
            ),
        ] {
            let error = find(&image, name, "/opt:/bin", "/").unwrap_err().to_string();
            assert!(error.contains(words), "{name}: {error}");
        }
        #[cfg(target_arch = "x86_64")]
        assert_eq!(
            find(&image, "arm", "/bin", "/").unwrap_err().to_string(),
            "/bin/arm in the image is a program for aarch64, this machine is x86-64"
        );
    }
}
