//! The supervisor and the workload's start, as the first process of a PID namespace, with real
//! processes: BusyBox as the image. Each scenario is this program again, below unshare(1).

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::{Pid, getpid, getuid};
use pxe_init::health::{Change, Health};
use pxe_init::output::Terminal;
use pxe_init::supervise::{Ended, Happening, Power, Supervisor};
use pxe_init::workload::{self, StartError};
use pxe_init::{Image, say};

type Scenario = fn(&Supervisor);

const SCENARIOS: [(&str, Scenario); 10] = [
    ("the workload has the image's root, user, environment and a clean signal state", identity),
    ("what can't start says where it stopped", refusals),
    ("the workload is process 1 and ends with all that it started", first),
    ("orphans are reaped", orphans),
    ("exit codes and signals are told apart", endings),
    ("a workload is asked to stop, and killed when it does not", stopping),
    ("signals ask for the machine's end", asking),
    ("a health check runs beside the workload and tells changes only", health),
    ("the workload's terminal is one, and what it says is kept", terminal),
    ("the end of the machine leaves no process", stop_all),
];

fn main() -> ExitCode {
    let inside = std::env::args().nth(1).filter(|_| getpid() == Pid::from_raw(1));
    if let Some(name) = inside {
        // The kernel's first process ignores no signal; this one inherits what nohup and shells ignore.
        for ignored in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
            // SAFETY: no handler is installed, so nothing runs asynchronously.
            unsafe { signal(ignored, SigHandler::SigDfl) }.expect("the default is always there");
        }
        let supervisor = Supervisor::new().expect("signals");
        let (_, scenario) = SCENARIOS.iter().find(|(n, _)| *n == name).expect("a scenario's name");
        scenario(&supervisor);
        return ExitCode::SUCCESS;
    }
    // In the words of libtest, for who runs tests of every kind.
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--list") {
        SCENARIOS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !getuid().is_root() {
        println!("skipped: namespaces need root");
        return ExitCode::SUCCESS;
    }
    let parts: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let chosen = |name: &str| parts.is_empty() || parts.iter().any(|part| name.contains(*part));
    let mut failed = 0;
    for (name, _) in SCENARIOS.iter().filter(|(name, _)| chosen(name)) {
        let scenario = Command::new("unshare")
            .args(["--pid", "--fork", "--mount", "--mount-proc", "--net", "--kill-child", "--"])
            .arg(std::env::current_exe().expect("this program's path"))
            .arg(name)
            .output()
            .expect("unshare(1) runs");
        let ok = scenario.status.success();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        if !ok {
            failed += 1;
            println!("{}", String::from_utf8_lossy(&scenario.stderr));
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn identity(supervisor: &Supervisor) {
    let fixture = Fixture::new();
    let script = "id -u; id -g; id -G; pwd; echo $HOME $GREETING $BRIDGEHEAD_NODE; \
                  grep -E 'SigBlk|SigIgn' /proc/self/status; cut -d' ' -f6 /proc/$$/stat; echo $$; \
                  ls / | tr '\\n' ' '; readlink /proc/self/fd/2";
    let image = fixture.image(
        &["sh", "-c", script],
        r#","env":["GREETING=hello","PATH=/bin"],"cwd":"/made/here","user":"web""#,
    );
    let pid = workload::start(&image, &[("BRIDGEHEAD_NODE", "n1")], &fixture.terminal()).expect("it starts");
    assert_eq!(wait_for(supervisor, pid), Ended::Exited(0), "{}", fixture.output());
    let output = fixture.output();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..5], ["33", "34", "34 40", "/made/here", "/var/www hello n1"], "{output}");
    for line in &lines[5..7] {
        let set = u64::from_str_radix(line.split('\t').nth(1).expect("a set"), 16).expect("hexadecimal");
        // 32 and 33 are the C library's own, and inherited from whoever started the test.
        assert_eq!(set & 0x7fff_ffff, 0, "{output}");
    }
    assert_eq!(lines[7], lines[8], "it leads its own session: {output}");
    assert_eq!(lines[9].split(' ').next(), Some("bin"), "the root is the image's: {output}");
    assert!(!output.contains("usr"), "the root is the image's: {output}");
}

