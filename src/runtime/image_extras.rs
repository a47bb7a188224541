//! Files that rcm stores beside CRIU's images.
//!
//! `descriptors.json` is runc's file, with the targets of the first process's stdin, stdout and
//! stderr. With it, runc can restore rcm's images, and rcm runc's. `rcm.json` is rcm's own; images
//! without it are restored as runc restores them.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::linux::external::HostMount;
use super::linux::host_file::HostFile;
use crate::sys;

const DESCRIPTORS_FILE: &str = "descriptors.json";
const DETAILS_FILE: &str = "rcm.json";

/// Contents of `rcm.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Details {
    /// Whether CRIU left control groups out, because a restore makes all of them anyway.
    pub cgroups_left_out: bool,
    /// Whether CRIU left the network namespace out, because the container is restored into one that
    /// exists before it.
    pub network_left_out: bool,
    /// This host's addresses of the container's TCP sockets, if these are in the host's network.
    pub tcp_ends: Vec<SocketAddr>,
    /// Mounts that come from the host.
    pub mounts: Vec<HostMount>,
    /// Open files that lie on the host.
    pub files: Vec<HostFile>,
}

/// Stores the targets of stdin, stdout and stderr.
///
/// # Errors
/// Errors of the file system.
pub fn write_descriptors(images: &Path, descriptors: &[String]) -> Result<()> {
    write(&images.join(DESCRIPTORS_FILE), &descriptors)
}

/// Reads the targets of stdin, stdout and stderr; empty if the images do not have them.
///
/// # Errors
/// Errors of the file system, or [`Error::DamagedImages`].
pub fn read_descriptors(images: &Path) -> Result<Vec<String>> {
    Ok(read(&images.join(DESCRIPTORS_FILE))?.unwrap_or_default())
}

impl Details {
    /// Stores the details.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn write(&self, images: &Path) -> Result<()> {
        write(&images.join(DETAILS_FILE), self)
    }

    /// Reads the details; the default if the images have none.
    ///
    /// # Errors
    /// Errors of the file system, or [`Error::DamagedImages`].
    pub fn read(images: &Path) -> Result<Self> {
        Ok(read(&images.join(DETAILS_FILE))?.unwrap_or_default())
    }
}

fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    serde_json::to_vec(value)
        .map_err(std::io::Error::other)
        .and_then(|text| sys::file::replace_atomic(path, &text, 0o600))
        .map_err(Error::file("write", path))
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file("read", path)(error)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|source| Error::DamagedImages {
            path: path.to_path_buf(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::linux::external::Source;

    #[test]
    fn details_come_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Details::read(dir.path()).unwrap(), Details::default());
        let details = Details {
            cgroups_left_out: true,
            network_left_out: true,
            tcp_ends: vec!["[2001:db8::9]:80".parse().unwrap()],
            mounts: vec![HostMount {
                path: "/data".into(),
                source: Source::Path("/srv".into()),
            }],
            files: vec![HostFile {
                key: "file[1:2]".into(),
                path: "/var/log/x".into(),
                directory: false,
                deleted: false,
                stream: Some(1),
                size_bytes: 7,
                mode: 0o644,
                flags: 1,
                position_bytes: 7,
            }],
        };
        details.write(dir.path()).unwrap();
        assert_eq!(Details::read(dir.path()).unwrap(), details);
    }

    #[test]
    fn damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(DESCRIPTORS_FILE), "[\"pipe:[1]\"").unwrap();
        let error = read_descriptors(dir.path()).unwrap_err();
        assert!(matches!(error, Error::DamagedImages { .. }), "{error}");
    }
}
