//! Logins to machines whose boot stopped: a password for each boot, whose hash the machine gets, and what the machine
//! reports of its SSH server. In memory only: after a restart the daemon has no passwords of earlier boots.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use chacha20poly1305::aead::OsRng;
use chacha20poly1305::aead::rand_core::RngCore as _;
use jiff::Timestamp;
use pxe_common::Mac;
use pxe_contract::rescue::Login;
use sha_crypt::{Sha512Params, sha512_crypt_b64};
use zeroize::Zeroizing;

use crate::base::lock::Unpoisoned as _;

/// Machines that are remembered: those that got a password last.
const MACHINES_MAX: usize = 16384;

/// The rescues' handle. Cloning it is cheap.
#[derive(Clone, Default)]
pub struct Rescues(Arc<Mutex<HashMap<Mac, Rescue>>>);

/// One machine's rescue, from the moment that its boot got a password.
struct Rescue {
    made: Timestamp,
    /// None once somebody has logged in.
    password: Option<Zeroizing<String>>,
    hash: String,
    /// The machine has asked for an address since, so its requests belong to another boot.
    restarted: bool,
    stands: Option<Stands>,
    /// The failed boot was released: the machine is to boot again.
    released: bool,
}

/// A machine that has stopped and has an SSH server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stands {
    pub host_key: String,
    pub heard: Timestamp,
}

/// How to get in. Its `Debug` leaves the password out.
#[derive(Clone, PartialEq, Eq)]
pub struct WayIn {
    /// None once it was used.
    pub password: Option<Zeroizing<String>>,
    pub stands: Stands,
}

impl fmt::Debug for WayIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WayIn").field("stands", &self.stands).finish_non_exhaustive()
    }
}

impl Rescues {
    /// `/rescue.json` for a boot of this machine, the same until it reboots.
    pub fn document(&self, mac: Mac, now: Timestamp) -> String {
        let mut rescues = self.rescues();
        if rescues.get(&mac).is_none_or(|rescue| rescue.restarted) {
            if rescues.len() >= MACHINES_MAX
                && let Some(oldest) =
                    rescues.iter().min_by_key(|(_, rescue)| rescue.made).map(|(mac, _)| *mac)
            {
                rescues.remove(&oldest);
            }
            let (password, hash) = new_password();
            let (password, restarted, stands, released) = (Some(password), false, None, false);
            rescues.insert(mac, Rescue { made: now, password, hash, restarted, stands, released });
        }
        let login = Login { password_hash: rescues[&mac].hash.clone() };
        serde_json::to_string(&login).expect("it has only text keys")
    }

    /// The machine reports that it has stopped, with an SSH server whose key is `host_key`, and whether somebody
    /// has logged in. Returns whether it is to stay stopped, as far as rescues are concerned.
    pub fn stands(&self, mac: Mac, host_key: Option<String>, logged_in: bool, now: Timestamp) -> bool {
        let mut rescues = self.rescues();
        let Some(rescue) = rescues.get_mut(&mac) else { return true };
        if let Some(host_key) = host_key.filter(|key| is_fingerprint(key)) {
            rescue.stands = Some(Stands { host_key, heard: now });
        }
        if logged_in {
            rescue.password = None;
        }
        !std::mem::take(&mut rescue.released)
    }

    /// How to get into a machine that has stopped.
    pub fn way_in(&self, mac: Mac) -> Option<WayIn> {
        let rescues = self.rescues();
        let rescue = rescues.get(&mac)?;
        Some(WayIn { password: rescue.password.clone(), stands: rescue.stands.clone()? })
    }

    /// Releases a failed boot.
    pub fn release(&self, mac: Mac, now: Timestamp) {
        // Also without a password, because the machine has a console.
        self.rescues().entry(mac).or_insert_with(|| Rescue::without_password(now)).released = true;
    }

    /// The machine reboots.
    pub fn restarted(&self, mac: Mac) {
        if let Some(rescue) = self.rescues().get_mut(&mac) {
            rescue.restarted = true;
            rescue.released = false;
        }
    }

    fn rescues(&self) -> MutexGuard<'_, HashMap<Mac, Rescue>> {
        self.0.lock().unpoisoned()
    }
}

