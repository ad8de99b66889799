//! Tokens and sessions of each machine's last boot. Pure: time is passed in.
//!
//! A token is good for one thing: a certificate for a key that the node made. The certificate is the boot's session,
//! until the machine gets another token.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use jiff::Timestamp;
use pxe_common::Mac;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::base::text::hex;

/// How long a token is valid: from the loader's request to pxe-init's, while other initrds are loaded.
pub const LIFETIME: Duration = Duration::from_secs(15 * 60);

/// The keys of encrypted volumes that a boot may get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Whose volumes.
    pub owner: String,
    pub plan: String,
    pub volumes: Vec<String>,
}

/// One machine's last boot. Only the machine has the token itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Boot {
    address: Ipv4Addr,
    issued: Timestamp,
    /// SHA-256 of the token, in hexadecimal; `None` once it came from elsewhere.
    token: Option<String>,
    /// The same of the boot before: it tells an earlier token from a guessed one.
    previous: Option<String>,
    pub keys: Option<Scope>,
    /// The same, withheld until a person confirms that this boot is the machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    withheld: Option<Scope>,
    pub session: Option<Session>,
}

/// What a token was traded for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// SHA-256 of the request for the certificate.
    request: String,
    /// PEM.
    pub certificate: String,
}

/// The machine runs what it booted, so it is not its firmware that asks.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("this boot has its session already, and the machine did not start anew since: boot it again")]
pub struct Running;

/// Why a token is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("it is no token of this appliance's")]
    Unknown,
    #[error("it is the token of an earlier boot")]
    Earlier,
    #[error("it was used before")]
    Used,
    #[error("it is older than {} minutes", LIFETIME.as_secs() / 60)]
    Late,
    #[error("it is another machine's, {owner} at {address}")]
    Elsewhere { owner: Mac, address: Ipv4Addr },
}

/// A token that is refused, and the machine that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misused {
    pub owner: Option<Mac>,
    pub why: Refused,
}

/// What to do for a valid token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Good {
    /// Sign the request, then call [`Boots::begin`].
    First,
    /// The certificate for the same request, whose first answer was lost.
    Again(String),
}

#[derive(Default)]
pub struct Boots {
    by_mac: HashMap<Mac, Boot>,
    /// Machines that sent no DISCOVER since their session began.
    running: HashSet<Mac>,
    /// Machines for which that is unknown, because the daemon was not running. One that boots sends a DISCOVER.
    doubtful: HashSet<Mac>,
    /// Until when a person vouches for a machine: whoever asks for its next token is the machine.
    vouched: HashMap<Mac, Timestamp>,
}

/// What [`Boots::rekey`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rekeyed {
    /// The present boot has its keys now.
    ThisBoot,
    /// The boot of the next token gets its keys, if that token is issued by then.
    NextBoot(Timestamp),
}

/// What kind of boot a token begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issued {
    /// A new one.
    Boot,
    /// The machine may still run what it booted, and somebody else may have asked: the session gets no keys.
    Second,
    /// The same, but a person vouched for the machine: the session gets its keys.
    Vouched,
}

impl Boots {
    /// Boots as they were stored. Which of the machines still run is unknown: they may have restarted meanwhile.
    pub fn kept(boots: impl IntoIterator<Item = (Mac, Boot)>) -> Self {
        let by_mac: HashMap<Mac, Boot> = boots.into_iter().collect();
        let had_session = |(mac, boot): (&Mac, &Boot)| boot.session.as_ref().map(|_| *mac);
        let doubtful = by_mac.iter().filter_map(had_session).collect();
        Self { by_mac, running: HashSet::new(), doubtful, vouched: HashMap::new() }
    }

    pub fn get(&self, mac: Mac) -> Option<&Boot> {
        self.by_mac.get(&mac)
    }

    /// Begins a new boot. From now on only its token counts, and nothing of the boot before.
    pub fn issue(
        &mut self,
        mac: Mac,
        address: Ipv4Addr,
        token: &str,
        keys: Option<Scope>,
        now: Timestamp,
    ) -> Result<Issued, Running> {
        let (runs, may_run) = (self.running.contains(&mac), self.doubtful.contains(&mac));
        // A person's word counts once.
        let vouched = self.vouched.remove(&mac).is_some_and(|until| now <= until);
        let issued = match (runs || may_run, vouched) {
            (false, _) => Issued::Boot,
            (true, true) => Issued::Vouched,
            (true, false) if runs => return Err(Running),
            (true, false) => Issued::Second,
        };
        if issued == Issued::Vouched {
            self.restarted(mac);
        }
        let (keys, withheld) = if issued == Issued::Second { (None, keys) } else { (keys, None) };
        let previous = self.by_mac.remove(&mac).and_then(|boot| boot.token.or(boot.previous));
        let token = Some(digest(token.as_bytes()));
        self.by_mac
            .insert(mac, Boot { address, issued: now, token, previous, keys, withheld, session: None });
        Ok(issued)
    }

