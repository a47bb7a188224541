//! Moving processes into groups.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use libcgroups::common::{
    AnyCgroupManager, CgroupConfig, CgroupManager, ControllerOpt, create_cgroup_manager,
};
use nix::unistd::{AccessFlags, Pid};
use oci_spec::runtime::LinuxResources;

use super::hierarchy::UNIFIED;
use super::{Cgroup, CgroupError, Result};
use crate::error::chain;
use crate::sys::file::Failed;

/// Groups below a container's group, for a process that joins the container: paths by controller,
/// or one path with an empty key for all of them.
pub type SubCgroups = BTreeMap<String, PathBuf>;

/// File of a group that takes processes.
const PROCS_FILE: &str = "cgroup.procs";

impl Cgroup {
    /// Returns the group below this one that `subs` name. Controllers that they do not name keep
    /// this group's directory.
    ///
    /// # Errors
    /// [`CgroupError::BadSubCgroup`], [`CgroupError::UnknownController`]. It does not check that
    /// the group exists.
    pub fn below(&self, subs: &SubCgroups) -> Result<Self> {
        let mut paths = self.paths.clone();
        for (controller, sub) in subs {
            let unknown = || CgroupError::UnknownController {
                controller: controller.clone(),
                known: if self.is_v2() {
                    String::new()
                } else {
                    self.paths.keys().cloned().collect::<Vec<_>>().join(",")
                },
            };
            if controller.is_empty() {
                for dir in paths.values_mut() {
                    *dir = descend(dir, sub)?;
                }
            } else {
                let dir = paths.get_mut(controller).ok_or_else(unknown)?;
                *dir = descend(dir, sub)?;
            }
        }
        Ok(Self { paths })
    }
}

/// Way of a process into its container's groups.
pub(crate) enum Entry<'a> {
    /// The container's first process: the groups are made, with the limits.
    Make(Making<'a>),
    /// A process that joins the container.
    Join {
        /// The groups, which must exist.
        target: Cgroup,
        /// Group to join instead, if cgroup v2 refuses the process.
        otherwise: Option<Cgroup>,
        /// Whether to skip groups that this user may not join.
        rootless: bool,
    },
}

/// Groups that are made for a container's first process.
pub(crate) struct Making<'a> {
    /// Configuration of `libcgroups`' manager, which makes groups of cgroup v2 and sets limits.
    pub config: CgroupConfig,
    /// The groups of cgroup v1; empty on v2, and if systemd makes them.
    pub groups: Cgroup,
    /// The limits.
    pub resources: Option<&'a LinuxResources>,
    /// Whether to skip groups that this user may not make.
    pub lenient: bool,
}

impl Entry<'_> {
    /// Moves the process `pid` into its groups. [`Making::limit`] sets the limits.
    ///
    /// # Errors
    /// [`CgroupError`]; the process may already be in some of the groups.
    pub fn enter(&self, pid: Pid) -> Result<()> {
        match self {
            Self::Make(making) => making.enter(pid),
            Self::Join {
                target,
                otherwise,
                rootless,
            } => match (target.join(pid, *rootless), otherwise) {
                // A container may have moved its processes to groups below its own. If these have
                // controllers, its own group takes no process any more (cgroups(7), "no internal
                // processes"). In that case, join the group of the first process.
                (Err(_), Some(group)) => group.join(pid, *rootless),
                (joined, _) => joined,
            },
        }
    }
}

impl Making<'_> {
    /// Makes the groups, and moves the process `pid` into them.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn enter(&self, pid: Pid) -> Result<()> {
        let unified = self.groups.is_v2();
        if unified && self.lenient && !self.groups.paths.values().all(|dir| may_make(dir)) {
            return Ok(());
        }
        if unified || self.groups.paths.is_empty() {
            self.manager()?
                .add_task(pid)
                .map_err(|error| manager_error(&error))?;
        } else {
            // rcm makes them one by one. The manager of `libcgroups` makes all or fails, and does
            // not know all hierarchies.
            for (hierarchy, dir) in &self.groups.paths {
                let Err(error) = make(dir).and_then(|()| add(dir, pid)) else {
                    continue;
                };
                if !(is_optional(hierarchy) || self.lenient && is_permission(&error)) {
                    return Err(error);
                }
                // The group may exist and yet refuse the process: on cgroup v2 a user needs write
                // access to the common ancestor of the old and the new group.
                let _ = fs::remove_dir(dir);
            }
        }
        Ok(())
    }

    /// Sets the limits. Call it after the container's process was forked: a limit of one task would
    /// make that fork fail.
    ///
    /// # Errors
    /// [`CgroupError::Manager`].
    pub fn limit(&self) -> Result<()> {
        let Some(resources) = self.resources else {
            return Ok(());
        };
        let limits = ControllerOpt {
            resources,
            freezer_state: None,
            oom_score_adj: None,
            disable_oom_killer: resources
                .memory()
                .as_ref()
                .and_then(|memory| memory.disable_oom_killer())
                .unwrap_or(false),
        };
        self.manager()?
            .apply(&limits)
            .map_err(|error| manager_error(&error))
    }

    fn manager(&self) -> Result<AnyCgroupManager> {
        create_cgroup_manager(self.config.clone())
            .map(|manager| manager.with_rootless(self.lenient))
            .map_err(|error| manager_error(&error))
    }
}

