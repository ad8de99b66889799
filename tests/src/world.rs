//! A world: network, mount, process, IPC and host-name namespaces with one process as their first.
//!
//! [`Lab::run`] starts a program as the first process of new namespaces, and the program calls
//! [`World::enter`] before anything else. Whatever it starts, mounts, connects or pins exists only in there, so
//! its end is the end of everything: the kernel kills the other processes with the first one, and removes links,
//! mounts and pinned programs when the last process is gone. The first process asks to be killed when its owner
//! dies, so that this holds for a SIGKILL of the owner, too.
//!
//! Only a directory below `target/lab` and empty control groups of the lab's engine can survive a killed owner. The
//! owner holds a lock on the directory; the next lab removes directories without a holder.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::needs::Needs;

/// Set for the first process of a world: the lab's directory.
const DIR: &str = "BRIDGEHEAD_LAB";
/// Set for the first process of a world: the process that must stay alive.
const OWNER: &str = "BRIDGEHEAD_LAB_OWNER";
/// Where labs have their directories, instead of `target/lab`.
const ROOT: &str = "BRIDGEHEAD_LABS";
/// The file in the lab's directory with the seconds of processor time that a test used.
const USED: &str = "used";
/// Control groups of a lab's containers: this and the lab's name.
const CGROUP: &str = "bridgehead-lab-";

/// A lab as its owner sees it, from outside.
pub struct Lab {
    dir: PathBuf,
    /// Locked while the lab lives.
    _lock: File,
}

/// What SIGINT, SIGTERM and SIGHUP do while a world runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum OnSignal {
    /// The owner ends the world, tidies up and returns.
    EndWorld,
    /// The default: they kill the owner, and the world with it.
    Leave,
}

/// The world, as its first process sees it.
#[derive(Clone, Debug)]
pub struct World {
    dir: PathBuf,
}

impl Lab {
    /// A new lab, after removing what killed ones left behind.
    pub fn create() -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "a lab needs root: namespaces, taps and BPF are its business"
        );
        let root = root();
        fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
        // Another lab's sweep would take a directory that is not locked yet for a killed lab's.
        let making = File::open(&root)?;
        making.lock().with_context(|| format!("locking {}", root.display()))?;
        sweep(&root)?;
        for n in 1.. {
            let dir = root.join(format!("{}-{n}", std::process::id()));
            match fs::create_dir(&dir) {
                Ok(()) => {
                    let lock = File::create(dir.join("lock"))?;
                    lock.lock().with_context(|| format!("locking {}", dir.display()))?;
                    return Ok(Self { dir, _lock: lock });
                }
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e).with_context(|| format!("creating {}", dir.display())),
            }
        }
        unreachable!("the numbers don't end")
    }

    /// Where logs and state go.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs `command` as a world's first process, until it ends.
    pub fn run(&self, command: &mut Command, on_signal: OnSignal) -> Result<ExitStatus> {
        let mut mask = SigSet::empty();
        if on_signal == OnSignal::EndWorld {
            mask.extend([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD]);
            // Before any thread is started, because threads inherit the mask, and one without it would get the signal.
            mask.thread_block()?;
        }
        command.env(DIR, &self.dir).env(OWNER, std::process::id().to_string());
        // unshare() applies to the calling thread, so it has one of its own. The thread stays until the world
        // ends, because "parent death" in set_pdeathsig means the death of the thread that forked.
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let flags = CloneFlags::CLONE_NEWNET
                    | CloneFlags::CLONE_NEWNS
                    | CloneFlags::CLONE_NEWPID
                    | CloneFlags::CLONE_NEWIPC
                    | CloneFlags::CLONE_NEWUTS;
                unshare(flags).context("unshare: new namespaces need CAP_SYS_ADMIN")?;
                let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
                fs::write(self.dir.join("pid"), child.id().to_string())?;
                if on_signal == OnSignal::Leave {
                    return Ok(child.wait()?);
                }
                let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
                loop {
                    if let Some(status) = child.try_wait()? {
                        return Ok(status);
                    }
                    let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&signals), PollFlags::POLLIN)];
                    poll(&mut fds, PollTimeout::from(1000u16))?;
                    while let Some(info) = signals.read_signal()? {
                        if info.ssi_signo != Signal::SIGCHLD as u32 {
                            // The kernel undoes all of it. Asking first would only add ways to hang.
                            child.kill()?;
                        }
                    }
                }
            });
            thread.join().expect("the world's thread does not panic")
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // BRIDGEHEAD_LAB_KEEP leaves the logs until the next lab sweeps them.
        if std::env::var_os("BRIDGEHEAD_LAB_KEEP").is_none() {
            remove(&self.dir);
        }
    }
}

