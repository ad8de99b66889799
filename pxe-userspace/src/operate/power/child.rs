//! Programs that are run for one answer: without a shell, with bounded output, for a bounded time.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use zeroize::Zeroizing;

use super::PowerError;
use super::credentials::bounded;

/// Bytes that are read of each of a program's outputs. What is beyond is read and forgotten.
const OUTPUT_MAX: usize = 4096;

/// Where programs are looked for. Nothing else of the daemon's environment is handed down.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program that ended, with the beginning of what it printed.
pub(super) struct Ended {
    program: String,
    pub(super) status: ExitStatus,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Ended {
    /// What it printed, where its exit code is 0.
    pub(super) fn printed(self) -> Result<String, PowerError> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        let said = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        let said = bounded(said);
        Err(PowerError::Failed { program: self.program, how: self.status.to_string(), said })
    }
}

/// Runs it to its end. `input` is written to its standard input, if there is any.
///
/// It has a process group of its own, which is killed when it takes longer than `limit`, and when the future is dropped.
pub(super) async fn run(
    program: &str,
    arguments: &[String],
    input: Option<Zeroizing<Vec<u8>>>,
    limit: Duration,
) -> Result<Ended, PowerError> {
    let not_run = |source| PowerError::NotRun { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .process_group(0)
        .current_dir("/");
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(not_run)?;
    let _group = Group(child.id());
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let talking = async {
        let writing = async {
            if let (Some(mut stdin), Some(input)) = (stdin, input) {
                // A program that ends before it has read it says itself why.
                let _ = stdin.write_all(&input).await;
            }
        };
        let (stdout, stderr, ()) = tokio::join!(read(stdout), read(stderr), writing);
        (stdout, stderr, child.wait().await)
    };
    let overran = |_| PowerError::Overran { program: program.to_owned(), limit };
    let (stdout, stderr, status) = tokio::time::timeout(limit, talking).await.map_err(overran)?;
    let status = status.map_err(not_run)?;
    Ok(Ended { program: program.to_owned(), status, stdout, stderr })
}

async fn read(from: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut from) = from else { return String::new() };
    let mut kept = Vec::new();
    let _ = (&mut from).take(OUTPUT_MAX as u64).read_to_end(&mut kept).await;
    // A full pipe would stop it.
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&kept).into_owned()
}

/// A process group, which ends with this value.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        // Also what a program left behind in the background.
        if let Some(group) = self.0.and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}
