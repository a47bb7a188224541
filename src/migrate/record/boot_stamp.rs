//! Boot stamps: files in the image store by which a destination that was rebooted can tell that it
//! no longer holds a container.
//!
//! A machine that was rebooted knows nothing of its migrations, because its journals are in `/run`,
//! and the containers that it had restored are gone. A source that has sent it a commit keeps its
//! container frozen, and no receiver is left to answer. But the machine can tell from the stamp
//! that it is the same machine in another boot. So nothing of the container executes there. Nothing
//! of it ever will, because a receiver of this boot does not know that migration. So the migration
//! is rolled back. In a shared store the machine writes the answer [`Verdict::RolledBack`]. If the
//! store is its own, it answers in the receiver's place ([`crate::migrate::ops::answer`]), because
//! the stamp contains the receiver's journal.
//!
//! If the machine had already answered that the container runs ([`Verdict::Running`]), the
//! container ended with the machine, as it would have later. In a shared store that answer stays.
//! It must be there before the container may move on to a third host ([`confirm_running`]), because
//! then it does not end with this machine. In the machine's own store the stamp is removed with the
//! images, for good, as soon as the container runs.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::JournalError;
use super::journal::{Journal, JournalRecord};
use super::verdict::{self, VerdictError};
use crate::migrate::limits::MAX_STAMP_BYTES;
use crate::migrate::record::paths;
use crate::migrate::trust::rendezvous;
use crate::migrate::wire::id::MigrationId;
use crate::migrate::wire::state::{Phase, Verdict};
use crate::sys::file::write_atomic;

/// Name of the stamp. Names of images end in `.img` or `.json`, so none is the same.
const FILE: &str = "destination";

/// A container cannot move on, because it could be rolled back to the host from which it came.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootStampError {
    /// The records cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The verdict cannot be written.
    #[error(transparent)]
    Verdict(#[from] VerdictError),
}

/// One boot of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// machine-id(5) and the host's name, because ids are copied with disks more often than names.
    machine: String,
    /// `/proc/sys/kernel/random/boot_id` (random(4)).
    boot: String,
}

impl Boot {
    /// Returns the current boot. `None` on a machine that has no id.
    #[must_use]
    pub fn current() -> Option<Self> {
        let id = read_word("/etc/machine-id")?;
        let uname = nix::sys::utsname::uname().ok()?;
        Some(Self {
            machine: format!("{id} {}", uname.nodename().to_string_lossy()),
            boot: read_word("/proc/sys/kernel/random/boot_id")?,
        })
    }

    fn is_later_than(&self, other: &Self) -> bool {
        self.machine == other.machine && self.boot != other.boot
    }
}

fn read_word(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|word| !word.is_empty())
}

/// Stamp of a migration to this machine, with its journal record.
#[derive(Debug, Serialize, Deserialize)]
pub struct BootStamp {
    by: Boot,
    /// Id of the receiver, whose file in the store must go.
    #[serde(default)]
    receiver: Option<MigrationId>,
    record: JournalRecord,
    /// Record of the receiver about its changes to the file system.
    placement: Option<String>,
}

/// Writes the stamp of the boot `by` to the images' directory of a migration to this host, whose
/// state directory is `root`. It has to be there before the source may commit.
///
/// # Errors
/// If the stamp cannot be written. The migration may continue: the stamp matters only if this
/// machine is rebooted.
pub fn write(root: &Path, record: &JournalRecord, by: Boot) -> io::Result<()> {
    let mut stamp = BootStamp {
        by,
        receiver: record
            .acquaintance
            .map(|acquaintance| acquaintance.receiver),
        record: record.clone(),
        placement: paths::read_placement(root, &record.container),
    };
    if !record.owns_images {
        // The source is answered through the store alone.
        stamp.record.acquaintance = None;
    }
    let text = serde_json::to_vec(&stamp).map_err(io::Error::other)?;
    write_atomic(&record.images.join(FILE), &text, 0o600)?;
    match record.images.parent() {
        // The directory has just been made in this machine's own store. Without this sync its name
        // could be lost in the reboot for which the stamp is made.
        Some(store) if record.owns_images => fs::File::open(store)?.sync_all(),
        _ => Ok(()),
    }
}

