//! An image's health check, as in its configuration (Docker's HEALTHCHECK).

use pxe_contract::image::HealthCheck;
use serde::Deserialize;

/// The key `Healthcheck`. Times in nanoseconds; 0 and absent stand for Docker's defaults.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct HealthJson {
    test: Option<Vec<String>>,
    interval: u64,
    timeout: u64,
    start_period: u64,
    retries: u32,
}

impl HealthJson {
    /// `None` if the check is switched off. `shell` is the image's SHELL.
    pub(super) fn check(self, shell: Option<&[String]>) -> Option<HealthCheck> {
        let test = self.test.unwrap_or_default();
        let argv = match test.split_first()? {
            (kind, argv) if kind == "CMD" => argv.to_vec(),
            (kind, [command]) if kind == "CMD-SHELL" => {
                let shell =
                    shell.map_or_else(|| ["/bin/sh", "-c"].map(str::to_owned).to_vec(), <[_]>::to_vec);
                [shell, vec![command.clone()]].concat()
            }
            // NONE, and what later versions may define.
            _ => return None,
        };
        let milliseconds =
            |nanoseconds, default| if nanoseconds == 0 { default } else { nanoseconds / 1_000_000 };
        (!argv.is_empty()).then_some(HealthCheck {
            argv,
            interval: milliseconds(self.interval, 30_000),
            timeout: milliseconds(self.timeout, 30_000),
            start_period: milliseconds(self.start_period, 0),
            retries: if self.retries == 0 { 3 } else { self.retries },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Option<HealthCheck> {
        serde_json::from_str::<HealthJson>(json).unwrap().check(None)
    }

    #[test]
    fn checks_are_read_as_docker_means_them() {
        let full = r#"{"Test":["CMD","/ok","-q"],"Interval":1500000000,"Timeout":2000000000,"StartPeriod":9000000000,
            "StartInterval":1,"Retries":5}"#;
        let argv = vec!["/ok".into(), "-q".into()];
        assert_eq!(
            check(full),
            Some(HealthCheck { argv, interval: 1500, timeout: 2000, start_period: 9000, retries: 5 })
        );
        let shell = check(r#"{"Test":["CMD-SHELL","wget -q localhost || exit 1"]}"#).unwrap();
        assert_eq!(shell.argv, ["/bin/sh", "-c", "wget -q localhost || exit 1"]);
        assert_eq!(
            (shell.interval, shell.timeout, shell.start_period, shell.retries),
            (30_000, 30_000, 0, 3)
        );
        for none in ["{}", r#"{"Test":[]}"#, r#"{"Test":["NONE"]}"#, r#"{"Test":["CMD"]}"#] {
            assert_eq!(check(none), None, "{none}");
        }
        let bash = ["/bin/bash".to_owned(), "-ec".to_owned()];
        let json: HealthJson = serde_json::from_str(r#"{"Test":["CMD-SHELL","true"]}"#).unwrap();
        assert_eq!(json.check(Some(&bash)).unwrap().argv, ["/bin/bash", "-ec", "true"]);
    }
}
