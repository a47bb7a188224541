//! Namespaces of a container, as its spec describes them.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

/// Namespace of one kind, as seen by a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace<'a> {
    /// The container shares the namespace of the process that creates it.
    Host,
    /// A namespace is made for the container.
    Own,
    /// The container joins the namespace at this path.
    Joined(&'a Path),
}

/// Namespaces of a container, by kind. They are read once from the spec, before parts of the spec
/// are replaced for libcontainer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespaces {
    /// Kinds that the spec lists, with the path of an existing namespace.
    listed: Vec<(LinuxNamespaceType, Option<PathBuf>)>,
}

impl Namespaces {
    /// Reads the namespaces of a spec. An empty path means a new namespace, as it does for runc.
    #[must_use]
    pub fn of(spec: &Spec) -> Self {
        let linux = spec.linux().as_ref();
        let listed = linux
            .and_then(|linux| linux.namespaces().as_ref())
            .into_iter()
            .flatten()
            .map(|namespace| {
                let path = namespace.path().clone();
                let existing = path.filter(|path| !path.as_os_str().is_empty());
                (namespace.typ(), existing)
            })
            .collect();
        Self { listed }
    }

    /// Returns the namespace of one kind.
    #[must_use]
    pub fn get(&self, kind: LinuxNamespaceType) -> Namespace<'_> {
        match self.listed.iter().find(|(listed, _)| *listed == kind) {
            None => Namespace::Host,
            Some((_, None)) => Namespace::Own,
            Some((_, Some(path))) => Namespace::Joined(path),
        }
    }

    /// Returns whether the container is in another namespace of this kind than its creator.
    #[must_use]
    pub fn has(&self, kind: LinuxNamespaceType) -> bool {
        self.get(kind) != Namespace::Host
    }

    /// Returns whether a namespace of this kind is made for the container.
    #[must_use]
    pub fn makes(&self, kind: LinuxNamespaceType) -> bool {
        self.get(kind) == Namespace::Own
    }

    /// Returns the path of the existing namespace of this kind that the container joins.
    #[must_use]
    pub fn joined(&self, kind: LinuxNamespaceType) -> Option<&Path> {
        match self.get(kind) {
            Namespace::Joined(path) => Some(path),
            Namespace::Host | Namespace::Own => None,
        }
    }

    /// Lists the existing namespaces that the container joins, in the order of the spec.
    pub fn all_joined(&self) -> impl Iterator<Item = (LinuxNamespaceType, &Path)> {
        self.listed
            .iter()
            .filter_map(|(kind, path)| Some((*kind, path.as_deref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_own_and_joined_are_told_apart() {
        let spec: Spec = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.0.2",
            "linux": {"namespaces": [
                {"type": "mount"},
                {"type": "pid", "path": ""},
                {"type": "network", "path": "/run/netns/web"}
            ]}
        }))
        .unwrap();
        let namespaces = Namespaces::of(&spec);
        assert_eq!(namespaces.get(LinuxNamespaceType::User), Namespace::Host);
        assert!(namespaces.makes(LinuxNamespaceType::Mount));
        assert!(namespaces.makes(LinuxNamespaceType::Pid));
        let network = Path::new("/run/netns/web");
        assert_eq!(
            namespaces.joined(LinuxNamespaceType::Network),
            Some(network)
        );
        assert!(namespaces.has(LinuxNamespaceType::Network));
        assert_eq!(
            namespaces.all_joined().collect::<Vec<_>>(),
            [(LinuxNamespaceType::Network, network)]
        );
    }
}
