//! Mounted cgroup file systems, and the groups of a process in them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Result;
use crate::sys::file::Failed;

/// Reads the text of `/proc/PROCESS/cgroup`.
pub(super) fn membership(process: &str) -> Result<String> {
    let path = Path::new("/proc").join(process).join("cgroup");
    fs::read_to_string(&path).map_err(|error| Failed::to("read", &path)(error).into())
}

/// Key of cgroup v2 that is mounted beside the controllers of v1, without any of its own.
pub(super) const UNIFIED: &str = "unified";
/// The only named hierarchy of v1 that runc puts containers into.
const SYSTEMD: &str = "name=systemd";

/// Mounted hierarchy.
#[derive(Debug)]
pub(super) struct Hierarchy {
    pub mount_point: PathBuf,
    /// The group that is mounted: `/`, unless this host is a container itself.
    root: PathBuf,
    /// Controllers, or `name=...`; one empty name for cgroup v2.
    pub controllers: BTreeSet<String>,
}

/// Returns all hierarchies that are mounted in this mount namespace.
pub(super) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let path = Path::new("/proc/self/mountinfo");
    let mounts = procfs::process::Process::myself()
        .and_then(|me| me.mountinfo())
        .map_err(|error| Failed::to("read", path)(io::Error::other(error)))?;
    Ok(mounts
        .into_iter()
        .filter_map(|mount| {
            let controllers = match mount.fs_type.as_str() {
                "cgroup2" => BTreeSet::from([String::new()]),
                "cgroup" => mount
                    .super_options
                    .iter()
                    .filter(|(key, _)| {
                        !matches!(
                            key.as_str(),
                            "rw" | "ro" | "xattr" | "release_agent" | "clone_children"
                        )
                    })
                    .map(|(key, value)| match value {
                        Some(value) => format!("{key}={value}"),
                        None => key.clone(),
                    })
                    .collect(),
                _ => return None,
            };
            Some(Hierarchy {
                mount_point: mount.mount_point,
                root: mount.root.into(),
                controllers,
            })
        })
        .collect())
}

/// Returns the directories for the text of `/proc/PID/cgroup` (cgroups(7)), which has
/// `id:controllers:path` lines.
pub(super) fn resolve(membership: &str, hierarchies: &[Hierarchy]) -> BTreeMap<String, PathBuf> {
    let has_v1_controllers = membership
        .lines()
        .any(|line| !line.starts_with("0::") && !line.contains(":name="));
    let mut paths = BTreeMap::new();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        for controller in controllers.split(',') {
            let Some(hierarchy) = hierarchies
                .iter()
                .find(|hierarchy| hierarchy.controllers.contains(controller))
            else {
                continue;
            };
            let below = Path::new(path)
                .strip_prefix(&hierarchy.root)
                .or_else(|_| Path::new(path).strip_prefix("/"))
                .unwrap_or(Path::new(path));
            let dir = hierarchy.mount_point.join(below);
            // A process in the root group of a hierarchy was never moved there, so that group is
            // not the container's.
            if dir != hierarchy.mount_point {
                let key = if controller.is_empty() && has_v1_controllers {
                    UNIFIED
                } else {
                    controller
                };
                paths.insert(key.to_owned(), dir);
            }
        }
    }
    paths
}

/// Returns the directories of the group `path` in every hierarchy that a container joins.
pub(super) fn places(path: &Path, hierarchies: Vec<Hierarchy>) -> BTreeMap<String, PathBuf> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let has_v1_controllers = hierarchies
        .iter()
        .flat_map(|hierarchy| &hierarchy.controllers)
        .any(|name| !name.is_empty() && !name.starts_with("name="));
    let mut paths = BTreeMap::new();
    for hierarchy in hierarchies {
        let dir = hierarchy.mount_point.join(relative);
        for controller in hierarchy.controllers {
            let key = match controller.as_str() {
                "" if has_v1_controllers => UNIFIED.to_owned(),
                SYSTEMD => controller,
                named if named.starts_with("name=") => continue,
                _ => controller,
            };
            // A hierarchy may be mounted several times; the first mount counts, as everywhere.
            paths.entry(key).or_insert_with(|| dir.clone());
        }
    }
    paths
}

/// Returns the path of an unprivileged user's container on cgroup v2, if its spec has none: beside
/// this process's own group, as runc does. That is inside the group that may be delegated to the
/// user. A group below this process's would get no controllers, because this process's group has
/// processes.
pub(crate) fn delegated_path(id: &str) -> Option<PathBuf> {
    let own = membership("self").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    unified.then(|| Path::new(own).parent().unwrap_or(Path::new("/")).join(id))
}

#[cfg(test)]
mod tests {
    use super::super::Cgroup;
    use super::*;

    fn hierarchy(mount_point: &str, root: &str, controllers: &[&str]) -> Hierarchy {
        Hierarchy {
            mount_point: mount_point.into(),
            root: root.into(),
            controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn v1_paths_by_controller() {
        let hierarchies = [
            hierarchy("/sys/fs/cgroup/cpu,cpuacct", "/", &["cpu", "cpuacct"]),
            hierarchy("/sys/fs/cgroup/memory", "/", &["memory"]),
            hierarchy("/sys/fs/cgroup/unified", "/", &[""]),
        ];
        let paths = resolve("5:cpu,cpuacct:/x/c\n4:memory:/x/c\n0::/\n", &hierarchies);
        assert_eq!(
            paths.len(),
            3,
            "the root of the one beside them is nobody's"
        );
        assert_eq!(paths["cpu"], Path::new("/sys/fs/cgroup/cpu,cpuacct/x/c"));
        assert_eq!(paths["memory"], Path::new("/sys/fs/cgroup/memory/x/c"));
        assert!(!Cgroup::new(paths).is_v2());
    }

    #[test]
    fn a_hybrid_host_has_places_without_controllers() {
        let hierarchies = || {
            vec![
                hierarchy("/cg/memory", "/", &["memory"]),
                hierarchy("/cg/systemd", "/", &["name=systemd"]),
                hierarchy("/cg/mine", "/", &["name=mine"]),
                hierarchy("/cg/unified", "/", &[""]),
            ]
        };
        let expected = BTreeMap::from(
            [
                ("memory", "/cg/memory/web"),
                ("name=systemd", "/cg/systemd/web"),
                ("unified", "/cg/unified/web"),
            ]
            .map(|(key, dir)| (key.to_owned(), PathBuf::from(dir))),
        );
        assert_eq!(places(Path::new("/web"), hierarchies()), expected);
        let membership = "3:memory:/web\n2:name=systemd:/web\n0::/web\n";
        assert_eq!(resolve(membership, &hierarchies()), expected);
        assert!(!Cgroup::new(expected).is_v2());
    }

    #[test]
    fn v2_has_one_directory() {
        let paths = resolve("0::/x/c\n", &[hierarchy("/sys/fs/cgroup", "/", &[""])]);
        let cgroup = Cgroup::new(paths);
        assert!(cgroup.is_v2());
        assert_eq!(cgroup.dir("memory"), Some(Path::new("/sys/fs/cgroup/x/c")));
    }

    #[test]
    fn a_mounted_subtree_is_stripped() {
        let paths = resolve(
            "0::/docker/abc/c\n",
            &[hierarchy("/sys/fs/cgroup", "/docker/abc", &[""])],
        );
        assert_eq!(paths[""], Path::new("/sys/fs/cgroup/c"));
    }

    #[test]
    fn the_root_group_is_nobodys() {
        let paths = resolve("4:memory:/\n", &[hierarchy("/m", "/", &["memory"])]);
        assert!(paths.is_empty());
    }
}
