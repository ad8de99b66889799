//! A node of an earlier version boots from the present daemon in two stages, and reports to it: its ticket, session,
//! reports, console and image follow the older contract.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::appliance;
use lab::boot::{Boot, News};
use lab::machine::Spec;
use lab::needs::Needs;
use lab::process::{output, wait_for};
use lab::world::{self, World};

const PROGRAMS: [&str; 5] = ["ip", "qemu-system-x86_64", "dockerd", "docker", "xz"];
/// Generous, because times on a shared machine are printed, not judged.
const PATIENCE: Duration = Duration::from_secs(300);

#[test]
fn nodes_of_earlier_versions_boot_and_report() {
    world::test(Needs::of(&PROGRAMS).machine(512), |world| {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("nodes");
        let mut nodes = fs::read_dir(&kept)?.map(|e| Ok(e?.path())).collect::<Result<Vec<PathBuf>>>()?;
        nodes.retain(|path| path.extension().is_some_and(|extension| extension == "xz"));
        nodes.sort();
        ensure!(!nodes.is_empty(), "there are none in {}", kept.display());
        for (number, node) in (1..).zip(&nodes) {
            boots(world, number, node).with_context(|| node.display().to_string())?;
        }
        Ok(())
    });
}

fn boots(world: &World, number: usize, node: &Path) -> Result<()> {
    // The assets, with an older node in them.
    let assets = world.path(format!("assets-{number}"));
    output(Command::new("cp").arg("-r").arg(lab::assets()).arg(&assets))?;
    let init = assets.join("pxe-init");
    let unpacked = Command::new("xz").args(["-dc"]).arg(node).stdout(File::create(&init)?).status()?;
    ensure!(unpacked.success(), "xz: {unpacked}");
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    ensure!(fs::read(&init)? != fs::read(lab::assets().join("pxe-init"))?, "it is the present one");

    let spec = Spec::numbered(1);
    let specs = std::slice::from_ref(&spec);
    let config = appliance::demo(world, std::slice::from_ref(&spec.tap), specs, "auto")
        .replace("cmdline =", "stages  = \"two\"\ncmdline =");
    let config = format!("{config}\n[boot]\nassets = {assets:?}\n");
    let mut boot = Boot::prepare(world, specs, &config, 0, |step| println!("{step}"))?;
    boot.power_on(world, vec![spec])?;
    let mut stages = Vec::new();
    boot.watch(PATIENCE, |_, news| {
        if let News::Event(_, event, seconds) = news {
            println!("{seconds:7.2} s  {} {}", event.stage, event.detail.as_deref().unwrap_or_default());
            stages.push(event.stage.clone());
        }
    })?;
    boot.failures()?;
    for stage in ["stage1", "image", "workload"] {
        ensure!(stages.iter().any(|reported| reported == stage), "no {stage}: {stages:?}");
    }
    // It sends its console through its session.
    wait_for(PATIENCE, || {
        let console = boot.appliance.run(&["console", "n1"])?;
        Ok(console.contains("bridgehead").then_some(()))
    })
    .context("its console")?;
    boot.stop()
}
