//! The destination's interface to this host: containers restored by CRIU.

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::restore_request::restore_request;
use crate::criu::{Criu, CriuChoices, NotResumed};
use crate::error::{Cause, chain};
use crate::migrate::agreement::{Local, plan};
use crate::migrate::destination::{Host, RestoredContainer};
use crate::migrate::preflight::{self, network};
use crate::migrate::record::lock::Lock;
use crate::migrate::record::paths;
use crate::migrate::record::restore_spec::RestoreSpec;
use crate::migrate::wire::facts::Facts;
use crate::migrate::wire::preamble::Preamble;
use crate::migrate::wire::rootfs::RootfsWay;
use crate::runtime::container::validate_id;
use crate::runtime::spec;
use crate::runtime::spec::namespaces::{Namespace, Namespaces};
use crate::runtime::verbs::restore::{self, HeldRestore, RestoreRequest, Restored};

/// A receiver's parameters for the container to come.
#[derive(Debug)]
pub struct IncomingHost {
    /// The CRIU that restores it, or the reason for which there is none.
    pub criu: Result<Criu, String>,
    /// Description of this host.
    pub facts: Facts,
    /// Path of the image store here.
    pub image_path: PathBuf,
    /// Path of the bundle; `None` for the source's path.
    pub bundle: Option<PathBuf>,
    /// The other parameters of the restore, without the images.
    pub request: RestoreRequest,
    /// CRIU's flags at this end.
    pub choices: CriuChoices,
    /// Directory for CRIU's logs.
    pub work_path: PathBuf,
    /// For a receiver that takes any container. The id, the bundle and the work directory are then
    /// set for each container that comes.
    pub any: Option<AnyContainer>,
}

/// Parameters that the containers of a receiver for any container share.
#[derive(Debug)]
pub struct AnyContainer {
    /// Directory of the bundles: each container has a subdirectory with its id.
    bundles: Option<PathBuf>,
    /// Directory of CRIU's work directories, likewise.
    work_paths: Option<PathBuf>,
    /// Takes the right to receive a container.
    take: TakeLock,
    /// Lock of the container that comes.
    lock: Option<Lock>,
}

/// Takes the right to receive the container with this id below a state directory.
pub type TakeLock = fn(&Path, &str) -> Result<Lock, Cause>;

impl AnyContainer {
    /// Takes the directories in which each container has a subdirectory with its id. Without them,
    /// the bundle has the source's path, and the work directory is the one that a receiver for that
    /// container uses. `take` is called when a container comes.
    #[must_use]
    pub fn new(bundles: Option<PathBuf>, work_paths: Option<PathBuf>, take: TakeLock) -> Self {
        Self {
            bundles,
            work_paths,
            take,
            lock: None,
        }
    }
}

impl IncomingHost {
    fn bundle<'a>(&'a self, preamble: &'a Preamble) -> &'a Path {
        self.bundle.as_deref().unwrap_or(&preamble.bundle)
    }
}

impl IncomingHost {
    /// Returns CRIU's objection to this host's processor.
    fn processor(&self, preamble: &Preamble) -> Option<String> {
        let is_known = !preamble.processor.is_empty();
        let criu = self.criu.as_ref().ok().filter(|_| is_known)?;
        // Another architecture is a finding of its own.
        if preamble.facts.architecture != self.facts.architecture {
            return None;
        }
        let checked = criu.check_processor(&preamble.processor, &self.request.root);
        checked.err().map(|error| chain(&error))
    }

    /// Parses the spec `text` of `path` as the container will have it; `None` if it is invalid.
    fn spec(&self, path: &Path, mut text: Vec<u8>) -> Option<Spec> {
        if let Some(namespace) = &self.request.network_namespace {
            text = spec::with_network(path, &text, namespace).ok()?;
        }
        spec::parse(path, &text).ok()
    }

