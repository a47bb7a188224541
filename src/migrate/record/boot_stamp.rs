//! Who was about to take a container over, left in the image store for a destination that loses its
//! memory.
//!
//! A machine that was started again knows nothing of its migrations, because its journals are in
//! `/run`; and whatever it had restored does not exist any more. A source that has sent it a commit
//! stands still, and nobody is left to answer it. But the machine can tell that it is the one of
//! the claim, and that this is another boot than the one in which it made it: so nothing of the
//! container executes there, and nothing of it ever will, because a receiver of this boot does not
//! know that migration. So the migration is rolled back: [`Verdict::RolledBack`] is its word in a
//! shared store, and where the store is its own it answers in the receiver's place
//! ([`crate::migrate::ops::answer`]), because the claim is the receiver's journal.
//!
//! If it had got as far as to tell that the container runs ([`Verdict::Running`]), the container
//! ended with its machine, as it would have later. In a shared store that word stays, and it is
//! left there at the latest before the container may go on to a third host ([`keep`]), because then
//! it does not end with this one. In its own store the claim goes with the images, for good, as
//! soon as the container runs.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::JournalError;
use super::journal::{Journal, JournalRecord};
use super::verdict::{self, VerdictError};
use crate::migrate::record::paths;
use crate::migrate::trust::rendezvous;
use crate::migrate::wire::id::MigrationId;
use crate::migrate::wire::state::{Phase, Verdict};
use crate::sys::file::write_atomic;

/// No name of an image: those end in `.img` or `.json`.
const FILE: &str = "destination";
/// More than such a file ever has.
const CAP_BYTES: u64 = 1 << 20;

/// A container cannot be kept from its former host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// The records cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The word cannot be left.
    #[error(transparent)]
    Verdict(#[from] VerdictError),
}

/// One start of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// machine-id(5), and the host's name, because ids are copied with disks more often than names.
    machine: String,
    /// `/proc/sys/kernel/random/boot_id` (random(4)).
    boot: String,
}

impl Boot {
    /// This one. `None` on a machine that has no id.
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

/// A migration to this machine, as its journal had it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Claim {
    by: Boot,
    /// Id of the receiver, whose file in the store must go.
    #[serde(default)]
    receiver: Option<MigrationId>,
    record: JournalRecord,
    /// What the receiver had recorded of its changes to the file system.
    placement: Option<String>,
}

/// Leaves in the directory of a migration to this host, below its state directory `root`, that `by`
/// takes the container, before the source may commit.
///
/// # Errors
/// Where it cannot be written. The migration is none the worse for that, unless this machine loses
/// its power.
pub fn leave(root: &Path, record: &JournalRecord, by: Boot) -> io::Result<()> {
    let mut claim = Claim {
        by,
        receiver: record
            .acquaintance
            .map(|acquaintance| acquaintance.receiver),
        record: record.clone(),
        placement: paths::read_placement(root, &record.container),
    };
    if !record.owns_images {
        // Nobody is answered but through the store.
        claim.record.acquaintance = None;
    }
    let text = serde_json::to_vec(&claim).map_err(io::Error::other)?;
    write_atomic(&record.images.join(FILE), &text, 0o600)?;
    match record.images.parent() {
        // It has just been made in this machine's own store.
        Some(store) if record.owns_images => fs::File::open(store)?.sync_all(),
        _ => Ok(()),
    }
}

/// The migrations of `container` that ended with an earlier boot of this machine, and of which
/// nobody has heard that it runs here, the oldest first.
#[must_use]
pub fn find(store: &Path, container: &str, here: &Boot) -> Vec<Claim> {
    let entries = fs::read_dir(store).into_iter().flatten().flatten();
    let mut claims: Vec<Claim> = entries
        .filter_map(|entry| {
            let claim = read(&entry.path())?;
            let migration = claim.record.migration;
            let is_ours = entry.file_name().to_str() == Some(&migration.to_string())
                && claim.record.container == container
                && here.is_later_than(&claim.by)
                && verdict::find(&entry.path(), migration) != Some(Verdict::Running);
            is_ours.then_some(claim)
        })
        .collect();
    claims.sort_by_key(|claim| claim.record.started);
    claims
}

impl Claim {
    /// Gives the container back: takes over into the records below `root` that the migration was
    /// rolled back. What is left of it has to be settled by these.
    ///
    /// # Errors
    /// [`JournalError::File`].
    pub fn give_back(self, root: &Path) -> Result<JournalRecord, JournalError> {
        if let (Some(receiver), Some(store)) = (self.receiver, self.record.images.parent()) {
            rendezvous::remove(store, &self.record.container, &receiver);
        }
        if let Some(placement) = &self.placement {
            paths::write_placement(root, &self.record.container, placement)?;
        }
        let mut journal = Journal::adopt(root, self.record)?;
        journal.roll_back("this host was started again before anybody knew that it ran here")?;
        Ok(journal.record().clone())
    }
}

/// Before a container that has come here goes anywhere else: from now on it is not given back to
/// where it came from.
///
/// # Errors
/// [`ClaimError`]: then it must not go.
pub fn keep(destination: Option<&JournalRecord>) -> Result<(), ClaimError> {
    let Some(record) = destination else {
        return Ok(());
    };
    if record.confirmed || record.owns_images || record.phase != Phase::Done {
        return Ok(());
    }
    match verdict::leave(&record.images, record.migration, Verdict::Running) {
        // The source knows, or it would not have removed them.
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
        left => Ok(left?),
    }
}

