//! The workload's output. It has a pseudo-terminal whose other end is here: a thread copies the output to the
//! consoles, as the workload wrote it, and keeps its lines for the appliance; what is typed on a console goes the
//! other way. So programs are line-buffered, ask for passwords and are interrupted as on the console itself.
//!
//! Neither a console that blocks nor an appliance that does not answer blocks the workload: output that can't be
//! delivered in time is dropped, and counted.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, Once};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use pxe_contract::console::{LINES_MAX, Said, Source};
use pxe_contract::paths::node;

use crate::appliance::Appliance;
use crate::console::{self, RAW};
use crate::lock::Unpoisoned as _;
use crate::ship::{PAUSE, Sender, said};

/// A longer line is sent in pieces.
const LINE_MAX: usize = 1024;
/// A line that is unfinished for this long is sent as it is: a prompt, a row of dots.
const UNFINISHED: Duration = Duration::from_millis(250);
/// The most bytes queued for a slow console.
const CONSOLE_MAX: usize = 256 << 10;
/// The most bytes of lines queued for the appliance.
const WAITING_MAX: usize = 512 << 10;
/// The most bytes a second that are sent on average, because a thousand nodes share the appliance's disk.
const RATE: u64 = 64 << 10;

/// The workload's terminal. Dropping it closes it, after all that was written to it has been read.
pub struct Terminal {
    path: PathBuf,
    /// Held open, so that there is no hang-up between the workload's end and its next start.
    _near: OwnedFd,
    /// Closing it ends the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Terminal {
    /// A terminal behind `consoles`. Its lines go to `keep`.
    pub fn open(consoles: &[PathBuf], keep: impl FnMut(Said) + Send + 'static) -> io::Result<Self> {
        let pty = openpty(None, None)?;
        let far = File::from(pty.master);
        fcntl(&far, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let path = fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&pty.slave)))?;
        let (stop, stopped) = UnixStream::pair()?;
        // One that can't be opened shows nothing: the lines are kept all the same.
        let consoles = consoles.iter().filter_map(|console| Console::open(console).ok()).collect();
        let mut relay = Relay { far, consoles, stopped, keep, lines: Lines::default() };
        let thread = std::thread::Builder::new().name("output".into()).spawn(move || relay.run())?;
        Ok(Self { path, _near: pty.slave, stop: Some(stop), thread: Some(thread) })
    }

    /// The device that the workload opens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The terminal of a node whose lines go to `appliance`.
pub(crate) fn terminal(consoles: &[PathBuf], appliance: Appliance, mac: &str) -> io::Result<Terminal> {
    static SHIPS: Once = Once::new();
    let mut sender = Sender::new(appliance, node::LOGS, mac);
    let mut started = Ok(());
    SHIPS.call_once(|| {
        let thread = std::thread::Builder::new().name("logs".into());
        started = thread.spawn(move || ship(&mut sender)).map(drop);
    });
    started?;
    Terminal::open(consoles, |line| waiting().push(line))
}

/// Waits until the appliance has all lines, for a limited time.
pub(crate) fn flush(at_most: Duration) {
    let mut waiting = waiting();
    waiting.hurry = true;
    CHANGED.notify_all();
    let _ = CHANGED.wait_timeout_while(waiting, at_most, |w| w.sending || !w.lines.is_empty());
}

struct Relay<F> {
    far: File,
    consoles: Vec<Console>,
    stopped: UnixStream,
    keep: F,
    lines: Lines,
}

impl<F: FnMut(Said)> Relay<F> {
    fn run(&mut self) {
        let mut buffer = [0; 8192];
        loop {
            let (stopped, typed) = self.wait();
            let mut read = 0;
            while let Ok(len @ 1..) = self.far.read(&mut buffer) {
                read += len;
                for line in self.lines.take(&buffer[..len]) {
                    (self.keep)(line);
                }
                for console in &mut self.consoles {
                    console.write(&buffer[..len]);
                }
                if read >= 64 * buffer.len() {
                    // The others' turn.
                    break;
                }
            }
            if let Some(line) = self.lines.unfinished(stopped) {
                (self.keep)(line);
            }
            for (console, typed) in self.consoles.iter_mut().zip(typed) {
                console.write(b"");
                if typed {
                    console.type_into(&mut self.far);
                }
            }
            if stopped && read == 0 {
                return;
            }
        }
    }