fn refusals(_: &Supervisor) {
    let fixture = Fixture::new();
    let refused = |argv: &[&str], more: &str| {
        workload::start(&fixture.image(argv, more), &[], &fixture.terminal()).expect_err("it can't start")
    };
    let error = refused(&["sh"], r#","cwd":"/bin/sh""#);
    assert!(matches!(error, StartError::Directory { .. }), "{error}");
    let words = "working directory /bin/sh can't be made: it is a file, or something on its way is";
    assert!(error.to_string().contains(words), "{error}");
    let error = refused(&["nothing"], "").to_string();
    assert!(error.contains("\"nothing\" is not in the image"), "{error}");
    let error = refused(&["sh"], r#","user":"nobody""#).to_string();
    assert!(error.contains("not in its /etc/passwd"), "{error}");
}

fn first(supervisor: &Supervisor) {
    let fixture = Fixture::new();
    // What it left behind goes with it.
    let script = "echo $$; sleep 1000 & ls /proc | grep '^[0-9]' | tr '\n' ' '; echo";
    let image = fixture.image(&["sh", "-c", script], "");
    let pid = workload::start(&image, &[], &fixture.terminal()).expect("it starts");
    assert_eq!(wait_for(supervisor, pid), Ended::Exited(0));
    let output = fixture.output();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "1", "{output}");
    let processes: Vec<u32> = lines[1].split_whitespace().flat_map(str::parse).collect();
    assert!(
        processes.contains(&1) && processes.iter().all(|pid| *pid < 10),
        "its own are all there is: {output}"
    );
    assert!(kill(Pid::from_raw(-1), None).is_err(), "no other process is left");

    // It has ended by reboot(2) as the first process of such a namespace ends.
    for (how, signal) in [("reboot -f", Signal::SIGHUP), ("poweroff -f", Signal::SIGINT)] {
        let image = fixture.image(&["sh", "-c", &format!("busybox {how}; sleep 1000")], "");
        let pid = workload::start(&image, &[], &fixture.terminal()).expect("it starts");
        assert_eq!(wait_for(supervisor, pid), Ended::Killed(signal as i32), "{how}: {}", fixture.output());
    }
}

fn orphans(supervisor: &Supervisor) {
    // Of what is started outside of a workload's namespace: a helper of ours that starts others.
    let pid = shell("(sleep 0.3; exit 7) & exit 0");
    assert_eq!(wait_for(supervisor, pid), Ended::Exited(0));
    let Happening::Ended(orphan, ended) = supervisor.next(in_seconds(5)) else {
        panic!("the orphan was not reaped")
    };
    assert_ne!(orphan, pid);
    assert_eq!(ended, Ended::Exited(7));
}

fn endings(supervisor: &Supervisor) {
    let fixture = Fixture::new();
    let image = fixture.image(&["sh", "-c", "exit 3"], "");
    let pid = workload::start(&image, &[], &fixture.terminal()).expect("it starts");
    let ended = wait_for(supervisor, pid);
    assert_eq!((ended, ended.code(), ended.to_string()), (Ended::Exited(3), 3, "exit code 3".to_owned()));
    // The last is one of real time.
    for (signal, words) in [(9, "killed by SIGKILL"), (37, "killed by SIGRTMIN+3")] {
        let ended = wait_for(supervisor, shell(&format!("kill -{signal} $$; sleep 1000")));
        let expected = (Ended::Killed(signal), 128 + signal, words.to_owned());
        assert_eq!((ended, ended.code(), ended.to_string()), expected);
    }
}

fn stopping(supervisor: &Supervisor) {
    let fixture = Fixture::new();
    let heeds = fixture.image(
        &["sh", "-c", "trap 'echo bye; exit 0' INT; echo up; while :; do sleep 0.05; done"],
        r#","stop-signal":"SIGINT""#,
    );
    let pid = workload::start(&heeds, &[], &fixture.terminal()).expect("it starts");
    fixture.wait_for_output("up");
    supervisor.stop(pid, workload::stop_signal(&heeds), Duration::from_secs(5));
    assert!(fixture.output().contains("bye"), "{}", fixture.output());

    // The first process of a namespace is spared what it has no handler for. It is not waited for in vain.
    let unaware = fixture.image(&["sleep", "1000"], r#","stop-signal":"SIGRTMIN+3""#);
    let pid = workload::start(&unaware, &[], &fixture.terminal()).expect("it starts");
    let asked = Instant::now();
    supervisor.stop(pid, workload::stop_signal(&unaware), Duration::from_secs(1000));
    assert!(asked.elapsed() < Duration::from_secs(500));
    assert!(kill(pid, None).is_err(), "it is gone");

    let deaf = fixture.image(&["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.05; done"], "");
    let pid = workload::start(&deaf, &[], &fixture.terminal()).expect("it starts");
    fixture.wait_for_output("deaf");
    let asked = Instant::now();
    supervisor.stop(pid, workload::stop_signal(&deaf), Duration::from_millis(300));
    assert!(asked.elapsed() >= Duration::from_millis(300), "it had its time");
    assert!(kill(pid, None).is_err(), "it is gone");
}

fn asking(supervisor: &Supervisor) {
    for (signal, power) in [("TERM", Power::Reboot), ("INT", Power::Reboot), ("USR2", Power::Off)] {
        // Waited for here: the supervisor reaps only in `next`.
        let status = Command::new("sh").args(["-c", &format!("kill -{signal} 1")]).status();
        assert!(status.expect("a shell").success());
        let asked = loop {
            match supervisor.next(in_seconds(5)) {
                Happening::Ended(..) => {}
                other => break other,
            }
        };
        assert_eq!(asked, Happening::Asked(power), "{signal}");
    }
    assert_eq!(supervisor.next(in_seconds(0)), Happening::Timeout);
}

fn health(supervisor: &Supervisor) {
    let fixture = Fixture::new();
    // What the workload mounted and wrote is there for the check, and so are its user and environment.
    let check = "id -u; echo $BRIDGEHEAD_NODE; cat /tmp/state >&2; exit $(cat /tmp/state)";
    let more = format!(
        r#","user":"web","env":["PATH=/bin"],"health-check":{{"argv":["sh","-c",{check:?}],
        "interval":20,"timeout":400,"start-period":0,"retries":2}}"#
    );
    let image = fixture.image(&["sleep", "1000"], &more);
    let state =
        |contents: &str| fs::write(fixture.dir.path().join("image/tmp/state"), contents).expect("a file");
    state("0");
    let extra = [("BRIDGEHEAD_NODE", "n1")];
    let workload = workload::start(&image, &extra, &fixture.terminal()).expect("it starts");
    let mut health = Health::new(&image, workload, Instant::now()).expect("it has a check");
    let mut change = || {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            assert!(Instant::now() < deadline, "nothing changes");
            let change = match supervisor.next(Some(health.due().min(deadline))) {
                Happening::Ended(pid, ended) => health.ended(pid, ended),
                _ => health.act(&extra),
            };
            if let Some(change) = change {
                return change;
            }
        }
    };
    assert_eq!(change(), Change::Healthy);
    state("3");
    let said = "2 times in a row, the check ended with exit code 3: 33\nn1\n3";
    assert_eq!(change(), Change::Unhealthy(said.into()));
    state("0");
    assert_eq!(change(), Change::Healthy);
    fs::remove_file(fixture.dir.path().join("image/tmp/state")).expect("it is there");
    // It waits for somebody who writes: for ever.
    let fifo = Command::new("mkfifo").arg("-m666").arg(fixture.dir.path().join("image/tmp/state")).status();
    assert!(fifo.expect("mkfifo(1) runs").success());
    let Change::Unhealthy(why) = change() else { panic!("a check that hangs is no success") };
    assert!(why.contains("the check took longer than 400ms"), "{why}");
    supervisor.stop(workload, Signal::SIGKILL as i32, Duration::from_secs(1));
}

