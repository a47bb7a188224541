//! Control group of a container that is restored.

use std::fs;
use std::path::PathBuf;

use nix::unistd::Pid;
use oci_spec::runtime::Spec;

use crate::criu::CgroupRoot;
use crate::runtime::container::Container;
use crate::runtime::error::{Error, Result};
use crate::runtime::linux::cgroup::{Cgroup, Making};
use crate::runtime::process::libcontainer;
use crate::runtime::spec::lower;

/// Puts CRIU into the container's cgroup, with the container's limits, so that the tasks that it
/// restores start there.
pub(super) fn enter(container: &Container, spec: &Spec, criu: Pid) -> Result<Cgroup> {
    let making = Making {
        config: libcontainer::cgroup_config(container.record()),
        groups: container.cgroup(),
        resources: lower::resources(spec),
        lenient: false,
    };
    making
        .enter(criu)
        .and_then(|()| making.limit())
        .map_err(Error::cgroup("set up", container.id()))?;
    Cgroup::of_process(criu).map_err(Error::cgroup("find", container.id()))
}

/// Returns the groups of CRIU in each hierarchy (cgroups(7), `/proc/PID/cgroup`). CRIU restores the
/// dumped groups below them.
pub(super) fn roots(criu: Pid) -> Result<Vec<CgroupRoot>> {
    let path = PathBuf::from(format!("/proc/{criu}/cgroup"));
    let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    Ok(parse_cgroup_roots(&text))
}

fn parse_cgroup_roots(text: &str) -> Vec<CgroupRoot> {
    text.lines()
        .filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            Some(CgroupRoot {
                controller: Some(controllers.to_owned()),
                path: path.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_of_every_hierarchy() {
        let roots = parse_cgroup_roots("5:cpu,cpuacct:/x\n1:name=systemd:/\n0::/y:z\n");
        let pairs: Vec<_> = roots
            .iter()
            .map(|root| (root.controller.as_deref().unwrap(), root.path.as_str()))
            .collect();
        assert_eq!(
            pairs,
            [("cpu,cpuacct", "/x"), ("name=systemd", "/"), ("", "/y:z")]
        );
    }
}
