//! The files: `MAC/TIME-BOOT`, a line of JSON for each line of the console.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use pxe_common::Mac;

use super::Line;

/// Boots kept of each machine.
pub const BOOTS_MAX: usize = 4;
/// Bytes of a boot. A normal one has a fraction of it.
const BOOT_MAX: u64 = 512 << 10;
/// What is kept of each end of a boot that has more: its first and last messages.
const END_KEPT: usize = 128 << 10;
/// Bytes of all machines. Beyond that, the oldest boots are removed.
const ALL_MAX: u64 = 1 << 30;
/// Machines whose file's end is cached; for others it is looked up.
const CURRENT_MAX: usize = 16384;

/// A console can't be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    #[error("{boot:?} is no boot's identifier")]
    NoBoot { boot: String },
    #[error("the console file {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

pub(super) struct Store {
    dir: PathBuf,
    /// Of all files.
    bytes: u64,
    current: HashMap<Mac, Current>,
}

/// A machine's boot in progress.
struct Current {
    boot: String,
    path: PathBuf,
    /// The number of the next line.
    next: u64,
    bytes: u64,
}

impl Store {
    pub(super) fn open(dir: PathBuf) -> Result<Self, ConsoleError> {
        let mut store = Self { dir, bytes: 0, current: HashMap::new() };
        fs::create_dir_all(&store.dir).map_err(at(&store.dir))?;
        store.bytes = store.all()?.iter().map(|(.., bytes)| bytes).sum();
        Ok(store)
    }

