//! Docker decides what an image contains: an engine and the appliance load a corpus of odd images, and every file and
//! every field is compared. docs/images.md lists the remaining differences.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use lab::appliance::{Appliance, address_only};
use lab::engine::{Engine, docker};
use lab::images::{self, Case, Docker};
use lab::needs::Needs;
use lab::process::output;
use lab::world::{self, World};
use serde_json::{Value, json};

const PROGRAMS: [&str; 5] = ["dockerd", "docker", "unsquashfs", "getfattr", "ip"];

/// The time of all directories that are listed in the corpus' layers.
const LISTED: i64 = 1_700_000_000;

#[test]
fn odd_images_are_what_docker_takes_them_for() {
    world::test(Needs::of(&PROGRAMS).processors(1), |world| {
        let corpus = images::all();
        ensure!(corpus.len() >= 40, "{} images are no corpus", corpus.len());
        let engine = Engine::start(world)?;
        let assets = world.path("assets");
        images::assets(&assets)?;
        let config = address_only(world, &[], "off") + &format!("\n[boot]\nassets = {assets:?}\n");
        let appliance = Appliance::start(world, &config)?;
        let mut wrong = Vec::new();
        for case in &corpus {
            if let Some(program) = case.packed.program().filter(|program| !lab::installed(program)) {
                println!("skipped: {}: {program} is not installed", case.name);
                continue;
            }
            if let Err(error) = compare(world, &appliance, case) {
                wrong.push(format!("{}: {error:#}", case.name));
            }
        }
        appliance.stop()?;
        engine.stop()?;
        ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), corpus.len(), wrong.join("\n"));
        Ok(())
    });
}

fn compare(world: &World, appliance: &Appliance, case: &Case) -> Result<()> {
    let archive = world.path(format!("{}.tar", case.name));
    case.save(&archive)?;
    let path = archive.to_str().context("a path in ASCII")?;
    let taken = appliance.run(&["image", "add", path]).context("the appliance");
    let loaded = docker(&["load", "--quiet", "--input", path]).context("Docker");
    fs::remove_file(&archive)?;
    taken?;
    let (paths, why) = match (&case.docker, loaded) {
        (Docker::Refuses(_), Err(_)) => return Ok(()),
        (Docker::Refuses(_), Ok(_)) => bail!("Docker takes it meanwhile"),
        (_, Err(error)) => return Err(error),
        (Docker::Same, Ok(_)) => (&[][..], ""),
        (Docker::Differs(paths, why), Ok(_)) => (*paths, *why),
    };
    let reference = case.reference();
    let record = record(appliance, &reference)?;
    let inspected: Value = serde_json::from_str(&docker(&["image", "inspect", &reference])?)?;
    let ours = tree(&our_root(world, case, &record)?)?;
    let theirs = tree(&their_root(world, case, &inspected[0])?)?;
    let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let mut differ = BTreeSet::new();
    let mut said = Vec::new();
    for name in names {
        let (our, their) = (ours.get(name), theirs.get(name));
        if our.zip(their).is_none_or(|(our, their)| !our.is_like(their)) {
            differ.insert(name.as_str());
            said.push(format!("\n  {name:?}: here {our:?}\n  Docker {their:?}"));
        }
    }
    let expected: BTreeSet<&str> = paths.iter().copied().collect();
    ensure!(differ == expected, "expected to differ: {expected:?} {why}{}", said.concat());
    same_configuration(&record, &inspected[0]["Config"])
}

/// What one path refers to.
#[derive(Debug, PartialEq)]
struct File {
    /// Type and permissions, as in `st_mode`.
    mode: u32,
    owner: (u32, u32),
    device: u64,
    /// A link's target, or a file's contents.
    bytes: Vec<u8>,
    /// The first path of the same inode.
    inode: String,
    attributes: BTreeMap<String, String>,
    mtime: i64,
}

impl File {
    /// Docker sets a directory's time when it loads a layer that has something in the directory but does not list it.
    fn is_like(&self, docker: &Self) -> bool {
        let is_directory = self.mode & 0o170_000 == 0o040_000;
        let mtime = if is_directory && docker.mtime != LISTED { docker.mtime } else { self.mtime };
        (self.mode, self.owner, self.device, &self.bytes, &self.inode, &self.attributes, mtime)
            == (
                docker.mode,
                docker.owner,
                docker.device,
                &docker.bytes,
                &docker.inode,
                &docker.attributes,
                docker.mtime,
            )
    }
}

