//! Settles a migration at its destination.

use std::path::{Path, PathBuf};

use super::{Means, Resolution, ResolveError, Result, cgroup_error, images_error};
use crate::criu::{self, Criu, NotResumed};
use crate::error::{Cause, chain};
use crate::image;
use crate::migrate::container::restore_request::restore_request;
use crate::migrate::record::journal::{Journal, JournalRecord};
use crate::migrate::record::verdict;
use crate::migrate::transfer::rootfs;
use crate::migrate::wire::id::{MigrationId, Side};
use crate::migrate::wire::state::{Phase, Verdict};
use crate::runtime::container::{Container, Status};
use crate::runtime::process::criu_process;
use crate::runtime::verbs::delete;
use crate::runtime::verbs::restore::{self, HeldRestore};

pub(super) fn at_destination(
    root: &Path,
    record: JournalRecord,
    means: &Means,
) -> Result<Resolution> {
    let (images, migration) = (record.images.clone(), record.migration);
    let owned = record.owns_images;
    // Until CRIU has ended, a container that it is about to kill looks like one that runs.
    criu_process::wait_for_end(root, &record.container)?;
    // Before the commit the old tree comes back, when nothing of the container is left in the new
    // one.
    if !record.phase.may_roll_back() {
        rootfs::settle(root, &record)?;
    }
    match record.phase {
        Phase::Done => {
            leave_word(&images, owned, migration, Verdict::Running)?;
            Ok(Resolution::Arrived { peer: record.peer })
        }
        Phase::Committed => take_over(root, record, means),
        Phase::Resuming => look(root, record),
        Phase::RolledBack => {
            rootfs::settle(root, &record)?;
            leave_word(&images, owned, migration, Verdict::RolledBack)?;
            Ok(Resolution::RolledBack {
                side: Side::Destination,
            })
        }
        // The receiver died before the commit. CRIU got no answer, so it killed the restored tasks.
        _ => {
            delete::delete(root, &record.container, true)?;
            rootfs::settle(root, &record)?;
            Journal::adopt(root, record)?.roll_back("rcm ended before the commit")?;
            leave_word(&images, owned, migration, Verdict::RolledBack)?;
            Ok(Resolution::RolledBack {
                side: Side::Destination,
            })
        }
    }
}

/// Restores and resumes a container that belongs to this host, unless it has run already.
fn take_over(root: &Path, record: JournalRecord, means: &Means) -> Result<Resolution> {
    if runs(root, &record)? || has_run_by_log(&record) {
        return arrived(root, record);
    }
    restore_again(root, record, means)
}

/// Settles a migration whose CRIU was told to resume the container. A living process proves that
/// the container has run. If none lives, the container may have ended. It is never restored here,
/// because it would do the same work twice.
///
/// The operator decides. A copy that was restored by hand runs; removed images mean that the
/// container has ended. Until then a source that asks gets `committed`, so it never runs its copy,
/// and the images stay.
fn look(root: &Path, record: JournalRecord) -> Result<Resolution> {
    if runs(root, &record)? || !may_have_images(&record) {
        return arrived(root, record);
    }
    may_have_run(root, &record)
}

fn arrived(root: &Path, record: JournalRecord) -> Result<Resolution> {
    let resolution = Resolution::Arrived {
        peer: record.peer.clone(),
    };
    end(root, record, resolution)
}

fn end(root: &Path, record: JournalRecord, resolution: Resolution) -> Result<Resolution> {
    let (images, owned, migration) = (record.images.clone(), record.owns_images, record.migration);
    Journal::adopt(root, record)?.enter(Phase::Done)?;
    leave_word(&images, owned, migration, Verdict::Running)?;
    Ok(resolution)
}

fn may_have_run(root: &Path, record: &JournalRecord) -> Result<Resolution> {
    let (owned, migration) = (record.owns_images, record.migration);
    leave_word(&record.images, owned, migration, Verdict::Committed)?;
    let restore_spec = record.restore_spec.clone().unwrap_or_default();
    Ok(Resolution::MayHaveRun {
        peer: record.peer.clone(),
        images: record.images.clone(),
        command: restore_spec.command(root, &record.container, &final_dump(record)),
    })
}

