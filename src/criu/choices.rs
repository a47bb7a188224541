//! The flags for CRIU that users give: on the command line, in a preamble and in a record.

use serde::{Deserialize, Serialize};

/// Flags for CRIU that concern the dump and the restore.
///
/// Either end of a migration may give them; both together count. The names of the members are part
/// of the wire format.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CriuChoices {
    /// Keep established TCP connections.
    pub tcp_established: bool,
    /// Accept Unix sockets whose other end is outside the container.
    pub ext_unix_sk: bool,
    /// Accept a session or process group leader, or a terminal, of the host.
    pub shell_job: bool,
    /// Keep file locks.
    pub file_locks: bool,
    /// Give deleted but open files a temporary name.
    pub link_remap: bool,
    /// How CRIU treats control groups: "soft", "full", "strict", "ignore"; empty for the default.
    pub manage_cgroups_mode: String,
    /// Namespaces whose contents are neither dumped nor restored; "network" is the one that exists.
    pub empty_ns: Vec<String>,
}

impl CriuChoices {
    /// Joins the choices of two ends; the mode for control groups of `self` has priority.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        let mut empty_ns = self.empty_ns.clone();
        empty_ns.extend(
            other
                .empty_ns
                .iter()
                .filter(|name| !self.empty_ns.contains(name))
                .cloned(),
        );
        Self {
            tcp_established: self.tcp_established || other.tcp_established,
            ext_unix_sk: self.ext_unix_sk || other.ext_unix_sk,
            shell_job: self.shell_job || other.shell_job,
            file_locks: self.file_locks || other.file_locks,
            link_remap: self.link_remap || other.link_remap,
            manage_cgroups_mode: if self.manage_cgroups_mode.is_empty() {
                other.manage_cgroups_mode.clone()
            } else {
                self.manage_cgroups_mode.clone()
            },
            empty_ns,
        }
    }

    /// Returns how CRIU treats control groups.
    #[must_use]
    pub fn manage_cgroups(&self) -> ManageCgroups {
        ManageCgroups::of(&self.manage_cgroups_mode)
    }
}

/// How control groups are treated (criu(8), `--manage-cgroups`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ManageCgroups {
    /// CRIU's default, which is [`Self::Soft`].
    #[default]
    Default,
    /// Restore properties of groups that CRIU creates only.
    Soft,
    /// Restore all groups and their properties.
    Full,
    /// As full, and fail if a group exists.
    Strict,
    /// Do not touch groups.
    Ignore,
}

impl ManageCgroups {
    /// Returns the mode that criu(8) calls `name`; the default for any other name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        match name {
            "soft" => Self::Soft,
            "full" => Self::Full,
            "strict" => Self::Strict,
            "ignore" => Self::Ignore,
            _ => Self::Default,
        }
    }
}
