//! Tokens: what lets one boot of one machine have the keys of its volumes, once.
//!
//! A token says that whoever has it read the plan that was written for this boot, from the machine's own
//! address. It travels over the boot segment in clear text as the plan does, so it keeps out who is not on that
//! segment, and late-comers; not somebody on the segment who poses as the machine. That is why a
//! configuration has to ask for keys to be released at all.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use chacha20poly1305::aead::OsRng;
use chacha20poly1305::aead::rand_core::RngCore as _;
use pxe_common::Mac;
use sha2::{Digest as _, Sha256};

use crate::text::hex;

/// From the loader's request to pxe-init's: the image is loaded in between.
const LIFETIME: Duration = Duration::from_secs(15 * 60);

/// What a token is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    pub mac: Mac,
    pub address: Ipv4Addr,
    /// Whose keys.
    pub owner: String,
    pub plan: String,
    pub volumes: Vec<String>,
}

/// The token is not good, or no longer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no keys are released for this token: it is not this boot's, was used before, or is older than {} minutes",
    LIFETIME.as_secs() / 60
)]
pub struct Spent;

/// Tokens that were issued and not used; the last one of each machine.
#[derive(Default)]
pub struct Tokens(HashMap<Mac, Issued>);

struct Issued {
    /// The token itself is with the machine only.
    digest: [u8; 32],
    until: Instant,
    scope: Scope,
}

impl Tokens {
    pub fn issue(&mut self, scope: Scope, now: Instant) -> String {
        self.0.retain(|_, issued| issued.until > now);
        let mut token = [0; 32];
        OsRng.fill_bytes(&mut token);
        let token = hex(&token);
        let digest = Sha256::digest(&token).into();
        self.0.insert(scope.mac, Issued { digest, until: now + LIFETIME, scope });
        token
    }

    /// Takes a token out of use. One that does not fit costs the machine its own: somebody guesses.
    pub fn spend(&mut self, mac: Mac, address: Ipv4Addr, token: &str, now: Instant) -> Result<Scope, Spent> {
        if self.0.get(&mac).is_none_or(|issued| issued.scope.address != address) {
            return Err(Spent);
        }
        let issued = self.0.remove(&mac).ok_or(Spent)?;
        let digest: [u8; 32] = Sha256::digest(token).into();
        if digest == issued.digest && now < issued.until { Ok(issued.scope) } else { Err(Spent) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);

    fn scope() -> Scope {
        let (owner, plan, volumes) = ("n1".into(), "data".into(), vec!["db".into()]);
        Scope { mac: MAC, address: ADDRESS, owner, plan, volumes }
    }

    #[test]
    fn a_token_is_good_once_for_its_machine_and_address_and_time() {
        let now = Instant::now();
        let mut tokens = Tokens::default();
        let token = tokens.issue(scope(), now);
        let elsewhere = Ipv4Addr::new(10, 77, 0, 101);
        assert_eq!(tokens.spend(MAC, elsewhere, &token, now), Err(Spent));
        assert_eq!(tokens.spend(Mac([2; 6]), ADDRESS, &token, now), Err(Spent));
        assert_eq!(tokens.spend(MAC, ADDRESS, &token, now), Ok(scope()));
        assert_eq!(tokens.spend(MAC, ADDRESS, &token, now), Err(Spent), "used");

        let token = tokens.issue(scope(), now);
        assert_eq!(tokens.spend(MAC, ADDRESS, &token, now + LIFETIME), Err(Spent), "too old");
        let old = tokens.issue(scope(), now);
        let token = tokens.issue(scope(), now);
        assert_ne!(old, token);
        assert_eq!(tokens.spend(MAC, ADDRESS, &old, now), Err(Spent), "an earlier boot's");
        assert_eq!(tokens.spend(MAC, ADDRESS, &token, now), Err(Spent), "after a wrong one");
    }
}
