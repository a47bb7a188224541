//! This host as a destination: containers restored by CRIU.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::Cause;
use super::destination::{Held, Host};
use super::preamble::{CriuChoices, Facts, Local, Preamble};
use super::preflight;
use super::recipe::Recipe;
use crate::criu::Criu;
use crate::runtime::lower;
use crate::runtime::restore::{self, HeldRestore, RestoreRequest, Restored};
use crate::runtime::spec;

/// What a receiver was told about the container to come.
#[derive(Debug)]
pub struct Node {
    /// What restores it.
    pub criu: Criu,
    /// What this host is.
    pub facts: Facts,
    /// The image store here.
    pub image_path: PathBuf,
    /// The bundle; the source's path if none.
    pub bundle: Option<PathBuf>,
    /// Everything else, with the images still open.
    pub request: RestoreRequest,
    /// CRIU's flags of this end.
    pub choices: CriuChoices,
    /// Where CRIU logs.
    pub work_path: PathBuf,
}

impl Node {
    fn bundle<'a>(&'a self, preamble: &'a Preamble) -> &'a Path {
        self.bundle.as_deref().unwrap_or(&preamble.bundle)
    }
}

impl Node {
    /// The same conditions as for `create` and `restore`, where they fail; here they must be found before anything is stopped.
    fn terminal(&self, has_terminal: bool) -> Option<(&'static str, &'static str)> {
        let leaves = self.request.detach;
        match (
            has_terminal && leaves,
            self.request.console_socket.is_some(),
        ) {
            (true, false) => Some((
                "the container has a terminal, and nobody takes it",
                "start the receiver with --console-socket, or without --detach",
            )),
            (false, true) => Some((
                "there is no terminal to send to the console socket",
                "start the receiver without --console-socket, or with --detach for a container with a terminal",
            )),
            _ => None,
        }
    }
}

impl Host for Node {
    type Held = HeldRestore;

    fn facts(&self) -> Facts {
        self.facts.clone()
    }

    fn inspect(&self, preamble: &Preamble) -> Local {
        let bundle = self.bundle(preamble).to_path_buf();
        let spec = spec::load(&bundle.join("config.json")).ok();
        let rootfs = spec
            .as_ref()
            .and_then(|spec| spec.root().as_ref())
            .map_or_else(|| preamble.rootfs.clone(), |root| bundle.join(root.path()));
        let has_terminal = spec
            .as_ref()
            .and_then(|spec| spec.process().as_ref())
            .and_then(|process| process.terminal())
            .unwrap_or(false);
        let missing_addresses = spec
            .as_ref()
            .map_or_else(Vec::new, |spec| missing_addresses(spec, preamble));
        // As specs and not as JSON: sets such as capabilities have no order.
        let same_spec = spec.is_none_or(|spec| {
            serde_json::from_value(preamble.spec.clone()).is_ok_and(|theirs: Spec| spec == theirs)
        });
        Local {
            container: self.request.id.clone(),
            id_in_use: fs::symlink_metadata(self.request.root.join(&self.request.id)).is_ok(),
            bundle_exists: bundle.join("config.json").is_file(),
            bundle,
            rootfs_exists: rootfs.is_dir(),
            // A missing tree is one finding.
            differing_files: match rootfs.is_dir() {
                true => preflight::differing_files(&rootfs, &preamble.observed.files),
                false => Vec::new(),
            },
            missing_addresses,
            clock_ms: Some(preflight::clock_ms()),
            rootfs,
            same_spec,
            terminal: self.terminal(has_terminal),
            missing_mount_sources: preamble
                .bind_mounts
                .iter()
                .map(|mount| &mount.source)
                .filter(|source| fs::symlink_metadata(source).is_err())
                .cloned()
                .collect(),
            images_visible: self
                .image_path
                .join(preamble.migration.to_string())
                .is_dir(),
            image_path: self.image_path.clone(),
        }
    }

    fn recipe(&self, preamble: &Preamble) -> Recipe {
        Recipe {
            bundle: self.bundle(preamble).to_path_buf(),
            systemd_cgroup: self.request.systemd_cgroup,
            cgroup_parent: self.request.cgroup_parent.clone(),
            console_socket: self.request.console_socket.clone(),
            pid_file: self.request.pid_file.clone(),
            choices: preamble.criu.or(&self.choices),
            work_path: self.work_path.clone(),
        }
    }

    fn restore(&mut self, preamble: &Preamble, images: &Path) -> Result<HeldRestore, Cause> {
        let RestoreRequest {
            root, id, detach, ..
        } = &self.request;
        let request = RestoreRequest {
            detach: *detach,
            ..self.recipe(preamble).request(root, id, images)
        };
        Ok(restore::begin(&self.criu, &request)?)
    }
}

/// A network namespace that is made for the container gets its addresses from a hook, too late to be looked at.
fn missing_addresses(spec: &Spec, preamble: &Preamble) -> Vec<IpAddr> {
    let wanted = &preamble.observed.tcp_addresses;
    match lower::namespace(spec, LinuxNamespaceType::Network) {
        None => preflight::missing_addresses(None, wanted),
        Some(namespace) => match namespace.path() {
            Some(path) => preflight::missing_addresses(Some(path), wanted),
            None => Vec::new(),
        },
    }
}

impl Held for HeldRestore {
    type Running = Restored;

    fn resume(self) -> Result<Restored, Cause> {
        Ok(Self::resume(self)?)
    }

    fn discard(self) -> Result<(), Cause> {
        self.refuse();
        Ok(())
    }
}