impl Rescue {
    fn without_password(now: Timestamp) -> Self {
        Self {
            made: now,
            password: None,
            hash: String::new(),
            restarted: true,
            stands: None,
            released: false,
        }
    }
}

/// Twenty characters of five random bits each, and their hash (SHA-512 crypt, as `openssl passwd -6` makes it): a
/// hundred bits can't be guessed, even by somebody who sees the hash on the wire.
fn new_password() -> (Zeroizing<String>, String) {
    let parts: [Zeroizing<String>; 4] = std::array::from_fn(|_| Zeroizing::new(random_letters(5)));
    let password = Zeroizing::new(parts.each_ref().map(|part| part.as_str()).join("-"));
    let salt = random_letters(16);
    let params = Sha512Params::default();
    let digest = sha512_crypt_b64(password.as_bytes(), salt.as_bytes(), &params).expect("both are short");
    (password, format!("$6${salt}${digest}"))
}

fn random_letters(count: usize) -> String {
    // Without i, l, o and u: somebody has to type it.
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut random = vec![0; count];
    OsRng.fill_bytes(&mut random);
    random.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect()
}

/// `SHA256:` and 32 bytes in base64, as ssh shows a key. It is shown on terminals.
fn is_fingerprint(text: &str) -> bool {
    let base64 = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
    text.strip_prefix("SHA256:").is_some_and(|digest| digest.len() == 43 && digest.bytes().all(base64))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const KEY: &str = "SHA256:ZsgIzMAHQzHShEDAuTSjHfpQiPUDWvfD57R4JIiO1JM";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn hash(document: &str) -> String {
        let document: serde_json::Value = serde_json::from_str(document).unwrap();
        document["password-hash"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_password_is_a_boots_and_shown_once_the_machine_stands_still() {
        let rescues = Rescues::default();
        let first = rescues.document(MAC, at(1));
        assert_eq!(rescues.document(MAC, at(2)), first, "the loader asked twice");
        assert_eq!(rescues.way_in(MAC), None);
        assert!(rescues.stands(MAC, Some(KEY.into()), false, at(3)));
        let way_in = rescues.way_in(MAC).unwrap();
        assert_eq!(way_in.stands, Stands { host_key: KEY.into(), heard: at(3) });
        let password = way_in.password.unwrap().to_string();
        assert!(!first.contains(&password));
        // An independent check of the hash.
        let hash = hash(&first);
        let salt = hash.split('$').nth(2).unwrap();
        let openssl =
            Command::new("openssl").args(["passwd", "-6", "-salt", salt, &password]).output().unwrap();
        assert_eq!(String::from_utf8(openssl.stdout).unwrap().trim(), hash);

        assert!(rescues.stands(MAC, Some(KEY.into()), true, at(5)));
        assert_eq!(rescues.way_in(MAC).unwrap().password, None, "it was used");
        rescues.restarted(MAC);
        assert_ne!(rescues.document(MAC, at(9)), first);
        assert_eq!(rescues.way_in(MAC), None, "another boot's");
    }

    #[test]
    fn a_failed_boot_is_released_once_and_only_that() {
        let rescues = Rescues::default();
        assert!(rescues.stands(MAC, None, false, at(1)), "also one that has a console only");
        rescues.release(MAC, at(2));
        assert!(!rescues.stands(MAC, None, false, at(3)));
        assert!(rescues.stands(MAC, None, false, at(4)), "the next one");
        rescues.release(MAC, at(5));
        rescues.restarted(MAC);
        assert!(rescues.stands(MAC, None, false, at(6)), "it was meant for the boot before");
    }

    #[test]
    fn keys_are_fingerprints_and_nothing_else() {
        let rescues = Rescues::default();
        rescues.document(MAC, at(1));
        for forged in ["", "SHA256:", "SHA256:\u{1b}[2J", &format!("{KEY}x"), &KEY.replace("SHA256", "MD5")] {
            rescues.stands(MAC, Some(forged.into()), false, at(2));
            assert_eq!(rescues.way_in(MAC), None, "{forged}");
        }
    }
}
