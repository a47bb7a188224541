//! Container engines that use rcm: their state directories, and the marks by which their containers
//! are recognized.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::runtime::container::validate_id;

/// State directories that engines give to their runtime as `--root`, with one `*` for the varying
/// part of a name: Docker's for each runtime (libcontainerd), containerd's for each namespace (its
/// shim's default), CRI-O's, and that of a Podman with this setting.
const ROOTS: [(&str, &str); 5] = [
    ("/run/docker", "runtime-*/moby"),
    ("/run/containerd/runc", "*"),
    ("/run/containerd/rcm", "*"),
    ("/run/runc", ""),
    ("/run/crun", ""),
];
/// Length of an engine's ids, which are as long as a SHA-256 in hexadecimal.
const ID_LENGTH: usize = 64;

/// A container that was found by the beginning of its id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// The state directory of the container.
    pub root: PathBuf,
    /// The whole id.
    pub id: String,
}

/// The beginning of an id fits more than one container.
#[derive(Debug, thiserror::Error)]
#[error(
    "several ids of engines' containers begin with {prefix:?}, such as {first} and {second}: give more of the id"
)]
pub struct Ambiguous {
    /// The given beginning.
    pub prefix: String,
    /// One of the ids.
    pub first: String,
    /// Another one of the ids.
    pub second: String,
}

/// Finds the container of an engine whose id is `name` or begins with it, as engines let their
/// users write it. `own_root` is searched, too, because Podman passes no state directory. `known`
/// returns the ids that a state directory knows besides its containers.
///
/// # Errors
/// [`Ambiguous`].
pub fn find(
    own_root: &Path,
    name: &str,
    known: impl Fn(&Path) -> Vec<String>,
) -> Result<Option<Found>, Ambiguous> {
    let roots = roots(Path::new("/"));
    find_below(
        roots.iter().map(PathBuf::as_path).chain([own_root]),
        name,
        known,
    )
}

fn find_below<'a>(
    roots: impl IntoIterator<Item = &'a Path>,
    name: &str,
    known: impl Fn(&Path) -> Vec<String>,
) -> Result<Option<Found>, Ambiguous> {
    if validate_id(name).is_err() {
        return Ok(None);
    }
    let is_prefix = name.len() < ID_LENGTH && is_hexadecimal(name);
    let mut matching = BTreeSet::new();
    for root in roots {
        let containers = names(root)
            .into_iter()
            .filter(|id| root.join(id).join("state.json").is_file());
        for id in containers.chain(known(root)) {
            let begins = is_prefix && is_engines_id(&id) && id.starts_with(name);
            if id == name || begins {
                let root = root.to_path_buf();
                matching.insert(Found { root, id });
            }
        }
    }
    let mut matching = matching.into_iter();
    match (matching.next(), matching.next()) {
        (Some(first), Some(second)) => Err(Ambiguous {
            prefix: name.to_owned(),
            first: first.id,
            second: second.id,
        }),
        (found, _) => Ok(found),
    }
}

/// Returns the directories of [`ROOTS`] that exist.
fn roots(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (dir, pattern) in ROOTS {
        let dir = top.join(dir.trim_start_matches('/'));
        let Some((before, after)) = pattern.split_once('*') else {
            found.push(dir);
            continue;
        };
        let matching = names(&dir).into_iter().filter_map(|name| {
            let path = dir.join(&name);
            name.starts_with(before)
                .then(|| path.join(after.trim_start_matches('/')))
        });
        found.extend(matching);
    }
    found.retain(|root| root.is_dir());
    found
}

/// Returns the entries of a directory, or none if it does not exist.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries
        .filter_map(|entry: io::Result<_>| entry.ok()?.file_name().into_string().ok())
        .collect()
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn is_engines_id(text: &str) -> bool {
    text.len() == ID_LENGTH && is_hexadecimal(text)
}

/// Returns whether an engine has made this bundle and will remove it: containerd's shim, which
/// Docker uses, too, or the storage library of Podman and CRI-O.
#[must_use]
pub fn keeps(bundle: &Path) -> bool {
    let parts: Vec<_> = bundle
        .components()
        .filter_map(|part| part.as_os_str().to_str())
        .collect();
    let is_shims = parts
        .iter()
        .any(|part| part.starts_with("io.containerd.runtime.v"));
    let is_storages = matches!(
        parts.as_slice(),
        [.., store, id, "userdata"] if store.ends_with("-containers") && is_engines_id(id)
    );
    is_shims || is_storages
}

/// Returns whether `path` lies in a directory that an engine has for one container or sandbox.
#[must_use]
pub fn is_private(path: &Path) -> bool {
    path.components()
        .any(|part| part.as_os_str().to_str().is_some_and(is_engines_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(begin: &str) -> String {
        format!("{begin:0<64}")
    }

    #[test]
    fn containers_are_found_by_the_beginning_of_their_ids() {
        let top = tempfile::tempdir().unwrap();
        let docker = top.path().join("run/docker/runtime-rcm/moby");
        let kubernetes = top.path().join("run/containerd/runc/k8s.io");
        for (root, id) in [
            (&docker, id("abc1")),
            (&docker, id("abd")),
            (&kubernetes, id("abe")),
        ] {
            fs::create_dir_all(root.join(&id)).unwrap();
            fs::write(root.join(&id).join("state.json"), "{}").unwrap();
        }
        fs::create_dir_all(docker.join(id("half"))).unwrap();
        let roots = roots(top.path());
        assert_eq!(roots.len(), 2, "{roots:?}");
        let look = |name: &str| {
            let below = roots.iter().map(PathBuf::as_path);
            find_below(below, name, |_| vec!["named".into()])
        };
        let found = look("abc").unwrap().unwrap();
        assert_eq!((found.root, found.id), (docker.clone(), id("abc1")));
        assert_eq!(look(&id("abe")).unwrap().unwrap().root, kubernetes);
        assert!(look("ab").unwrap_err().to_string().contains(&id("abc1")));
        for unknown in ["abf", "", "..", "abc1/", "ABC", "half", "name"] {
            assert_eq!(look(unknown).unwrap(), None, "{unknown}");
        }
        // Both roots say that they know it.
        assert!(look("named").is_err());
    }

    #[test]
    fn files_of_an_engine_are_told_by_their_paths() {
        let id = id("abc");
        for bundle in [
            format!("/run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby/{id}"),
            "/run/containerd/io.containerd.runtime.v2.task/default/web".into(),
            format!("/var/lib/containers/storage/overlay-containers/{id}/userdata"),
        ] {
            assert!(keeps(Path::new(&bundle)), "{bundle}");
        }
        assert!(!keeps(Path::new("/srv/containers/web")));
        let hosts = format!("/var/lib/docker/containers/{id}/hosts");
        assert!(is_private(Path::new(&hosts)));
        assert!(!is_private(Path::new("/srv/data/abc")));
    }
}
