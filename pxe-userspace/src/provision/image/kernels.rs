//! Kernels that were added on their own: any image can boot with one of them. Each has a stage 1 of its own, built when
//! it is added. Further modules that a profile asks for go into another initrd, built when the first machine needs it.
//! Nothing is ever repacked.
//!
//! Kernel, stage 1 and modules are blobs in the images' store; `kernels.json` names them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::child::{Given, STAGE1_LEVEL};
use super::extract::ExtractError;
use super::initrd::Initrd;
use super::kernel::KernelError;
use super::kernel_files::ModuleFile;
use super::stage1::Stage1Error;
use super::store::{StoreError, Stored};
use super::tree::{Content, Inode, Kind, Tree};
use super::{AddError, Images, blocking, canonical, sent};
use crate::base::lock::Unpoisoned as _;

/// A kernel as it is stored, and as `bridgehead kernel list --json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct KernelRecord {
    pub name: String,
    /// As `uname -r` prints it.
    pub version: String,
    /// What it was added from.
    pub from: String,
    #[serde(serialize_with = "crate::base::text::micros")]
    pub added: Timestamp,
    pub kernel_blob: Stored,
    pub stage1_blob: Stored,
    /// All of its modules. `None` if it was taken from an image, which has only stage 1's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules: Option<ModulesRecord>,
    /// Bytes of memory that the kernel and stage 1 take once unpacked.
    pub memory: u64,
    pub stage1_unpacked: u64,
    /// Whether it can mount an image's SquashFS.
    pub two_stages: bool,
}

/// One blob with the contents of all modules, and one with their index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct ModulesRecord {
    pub contents: Stored,
    pub index: Stored,
}

/// The kernels, and which is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct KernelList {
    /// The kernel for images without one, in place of the stock one.
    #[serde(default)]
    pub default: Option<String>,
    pub kernels: Vec<KernelRecord>,
}

/// Where a kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NewKernel {
    /// The name in profiles; by default its version.
    #[serde(default)]
    pub name: Option<String>,
    pub source: KernelOrigin,
    /// Where it was added from, as text; by default the source itself.
    #[serde(skip)]
    pub from: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelOrigin {
    /// An image in the store, by reference.
    Image(String),
    /// A `linux-image-*.deb`, or a directory with a vmlinuz and its modules, or what [`super::pack_kernel`] wrote of one.
    Path(PathBuf),
}

#[derive(Debug, thiserror::Error)]
pub enum AddKernelError {
    #[error("there is no image {0} in the store: `bridgehead image add` brings it in first")]
    NoImage(String),
    #[error("{0:?} can't be a kernel's name: letters, digits and `.`, `_`, `+`, `~`, `-`")]
    Name(String),
    #[error("{path} has no kernel: looked for vmlinuz and vmlinuz-VERSION there and in boot/")]
    NoKernel { path: PathBuf },
    #[error(
        "{path} has modules of {found}, and none of its kernel's version {version}: put those of the same build there, \
         below lib/modules/{version}"
    )]
    OtherModules { path: PathBuf, version: String, found: String },
    #[error(
        "{path} has no modules.dep, without which no module is found: `depmod -b DIR {version}` makes it"
    )]
    NoIndex { path: PathBuf, version: String },
    #[error("{path} is neither a Debian package nor a tar archive of a kernel's directory: {source}")]
    NeitherNor { path: PathBuf, source: ExtractError },
    #[error("{path} is no Debian package: it has no data.tar")]
    NotAPackage { path: PathBuf },
    #[error("{path} is damaged: {source}")]
    Damaged { path: PathBuf, source: ExtractError },
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Stage1(#[from] Stage1Error),
    #[error(transparent)]
    Build(#[from] AddError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("working in the state directory: {0}")]
    Work(#[from] io::Error),
}

/// Why the modules that a profile names can't be provided.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ModuleError {
    #[error("kernel {kernel} has no module {module}")]
    NoSuchModule { kernel: String, module: String },
    #[error(
        "kernel {kernel} was taken from an image, and only stage 1's modules are kept of it: add it from its .deb or directory"
    )]
    NotKept { kernel: String },
    #[error("reading the modules of kernel {kernel}: {cause}")]
    Read { kernel: String, cause: String },
}

/// An initrd with a profile's modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleSet {
    pub blob: Stored,
    pub unpacked: u64,
}

/// Module sets that were built, by kernel and modules.
pub(super) type ModuleSets = BTreeMap<(String, Vec<String>), ModuleSet>;

