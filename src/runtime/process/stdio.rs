//! Standard streams of a container's process.

use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Pid, Uid, chown};

use crate::runtime::error::{Error, Result};

/// Makes the user of the process `pid` the owner of its standard streams, so that it can open them
/// again by name (`/dev/stderr`). `uid` is the user's id within the container. As with runc, the
/// group stays, and so does `/dev/null`.
///
/// In a user namespace, only files of the container's own users change their owner.
///
/// # Errors
/// If an owner cannot be changed.
pub(crate) fn give_to_user(pid: Pid, uid: u32) -> Result<()> {
    let map = fs::read_to_string(format!("/proc/{pid}/uid_map"))
        .map_err(Error::file("read", format!("/proc/{pid}/uid_map")))?;
    // Needed to recognise `/dev/null`; every system has it.
    let null = fs::metadata("/dev/null").map_err(Error::file("look at", "/dev/null"))?;
    let Some(owner) = on_host(&map, uid) else {
        return Ok(());
    };
    for fd in 0..3 {
        // The link leads to the open file itself, even if the file has no path.
        let path = format!("/proc/{pid}/fd/{fd}");
        let Ok(file) = Path::new(&path).metadata() else {
            continue;
        };
        if file.uid() == owner || file.rdev() == null.rdev() || !is_mapped(&map, file.uid()) {
            continue;
        }
        match chown(path.as_str(), Some(Uid::from_raw(owner)), None) {
            // A read-only file system, or one that does not know the owner (NFS with root
            // squashed).
            Ok(()) | Err(Errno::EPERM | Errno::EINVAL | Errno::EROFS) => {}
            Err(errno) => {
                return Err(Error::system(
                    "give the standard streams to the process's user",
                )(errno));
            }
        }
    }
    Ok(())
}

/// Returns the targets of a process's stdin, stdout and stderr; `/dev/null` if one cannot be read,
/// as with runc.
pub(crate) fn descriptors(pid: Pid) -> Vec<String> {
    (0..3)
        .map(|fd| {
            fs::read_link(format!("/proc/{pid}/fd/{fd}")).map_or_else(
                |_| "/dev/null".into(),
                |path| path.to_string_lossy().into_owned(),
            )
        })
        .collect()
}

/// Duplicates a standard stream of this process.
///
/// # Errors
/// Those of dup(2).
pub(crate) fn duplicate(stream: BorrowedFd) -> Result<OwnedFd> {
    stream
        .try_clone_to_owned()
        .map_err(Error::file("copy a descriptor", "/proc/self/fd"))
}

/// Returns the ranges of a `uid_map`: first id inside, first id outside, count
/// (user_namespaces(7)).
fn ranges(map: &str) -> impl Iterator<Item = (u32, u32, u32)> {
    map.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().map(str::parse);
        match (fields.next()?, fields.next()?, fields.next()?) {
            (Ok(inside), Ok(outside), Ok(count)) => Some((inside, outside, count)),
            _ => None,
        }
    })
}

/// Returns the host's id of the container's user `uid`.
fn on_host(map: &str, uid: u32) -> Option<u32> {
    ranges(map).find_map(|(inside, outside, count)| {
        let offset = uid.checked_sub(inside)?;
        (offset < count)
            .then(|| outside.checked_add(offset))
            .flatten()
    })
}

/// Returns whether the host's user `uid` is one of the container's.
fn is_mapped(map: &str, uid: u32) -> bool {
    ranges(map).any(|(_, outside, count)| {
        uid.checked_sub(outside)
            .is_some_and(|offset| offset < count)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_mapped() {
        let host = "         0          0 4294967295\n";
        assert_eq!(on_host(host, 1000), Some(1000));
        assert!(is_mapped(host, 0));
        let map = "0 200000 1000\n1000 500 1\n";
        assert_eq!(on_host(map, 0), Some(200_000));
        assert_eq!(on_host(map, 1000), Some(500));
        assert_eq!(on_host(map, 1001), None);
        assert!(is_mapped(map, 200_999));
        assert!(!is_mapped(map, 0));
    }
}
