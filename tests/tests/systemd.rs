//! An image with systemd and its own kernel: pxe-init fetches it and hands the machine over.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{self, find};
use lab::boot::{Boot, News};
use lab::engine::{self, DEMO, Engine};
use lab::machine::Spec;
use lab::needs::Needs;
use lab::process::{output, wait_for};
use lab::world::{self, World};
use serde_json::Value;

const PROGRAMS: [&str; 5] = ["ip", "qemu-system-x86_64", "dockerd", "docker", "debootstrap"];
/// Generous, because times on a shared machine are printed, not judged.
const PATIENCE: Duration = Duration::from_secs(300);

const IMAGE: &str = "debian-systemd:latest";

/// A page that shows the node's name, from what systemd was started with.
const SERVICE: &str = "\
[Unit]
Description=A page that names the node

[Service]
PassEnvironment=BRIDGEHEAD_NODE BRIDGEHEAD_DIGEST container
RuntimeDirectory=page
ExecStartPre=/bin/sh -c 'printf \"%%s\\n\" \"$BRIDGEHEAD_NODE\" \"$BRIDGEHEAD_DIGEST\" \
\"$(cat /proc/1/comm) $(hostname) $(uname -r) container=$container\" \
\"$(systemd-detect-virt --container) $(systemctl is-active systemd-udevd)\" >/run/page/index.html'
ExecStart=/bin/busybox httpd -f -h /run/page -p 80

[Install]
WantedBy=multi-user.target
";

#[test]
fn a_debian_image_with_its_own_kernel_runs_systemd() {
    world::test(Needs::of(&PROGRAMS).machine(512), |world| {
        let spec = Spec::numbered(1);
        let nodes = std::slice::from_ref(&spec);
        let engine = Engine::start(world)?;
        let tar = image(world)?;
        let config =
            appliance::demo(world, std::slice::from_ref(&spec.tap), nodes, "auto").replace(DEMO, IMAGE);
        // Short, so that the lease is renewed at half its time: nothing in the image knows of the lease.
        let config = config.replace("lease-time = \"1h\"", "lease-time = \"30s\"");
        let mut boot =
            Boot::with_image(world, nodes, &config, engine, &tar, IMAGE, |step| println!("{step}"))?;
        let images = boot.appliance.json(&["images"])?;
        let record = find(&images, &|o| o.get("reference").and_then(Value::as_str) == Some(IMAGE));
        let source = record.and_then(|record| record.get("kernel")?.get("source")?.as_str());
        ensure!(source == Some("image"), "{images}");

        boot.power_on(world, vec![spec])?;
        let mut workload = None;
        boot.watch(PATIENCE, |_, news| {
            if let News::Event(_, event, seconds) = news {
                let detail = event.detail.as_deref().unwrap_or_default();
                println!("{seconds:7.2} s  {} {} {detail}", event.stage, event.bytes.unwrap_or_default());
                if event.stage == "workload" {
                    workload = Some(detail.to_owned());
                }
            }
        })?;
        boot.failures()?;
        let said = workload.context("the page answers, and the timeline has no `workload`")?;
        ensure!(said.contains("handed over to systemd, /sbin/init"), "{said}");

        let page = lab::boot::page((boot.machines[0].address.context("it has an address")?, 80).into())?;
        println!("{page}");
        let lines: Vec<&str> = page.lines().collect();
        let release = fs::read_to_string(lab::assets().join("kernel/version"))?;
        ensure!(lines.get(2) == Some(&&*format!("systemd n1 {} container=", release.trim())), "{page}");
        ensure!(lines.get(3) == Some(&"none active"), "{page}");
        let nodes = boot.appliance.json(&["nodes"])?;
        let node = find(&nodes, &|o| o.get("name").and_then(Value::as_str) == Some("n1"));
        ensure!(node.and_then(|n| n.get("stages")?.as_u64()) == Some(2), "{node:?}");

        let first = expires(&boot)?;
        wait_for(PATIENCE, || Ok((expires(&boot)? != first).then_some(())))
            .context("the lease is renewed after the hand-over")?;
        boot.stop()
    });
}

/// When the machine's lease ends.
fn expires(boot: &Boot) -> Result<String> {
    let leases = boot.appliance.json(&["leases"])?;
    let lease =
        find(&leases, &|o| o.get("mac").and_then(Value::as_str) == Some(&boot.machines[0].machine.spec.mac));
    let expires = lease.and_then(|lease| lease.get("expires")?.as_str());
    Ok(expires.with_context(|| format!("no lease of the machine: {leases}"))?.to_owned())
}

/// What `docker save` writes for a Debian with systemd, the service, and Debian's kernel at its usual path. Afterwards
/// the engine no longer has the image.
fn image(world: &World) -> Result<String> {
    let (tree, tar) = (world.path("debian"), world.path("debian.tar"));
    fs::create_dir(&tree)?;
    let packed = lab::target().join("debian.tar");
    output(Command::new("tar").arg("-C").arg(&tree).arg("-xf").arg(&packed))
        .with_context(|| format!("{}: `cargo xtask setup` makes it", packed.display()))?;
    fs::write(tree.join("etc/systemd/system/page.service"), SERVICE)?;
    let wants = tree.join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    symlink("../page.service", wants.join("page.service"))?;
    kernel(&tree)?;
    // Dockerfiles set this for systemd; pxe-init must not pass it on.
    engine::import(&tree, IMAGE, &["CMD [\"/sbin/init\"]", "ENV container=docker"])?;
    let tar = tar.to_str().context("a path in UTF-8")?.to_owned();
    engine::docker(&["image", "save", "-o", &tar, IMAGE])?;
    engine::docker(&["image", "rm", IMAGE])?;
    Ok(tar)
}

/// Debian's kernel as its package installs it, with those modules that set-up selected.
fn kernel(tree: &Path) -> Result<()> {
    let assets = lab::assets().join("kernel");
    let release = fs::read_to_string(assets.join("version"))?;
    fs::copy(assets.join("vmlinuz"), tree.join(format!("boot/vmlinuz-{}", release.trim())))?;
    output(Command::new("cp").arg("-r").arg(assets.join("modules/lib/modules")).arg(tree.join("usr/lib")))?;
    Ok(())
}