    /// Until there is something to do. Whether to stop, and on which consoles something was typed.
    fn wait(&self) -> (bool, Vec<bool>) {
        let mut fds = vec![
            PollFd::new(self.far.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stopped.as_fd(), PollFlags::POLLIN),
        ];
        // One that nothing is wanted of still tells of its end, at which poll(2) would return at once, for ever.
        let waited: Vec<bool> = self.consoles.iter().map(|console| !console.wanted().is_empty()).collect();
        for console in self.consoles.iter().filter(|console| !console.wanted().is_empty()) {
            fds.push(PollFd::new(console.device.as_fd(), console.wanted()));
        }
        let timeout = self.lines.due().map_or(PollTimeout::NONE, |due| {
            let left = due.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let _ = poll(&mut fds, timeout);
        let any = |fd: Option<&PollFd<'_>>, flags: PollFlags| {
            fd.and_then(PollFd::revents).is_some_and(|r| r.intersects(flags))
        };
        let gone = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
        let mut looked = fds.iter().skip(2);
        let typed = waited.into_iter().map(|waited| waited && any(looked.next(), gone)).collect();
        (any(fds.get(1), gone), typed)
    }
}

/// One of the machine's consoles, behind which the terminal is.
struct Console {
    device: File,
    /// Its former settings, if it is a terminal.
    before: Option<Termios>,
    pending: VecDeque<u8>,
    dropped: usize,
    readable: bool,
}

impl Console {
    fn open(path: &Path) -> io::Result<Self> {
        let device = console::open(path)?;
        let before = tcgetattr(&device).ok();
        if let Some(before) = &before {
            // Echo, editing and Ctrl-C are handled by the inner terminal.
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            if tcsetattr(&device, SetArg::TCSADRAIN, &raw).is_ok() {
                RAW.store(true, Ordering::Relaxed);
            }
        }
        let readable = before.is_some();
        Ok(Self { device, before, pending: VecDeque::new(), dropped: 0, readable })
    }

    fn wanted(&self) -> PollFlags {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::POLLIN, self.readable);
        wanted.set(PollFlags::POLLOUT, !self.pending.is_empty());
        wanted
    }

    /// Writes what the console accepts now, and queues the rest.
    fn write(&mut self, bytes: &[u8]) {
        let room = CONSOLE_MAX - self.pending.len();
        self.pending.extend(&bytes[..bytes.len().min(room)]);
        self.dropped += bytes.len().saturating_sub(room);
        while !self.pending.is_empty() {
            match self.device.write(self.pending.as_slices().0) {
                Ok(len @ 1..) => drop(self.pending.drain(..len)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // Output to a console that is gone is dropped.
                Ok(0) | Err(_) => self.pending.clear(),
            }
        }
        if self.dropped > 0 && self.pending.is_empty() {
            let words = format!("\r\nbridgehead: the console was too slow for {} bytes\r\n", self.dropped);
            self.dropped = 0;
            self.pending.extend(words.as_bytes());
        }
    }

    fn type_into(&mut self, terminal: &mut File) {
        let mut typed = [0; 256];
        match self.device.read(&mut typed) {
            // Input that a full terminal does not accept is lost, as on a terminal that nobody reads.
            Ok(len @ 1..) => drop(terminal.write(&typed[..len])),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Ok(0) | Err(_) => self.readable = false,
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(&self.device, SetArg::TCSANOW, before);
            RAW.store(false, Ordering::Relaxed);
        }
    }
}

/// Splits bytes into lines.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    /// When the unfinished line began to wait.
    since: Option<Instant>,
}

impl Lines {
    fn take(&mut self, bytes: &[u8]) -> Vec<Said> {
        self.bytes.extend(bytes);
        let mut lines = Vec::new();
        let mut rest = self.bytes.as_slice();
        loop {
            let end = rest.iter().take(LINE_MAX).position(|b| *b == b'\n');
            let (line, after, partial) = match end {
                Some(end) => (&rest[..end], &rest[end + 1..], false),
                None if rest.len() >= LINE_MAX => {
                    let (line, after) = rest.split_at(whole(&rest[..LINE_MAX]));
                    (line, after, true)
                }
                None => break,
            };
            lines.push(output_line(line, partial));
            rest = after;
        }
        self.bytes = rest.to_vec();
        self.since = (!self.bytes.is_empty()).then(|| match self.since {
            Some(since) if lines.is_empty() => since,
            _ => Instant::now(),
        });
        lines
    }

    fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + UNFINISHED)
    }

    /// The unfinished line, if it has waited long enough or nothing more will come.
    fn unfinished(&mut self, at_once: bool) -> Option<Said> {
        self.due().filter(|due| at_once || *due <= Instant::now())?;
        self.since = None;
        let end = if at_once { self.bytes.len() } else { whole(&self.bytes) };
        let line: Vec<u8> = self.bytes.drain(..end).collect();
        (!line.is_empty()).then(|| output_line(&line, true))
    }
}

fn output_line(bytes: &[u8], partial: bool) -> Said {
    // A terminal puts a carriage return before each line feed.
    let bytes = bytes.strip_suffix(b"\r").filter(|_| !partial).unwrap_or(bytes);
    Said { partial, ..said(Source::Workload, String::from_utf8_lossy(bytes).into_owned()) }
}

