//! The workload's user and groups: the image's `USER`, looked up in the image's own files.

use crate::image::Image;

/// A user with its groups, as numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    pub home: String,
}

#[derive(Debug, PartialEq, thiserror::Error)]
pub enum AccountError {
    #[error("the image's user {0:?} is not in its /etc/passwd")]
    NoSuchUser(String),
    #[error("the image's group {0:?} is not in its /etc/group")]
    NoSuchGroup(String),
    #[error("the image's user or group {0} is no number from 0 to 2147483647")]
    Range(String),
}

impl Account {
    pub(crate) fn in_image(user: &str, image: &Image) -> Result<Self, AccountError> {
        let file = |path| image.read_to_string(path).unwrap_or_default();
        Self::find(user, &file("/etc/passwd"), &file("/etc/group"))
    }

    /// Resolves `USER[:GROUP]`, each a name or a number, as Docker does (moby/sys/user, `GetExecUser`): a number is never
    /// a name, and need not be listed; of several lines the first counts; a group that is given replaces all others; no
    /// user at all means root.
    fn find(spec: &str, passwd: &str, group: &str) -> Result<Self, AccountError> {
        // Anything after a second colon is ignored.
        let mut parts = spec.split(':');
        let (user, wanted) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let listed = || lines(passwd).map(User::parse);
        let found = match (user, number(user)) {
            ("", _) => listed().find(|u| u.uid == 0),
            (_, Some(uid)) => listed().find(|u| i64::from(u.uid) == uid),
            (name, None) => listed().find(|u| u.name == name),
        };
        let (uid, mut gid) = match &found {
            Some(u) => (u.uid, u.gid),
            None if user.is_empty() => (0, 0),
            None => match number(user) {
                Some(uid) => (in_range(uid, user)?, 0),
                None => return Err(AccountError::NoSuchUser(user.to_owned())),
            },
        };
        let listed_groups = || lines(group).map(Group::parse);
        let mut groups = Vec::new();
        match (wanted, number(wanted)) {
            ("", _) => {
                let name = found.map_or("", |u| u.name);
                let member = |g: &Group<'_>| !name.is_empty() && g.members.split(',').any(|m| m == name);
                groups.extend(listed_groups().filter(member).map(|g| g.gid));
            }
            (_, Some(number)) => {
                let listed = listed_groups().find(|g| i64::from(g.gid) == number);
                gid = listed.map_or_else(|| in_range(number, wanted), |g| Ok(g.gid))?;
            }
            (name, None) => {
                let listed = listed_groups().find(|g| g.name == name);
                gid = listed.ok_or_else(|| AccountError::NoSuchGroup(name.to_owned()))?.gid;
            }
        }
        // The primary group is one of them (CVE-2022-36109: otherwise a process could appear not to be a member).
        groups.insert(0, gid);
        // Looked up by number, not by name: Docker's runtime looks again, when it knows only the number.
        let home = listed().find(|u| u.uid == uid).map(|u| u.home).filter(|home| !home.is_empty());
        Ok(Self { uid, gid, groups, home: home.unwrap_or("/").to_owned() })
    }
}

/// A line of passwd(5).
struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> User<'a> {
    fn parse(line: &'a str) -> Self {
        let mut fields = line.split(':');
        let mut field = || fields.next().unwrap_or_default();
        let (name, _, uid, gid, _, home) = (field(), field(), field(), field(), field(), field());
        Self { name, uid: id(uid), gid: id(gid), home }
    }
}

/// A line of group(5).
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Self {
        let mut fields = line.split(':');
        let mut field = || fields.next().unwrap_or_default();
        let (name, _, gid, members) = (field(), field(), field(), field());
        Self { name, gid: id(gid), members }
    }
}

fn lines(file: &str) -> impl Iterator<Item = &str> {
    file.lines().map(str::trim).filter(|line| !line.is_empty())
}

/// As Go's `strconv.Atoi` reads it.
fn number(text: &str) -> Option<i64> {
    text.parse().ok()
}

/// A field that is not a number, or is missing, counts as 0.
fn id(field: &str) -> u32 {
    // Negative numbers wrap.
    (number(field).unwrap_or(0) & i64::from(u32::MAX)) as u32
}