fn terminal(supervisor: &Supervisor) {
    let fixture = Fixture::new();
    let console = nix::pty::openpty(None, None).expect("a console");
    let beside = nix::pty::openpty(None, None).expect("another console");
    let path = |of: &std::os::fd::OwnedFd| fs::read_link(format!("/proc/self/fd/{}", of.as_raw_fd()));
    let consoles = [path(&console.slave).expect("its name"), path(&beside.slave).expect("its name")];
    let (sender, lines) = mpsc::channel();
    let run = |argv: &[&str]| {
        let sender = sender.clone();
        let terminal =
            Terminal::open(&consoles, move |line| sender.send(line.text).expect("a test")).expect("a pty");
        let image = fixture.image(argv, r#","env":["PATH=/bin"]"#);
        let pid = workload::start(&image, &[], terminal.path()).expect("it starts");
        (terminal, pid)
    };

    let script = "test -t 0 && test -t 1 && test -t 2 && stty -echo && echo ready && \
                  printf 'name? ' && read name && echo \"hello $name\"; echo gone >&2; printf unfinished";
    let (open, pid) = run(&["sh", "-c", script]);
    let line = || lines.recv_timeout(Duration::from_secs(10)).expect("a line");
    assert_eq!((line(), line()), ("ready".into(), "name? ".into()), "a prompt comes without a line's end");
    let mut far = fs::File::from(console.master);
    far.write_all(b"mole\r").expect("somebody types");
    assert_eq!(wait_for(supervisor, pid), Ended::Exited(0));
    drop(open);
    assert_eq!([line(), line(), line()], ["hello mole", "gone", "unfinished"]);
    let mut bytes = [0; 4096];
    let len = far.read(&mut bytes).expect("the console shows something");
    let shown = String::from_utf8_lossy(&bytes[..len]).into_owned();
    assert_eq!(shown, "ready\r\nname? hello mole\r\ngone\r\nunfinished");
    let mut other = fs::File::from(beside.master);
    let len = other.read(&mut bytes).expect("the other console shows the same");
    assert_eq!(String::from_utf8_lossy(&bytes[..len]), shown);
    let restored = nix::sys::termios::tcgetattr(&console.slave).expect("a terminal");
    assert!(restored.local_flags.contains(nix::sys::termios::LocalFlags::ICANON), "the console is as it was");

    // Nobody reads the console any more: neither that nor so many lines hold the workload up.
    let count = 200_000;
    let (open, pid) = run(&["seq", &count.to_string()]);
    assert_eq!(wait_for(supervisor, pid), Ended::Exited(0));
    drop(open);
    let all: Vec<String> = lines.try_iter().collect();
    assert_eq!((all.len(), all.last().map(String::as_str)), (count, Some("200000")));

    // Ctrl-C on the console is the workload's.
    let (open, pid) = run(&["sh", "-c", "trap 'exit 9' INT; echo up; while :; do sleep 0.05; done"]);
    assert_eq!(line(), "up");
    far.write_all(b"\x03").expect("somebody types");
    assert_eq!(wait_for(supervisor, pid), Ended::Exited(9));
    drop(open);

    // So is what is typed on the other one.
    let (open, pid) = run(&["sh", "-c", "read code && exit $code"]);
    other.write_all(b"7\r").expect("somebody types");
    assert_eq!(wait_for(supervisor, pid), Ended::Exited(7));
    drop(open);
}

fn stop_all(supervisor: &Supervisor) {
    let fixture = Fixture::new();
    let image = fixture.image(&["sh", "-c", "trap '' TERM; sleep 100 & sleep 101 & echo up; wait"], "");
    workload::start(&image, &[], &fixture.terminal()).expect("it starts");
    fixture.wait_for_output("up");
    supervisor.stop_all(Duration::from_millis(300));
    assert!(kill(Pid::from_raw(-1), None).is_err(), "no other process is left");
}

#[expect(clippy::zombie_processes, reason = "the supervisor waits for it")]
fn shell(script: &str) -> Pid {
    let shell = Command::new("sh").args(["-c", script]).spawn().expect("a shell");
    Pid::from_raw(shell.id().cast_signed())
}

fn in_seconds(seconds: u64) -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(seconds))
}

