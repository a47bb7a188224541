//! A real container at the source: dumped by CRIU, fenced by its cgroup.

use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use oci_spec::runtime::Spec;

use super::fence::{Fence, FenceError};
use crate::criu::Criu;
use crate::criu::CriuChoices;
use crate::criu::stats::DumpStats;
use crate::error::{Cause, chain};
use crate::migrate::source::offer::Bundle;
use crate::migrate::source::{self, Held, Target, Workload};
use crate::migrate::unix_sockets::{Names, Unkept, is_bind};
use crate::migrate::wire::id::MigrationId;
use crate::migrate::wire::preamble::BindMount;
use crate::runtime::container::Container;
use crate::runtime::criu_flags::CriuFlags;
use crate::runtime::linux::network;
use crate::runtime::verbs::checkpoint::{self, CheckpointOptions, HeldCheckpoint};
use crate::runtime::verbs::delete;

/// A running container.
#[derive(Debug)]
pub struct RunningContainer {
    /// What dumps it.
    pub criu: Criu,
    /// Which.
    pub container: Container,
    /// How it is dumped.
    pub choices: CriuChoices,
    /// Where CRIU logs.
    pub work_path: PathBuf,
    /// Whether a round drops what it supersedes in the rounds before it. Never done in the freeze: nothing is won by it then.
    pub auto_dedup: bool,
    /// How long CRIU may take for each stage of the dump.
    pub answer_limit_dur: Option<Duration>,
    /// The largest deleted file that goes into the images; `None` for CRIU's limit.
    pub ghost_limit_bytes: Option<u32>,
}

/// A dumped container that CRIU and its cgroup hold.
#[derive(Debug)]
pub struct FencedContainer {
    fence: Fence,
    /// Dropping a held checkpoint lets the container run on. Not even a panic may do that once the commit is on its way, so it is dropped by
    /// name only.
    held: ManuallyDrop<HeldCheckpoint>,
}

/// What CRIU is told at either end.
#[must_use]
pub fn flags(choices: &CriuChoices, images: &Path, work_path: &Path) -> CriuFlags {
    CriuFlags {
        image_path: images.to_path_buf(),
        work_path: Some(work_path.to_path_buf()),
        choices: choices.clone(),
        ..CriuFlags::default()
    }
}

/// Returns the bundle of a container, for a destination that has the same one.
///
/// # Errors
/// The spec has a path that is not UTF-8, and so no JSON form.
pub fn bundle(container: &Container, spec: &Spec) -> serde_json::Result<Bundle> {
    Ok(Bundle {
        path: container.bundle().to_path_buf(),
        rootfs: container.rootfs().to_path_buf(),
        spec: serde_json::to_value(spec)?,
        bind_mounts: bind_mounts(spec, container.bundle()),
        carried: Vec::new(),
    })
}

/// Files and directories of the host that the container mounts; what lies in the bundle comes with it.
pub(crate) fn bind_mounts(spec: &Spec, bundle: &Path) -> Vec<BindMount> {
    spec.mounts()
        .iter()
        .flatten()
        .filter(|mount| is_bind(mount))
        .filter_map(|mount| {
            let source = bundle.join(mount.source().as_ref()?);
            (!source.starts_with(bundle)).then(|| BindMount {
                source,
                destination: mount.destination().clone(),
            })
        })
        .collect()
}

impl RunningContainer {
    fn options(&self, target: Target) -> CheckpointOptions {
        CheckpointOptions {
            flags: flags(&self.choices, target.images, &self.work_path),
            parent_path: target.parent.map(Path::to_path_buf),
            page_connection: target.pages.map(Arc::new),
            ghost_limit_bytes: self.ghost_limit_bytes,
            answer_limit_dur: self.answer_limit_dur,
            moves: true,
            ..CheckpointOptions::default()
        }
    }
}

impl Workload for RunningContainer {
    type Held = HeldCheckpoint;

    fn pre_dump(&mut self, target: Target) -> Result<DumpStats, Cause> {
        let mut options = self.options(target);
        options.flags.auto_dedup = self.auto_dedup;
        checkpoint::pre_dump(&self.criu, &self.container, options)?;
        Ok(DumpStats::read(&self.work_path)?)
    }

    fn dump(self, target: Target) -> Result<HeldCheckpoint, Cause> {
        let options = self.options(target);
        Ok(checkpoint::begin(&self.criu, &self.container, options)?)
    }
}

impl Held for HeldCheckpoint {
    type Fenced = FencedContainer;

    fn stopped_at(&self) -> Instant {
        Self::stopped_at(self)
    }

    fn frozen_at(&self) -> Instant {
        Self::frozen_at(self)
    }

    fn names(&self, migration: MigrationId) -> (Names, Vec<Unkept>) {
        let container = self.container();
        match container.spec() {
            Ok(spec) => Names::find(container, &spec, migration),
            // It was read for the dump.
            Err(_) => Default::default(),
        }
    }

    fn fence(self) -> Result<FencedContainer, (Self, Cause)> {
        let fence = match Fence::set(self.container().cgroup()) {
            Ok(fence) => fence,
            Err(error) => return Err((self, error.into())),
        };
        // Looked at now: from here on the container stands still even if CRIU dies.
        if !self.holds() {
            let lifted = fence.lift().map_err(FenceError::from);
            return Err((self, lifted.err().unwrap_or(FenceError::NotHeld).into()));
        }
        Ok(FencedContainer {
            fence,
            held: ManuallyDrop::new(self),
        })
    }

    fn release(self) -> Result<(), Cause> {
        self.refuse();
        Ok(())
    }
}

impl source::Fence for FencedContainer {
    fn seal(&mut self) -> Result<(), Cause> {
        self.held.leave_barrier()?;
        self.fence.seal();
        Ok(())
    }

    fn release(self) -> Result<(), Cause> {
        network::lift(self.held.container())?;
        // CRIU lets go of the tasks first: then the thaw is the moment at which all go on together.
        ManuallyDrop::into_inner(self.held).refuse();
        Ok(self.fence.lift()?)
    }

    fn finish(self) -> Result<(), Cause> {
        let held = ManuallyDrop::into_inner(self.held);
        let container = held.container().clone();
        if let Err(error) = self.fence.kill() {
            // A "yes" would let CRIU wait for tasks that cannot die, a "no" would let them run.
            std::mem::forget(held);
            return Err(error.into());
        }
        if let Err(error) = held.commit() {
            // The tasks were killed; CRIU only had to find that out.
            tracing::debug!("{}", chain(&error));
        }
        Ok(delete::destroy_forcibly(&container)?)
    }

    fn leave(self) {
        // The end of this process is a "no" to CRIU; the tasks stay in their frozen cgroup. Dropped, `held` would thaw it.
    }
}
