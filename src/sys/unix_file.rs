//! Unix sockets that are bound to files.
#![allow(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::unistd::Pid;

use super::process::{copy_descriptor, pidfd_open};

/// `SIOCUNIXFILE` of linux/un.h (Linux 4.10): opens the file that a Unix socket is bound to, like
/// `O_PATH`.
const SIOCUNIXFILE: u64 = 0x89e0;

/// The kernel appends this to the path of an open file whose name was removed (fs/d_path.c).
const DELETED: &[u8] = b" (deleted)";

/// The file that a Unix socket is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BoundFile {
    /// Path in the mount namespace of the socket's process.
    pub path: PathBuf,
    /// Device and inode.
    pub id: FileId,
    /// Whether the name that the socket was bound by was removed. [`Self::path`] is no path then.
    /// The file may still have other names.
    pub is_deleted: bool,
}

/// Identity of a file, independent of its names: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Takes the identity from the result of stat(2).
    #[must_use]
    pub fn of(meta: &fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
        }
    }
}

/// Returns the files of all Unix sockets that `processes` have open. Processes and sockets that end
/// during the call are left out.
#[must_use]
pub fn bound_files(processes: &[Pid]) -> HashSet<BoundFile> {
    // Asking about a socket costs system calls, and most sockets have no name.
    let mut tables = HashMap::new();
    let mut files = HashSet::new();
    let mut seen = HashSet::new();
    for pid in processes {
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/net")) else {
            continue;
        };
        let named = tables.entry(namespace).or_insert_with(|| named(*pid));
        if named.is_empty() {
            continue;
        }
        for (number, inode) in sockets(*pid) {
            if named.contains(&inode)
                && seen.insert(inode)
                && let Ok(Some(file)) = bound_file(*pid, number)
            {
                files.insert(file);
            }
        }
    }
    files
}

/// Inodes of the sockets with a name in the file system, in the network namespace of a process.
fn named(pid: Pid) -> HashSet<u64> {
    let table = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap_or_default();
    named_inodes(&table)
}

/// Parses `/proc/PID/net/unix`. The seventh column is the inode. The eighth is the name, if any; a
/// name that begins with `@` is no file (unix(7)).
fn named_inodes(table: &str) -> HashSet<u64> {
    let inode = |line: &str| {
        let mut columns = line.split_whitespace().skip(6);
        let inode = columns.next()?.parse().ok()?;
        (!columns.next()?.starts_with('@')).then_some(inode)
    };
    table.lines().skip(1).filter_map(inode).collect()
}

/// Sockets that a process has open, as pairs of descriptor and inode.
fn sockets(pid: Pid) -> impl Iterator<Item = (i32, u64)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"));
    entries.into_iter().flatten().filter_map(|entry| {
        let entry = entry.ok()?;
        let target = fs::read_link(entry.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?;
        let inode = inode.strip_suffix(']')?.parse().ok()?;
        Some((entry.file_name().to_str()?.parse().ok()?, inode))
    })
}

fn bound_file(pid: Pid, number: i32) -> io::Result<Option<BoundFile>> {
    let socket = copy_descriptor(&pidfd_open(pid)?, number)?;
    // SAFETY: the request has no argument; the kernel touches no memory of ours.
    let fd = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCUNIXFILE as _) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let meta = file.metadata()?;
    let path = fs::read_link(format!("/proc/self/fd/{fd}"))?;
    Ok(meta.file_type().is_socket().then_some(BoundFile {
        is_deleted: path.as_os_str().as_bytes().ends_with(DELETED),
        path,
        id: FileId::of(&meta),
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_names_of_files_count() {
        let table = "Num RefCount Protocol Flags Type St Inode Path\n\
            0000: 00000002 00000000 00010000 0001 01 100 /run/web.sock\n\
            0000: 00000002 00000000 00010000 0001 01 101 @abstract\n\
            0000: 00000003 00000000 00000000 0001 03 102\n\
            0000: 00000002 00000000 00010000 0001 01 103 relative\n";
        assert_eq!(named_inodes(table), HashSet::from([100, 103]));
    }

    #[test]
    fn a_bound_socket_is_found_by_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let id = FileId::of(&fs::symlink_metadata(&path).unwrap());
        let find = || {
            let files = bound_files(&[Pid::this()]);
            files.into_iter().find(|file| file.id == id).unwrap()
        };
        let found = find();
        assert!(!found.is_deleted && found.path == path, "{found:?}");
        fs::remove_file(&path).unwrap();
        assert!(find().is_deleted);
    }
}
