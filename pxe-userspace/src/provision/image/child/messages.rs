//! What the daemon and the child of an import say to each other, by a socket pair. Each message is its length (32 bits,
//! little endian) and JSON. The first one, to the child, has the descriptors with it. Lengths are bounded, and what the
//! child says is believed no further than one image.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::confine::Limits;
use crate::provision::image::oci::ImageConfig;
use crate::provision::image::{KernelChoice, Unpacked};

/// An image's configuration has at most 16 MiB, and escapes in JSON may double it.
const MESSAGE_MAX: u32 = 40 << 20;

/// Names, versions, paths and reasons.
const TEXT_MAX: usize = 4096;

/// Names of one image.
const NAMES_MAX: usize = 256;

/// The files of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::provision::image) enum File {
    /// What a stranger sent.
    Archive,
    /// Contents of files, while the job runs.
    Spool,
    /// The archive, unpacked.
    Scratch,
    Kernel,
    Stage1,
    Rootfs,
    Stage2,
    Modules,
    ModulesIndex,
}

/// What the child is to do. A file's name is for messages, and never opened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::provision::image) struct Job {
    pub(in crate::provision::image) assets: PathBuf,
    pub(in crate::provision::image) name: PathBuf,
    pub(in crate::provision::image) what: What,
    pub(in crate::provision::image) files: Vec<File>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::provision::image) enum What {
    /// An image. `known_as` is its name and ID where they are not the archive's to say.
    Image { known_as: Option<(String, String)> },
    /// A kernel and its modules.
    Kernel,
    /// A test: tries what is forbidden.
    #[cfg(test)]
    Probe,
}

/// What the child says.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::provision::image) enum Said {
    /// It is confined, and begins. The digest of the assets is from before it read anything of a stranger's.
    Ready {
        assets: String,
    },
    NotConfined(String),
    /// What the archive contains. The child waits for an answer.
    Described {
        id: String,
        names: Vec<String>,
    },
    Layer {
        number: usize,
        of: usize,
    },
    Packing,
    Made(Box<Made>),
    MadeKernel(Box<MadeKernel>),
    Refused {
        class: Class,
        words: String,
    },
    /// A file would be larger than it may.
    TooLarge,
    /// There is no more memory.
    NoMemory,
    #[cfg(test)]
    Probed(std::collections::BTreeMap<String, String>),
}

/// Whose fault a refusal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::provision::image) enum Class {
    /// The archive's.
    Archive,
    /// The assets are missing or unreadable.
    Assets,
    /// The state directory's.
    Work,
}

/// The description of an image that was made. Its parts are in the files.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::provision::image) struct Made {
    /// Of the tree.
    pub(in crate::provision::image) digest: String,
    pub(in crate::provision::image) created: Option<String>,
    pub(in crate::provision::image) config: ImageConfig,
    pub(in crate::provision::image) kernel: KernelChoice,
    pub(in crate::provision::image) unpacked: Unpacked,
    pub(in crate::provision::image) two_stages: bool,
    /// Files whose extended attributes are lost.
    pub(in crate::provision::image) lost: Vec<String>,
}

/// The same of a kernel.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::provision::image) struct MadeKernel {
    pub(in crate::provision::image) version: String,
    pub(in crate::provision::image) modules: bool,
    pub(in crate::provision::image) memory: u64,
    pub(in crate::provision::image) stage1_unpacked: u64,
    pub(in crate::provision::image) two_stages: bool,
}