/// The length of the prefix that ends with a whole character.
fn whole(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        // Truncated in its last character, which has at most three bytes here.
        Err(e) if e.error_len().is_none() && e.valid_up_to() > 0 => e.valid_up_to(),
        _ => bytes.len(),
    }
}

/// Lines for the appliance.
#[derive(Default)]
struct Waiting {
    lines: VecDeque<Said>,
    bytes: usize,
    lost: u64,
    sending: bool,
    /// The machine shuts down: no pauses.
    hurry: bool,
}

static WAITING: Mutex<Waiting> =
    Mutex::new(Waiting { lines: VecDeque::new(), bytes: 0, lost: 0, sending: false, hurry: false });
static CHANGED: Condvar = Condvar::new();

fn waiting() -> MutexGuard<'static, Waiting> {
    WAITING.lock().unpoisoned()
}

impl Waiting {
    /// Adds a line. If there are too many the oldest are dropped, because the last ones tell why something ended.
    fn push(&mut self, line: Said) {
        self.bytes += cost(&line);
        self.lines.push_back(line);
        while self.bytes > WAITING_MAX
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes -= cost(&oldest);
            self.lost += 1;
        }
        CHANGED.notify_all();
    }

    fn batch(&mut self) -> Vec<Said> {
        let mut lines = Vec::new();
        if self.lost > 0 {
            let text = format!(
                "bridgehead: {} lines were dropped here: they came faster than they are sent",
                self.lost
            );
            lines.push(said(Source::Stage1, text));
            self.lost = 0;
        }
        let count = self.lines.len().min(LINES_MAX - lines.len());
        lines.extend(self.lines.drain(..count));
        self.bytes = self.lines.iter().map(cost).sum();
        lines
    }
}

/// The size of a line when it is sent: its text and some 60 bytes of JSON.
fn cost(line: &Said) -> usize {
    line.text.len() + 64
}

fn ship(sender: &mut Sender) -> ! {
    loop {
        let mut waiting = waiting();
        waiting.sending = false;
        CHANGED.notify_all();
        let mut waiting = CHANGED.wait_while(waiting, |w| w.lines.is_empty()).unpoisoned();
        waiting.sending = true;
        let lines = waiting.batch();
        drop(waiting);
        let bytes: usize = lines.iter().map(cost).sum();
        sender.send(lines);
        let pause = PAUSE.max(Duration::from_secs_f64(bytes as f64 / RATE as f64));
        let deadline = Instant::now() + pause;
        let mut waiting = self::waiting();
        while !waiting.hurry
            && let Some(left) = deadline.checked_duration_since(Instant::now())
        {
            (waiting, _) = CHANGED.wait_timeout(waiting, left).unpoisoned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[Said]) -> Vec<(&str, bool)> {
        lines.iter().map(|line| (line.text.as_str(), line.partial)).collect()
    }

    #[test]
    fn bytes_become_lines_and_a_prompt_does_not_wait_for_its_end() {
        let mut lines = Lines::default();
        assert_eq!(texts(&lines.take(b"one\r\ntwo\nlog")), [("one", false), ("two", false)]);
        assert_eq!(lines.unfinished(false), None, "it has just come");
        std::thread::sleep(UNFINISHED);
        let prompt = lines.unfinished(false).unwrap();
        assert_eq!((prompt.text.as_str(), prompt.partial, lines.due()), ("log", true, None));
        assert_eq!(texts(&lines.take(b"in: \n")), [("in: ", false)]);
        assert_eq!(lines.unfinished(true), None);
        lines.take(b"last words");
        assert_eq!(lines.unfinished(true).unwrap().text, "last words");
    }

    #[test]
    fn long_lines_come_in_pieces_between_characters() {
        let mut lines = Lines::default();
        let text = format!("a{}", "ü".repeat(1500));
        let mut pieces = lines.take(format!("{text}\n").as_bytes());
        assert_eq!(pieces.len(), 3);
        assert!(pieces.iter().all(|piece| !piece.text.contains('\u{fffd}')));
        assert_eq!(pieces.iter().map(|piece| piece.partial).collect::<Vec<_>>(), [true, true, false]);
        assert_eq!(pieces.drain(..).map(|piece| piece.text).collect::<String>(), text);
        // Bytes that are no text are split all the same.
        assert_eq!(lines.take(&[0x80; 3000]).len(), 2);
    }

    #[test]
    fn too_many_lines_lose_the_oldest_and_say_how_many() {
        let mut waiting = Waiting::default();
        for n in 0..20_000 {
            waiting.push(said(Source::Workload, n.to_string()));
        }
        assert!(waiting.bytes <= WAITING_MAX);
        let kept = waiting.lines.len();
        let batch = waiting.batch();
        assert_eq!(batch.len(), LINES_MAX);
        assert!(batch[0].text.contains(&format!("{} lines were dropped", 20_000 - kept)), "{:?}", batch[0]);
        assert_eq!(waiting.lines.back().unwrap().text, "19999");
    }
}
