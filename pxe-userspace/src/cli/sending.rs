//! Files and directories that are sent to the daemon, because the daemon opens no path that a client names.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use axum::body::Body;
use futures_util::{StreamExt as _, stream};
use tokio_util::io::ReaderStream;

use super::{AskError, Client};
use crate::api::client::Sent;
use crate::base::text::percent;
use crate::provision::image::{pack_kernel, pack_layout};

const PIECE: usize = 256 * 1024;

/// What to send if `path` exists, and its name in the query. If a directory has an image's very name, only the name
/// with its `:TAG` means the image.
pub(super) fn image(client: &Client, path: &Path) -> Result<Option<(Sent, String)>, AskError> {
    sent(client, path, "application/x-tar", pack_layout)
}

/// The same for a kernel: a package, or a directory.
pub(super) fn kernel(client: &Client, path: &Path) -> Result<Option<(Sent, String)>, AskError> {
    sent(client, path, "application/vnd.debian.binary-package", pack_kernel)
}

fn sent(
    client: &Client,
    path: &Path,
    of_file: &'static str,
    pack: fn(&Path, UnixStream) -> io::Result<()>,
) -> Result<Option<(Sent, String)>, AskError> {
    if !path.exists() {
        return Ok(None);
    }
    let failed = |source| AskError::File { path: path.to_owned(), source };
    let sent = if path.is_dir() {
        Sent {
            content_type: "application/x-tar",
            body: directory(client, path, pack).map_err(failed)?,
            lines: false,
        }
    } else {
        let file = tokio::fs::File::from_std(File::open(path).map_err(failed)?);
        let body = Body::from_stream(ReaderStream::with_capacity(file, PIECE));
        Sent { content_type: of_file, body, lines: false }
    };
    Ok(Some((sent, format!("file={}", percent(&path.to_string_lossy(), "")))))
}

/// A directory, packed while it is sent.
fn directory(
    client: &Client,
    path: &Path,
    pack: fn(&Path, UnixStream) -> io::Result<()>,
) -> io::Result<Body> {
    // A directory that can't be read is an error before anything is sent.
    path.read_dir()?;
    let (packed, sending) = UnixStream::pair()?;
    sending.set_nonblocking(true)?;
    let sending = {
        let _entered = client.runtime().enter();
        tokio::net::UnixStream::from_std(sending)?
    };
    let path = path.to_owned();
    let packing = thread::spawn(move || pack(&path, packed));
    // If a file could not be read, the request must fail: an archive that ends there would look whole.
    let end = stream::once(async move {
        match packing.join() {
            Ok(Ok(())) => Ok(axum::body::Bytes::new()),
            Ok(Err(error)) => {
                eprintln!("bridgehead: {error}");
                Err(error)
            }
            Err(_) => Err(io::Error::other("packing panicked")),
        }
    });
    Ok(Body::from_stream(ReaderStream::with_capacity(sending, PIECE).chain(end)))
}
