//! Images from a Docker engine.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::errors::Error as DockerError;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::TryStreamExt as _;

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(
        "the Docker engine has no image {reference}. Pull or build it there first: `docker pull {reference}`, \
         or `docker build -t {reference} .`"
    )]
    NoSuchImage { reference: String },
    #[error(
        "the Docker engine has no image {reference}, and could not pull it: {words}. Check its name, build it there, or \
         `docker login` as the daemon's user"
    )]
    NotPulled { reference: String, words: String },
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

/// Has the engine pull an image from its registry, with the credentials of the daemon's user. `progress` gets what the
/// engine says, and the bytes of all layers so far, whenever a step ends and once per mebibyte.
pub(super) async fn pull(
    docker: &Docker,
    reference: &str,
    progress: impl Fn(String, u64),
) -> Result<(), ExportError> {
    let not_pulled = |words: String| {
        let words = crate::base::text::one_line(&words);
        ExportError::NotPulled { reference: reference.to_owned(), words }
    };
    let with_tag = super::canonical(reference);
    let options = CreateImageOptionsBuilder::default().from_image(&with_tag).build();
    let stream = docker.create_image(Some(options), None, credentials_for(reference));
    let mut stream = std::pin::pin!(stream);
    let mut layers: HashMap<String, u64> = HashMap::new();
    let mut told = (String::new(), 0);
    while let Some(step) = stream.try_next().await.map_err(|error| not_pulled(error.to_string()))? {
        if let Some(detail) = step.error_detail {
            return Err(not_pulled(detail.message.unwrap_or_else(|| "it does not say why".to_owned())));
        }
        let current = step.progress_detail.and_then(|detail| detail.current).unwrap_or(0);
        if let Some(layer) = step.id.filter(|_| layers.len() < LAYERS_MAX) {
            let bytes = layers.entry(layer).or_default();
            *bytes = u64::try_from(current).unwrap_or(0).max(*bytes);
        }
        let (words, bytes) = (step.status.unwrap_or_default(), layers.values().sum::<u64>());
        if words != told.0 || bytes >> 20 != told.1 >> 20 {
            progress(crate::base::text::one_line(&words), bytes);
            told = (words, bytes);
        }
    }
    Ok(())
}

/// Layers whose bytes are counted. Docker's own limit is 127.
const LAYERS_MAX: usize = 1024;

/// What `docker login` left in the daemon's user's `~/.docker/config.json` for the reference's registry. A credential
/// helper is not run.
fn credentials_for(reference: &str) -> Option<DockerCredentials> {
    let directory = std::env::var_os("DOCKER_CONFIG").map(std::path::PathBuf::from);
    let directory = directory.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".docker")))?;
    let text = std::fs::read(directory.join("config.json")).ok()?;
    let config: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let registry = registry_of(reference);
    let entry =
        config["auths"].get(registry).or_else(|| config["auths"].get(format!("https://{registry}")))?;
    let text = |key: &str| entry[key].as_str().map(str::to_owned);
    let (username, password) = match text("auth").as_deref().and_then(basic) {
        Some((username, password)) => (Some(username), Some(password)),
        None => (text("username"), text("password")),
    };
    Some(DockerCredentials {
        username,
        password,
        identitytoken: text("identitytoken"),
        serveraddress: Some(registry.to_owned()),
        ..DockerCredentials::default()
    })
}

/// User and password from `auth`: base64 of `USER:PASSWORD` (RFC 7617).
fn basic(auth: &str) -> Option<(String, String)> {
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0u32, 0);
    for byte in auth.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (bits, held) = (bits << 6 | u32::from(value), held + 6);
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    let text = String::from_utf8(bytes).ok()?;
    text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}

/// The registry as Docker's configuration calls it. The first part of a name is one if it looks like a host.
fn registry_of(reference: &str) -> &str {
    const DOCKER_HUB: &str = "https://index.docker.io/v1/";
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => match host {
            "docker.io" => DOCKER_HUB,
            host => host,
        },
        _ => DOCKER_HUB,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_user_and_password() {
        let known = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(basic("QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), known("Aladdin", "open sesame"));
        assert_eq!(basic("dTo="), known("u", ""));
        for wrong in ["", "dQ==", "d*o="] {
            assert_eq!(basic(wrong), None);
        }
    }

    #[test]
    fn a_registry_is_a_host() {
        for (reference, registry) in [
            ("hello", "https://index.docker.io/v1/"),
            ("someone/hello:1", "https://index.docker.io/v1/"),
            ("docker.io/library/hello", "https://index.docker.io/v1/"),
            ("localhost/a", "localhost"),
            ("reg.example:5000/a/b", "reg.example:5000"),
        ] {
            assert_eq!(registry_of(reference), registry, "{reference}");
        }
    }
}