fn tree(root: &Path) -> Result<BTreeMap<String, File>> {
    let attributes = attributes(root)?;
    let mut all = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut ahead = vec![root.to_owned()];
    while let Some(path) = ahead.pop() {
        let stat = fs::symlink_metadata(&path)?;
        let name = path.strip_prefix(root)?.as_os_str().as_bytes().escape_ascii().to_string();
        let kind = stat.file_type();
        if kind.is_dir() {
            let mut below: Vec<PathBuf> =
                fs::read_dir(&path)?.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
            // Sorted, so that the first path of an inode is the same on both sides.
            below.sort_unstable_by(|a, b| b.cmp(a));
            ahead.extend(below);
        }
        let bytes = match () {
            () if kind.is_symlink() => fs::read_link(&path)?.into_os_string().as_bytes().to_vec(),
            () if kind.is_file() => fs::read(&path)?,
            () => Vec::new(),
        };
        let inode = inodes.entry(stat.ino()).or_insert_with(|| name.clone()).clone();
        let device = if kind.is_char_device() || kind.is_block_device() { stat.rdev() } else { 0 };
        let file = File {
            mode: stat.mode(),
            owner: (stat.uid(), stat.gid()),
            device,
            bytes,
            inode,
            attributes: attributes.get(&name).cloned().unwrap_or_default(),
            mtime: if name.is_empty() { 0 } else { stat.mtime() },
        };
        all.insert(name, file);
    }
    Ok(all)
}

/// The extended attributes of all files, by their paths in [`tree`]'s form.
fn attributes(root: &Path) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let mut getfattr = Command::new("getfattr");
    getfattr.args(["--recursive", "--physical", "--no-dereference", "--dump", "--match=-", "--encoding=hex"]);
    let text = output(getfattr.arg("--absolute-names").arg(root))?;
    let prefix = format!("# file: {}", root.display());
    let mut all: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines() {
        if let Some(path) = line.strip_prefix(&prefix) {
            path.trim_start_matches('/').clone_into(&mut name);
        } else if let Some((key, value)) = line.split_once('=')
            // overlayfs's own attributes, which are visible in a single layer.
            && !key.starts_with("trusted.overlay.")
        {
            all.entry(name.clone()).or_default().insert(key.to_owned(), value.to_owned());
        }
    }
    Ok(all)
}

fn record(appliance: &Appliance, reference: &str) -> Result<Value> {
    let images = appliance.json(&["images"])?;
    let found = images.as_array().and_then(|all| all.iter().find(|image| image["reference"] == reference));
    found.cloned().with_context(|| format!("{reference} is not in {images}"))
}

/// The image's files, from the SquashFS that nodes mount.
fn our_root(world: &World, case: &Case, record: &Value) -> Result<PathBuf> {
    let sha256 =
        record["stage2-blob"]["sha256"].as_str().context("the stock kernel mounts a second stage")?;
    let into = world.path(format!("{}.ours", case.name));
    let mut unsquashfs = Command::new("unsquashfs");
    unsquashfs.args(["-quiet", "-no-progress", "-xattrs", "-dest"]).arg(&into);
    output(unsquashfs.arg(world.path("state/images/blobs").join(sha256)))?;
    Ok(into.join("image"))
}

/// The image's files, as in a container.
fn their_root(world: &World, case: &Case, inspected: &Value) -> Result<PathBuf> {
    let data = &inspected["GraphDriver"]["Data"];
    let upper =
        data["UpperDir"].as_str().with_context(|| format!("not overlay2: {}", inspected["GraphDriver"]))?;
    let Some(lower) = data["LowerDir"].as_str() else { return Ok(upper.into()) };
    let at = world.path(format!("{}.docker", case.name));
    fs::create_dir(&at)?;
    let options = format!("ro,lowerdir={upper}:{lower}");
    output(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&at))?;
    Ok(at)
}

fn same_configuration(record: &Value, docker: &Value) -> Result<()> {
    let ours = &record["config"];
    let check = match &ours["health-check"] {
        Value::Null => Value::Null,
        check => json!({
            "Test": (std::iter::once(json!("CMD")).chain(check["argv"].as_array().cloned().unwrap_or_default()).collect::<Vec<_>>()),
            "Interval": nanoseconds(&check["interval"]), "Timeout": nanoseconds(&check["timeout"]),
            "StartPeriod": nanoseconds(&check["start-period"]), "Retries": check["retries"],
        }),
    };
    for (field, our) in [
        ("Entrypoint", ours["entrypoint"].clone()),
        ("Cmd", ours["cmd"].clone()),
        ("Env", ours["env"].clone()),
        ("WorkingDir", ours["working-dir"].clone()),
        ("User", ours["user"].clone()),
        ("StopSignal", ours["stop-signal"].clone()),
        ("Healthcheck", check),
    ] {
        // A missing value equals an empty one.
        let empty = |value: &Value| value.is_null() || *value == json!([]) || *value == json!("");
        let their = &docker[field];
        ensure!(*their == our || (empty(their) && empty(&our)), "{field}: here {our}, Docker {their}");
    }
    Ok(())
}

fn nanoseconds(milliseconds: &Value) -> Value {
    json!(milliseconds.as_u64().unwrap_or_default() * 1_000_000)
}