    /// Checks the conditions for the terminal under which `create` and `restore` fail. Here they
    /// must be found before the container is stopped.
    fn terminal(&self, has_terminal: bool) -> Option<(&'static str, &'static str)> {
        let leaves = self.request.detach;
        match (
            has_terminal && leaves,
            self.request.console_socket.is_some(),
        ) {
            (true, false) => Some((
                "the container has a terminal, and this receiver has none for it",
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

impl Host for IncomingHost {
    type Held = HeldRestore;

    fn facts(&self) -> Facts {
        self.facts.clone()
    }

    fn expect(&mut self, preamble: &Preamble) {
        let Some(any) = &mut self.any else { return };
        any.lock = None;
        // The id is used in paths. An invalid one becomes the empty string, which the judgement
        // then refuses.
        self.request.id = match validate_id(&preamble.container) {
            Ok(()) => preamble.container.clone(),
            Err(_) => String::new(),
        };
        self.bundle = any
            .bundles
            .as_ref()
            .map(|bundles| bundles.join(&self.request.id));
    }

    fn claim(&mut self) -> Result<(), Cause> {
        let Some(any) = &mut self.any else {
            return Ok(());
        };
        let (root, id) = (&self.request.root, &self.request.id);
        let lock = (any.take)(root, id)?;
        self.work_path = match &any.work_paths {
            Some(work_paths) => {
                let path = work_paths.join(id);
                fs::create_dir_all(&path)?;
                path
            }
            None => paths::make_work_dir(root, id)?,
        };
        any.lock = Some(lock);
        Ok(())
    }

    fn inspect(&self, preamble: &Preamble) -> Local {
        let bundle = self.bundle(preamble).to_path_buf();
        let config = bundle.join("config.json");
        let bundle_exists = config.is_file();
        let own = spec::read(&config)
            .ok()
            .and_then(|text| self.spec(&config, text));
        let theirs = || self.spec(&config, preamble.spec.to_string().into_bytes());
        let same_spec = own.clone().is_none_or(|own| same_spec(own, &preamble.spec));
        let offer = &preamble.rootfs_offer;
        let mut rootfs = rootfs_place(own.as_ref(), &bundle, preamble);
        let mut rootfs_found = preflight::rootfs_found(&rootfs, offer);
        let rootfs_plan = plan(offer, &rootfs_found, preflight::has_entries(&rootfs));
        // The spec with which the container will be restored.
        let spec = match rootfs_plan.way {
            RootfsWay::Full => theirs(),
            RootfsWay::Diff => own.or_else(theirs),
            RootfsWay::Shared | RootfsWay::None => own,
        };
        if rootfs_plan.way == RootfsWay::Full {
            rootfs = rootfs_place(spec.as_ref(), &bundle, preamble);
            rootfs_found = preflight::rootfs_found(&rootfs, offer);
        }
        let has_terminal = spec
            .as_ref()
            .and_then(|spec| spec.process().as_ref())
            .and_then(|process| process.terminal())
            .unwrap_or(false);
        let namespaces = spec.as_ref().map(Namespaces::of);
        let place = namespaces
            .as_ref()
            .map(|namespaces| namespaces.get(LinuxNamespaceType::Network));
        let keeps_connections = preamble.criu.or(&self.choices).tcp_established;
        let network =
            place.and_then(|place| network::judge(&preamble.spec, place, keeps_connections));
        let network_namespace = match place {
            Some(Namespace::Joined(path)) => Some(path.to_path_buf()),
            _ => None,
        };
        let missing_addresses = match (&network, place) {
            (None, Some(place)) => {
                network::missing_addresses(place, &preamble.observed.tcp_addresses)
            }
            _ => Vec::new(),
        };
        Local {
            container: self.request.id.clone(),
            id_in_use: fs::symlink_metadata(self.request.root.join(&self.request.id)).is_ok(),
            bundle_exists,
            bundle,
            rootfs_exists: rootfs.is_dir(),
            // A missing tree is a finding of its own, and a copied tree has the source's files.
            differing_files: if rootfs.is_dir() && !rootfs_plan.way.copies() {
                preflight::differing_files(&rootfs, &preamble.observed.files)
            } else {
                Vec::new()
            },
            network,
            network_namespace,
            missing_addresses,
            clock_ms: Some(preflight::clock_ms()),
            no_criu: self.criu.as_ref().err().cloned(),
            processor: self.processor(preamble),
            space: preflight::free_space(&self.image_path),
            rootfs,
            same_spec: same_spec || rootfs_plan.way == RootfsWay::Full,
            terminal: self.terminal(has_terminal),
            missing_mount_sources: missing_sources(preamble),
            images_visible: self
                .image_path
                .join(preamble.migration.to_string())
                .is_dir(),
            image_path: self.image_path.clone(),
            rootfs_found,
            rootfs_plan,
        }
    }

    fn restore_spec(&self, preamble: &Preamble) -> RestoreSpec {
        RestoreSpec {
            bundle: self.bundle(preamble).to_path_buf(),
            systemd_cgroup: self.request.systemd_cgroup,
            cgroup_parent: self.request.cgroup_parent.clone(),
            network_namespace: self.request.network_namespace.clone(),
            console_socket: self.request.console_socket.clone(),
            pid_file: self.request.pid_file.clone(),
            choices: preamble.criu.or(&self.choices),
            work_path: self.work_path.clone(),
        }
    }

    fn restore(&mut self, preamble: &Preamble, images: &Path) -> Result<HeldRestore, Cause> {
        let RestoreRequest {
            root,
            id,
            detach,
            answer_limit_dur,
            ..
        } = &self.request;
        let request = RestoreRequest {
            detach: *detach,
            answer_limit_dur: *answer_limit_dur,
            ..restore_request(&self.restore_spec(preamble), root, id, images)
        };
        let criu = self.criu.as_ref().map_err(Clone::clone)?;
        Ok(restore::begin(criu, &request)?)
    }
}

/// Returns the sources of the container's bind mounts that this host does not have.
fn missing_sources(preamble: &Preamble) -> Vec<PathBuf> {
    let sources = preamble.bind_mounts.iter().map(|mount| &mount.source);
    sources
        .filter(|source| fs::symlink_metadata(source).is_err())
        .cloned()
        .collect()
}

/// Returns the path of the root file system of `spec` in this bundle: below the bundle if it was
/// below the source's, else the source's path.
fn rootfs_place(spec: Option<&Spec>, bundle: &Path, preamble: &Preamble) -> PathBuf {
    let named = spec.and_then(|spec| spec.root().as_ref());
    let path = match (named, preamble.rootfs.strip_prefix(&preamble.bundle)) {
        (Some(root), _) => bundle.join(root.path()),
        (None, Ok(below)) => bundle.join(below),
        (None, Err(_)) => preamble.rootfs.clone(),
    };
    // The tree is renamed to this path, so a link of the operator is followed here.
    fs::canonicalize(&path).unwrap_or(path)
}

/// Returns whether the container was created with this spec, except for the path of its network
/// namespace. They are compared as specs and not as JSON: sets such as capabilities have no order.
fn same_spec(mut ours: Spec, theirs: &serde_json::Value) -> bool {
    let Ok(mut theirs) = serde_json::from_value::<Spec>(theirs.clone()) else {
        return false;
    };
    for spec in [&mut ours, &mut theirs] {
        let namespaces = spec
            .linux_mut()
            .as_mut()
            .and_then(|linux| linux.namespaces_mut().as_mut());
        for namespace in namespaces.into_iter().flatten() {
            if namespace.typ() == LinuxNamespaceType::Network {
                namespace.set_path(None);
            }
        }
    }
    ours == theirs
}

impl RestoredContainer for HeldRestore {
    type Running = Restored;

    fn resume(
        self,
        announce: impl FnOnce() -> Result<(), Cause>,
    ) -> Result<Restored, NotResumed<Cause>> {
        self.resume_after(announce)
    }

    fn discard(self) -> Result<(), Cause> {
        self.refuse();
        Ok(())
    }
}