fn wait_for(supervisor: &Supervisor, pid: Pid) -> Ended {
    loop {
        match supervisor.next(in_seconds(10)) {
            Happening::Ended(ended, how) if ended == pid => return how,
            Happening::Ended(..) => {}
            other => panic!("waiting for the workload: {other:?}"),
        }
    }
}

/// Asks until it is so. The patience is for a machine that is busy.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "not yet: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An image made of BusyBox, mounted as `Image::prepare` mounts one; the workload writes to a file.
struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("image");
        for sub in ["bin", "proc", "dev", "etc", "tmp"] {
            fs::create_dir_all(root.join(sub)).expect("directories");
        }
        // Not below /root, which only root may enter.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
        for applet in ["sh", "id", "sleep", "grep", "cut", "ls", "tr", "readlink", "cat", "stty", "seq"] {
            symlink("busybox", root.join("bin").join(applet)).expect("a link");
        }
        fs::write(root.join("etc/passwd"), "web:x:33:34::/var/www:/bin/sh\n").expect("passwd");
        fs::write(root.join("etc/group"), "web:x:34:\nssl:x:40:web\n").expect("group");
        let run = |args: &[&str]| {
            let status = Command::new("mount").args(args).arg(&root).status().expect("mount(8) runs");
            assert!(status.success(), "mount {args:?}");
        };
        run(&["--bind", root.to_str().expect("a plain path")]);
        let status = Command::new("mount").args(["-t", "proc", "proc"]).arg(root.join("proc")).status();
        assert!(status.expect("mount(8) runs").success());
        let null =
            Command::new("mknod").arg("-m666").arg(root.join("dev/null")).args(["c", "1", "3"]).status();
        assert!(null.expect("mknod(1) runs").success());
        fs::write(dir.path().join("terminal"), "").expect("a file");
        say!("fixture in {}", dir.path().display());
        Self { dir }
    }

    fn image(&self, argv: &[&str], more: &str) -> Image {
        let json = self.dir.path().join("image.json");
        fs::write(&json, format!(r#"{{"reference":"test","argv":{argv:?}{more}}}"#)).expect("a description");
        Image::open(&self.dir.path().join("image"), &json, None).expect("an image")
    }

    fn terminal(&self) -> std::path::PathBuf {
        // Every start writes from the beginning.
        fs::write(self.dir.path().join("terminal"), "").expect("a file");
        self.dir.path().join("terminal")
    }

    fn output(&self) -> String {
        fs::read_to_string(self.dir.path().join("terminal")).unwrap_or_default()
    }

    fn wait_for_output(&self, words: &str) {
        until(words, || self.output().contains(words));
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let root = self.dir.path().join("image");
        let unmount = |path: &Path| {
            let _ = Command::new("umount").arg("-l").arg(path).status();
        };
        unmount(&root);
    }
}