    /// Stores the new ones of these lines, which are numbered from `first`, and returns them.
    pub(super) fn append(
        &mut self,
        mac: Mac,
        boot: &str,
        first: u64,
        lines: Vec<Line>,
        now: Timestamp,
    ) -> Result<Vec<Line>, ConsoleError> {
        // It becomes a file's name.
        if boot.len() != 36 || !boot.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
            return Err(ConsoleError::NoBoot { boot: boot.chars().take(64).collect() });
        }
        if self.current.get(&mac).is_none_or(|current| current.boot != boot) {
            let current = self.begin(mac, boot, now)?;
            if self.current.len() >= CURRENT_MAX {
                self.current.clear();
            }
            self.current.insert(mac, current);
        }
        let current = self.current.get_mut(&mac).expect("it was entered just now");
        let known = current.next.saturating_sub(first).min(lines.len() as u64) as usize;
        let new = &lines[known..];
        let Some(last) = new.last() else { return Ok(Vec::new()) };
        current.next = last.number.saturating_add(1);
        let new = new.to_vec();
        self.write(mac, &new)?;
        Ok(new)
    }

    /// The machine's present boot, and its last line's number. `None` if there is none.
    pub(super) fn last(&mut self, mac: Mac, now: Timestamp) -> Result<Option<(String, u64)>, ConsoleError> {
        if !self.current.contains_key(&mac) {
            let boots = boots(&self.machine(mac))?;
            let boot = boots.last().and_then(|path| path.file_name()?.to_str()?.split_once('-'));
            let Some((_, boot)) = boot else { return Ok(None) };
            let boot = boot.to_owned();
            let current = self.begin(mac, &boot, now)?;
            self.current.insert(mac, current);
        }
        let current = &self.current[&mac];
        Ok(Some((current.boot.clone(), current.next.saturating_sub(1))))
    }

    /// Stores a line of the machine's boot, whatever its number.
    pub(super) fn add(&mut self, mac: Mac, line: &Line) -> Result<(), ConsoleError> {
        self.write(mac, std::slice::from_ref(line))
    }

    fn write(&mut self, mac: Mac, lines: &[Line]) -> Result<(), ConsoleError> {
        let Some(current) = self.current.get_mut(&mac) else { return Ok(()) };
        let mut text = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut text, line).expect("a line has only text keys");
            text.push(b'\n');
        }
        let file = File::options().create(true).append(true).open(&current.path);
        file.and_then(|mut file| file.write_all(&text)).map_err(at(&current.path))?;
        current.bytes += text.len() as u64;
        self.bytes += text.len() as u64;
        if current.bytes > BOOT_MAX {
            let before = current.bytes;
            current.bytes = shorten(&current.path).map_err(at(&current.path))?;
            self.bytes = self.bytes.saturating_sub(before) + current.bytes;
        }
        Ok(())
    }

    pub(super) fn read(&self, mac: Mac, back: usize) -> Result<Option<Vec<Line>>, ConsoleError> {
        let boots = boots(&self.machine(mac))?;
        let Some(path) = boots.iter().rev().nth(back) else { return Ok(None) };
        lines(path).map(Some)
    }

    /// The file of a boot, which may be new.
    fn begin(&mut self, mac: Mac, boot: &str, now: Timestamp) -> Result<Current, ConsoleError> {
        let dir = self.machine(mac);
        let boots = boots(&dir)?;
        if let Some(path) = boots.iter().find(|path| path.to_string_lossy().ends_with(boot)) {
            let bytes = fs::metadata(path).map_err(at(path))?.len();
            let next = lines(path)?.last().map_or(0, |line| line.number.saturating_add(1));
            return Ok(Current { boot: boot.to_owned(), path: path.clone(), next, bytes });
        }
        for old in boots.iter().rev().skip(BOOTS_MAX - 1) {
            self.remove(old)?;
        }
        if self.bytes > ALL_MAX {
            self.make_room()?;
        }
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        // Names in the order of time.
        let path = dir.join(format!("{:015}-{boot}", now.as_millisecond()));
        Ok(Current { boot: boot.to_owned(), path, next: 0, bytes: 0 })
    }

    /// Removes the oldest boots, a tenth more than needed, so that this is rare.
    fn make_room(&mut self) -> Result<(), ConsoleError> {
        let mut all = self.all()?;
        all.sort();
        for (_, path, _) in all {
            if self.bytes <= ALL_MAX / 10 * 9 {
                break;
            }
            self.remove(&path)?;
        }
        // Files of boots in progress may be among them: looked up when they are written to again.
        self.current.clear();
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> Result<(), ConsoleError> {
        let bytes = fs::metadata(path).map_or(0, |m| m.len());
        fs::remove_file(path).map_err(at(path))?;
        self.bytes = self.bytes.saturating_sub(bytes);
        Ok(())
    }

    fn machine(&self, mac: Mac) -> PathBuf {
        self.dir.join(mac.to_string().replace(':', "-"))
    }

    /// Every file: its name, path and length.
    fn all(&self) -> Result<Vec<(String, PathBuf, u64)>, ConsoleError> {
        let mut all = Vec::new();
        for machine in fs::read_dir(&self.dir).map_err(at(&self.dir))?.flatten() {
            for path in boots(&machine.path())? {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let bytes = fs::metadata(&path).map_or(0, |m| m.len());
                all.push((name, path, bytes));
            }
        }
        Ok(all)
    }
}

/// A machine's files, oldest first.
fn boots(dir: &Path) -> Result<Vec<PathBuf>, ConsoleError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(at(dir))?,
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

fn lines(path: &Path) -> Result<Vec<Line>, ConsoleError> {
    let text = match fs::read_to_string(path) {
        // Removed meanwhile, to make room.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.map_err(at(path))?,
    };
    // A line that a crash truncated is skipped.
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Keeps only the beginning and the end, and returns the new length.
fn shorten(path: &Path) -> io::Result<u64> {
    let text = fs::read(path)?;
    let head = text[..END_KEPT].iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
    let tail = text.len() - END_KEPT;
    let tail = text[tail..].iter().position(|b| *b == b'\n').map_or(text.len(), |end| tail + end + 1);
    let kept = [&text[..head], &text[tail..]].concat();
    let new = path.with_extension("new");
    fs::write(&new, &kept)?;
    fs::rename(&new, path)?;
    Ok(kept.len() as u64)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> ConsoleError {
    let path = path.to_owned();
    move |source| ConsoleError::Io { path, source }
}
