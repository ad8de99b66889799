//! The programs of both hooks. Each is loaded separately: when a kernel's verifier refuses one, only what that one
//! answers is lost, and the verifier's message is reported.

use std::io;

use aya::Ebpf;
use aya::maps::{MapData, ProgramArray};
use aya::programs::{Program, ProgramError, ProgramFd, SchedClassifier, Xdp};
use pxe_common::map::{Part, name};
use pxe_common::verdict::Hook;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::text::chain;
use crate::config::FastPath;

/// Lines that are kept of a verifier's log.
const LAST_LINES: usize = 12;

/// What this kernel supports of the fast path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct KernelStatus {
    /// Its release, as `uname -r` prints it.
    pub kernel: String,
    pub programs: Vec<ProgramStatus>,
}

/// A kernel program, and whether the kernel accepted it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct ProgramStatus {
    pub name: String,
    pub state: ProgramState,
    /// Instructions that the verifier processed, of at most a million. Reported by Linux 5.16 and later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions: Option<u32>,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The verifier's last lines, when it was refused.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub verifier: Vec<String>,
}

/// The state of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProgramState {
    Loaded,
    Refused,
    /// Not tried: `[network] fast-path` does not ask for its hook, or the entry that jumps to it was refused.
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
    /// The targets of XDP's and tc's entries. Held here, because the kernel empties a map of programs that nobody holds.
    _jumps: [ProgramArray<MapData>; 2],
    status: KernelStatus,
}

/// The kernel's message about a program that it refused.
#[derive(Clone, Debug)]
struct Refused {
    reason: String,
    verifier: Vec<String>,
}

impl Programs {
    /// Loads the programs that `wanted` may need. `jumps` are the maps of XDP's and tc's parts.
    pub(super) fn load(mut ebpf: Ebpf, mut jumps: [ProgramArray<MapData>; 2], wanted: FastPath) -> Self {
        let mut status = KernelStatus { kernel: kernel_release(), programs: Vec::new() };
        for (hook, jumps) in Hook::ALL.into_iter().zip(&mut jumps) {
            let needed = match (wanted, hook) {
                (FastPath::Off, _) | (FastPath::Tc, Hook::Xdp) => false,
                // tc also takes XDP's place where that must not run: under a ceiling, while a trace runs.
                (FastPath::Auto | FastPath::Xdp, _) | (FastPath::Tc, Hook::Tc) => true,
            };
            let entry = needed.then(|| load(&mut ebpf, name::entry(hook)).map(drop));
            // Without the entry the parts are useless.
            let usable = matches!(entry, Some(Ok(())));
            status.programs.push(program_status(&ebpf, name::entry(hook), entry));
            for part in Part::ALL {
                let result = usable.then(|| load_part(&mut ebpf, hook, part, jumps));
                status.programs.push(program_status(&ebpf, name::part(hook, part), result));
            }
        }
        status.programs.iter().for_each(|program| log(&status.kernel, program));
        Self { ebpf, _jumps: jumps, status }
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
        let told = |name: &'static str| {
            self.status.programs.iter().find(|told| told.name == name).ok_or(Unusable::Missing(name))
        };
        let entry = told(name)?;
        match entry.state {
            ProgramState::Loaded => {}
            ProgramState::NotNeeded => return Err(Unusable::NotNeeded(name)),
            ProgramState::Refused => return Err(Unusable::Refused { name, reason: entry.why() }),
        }
        let [one, other] = Part::ALL.map(|part| told(name::part(hook, part)));
        let (one, other) = (one?, other?);
        if [one, other].iter().all(|part| part.state == ProgramState::Refused) {
            return Err(Unusable::NoParts(one.why(), other.why()));
        }
        let program = self.ebpf.program_mut(name).ok_or(Unusable::Missing(name))?;
        program.try_into().map_err(|_| Unusable::Missing(name))
    }

    /// Every program, and whether it was accepted.
    pub(super) fn status(&self) -> &KernelStatus {
        &self.status
    }

    /// The object, from which others take their maps.
    pub(super) fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    #[cfg(test)]
    pub(super) fn ebpf(&self) -> &Ebpf {
        &self.ebpf
    }
}

impl ProgramStatus {
    fn why(&self) -> String {
        self.reason.clone().unwrap_or_default()
    }
}

/// The status of a program, whether it was loaded or not.
fn program_status(ebpf: &Ebpf, name: &str, result: Option<Result<(), Refused>>) -> ProgramStatus {
    let info = ebpf.program(name).and_then(|program| program.info().ok());
    let loaded = ProgramStatus {
        name: name.into(),
        state: ProgramState::Loaded,
        instructions: info.and_then(|info| info.verified_instruction_count()),
        reason: None,
        verifier: Vec::new(),
    };
    match result {
        None => ProgramStatus { state: ProgramState::NotNeeded, ..loaded },
        Some(Ok(())) => loaded,
        Some(Err(Refused { reason, verifier })) => {
            ProgramStatus { state: ProgramState::Refused, reason: Some(reason), verifier, ..loaded }
        }
    }
}

fn log(kernel: &str, program: &ProgramStatus) {
    let ProgramStatus { name: program, reason: Some(reason), verifier, .. } = program else { return };
    tracing::warn!(program, kernel, reason, "the kernel refused a program of the fast path");
    verifier.iter().for_each(|line| tracing::warn!(program, "verifier: {line}"));
}

fn load_part(
    ebpf: &mut Ebpf,
    hook: Hook,
    part: Part,
    jumps: &mut ProgramArray<MapData>,
) -> Result<(), Refused> {
    let loaded = load(ebpf, name::part(hook, part));
    let entered = match &loaded {
        Ok(program) => jumps.set(part as u32, program, 0),
        // A pinned map may have a killed daemon's program. Usually there is none.
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
        // The error is the last line before the statistics.
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

/// Whether this is one of the statistics at the end of the verifier's log (`print_verification_stats` in its source).
fn is_sum(line: &str) -> bool {
    ["processed ", "verification time ", "stack depth "].iter().any(|sum| line.starts_with(sum))
}

fn kernel_release() -> String {
    let name = nix::sys::utsname::uname();
    name.map_or_else(|_| "unknown".into(), |name| name.release().to_string_lossy().into_owned())
}
