//! Whom the workload runs as: an image's `USER`, looked up in the image's own files.

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
}

impl Account {
    pub(crate) fn in_image(user: &str, image: &Image) -> Result<Self, AccountError> {
        let file = |path| image.read_to_string(path).unwrap_or_default();
        Self::find(user, &file("/etc/passwd"), &file("/etc/group"))
    }

    /// Resolves `USER[:GROUP]`, each a name or a number, as Docker does: a number need not be
    /// listed; a group that is named replaces all others; no user at all means root.
    fn find(spec: &str, passwd: &str, group: &str) -> Result<Self, AccountError> {
        let (user, group_spec) = match spec.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
            None => (spec, None),
        };
        let user = if user.is_empty() { "0" } else { user };

        let listed =
            passwd.lines().filter_map(User::parse).find(|u| u.name == user || u.uid.to_string() == user);
        let (uid, mut gid, home, name) = match (listed, user.parse()) {
            (Some(u), _) => (u.uid, u.gid, u.home, u.name),
            (None, Ok(uid)) => (uid, 0, "/", ""),
            (None, Err(_)) => return Err(AccountError::NoSuchUser(user.to_owned())),
        };
        let listed_groups = || group.lines().filter_map(Group::parse);
        let mut groups = Vec::new();
        if let Some(wanted) = group_spec {
            let listed = listed_groups().find(|g| g.name == wanted).map(|g| g.gid);
            gid = listed
                .or_else(|| wanted.parse().ok())
                .ok_or_else(|| AccountError::NoSuchGroup(wanted.to_owned()))?;
        } else if !name.is_empty() {
            groups.extend(listed_groups().filter(|g| g.members.split(',').any(|m| m == name)).map(|g| g.gid));
        }
        let home = if home.is_empty() { "/" } else { home };
        Ok(Self { uid, gid, groups, home: home.to_owned() })
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
    fn parse(line: &'a str) -> Option<Self> {
        let fields: Vec<_> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
        Some(Self { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    }
}

/// A line of group(5).
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let fields: Vec<_> = line.split(':').collect();
        let [name, _, gid, members, ..] = fields[..] else { return None };
        Some(Self { name, gid: gid.parse().ok()?, members: members.trim() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken:x:zero\nweb:x:33:34::/var/www:/bin/false\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nssl:x:40:ops,web\nops:x:41:ops\n";

    fn account(uid: u32, gid: u32, groups: &[u32], home: &str) -> Account {
        Account { uid, gid, groups: groups.to_vec(), home: home.into() }
    }

    #[test]
    fn users_resolve_as_docker_resolves_them() {
        for (spec, expected) in [
            ("", account(0, 0, &[], "/root")),
            ("root", account(0, 0, &[], "/root")),
            ("web", account(33, 34, &[40], "/var/www")),
            ("33", account(33, 34, &[40], "/var/www")),
            ("1000", account(1000, 0, &[], "/")),
            ("web:ops", account(33, 41, &[], "/var/www")),
            ("1000:1000", account(1000, 1000, &[], "/")),
            (":ops", account(0, 41, &[], "/root")),
        ] {
            assert_eq!(Account::find(spec, PASSWD, GROUP), Ok(expected), "{spec:?}");
        }
    }

    #[test]
    fn names_that_are_nowhere_are_errors() {
        assert_eq!(Account::find("nobody", PASSWD, GROUP), Err(AccountError::NoSuchUser("nobody".into())));
        assert_eq!(Account::find("web:none", PASSWD, GROUP), Err(AccountError::NoSuchGroup("none".into())));
    }

    #[test]
    fn an_image_without_the_files_has_numbers_only() {
        assert_eq!(Account::find("", "", ""), Ok(account(0, 0, &[], "/")));
        assert!(Account::find("web", "", "").is_err());
    }
}
