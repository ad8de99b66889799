//! A Docker engine for one test: in a network namespace of its own, gone at the end.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use super::Engine;
use crate::config;

/// The bridge in the namespace, 10.99.0.1/24.
pub(crate) const BRIDGE: &str = "bh-test0";

/// Runs `test` with an engine and a directory. Where no engine can be started, says why on stderr
/// and returns without having tested.
pub(crate) fn with_engine(test: impl AsyncFnOnce(Engine, &Path) + Send) {
    if !geteuid().is_root() {
        return eprintln!("skipped: starting a Docker engine takes root");
    }
    if Command::new("dockerd").arg("--version").stdout(Stdio::null()).status().is_err() {
        return eprintln!("skipped: dockerd is not installed (apt: docker.io)");
    }
    // A thread of its own carries the namespace, and all that it starts inherits it.
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root can make a network namespace");
            for arguments in [
                &["link", "set", "lo", "up"][..],
                &["link", "add", BRIDGE, "type", "bridge"],
                &["address", "add", "10.99.0.1/24", "dev", BRIDGE],
                &["link", "set", BRIDGE, "up"],
            ] {
                assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
            }
            let dir = tempfile::tempdir().unwrap();
            let daemon = Daemon::start(dir.path());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let socket = Some(dir.path().join("socket"));
            let engine = Engine::new(&config::Docker { socket });
            runtime.block_on(async {
                daemon.ready(&engine, dir.path()).await;
                test(engine, dir.path()).await;
            });
        });
        if let Err(panic) = run.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

struct Daemon(Child);

impl Daemon {
    fn start(dir: &Path) -> Self {
        let log = File::create(dir.join("log")).unwrap();
        let child = Command::new("dockerd")
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
            .arg("--data-root")
            .arg(dir.join("data"))
            .arg("--exec-root")
            .arg(dir.join("exec"))
            .arg("--pidfile")
            .arg(dir.join("pid"))
            .arg("--host")
            .arg(format!("unix://{}", dir.join("socket").display()))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        Self(child.expect("dockerd starts"))
    }

    async fn ready(&self, engine: &Engine, dir: &Path) {
        let start = Instant::now();
        while let Err(error) = engine.connect().await {
            if start.elapsed() > Duration::from_secs(60) {
                let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
                panic!("dockerd did not come up: {error}\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Not SIGKILL: it has mounts and a containerd to take down.
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}