impl Images {
    /// Adds a kernel, and replaces one with the same name.
    pub async fn add_kernel(&self, new: NewKernel) -> Result<KernelRecord, AddKernelError> {
        let _adding = self.0.adding.lock().await;
        let images = self.clone();
        blocking(move || {
            let mut record = match &new.source {
                KernelOrigin::Image(reference) => images.kernel_of_image(reference)?,
                KernelOrigin::Path(path) => images.kernel_at(path)?,
            };
            if let Some(name) = new.name {
                record.name = name;
            }
            if let Some(from) = new.from {
                record.from = from;
            }
            let allowed = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
            if record.name.is_empty() || !record.name.chars().all(allowed) {
                return Err(AddKernelError::Name(record.name));
            }
            images.change_kernels(|list| {
                list.kernels.retain(|kernel| kernel.name != record.name);
                list.kernels.push(record.clone());
                list.kernels.sort_by(|a, b| a.name.cmp(&b.name));
            })?;
            Ok(record)
        })
        .await
    }

    pub fn kernels(&self) -> KernelList {
        self.kernel_list().clone()
    }

    pub fn kernel(&self, name: &str) -> Option<KernelRecord> {
        self.kernel_list().kernels.iter().find(|kernel| kernel.name == name).cloned()
    }

    /// Makes a kernel the default; with `None`, the stock one. False if there is no such kernel.
    pub fn default_kernel(&self, name: Option<&str>) -> Result<bool, StoreError> {
        if name.is_some_and(|name| self.kernel(name).is_none()) {
            return Ok(false);
        }
        self.change_kernels(|list| list.default = name.map(str::to_owned)).map(|()| true)
    }

    /// Removes a kernel; its blobs stay until [`Images::gc`]. False if there is no such kernel.
    pub fn remove_kernel(&self, name: &str) -> Result<bool, StoreError> {
        if self.kernel(name).is_none() {
            return Ok(false);
        }
        self.change_kernels(|list| {
            list.kernels.retain(|kernel| kernel.name != name);
            list.default.take_if(|default| default == name);
        })
        .map(|()| true)
    }

    /// The initrd with these modules and their dependencies.
    pub fn module_set(&self, kernel: &KernelRecord, modules: &[String]) -> Result<ModuleSet, ModuleError> {
        let key = (kernel.stage1_blob.sha256.clone(), modules.to_vec());
        let known = self.module_sets().get(&key).cloned();
        if let Some(set) = known {
            return Ok(set);
        }
        let failed = |cause: String| ModuleError::Read { kernel: kernel.name.clone(), cause };
        let tree = self.modules_of(kernel, modules, &failed)?;
        let blob = self.pack(&tree).map_err(|error| failed(error.to_string()))?;
        let set = ModuleSet { blob, unpacked: tree.unpacked_size() };
        self.module_sets().insert(key, set.clone());
        Ok(set)
    }

