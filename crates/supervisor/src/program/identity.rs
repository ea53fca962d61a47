//! Who a container runs as: user, groups, capabilities.

use std::fs;

use supervisor::UserSpec;

use super::{Failure, Step, sys};

/// User, group and supplementary groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home folder, from `/etc/passwd`.
    pub home: String,
}

/// Looks the user up in the files of the container, whose root is this process' root by now.
pub fn resolve(user: &UserSpec) -> Result<Identity, Failure> {
    // Either file may be missing or be no text: a static image has none.
    let read = |path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    lookup(user, &read("/etc/passwd"), &read("/etc/group"))
}

fn lookup(user: &UserSpec, passwd: &str, group: &str) -> Result<Identity, Failure> {
    let (name, group_name) = match user.image_user.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (user.image_user.as_str(), None),
    };
    let accounts = || passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 6);
    let groups = || group.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 3);
    let by_id = |uid: u32| accounts().find(|fields| fields[2].parse() == Ok(uid));
    let account = match (user.uid, name) {
        (Some(uid), _) => by_id(uid),
        (None, "") => by_id(0),
        (None, name) => accounts().find(|fields| fields[0] == name).or_else(|| by_id(name.parse().ok()?)),
    };
    let uid = match (user.uid, name) {
        (Some(uid), _) => uid,
        (None, "") => 0,
        (None, name) => {
            match account.as_ref().and_then(|fields| fields[2].parse().ok()).or_else(|| name.parse().ok()) {
                Some(uid) => uid,
                None => {
                    return Err(Failure::config(
                        "looking up the image's user",
                        format!("{name:?} is not in /etc/passwd"),
                    ));
                }
            }
        }
    };
    let own_gid = account.as_ref().and_then(|fields| fields[3].parse().ok());
    let gid = match (user.gid, group_name) {
        (Some(gid), _) => gid,
        (None, Some(name)) if user.uid.is_none() => {
            let found = groups().find(|fields| fields[0] == name).and_then(|fields| fields[2].parse().ok());
            found.or_else(|| name.parse().ok()).ok_or_else(|| {
                Failure::config("looking up the image's group", format!("{name:?} is not in /etc/group"))
            })?
        }
        _ => own_gid.unwrap_or(0),
    };
    if user.must_not_be_root && uid == 0 {
        return Err(Failure::config("checking the user", "container has runAsNonRoot and image will run as root"));
    }
    let mut all = user.groups.clone();
    if let Some(login) = account.as_ref().map(|fields| fields[0]) {
        let member = |fields: &Vec<&str>| fields.get(3).is_some_and(|members| members.split(',').any(|m| m == login));
        all.extend(groups().filter(member).filter_map(|fields| fields[2].parse::<u32>().ok()));
    }
    all.push(gid);
    all.sort_unstable();
    all.dedup();
    let home = account.map(|fields| fields[5].to_string()).filter(|home| !home.is_empty());
    Ok(Identity { uid, gid, groups: all, home: home.unwrap_or_else(|| "/".to_string()) })
}

/// Becomes that user, with no more than those capabilities; root keeps them, others could only inherit them.
pub fn become_identity(identity: &Identity, capabilities: &[u8], privileges_may_grow: bool) -> Result<(), Failure> {
    let wanted: u64 = capabilities.iter().filter(|number| **number < 64).fold(0, |set, number| set | 1 << number);
    for number in 0..64u64 {
        let keep = wanted & (1 << number) != 0;
        // The first number that the kernel does not know ends the list.
        if !keep && sys::prctl(libc::PR_CAPBSET_DROP, number).is_err() {
            break;
        }
    }
    sys::prctl(libc::PR_SET_KEEPCAPS, 1).step("keeping capabilities")?;
    sys::become_user(identity.uid, identity.gid, &identity.groups)
        .step(format!("becoming user {} group {}", identity.uid, identity.gid))?;
    sys::prctl(libc::PR_SET_KEEPCAPS, 0).step("dropping capabilities")?;
    if !privileges_may_grow {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).step("setting no_new_privs")?;
    }
    sys::capset(if identity.uid == 0 { wanted } else { 0 }).step("setting capabilities")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nweb:x:33:44::/var/www:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nwww:x:44:\nlogs:x:55:web,other\n";

    fn spec(image_user: &str) -> UserSpec {
        UserSpec { image_user: image_user.into(), ..UserSpec::default() }
    }

    fn check(user: &UserSpec, expected: &str) {
        let text = match lookup(user, PASSWD, GROUP) {
            Ok(found) => format!("{}:{} {:?} {}", found.uid, found.gid, found.groups, found.home),
            Err(failure) => failure.to_string(),
        };
        assert_eq!(text, expected);
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        check(&spec(""), "0:0 [0] /root");
        check(&spec("web"), "33:44 [44, 55] /var/www");
        check(&spec("33"), "33:44 [44, 55] /var/www");
        check(&spec("web:logs"), "33:55 [55] /var/www");
        check(&spec("1000:7"), "1000:7 [7] /");
        check(&spec("1000"), "1000:0 [0] /");
        check(&UserSpec { uid: Some(33), gid: Some(9), groups: vec![3], ..spec("root") }, "33:9 [3, 9, 55] /var/www");
    }

    #[test]
    fn unknown_users_and_a_forbidden_root_are_refused() {
        check(&spec("nobody"), "looking up the image's user: \"nobody\" is not in /etc/passwd");
        let strict = UserSpec { must_not_be_root: true, ..spec("") };
        check(&strict, "checking the user: container has runAsNonRoot and image will run as root");
    }
}
