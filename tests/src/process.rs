//! A program that runs in the background and ends when its handle is dropped.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a program may take for what it does at once on an idle machine: to start, to answer, to end on request. Tests
/// on a shared machine don't judge by time, so this limit is reached only if nothing would ever happen.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A running program. Dropping it ends the program.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with stderr, and stdout unless it was piped, in the file `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        Self::with_stdout(command, log, None)
    }

    /// As [`Process::start`], with the lines of stdout in a channel, which closes when stdout does.
    pub fn with_lines(command: &mut Command, log: &Path) -> Result<(Self, mpsc::Receiver<String>)> {
        let mut process = Self::with_stdout(command, log, Some(Stdio::piped()))?;
        let stdout = process.child.stdout.take().expect("stdout is piped");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok((process, lines))
    }

    fn with_stdout(command: &mut Command, log: &Path, stdout: Option<Stdio>) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let file = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout.map_or_else(|| file.try_clone().map(Stdio::from), Ok)?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// An error with the log's last lines if it no longer runs.
    pub fn ensure_running(&mut self) -> Result<()> {
        if let Some(status) = self.ended()? {
            bail!("{} ended ({status}). Its last lines:\n{}", self.name, self.last_lines(15));
        }
        Ok(())
    }

    pub fn last_lines(&self, count: usize) -> String {
        last_lines(&self.log, count)
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        wait_for(patience, || self.ended()).with_context(|| format!("waiting for {} to end", self.name))
    }

    /// Sends SIGTERM, and waits. A program that does not end in time is killed, which is an error.
    pub fn terminate(&mut self, patience: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGTERM)?;
        match self.wait(patience) {
            Ok(status) => Ok(status),
            Err(e) => {
                self.kill()?;
                Err(e.context(format!("{} had to be killed:\n{}", self.name, self.last_lines(15))))
            }
        }
    }

    /// Sends SIGKILL, which looks like a crash from outside.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(e) = self.terminate(PATIENCE) {
            eprintln!("{e:#}");
        }
    }
}

/// Runs `command` to its end and returns its stdout; anything but success is an error with its stderr.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed ({}): {}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim(),
        String::from_utf8_lossy(&output.stdout).trim(),
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Polls every 20 ms until there is an answer.
pub fn wait_for<T>(patience: Duration, mut answer: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + patience;
    loop {
        if let Some(answer) = answer()? {
            return Ok(answer);
        }
        ensure!(Instant::now() < end, "nothing after {} s", patience.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The last lines of a log or console, without terminal control sequences.
pub fn last_lines(path: &Path, count: usize) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = plain(&String::from_utf8_lossy(&bytes));
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|l| format!("    {l}\n")).collect()
}

/// Removes the escape sequences (ECMA-48) with which firmware and GRUB draw, and carriage returns.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' if chars.next_if_eq(&'[').is_some() => {
                let end = chars.by_ref().find(|c| ('\x40'..='\x7e').contains(c));
                // A cursor movement begins another line.
                if matches!(end, Some('H' | 'f' | 'J')) && !out.ends_with('\n') {
                    out.push('\n');
                }
            }
            '\n' => out.push('\n'),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_are_no_text() {
        assert_eq!(plain("\x1b[2J\x1b[01;01HBdsDxe\x1b[0m: ok\r\n"), "\nBdsDxe: ok\n");
        assert_eq!(plain("cut \x1b["), "cut ");
    }
}
