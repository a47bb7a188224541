//! Parameters of a restore at the destination. The journal stores them for a process that continues
//! after the receiver's death.

use std::fmt::Write;
use std::path::{Path, PathBuf};

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

impl RestoreSpec {
    /// Returns the command by which an operator restores container `id` from `images`.
    ///
    /// The namespace of `--netns` and the parent of the cgroup are not in it: `rcm restore` takes
    /// both from the bundle's `config.json`.
    #[must_use]
    pub fn command(&self, root: &Path, id: &str, images: &Path) -> String {
        let path = |path: &Path| quoted(&path.display().to_string());
        let mut command = format!("rcm --root {}", path(root));
        if self.systemd_cgroup {
            command.push_str(" --systemd-cgroup");
        }
        let (bundle, images) = (path(&self.bundle), path(images));
        let _ = write!(
            command,
            " restore --detach --bundle {bundle} --image-path {images}"
        );
        for (is_set, flag) in [
            (self.choices.tcp_established, " --tcp-established"),
            (self.choices.ext_unix_sk, " --ext-unix-sk"),
            (self.choices.shell_job, " --shell-job"),
            (self.choices.file_locks, " --file-locks"),
        ] {
            command.push_str(if is_set { flag } else { "" });
        }
        for (flag, value) in [
            ("--console-socket", &self.console_socket),
            ("--pid-file", &self.pid_file),
        ] {
            if let Some(value) = value {
                let _ = write!(command, " {flag} {}", path(value));
            }
        }
        if !self.choices.manage_cgroups_mode.is_empty() {
            let mode = quoted(&self.choices.manage_cgroups_mode);
            let _ = write!(command, " --manage-cgroups-mode {mode}");
        }
        command + " " + id
    }
}

/// Returns `word` as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+=:@,".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_can_be_pasted() {
        let spec = RestoreSpec {
            bundle: "/srv/it's here".into(),
            choices: CriuChoices {
                tcp_established: true,
                ..CriuChoices::default()
            },
            ..RestoreSpec::default()
        };
        assert_eq!(
            spec.command(Path::new("/run/rcm"), "web", Path::new("/pool/05/2")),
            r"rcm --root /run/rcm restore --detach --bundle '/srv/it'\''s here' --image-path /pool/05/2 --tcp-established web"
        );
    }
}
