//! `bridgehead token`, `audit` and `login`: who may do what, and who did.

use std::io::Write;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{AskError, Client, Reading, print, read, show};
use crate::api::documents::{AuditEntry, Invitation, NewToken};
use crate::api::tokens::WantedToken;
use crate::base::text::percent;
use crate::operate::access::{Role, Token};

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token. It is printed now, and never again.
    ///
    /// Whoever has it uses the API by TCP: BRIDGEHEAD_TOKEN=… bridgehead --api https://…, or an `Authorization: Bearer`
    /// header.
    Add {
        /// Who will use it.
        name: String,
        #[arg(long, value_enum)]
        role: Role,
        /// When it ends: `90d`, `12h` [default: never]
        #[arg(long, value_name = "TIME", value_parser = lifetime)]
        expires: Option<u64>,
        #[command(flatten)]
        reading: Reading,
    },
    /// The tokens that there are.
    List(Reading),
    /// Take a token away. It opens nothing from now on.
    Rm {
        name: String,
        #[command(flatten)]
        reading: Reading,
    },
}

#[derive(Debug, Args)]
pub struct Following {
    /// Go on with what is changed.
    #[arg(long, short)]
    follow: bool,
    /// Only entries with a larger id.
    #[arg(long, value_name = "ID", default_value_t = 0)]
    after: u64,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Debug, Args)]
pub struct Login {
    /// What the browser may do, not more than you.
    #[arg(long, value_enum, default_value_t = Role::Viewer)]
    role: Role,
    #[command(flatten)]
    reading: Reading,
}

/// Seconds.
fn lifetime(text: &str) -> Result<u64, String> {
    let wrong = || "a number and `s`, `m`, `h` or `d`, such as `90d`".to_owned();
    let unit = text.char_indices().next_back().ok_or_else(wrong)?;
    let seconds = match unit.1 {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..unit.0].parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).filter(|seconds| *seconds > 0).ok_or_else(wrong)
}

pub(super) fn token(command: TokenCommand, out: &mut dyn Write) -> Result<(), AskError> {
    match command {
        TokenCommand::Add { name, role, expires, reading } => {
            let client = Client::new(&reading.api);
            let body = serde_json::to_value(WantedToken { name, role, lifetime: expires });
            let body = body.expect("it has only text keys");
            let made: NewToken = client.document(client.post("/api/tokens", Some(&body))?)?;
            print(&reading, &made, out, |made| format!("{}\n", made.secret))
        }
        TokenCommand::List(reading) => read::<Vec<Token>>(&reading, "/api/tokens", out, show::tokens),
        TokenCommand::Rm { name, reading } => {
            let client = Client::new(&reading.api);
            client.delete(&format!("/api/tokens/{}", percent(&name, "")))?;
            print(&reading, &json!({ "removed": [name] }), out, |_| format!("removed {name}\n"))
        }
    }
}

pub(super) fn audit(following: Following, out: &mut dyn Write) -> Result<(), AskError> {
    let Following { follow, after, reading } = following;
    let client = Client::new(&reading.api);
    let answer = client.get(&format!("/api/audit?after={after}&follow={}", u8::from(follow)))?;
    if reading.json {
        return client.lines::<Value>(answer, |_, line| out.write_all(line).and_then(|()| out.flush()));
    }
    client.lines::<AuditEntry>(answer, |entry, _| {
        writeln!(out, "{}", show::audit(&entry)).and_then(|()| out.flush())
    })
}

pub(super) fn login(login: Login, out: &mut dyn Write) -> Result<(), AskError> {
    let Login { role, reading } = login;
    let client = Client::new(&reading.api);
    let body = json!({ "role": role });
    let invited: Invitation = client.document(client.post("/api/login", Some(&body))?)?;
    print(&reading, &invited, out, |invited| format!("{}\n", invited.links.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes() {
        assert_eq!(["90d", "12h", "1m", "5s"].map(lifetime), [Ok(90 * 86_400), Ok(43_200), Ok(60), Ok(5)]);
        for wrong in ["", "d", "0d", "-1d", "90", "1w", "1.5h", "99999999999999999d", "1ü"] {
            assert!(lifetime(wrong).is_err(), "{wrong}");
        }
    }
}
