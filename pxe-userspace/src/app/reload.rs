//! Taking over a changed configuration file while everything runs.

use std::sync::{Arc, PoisonError};

use super::Appliance;
use crate::api::documents::Reloaded;
use crate::config::{self, Boot, Config, Dhcp, Problem};
use crate::files::RootError;

/// The file can't be taken over; everything goes on as it was.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    #[error("{}", lines(.0))]
    Config(Vec<Problem>),
    #[error(transparent)]
    Root(#[from] RootError),
}

impl Appliance {
    /// Applies what can be applied to a running daemon, and says what waits for the next start.
    pub(super) async fn reload(&self) -> Result<Reloaded, ReloadError> {
        let _reloading = self.reloading.lock().await;
        let old = self.config();
        let new = config::load(&self.file).map_err(ReloadError::Config)?;
        let done = compare(&old, &new);
        let new = applicable(&old, new);

        self.catalog.reconfigure(&new)?;
        self.dhcp.reconfigure(&new);
        self.machines.declare(&new);
        self.wanted.want(&new);
        self.workloads.apply(&new).await;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        Ok(done)
    }
}

fn compare(old: &Config, new: &Config) -> Reloaded {
    let changed = |parts: &[(&str, bool)]| -> Vec<String> {
        parts.iter().filter(|(_, changed)| *changed).map(|(name, _)| (*name).to_owned()).collect()
    };
    let dhcp = Dhcp { mode: old.dhcp.mode, ..new.dhcp.clone() };
    Reloaded {
        changed: changed(&[
            ("[dhcp]", old.dhcp != dhcp),
            ("[files]", old.files_root != new.files_root),
            ("[boot] ipxe", old.boot.ipxe != new.boot.ipxe),
            ("default profile", old.default_profile != new.default_profile),
            ("profiles", old.profiles != new.profiles),
            ("storage", old.storage != new.storage),
            ("nodes", old.nodes != new.nodes),
            ("workloads", old.workloads != new.workloads),
        ]),
        needs_restart: changed(&[
            ("state-dir", old.state_dir != new.state_dir),
            ("[network]", old.network != new.network),
            ("[dhcp] mode", old.dhcp.mode != new.dhcp.mode),
            ("[http]", old.http != new.http),
            ("[api]", old.api != new.api),
            ("[boot] assets", old.boot.assets != new.boot.assets),
            ("[docker]", old.docker != new.docker),
            ("[carousel]", old.carousel != new.carousel),
        ]),
    }
}

/// The new configuration, but for what was opened at the start and stays open.
fn applicable(old: &Config, new: Config) -> Config {
    Config {
        state_dir: old.state_dir.clone(),
        network: old.network.clone(),
        dhcp: Dhcp { mode: old.dhcp.mode, ..new.dhcp },
        http: old.http.clone(),
        api: old.api.clone(),
        boot: Boot { assets: old.boot.assets.clone(), ..new.boot },
        docker: old.docker.clone(),
        carousel: old.carousel.clone(),
        ..new
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(rest: &str) -> Config {
        let text = format!(
            "[network]\nbridge = \"pxe0\"\naddress = \"10.77.0.1/24\"\n\
             [default]\nprofile = \"web\"\n[[profile]]\nname = \"web\"\nimage = \"a\"\n{rest}"
        );
        config::parse(&text, Path::new("/c.toml")).unwrap_or_else(|p| panic!("{p:?}"))
    }

    #[test]
    fn what_is_said_to_wait_is_not_applied_and_the_rest_is() {
        let dhcp = |mode: &str, lease: &str| {
            config(&format!(
                "[dhcp]\nmode = \"{mode}\"\nrange = [\"10.77.0.100\", \"10.77.0.199\"]\nlease-time = \"{lease}\"\n"
            ))
        };
        let old = dhcp("authoritative", "1h");
        assert_eq!(compare(&old, &old), Reloaded::default());

        let longer = dhcp("authoritative", "2h");
        assert_eq!(compare(&old, &longer).changed, ["[dhcp]"]);
        assert_eq!(applicable(&old, longer.clone()), longer);

        let mut moved = old.clone();
        moved.boot.assets = "/elsewhere".into();
        moved.api.listen.set_port(1);
        let done = compare(&old, &moved);
        assert_eq!(
            (done.changed, done.needs_restart),
            (vec![], vec!["[api]".into(), "[boot] assets".into()])
        );
        assert_eq!(applicable(&old, moved), old);
    }
}
