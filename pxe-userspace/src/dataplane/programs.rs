//! The programs of both hooks. Each is handed to the kernel by itself: what the verifier of some kernel refuses
//! costs no more than it has to, and is told in the verifier's own words.

use std::io;

use aya::Ebpf;
use aya::maps::{MapData, ProgramArray};
use aya::programs::{Program, ProgramError, ProgramFd, SchedClassifier, Xdp};
use pxe_common::map::{Part, name};
use pxe_common::verdict::Hook;
use serde::{Deserialize, Serialize};

use crate::config::FastPath;
use crate::text::chain;

/// Lines that are kept of what a verifier said.
const LAST_LINES: usize = 12;

/// What this kernel gives the fast path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KernelStatus {
    /// Its release, as of `uname -r`.
    pub kernel: String,
    pub programs: Vec<ProgramStatus>,
}

/// A kernel program, and whether the kernel took it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ProgramStatus {
    pub name: String,
    pub state: ProgramState,
    /// What the verifier followed, of the million that it follows at most. Told by Linux 5.16 and later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions: Option<u32>,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The verifier's last lines, when it was refused.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub verifier: Vec<String>,
}

/// How far a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProgramState {
    Loaded,
    Refused,
    /// `[network] fast-path` does not ask for its hook.
    NotNeeded,
}

/// Why a hook can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error(
        "the embedded object has no program {0}: it was built from other sources; run `cargo xtask build`"
    )]
    Missing(&'static str),
    #[error("{0} was not loaded: [network] fast-path does not ask for its hook")]
    NotNeeded(&'static str),
    #[error("the kernel refused {name}: {reason}")]
    Refused { name: &'static str, reason: String },
    #[error("the kernel refused both of its parts: {0}; {1}")]
    NoParts(String, String),
}

pub(super) struct Programs {
    ebpf: Ebpf,
    hooks: [Hooked; 2],
}

/// A hook's programs.
struct Hooked {
    /// What the entry jumps to. Held, because a map of programs is emptied when nobody holds it.
    _jumps: ProgramArray<MapData>,
    /// How they fared; `None` where the hook is not wanted.
    tried: Option<Tried>,
}

struct Tried {
    entry: Result<(), Refused>,
    parts: Vec<(Part, Result<(), Refused>)>,
}

/// The kernel's words on a program that it did not take.
#[derive(Clone, Debug)]
struct Refused {
    reason: String,
    verifier: Vec<String>,
}

impl Programs {
    /// Hands the kernel what `wanted` may need. `jumps` are the maps of XDP's and tc's parts.
    pub(super) fn load(mut ebpf: Ebpf, jumps: [ProgramArray<MapData>; 2], wanted: FastPath) -> Self {
        let mut hooks = Hook::ALL.into_iter().zip(jumps).map(|(hook, mut jumps)| {
            let needed = match (wanted, hook) {
                (FastPath::Off, _) | (FastPath::Tc, Hook::Xdp) => false,
                // tc also takes the place of an XDP that must not run: under a ceiling, while a trace runs.
                (FastPath::Auto | FastPath::Xdp, _) | (FastPath::Tc, Hook::Tc) => true,
            };
            let tried = needed.then(|| try_all(&mut ebpf, hook, &mut jumps));
            Hooked { _jumps: jumps, tried }
        });
        let hooks = std::array::from_fn(|_| hooks.next().expect("there are two hooks"));
        Self { ebpf, hooks }
    }

    /// XDP's entry, ready to be attached.
    pub(super) fn xdp(&mut self) -> Result<&mut Xdp, Unusable> {
        self.entry(Hook::Xdp)
    }

    /// tc's entry, likewise.
    pub(super) fn tc(&mut self) -> Result<&mut SchedClassifier, Unusable> {
        self.entry(Hook::Tc)
    }

    fn entry<'a, P>(&'a mut self, hook: Hook) -> Result<&'a mut P, Unusable>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let name = name::entry(hook);
        let tried = self.hooks[hook as usize].tried.as_ref().ok_or(Unusable::NotNeeded(name))?;
        if let Err(Refused { reason, .. }) = &tried.entry {
            return Err(Unusable::Refused { name, reason: reason.clone() });
        }
        let refused: Vec<_> = tried.parts.iter().filter_map(|(_, part)| part.as_ref().err()).collect();
        if let [one, other] = refused.as_slice() {
            return Err(Unusable::NoParts(one.reason.clone(), other.reason.clone()));
        }
        let program = self.ebpf.program_mut(name).ok_or(Unusable::Missing(name))?;
        program.try_into().map_err(|_| Unusable::Missing(name))
    }

    /// Every program, and how it fared.
    pub(super) fn status(&self) -> KernelStatus {
        let programs = Hook::ALL.into_iter().flat_map(|hook| {
            let tried = self.hooks[hook as usize].tried.as_ref();
            let entry = (name::entry(hook), tried.map(|tried| &tried.entry));
            let part = move |part| {
                let tried = tried.and_then(|tried| tried.parts.iter().find(|(p, _)| *p == part));
                (name::part(hook, part), tried.map(|(_, result)| result))
            };
            std::iter::once(entry).chain(Part::ALL.map(part))
        });
        KernelStatus {
            kernel: kernel_release(),
            programs: programs.map(|(name, result)| self.program_status(name, result)).collect(),
        }
    }

    fn program_status(&self, name: &'static str, result: Option<&Result<(), Refused>>) -> ProgramStatus {
        let (state, refused) = match result {
            None => (ProgramState::NotNeeded, None),
            Some(Ok(())) => (ProgramState::Loaded, None),
            Some(Err(refused)) => (ProgramState::Refused, Some(refused.clone())),
        };
        let info = self.ebpf.program(name).and_then(|program| program.info().ok());
        let (reason, verifier) =
            refused.map_or((None, Vec::new()), |Refused { reason, verifier }| (Some(reason), verifier));
        let instructions = info.and_then(|info| info.verified_instruction_count());
        ProgramStatus { name: name.into(), state, instructions, reason, verifier }
    }

    /// The object, whose other maps are for whoever needs them.
    pub(super) fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    #[cfg(test)]
    pub(super) fn ebpf(&self) -> &Ebpf {
        &self.ebpf
    }
}