    /// Judges a token that came with a request for a certificate, from `mac` at `address`. A token that comes from
    /// another machine or address than its own is invalid from then on.
    pub fn judge(
        &mut self,
        mac: Mac,
        address: Ipv4Addr,
        token: &str,
        request: &[u8],
        now: Timestamp,
    ) -> Result<Good, Misused> {
        let token = Some(digest(token.as_bytes()));
        let Some((&owner, boot)) =
            self.by_mac.iter_mut().find(|(_, boot)| boot.token == token || boot.previous == token)
        else {
            return Err(Misused { owner: None, why: Refused::Unknown });
        };
        let misused = |why| Err(Misused { owner: Some(owner), why });
        if boot.previous == token {
            return misused(Refused::Earlier);
        }
        if (owner, boot.address) != (mac, address) {
            // It is remembered as an earlier token, and no longer valid.
            (boot.token, boot.previous) = (None, token);
            return misused(Refused::Elsewhere { owner, address: boot.address });
        }
        match &boot.session {
            Some(session) if session.request == digest(request) => {
                Ok(Good::Again(session.certificate.clone()))
            }
            Some(_) => misused(Refused::Used),
            None if now.duration_since(boot.issued).unsigned_abs() > LIFETIME => misused(Refused::Late),
            None => Ok(Good::First),
        }
    }

    /// Begins the boot's session. From now on, what the machine says without the session does not count.
    pub fn begin(&mut self, mac: Mac, request: &[u8], certificate: String) {
        if let Some(boot) = self.by_mac.get_mut(&mac) {
            boot.session = Some(Session { request: digest(request), certificate });
            self.running.insert(mac);
        }
    }

    /// A person confirms that the machine boots, and that it is the machine.
    pub fn rekey(&mut self, mac: Mac, now: Timestamp) -> Rekeyed {
        if let Some(boot) = self.by_mac.get_mut(&mac)
            && let Some(keys) = boot.withheld.take()
        {
            boot.keys = Some(keys);
            self.doubtful.remove(&mac);
            return Rekeyed::ThisBoot;
        }
        let until = now + LIFETIME;
        // Drops those that expired.
        self.vouched.retain(|_, until| now <= *until);
        self.vouched.insert(mac, until);
        Rekeyed::NextBoot(until)
    }

