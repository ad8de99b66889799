//! What a test needs: declared where the test is written, and reserved on this machine before the test begins.
//!
//! All tests that run at once, of one test program or of several, share this machine's processors and memory. Both are
//! divided into pieces, each a file in `target/lab-shares` that its holder keeps locked. Waiting is a blocked `flock`,
//! which costs nothing. Tests are served in order of arrival, so that none waits forever. The kernel unlocks what a
//! killed process held.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Pieces per processor.
const PER_PROCESSOR: usize = 4;
/// Clients and servers in namespaces wait at least half of the time.
const PROGRAMS: usize = 2;
/// Emulating takes a processor, and who talks to the machine waits for it meanwhile; but a machine waits, too: for its
/// firmware's clock, its disk, or to be asked. The tests of one machine use a processor for 20 to 60 % of their time.
const MACHINE: usize = 2;
/// A piece of memory.
const PIECE_MIB: u64 = 512;

/// What a test needs. By default that is programs, and half a processor.
///
/// ```text
/// world::test(&["ip", "udhcpc"], |world| …)                   clients and servers in namespaces
/// world::test(Needs::of(&PROGRAMS).machine(512), |world| …)   and an emulated machine of 512 MiB
/// world::test(Needs::of(&["ip"]).processors(2), |world| …)    and work for two processors
/// ```
#[derive(Clone, Debug)]
pub struct Needs<'a> {
    programs: Vec<&'a str>,
    /// Parts of a processor ([`PER_PROCESSOR`] each); `None`: the default.
    pieces: Option<usize>,
    memory_mib: u64,
}

impl<'a> Needs<'a> {
    /// These programs.
    pub fn of(programs: &[&'a str]) -> Self {
        Self { programs: programs.to_vec(), pieces: None, memory_mib: PIECE_MIB }
    }

    /// Nothing to wait for: for a part of another test, which has reserved what both need.
    pub fn part_of_another() -> Self {
        Self { programs: Vec::new(), pieces: Some(0), memory_mib: 0 }
    }

    /// Work for this many processors.
    pub fn processors(mut self, count: usize) -> Self {
        self.pieces = Some(count * PER_PROCESSOR);
        self
    }

    /// One more emulated machine, with this much memory.
    pub fn machine(mut self, memory_mib: u32) -> Self {
        self.pieces = Some(self.pieces.unwrap_or_default() + MACHINE);
        self.memory_mib += u64::from(memory_mib);
        self
    }

    /// Keeps a processor free of other emulated machines, for tests in which something in the machine counts seconds.
    pub fn undisturbed(mut self) -> Self {
        self.pieces = Some(self.pieces() + MACHINE);
        self
    }

    fn pieces(&self) -> usize {
        self.pieces.unwrap_or(PROGRAMS)
    }

    /// The first program that is not installed.
    pub fn missing(&self) -> Option<&'a str> {
        self.programs.iter().find(|program| !crate::installed(program)).copied()
    }

    /// Waits until this machine has enough free. If it never has enough, the test gets everything.
    pub fn take(&self) -> Result<Share> {
        self.take_from(&Means::of_this_machine()?)
    }

    fn take_from(&self, means: &Means) -> Result<Share> {
        if self.pieces() == 0 {
            return Ok(Share { _pieces: Vec::new() });
        }
        let directory = &means.directory;
        fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
        // Only the holder of this lock reserves, so that no two tests each hold a part that the other waits for.
        let turn = File::create(directory.join("turn"))?;
        turn.lock().context("waiting for a turn")?;
        let memory = usize::try_from(self.memory_mib.div_ceil(PIECE_MIB))?;
        let mut pieces = locked(directory, "processor", self.pieces(), means.processor_pieces)?;
        pieces.extend(locked(directory, "memory", memory, means.memory_pieces)?);
        Ok(Share { _pieces: pieces })
    }
}

impl<'a, const N: usize> From<&[&'a str; N]> for Needs<'a> {
    fn from(programs: &[&'a str; N]) -> Self {
        Self::of(programs)
    }
}

impl<'a> From<&Vec<&'a str>> for Needs<'a> {
    fn from(programs: &Vec<&'a str>) -> Self {
        Self::of(programs)
    }
}

/// A test's share of the machine, until this is dropped.
pub struct Share {
    _pieces: Vec<File>,
}

/// What this machine has to share.
struct Means {
    directory: PathBuf,
    processor_pieces: usize,
    memory_pieces: usize,
}

impl Means {
    fn of_this_machine() -> Result<Self> {
        let info = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
        let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:")).context("MemTotal")?;
        let total_mib = total.trim().trim_end_matches(" kB").parse::<u64>().context("MemTotal")? >> 10;
        Ok(Self {
            directory: crate::target().join("lab-shares"),
            processor_pieces: available_parallelism()?.get() * PER_PROCESSOR,
            // The rest is for the system, its caches and builds.
            memory_pieces: usize::try_from(total_mib * 3 / 4 / PIECE_MIB)?,
        })
    }
}

/// Locks `count` of the files `NAME-0` to `NAME-(of - 1)`, or all of them if there are fewer.
fn locked(directory: &Path, name: &str, count: usize, of: usize) -> Result<Vec<File>> {
    let wanted = count.min(of.max(1));
    let mut locked = Vec::new();
    let files = (0..of.max(1)).map(|n| File::create(directory.join(format!("{name}-{n}"))));
    let mut free = files.collect::<Result<Vec<_>, _>>()?;
    loop {
        let mut others = Vec::new();
        for file in free {
            match file.try_lock() {
                Ok(()) if locked.len() < wanted => locked.push(file),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => others.push(file),
                Err(TryLockError::Error(error)) => {
                    return Err(error).context("locking a piece of the machine");
                }
            }
        }
        if locked.len() == wanted {
            return Ok(locked);
        }
        free = others;
        // Polls, because no system call waits for any of several files. Only one process at a time is here.
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn who_comes_later_waits_for_what_is_taken_and_more_than_all_is_all() {
        let directory = std::env::temp_dir().join(format!("bridgehead-shares-{}", std::process::id()));
        let means = || Means { directory: directory.clone(), processor_pieces: 5, memory_pieces: 4 };
        let light = Needs::from(&["ip"]);
        let machine = light.clone().machine(512);
        assert_eq!((light.pieces(), machine.pieces(), machine.memory_mib), (2, 2, 1024));
        assert_eq!((machine.clone().machine(512).pieces(), machine.clone().undisturbed().pieces()), (4, 4));
        assert_eq!(light.clone().processors(1).machine(512).pieces(), 6);

        let [first, second] = [machine.take_from(&means()).unwrap(), light.take_from(&means()).unwrap()];
        let (sender, taken) = mpsc::channel();
        let waiting = {
            let (means, sender) = (means(), sender.clone());
            std::thread::spawn(move || sender.send(machine.take_from(&means).unwrap()))
        };
        // It waits: one piece of the five is free.
        assert!(taken.recv_timeout(Duration::from_millis(200)).is_err());
        // Others that need nothing don't.
        drop(Needs::part_of_another().take_from(&means()).unwrap());
        drop(second);
        let third = taken.recv().unwrap();
        waiting.join().unwrap().unwrap();
        drop((first, third));
        drop(light.processors(100).take_from(&means()).unwrap());
        fs::remove_dir_all(directory).unwrap();
    }
}