/// Returns the stamps of the migrations of `container` that ended with an earlier boot of this
/// machine, the oldest first. Stamps of migrations with the answer "running" are not among them.
#[must_use]
pub fn find(store: &Path, container: &str, here: &Boot) -> Vec<BootStamp> {
    let entries = fs::read_dir(store).into_iter().flatten().flatten();
    let mut stamps: Vec<BootStamp> = entries
        .filter_map(|entry| {
            let stamp = read(&entry.path())?;
            let migration = stamp.record.migration;
            let is_ours = entry.file_name().to_str() == Some(&migration.to_string())
                && stamp.record.container == container
                && here.is_later_than(&stamp.by)
                && verdict::read(&entry.path(), migration) != Some(Verdict::Running);
            is_ours.then_some(stamp)
        })
        .collect();
    stamps.sort_by_key(|stamp| stamp.record.started);
    stamps
}

impl BootStamp {
    /// Rolls the migration back in the records below `root`, by which the rest of it can then be
    /// settled.
    ///
    /// # Errors
    /// [`JournalError::File`].
    pub fn roll_back(self, root: &Path) -> Result<JournalRecord, JournalError> {
        if let (Some(receiver), Some(store)) = (self.receiver, self.record.images.parent()) {
            rendezvous::remove(store, &self.record.container, &receiver);
        }
        if let Some(placement) = &self.placement {
            paths::write_placement(root, &self.record.container, placement)?;
        }
        let mut journal = Journal::adopt(root, self.record)?;
        journal.roll_back(
            "this host was rebooted before the source knew that the container ran here",
        )?;
        Ok(journal.record().clone())
    }
}

/// Writes the answer that the container runs here, before a container that came to this host moves
/// on. From then on it cannot be rolled back to the host from which it came.
///
/// # Errors
/// [`BootStampError`]: then it must not move on.
pub fn confirm_running(destination: Option<&JournalRecord>) -> Result<(), BootStampError> {
    let Some(record) = destination else {
        return Ok(());
    };
    if record.confirmed || record.owns_images || record.phase != Phase::Done {
        return Ok(());
    }
    match verdict::write(&record.images, record.migration, Verdict::Running) {
        // The source has removed the images, so it knows.
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
        left => Ok(left?),
    }
}