    /// The machine restarted: it may get another token.
    pub fn restarted(&mut self, mac: Mac) {
        self.running.remove(&mac);
        self.doubtful.remove(&mac);
    }
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);
    const OTHER: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 2]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
    const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 101);
    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn issued() -> Boots {
        let mut boots = Boots::default();
        boots.issue(MAC, ADDRESS, "first", None, NOW).unwrap();
        boots
    }

    fn refused(good: Result<Good, Misused>) -> Refused {
        let misused = good.unwrap_err();
        assert_eq!(misused.owner, Some(MAC), "{misused:?}");
        misused.why
    }

    #[test]
    fn a_second_session_of_a_boot_gets_no_keys() {
        let keys = || Some(Scope { owner: "n1".into(), plan: "p".into(), volumes: vec!["db".into()] });
        let mut boots = Boots::default();
        assert_eq!(boots.issue(MAC, ADDRESS, "first", keys(), NOW), Ok(Issued::Boot));
        boots.begin(MAC, b"key", "certificate".into());
        // The daemon restarts. As far as it knows, the machine may still run.
        let kept = |boots: &Boots| Boots::kept([(MAC, boots.get(MAC).unwrap().clone())]);
        let mut again = kept(&boots);
        assert_eq!(again.issue(MAC, ADDRESS, "second", keys(), NOW), Ok(Issued::Second));
        assert_eq!(again.get(MAC).unwrap().keys, None);
        assert_eq!(again.issue(MAC, ADDRESS, "third", keys(), NOW), Ok(Issued::Second), "nor a third");
        let mut again = kept(&boots);
        again.restarted(MAC);
        assert_eq!(again.issue(MAC, ADDRESS, "second", keys(), NOW), Ok(Issued::Boot));
        assert_eq!(again.get(MAC).unwrap().keys, keys());
    }

    #[test]
    fn a_persons_word_releases_what_was_kept_back_once() {
        let keys = || Some(Scope { owner: "n1".into(), plan: "p".into(), volumes: vec!["db".into()] });
        let mut boots = Boots::default();
        boots.issue(MAC, ADDRESS, "first", keys(), NOW).unwrap();
        boots.begin(MAC, b"key", "certificate".into());
        let runs = boots.get(MAC).unwrap().clone();
        let kept = || Boots::kept([(MAC, runs.clone())]);

        // Rekeyed after the boot, which was refused its keys.
        let mut again = kept();
        assert_eq!(again.issue(MAC, ADDRESS, "second", keys(), NOW), Ok(Issued::Second));
        again.begin(MAC, b"key", "certificate".into());
        let text = serde_json::to_string(again.get(MAC).unwrap()).unwrap();
        let mut again = Boots::kept([(MAC, serde_json::from_str(&text).unwrap())]);
        assert_eq!(again.rekey(MAC, NOW), Rekeyed::ThisBoot);
        assert_eq!(again.get(MAC).unwrap().keys, keys());
        assert_eq!(again.rekey(MAC, NOW), Rekeyed::NextBoot(NOW + LIFETIME), "it has them");

        // Rekeyed before the boot, also for a machine that may still run. It counts for one token, and not forever.
        let mut again = kept();
        assert_eq!(again.rekey(MAC, NOW), Rekeyed::NextBoot(NOW + LIFETIME));
        assert_eq!(again.issue(MAC, ADDRESS, "second", keys(), NOW + LIFETIME), Ok(Issued::Vouched));
        assert_eq!(again.get(MAC).unwrap().keys, keys());
        again.begin(MAC, b"key", "certificate".into());
        assert_eq!(again.issue(MAC, ADDRESS, "third", keys(), NOW), Err(Running));
        assert_eq!(again.rekey(OTHER, NOW), Rekeyed::NextBoot(NOW + LIFETIME));
        assert_eq!(again.issue(MAC, ADDRESS, "third", keys(), NOW), Err(Running), "another machine's");
        assert_eq!(again.rekey(MAC, NOW), Rekeyed::NextBoot(NOW + LIFETIME));
        let late = NOW + LIFETIME + Duration::from_secs(1);
        assert_eq!(again.issue(MAC, ADDRESS, "third", keys(), late), Err(Running));
        let mut again = kept();
        again.rekey(MAC, NOW);
        assert_eq!(again.issue(MAC, ADDRESS, "second", keys(), late), Ok(Issued::Second));
    }

    #[test]
    fn a_token_is_good_once_and_a_lost_answer_is_given_again() {
        let mut boots = issued();
        assert_eq!(boots.judge(MAC, ADDRESS, "first", b"key", NOW), Ok(Good::First));
        boots.begin(MAC, b"key", "certificate".into());
        let again = Good::Again("certificate".into());
        assert_eq!(boots.judge(MAC, ADDRESS, "first", b"key", NOW), Ok(again.clone()));
        assert_eq!(refused(boots.judge(MAC, ADDRESS, "first", b"another", NOW)), Refused::Used);
        assert_eq!(boots.judge(MAC, ADDRESS, "first", b"key", NOW), Ok(again), "a thief ends no session");
        let unknown = Misused { owner: None, why: Refused::Unknown };
        assert_eq!(boots.judge(MAC, ADDRESS, "guess", b"key", NOW), Err(unknown));
    }

    #[test]
    fn a_token_from_elsewhere_is_nobodys_any_more() {
        for (mac, address) in [(OTHER, ADDRESS), (MAC, ELSEWHERE)] {
            let mut boots = issued();
            let why = refused(boots.judge(mac, address, "first", b"key", NOW));
            assert_eq!(why, Refused::Elsewhere { owner: MAC, address: ADDRESS });
            assert_eq!(refused(boots.judge(MAC, ADDRESS, "first", b"key", NOW)), Refused::Earlier);
        }
    }

    #[test]
    fn a_token_is_good_for_its_time() {
        let mut boots = issued();
        assert!(boots.judge(MAC, ADDRESS, "first", b"key", NOW + LIFETIME).is_ok());
        let late = NOW + LIFETIME + Duration::from_secs(1);
        assert_eq!(refused(boots.judge(MAC, ADDRESS, "first", b"key", late)), Refused::Late);
    }

    #[test]
    fn a_new_boot_ends_the_one_before_and_needs_a_restart() {
        let mut boots = issued();
        boots.issue(MAC, ADDRESS, "second", None, NOW).unwrap();
        assert_eq!(refused(boots.judge(MAC, ADDRESS, "first", b"key", NOW)), Refused::Earlier);
        boots.begin(MAC, b"key", "certificate".into());
        assert_eq!(boots.issue(MAC, ADDRESS, "third", None, NOW), Err(Running));
        boots.restarted(MAC);
        boots.issue(MAC, ADDRESS, "third", None, NOW).unwrap();
        assert_eq!(boots.get(MAC).unwrap().session, None);
    }

    #[test]
    fn what_is_kept_reads_back_and_has_no_token() {
        let mut boots = issued();
        boots.begin(MAC, b"key", "certificate".into());
        let boot = boots.get(MAC).unwrap();
        let text = serde_json::to_string(boot).unwrap();
        assert!(!text.contains("first"), "{text}");
        assert_eq!(&serde_json::from_str::<Boot>(&text).unwrap(), boot);
    }
}
