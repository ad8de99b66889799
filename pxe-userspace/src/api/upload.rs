//! Files sent as a request's body: the client opens them, so the daemon opens no path for a client.

use std::path::{Path, PathBuf};

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt as _;

use super::{Failure, Kind};
use crate::base::text::one_line;

/// Content types of sent files. Their actual format is detected from their bytes.
pub(super) const FILES: [&str; 3] =
    ["application/x-tar", "application/octet-stream", "application/vnd.debian.binary-package"];

/// A body that is a document, or a file of one of the content types that files have.
pub(super) enum Sent<T> {
    Document(T),
    File(Body),
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Sent<T> {
    type Rejection = JsonRejection;

    async fn from_request(request: Request, state: &S) -> Result<Self, JsonRejection> {
        match is_file(request.headers()) {
            true => Ok(Self::File(request.into_body())),
            false => Json::from_request(request, state).await.map(|Json(document)| Self::Document(document)),
        }
    }
}

/// Whether the body is a file, by its content type.
fn is_file(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    FILES.iter().any(|file| content_type.eq_ignore_ascii_case(file))
}

/// Bytes of a file's name.
const NAME_MAX: usize = 128;

/// A received file. It is removed when this is dropped.
pub(super) struct Upload {
    directory: tempfile::TempDir,
    name: String,
    /// Its name at the client.
    called: String,
}

impl Upload {
    /// Receives a whole body, into a directory of its own below `work`. `name` is the file's name at the client.
    pub(super) async fn receive(work: &Path, name: Option<&str>, body: Body) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| {
            let hint = "check the state directory: `df -h`, `ls -l`";
            Failure::new(Kind::Internal, format!("keeping what was sent: {error}"), hint)
        };
        let directory = tempfile::tempdir_in(work).map_err(failed)?;
        let name = name.unwrap_or("what was sent");
        let upload = Self { directory, name: plain(name), called: one_line(name) };
        let mut file = tokio::fs::File::create_new(upload.path()).await.map_err(failed)?;
        let mut body = body.into_data_stream();
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| {
                Failure::new(Kind::Invalid, format!("the file did not come whole: {error}"), "send it again")
            })?;
            file.write_all(&piece).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)?;
        Ok(upload)
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join(&self.name)
    }

    /// A failure with the client's name for the file, because the client does not know its path here.
    pub(super) fn told(&self, failure: Failure) -> Failure {
        let error = failure.error.replace(&self.path().display().to_string(), &self.called);
        Failure { error, ..failure }
    }
}

/// The last part of a path, without characters that a file name here should not have.
fn plain(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or_default();
    let allowed = |c: char| c.is_alphanumeric() || "._+~-@ ".contains(c);
    let mut plain: String = last.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
    while plain.len() > NAME_MAX {
        plain.pop();
    }
    match plain.trim_matches(['.', ' ']) {
        "" => "archive".to_owned(),
        _ => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_and_no_paths() {
        for (name, plain) in [
            ("/srv/images/hello.tar", "hello.tar"),
            ("linux-image-6.1.0_6.1.1~rc1+b1_amd64.deb", "linux-image-6.1.0_6.1.1~rc1+b1_amd64.deb"),
            ("", "archive"),
            ("..", "archive"),
            ("a/..", "archive"),
            ("x\u{1b}[2J\0y", "x__2J_y"),
        ] {
            assert_eq!(super::plain(name), plain, "{name:?}");
        }
        assert!(super::plain(&"ü".repeat(1000)).len() <= NAME_MAX);
    }

    #[tokio::test]
    async fn a_body_becomes_a_file_that_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let upload = Upload::receive(dir.path(), Some("a.tar"), Body::from("hello")).await.unwrap();
        assert_eq!(std::fs::read(upload.path()).unwrap(), b"hello");
        let told = upload.told(Failure::internal(format!("{} is damaged", upload.path().display())));
        assert_eq!(told.error, "a.tar is damaged");
        drop(upload);
        let broken = futures_util::stream::iter([Ok("hel"), Err(std::io::Error::other("gone"))]);
        let failure = Upload::receive(dir.path(), None, Body::from_stream(broken)).await.err().unwrap();
        assert!(failure.kind == Kind::Invalid && failure.error.contains("gone"), "{failure}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
