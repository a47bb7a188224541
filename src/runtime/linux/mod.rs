//! Kernel objects of a container: cgroups, mounts, namespaces, networks, filters.

pub mod cgroup;
pub mod external;
pub(crate) mod go_json;
pub mod hooks;
pub mod host_file;
pub mod mounts;
pub mod network;
pub mod quiesce;
pub mod resctrl;
pub mod seccomp;
pub mod stats;