impl Cgroup {
    /// Moves a process into the group, which must exist.
    fn join(&self, pid: Pid, rootless: bool) -> Result<()> {
        for dir in self.distinct_dirs() {
            match add(dir, pid) {
                Err(error) if rootless && is_permission(&error) => {}
                joined => joined?,
            }
        }
        Ok(())
    }
}

/// Returns whether containers run without this hierarchy if it refuses them, as with runc. These
/// hierarchies have no limits. They only help a systemd in the container, and tools that look for
/// its processes.
fn is_optional(hierarchy: &str) -> bool {
    hierarchy == UNIFIED || hierarchy == "misc" || hierarchy.starts_with("name=")
}

fn is_permission(error: &CgroupError) -> bool {
    let source = match error {
        CgroupError::File(Failed { source, .. }) | CgroupError::Join { source, .. } => source,
        _ => return false,
    };
    matches!(
        source.kind(),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
    )
}

/// Returns whether this user may make the directory, or move processes into it if it exists.
fn may_make(dir: &Path) -> bool {
    let procs = dir.join(PROCS_FILE);
    let changed = if procs.exists() {
        Some(procs.as_path())
    } else {
        dir.ancestors().find(|dir| dir.exists())
    };
    changed.is_some_and(|path| nix::unistd::access(path, AccessFlags::W_OK).is_ok())
}

/// Makes a group of cgroup v1, and the missing groups above it.
fn make(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(Failed::to("create", dir))?;
    fill_cpuset(dir)
}

/// Gives a new cpuset the processors and memory nodes of the group above it. Without them it takes
/// no process (cpuset(7)).
fn fill_cpuset(dir: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let path = dir.join(name);
        match (fs::read_to_string(&path), dir.parent()) {
            (Ok(own), Some(above)) if own.trim().is_empty() => {
                fill_cpuset(above)?;
                let inherited = above.join(name);
                let value =
                    fs::read_to_string(&inherited).map_err(Failed::to("read", &inherited))?;
                fs::write(&path, value.trim()).map_err(Failed::to("write", &path))?;
            }
            // The file has a value already, or it is another controller's group.
            _ => {}
        }
    }
    Ok(())
}

fn add(dir: &Path, pid: Pid) -> Result<()> {
    let path = dir.join(PROCS_FILE);
    fs::write(&path, pid.to_string()).map_err(|source| CgroupError::Join { pid, path, source })
}

fn manager_error(error: &dyn std::error::Error) -> CgroupError {
    CgroupError::Manager {
        reason: chain(error),
    }
}

/// Returns `dir/sub`, and refuses a path that leads out of `dir`. The cgroup file system has no
/// symbolic links, so the names alone decide.
fn descend(dir: &Path, sub: &Path) -> Result<PathBuf> {
    let mut below = PathBuf::new();
    for component in sub.components() {
        match component {
            Component::Normal(name) => below.push(name),
            Component::ParentDir if !below.pop() => {
                return Err(CgroupError::BadSubCgroup {
                    path: sub.to_path_buf(),
                });
            }
            _ => {}
        }
    }
    // Joining an empty path would add a slash, and the path would differ from the group's own.
    if below.as_os_str().is_empty() {
        return Ok(dir.to_path_buf());
    }
    Ok(dir.join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v1() -> Cgroup {
        Cgroup::new(BTreeMap::from(
            ["cpu", "memory"].map(|name| (name.to_owned(), format!("/cg/{name}/web").into())),
        ))
    }

    fn below(cgroup: &Cgroup, subs: &[(&str, &str)]) -> Result<Vec<String>> {
        let subs = subs
            .iter()
            .map(|(controller, sub)| ((*controller).to_owned(), sub.into()))
            .collect();
        let group = cgroup.below(&subs)?;
        Ok(group
            .paths
            .values()
            .map(|dir| dir.display().to_string())
            .collect())
    }

    #[test]
    fn controllers_have_groups_of_their_own() {
        let same = ["/cg/cpu/web", "/cg/memory/web"];
        assert_eq!(below(&v1(), &[]).unwrap(), same);
        assert_eq!(below(&v1(), &[("", "/")]).unwrap(), same);
        assert_eq!(
            below(&v1(), &[("", "a/./b")]).unwrap(),
            ["/cg/cpu/web/a/b", "/cg/memory/web/a/b"]
        );
        assert_eq!(
            below(&v1(), &[("memory", "/a")]).unwrap(),
            ["/cg/cpu/web", "/cg/memory/web/a"]
        );
    }

    #[test]
    fn what_is_not_below_is_refused() {
        for outside in ["..", "../web2", "a/../..", "/../web"] {
            let error = below(&v1(), &[("cpu", outside)]).unwrap_err();
            assert!(
                matches!(error, CgroupError::BadSubCgroup { .. }),
                "{outside}"
            );
        }
        assert_eq!(
            below(&v1(), &[("", "a/..")]).unwrap(),
            below(&v1(), &[]).unwrap()
        );
    }

    #[test]
    fn unknown_controllers_are_named() {
        let error = below(&v1(), &[("pids", "/")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown controller pids in --cgroup: the container's are cpu,memory"
        );
        let v2 = Cgroup::new(BTreeMap::from([(String::new(), "/cg/web".into())]));
        let error = below(&v2, &[("cpu", "/")]).unwrap_err();
        assert!(error.to_string().contains("on cgroup v2 one path"));
    }
}