/// The entry first: without it the parts are of no use.
fn try_all(ebpf: &mut Ebpf, hook: Hook, jumps: &mut ProgramArray<MapData>) -> Tried {
    let entry = load(ebpf, name::entry(hook)).map(drop);
    let wanted = if entry.is_ok() { &Part::ALL[..] } else { &[] };
    let parts: Vec<_> = wanted.iter().map(|part| (*part, try_part(ebpf, hook, *part, jumps))).collect();
    log(name::entry(hook), &entry);
    parts.iter().for_each(|(part, result)| log(name::part(hook, *part), result));
    Tried { entry, parts }
}

fn log(program: &str, result: &Result<(), Refused>) {
    let Err(Refused { reason, verifier }) = result else { return };
    let kernel = kernel_release();
    tracing::warn!(program, kernel, reason, "the kernel refused a program of the fast path");
    verifier.iter().for_each(|line| tracing::warn!(program, "verifier: {line}"));
}

fn try_part(
    ebpf: &mut Ebpf,
    hook: Hook,
    part: Part,
    jumps: &mut ProgramArray<MapData>,
) -> Result<(), Refused> {
    let loaded = load(ebpf, name::part(hook, part));
    let entered = match &loaded {
        Ok(program) => jumps.set(part as u32, program, 0),
        // In a pinned map may be what a killed daemon ran. Most often there is nothing.
        Err(_) => jumps.clear_index(&(part as u32)).or(Ok(())),
    };
    loaded?;
    entered.map_err(|error| Refused::because(format!("it can't be jumped to: {}", chain(&error))))
}

fn load<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a ProgramFd, Refused> {
    let program =
        ebpf.program_mut(name).ok_or_else(|| Refused::because(Unusable::Missing(name).to_string()))?;
    let loaded = match program {
        Program::Xdp(program) => program.load().and_then(|()| program.fd()),
        Program::SchedClassifier(program) => program.load().and_then(|()| program.fd()),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    loaded.map_err(Refused::from)
}

impl Refused {
    fn because(reason: String) -> Self {
        Self { reason, verifier: Vec::new() }
    }
}

impl From<ProgramError> for Refused {
    fn from(error: ProgramError) -> Self {
        let ProgramError::LoadError { io_error, verifier_log } = &error else {
            return Self::because(chain(&error));
        };
        let log = verifier_log.to_string();
        let lines: Vec<&str> = log.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        // The complaint is the last line before the sums.
        let complaint = lines.iter().rfind(|line| !is_sum(line));
        let reason = match complaint {
            Some(complaint) => (*complaint).to_owned(),
            None if io_error.kind() == io::ErrorKind::PermissionDenied => {
                format!("{io_error} (CAP_BPF and CAP_NET_ADMIN are needed)")
            }
            None => io_error.to_string(),
        };
        let last = lines.len().saturating_sub(LAST_LINES);
        Self { reason, verifier: lines[last..].iter().map(|line| (*line).to_owned()).collect() }
    }
}

/// What the verifier adds at the end, whatever came before (`print_verification_stats` in its source).
fn is_sum(line: &str) -> bool {
    ["processed ", "verification time ", "stack depth "].iter().any(|sum| line.starts_with(sum))
}

fn kernel_release() -> String {
    let name = nix::sys::utsname::uname();
    name.map_or_else(|_| "unknown".into(), |name| name.release().to_string_lossy().into_owned())
}