    pub(super) fn kernel_list(&self) -> MutexGuard<'_, KernelList> {
        self.0.kernels.lock().unpoisoned()
    }

    fn module_sets(&self) -> MutexGuard<'_, ModuleSets> {
        self.0.module_sets.lock().unpoisoned()
    }

    /// The blobs that kernels and module sets use.
    pub(super) fn kernel_blobs(&self) -> BTreeSet<String> {
        let mut kept = BTreeSet::new();
        for kernel in &self.kernel_list().kernels {
            let modules = kernel.modules.iter().flat_map(|modules| [&modules.contents, &modules.index]);
            kept.extend(
                [&kernel.kernel_blob, &kernel.stage1_blob]
                    .into_iter()
                    .chain(modules)
                    .map(|b| b.sha256.clone()),
            );
        }
        let sets = self.module_sets();
        kept.extend(sets.values().map(|set| set.blob.sha256.clone()));
        kept
    }

    fn change_kernels(&self, change: impl FnOnce(&mut KernelList)) -> Result<(), StoreError> {
        let mut list = self.kernel_list();
        let mut changed = list.clone();
        change(&mut changed);
        self.0.store.set_kernels(&changed)?;
        *list = changed;
        Ok(())
    }

    /// The kernel and stage 1 that an image was built with: nothing is repacked.
    fn kernel_of_image(&self, reference: &str) -> Result<KernelRecord, AddKernelError> {
        let image = self.get(reference).ok_or_else(|| AddKernelError::NoImage(canonical(reference)))?;
        let image = &image.record;
        Ok(KernelRecord {
            name: image.kernel.version.clone(),
            version: image.kernel.version.clone(),
            from: format!("image {}", image.reference),
            added: Timestamp::now(),
            kernel_blob: image.kernel_blob.clone(),
            stage1_blob: image.stage1_blob.clone(),
            modules: None,
            memory: image.unpacked.kernel,
            stage1_unpacked: image.unpacked.stage1,
            two_stages: image.stage2_blob.is_some(),
        })
    }

    /// The kernel in a package, in what was sent of a directory, or in a directory.
    fn kernel_at(&self, path: &Path) -> Result<KernelRecord, AddKernelError> {
        let file = sent::open_kernel(path, &self.0.store.work())
            .map_err(|source| AddError::Open { path: path.to_owned(), source })?;
        let (made, mut outputs) = self.build_kernel(path, &file)?;
        let modules = match made.modules {
            true => Some(ModulesRecord {
                contents: outputs.keep(self, Given::Modules)?,
                index: outputs.keep(self, Given::ModulesIndex)?,
            }),
            false => None,
        };
        Ok(KernelRecord {
            name: made.version.clone(),
            version: made.version,
            from: path.display().to_string(),
            added: Timestamp::now(),
            kernel_blob: outputs.keep(self, Given::Kernel)?,
            stage1_blob: outputs.keep(self, Given::Stage1)?,
            modules,
            memory: made.memory,
            stage1_unpacked: made.stage1_unpacked,
            two_stages: made.two_stages,
        })
    }

    fn pack(&self, tree: &Tree) -> Result<Stored, AddError> {
        Ok(self.0.store.put(|out| {
            let mut initrd = Initrd::new(out, STAGE1_LEVEL)?;
            initrd.tree("", tree)?;
            initrd.finish().map(drop)
        })?)
    }

    /// A tree with the modules that `wanted` names and their dependencies, at the paths where a node looks for them.
    fn modules_of(
        &self,
        kernel: &KernelRecord,
        wanted: &[String],
        failed: &dyn Fn(String) -> ModuleError,
    ) -> Result<Tree, ModuleError> {
        let record = kernel.modules.as_ref().ok_or(ModuleError::NotKept { kernel: kernel.name.clone() })?;
        let store = &self.0.store;
        let index = store.read(&record.index).map_err(|error| failed(error.to_string()))?;
        let index: Vec<ModuleFile> =
            serde_json::from_slice(&index).map_err(|error| failed(error.to_string()))?;
        let contents = store.file(&record.contents).map_err(|error| failed(error.to_string()))?;
        let contents = Arc::new(contents);
        let content = |path: &str| {
            let file = index.iter().find(|file| file.path == path)?;
            Content::of_file(contents.clone(), file.offset, file.len).ok()
        };
        let dependencies = content("modules.dep").ok_or_else(|| failed("there is no modules.dep".into()))?;
        let dependencies = dependencies.read().map_err(|error| failed(error.to_string()))?;
        let dependencies = String::from_utf8_lossy(&dependencies);
        let builtin = content("modules.builtin").and_then(|builtin| builtin.read().ok()).unwrap_or_default();
        let builtin = String::from_utf8_lossy(&builtin);
        let mut tree = Tree::new();
        for module in wanted {
            let line = dependencies
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(file, _)| is(file, module));
            let Some((file, needs)) = line else {
                if builtin.lines().any(|file| is(file, module)) {
                    continue;
                }
                let (kernel, module) = (kernel.name.clone(), module.clone());
                return Err(ModuleError::NoSuchModule { kernel, module });
            };
            for file in std::iter::once(file).chain(needs.split_whitespace()) {
                let content =
                    content(file).ok_or_else(|| failed(format!("{file} is named, and not there")))?;
                let path = format!("lib/modules/{}/{file}", kernel.version);
                let (directories, name) = path.rsplit_once('/').expect("there is one in it");
                let mut at = Tree::ROOT;
                for part in directories.split('/') {
                    at = tree.insert(at, part.as_bytes(), Inode::directory(0o755), 0);
                }
                tree.insert(at, name.as_bytes(), Inode::new(0o644, Kind::File(content)), 0);
            }
        }
        Ok(tree)
    }
}

/// Whether the file belongs to the module: `-` and `_` are equivalent in its name.
fn is(file: &str, module: &str) -> bool {
    let name = file.trim().rsplit('/').next().and_then(|name| name.split(".ko").next()).unwrap_or_default();
    name.replace('-', "_") == module.replace('-', "_")
}

/// File names of kernels.
pub(super) fn is_kernel(name: &str) -> bool {
    name == "vmlinuz" || name == "bzImage" || name.starts_with("vmlinuz-")
}

/// Where a directory or package may have its modules.
pub(super) const MODULES: [&str; 4] = ["lib/modules", "usr/lib/modules", "modules/lib/modules", "modules"];

#[cfg(test)]
#[path = "kernels_tests.rs"]
mod tests;
