//! The lab's end of the channel to a machine's agent: `agent.sh`, at the other end of a virtio-serial port.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// The output of a script in the machine, and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    pub status: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Output {
    pub fn success(&self) -> bool {
        self.status == 0
    }

    /// stdout as text, or an error with both outputs.
    pub fn text(self) -> Result<String> {
        let out = String::from_utf8_lossy(&self.stdout).into_owned();
        let err = String::from_utf8_lossy(&self.stderr);
        ensure!(self.success(), "ended with {}: {}{}", self.status, err, out);
        Ok(out)
    }
}

/// The channel, when the agent answers.
pub(super) struct Agent {
    stream: BufReader<UnixStream>,
    /// What `uname -r` says in there.
    pub(super) kernel: String,
}

impl Agent {
    /// Where QEMU connects to when it starts.
    pub(super) fn listen(path: &Path) -> Result<UnixListener> {
        UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))
    }

    /// Waits until the machine has booted and its agent says `ready`. If the machine ends, by itself or by a panic, the
    /// channel is closed.
    pub(super) fn ready(listener: &UnixListener, patience: Duration) -> Result<Self> {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(patience))?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).context("the machine's agent is not ready")?;
        let kernel = line.trim_end().strip_prefix("ready ");
        let kernel =
            kernel.with_context(|| format!("the agent's first line is {line:?}: the machine ended"))?;
        Ok(Self { kernel: kernel.to_owned(), stream })
    }

    /// Runs a shell script in the machine, with these bytes as its stdin.
    pub(super) fn run(&mut self, script: &str, stdin: &[u8], patience: Duration) -> Result<Output> {
        let channel = self.stream.get_mut();
        channel.set_read_timeout(Some(patience))?;
        write!(channel, "{} {}\n{script}", script.len(), stdin.len())?;
        channel.write_all(stdin)?;
        let mut line = String::new();
        let answered = self.stream.read_line(&mut line);
        answered.with_context(|| format!("no answer after {} s to: {script}", patience.as_secs()))?;
        let numbers: Vec<usize> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let [status, stdout, stderr] = numbers[..] else {
            anyhow::bail!("the agent answers {line:?}: the machine ended over: {script}");
        };
        let mut take = |len| -> Result<Vec<u8>> {
            let mut bytes = vec![0; len];
            self.stream.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        Ok(Output { status: status.try_into()?, stdout: take(stdout)?, stderr: take(stderr)? })
    }
}
