//! Open files of a container that lie on the host, on mounts that the container does not have: a redirected output is one. CRIU fails on them unless it is told
//! that they are external.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::mounts::mount_table;
use crate::criu::{External, InheritedFd};
use crate::runtime::error::{Error, Result};
use crate::runtime::process::stdio;
use crate::sys;

/// An open file of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostFile {
    /// What CRIU's images call it.
    pub key: String,
    /// Where it is on the host.
    pub path: PathBuf,
    /// Whether it is a directory, which cannot be made anew.
    pub directory: bool,
    /// Whether it has no name any longer.
    pub deleted: bool,
    /// Which standard stream of a process it is: 0, 1 or 2.
    pub stream: Option<u8>,
    /// How large it is: CRIU only accepts a file of the same size ...
    pub size_bytes: u64,
    /// ... and the same permissions.
    pub mode: u32,
    /// How it is open (open(2)).
    pub flags: i32,
    /// Where the next byte is read or written.
    pub position_bytes: i64,
}

impl HostFile {
    /// What CRIU takes for the file at a restore.
    ///
    /// As a rule CRIU opens the file again itself, as the container had it and at its old position. It cannot in a user namespace, where the file may not be
    /// accessible. And a file without a name cannot be opened at all: if it was a standard stream, this process's takes its place.
    ///
    /// # Errors
    /// [`Error::DeletedFile`], errors of the file system.
    pub fn inherit(&self, in_user_namespace: bool) -> Result<InheritedFd> {
        // CRIU looks for the name as a path without its slash first, and takes what it finds as it is; only then for the whole name, and opens that
        // again (criu/files-reg.c, `open_path`).
        let as_it_is = || self.key.get(1..).unwrap_or_default().to_owned();
        if self.deleted {
            return Ok(InheritedFd {
                key: as_it_is(),
                fd: self.own_stream()?,
            });
        }
        self.ensure_exists()?;
        let opened = if in_user_namespace {
            self.open_as_it_was().map(|fd| (as_it_is(), fd))
        } else {
            OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_PATH)
                .open(&self.path)
                .map(|file| (self.key.clone(), file.into()))
        };
        let (key, fd) = opened.map_err(Error::file(
            "open the file that the container had open,",
            &self.path,
        ))?;
        Ok(InheritedFd { key, fd })
    }

    fn own_stream(&self) -> Result<OwnedFd> {
        match self.stream {
            Some(0) => stdio::duplicate(std::io::stdin().as_fd()),
            Some(1) => stdio::duplicate(std::io::stdout().as_fd()),
            Some(2) => stdio::duplicate(std::io::stderr().as_fd()),
            _ => Err(Error::DeletedFile {
                path: self.path.clone(),
            }),
        }
    }

    /// Makes a file that is missing on this host: a log that goes on elsewhere. CRIU wants it as large as it was.
    fn ensure_exists(&self) -> Result<()> {
        match fs::metadata(&self.path) {
            Err(error) if sys::file::is_missing(&error) && !self.directory => {}
            // What else is wrong is found when it is opened.
            _ => return Ok(()),
        }
        tracing::warn!(
            "{}, which the container had open, is missing and made anew",
            self.path.display()
        );
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.path)
            .and_then(|file| {
                file.set_permissions(fs::Permissions::from_mode(self.mode))?;
                file.set_len(self.size_bytes)
            })
            .map_err(Error::file("make", &self.path))
    }

    fn open_as_it_was(&self) -> std::io::Result<OwnedFd> {
        let access = self.flags & libc::O_ACCMODE;
        let mut file = OpenOptions::new()
            .read(access != libc::O_WRONLY)
            .write(access != libc::O_RDONLY)
            .custom_flags(self.flags & !(libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC))
            .open(&self.path)?;
        if let Ok(position_bytes) = u64::try_from(self.position_bytes) {
            file.seek(SeekFrom::Start(position_bytes))?;
        }
        Ok(file.into())
    }
}

