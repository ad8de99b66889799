//! The kernels of the appliance's virtual machines: those of other Debian releases, unpacked into
//! `target/kernels/SUITE` and not installed. apt has its own sources, lists and cache there, so that the machine's own
//! apt is not affected.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use ::lab::guest::Suite;

use super::apt;
use super::pieces::{Need, program};
use crate::shell::check;

/// The package that depends on a release's current kernel.
const NEWEST: &str = "linux-image-amd64";

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Debian's servers, if this machine's own sources name no mirror.
const DEBIAN: [&str; 2] = ["http://deb.debian.org/debian", "http://deb.debian.org/debian-security"];

/// Parts of a kernel's modules that no machine of the lab needs: two thirds of them.
const LEFT_OUT: [&str; 8] = [
    "drivers/gpu",
    "drivers/infiniband",
    "drivers/media",
    "drivers/net/wireless",
    "drivers/staging",
    "drivers/iio",
    "drivers/usb",
    "sound",
];

/// The kernels that a purpose needs.
fn suites(needs: &[Need]) -> Vec<Suite> {
    let wanted = |suite: &Suite| match suite {
        Suite::Bookworm | Suite::Trixie => needs.contains(&Need::Test),
        Suite::Backports => needs.contains(&Need::Kernels),
    };
    Suite::ALL.into_iter().filter(wanted).collect()
}

/// Fetches missing kernels. Returns a line for each that is not available.
pub(super) fn ensure(needs: &[Need]) -> anyhow::Result<Vec<String>> {
    let missing: Vec<Suite> = suites(needs).into_iter().filter(|s| !s.image().is_file()).collect();
    let mut problems = Vec::new();
    for suite in missing {
        let what = format!("the kernel of {}, for the appliance's virtual machines", suite.words());
        if let Some(obstacle) = obstacle() {
            problems.push(format!("{what}: {obstacle}"));
            continue;
        }
        eprintln!("set-up: fetching {what}");
        fetch(suite).with_context(|| what)?;
    }
    Ok(problems)
}

fn obstacle() -> Option<String> {
    if program("dpkg-deb").is_none() || program("depmod").is_none() {
        return Some("dpkg-deb and depmod unpack it, and are not here".into());
    }
    if !Path::new(KEYRING).exists() {
        return Some(format!("{KEYRING} is missing (debian-archive-keyring)"));
    }
    apt::obstacle().map(str::to_owned)
}

fn fetch(suite: Suite) -> anyhow::Result<()> {
    let home = suite.dir();
    let _ = fs::remove_dir_all(&home);
    let own = Apt::new(suite, home.join("apt"))?;
    own.run("apt-get", &["-qq", "update"])?;
    let package = own.kernel()?;
    own.run("apt-get", &["-qq", "download", &package])?;
    let archive = only_entry(&own.dir.join("archive"))?;
    let tree = home.join("tree");
    check(Command::new("dpkg-deb").arg("--extract").args([&archive, &tree]))?;
    keep(&tree, &home)?;
    fs::remove_dir_all(&tree)?;
    Ok(fs::remove_dir_all(&own.dir)?)
}

/// Moves image and modules to where tests look for them. The image comes last, as the proof that all is there.
fn keep(tree: &Path, home: &Path) -> anyhow::Result<()> {
    // Below /usr since Debian 13.
    let lib = [tree.join("usr/lib/modules"), tree.join("lib/modules")];
    let modules = lib.iter().find(|p| p.is_dir()).context("the package has no modules")?;
    let modules = only_entry(modules)?;
    let version = modules.file_name().and_then(|n| n.to_str()).context("a kernel's version")?.to_owned();
    for part in LEFT_OUT {
        let _ = fs::remove_dir_all(modules.join("kernel").join(part));
    }
    let below = home.join("lib/modules");
    fs::create_dir_all(&below)?;
    fs::rename(&modules, below.join(&version))?;
    check(Command::new("depmod").arg("-b").arg(home).arg(&version))?;
    fs::rename(tree.join("boot").join(format!("vmlinuz-{version}")), home.join("vmlinuz"))?;
    Ok(())
}

/// apt with a release's sources and its own directory.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn new(suite: Suite, dir: PathBuf) -> anyhow::Result<Self> {
        for below in ["lists/partial", "cache/archives/partial", "archive"] {
            fs::create_dir_all(dir.join(below))?;
        }
        let [debian, security] = mirrors();
        let sources = match suite {
            Suite::Bookworm | Suite::Trixie => {
                let name = suite.name();
                vec![
                    (debian.clone(), name.to_owned()),
                    (debian, format!("{name}-updates")),
                    (security, format!("{name}-security")),
                ]
            }
            Suite::Backports => vec![(debian, suite.name().to_owned())],
        };
        let line = |(mirror, suite)| format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n");
        fs::write(dir.join("sources.list"), sources.into_iter().map(line).collect::<String>())?;
        Ok(Self { dir })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let dir = self.dir.display();
        command.args(["-o", &format!("Dir::Etc::SourceList={dir}/sources.list")]);
        command.args([
            "-o",
            "Dir::Etc::SourceParts=/dev/null",
            "-o",
            &format!("Dir::State::Lists={dir}/lists"),
        ]);
        command.args(["-o", &format!("Dir::Cache={dir}/cache"), "-o", "Acquire::Languages=none"]);
        // Hooks that other packages run after an update of the machine's own lists.
        command.args(["-o", "APT::Update::Post-Invoke-Success=", "-o", "APT::Update::Error-Mode=any"]);
        command.args(["-o", "APT::Sandbox::User=root"]).current_dir(self.dir.join("archive"));
        command
    }

    fn run(&self, program: &str, args: &[&str]) -> anyhow::Result<()> {
        check(self.command(program).args(args).stdout(Stdio::null()))
    }

    /// The package that [`NEWEST`] stands for.
    fn kernel(&self) -> anyhow::Result<String> {
        let output = self.command("apt-cache").args(["depends", NEWEST]).output().context("apt-cache")?;
        ensure!(output.status.success(), "apt-cache: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        let package = text.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
        Ok(format!("linux-image-{}", package.with_context(|| format!("{NEWEST} depends on no kernel"))?))
    }
}

/// The Debian mirrors in this machine's own sources, because it can reach them.
fn mirrors() -> [String; 2] {
    let mut known = DEBIAN.map(str::to_owned);
    let format = "$(ORIGIN) $(REPO_URI)";
    let Ok(output) = Command::new("apt-get").args(["indextargets", "--format", format]).output() else {
        return known;
    };
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if let Some(uri) = line.strip_prefix("Debian ") {
            known[usize::from(uri.contains("security"))] = uri.trim_end_matches('/').to_owned();
        }
    }
    known
}

fn only_entry(dir: &Path) -> anyhow::Result<PathBuf> {
    let entries: Vec<_> = fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    ensure!(entries.len() == 1, "{} holds {} entries, not one", dir.display(), entries.len());
    Ok(entries[0].path())
}
