//! Simulated containers. They behave as CRIU and the freezer do if a process dies.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::criu::NotResumed;
use crate::criu::stats::DumpStats;
use crate::error::Cause;
use crate::migrate::agreement::Local;
use crate::migrate::destination::{self, Host};
use crate::migrate::preflight::facts;
use crate::migrate::record::restore_spec::RestoreSpec;
use crate::migrate::source::{self, Target, Workload};
use crate::migrate::unix_sockets::{SocketNames, Unkept};
use crate::migrate::wire::facts::Facts;
use crate::migrate::wire::id::{MigrationId, Side};
use crate::migrate::wire::preamble::Preamble;

/// State of a container on one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Absent,
    Running,
    Held,
    Fenced,
}

/// Both hosts' containers. Two running copies would be seen here.
#[derive(Debug)]
pub(super) struct World {
    pub(super) source: State,
    pub(super) destination: State,
}

pub(super) type Shared = Arc<Mutex<World>>;

pub(super) fn set(world: &Shared, side: Side, state: State) {
    // A thread that simulates a dying process may have held the lock.
    let mut world = world
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    match side {
        Side::Source => world.source = state,
        Side::Destination => world.destination = state,
    }
    assert!(
        world.source != State::Running || world.destination != State::Running,
        "two copies run"
    );
}

/// Fault of a simulated container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// This round of pre-copy fails.
    PreDump(u32),
    /// The source dies in this round.
    DieInPreDump(u32),
    /// This round does not refer to the one before it.
    Orphan(u32),
    /// The dump fails.
    Dump,
    /// The source dies while it dumps.
    DieInDump,
    /// The source writes an image, and the store returns other bytes.
    DamagedImage,
    /// The restore fails.
    Restore,
    /// The destination dies in the restore.
    DieInRestore,
    /// The container cannot be fenced.
    Fence,
    /// The fence cannot be made permanent.
    Seal,
    /// The source dies while fencing.
    DieInFence,
    /// This many attempts to resume it fail.
    Resume(u32),
    /// It executes, and CRIU dies before it has said so.
    DieInResume,
    /// Removing the container at the source fails.
    Finish,
}

pub(super) struct Container {
    pub(super) world: Shared,
    pub(super) fault: Fault,
    pub(super) dir: PathBuf,
    /// Number of rounds of its memory.
    pub(super) rounds: u32,
}

pub(super) struct HeldDump {
    pub(super) world: Shared,
    pub(super) fault: Fault,
    pub(super) dir: PathBuf,
    stopped_at: Instant,
    decided: bool,
}

pub(super) struct FencedDump {
    pub(super) world: Shared,
    pub(super) fault: Fault,
    pub(super) dir: PathBuf,
}

impl Workload for Container {
    type Held = HeldDump;

    /// A container that changes half of its memory in each round.
    fn pre_dump(&mut self, target: Target) -> Result<DumpStats, Cause> {
        let Target { images, parent, .. } = target;
        let number = self.rounds;
        self.rounds += 1;
        match self.fault {
            Fault::PreDump(round) if round == number => return Err("Error (criu): no space".into()),
            Fault::DieInPreDump(round) if round == number => panic!("killed"),
            Fault::Orphan(round) if round == number => {}
            _ => link_parent(images, parent)?,
        }
        fs::write(images.join("pages-1.img"), number.to_string())?;
        Ok(DumpStats {
            written_bytes: (1 << 30) >> number,
            ..DumpStats::default()
        })
    }

    fn dump(self, target: Target) -> Result<HeldDump, Cause> {
        let Target { images, parent, .. } = target;
        link_parent(images, parent)?;
        let held = HeldDump {
            world: Arc::clone(&self.world),
            fault: self.fault,
            dir: self.dir,
            stopped_at: Instant::now(),
            decided: false,
        };
        set(&self.world, Side::Source, State::Held);
        fs::write(images.join("core-1.img"), b"core")?;
        match self.fault {
            Fault::Dump => Err("Error (criu): cannot dump".into()),
            Fault::DieInDump => panic!("killed"),
            _ => Ok(held),
        }
    }
}

/// Links the parent as CRIU does.
fn link_parent(images: &Path, parent: Option<&Path>) -> std::io::Result<()> {
    match parent {
        Some(parent) => symlink(parent, images.join("parent")),
        None => Ok(()),
    }
}

/// As CRIU does: the tasks run on if no process is there to answer.
impl Drop for HeldDump {
    fn drop(&mut self) {
        if !self.decided {
            set(&self.world, Side::Source, State::Running);
        }
    }
}

impl source::FrozenContainer for HeldDump {
    type Fenced = FencedDump;

