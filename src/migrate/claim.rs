//! Who was about to take a container over, left in the shared image store for a destination that loses its memory.
//!
//! A machine that was started again knows nothing of its migrations, because its journals are in `/run`; and whatever it had restored does not exist any more. A source
//! that has sent it a commit stands still, and nobody is left to answer it. But the machine can tell that it is the one of the claim, and that this is another
//! boot than the one in which it made it: so nothing of the container executes there, and nothing of it ever will, because a receiver of this boot does not
//! know that migration. That is what [`Verdict::RolledBack`] means, and it leaves this word for the source.
//!
//! If it had got as far as to tell that the container runs ([`Verdict::Running`]), the container ended with its machine, as it would have later. That word stays.
//! It is told at the latest before the container may go on to a third host ([`keep`]), because then it does not end with this one.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::journal::{self, JournalError};
use super::protocol::{MigrationId, Phase, Side, Verdict};
use super::verdict::{self, VerdictError};
use crate::sys::file::write_atomic;

/// No name of an image: those end in `.img` or `.json`.
const FILE: &str = "destination";
/// More than such a file ever has.
const CAP_BYTES: u64 = 4 << 10;

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

#[derive(Serialize, Deserialize)]
struct Claim {
    migration: MigrationId,
    container: String,
    by: Boot,
}

/// Leaves in the migration's directory that `by` takes the container, before the source may commit.
///
/// # Errors
/// Where it cannot be written. The migration is none the worse for that, unless this machine loses its power.
pub fn leave(images: &Path, migration: MigrationId, container: &str, by: Boot) -> io::Result<()> {
    let claim = Claim {
        migration,
        container: container.to_owned(),
        by,
    };
    let text = serde_json::to_vec(&claim).map_err(io::Error::other)?;
    write_atomic(&images.join(FILE), &text, 0o600)
}

/// Gives `container` back to whoever has sent it to this machine in an earlier boot and does not know how that ended. Returns whether there was any to give back.
///
/// # Errors
/// [`VerdictError`].
pub fn give_back(store: &Path, container: &str, here: &Boot) -> Result<bool, VerdictError> {
    let mut found = false;
    for entry in fs::read_dir(store).into_iter().flatten().flatten() {
        let images = entry.path();
        let Some(claim) = read(&images) else { continue };
        let is_ours = entry.file_name().to_str() == Some(&claim.migration.to_string())
            && claim.container == container
            && here.is_later_than(&claim.by);
        if !is_ours || verdict::find(&images, claim.migration) == Some(Verdict::Running) {
            continue;
        }
        verdict::leave(&images, claim.migration, Verdict::RolledBack)?;
        found = true;
    }
    Ok(found)
}

/// Before a container that has come here goes anywhere else: from now on it is not given back to where it came from.
///
/// # Errors
/// [`ClaimError`]: then it must not go.
pub fn keep(root: &Path, container: &str) -> Result<(), ClaimError> {
    let Some(record) = journal::read_side(root, container, Side::Destination)? else {
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
    let mut text = Vec::new();
    let file = fs::File::open(images.join(FILE)).ok()?;
    file.take(CAP_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::journal::{Journal, Start};

    fn boot(machine: &str, boot: &str) -> Boot {
        Boot {
            machine: machine.into(),
            boot: boot.into(),
        }
    }

    #[test]
    fn only_a_later_boot_of_the_same_machine_gives_back() {
        let store = tempfile::tempdir().unwrap();
        let migration = MigrationId::new([1; 16]);
        let images = store.path().join(migration.to_string());
        fs::create_dir(&images).unwrap();
        leave(&images, migration, "web", boot("one", "first")).unwrap();
        let give_back =
            |container, here| give_back(store.path(), container, &here).expect("the store");
        for (container, here) in [
            ("web", boot("one", "first")),
            ("web", boot("two", "second")),
            ("other", boot("one", "second")),
        ] {
            assert!(!give_back(container, here));
            assert_eq!(verdict::find(&images, migration), None);
        }
        for _ in 0..2 {
            assert!(give_back("web", boot("one", "second")));
            let word = verdict::find(&images, migration);
            assert_eq!(word, Some(Verdict::RolledBack));
        }
    }

    #[test]
    fn what_has_run_is_not_given_back() {
        let store = tempfile::tempdir().unwrap();
        let migration = MigrationId::new([1; 16]);
        let images = store.path().join(migration.to_string());
        fs::create_dir(&images).unwrap();
        leave(&images, migration, "web", boot("one", "first")).unwrap();
        verdict::leave(&images, migration, Verdict::Running).unwrap();
        assert!(!give_back(store.path(), "web", &boot("one", "second")).unwrap());
        let word = verdict::find(&images, migration);
        assert_eq!(word, Some(Verdict::Running));
    }

    #[test]
    fn what_goes_on_is_kept_from_a_source_that_does_not_know() {
        let dir = tempfile::tempdir().unwrap();
        let migration = MigrationId::new([1; 16]);
        let images = dir.path().join(migration.to_string());
        fs::create_dir(&images).unwrap();
        let start = Start {
            migration,
            container: "web".into(),
            side: Side::Destination,
            peer: "192.0.2.1:7260".into(),
            images: images.clone(),
            owns_images: false,
            receiver: None,
            tls: None,
            acquaintance: None,
            recipe: None,
        };
        let mut journal = Journal::begin(dir.path(), start).unwrap();
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
        let store = tempfile::tempdir().unwrap();
        let images = store.path().join(MigrationId::new([2; 16]).to_string());
        fs::create_dir(&images).unwrap();
        let other = MigrationId::new([1; 16]);
        leave(&images, other, "web", boot("one", "first")).unwrap();
        assert!(!give_back(store.path(), "web", &boot("one", "second")).unwrap());
        fs::write(images.join(FILE), "{").unwrap();
        assert!(!give_back(store.path(), "web", &boot("one", "second")).unwrap());
    }
}
