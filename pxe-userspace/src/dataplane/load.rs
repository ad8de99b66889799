//! Loading the embedded object.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use aya::maps::{Array, HashMap, HashOfMaps, Map, MapData, PerCpuArray, ProgramArray, RingBuf};
use aya::{Ebpf, EbpfError, EbpfLoader};
use aya_log::EbpfLogger;
use pxe_common::map::{Chunk, MAX_SESSIONS, Session, SessionKey, SumPage, name};
use pxe_common::verdict::Hook;

use super::counters::CounterMap;
use super::events::Events;
use super::grants::LeaseMap;
use super::pins::Pins;
use super::programs::Programs;
use crate::config::FastPath;

/// Entries take memory only when they are created (linux/bpf.h).
const BPF_F_NO_PREALLOC: u32 = 1;

/// The object that this build embeds.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("PXE_EBPF_OBJECT"));

/// Names a file with other kernel programs, for development and tests.
const OBJECT_FILE: &str = "BRIDGEHEAD_EBPF_OBJECT";

/// The programs to load.
pub(super) fn object() -> Result<Cow<'static, [u8]>, LoadError> {
    match std::env::var_os(OBJECT_FILE) {
        Some(file) => std::fs::read(&file).map(Cow::Owned).map_err(LoadError::File),
        None => Ok(Cow::Borrowed(OBJECT)),
    }
}

/// Why there is no fast path.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("this build has no kernel programs: run `cargo xtask build`, then build again")]
    NotBuilt,
    #[error("BRIDGEHEAD_EBPF_OBJECT names a file that can't be read")]
    File(#[source] io::Error),
    #[error("the kernel did not take the programs' maps (root, or CAP_BPF and CAP_NET_ADMIN, is needed)")]
    Object(#[source] Box<EbpfError>),
    #[error("the embedded object has no {0}: it was built from other sources; run `cargo xtask build`")]
    Missing(&'static str),
    #[error("the embedded object's map {name} is not what this build expects; run `cargo xtask build`")]
    Layout { name: &'static str, source: Box<aya::maps::MapError> },
    #[error("nothing can be pinned below /sys/fs/bpf: is the bpf file system mounted?")]
    Pins(#[source] io::Error),
    #[error("the map of the daemon's notes")]
    Notes(#[source] Box<aya::maps::MapError>),
    #[error("the programs' log can't be read")]
    Log(#[source] Box<aya_log::Error>),
}

pub(super) type SessionMap = HashMap<MapData, SessionKey, Session>;
/// JSON, padded with zeros. The programs never use it.
pub(super) type NoteMap = HashMap<MapData, SessionKey, [u8; NOTE_LEN]>;
pub(super) const NOTE_LEN: usize = 1024;
pub(super) type ChunkMap = HashOfMaps<MapData, u32, Array<MapData, Chunk>>;
pub(super) type SumMap = HashOfMaps<MapData, u32, Array<MapData, SumPage>>;

pub(super) struct Loaded {
    pub(super) programs: Programs,
    pub(super) sessions: SessionMap,
    pub(super) notes: NoteMap,
    pub(super) blobs: ChunkMap,
    pub(super) sums: SumMap,
    pub(super) leases: LeaseMap,
    pub(super) events: Events,
    pub(super) counters: Arc<CounterMap>,
    pub(super) logger: EbpfLogger<&'static dyn log::Log>,
}

/// Creates the maps, and loads the programs that `wanted` may need.
pub(super) fn load(
    object: &[u8],
    wanted: FastPath,
    debug: bool,
    pins: Option<&Pins>,
) -> Result<Loaded, LoadError> {
    if object.is_empty() {
        return Err(LoadError::NotBuilt);
    }
    // Patched before the programs are loaded, so that the verifier removes what is off.
    let level = if debug { aya_log::Level::Debug as u8 } else { 0 };
    let mut loader = EbpfLoader::new();
    loader.override_global(aya_log::LEVEL, &level, true);
    if let Some(pins) = pins {
        pins.set_up().map_err(LoadError::Pins)?;
        for name in name::KEPT {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    let mut ebpf = loader.load(object).map_err(|e| LoadError::Object(Box::new(e)))?;
    let mut jumps = |hook| take::<ProgramArray<_>>(&mut ebpf, name::parts(hook));
    let jumps = [jumps(Hook::Xdp)?, jumps(Hook::Tc)?];
    // While the object still owns the other maps, because the programs refer to them by their descriptors.
    let mut programs = Programs::load(ebpf, jumps, wanted);
    let ebpf = programs.ebpf_mut();
    let logger = EbpfLogger::init(ebpf).map_err(|e| LoadError::Log(Box::new(e)))?;
    let counters = Arc::new(CounterMap::new(take::<PerCpuArray<_, u64>>(ebpf, name::COUNTERS)?));
    Ok(Loaded {
        notes: notes(pins).map_err(|e| LoadError::Notes(Box::new(e)))?,
        sessions: take(ebpf, name::SESSIONS)?,
        blobs: take(ebpf, name::BLOBS)?,
        sums: take(ebpf, name::SUMS)?,
        leases: take(ebpf, name::LEASES)?,
        events: Events::new(take::<RingBuf<_>>(ebpf, name::EVENTS)?, counters.clone()),
        counters,
        logger,
        programs,
    })
}

/// Created here, because the object contains only maps that a program uses.
fn notes(pins: Option<&Pins>) -> Result<NoteMap, aya::maps::MapError> {
    const NAME: &str = "NOTES";
    if let Some(pinned) = pins.and_then(|pins| MapData::from_pin(pins.map(NAME)).ok()) {
        return Map::from_map_data(pinned)?.try_into();
    }
    let map = NoteMap::create(MAX_SESSIONS as u32, BPF_F_NO_PREALLOC)?;
    let Some(pins) = pins else { return Ok(map) };
    map.pin(pins.map(NAME)).map_err(|error| aya::maps::MapError::PinError { name: None, error })?;
    Map::from_map_data(MapData::from_pin(pins.map(NAME))?)?.try_into()
}

fn take<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, LoadError>
where
    M: TryFrom<Map, Error = aya::maps::MapError>,
{
    let map = ebpf.take_map(name).ok_or(LoadError::Missing(name))?;
    M::try_from(map).map_err(|source| LoadError::Layout { name, source: Box::new(source) })
}
