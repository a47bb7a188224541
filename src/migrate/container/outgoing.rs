//! A container at the source: CRIU dumps it, and its cgroup fences it.

use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use oci_spec::runtime::Spec;

use super::fence::{CgroupFence, FenceError};
use crate::criu::Criu;
use crate::criu::CriuChoices;
use crate::criu::stats::DumpStats;
use crate::error::{Cause, chain};
use crate::migrate::source::offer::Bundle;
use crate::migrate::source::{self, FrozenContainer, Target, Workload};
use crate::migrate::unix_sockets::{SocketNames, Unkept, is_bind};
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
    /// The CRIU that dumps it.
    pub criu: Criu,
    /// The container.
    pub container: Container,
    /// CRIU's flags for the dump.
    pub choices: CriuChoices,
    /// Directory for CRIU's logs.
    pub work_path: PathBuf,
    /// Whether a round frees the pages of earlier rounds that it supersedes. The final dump never
    /// does: that would only make the freeze longer.
    pub auto_dedup: bool,
    /// Time that CRIU may take for each stage of the dump.
    pub answer_limit_dur: Option<Duration>,
    /// Size limit of a deleted file in the images, in bytes; `None` for CRIU's own limit.
    pub ghost_limit_bytes: Option<u32>,
}

/// A dumped container that both CRIU and its cgroup hold.
#[derive(Debug)]
pub struct FencedContainer {
    fence: CgroupFence,
    /// Dropping a held checkpoint resumes the container. After the commit not even a panic may do
    /// that, so only named methods drop it.
    held: ManuallyDrop<HeldCheckpoint>,
}

/// Returns CRIU's flags, which are the same at both ends.
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

/// Returns the files and directories of the host that the container mounts, without those in the
/// bundle, which is copied with it.
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

impl FrozenContainer for HeldCheckpoint {
    type Fenced = FencedContainer;

    fn stopped_at(&self) -> Instant {
        Self::stopped_at(self)
    }

    fn frozen_at(&self) -> Instant {
        Self::frozen_at(self)
    }

    fn names(&self, migration: MigrationId) -> (SocketNames, Vec<Unkept>) {
        let container = self.container();
        match container.spec() {
            Ok(spec) => SocketNames::find(container, &spec, migration),
            // The dump has read the same spec, so this does not happen.
            Err(_) => Default::default(),
        }
    }

    fn fence(self) -> Result<FencedContainer, (Self, Cause)> {
        let fence = match CgroupFence::set(self.container().cgroup()) {
            Ok(fence) => fence,
            Err(error) => return Err((self, error.into())),
        };
        // CRIU is checked after the cgroup has frozen: from here on the container stays frozen even
        // if CRIU dies. If CRIU died earlier, the container has run and the images are out of date.
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
        // The network lock first: once the fence is sealed, the death of rcm must leave both. If
        // the container stayed frozen without the lock, the kernel would acknowledge data for it.
        self.held.leave_lock()?;
        self.fence.seal();
        Ok(())
    }

    fn release(self) -> Result<(), Cause> {
        // If the network lock stays, the container must stay frozen: it would run without a
        // network.
        network::lift(self.held.container())?;
        // CRIU detaches from the tasks before the thaw, so that all tasks resume together.
        ManuallyDrop::into_inner(self.held).refuse();
        Ok(self.fence.lift()?)
    }

    fn finish(self) -> Result<(), Cause> {
        let held = ManuallyDrop::into_inner(self.held);
        let container = held.container().clone();
        if let Err(error) = self.fence.kill() {
            // CRIU gets no reply: a "yes" would make it wait for tasks that cannot die, a "no"
            // would resume them.
            std::mem::forget(held);
            return Err(error.into());
        }
        if let Err(error) = held.commit() {
            // Not an error: the tasks are dead, and CRIU only had to notice that.
            tracing::debug!("{}", chain(&error));
        }
        Ok(delete::destroy_forcibly(&container)?)
    }

    fn leave(self) {
        // When this process ends, CRIU detaches, but the tasks stay in their frozen cgroup. `held`
        // must not be dropped here: that would thaw the cgroup.
    }
}