impl World {
    /// The world of which this process is the first, prepared; `None` in an ordinary process.
    pub fn enter() -> Result<Option<Self>> {
        let (Some(dir), Ok(owner)) = (std::env::var_os(DIR), std::env::var(OWNER)) else { return Ok(None) };
        set_pdeathsig(Signal::SIGKILL)?;
        // The owner blocked signals for its signalfd, and a mask is inherited: programs started here would
        // never see the SIGTERM that asks them to end.
        SigSet::empty().thread_set_mask()?;
        // /proc is still the outer one. If the owner died before the line above, no signal comes any more.
        ensure!(Path::new("/proc").join(&owner).exists(), "the lab's owner, process {owner}, is gone");
        ensure!(std::process::id() == 1, "{DIR} is set, but this is not the first process of a lab");
        let world = Self { dir: dir.into() };
        world.mounts().context("mounting the lab's own file systems")?;
        nix::unistd::sethostname("bridgehead-lab")?;
        crate::net::ip(["link", "set", "lo", "up"])?;
        Ok(Some(world))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path in the lab's directory.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// The name that the lab's control groups go by.
    pub fn cgroup(&self) -> String {
        cgroup_name(&self.dir)
    }

    fn mounts(&self) -> Result<()> {
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("/ private")?;
        mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).context("/proc")?;
        // sysfs shows the network devices of the namespace that mounted it; the control groups are moved to the new one.
        let aside = self.path("cgroup");
        fs::create_dir_all(&aside)?;
        mount(Some("/sys/fs/cgroup"), &aside, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
            .context("/sys/fs/cgroup aside")?;
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).context("/sys")?;
        mount(Some(&aside), "/sys/fs/cgroup", none, MsFlags::MS_MOVE, none).context("/sys/fs/cgroup")?;
        // A new instance: pins in it are invisible to others and vanish with the mount.
        mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).context("/sys/fs/bpf")?;
        // Sockets, pid files, /run/netns; and the lease files of DHCP clients.
        for dir in ["/run", "/var/lib/dhcp", "/var/lib/dhcpcd"] {
            if Path::new(dir).is_dir() {
                mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).context(dir)?;
            }
        }
        // DHCP clients' scripts rewrite it.
        let resolv = self.path("resolv.conf");
        fs::write(&resolv, "")?;
        if Path::new("/etc/resolv.conf").is_file() {
            mount(Some(&resolv), "/etc/resolv.conf", none, MsFlags::MS_BIND, none)
                .context("/etc/resolv.conf")?;
        }
        Ok(())
    }
}

/// Runs a test in a world of its own: the test binary starts itself again as the world's first process,
/// with only this test selected, as soon as this machine has what the test needs. If that can't be done, or a program is
/// not installed, it prints the reason and returns.
pub fn test<'a, F: FnOnce(&World) -> Result<()>>(needs: impl Into<Needs<'a>>, body: F) {
    // `binary::module::name::{{closure}}`, which names the test for libtest.
    let path = std::any::type_name::<F>();
    let name = path.strip_suffix("::{{closure}}").expect("the body is a closure in the test's function");
    let name = name.split_once("::").expect("a path begins with the crate").1;

    match World::enter() {
        Ok(Some(world)) => {
            let result = body(&world);
            // Only people read it.
            let _ = fs::write(world.path(USED), format!("{:.1}", used()));
            return result.unwrap_or_else(|e| panic!("{e:#}"));
        }
        Ok(None) => {}
        Err(e) => panic!("entering the test's world: {e:#}"),
    }
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: needs root, for namespaces");
    }
    let needs = needs.into();
    if let Some(missing) = needs.missing() {
        return eprintln!("skipped: {missing} is not installed (cargo xtask setup)");
    }
    let asked = Instant::now();
    let _share = needs.take().expect("this machine can be shared");
    let waited = asked.elapsed();
    let lab = Lab::create().expect("a lab can be made");
    let output = lab.dir().join("output");
    let log = File::create(&output).expect("the lab's directory is ours");
    let mut again = Command::new(std::env::current_exe().expect("a test has a path"));
    again.args(["--exact", name, "--nocapture", "--include-ignored"]);
    again.stdout(log.try_clone().expect("descriptors")).stderr(log).process_group(0);
    let status = lab.run(&mut again, OnSignal::Leave).expect("the world runs");
    let output = fs::read_to_string(&output).unwrap_or_default();
    print!("{output}");
    let took = (asked.elapsed() - waited).as_secs_f64();
    let used = fs::read_to_string(lab.dir().join(USED)).unwrap_or_else(|_| "?".to_owned());
    println!(
        "{name}: {took:.1} s, {used} s of a processor, after {:.1} s of waiting for its share of the machine",
        waited.as_secs_f64()
    );
    assert!(status.success(), "{name} failed in its world ({status})");
    assert!(output.contains("1 passed"), "{name} was not found by the test binary itself");
}

