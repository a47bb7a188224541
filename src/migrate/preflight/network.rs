//! Probes of the network at the destination.

use std::collections::HashSet;
use std::fs::File;
use std::net::IpAddr;
use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde_json::Value;

use crate::runtime::linux::network::try_lock;
use crate::runtime::spec::namespaces::{Namespace, Namespaces};
use crate::sys::network::{addresses, is_namespace};

/// Returns the reason for which a container with the source's spec `theirs` cannot use the network
/// `here`, and the remedy.
#[must_use]
pub fn judge(theirs: &Value, here: Namespace, keeps_connections: bool) -> Option<(String, String)> {
    // An unreadable spec is a finding of its own.
    let theirs: Spec = serde_json::from_value(theirs.clone()).ok()?;
    mismatch(&theirs, here).or_else(|| {
        let path = match here {
            Namespace::Host => return None,
            Namespace::Own => None,
            Namespace::Joined(path) => Some(path),
        };
        unusable(path, keeps_connections)
    })
}

fn mismatch(theirs: &Spec, here: Namespace) -> Option<(String, String)> {
    let namespaces = Namespaces::of(theirs);
    let there = namespaces.get(LinuxNamespaceType::Network);
    let (what, remedy) = match (there, here) {
        (Namespace::Host, Namespace::Own | Namespace::Joined(_)) => (
            "the container uses the host's network at the source, and would have a network namespace here",
            "start the receiver without --netns and with the same namespaces in the config.json as at the source",
        ),
        (Namespace::Own | Namespace::Joined(_), Namespace::Host) => (
            "the container has a network namespace at the source, and would use the host's network here",
            "start the receiver with --netns, or add the namespace to the config.json",
        ),
        (Namespace::Own, Namespace::Joined(_)) if namespaces.has(LinuxNamespaceType::User) => (
            "the container's network namespace belongs to its user namespace, so another one cannot replace it",
            "start the receiver without --netns, or give the container a network namespace by its path when it is created",
        ),
        _ => return None,
    };
    Some((what.into(), remedy.into()))
}

fn unusable(path: Option<&Path>, keeps_connections: bool) -> Option<(String, String)> {
    if let Some(path) = path {
        let remedy = "create it (`ip netns add`), or name another one with --netns";
        let named = |what: &str| (format!("{} {what}", path.display()), remedy.to_owned());
        match File::open(path) {
            Err(error) => {
                return Some(named(&format!(
                    "cannot be used as a network namespace: {error}"
                )));
            }
            Ok(file) if !is_namespace(&file) => return Some(named("is not a network namespace")),
            Ok(_) => {}
        }
        // A namespace of another kind cannot be entered as a network namespace.
        if let Err(error) = addresses(Some(path)) {
            return Some(named(&format!("cannot be entered: {error}")));
        }
    }
    match try_lock(path) {
        Err(error) if keeps_connections => Some((
            format!("the network cannot be locked until the container runs, and its connections would be reset: {error}"),
            "use a kernel with nf_tables (CONFIG_NF_TABLES_INET, CONFIG_NF_TABLES_ARP, Linux 5.12), or close the connections".into(),
        )),
        _ => None,
    }
}

/// Returns the addresses of `wanted` that no interface has. A network namespace that is created for
/// the container gets its addresses from a hook, too late to be checked here.
#[must_use]
pub fn missing_addresses(here: Namespace, wanted: &[IpAddr]) -> Vec<IpAddr> {
    let namespace = match here {
        Namespace::Host => None,
        Namespace::Own => return Vec::new(),
        Namespace::Joined(path) => Some(path),
    };
    if wanted.is_empty() {
        return Vec::new();
    }
    match addresses(namespace) {
        Ok(present) => {
            let present: HashSet<IpAddr> = present.into_iter().collect();
            let missing = wanted.iter().filter(|address| !present.contains(address));
            missing.copied().collect()
        }
        Err(error) => {
            tracing::warn!("cannot list the addresses of this host: {error}");
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(namespaces: Value) -> Value {
        serde_json::json!({"ociVersion": "1.0.2", "linux": {"namespaces": namespaces}})
    }

    #[test]
    fn the_loopback_is_here_and_a_documentation_address_is_not() {
        let wanted = ["127.0.0.1", "192.0.2.77"].map(|text| text.parse().unwrap());
        assert_eq!(missing_addresses(Namespace::Host, &wanted), wanted[1..]);
        let own = Namespace::Joined(Path::new("/proc/self/ns/net"));
        assert_eq!(missing_addresses(own, &wanted), wanted[1..]);
        assert!(missing_addresses(Namespace::Own, &wanted).is_empty());
    }

    #[test]
    fn networks_that_do_not_fit_are_found() {
        let existing = Namespace::Joined(Path::new("/proc/self/ns/net"));
        let host = spec(serde_json::json!([{"type": "pid"}]));
        let made = spec(serde_json::json!([{"type": "network"}]));
        let rootless = spec(serde_json::json!([{"type": "network"}, {"type": "user"}]));
        assert!(judge(&host, Namespace::Host, true).is_none());
        assert!(judge(&made, Namespace::Own, true).is_none());
        assert!(judge(&made, existing, true).is_none());
        assert!(judge(&host, existing, true).is_some());
        assert!(judge(&made, Namespace::Host, true).is_some());
        assert!(judge(&rootless, existing, true).is_some());
        assert!(judge(&rootless, Namespace::Own, true).is_none());
    }

    #[test]
    fn a_path_that_is_no_network_namespace_is_found() {
        let made = spec(serde_json::json!([{"type": "network"}]));
        for path in ["/no-such", "/proc/self/status", "/proc/self/ns/uts"] {
            let (what, _) = judge(&made, Namespace::Joined(Path::new(path)), false).unwrap();
            assert!(what.starts_with(path), "{what}");
        }
    }
}
