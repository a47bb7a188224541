//! This host as a destination: containers restored by CRIU.

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::Cause;
use super::destination::{Held, Host};
use super::preamble::{CriuChoices, Facts, Local, Preamble};
use super::workload::flags;
use crate::criu::Criu;
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

    fn restore(&mut self, preamble: &Preamble, images: &Path) -> Result<HeldRestore, Cause> {
        let request = RestoreRequest {
            bundle: self.bundle(preamble).to_path_buf(),
            flags: flags(&preamble.criu.or(&self.choices), images, &self.work_path),
            ..self.request.clone()
        };
        Ok(restore::begin(&self.criu, &request)?)
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
