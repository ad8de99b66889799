//! Sends the console's output to the appliance: the kernel's messages and our own lines, from the first on. A separate
//! thread sends them in batches once there is a network; the boot never waits for it.
//!
//! Until then the kernel's messages stay in its ring buffer, and ours in `OWN`.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pxe_contract::console::{LINES_MAX, Said, Source};
use pxe_contract::paths::node;

use crate::appliance::Appliance;
use crate::lock::Unpoisoned as _;
use crate::netconsole;
use crate::ship::{PAUSE, Sender, said};

/// The most of our own lines that are buffered: without an appliance they can't be sent.
const OWN_MAX: usize = 1024;

/// Whether the console is in raw mode (`output`).
pub(crate) static RAW: AtomicBool = AtomicBool::new(false);

/// The kernel's consoles besides `/dev/console`.
static OTHERS: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// From now on, our own lines appear on these terminals, too.
pub(crate) fn also_on(terminals: &[PathBuf]) {
    *OTHERS.lock().unpoisoned() = terminals.iter().filter_map(|path| open(path).ok()).collect();
}

/// A terminal that holds nobody up: what it can't take is lost.
pub(crate) fn open(terminal: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    File::options().read(true).write(true).custom_flags(flags).open(terminal)
}

/// Says a line on the consoles, and keeps it for the appliance. A console that is gone stops nothing.
pub fn say(words: fmt::Arguments<'_>) {
    let text = format!("bridgehead: {words}");
    // While the workload's terminal is behind the console, the console puts no carriage return before a line feed.
    let line = format!("{text}{}", if RAW.load(Ordering::Relaxed) { "\r\n" } else { "\n" });
    let _ = io::stderr().write_all(line.as_bytes());
    for console in OTHERS.lock().unpoisoned().iter_mut() {
        let _ = console.write_all(line.as_bytes());
    }
    let mut own = own();
    if own.lines.len() == OWN_MAX {
        own.lines.pop_front();
        own.lost += 1;
    }
    own.lines.push_back(said(Source::Stage1, text));
    drop(own);
    wake();
}

/// Starts sending to `appliance`, if there is one. `sender` is for the messages of a crashing kernel.
pub(crate) fn ship(appliance: Option<Appliance>, mac: &str, sender: netconsole::Sender) {
    let Some(appliance) = appliance else { return };
    let Ok((waker, woken)) = UnixStream::pair() else { return };
    if waker.set_nonblocking(true).and_then(|()| woken.set_nonblocking(true)).is_err()
        || WAKER.set(waker).is_err()
    {
        return;
    }
    let at = appliance.address();
    let mut shipper = Shipper {
        sender: Sender::new(appliance, node::CONSOLE, mac),
        messages: File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").ok(),
        woken,
    };
    let run = move || {
        shipper.turn();
        // Now the kernel's neighbour table has the appliance.
        netconsole::start(&sender, at);
        loop {
            shipper.turn();
        }
    };
    let thread = std::thread::Builder::new().name("console".into()).spawn(run);
    if let Err(e) = thread {
        say(format_args!("the appliance won't see this console: {e}"));
    }
}

/// Waits until everything was sent, for a limited time.
pub(crate) fn flush(at_most: Duration) {
    if WAKER.get().is_none() {
        return;
    }
    let own = own();
    // The thread may have looked before the last line came, so two rounds without anything to send are needed.
    let enough = own.idle + 2;
    wake();
    let _ = IDLE.wait_timeout_while(own, at_most, |own| {
        wake();
        own.idle < enough
    });
}

/// Our own lines, and how often the thread found nothing to send.
struct Own {
    lines: VecDeque<Said>,
    lost: usize,
    idle: u64,
}

static OWN: Mutex<Own> = Mutex::new(Own { lines: VecDeque::new(), lost: 0, idle: 0 });
static IDLE: Condvar = Condvar::new();
static WAKER: OnceLock<UnixStream> = OnceLock::new();

fn own() -> MutexGuard<'static, Own> {
    OWN.lock().unpoisoned()
}

fn wake() {
    if let Some(mut waker) = WAKER.get() {
        // A full pipe wakes just as well.
        let _ = waker.write(&[0]);
    }
}

struct Shipper {
    sender: Sender,
    /// `None` if the kernel has no such device: our own lines are sent all the same.
    messages: Option<File>,
    woken: UnixStream,
}

impl Shipper {
    /// Sends the lines that there are, or waits for some.
    fn turn(&mut self) {
        let lines = self.collect();
        if lines.is_empty() {
            own().idle += 1;
            IDLE.notify_all();
            self.wait();
        } else {
            self.sender.send(lines);
            std::thread::sleep(PAUSE);
        }
    }

    /// The lines so far, in order of time.
    fn collect(&mut self) -> Vec<Said> {
        let mut lines = self.messages.as_mut().map(messages).unwrap_or_default();
        let mut own = own();
        if own.lost > 0 {
            let text = format!("bridgehead: {} lines of stage 1 were lost here", own.lost);
            own.lost = 0;
            lines.push(Said { uptime: own.lines[0].uptime, ..said(Source::Stage1, text) });
        }
        let room = LINES_MAX.min(own.lines.len());
        lines.extend(own.lines.drain(..room));
        lines.sort_by(|a, b| a.uptime.total_cmp(&b.uptime));
        lines
    }

    fn wait(&mut self) {
        let mut fds = vec![PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.messages.as_ref().map(|m| PollFd::new(m.as_fd(), PollFlags::POLLIN)));
        let _ = poll(&mut fds, PollTimeout::NONE);
        while self.woken.read(&mut [0; 64]).is_ok_and(|n| n > 0) {}
    }
}

/// The kernel's messages that were not read yet, a batch at most. Each read gives one.
fn messages(device: &mut File) -> Vec<Said> {
    let mut lines = Vec::new();
    let mut record = [0; 8192];
    while lines.len() < LINES_MAX {
        match device.read(&mut record) {
            Ok(0) => break,
            Ok(len) => lines.extend(message(&String::from_utf8_lossy(&record[..len]))),
            // Messages were overwritten before we read them; the next read gives the oldest there is.
            Err(e) if e.raw_os_error() == Some(Errno::EPIPE as i32) => {}
            Err(_) => break,
        }
    }
    lines
}

/// `6,339,5140900,-;text`, then lines of a device's properties that begin with a space
/// (Documentation/ABI/testing/dev-kmsg).
fn message(record: &str) -> Option<Said> {
    let (prefix, rest) = record.split_once(';')?;
    let mut fields = prefix.split(',');
    let priority: u32 = fields.next()?.parse().ok()?;
    let microseconds: u64 = fields.nth(1)?.parse().ok()?;
    Some(Said {
        uptime: microseconds as f64 / 1e6,
        from: Source::Kernel,
        level: Some((priority & 7) as u8),
        partial: false,
        text: rest.lines().next().unwrap_or_default().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_messages_are_taken_apart() {
        let record = "6,339,5140900,-;virtio_net virtio0 ens3: renamed; from eth0\n SUBSYSTEM=virtio\n DEVICE=+virtio:virtio0\n";
        let line = message(record).unwrap();
        assert_eq!((line.uptime, line.level), (5.1409, Some(6)));
        assert_eq!(line.text, "virtio_net virtio0 ens3: renamed; from eth0");
        // A user's message: its facility is in the upper bits.
        assert_eq!(message("12,1,0,-;x\n").unwrap().level, Some(4));
        for broken in ["", "6,339", "6;text", "x,1,2,-;text"] {
            assert_eq!(message(broken), None, "{broken:?}");
        }
    }
}
