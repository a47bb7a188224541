//! Namespaces that exist without the container.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::unistd::Pid;
use oci_spec::runtime::LinuxNamespaceType;

use crate::criu::{External, JoinNamespace};
use crate::runtime::error::{Error, Result};
use crate::runtime::spec::namespaces::Namespaces;

/// Returns the namespaces that are left out of a dump because the spec names existing ones, with
/// runc's names for them. With `leave_network` the network's is not among them, because CRIU does
/// not get to see it.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn dumped_namespaces(
    init: Pid,
    namespaces: &Namespaces,
    leave_network: bool,
) -> Result<Vec<External>> {
    let mut found = Vec::new();
    for (typ, kind, name) in OUTER_NAMESPACES {
        let exists = namespaces.joined(*typ).is_some();
        if exists && !(leave_network && *typ == LinuxNamespaceType::Network) {
            // Not by the spec's path: it may lead to another namespace by now.
            let path = format!("/proc/{init}/ns/{kind}");
            let inode = fs::metadata(&path)
                .map_err(Error::file("use the namespace", path))?
                .ino();
            found.push(External::Namespace { kind, inode, name });
        }
    }
    Ok(found)
}

/// CRIU's name for the network namespace that a dump has left out, as with runc.
pub const OUTER_NETWORK: &str = "extRootNetNS";

/// Kinds of namespaces that CRIU can leave out, with CRIU's and runc's names.
const OUTER_NAMESPACES: &[(LinuxNamespaceType, &str, &str)] = &[
    (LinuxNamespaceType::Network, "net", OUTER_NETWORK),
    (LinuxNamespaceType::Pid, "pid", "extRootPidNS"),
];

/// Namespaces that CRIU gets by a descriptor (with their keys), and namespaces that CRIU joins by
/// path.
pub type RestoredNamespaces = (Vec<(&'static str, PathBuf)>, Vec<JoinNamespace>);

/// Returns the existing namespaces that a restore enters: those of [`dumped_namespaces`] by
/// descriptor, and others that CRIU joins by path. The network's is left to
/// [`crate::runtime::linux::network`].
///
/// # Errors
/// [`Error::UnsupportedNamespace`] for a cgroup namespace, which CRIU cannot join.
pub fn restored_namespaces(namespaces: &Namespaces) -> Result<RestoredNamespaces> {
    let (mut inherited, mut joined) = (Vec::new(), Vec::new());
    for (typ, path) in namespaces.all_joined() {
        let path = path.to_path_buf();
        if typ == LinuxNamespaceType::Network {
            continue;
        }
        if let Some((_, _, name)) = OUTER_NAMESPACES.iter().find(|(outer, ..)| *outer == typ) {
            inherited.push((*name, path));
            continue;
        }
        let kind = match typ {
            LinuxNamespaceType::Ipc => "ipc",
            LinuxNamespaceType::Uts => "uts",
            LinuxNamespaceType::User => "user",
            LinuxNamespaceType::Time => "time",
            LinuxNamespaceType::Mount => "mnt",
            _ => return Err(Error::UnsupportedNamespace { kind: typ }),
        };
        joined.push(JoinNamespace { kind, path });
    }
    Ok((inherited, joined))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_with_a_path_are_entered() {
        let spec: oci_spec::runtime::Spec = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.0.2",
            "linux": {"namespaces": [
                {"type": "network", "path": "/proc/self/ns/net"},
                {"type": "ipc", "path": "/proc/self/ns/ipc"},
                {"type": "pid", "path": "/proc/self/ns/pid"}
            ]}
        }))
        .unwrap();
        let namespaces = Namespaces::of(&spec);
        let dumped = dumped_namespaces(Pid::this(), &namespaces, false).unwrap();
        let inode = fs::metadata("/proc/self/ns/net").unwrap().ino();
        assert_eq!(dumped.len(), 2);
        assert_eq!(dumped[0].to_string(), format!("net[{inode}]:extRootNetNS"));
        let (inherited, joined) = restored_namespaces(&namespaces).unwrap();
        assert_eq!(inherited, [("extRootPidNS", "/proc/self/ns/pid".into())]);
        assert_eq!(joined[0].kind, "ipc");
    }
}
