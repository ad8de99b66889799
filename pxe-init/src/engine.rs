//! The Docker engine of a node: before it starts, a key is made for it here, and a certificate requested. Both are in
//! memory only, for this boot.

use std::fs::File;
use std::io::{self, Write as _};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use pem::Pem;
use pxe_contract::engine::{PapersAnswer, PapersRequest};
use pxe_contract::hex;
use pxe_contract::paths::node;
use ring::rand::SystemRandom;

use crate::appliance::{Told, words};
use crate::image::Image;
use crate::request;

#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error("bridgehead.run=docker without bridgehead.url=: no appliance could vouch for the engine")]
    NoAppliance,
    #[error("no key could be made for the engine")]
    Key,
    #[error("asking the appliance for the engine's certificate: {0}")]
    Unreachable(io::Error),
    #[error("the appliance gives the engine no certificate: {0}")]
    Refused(String),
    #[error("{path}: {source}")]
    Write { path: String, source: io::Error },
}

/// Where the image's start script expects them: on the image's /run, a tmpfs.
const DIRECTORY: &str = "run/bridgehead";

/// Writes key and certificates where the engine reads them.
pub(crate) fn enroll(image: &Image, told: &Told) -> Result<(), EngineError> {
    let Told { settings, appliance } = told;
    let appliance = appliance.as_ref().ok_or(EngineError::NoAppliance)?;
    let (key, request) = request::make(&SystemRandom::new()).map_err(|_| EngineError::Key)?;
    let asked = PapersRequest { mac: &settings.mac, request: hex::encode(&request) };
    let body = serde_json::to_vec(&asked).expect("it has only text keys");
    let answer = appliance.exchange(node::ENGINE, &body).map_err(EngineError::Unreachable)?;
    let papers: PapersAnswer = match answer {
        (200, body) => serde_json::from_str(&body).map_err(|e| EngineError::Refused(e.to_string()))?,
        (status, body) => return Err(EngineError::Refused(words(status, &body))),
    };
    let write = |name: &str, text: &str| {
        let path = format!("{DIRECTORY}/{name}");
        put(image, &path, text).map_err(|source| EngineError::Write { path, source })
    };
    write("ca.pem", &papers.authority)?;
    write("cert.pem", &papers.certificate)?;
    write("key.pem", &pem::encode(&Pem::new("PRIVATE KEY", key.as_ref())))
}

fn put(image: &Image, path: &str, text: &str) -> io::Result<()> {
    image.create_dir_all(DIRECTORY, Mode::S_IRWXU)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
    File::from(image.open_inside(path, flags, Mode::S_IRUSR | Mode::S_IWUSR)?).write_all(text.as_bytes())
}
