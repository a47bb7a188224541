//! Where the cgroup file systems are mounted, and which of their groups a process is in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Result, file};

/// The text of `/proc/PROCESS/cgroup`.
pub(super) fn membership(process: &str) -> Result<String> {
    let path = Path::new("/proc").join(process).join("cgroup");
    fs::read_to_string(&path).map_err(file("read", &path))
}

/// One mounted hierarchy.
#[derive(Debug)]
pub(super) struct Hierarchy {
    pub mount_point: PathBuf,
    /// The group that is mounted: `/` unless this host is a container itself.
    root: PathBuf,
    /// Controllers, or `name=...`; one empty name for cgroup v2.
    pub controllers: BTreeSet<String>,
}

/// All that are mounted here.
pub(super) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let path = Path::new("/proc/self/mountinfo");
    let mounts = procfs::process::Process::myself()
        .and_then(|me| me.mountinfo())
        .map_err(|error| file("read", path)(io::Error::other(error)))?;
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

/// Directories from the text of `/proc/PID/cgroup` (cgroups(7)): `id:controllers:path` lines.
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
        // Where v1 controllers are mounted, the v2 hierarchy beside them has none.
        if controllers.is_empty() && has_v1_controllers {
            continue;
        }
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
            // A process in the root group of a hierarchy was never put anywhere there: that group is not the container's.
            if dir != hierarchy.mount_point {
                paths.insert(controller.to_owned(), dir);
            }
        }
    }
    paths
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
        assert_eq!(paths.len(), 3);
        assert_eq!(paths["cpu"], Path::new("/sys/fs/cgroup/cpu,cpuacct/x/c"));
        assert_eq!(paths["memory"], Path::new("/sys/fs/cgroup/memory/x/c"));
        assert!(!Cgroup::new(paths).is_v2());
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