/// Seconds of processor time of this process and of those that it has waited for.
fn used() -> f64 {
    let seconds = |who| {
        let usage = getrusage(who).expect("it only reads");
        let times = [usage.user_time(), usage.system_time()];
        times.iter().map(|t| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6).sum::<f64>()
    };
    seconds(UsageWho::RUSAGE_SELF) + seconds(UsageWho::RUSAGE_CHILDREN)
}

/// The labs that run now: their directories and first processes, newest first.
pub fn running() -> Result<Vec<(PathBuf, u32)>> {
    let mut labs = Vec::new();
    for dir in directories(&root())? {
        let held = File::open(dir.join("lock")).is_ok_and(|lock| lock.try_lock().is_err());
        if let (true, Ok(pid)) = (held, fs::read_to_string(dir.join("pid"))) {
            labs.push((fs::metadata(&dir)?.created()?, dir, pid.trim().parse()?));
        }
    }
    labs.sort_by(|a, b| b.cmp(a));
    Ok(labs.into_iter().map(|(_, dir, pid)| (dir, pid)).collect())
}

/// A command that runs inside the world whose first process is `pid`.
pub fn join(pid: u32, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--target={pid}"));
    command.args(["--net", "--mount", "--pid", "--ipc", "--uts", "--"]).arg(program);
    command
}

fn root() -> PathBuf {
    std::env::var_os(ROOT).map_or_else(|| crate::target().join("lab"), PathBuf::from)
}

/// Removes the directories that no owner holds, and their control groups.
fn sweep(root: &Path) -> Result<()> {
    for dir in directories(root)? {
        match File::open(dir.join("lock")) {
            Ok(lock) if lock.try_lock().is_err() => continue,
            Ok(_) => {}
            // Another lab is being created between mkdir and lock: only old ones are leftovers.
            Err(_)
                if fs::metadata(&dir)?.modified()?.elapsed().unwrap_or_default()
                    < Duration::from_secs(10) =>
            {
                continue;
            }
            Err(_) => {}
        }
        remove(&dir);
    }
    Ok(())
}

fn remove(dir: &Path) {
    let name = cgroup_name(dir);
    // cgroup v2 alone, or one hierarchy per controller.
    let tops = directories(Path::new("/sys/fs/cgroup")).unwrap_or_default();
    for top in std::iter::once(PathBuf::from("/sys/fs/cgroup")).chain(tops) {
        remove_cgroup(&top.join(&name));
    }
    if let Err(e) = fs::remove_dir_all(dir) {
        eprintln!("{}: {e}: left for the next lab to remove", dir.display());
    }
}

/// Control groups are removed from the leaves up, each by rmdir, because their files can't be deleted.
fn remove_cgroup(dir: &Path) {
    for child in directories(dir).unwrap_or_default() {
        remove_cgroup(&child);
    }
    // It may be missing, or still in use by a dying process: the next sweep tries again while the directory exists.
    let _ = fs::remove_dir(dir);
}

fn cgroup_name(dir: &Path) -> String {
    format!("{CGROUP}{}", dir.file_name().unwrap_or_default().display())
}

fn directories(of: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(of) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => bail!("{}: {e}", of.display()),
    };
    Ok(entries
        .filter_map(Result::ok)
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect())
}
