//! How a container is restored at the destination: what its receiver was told, kept in the journal for whoever goes on after the receiver's death.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::criu::CriuChoices;

/// Everything that a restore needs besides the images, the state directory and the container's name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recipe {
    /// The bundle here.
    pub bundle: PathBuf,
    /// Whether systemd manages the cgroup.
    pub systemd_cgroup: bool,
    /// The container's cgroup is this and its name, whatever its spec says.
    pub cgroup_parent: Option<PathBuf>,
    /// The network namespace, whatever its spec says.
    #[serde(default)]
    pub network_namespace: Option<PathBuf>,
    /// Where the terminal's master goes if rcm does not stay.
    pub console_socket: Option<PathBuf>,
    /// The file that gets the first process's id.
    pub pid_file: Option<PathBuf>,
    /// CRIU's flags of both ends.
    pub choices: CriuChoices,
    /// Where CRIU logs.
    pub work_path: PathBuf,
}