/// Returns whether the container is here and runs. A frozen container is thawed.
fn runs(root: &Path, record: &JournalRecord) -> Result<bool> {
    let Ok(container) = Container::load(root, &record.container) else {
        return Ok(false);
    };
    match container.status() {
        Status::Paused => {
            // CRIU restores the freezer of cgroup v1 as the dump found it; a paused container is
            // not migrated.
            let thawed = container.cgroup().thaw();
            thawed.map_err(cgroup_error(container.id()))?;
            Ok(true)
        }
        status => Ok(status == Status::Running),
    }
}

/// Returns whether CRIU's log says that the container has run. Releases without the phase
/// `resuming` had no other evidence. The sentence proves that the container ran; its absence proves
/// nothing.
fn has_run_by_log(record: &JournalRecord) -> bool {
    let restore_spec = record.restore_spec.as_ref();
    record.version == 0 && restore_spec.is_some_and(|spec| criu::has_resumed(&spec.work_path))
}

fn final_dump(record: &JournalRecord) -> PathBuf {
    image::rounds::last(&record.images).unwrap_or_else(|| record.images.clone())
}

/// Returns whether there may be images. A shared store that is not mounted may have them.
fn may_have_images(record: &JournalRecord) -> bool {
    let store_is_missing = !record.owns_images && !record.images.is_dir();
    store_is_missing || image::rounds::last(&record.images).is_some()
}

fn restore_again(root: &Path, record: JournalRecord, means: &Means) -> Result<Resolution> {
    delete::delete(root, &record.container, true)?;
    // A source may look into the store meanwhile, so the verdict comes first.
    let (owned, migration) = (record.owns_images, record.migration);
    leave_word(&record.images, owned, migration, Verdict::Committed)?;
    let dump = final_dump(&record);
    let mut journal = Journal::adopt(root, record)?;
    let restored = restore(root, &mut journal, &dump, means);
    let record = journal.record().clone();
    match restored {
        Ok(()) => {
            let peer = record.peer.clone();
            end(root, record, Resolution::Restored { peer })
        }
        Err(NotResumed {
            may_have_run: true,
            source,
        }) => {
            tracing::warn!("{}", chain(&*source));
            may_have_run(root, &record)
        }
        Err(NotResumed { source, .. }) => {
            if record.phase == Phase::Resuming {
                journal.enter(Phase::Committed)?;
            }
            Err(ResolveError::NotRestored {
                container: record.container,
                images: dump.display().to_string(),
                source,
            })
        }
    }
}

/// Resumes a restored container. As in a receiver, `resuming` is on the disk before CRIU gets its
/// yes.
fn restore(
    root: &Path,
    journal: &mut Journal,
    dump: &Path,
    means: &Means,
) -> Result<(), NotResumed<Cause>> {
    let begin = || -> Result<HeldRestore, Cause> {
        let record = journal.record();
        let restore_spec =
            (record.restore_spec.as_ref()).ok_or("the migration record does not say how")?;
        let mut request = restore_request(restore_spec, root, &record.container, dump);
        if means.console_socket.is_some() {
            request.console_socket.clone_from(&means.console_socket);
        }
        let criu = Criu::find(means.criu.as_deref())?;
        Ok(restore::begin(&criu, &request)?)
    };
    let held = begin().map_err(NotResumed::before)?;
    let restored = held.resume_after(|| -> Result<(), Cause> {
        journal.enter(Phase::Resuming)?;
        Ok(())
    })?;
    if let Some(announcement) = restored.announcement {
        announcement.finish();
    }
    Ok(())
}

/// Writes the verdict for a source that looks into the store. A source that knows the outcome has
/// removed the directory. A directory that this end owns has no other reader, and is removed unless
/// it is still needed.
fn leave_word(images: &Path, owned: bool, migration: MigrationId, word: Verdict) -> Result<()> {
    if owned {
        return match word {
            Verdict::Committed => Ok(()),
            _ => image::remove_dir_for_good(images).map_err(images_error(images)),
        };
    }
    if images.is_dir() {
        verdict::write(images, migration, word)?;
    }
    Ok(())
}