/// Checks a number that is not listed.
fn in_range(id: i64, text: &str) -> Result<u32, AccountError> {
    i32::try_from(id)
        .ok()
        .and_then(|id| u32::try_from(id).ok())
        .ok_or_else(|| AccountError::Range(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "\n root:x:0:0:root:/root:/bin/sh\r\nbroken:x:zero\nweb:x:33:34::/var/www:/bin/false\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nssl:x:40:ops,web\nops:x:41:ops\n";

    fn account(uid: u32, gid: u32, groups: &[u32], home: &str) -> Account {
        Account { uid, gid, groups: groups.to_vec(), home: home.into() }
    }

    #[test]
    fn users_resolve_as_docker_resolves_them() {
        for (spec, expected) in [
            ("", account(0, 0, &[0], "/root")),
            ("root", account(0, 0, &[0], "/root")),
            ("web", account(33, 34, &[34, 40], "/var/www")),
            ("33", account(33, 34, &[34, 40], "/var/www")),
            ("1000", account(1000, 0, &[0], "/")),
            ("web:ops", account(33, 41, &[41], "/var/www")),
            ("web:", account(33, 34, &[34, 40], "/var/www")),
            ("web:ops:more", account(33, 41, &[41], "/var/www")),
            ("33:41", account(33, 41, &[41], "/var/www")),
            ("1000:1000", account(1000, 1000, &[1000], "/")),
            ("0033", account(33, 34, &[34, 40], "/var/www")),
            (":ops", account(0, 41, &[41], "/root")),
            (":7", account(0, 7, &[7], "/root")),
        ] {
            assert_eq!(Account::find(spec, PASSWD, GROUP), Ok(expected), "{spec:?}");
        }
    }

    #[test]
    fn odd_files_are_read_as_docker_reads_them() {
        // A name of digits that is not user 1000; two names for one number; a line that ends early; a home that is missing.
        let passwd = "1000:x:5:5::/five:\na:x:7:8::/home/a:\nb:x:7:9::/home/b:\nshort:x:12\nhuge:x:3000000000:-2\n\
                      nohome:x:13:13:::\n";
        let group = "5:x:50:\nfull:x:60:a,b\nspaced:x:61: a\nagain:x:62:a\nfull:x:63:a";
        for (spec, expected) in [
            ("1000", account(1000, 0, &[0], "/")),
            ("a", account(7, 8, &[8, 60, 62, 63], "/home/a")),
            ("b", account(7, 9, &[9, 60], "/home/a")),
            ("7", account(7, 8, &[8, 60, 62, 63], "/home/a")),
            ("short", account(12, 0, &[0], "/")),
            ("huge", account(3_000_000_000, u32::MAX - 1, &[u32::MAX - 1], "/")),
            ("nohome", account(13, 13, &[13], "/")),
            ("a:5", account(7, 5, &[5], "/home/a")),
            ("a:full", account(7, 60, &[60], "/home/a")),
        ] {
            assert_eq!(Account::find(spec, passwd, group), Ok(expected), "{spec:?}");
        }
        for spec in ["3000000001", "-1", "a:2147483648"] {
            assert!(matches!(Account::find(spec, passwd, group), Err(AccountError::Range(_))), "{spec}");
        }
        // An invalid number counts as 0, and the first line with 0 is root's.
        assert_eq!(Account::find("", "broken:x:zero:5::/x:\nroot:x:0:0::/root:", "").unwrap().gid, 5);
    }

    #[test]
    fn names_that_are_nowhere_are_errors() {
        assert_eq!(Account::find("nobody", PASSWD, GROUP), Err(AccountError::NoSuchUser("nobody".into())));
        assert_eq!(Account::find("web:none", PASSWD, GROUP), Err(AccountError::NoSuchGroup("none".into())));
    }

    #[test]
    fn an_image_without_the_files_has_numbers_only() {
        assert_eq!(Account::find("", "", ""), Ok(account(0, 0, &[0], "/")));
        assert!(Account::find("web", "", "").is_err());
    }
}
