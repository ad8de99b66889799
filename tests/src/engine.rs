//! A Docker engine of the lab's own, and the demo image, which is made here: no registry is needed.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::process::{PATIENCE, Process, output, wait_for};
use crate::world::World;

/// The demo image's reference.
pub const DEMO: &str = "hello-metal:latest";

/// The demo image's program: it serves a page that names the node, from the environment that pxe-init set.
const DEMO_START: &str = r#"#!/bin/sh
set -e
mkdir -p /www
printf '%s\n' "$BRIDGEHEAD_NODE" "$BRIDGEHEAD_DIGEST" "$BRIDGEHEAD_ADDRESS" > /www/index.html
exec /bin/busybox httpd -f -h /www -p 80
"#;

/// A running engine, at Docker's default socket: /run is the world's own.
pub struct Engine {
    dockerd: Process,
}

impl Engine {
    /// Starts the engine and waits until its socket answers.
    pub fn start(world: &World) -> Result<Self> {
        let mut command = Command::new("dockerd");
        command.arg("--data-root").arg(world.path("docker"));
        // The bridge and its rules belong to the appliance.
        command.args(["--bridge=none", "--iptables=false", "--ip6tables=false"]);
        command.arg(format!("--cgroup-parent=/{}", world.cgroup()));
        let mut dockerd = Process::start(&mut command, &world.path("dockerd.log"))?;
        wait_for(PATIENCE, || {
            dockerd.ensure_running()?;
            Ok(UnixStream::connect("/run/docker.sock").ok())
        })
        .context("the engine's socket")?;
        Ok(Self { dockerd })
    }

    /// Makes the demo image, [`DEMO`].
    pub fn make_demo_image(&self, world: &World) -> Result<()> {
        self.make_heavy_demo_image(world, 0)
    }

    /// The same with this many random bytes in it.
    pub fn make_heavy_demo_image(&self, world: &World, ballast: u64) -> Result<()> {
        self.make_image(world, DEMO, DEMO_START, ballast)
    }

    /// Makes an image of BusyBox, a script that it runs, and random bytes.
    pub fn make_image(&self, world: &World, reference: &str, start: &str, ballast: u64) -> Result<()> {
        let root = world.path(reference.replace([':', '/'], "-"));
        fs::create_dir_all(root.join("bin"))?;
        let busybox = crate::assets().join("busybox");
        let busybox = if busybox.is_file() { busybox } else { "/bin/busybox".into() };
        fs::copy(&busybox, root.join("bin/busybox"))
            .with_context(|| format!("{}: is busybox-static installed?", busybox.display()))?;
        for applet in ["sh", "mkdir"] {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        fs::write(root.join("start"), start)?;
        fs::set_permissions(root.join("start"), fs::Permissions::from_mode(0o755))?;
        if ballast > 0 {
            let mut random = fs::File::open("/dev/urandom")?.take(ballast);
            std::io::copy(&mut random, &mut fs::File::create(root.join("ballast"))?)?;
        }
        import(&root, reference, &["ENTRYPOINT [\"/start\"]"])
    }

    /// Ends the engine, and its containers without their usual grace period.
    pub fn stop(mut self) -> Result<()> {
        for container in docker(&["container", "ls", "--all", "--quiet"])?.lines() {
            docker(&["container", "rm", "--force", container])?;
        }
        self.dockerd.terminate(PATIENCE)?;
        Ok(())
    }
}

/// `docker import` of a directory.
pub fn import(root: &Path, reference: &str, changes: &[&str]) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(root).args(["--owner=0", "--group=0", "--numeric-owner", "--sort=name", "--mtime=@0"]);
    let mut tar = tar.args(["-c", "."]).stdout(Stdio::piped()).spawn().context("starting tar")?;
    let mut import = Command::new("docker");
    import.arg("import");
    for change in changes {
        import.args(["--change", change]);
    }
    import.args(["-", reference]).stdin(tar.stdout.take().expect("stdout is piped"));
    let result = import.output().context("starting docker: is docker.io installed?")?;
    ensure!(tar.wait()?.success(), "tar of {} failed", root.display());
    ensure!(result.status.success(), "docker import: {}", String::from_utf8_lossy(&result.stderr));
    Ok(())
}

/// Runs `docker` and returns its output.
pub fn docker(args: &[&str]) -> Result<String> {
    output(Command::new("docker").args(args))
}
