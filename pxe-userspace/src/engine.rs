//! The Docker engine on the appliance: where it is, and how it is reached.

use bollard::{API_DEFAULT_VERSION, Docker};

use crate::config;

/// Seconds for an answer to begin; bodies may take longer.
const TIMEOUT: u64 = 120;

/// An engine that may or may not be running.
#[derive(Clone, Debug)]
pub struct Engine {
    config: config::Docker,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "no Docker engine answers at {address}: {source}. Start it (`systemctl start docker`), or name its socket in [docker] socket"
)]
pub struct NoEngine {
    address: String,
    source: bollard::errors::Error,
}

impl Engine {
    pub fn new(config: &config::Docker) -> Self {
        Self { config: config.clone() }
    }

    /// A connection that speaks a version of the API that the engine knows, too.
    pub async fn connect(&self) -> Result<Docker, NoEngine> {
        let failed = |source| NoEngine { address: self.address(), source };
        let docker = match &self.config.socket {
            Some(socket) => {
                Docker::connect_with_unix(&socket.to_string_lossy(), TIMEOUT, API_DEFAULT_VERSION)
            }
            None => Docker::connect_with_defaults(),
        };
        docker.map_err(failed)?.negotiate_version().await.map_err(failed)
    }

    fn address(&self) -> String {
        match &self.config.socket {
            Some(socket) => socket.display().to_string(),
            None => std::env::var("DOCKER_HOST").unwrap_or_else(|_| "/var/run/docker.sock".into()),
        }
    }
}

#[cfg(test)]
#[path = "engine_testing.rs"]
pub(crate) mod testing;
