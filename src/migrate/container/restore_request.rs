//! The restore request that a migration's record describes.

use std::path::Path;

use super::outgoing::flags;
use crate::migrate::record::restore_spec::RestoreSpec;
use crate::runtime::verbs::restore::RestoreRequest;

/// Returns the request that restores the container `id` below `root` from `images` and detaches.
#[must_use]
pub fn restore_request(spec: &RestoreSpec, root: &Path, id: &str, images: &Path) -> RestoreRequest {
    RestoreRequest {
        root: root.to_path_buf(),
        id: id.to_owned(),
        bundle: spec.bundle.clone(),
        systemd_cgroup: spec.systemd_cgroup,
        cgroup_parent: spec.cgroup_parent.clone(),
        network_namespace: spec.network_namespace.clone(),
        moves: true,
        console_socket: spec.console_socket.clone(),
        pid_file: spec.pid_file.clone(),
        detach: true,
        flags: flags(&spec.choices, images, &spec.work_path),
        ..RestoreRequest::default()
    }
}