fn read(images: &Path) -> Option<Claim> {
    let file = fs::File::open(images.join(FILE)).ok()?;
    let metadata = file.metadata().ok()?;
    let is_private =
        metadata.uid() == nix::unistd::geteuid().as_raw() && metadata.mode() & 0o077 == 0;
    let mut text = Vec::new();
    file.take(CAP_BYTES).read_to_end(&mut text).ok()?;
    let mut claim: Claim = serde_json::from_slice(&text).ok()?;
    if !claim.record.is_known() {
        return None;
    }
    if !is_private {
        // As on a server that takes root for somebody else. It is worth a word in that store and
        // nothing else.
        (claim.record.owns_images, claim.placement) = (false, None);
    }
    if !claim.record.owns_images {
        claim.record.unanswered = None;
    }
    if let Some(receiver) = &mut claim.record.unanswered {
        receiver.store = images.parent()?.to_path_buf();
    }
    claim.record.images = images.to_path_buf();
    // How far it got is lost: the commit may have come.
    claim.record.phase = Phase::PeerReady;
    Some(claim)
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
            recipe: None,
        }
    }

    #[test]
    fn only_a_later_boot_of_the_same_machine_gives_back() {
        let (root, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let left = record(root.path(), store.path(), MigrationId::new([1; 16]));
        leave(root.path(), &left, boot("one", "first")).unwrap();
        let find = |container, here| find(store.path(), container, &here);
        assert!(find("web", boot("one", "first")).is_empty());
        assert!(find("web", boot("two", "second")).is_empty());
        assert!(find("other", boot("one", "second")).is_empty());
        let claims = find("web", boot("one", "second"));
        let after = tempfile::tempdir().unwrap();
        for claim in claims {
            let back = claim.give_back(after.path()).unwrap();
            assert_eq!(back.phase, Phase::RolledBack);
        }
        let known = ledger::latest(after.path(), "web").unwrap().unwrap();
        assert_eq!(
            (known.migration, known.images),
            (left.migration, left.images)
        );
    }

    #[test]
    fn what_has_run_is_not_given_back() {
        let (root, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let left = record(root.path(), store.path(), MigrationId::new([1; 16]));
        leave(root.path(), &left, boot("one", "first")).unwrap();
        verdict::leave(&left.images, left.migration, Verdict::Running).unwrap();
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
        leave(root.path(), &left, boot("one", "first")).unwrap();
        let claim = || {
            find(store.path(), "web", &boot("one", "second"))
                .pop()
                .unwrap()
        };
        let after = tempfile::tempdir().unwrap();
        let back = claim().give_back(after.path()).unwrap();
        assert_eq!(
            (back.acquaintance, back.unanswered, back.owns_images),
            (left.acquaintance, left.unanswered, true)
        );
        let placement = paths::read_placement(after.path(), "web");
        assert_eq!(placement.as_deref(), Some("what was placed"));
        // Somebody else could have written it.
        let file = left.images.join(FILE);
        fs::set_permissions(file, fs::Permissions::from_mode(0o640)).unwrap();
        let claim = claim();
        assert!(!claim.record.owns_images && claim.placement.is_none());
        assert_eq!(claim.record.unanswered, None);
    }

    #[test]
    fn what_goes_on_is_kept_from_a_source_that_does_not_know() {
        let dir = tempfile::tempdir().unwrap();
        let migration = MigrationId::new([1; 16]);
        let images = dir.path().join(migration.to_string());
        fs::create_dir(&images).unwrap();
        let start = start(migration, images.clone());
        let mut journal = Journal::begin(dir.path(), start).unwrap();
        let keep = |root, container| super::keep(Known::read(root, container)?.destination());
        keep(dir.path(), "web").unwrap();
        assert_eq!(verdict::find(&images, migration), None, "not here yet");
        journal.enter(Phase::Done).unwrap();
        keep(dir.path(), "web").unwrap();
        let word = verdict::find(&images, migration);
        assert_eq!(word, Some(Verdict::Running));
        // The source has removed them.
        fs::remove_dir_all(&images).unwrap();
        keep(dir.path(), "web").unwrap();
        // Nobody can be told.
        fs::write(&images, "").unwrap();
        assert!(keep(dir.path(), "web").is_err());
        journal::forget_receiver(dir.path(), migration, "web").unwrap();
        keep(dir.path(), "web").unwrap();
    }

    #[test]
    fn a_claim_counts_in_its_own_directory_alone() {
        let (root, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let left = record(root.path(), store.path(), MigrationId::new([1; 16]));
        leave(root.path(), &left, boot("one", "first")).unwrap();
        let other = store.path().join(MigrationId::new([2; 16]).to_string());
        fs::rename(&left.images, &other).unwrap();
        assert!(find(store.path(), "web", &boot("one", "second")).is_empty());
        fs::rename(&other, &left.images).unwrap();
        fs::write(left.images.join(FILE), "{").unwrap();
        assert!(find(store.path(), "web", &boot("one", "second")).is_empty());
    }
}
