use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Connection;

use super::*;
use crate::store::Store;

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn tokens(dir: &std::path::Path) -> Tokens {
    Tokens::open(Store::open(&dir.join("db")).unwrap()).unwrap()
}

#[test]
fn roles_have_an_order() {
    assert!(Role::Viewer < Role::Operator && Role::Operator < Role::Admin);
}

#[test]
fn a_token_is_shown_once_and_kept_as_a_hash() {
    let dir = tempfile::tempdir().unwrap();
    let first = tokens(dir.path());
    let (token, secret) = first.add("ci", Role::Operator, None, now()).unwrap();
    assert!(secret.starts_with("bh_") && secret.len() == 3 + 64, "{}", secret.len());
    let (_, other) = first.add("other", Role::Viewer, Some(now() + HOUR), now()).unwrap();
    assert_ne!(*secret, *other);
    assert_eq!(first.list(), tokens(dir.path()).list());

    let again = tokens(dir.path());
    let caller = again.judge(&secret, now()).unwrap();
    assert_eq!((&*caller.who, caller.through, caller.role), ("ci", Through::Token, Role::Operator));
    for wrong in ["", "bh_", &secret[..secret.len() - 1], &secret.to_uppercase(), &hex(&hash(&secret))] {
        assert_eq!(again.judge(wrong, now()), None, "{wrong}");
    }
    let database = Connection::open(dir.path().join("db")).unwrap();
    let kept: String =
        database.query_row("SELECT hash FROM token WHERE name = 'ci'", [], |row| row.get(0)).unwrap();
    // OpenSSL checks what is stored.
    let judge = std::process::Command::new("sh")
        .args(["-c", "printf %s \"$1\" | openssl dgst -sha256 -r", "sh", &secret])
        .output()
        .unwrap();
    assert!(String::from_utf8(judge.stdout).unwrap().starts_with(&kept));
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
    assert!(matches!(again.add("ci", Role::Admin, None, now()), Err(AddTokenError::Taken(_))));
    assert_eq!(again.remove("ci").unwrap(), Some(token));
    assert_eq!((again.judge(&secret, now()), again.remove("ci").unwrap()), (None, None));
    assert_eq!(tokens(dir.path()).judge(&secret, now()), None, "for good");
}

#[test]
fn a_token_ends() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path());
    let (_, secret) = tokens.add("a", Role::Viewer, Some(now() + HOUR), now()).unwrap();
    let last = now() + HOUR - Duration::from_micros(1);
    assert!(tokens.judge(&secret, last).is_some());
    assert_eq!(tokens.judge(&secret, now() + HOUR), None);
    assert_eq!(tokens.list().len(), 1, "it is listed until it is removed");
}

#[test]
fn names_that_are_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path());
    for name in ["", "a b", "a/b", "ü", "\u{1b}[2J", &"x".repeat(NAME_MAX + 1)] {
        assert!(matches!(tokens.add(name, Role::Viewer, None, now()), Err(AddTokenError::Name(_))), "{name}");
    }
    tokens.add("ops@example.org", Role::Viewer, None, now()).unwrap();
}

#[test]
fn a_row_that_nobody_can_read_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (_, secret) = tokens(dir.path()).add("a", Role::Viewer, None, now()).unwrap();
    let database = Connection::open(dir.path().join("db")).unwrap();
    database.execute("UPDATE token SET role = 'emperor'", []).unwrap();
    assert_eq!(tokens(dir.path()).judge(&secret, now()), None);
}

#[test]
fn a_link_lets_one_browser_in_for_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Logins::open(Store::open(&dir.path().join("db")).unwrap()).unwrap();
    let logins = open();
    let caller = Caller { role: Role::Operator, ..Caller::local(0) };
    let code = logins.invite(&caller, Role::Admin, now());
    assert_eq!(code.expires, now() + CODE_LIFETIME);
    assert_eq!(logins.judge(&code.code, now()), None, "a code is no session");
    let (entered, secret) = logins.enter(&code.code, now() + Duration::from_secs(1)).unwrap();
    assert_eq!((entered.through, entered.role), (Through::Page, Role::Operator), "not more than its maker");
    assert!(logins.enter(&code.code, now()).is_none(), "once");
    assert!(logins.enter(&secret, now()).is_none(), "a session is no code");
    assert_eq!(logins.judge(&secret, now()), Some(entered.clone()));
    assert_eq!(open().judge(&secret, now()), Some(entered), "after a restart, too");
    assert_eq!(open().judge(&secret, now() + SESSION_LIFETIME + Duration::from_secs(1)), None);
    assert_eq!(logins.judge(&secret, now() + SESSION_LIFETIME + Duration::from_secs(1)), None);

    let late = logins.invite(&caller, Role::Viewer, now());
    assert!(logins.enter(&late.code, now() + CODE_LIFETIME).is_none());
    assert!(logins.enter(&late.code, now()).is_none(), "it was shown");

    let code = logins.invite(&caller, Role::Viewer, now());
    let (_, secret) = logins.enter(&code.code, now()).unwrap();
    logins.end(&caller.who);
    assert_eq!((logins.judge(&secret, now()), open().judge(&secret, now())), (None, None));

    let code = logins.invite(&caller, Role::Viewer, now());
    let (_, secret) = logins.enter(&code.code, now()).unwrap();
    logins.leave(&secret);
    assert_eq!((logins.judge(&secret, now()), open().judge(&secret, now())), (None, None));
    let database = Connection::open(dir.path().join("db")).unwrap();
    let kept: i64 = database.query_row("SELECT count(*) FROM login", [], |row| row.get(0)).unwrap();
    assert_eq!(kept, 0);
}