/// Why there is no message.
pub(super) enum ReceiveError {
    /// The other side has ended.
    Ended,
    /// It says nothing.
    Silent,
    Damaged(&'static str),
}

impl Said {
    /// Whether it is one that a child sends that does what it should: bounded, and with nothing that could be a path or
    /// confuse a terminal.
    fn check(&self) -> Result<(), &'static str> {
        let right = |ok: bool, what| if ok { Ok(()) } else { Err(what) };
        match self {
            Self::Ready { assets } => right(is_digest(assets), "a digest that is none"),
            Self::Described { id, names } => {
                right(is_digest(id), "an image's ID that is none")?;
                right((1..=NAMES_MAX).contains(&names.len()), "no name, or too many")?;
                right(names.iter().all(|name| is_line(name) && !name.is_empty()), "a name that is none")
            }
            Self::Made(made) => {
                right(is_digest(&made.digest), "a digest that is none")?;
                right(made.created.as_deref().is_none_or(is_line), "a time that is none")?;
                right(made.lost.len() <= LOST_MAX && made.lost.iter().all(|path| is_line(path)), "too much")?;
                let KernelChoice { version, path, reason, .. } = &made.kernel;
                right(
                    [version, path, reason].into_iter().all(|text| is_line(text)),
                    "a kernel that is none",
                )?;
                right(!made.config.argv().is_empty(), "an image that runs nothing")
            }
            Self::MadeKernel(made) => right(is_line(&made.version), "a kernel that is none"),
            Self::NotConfined(_)
            | Self::Layer { .. }
            | Self::Packing
            | Self::Refused { .. }
            | Self::TooLarge
            | Self::NoMemory => Ok(()),
            #[cfg(test)]
            Self::Probed(_) => Ok(()),
        }
    }
}

/// How many lost attributes are told.
pub(super) const LOST_MAX: usize = 20;

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

fn is_line(text: &str) -> bool {
    text.len() <= TEXT_MAX && !text.chars().any(char::is_control)
}

/// Sends the job and its files to a child.
pub(super) fn give(
    channel: &UnixStream,
    job: &Job,
    limits: &Limits,
    files: &[&std::fs::File],
) -> io::Result<()> {
    let descriptors: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("too many files for one message"));
    }
    // One byte has the descriptors with it; the message follows.
    rustix::net::sendmsg(channel, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?;
    let mut channel = channel;
    send(&mut channel, &(job, limits))
}

/// Receives the job and its files.
pub(super) fn take(channel: &UnixStream) -> io::Result<(Job, Limits, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    rustix::net::recvmsg(
        channel,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut files = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            files.extend(descriptors);
        }
    }
    let mut channel = channel;
    let (job, limits): (Job, Limits) =
        read(&mut channel).map_err(|_| io::Error::other("the job can't be read"))?;
    if job.files.len() != files.len() {
        return Err(io::Error::other("the job's files are not all there"));
    }
    Ok((job, limits, files))
}

/// Room for the descriptors of one job.
const SPACE: usize = rustix::cmsg_space!(ScmRights(16));

/// Sends a message.
pub(super) fn send(channel: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = u32::try_from(bytes.len() - 4).ok().filter(|length| *length <= MESSAGE_MAX);
    let length = length.ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    channel.write_all(&bytes)
}

/// The child's next message.
pub(super) fn receive(channel: &mut impl Read) -> Result<Said, ReceiveError> {
    let said: Said = read(channel)?;
    said.check().map_err(ReceiveError::Damaged)?;
    Ok(said)
}

fn read<T: DeserializeOwned>(channel: &mut impl Read) -> Result<T, ReceiveError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ReceiveError::Silent,
        _ => ReceiveError::Ended,
    };
    let mut length = [0; 4];
    channel.read_exact(&mut length).map_err(failed)?;
    let length = u32::from_le_bytes(length);
    if length > MESSAGE_MAX {
        return Err(ReceiveError::Damaged("a message that is too long"));
    }
    // Read as it comes, so that a length alone takes no memory.
    let mut bytes = Vec::new();
    let got = channel.take(length.into()).read_to_end(&mut bytes).map_err(failed)?;
    if got < length as usize {
        return Err(ReceiveError::Ended);
    }
    serde_json::from_slice(&bytes).map_err(|_| ReceiveError::Damaged("a message that is none"))
}

/// The answer to [`Said::Described`].
pub(super) fn go_on(channel: &mut impl Write) -> io::Result<()> {
    channel.write_all(&[1])
}

/// Waits for it.
pub(super) fn may_go_on(channel: &mut impl Read) -> io::Result<()> {
    channel.read_exact(&mut [0])
}
