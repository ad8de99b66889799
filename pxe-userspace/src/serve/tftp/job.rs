//! From a request to a transfer that can start: the part that may wait for disks.

use std::net::SocketAddrV4;

use pxe_common::map::{SessionKey, Stations};
use pxe_common::tftp::packet::{self, ErrorCode, Mode};
use pxe_common::tftp::{Packet, Session};

use super::options::{self, NotANumber, Terms};
use super::transfer::{Action, IDLE, RETRY, Transfer};
use super::{Declined, FastPath, Note, netascii};
use crate::machines::segment::Standing;
use crate::machines::timeline::Stage;
use crate::provision::blob::Blob;
use crate::serve::files::{Files, OpenError, Opened};

/// The largest text that is converted to netascii; nobody boots from a larger one.
const MAX_NETASCII: u64 = 4 << 20;

/// A request to be opened.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) key: SessionKey,
    pub(super) client: SocketAddrV4,
    /// The two ends of the transfer.
    pub(super) stations: Stations,
    /// What is known of the client.
    pub(super) standing: Standing,
    /// Number of the data port that answers.
    pub(super) port: usize,
    pub(super) path: String,
    /// The request's bytes.
    pub(super) request: Vec<u8>,
    pub(super) mtu: u16,
    /// An ended transfer still has a grant between these ports, to be closed first.
    pub(super) close_first: bool,
}

/// A transfer that can start.
pub(super) struct Accepted {
    pub(super) blob: Blob,
    pub(super) stage: Option<Stage>,
    pub(super) transfer: Transfer,
    pub(super) first: Action,
    /// The fast path answers its ACKs.
    pub(super) in_kernel: bool,
    /// It may do so later, once the file is in the block map.
    pub(super) later: bool,
}

/// Why a request is refused. The text is sent to the client.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Options(#[from] NotANumber),
    #[error("the file has too many blocks of this size; ask for larger ones with blksize")]
    TooManyBlocks,
    #[error("too large for netascii; ask for octet mode")]
    Netascii,
    #[error("the request is malformed")]
    Malformed,
}

impl Refused {
    pub(super) fn code(&self) -> ErrorCode {
        match self {
            Self::Open(OpenError::NotFound) => ErrorCode::NOT_FOUND,
            Self::Open(OpenError::Outside | OpenError::Directory | OpenError::Forbidden(_)) => {
                ErrorCode::ACCESS
            }
            Self::Open(OpenError::Refused(_) | OpenError::Io(_)) | Self::TooManyBlocks | Self::Netascii => {
                ErrorCode::OTHER
            }
            Self::Options(_) => ErrorCode::OPTIONS,
            Self::Malformed => ErrorCode::ILLEGAL,
        }
    }
}

impl Job {
    /// Opens the file and hands the transfer to the fast path. May wait for disks, also when a blob that is not
    /// large goes into the block map for the first time.
    pub(super) fn run(
        &self,
        files: &dyn Files,
        fast_path: Option<&dyn FastPath>,
        now_ns: impl Fn() -> u64,
    ) -> Result<Accepted, Refused> {
        if let Some(fast_path) = fast_path.filter(|_| self.close_first) {
            fast_path.close(&self.key);
        }
        let Ok(Packet::Read(request)) = Packet::parse(&self.request) else { return Err(Refused::Malformed) };
        let Opened { blob, stage } = files.open(&self.path, *self.client.ip())?;
        let blob = match request.mode {
            Mode::Octet => blob,
            Mode::Netascii if blob.len() > MAX_NETASCII => return Err(Refused::Netascii),
            Mode::Netascii => netascii::converted(&blob).map_err(OpenError::Io)?,
        };
        let Terms { blksize, window, timeout, accepted } =
            options::agree(request.options, blob.len(), self.mtu)?;
        let session = Session::new(blob.len(), blksize, window, RETRY.as_millis() as u32)
            .map_err(|_| Refused::TooManyBlocks)?;
        let mut buf = [0; 128];
        let oack = match accepted.as_slice() {
            [] => None,
            options => Some(packet::oack(&mut buf, options).ok_or(Refused::Malformed)?.to_vec()),
        };
        // The grant is made before the client can know of the transfer, so no ACK is too early.
        let (transfer, first) = Transfer::start(session, oack, timeout, now_ns());
        let mut accepted = Accepted { blob, stage, transfer, first, in_kernel: false, later: false };
        // A converted text is read once, by somebody at a terminal: not worth a place in the block map.
        if let Some(fast_path) = fast_path.filter(|_| request.mode == Mode::Octet) {
            match self.grant(fast_path, &accepted, now_ns()) {
                Ok(()) => accepted.in_kernel = true,
                Err(why) => {
                    why.log(&self.path);
                    accepted.later = matches!(why, Declined::NotYet);
                }
            }
        }
        Ok(accepted)
    }

    /// Hands it to the fast path, with what the next daemon needs to know of it.
    fn grant(&self, fast_path: &dyn FastPath, accepted: &Accepted, now_ns: u64) -> Result<(), Declined> {
        let Accepted { blob, stage, transfer, .. } = accepted;
        fast_path.open(self.key, self.stations, blob, *transfer.session(), now_ns, IDLE)?;
        fast_path.note(
            &self.key,
            &Note {
                path: self.path.clone(),
                stage: *stage,
                started_ns: now_ns,
                blob: blob.key(),
                len: blob.len(),
                oack: transfer.oack().map(<[u8]>::to_vec),
            },
        );
        Ok(())
    }
}