    fn stopped_at(&self) -> Instant {
        self.stopped_at
    }

    fn frozen_at(&self) -> Instant {
        self.stopped_at
    }

    fn names(&self, _: MigrationId) -> (SocketNames, Vec<Unkept>) {
        Default::default()
    }

    fn fence(mut self) -> Result<FencedDump, (Self, Cause)> {
        match self.fault {
            Fault::Fence => Err((self, "the freezer is busy".into())),
            Fault::DieInFence => panic!("killed"),
            fault => {
                self.decided = true;
                set(&self.world, Side::Source, State::Fenced);
                Ok(FencedDump {
                    world: Arc::clone(&self.world),
                    fault,
                    dir: self.dir.clone(),
                })
            }
        }
    }

    fn release(self) -> Result<(), Cause> {
        Ok(())
    }
}

impl source::Fence for FencedDump {
    fn seal(&mut self) -> Result<(), Cause> {
        match self.fault {
            Fault::Seal => Err("the guard does not go".into()),
            _ => Ok(()),
        }
    }

    fn release(self) -> Result<(), Cause> {
        set(&self.world, Side::Source, State::Running);
        Ok(())
    }

    fn finish(self) -> Result<(), Cause> {
        set(&self.world, Side::Source, State::Absent);
        match self.fault {
            Fault::Finish => Err("cannot remove a cgroup".into()),
            _ => Ok(fs::remove_dir_all(&self.dir)?),
        }
    }

    fn leave(self) {}
}

pub(super) struct PlayedHost {
    pub(super) world: Shared,
    pub(super) fault: Fault,
    pub(super) id_in_use: bool,
    pub(super) failed_resumes: Arc<AtomicU32>,
    /// How many times it has begun to execute here.
    pub(super) executions: Arc<AtomicU32>,
}

pub(super) struct HeldRestore {
    pub(super) world: Shared,
    pub(super) fault: Fault,
    pub(super) failed_resumes: Arc<AtomicU32>,
    /// How many times it has begun to execute here.
    pub(super) executions: Arc<AtomicU32>,
    decided: bool,
}

impl Host for PlayedHost {
    type Held = HeldRestore;

    fn facts(&self) -> Facts {
        facts::gather(40_201, BTreeSet::new()).unwrap()
    }

    fn inspect(&self, preamble: &Preamble) -> Local {
        Local {
            container: "web".into(),
            id_in_use: self.id_in_use,
            bundle: preamble.bundle.clone(),
            bundle_exists: true,
            rootfs: preamble.rootfs.clone(),
            rootfs_exists: true,
            same_spec: true,
            terminal: None,
            missing_mount_sources: Vec::new(),
            images_visible: true,
            image_path: preamble.image_path.clone(),
            ..Local::default()
        }
    }

    fn restore_spec(&self, _: &Preamble) -> RestoreSpec {
        RestoreSpec::default()
    }

    fn restore(&mut self, _: &Preamble, images: &Path) -> Result<HeldRestore, Cause> {
        assert_eq!(fs::read(images.join("core-1.img"))?, b"core");
        set(&self.world, Side::Destination, State::Held);
        let held = HeldRestore {
            world: Arc::clone(&self.world),
            fault: self.fault,
            failed_resumes: Arc::clone(&self.failed_resumes),
            executions: Arc::clone(&self.executions),
            decided: false,
        };
        match self.fault {
            Fault::Restore => Err("Error (criu): cannot restore".into()),
            Fault::DieInRestore => panic!("killed"),
            _ => Ok(held),
        }
    }
}

/// As CRIU does: it kills the restored tasks if no process is there to answer.
impl Drop for HeldRestore {
    fn drop(&mut self) {
        if !self.decided {
            set(&self.world, Side::Destination, State::Absent);
        }
    }
}

impl destination::RestoredContainer for HeldRestore {
    type Running = ();

    fn resume(
        mut self,
        announce: impl FnOnce() -> Result<(), Cause>,
    ) -> Result<(), NotResumed<Cause>> {
        announce().map_err(NotResumed::before)?;
        if let Fault::Resume(times) = self.fault
            && self.failed_resumes.fetch_add(1, Ordering::Relaxed) < times
        {
            return Err(NotResumed::before("CRIU died".into()));
        }
        self.decided = true;
        set(&self.world, Side::Destination, State::Running);
        self.executions.fetch_add(1, Ordering::Relaxed);
        if self.fault == Fault::DieInResume {
            set(&self.world, Side::Destination, State::Absent);
            return Err(NotResumed {
                may_have_run: true,
                source: "CRIU died".into(),
            });
        }
        Ok(())
    }

    fn discard(self) -> Result<(), Cause> {
        Ok(())
    }
}
