//! Putting processes into groups.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use nix::unistd::Pid;

use super::{Cgroup, CgroupError, Result, file};

/// Groups below a container's, for a process that joins it: paths by controller, or one path with an empty key for all of them.
pub type SubCgroups = BTreeMap<String, PathBuf>;

/// The file that takes processes.
const PROCS_FILE: &str = "cgroup.procs";

impl Cgroup {
    /// The group below this one that `subs` name; where they name no controller, this group's directory stays.
    ///
    /// # Errors
    /// [`CgroupError::BadSubCgroup`], [`CgroupError::UnknownController`]. Whether it exists is not looked at.
    pub fn below(&self, subs: &SubCgroups) -> Result<Self> {
        let mut paths = self.paths.clone();
        for (controller, sub) in subs {
            let unknown = || CgroupError::UnknownController {
                controller: controller.clone(),
                known: match self.is_v2() {
                    true => String::new(),
                    false => self.paths.keys().cloned().collect::<Vec<_>>().join(","),
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

    /// Moves a process here from `from`, which it is in already; hierarchies in which that is the same group are left alone.
    ///
    /// # Errors
    /// [`CgroupError::Join`]; the process may be in some of the groups then.
    pub fn take(&self, pid: Pid, from: &Self) -> Result<()> {
        for dir in self.distinct_dirs().difference(&from.distinct_dirs()) {
            let path = dir.join(PROCS_FILE);
            fs::write(&path, pid.to_string()).map_err(|source| CgroupError::Join {
                pid,
                path,
                source,
            })?;
        }
        Ok(())
    }

    /// Where a process that joins a container of cgroup v2 goes, as the engine's manager is told: absolute in the hierarchy. `init` is the
    /// container's first process.
    ///
    /// # Errors
    /// Where a group that was asked for does not exist: the engine would make it.
    pub fn joined_by(&self, subs: &SubCgroups, init: Pid) -> Result<PathBuf> {
        let mut target = self.below(subs)?;
        // A container may have moved its processes to groups below its own: with controllers enabled for these, its own takes none any
        // longer (cgroups(7), "no internal processes"). Then they go where the first one is.
        if subs.is_empty() && target.dir("").is_none_or(|dir| !takes_processes(dir)) {
            target = Self::of_process(init)?;
        }
        let dir = target.dir("").unwrap_or(Path::new(ENGINE_ROOT));
        fs::metadata(dir).map_err(file("open", dir))?;
        Ok(Path::new("/").join(dir.strip_prefix(ENGINE_ROOT).unwrap_or(dir)))
    }
}

/// Where the engine takes cgroup v2 to be mounted.
const ENGINE_ROOT: &str = "/sys/fs/cgroup";

fn takes_processes(dir: &Path) -> bool {
    fs::read_to_string(dir.join("cgroup.subtree_control"))
        .is_ok_and(|controllers| controllers.trim().is_empty())
}

/// `dir/sub` where this is at or below `dir`. The kernel has no links there, so the names alone decide.
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
    // Joining an empty path would add a slash, and the directory would not be the same as before.
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
