//! The Docker engine of a node: before it starts, it gets a key, made here, and a certificate for it. Both are in memory
//! and gone with this boot.

use std::fs::File;
use std::io::{self, Write as _};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use rcgen::{CertificateParams, DnType, KeyPair};
use serde::Deserialize;

use crate::image::Image;
use crate::settings::Settings;
use crate::storage::keys::exchange;

#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error("bridgehead.run=docker without bridgehead.url=: no appliance could vouch for the engine")]
    NoAppliance,
    #[error("making the engine's key: {0}")]
    Key(#[from] rcgen::Error),
    #[error("asking the appliance for the engine's certificate: {0}")]
    Unreachable(io::Error),
    #[error("the appliance gives the engine no certificate: {0}")]
    Refused(String),
    #[error("{path}: {source}")]
    Write { path: String, source: io::Error },
}

/// What the appliance answers, both in PEM.
#[derive(Deserialize)]
struct Papers {
    authority: String,
    certificate: String,
}

/// Where the image's start script looks, on the image's /run, a tmpfs.
const DIRECTORY: &str = "run/bridgehead";

/// Leaves key and papers where the engine reads them.
pub(crate) fn enroll(image: &Image, settings: &Settings) -> Result<(), EngineError> {
    let appliance = settings.appliance.ok_or(EngineError::NoAppliance)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, settings.name.as_str());
    let request = params.serialize_request(&key)?.pem()?;
    let body = serde_json::json!({ "mac": settings.mac, "request": request }).to_string();
    let answer = exchange(appliance, "/node/engine", &body).map_err(EngineError::Unreachable)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let papers: Papers = match serde_json::from_str(body) {
        Ok(papers) if head.split(' ').nth(1) == Some("200") => papers,
        _ => return Err(EngineError::Refused(refusal(head, body))),
    };
    let write = |name: &str, text: &str| {
        let path = format!("{DIRECTORY}/{name}");
        put(image, &path, text).map_err(|source| EngineError::Write { path, source })
    };
    write("ca.pem", &papers.authority)?;
    write("cert.pem", &papers.certificate)?;
    write("key.pem", &key.serialize_pem())
}

/// In the appliance's words, where it has some.
fn refusal(head: &str, body: &str) -> String {
    let words = serde_json::from_str::<serde_json::Value>(body).ok();
    let words = words.and_then(|w| Some(w.get("error")?.as_str()?.to_owned()));
    words.unwrap_or_else(|| head.lines().next().unwrap_or("no answer").to_owned())
}

fn put(image: &Image, path: &str, text: &str) -> io::Result<()> {
    image.create_dir_all(DIRECTORY, Mode::S_IRWXU)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
    File::from(image.open_inside(path, flags, Mode::S_IRUSR | Mode::S_IWUSR)?).write_all(text.as_bytes())
}