fn read(images: &Path) -> Option<BootStamp> {
    let file = fs::File::open(images.join(FILE)).ok()?;
    let metadata = file.metadata().ok()?;
    let is_private =
        metadata.uid() == nix::unistd::geteuid().as_raw() && metadata.mode() & 0o077 == 0;
    let mut text = Vec::new();
    file.take(MAX_STAMP_BYTES).read_to_end(&mut text).ok()?;
    let mut stamp: BootStamp = serde_json::from_slice(&text).ok()?;
    if !stamp.record.is_known() {
        return None;
    }
    if !is_private {
        // On some servers root's files belong to another user. Such a stamp counts in that store
        // only.
        (stamp.record.owns_images, stamp.placement) = (false, None);
    }
    if !stamp.record.owns_images {
        stamp.record.unanswered = None;
    }
    if let Some(receiver) = &mut stamp.record.unanswered {
        receiver.store = images.parent()?.to_path_buf();
    }
    stamp.record.images = images.to_path_buf();
    // The phase that it had reached is lost. The commit may have arrived.
    stamp.record.phase = Phase::PeerReady;
    Some(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::record::journal;
    use crate::migrate::record::journal::Start;
    use crate::migrate::record::ledger::{self, Known};
    use crate::migrate::record::receiver::StoredReceiver;
    use crate::migrate::trust::rendezvous::Acquaintance;
    use crate::migrate::wire::id::{Bytes32, Side};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    fn boot(machine: &str, boot: &str) -> Boot {
        Boot {
            machine: machine.into(),
            boot: boot.into(),
        }
    }

    fn record(root: &Path, store: &Path, migration: MigrationId) -> JournalRecord {
        let images = store.join(migration.to_string());
        fs::create_dir(&images).unwrap();
        Journal::begin(root, start(migration, images))
            .unwrap()
            .record()
            .clone()
    }

    fn start(migration: MigrationId, images: PathBuf) -> Start {
        Start {
            migration,
            container: "web".into(),
            side: Side::Destination,
            peer: "192.0.2.1:7260".into(),
            images,
            owns_images: false,
            receiver: None,
            tls: None,
            acquaintance: None,
            restore_spec: None,
        }
    }

    #[test]
    fn only_a_later_boot_of_the_same_machine_rolls_back() {
        let (root, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let left = record(root.path(), store.path(), MigrationId::new([1; 16]));
        write(root.path(), &left, boot("one", "first")).unwrap();
        let find = |container, here| find(store.path(), container, &here);
        assert!(find("web", boot("one", "first")).is_empty());
        assert!(find("web", boot("two", "second")).is_empty());
        assert!(find("other", boot("one", "second")).is_empty());
        let stamps = find("web", boot("one", "second"));
        let after = tempfile::tempdir().unwrap();
        for stamp in stamps {
            let back = stamp.roll_back(after.path()).unwrap();
            assert_eq!(back.phase, Phase::RolledBack);
        }
        let known = ledger::latest(after.path(), "web").unwrap().unwrap();
        assert_eq!(
            (known.migration, known.images),
            (left.migration, left.images)
        );
    }

    #[test]
    fn a_container_that_has_run_is_not_rolled_back() {
        let (root, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let left = record(root.path(), store.path(), MigrationId::new([1; 16]));
        write(root.path(), &left, boot("one", "first")).unwrap();
        verdict::write(&left.images, left.migration, Verdict::Running).unwrap();
        assert!(find(store.path(), "web", &boot("one", "second")).is_empty());
    }

    #[test]
    fn in_its_own_store_it_is_all_that_the_receiver_knew() {
        let (root, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut left = record(root.path(), store.path(), MigrationId::new([1; 16]));
        left.owns_images = true;
        left.acquaintance = Some(Acquaintance {
            receiver: MigrationId::new([8; 16]),
            secret: Bytes32([7; 32]),
            fingerprint: Bytes32([6; 32]),
            knows_secret: true,
        });
        left.unanswered = Some(StoredReceiver {
            listen: "192.0.2.2:7260".parse().unwrap(),
            identity: None,
            key_without_store: None,
            store: store.path().into(),
        });
        paths::write_placement(root.path(), "web", "what was placed").unwrap();
        write(root.path(), &left, boot("one", "first")).unwrap();
        let stamp = || {
            find(store.path(), "web", &boot("one", "second"))
                .pop()
                .unwrap()
        };
        let after = tempfile::tempdir().unwrap();
        let back = stamp().roll_back(after.path()).unwrap();
        assert_eq!(
            (back.acquaintance, back.unanswered, back.owns_images),
            (left.acquaintance, left.unanswered, true)
        );
        let placement = paths::read_placement(after.path(), "web");
        assert_eq!(placement.as_deref(), Some("what was placed"));
        // Another user could have written the stamp.
        let file = left.images.join(FILE);
        fs::set_permissions(file, fs::Permissions::from_mode(0o640)).unwrap();
        let stamp = stamp();
        assert!(!stamp.record.owns_images && stamp.placement.is_none());
        assert_eq!(stamp.record.unanswered, None);
    }

    #[test]
    fn a_container_that_moves_on_is_confirmed_first() {
        let dir = tempfile::tempdir().unwrap();
        let migration = MigrationId::new([1; 16]);
        let images = dir.path().join(migration.to_string());
        fs::create_dir(&images).unwrap();
        let start = start(migration, images.clone());
        let mut journal = Journal::begin(dir.path(), start).unwrap();
        let confirm =
            |root, container| super::confirm_running(Known::read(root, container)?.destination());
        confirm(dir.path(), "web").unwrap();
        assert_eq!(verdict::read(&images, migration), None, "not here yet");
        journal.enter(Phase::Done).unwrap();
        confirm(dir.path(), "web").unwrap();
        let verdict = verdict::read(&images, migration);
        assert_eq!(verdict, Some(Verdict::Running));
        // The source has removed the images.
        fs::remove_dir_all(&images).unwrap();
        confirm(dir.path(), "web").unwrap();
        // The answer cannot be written.
        fs::write(&images, "").unwrap();
        assert!(confirm(dir.path(), "web").is_err());
        journal::forget_receiver(dir.path(), migration, "web").unwrap();
        confirm(dir.path(), "web").unwrap();
    }

    #[test]
    fn a_stamp_counts_in_its_own_directory_alone() {
        let (root, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let left = record(root.path(), store.path(), MigrationId::new([1; 16]));
        write(root.path(), &left, boot("one", "first")).unwrap();
        let other = store.path().join(MigrationId::new([2; 16]).to_string());
        fs::rename(&left.images, &other).unwrap();
        assert!(find(store.path(), "web", &boot("one", "second")).is_empty());
        fs::rename(&other, &left.images).unwrap();
        fs::write(left.images.join(FILE), "{").unwrap();
        assert!(find(store.path(), "web", &boot("one", "second")).is_empty());
    }
}
