//! Open files of the host in a container: they lie on mounts that the container does not have. A
//! redirected output is one. CRIU fails on them unless it is told that they are external.

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

/// File of the host that a container has open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostFile {
    /// Name in CRIU's images.
    pub key: String,
    /// Path on the host.
    pub path: PathBuf,
    /// Whether it is a directory, which cannot be created again.
    pub directory: bool,
    /// Whether it was deleted.
    pub deleted: bool,
    /// Number of the standard stream that it is for a process: 0, 1 or 2.
    pub stream: Option<u8>,
    /// Size. CRIU accepts only a file of the same size ...
    pub size_bytes: u64,
    /// ... and with the same permission bits.
    pub mode: u32,
    /// Flags of the open file (open(2)).
    pub flags: i32,
    /// File offset.
    pub position_bytes: i64,
}

impl HostFile {
    /// Returns a descriptor that CRIU uses for the file at a restore.
    ///
    /// As a rule CRIU opens the file itself, with the container's flags and at the old offset. In a
    /// user namespace it cannot, because the file may not be accessible there. A deleted file
    /// cannot be opened at all: if it was a standard stream, this process's stream replaces it.
    ///
    /// # Errors
    /// [`Error::DeletedFile`], or errors of the file system.
    pub fn inherit(&self, in_user_namespace: bool) -> Result<InheritedFd> {
        // CRIU first looks for a key without the path's leading slash, and uses that descriptor as
        // it is. Then it looks for the whole path, and opens that descriptor again
        // (criu/files-reg.c, `open_path`, CRIU 4.2).
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

    /// Creates a file that is missing on this host, such as a log. CRIU wants it to have the old
    /// size.
    fn ensure_exists(&self) -> Result<()> {
        match fs::metadata(&self.path) {
            Err(error) if sys::file::is_missing(&error) && !self.directory => {}
            // Other errors show when the file is opened.
            _ => return Ok(()),
        }
        tracing::warn!(
            "the file {}, which the container had open, is missing: creating it",
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

/// Finds the files of the host that the container's processes have open. Call it while they are
/// frozen.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn find(init: Pid, processes: &[Pid]) -> Result<(Vec<External>, Vec<HostFile>)> {
    let container: HashSet<i32> = mount_table(Some(init))?
        .iter()
        .map(|mount| mount.mnt_id)
        .collect();
    // Pipes, sockets and the like lie on internal mounts, which are in neither table.
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
            // A terminal needs more than its path; CRIU handles it.
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
    // A process that is gone has no descriptors.
    fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .collect()
}

/// Fields of `/proc/PID/fdinfo/FD` (proc_pid_fdinfo(5)).
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

/// Returns whether the device is a terminal: a console, `/dev/tty`, or either side of a
/// pseudoterminal (Documentation/admin-guide/devices.txt).
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
