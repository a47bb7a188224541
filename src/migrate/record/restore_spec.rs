//! Parameters of a restore at the destination. The journal stores them for a process that continues
//! after the receiver's death.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::criu::CriuChoices;

/// All parameters of a restore besides the images, the state directory and the container's name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreSpec {
    /// Path of the bundle on this host.
    pub bundle: PathBuf,
    /// Whether systemd manages the cgroup.
    pub systemd_cgroup: bool,
    /// Parent of the container's cgroup, which then has the container's name; takes precedence over
    /// the spec.
    pub cgroup_parent: Option<PathBuf>,
    /// Path of the network namespace; takes precedence over the spec.
    #[serde(default)]
    pub network_namespace: Option<PathBuf>,
    /// Path of the socket to which the terminal's master is sent if rcm does not stay.
    pub console_socket: Option<PathBuf>,
    /// Path of the file that gets the first process's id.
    pub pid_file: Option<PathBuf>,
    /// Options of CRIU from both ends.
    pub choices: CriuChoices,
    /// Directory of CRIU's logs.
    pub work_path: PathBuf,
}