/// The files of the host that the container's processes have open. Call it while they are stopped.
///
/// A redirected stdout is such a file: it lies on a mount that the container does not have, and CRIU would fail on it.
///
/// # Errors
/// Where `/proc` cannot be read.
pub fn find(init: Pid, processes: &[Pid]) -> Result<(Vec<External>, Vec<HostFile>)> {
    let container: HashSet<i32> = mount_table(Some(init))?
        .iter()
        .map(|mount| mount.mnt_id)
        .collect();
    // Pipes, sockets and the like lie on mounts that nobody sees.
    let host: HashSet<i32> = mount_table(None)?
        .iter()
        .map(|mount| mount.mnt_id)
        .filter(|mount_id| !container.contains(mount_id))
        .collect();
    let mut seen = BTreeSet::new();
    let (mut externals, mut files) = (Vec::new(), Vec::new());
    for pid in processes {
        for fd in descriptor_numbers(*pid) {
            let Some(info) = DescriptorInfo::read(*pid, &fd) else {
                continue;
            };
            if !host.contains(&info.mount_id) {
                continue;
            }
            let link = Path::new("/proc")
                .join(pid.to_string())
                .join("fd")
                .join(&fd);
            let (Ok(meta), Ok(path)) = (fs::metadata(&link), fs::read_link(&link)) else {
                continue;
            };
            // A terminal needs more than its path; CRIU has its own ways with it.
            let kind = meta.file_type();
            let is_device = kind.is_char_device() && is_terminal(meta.rdev());
            if is_device || kind.is_fifo() || kind.is_socket() {
                continue;
            }
            if seen.insert((info.mount_id, meta.ino())) {
                let external = External::File {
                    mount_id: info.mount_id,
                    inode: meta.ino(),
                };
                files.push(HostFile {
                    key: external.to_string(),
                    path,
                    directory: kind.is_dir(),
                    deleted: meta.nlink() == 0,
                    stream: fd
                        .to_str()
                        .and_then(|fd| fd.parse().ok())
                        .filter(|stream| *stream <= 2),
                    size_bytes: meta.len(),
                    mode: meta.mode() & 0o7777,
                    flags: info.flags,
                    position_bytes: info.position_bytes,
                });
                externals.push(external);
            }
        }
    }
    Ok((externals, files))
}

fn descriptor_numbers(pid: Pid) -> Vec<OsString> {
    // A process that is gone has none.
    fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .collect()
}

/// What `/proc/PID/fdinfo/FD` says (proc_pid_fdinfo(5)).
struct DescriptorInfo {
    mount_id: i32,
    flags: i32,
    position_bytes: i64,
}

impl DescriptorInfo {
    fn read(pid: Pid, fd: &OsString) -> Option<Self> {
        let path = Path::new("/proc")
            .join(pid.to_string())
            .join("fdinfo")
            .join(fd);
        Self::parse(&fs::read_to_string(path).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            Some(
                text.lines()
                    .find_map(|line| line.strip_prefix(name))?
                    .trim(),
            )
        };
        Some(Self {
            mount_id: field("mnt_id:")?.parse().ok()?,
            flags: i32::from_str_radix(field("flags:")?, 8).ok()?,
            position_bytes: field("pos:")?.parse().ok()?,
        })
    }
}

/// Majors of terminals: consoles, `/dev/tty`, and both sides of pseudoterminals (Documentation/admin-guide/devices.txt).
fn is_terminal(device: u64) -> bool {
    matches!(nix::sys::stat::major(device), 4 | 5 | 128..=143)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn host_file(path: PathBuf) -> HostFile {
        HostFile {
            key: "file[1:2]".into(),
            path,
            directory: false,
            deleted: false,
            stream: None,
            size_bytes: 5,
            mode: 0o640,
            flags: libc::O_WRONLY | libc::O_APPEND,
            position_bytes: 5,
        }
    }

    #[test]
    fn a_missing_file_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let file = host_file(dir.path().join("out.log"));
        assert_eq!(file.inherit(false).unwrap().key, "file[1:2]");
        let meta = fs::metadata(&file.path).unwrap();
        assert_eq!((meta.len(), meta.mode() & 0o7777), (5, 0o640));
        assert_eq!(file.inherit(true).unwrap().key, "ile[1:2]");
        assert!(
            host_file(dir.path().join("none/out.log"))
                .inherit(false)
                .is_err()
        );
        let directory = HostFile {
            directory: true,
            ..host_file(dir.path().join("gone"))
        };
        assert!(directory.inherit(false).is_err());
    }

    #[test]
    fn a_deleted_file_must_have_been_a_stream() {
        let deleted = HostFile {
            deleted: true,
            ..host_file("/tmp/x (deleted)".into())
        };
        assert!(matches!(
            deleted.inherit(false),
            Err(Error::DeletedFile { .. })
        ));
        let stream = HostFile {
            stream: Some(1),
            ..deleted
        };
        assert_eq!(stream.inherit(false).unwrap().key, "ile[1:2]");
    }

    #[test]
    fn it_is_opened_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "0123456789").unwrap();
        let file = HostFile {
            flags: libc::O_RDONLY,
            position_bytes: 7,
            ..host_file(path)
        };
        let opened = File::from(file.open_as_it_was().unwrap());
        assert_eq!(std::io::read_to_string(opened).unwrap(), "789");
    }

    #[test]
    fn descriptor_info() {
        let info =
            DescriptorInfo::parse("pos:\t27\nflags:\t0100001\nmnt_id:\t31\nino:\t5\n").unwrap();
        assert_eq!((info.mount_id, info.position_bytes), (31, 27));
        assert_eq!(info.flags & libc::O_ACCMODE, libc::O_WRONLY);
        assert!(DescriptorInfo::parse("pos:\t27\n").is_none());
    }
}
