//! Images from a Docker engine.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use bollard::Docker;
use bollard::errors::Error as DockerError;
use futures_util::TryStreamExt as _;

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(
        "the Docker engine has no image {reference}. Pull or build it there first: `docker pull {reference}`, \
         or `docker build -t {reference} .`"
    )]
    NoSuchImage { reference: String },
    #[error("the Docker engine could not export {reference}: {source}")]
    Engine { reference: String, source: DockerError },
    #[error("keeping what the Docker engine exported of {reference}: {source}")]
    Spool { reference: String, source: io::Error },
}

/// The ID of the image that the engine knows as `reference`.
pub(super) async fn resolve(docker: &Docker, reference: &str) -> Result<String, ExportError> {
    let image = docker.inspect_image(reference).await.map_err(|source| failed(reference, source))?;
    Ok(image.id.unwrap_or_else(|| reference.to_owned()))
}

/// Writes what `docker save` would write to an unnamed file in `directory`. `progress` gets the number of bytes so far,
/// once per mebibyte.
pub(super) async fn export(
    docker: &Docker,
    reference: &str,
    directory: &Path,
    progress: impl Fn(u64),
) -> Result<File, ExportError> {
    let spool = |source| ExportError::Spool { reference: reference.to_owned(), source };
    let mut file =
        io::BufWriter::with_capacity(1024 * 1024, tempfile::tempfile_in(directory).map_err(spool)?);
    let mut bytes: u64 = 0;
    let stream = docker.export_image(reference);
    let mut stream = std::pin::pin!(stream);
    while let Some(chunk) = stream.try_next().await.map_err(|source| failed(reference, source))? {
        // This only fills the page cache, which is short enough for an asynchronous task.
        file.write_all(&chunk).map_err(spool)?;
        let before = bytes;
        bytes += chunk.len() as u64;
        if bytes >> 20 != before >> 20 {
            progress(bytes);
        }
    }
    file.into_inner().map_err(|e| spool(e.into_error()))
}

fn failed(reference: &str, source: DockerError) -> ExportError {
    let reference = reference.to_owned();
    match source {
        DockerError::DockerResponseServerError { status_code: 404, .. } => {
            ExportError::NoSuchImage { reference }
        }
        source => ExportError::Engine { reference, source },
    }
}
