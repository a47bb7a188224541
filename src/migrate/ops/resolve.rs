//! Settles a migration that a crash or a silent peer has left open.

mod destination;
mod error;

use std::io;
use std::path::{Path, PathBuf};

use chrono::Utc;

use crate::error::chain;
use crate::image;
use crate::migrate::container::fence::CgroupFence;
use crate::migrate::limits::{ORPHAN_LIMIT_DUR, SETTLED_LIMIT_DUR};
use crate::migrate::link::address::Destination;
use crate::migrate::link::channel::Patience;
use crate::migrate::record::boot_stamp::{self, Boot};
use crate::migrate::record::journal::{Journal, JournalRecord};
use crate::migrate::record::ledger::{self, Known};
use crate::migrate::record::lock::Lock;
use crate::migrate::record::paths;
use crate::migrate::record::verdict;
use crate::migrate::source::ask;
use crate::migrate::transfer::rootfs;
use crate::migrate::trust::{Trust, TrustSettings};
use crate::migrate::unix_sockets::{self, SocketNames};
use crate::migrate::wire::id::Side;
use crate::migrate::wire::payload::Settled;
use crate::migrate::wire::protocol::Message;
use crate::migrate::wire::state::{Phase, Verdict};
use crate::runtime::container::Container;
use crate::runtime::linux::cgroup::CgroupError;
use crate::runtime::linux::network;
use crate::runtime::process::criu_process;
use crate::runtime::verbs::delete;

use destination::at_destination;

/// Outcome of a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resolution {
    /// The container runs at the other end, or has ended there.
    Moved {
        /// The other end.
        peer: String,
    },
    /// The container arrived on this host. It may have ended since.
    Arrived {
        /// The source.
        peer: String,
    },
    /// The container had arrived here without running; it was restored from its images.
    Restored {
        /// The source.
        peer: String,
    },
    /// The container arrived here and may have run, but none of its processes lives. The migration
    /// stays open until the operator has decided.
    MayHaveRun {
        /// The other end.
        peer: String,
        /// This migration's directory in the image store.
        images: PathBuf,
        /// Command that restores the container from it.
        command: String,
    },
    /// The container stayed at the source.
    RolledBack {
        /// This host's end.
        side: Side,
    },
}

pub use error::ResolveError;

type Result<T, E = ResolveError> = std::result::Result<T, E>;

/// Means for settling: for the restore of a container that belongs to this host and does not run,
/// and the operator's knowledge about the peer.
#[derive(Debug, Clone, Default)]
pub struct Means {
    /// Path of CRIU, as for [`Criu::find`](crate::criu::Criu::find).
    pub criu: Option<PathBuf>,
    /// Socket that gets the terminal instead of the receiver's.
    pub console_socket: Option<PathBuf>,
    /// Image store, if this host has no record of the migration any more.
    pub store: Option<PathBuf>,
    /// The operator's statement, at a source, that the destination is lost with its copy of the
    /// container. If the destination is still alive, this creates a second running copy.
    pub peer_is_lost: bool,
}

/// Finishes the last migration of `container` or rolls it back, on either end.
///
/// # Errors
/// [`ResolveError::NoAnswer`], [`ResolveError::NotYet`] and [`ResolveError::NotRestored`] if the
/// migration stays open. The lock proves that none is under way.
pub fn resolve(root: &Path, container: &str, means: &Means, _lock: &Lock) -> Result<Resolution> {
    paths::remove_litter(root, container)?;
    match ledger::latest(root, container)? {
        Some(record) => settle(root, record, means),
        None => forgotten(root, container, means),
    }
}

fn settle(root: &Path, record: JournalRecord, means: &Means) -> Result<Resolution> {
    match record.side {
        Side::Source => at_source(root, record, means.peer_is_lost),
        Side::Destination => at_destination(root, record, means),
    }
}

/// Settles a migration of which this host has no record. The host may have been rebooted
/// meanwhile.
fn forgotten(root: &Path, container: &str, means: &Means) -> Result<Resolution> {
    let stamps = match (&means.store, Boot::current()) {
        (Some(store), Some(here)) => boot_stamp::find(store, container, &here),
        _ => Vec::new(),
    };
    let mut resolution = Err(ResolveError::Unknown {
        container: container.to_owned(),
    });
    for stamp in stamps {
        let record = stamp.roll_back(root)?;
        resolution = Ok(at_destination(root, record, means)?);
    }
    resolution
}

/// Removes the remains of an earlier receiver or source of `container` that was killed before the
/// commit, or of a source that was killed after the end.
///
/// # Errors
/// [`ResolveError::Open`] if the container may be this host's.
pub fn tidy_up(root: &Path, container: &str, known: Known, _lock: &Lock) -> Result<()> {
    paths::remove_litter(root, container)?;
    let Some(record) = known.into_latest() else {
        return Ok(());
    };
    let left = match record.side {
        Side::Source => {
            let settled_here = record.phase.may_roll_back() || record.phase == Phase::Committed;
            settled_here && !record.phase.is_final()
        }
        Side::Destination => record.phase.may_roll_back() && !record.phase.is_final(),
    };
    if left {
        settle(root, record, &Means::default())?;
    } else if record.side == Side::Destination && !record.phase.is_final() {
        return Err(ResolveError::Open {
            container: container.to_owned(),
        });
    } else {
        rootfs::settle(root, &record)?;
    }
    Ok(())
}

fn at_source(root: &Path, record: JournalRecord, peer_is_lost: bool) -> Result<Resolution> {
    let moved = Resolution::Moved {
        peer: record.peer.clone(),
    };
    match record.phase {
        Phase::Done => Ok(moved),
        Phase::RolledBack => Ok(Resolution::RolledBack { side: Side::Source }),
        Phase::Committing => {
            let (verdict, settle) = match inquire(&record) {
                Err(error) if peer_is_lost => {
                    tracing::warn!("{}", chain(&error));
                    return roll_back_source(root, record, "the destination is lost");
                }
                answered => answered?,
            };
            match verdict {
                Verdict::Running => {
                    finish_source(root, record)?;
                    settle();
                    Ok(moved)
                }
                Verdict::RolledBack => {
                    roll_back_source(root, record, "the destination gave it back")
                }
                verdict => Err(ResolveError::NotYet {
                    container: record.container,
                    peer: record.peer,
                    verdict,
                }),
            }
        }
        Phase::Committed => {
            finish_source(root, record)?;
            Ok(moved)
        }
        _ => roll_back_source(root, record, "rcm ended before the commit"),
    }
}

/// Asks the destination, then the image store. Returns the verdict, and a function that tells the
/// destination that the source has acted on it.
fn inquire(record: &JournalRecord) -> Result<(Verdict, impl FnOnce() + use<>)> {
    let destination: Destination = record.peer.parse().map_err(|source| ResolveError::Peer {
        source: Some(source),
    })?;
    let Some(acquaintance) = record.acquaintance else {
        return Err(ResolveError::Peer { source: None });
    };
    let migration = record.migration;
    // The token, if there was one, is in the secret already.
    let trust = Trust::of(&TrustSettings {
        token_file: None,
        tls: record.tls.clone(),
    })?;
    let asked = ask(
        &destination,
        &record.container,
        &trust,
        acquaintance,
        migration,
    );
    let (verdict, channel) = match asked {
        Ok((channel, verdict)) if verdict != Verdict::Unknown => (verdict, Some(channel)),
        asked => match (verdict::read(&record.images, migration), asked) {
            (Some(verdict), _) => (verdict, None),
            (None, Ok((_, verdict))) => (verdict, None),
            (None, Err(source)) => {
                return Err(ResolveError::NoAnswer {
                    container: record.container.clone(),
                    peer: record.peer.clone(),
                    images: record.images.display().to_string(),
                    source: Box::new(source),
                });
            }
        },
    };
    let settle = move || {
        if let Some(mut channel) = channel {
            // A failure does no harm: the destination stops waiting by itself.
            let _ = channel.send(
                &Message::Settled(Settled { migration }),
                Patience::within(SETTLED_LIMIT_DUR),
            );
        }
    };
    Ok((verdict, settle))
}

fn finish_source(root: &Path, record: JournalRecord) -> Result<()> {
    let container = record.container.clone();
    let images = record.images.clone();
    let mut journal = Journal::adopt(root, record)?;
    journal.move_to_kept(root)?;
    match Container::load(root, &container) {
        Ok(loaded) => {
            network::mute(&loaded);
            CgroupFence::adopt(loaded.cgroup())
                .kill()
                .map_err(cgroup_error(&container))?;
            delete::destroy_forcibly(&loaded)?;
        }
        Err(crate::runtime::Error::NotExist) => {}
        Err(error) => return Err(error.into()),
    }
    unix_sockets::forget(&journal.record().names);
    remove_images(&images)?;
    Ok(journal.enter(Phase::Done)?)
}

fn roll_back_source(root: &Path, record: JournalRecord, reason: &str) -> Result<Resolution> {
    let container = Container::load(root, &record.container)?;
    // A CRIU that is still alive may write images, freeze and thaw, so its end comes first.
    criu_process::wait_for_end(root, &record.container)?;
    network::lift(&container)?;
    let mut names = SocketNames::adopt(&container, record.names.clone());
    names.put_back();
    // The freeze is this migration's: a paused container is not migrated.
    if container.cgroup().is_frozen() {
        CgroupFence::adopt(container.cgroup())
            .lift()
            .map_err(cgroup_error(&record.container))?;
    }
    rootfs::remove_probe(container.rootfs(), record.migration);
    // The destination may not know of the end yet, and its restore may still take names.
    let age_dur = (Utc::now() - record.updated).to_std().unwrap_or_default();
    names.settle(ORPHAN_LIMIT_DUR.saturating_sub(age_dur));
    remove_images(&record.images)?;
    Journal::adopt(root, record)?.roll_back(reason)?;
    Ok(Resolution::RolledBack { side: Side::Source })
}

fn cgroup_error(container: &str) -> impl FnOnce(CgroupError) -> ResolveError {
    let container = container.to_owned();
    move |source| ResolveError::Cgroup { container, source }
}

fn remove_images(images: &Path) -> Result<()> {
    image::remove_dir(images).map_err(images_error(images))
}

fn images_error(images: &Path) -> impl FnOnce(io::Error) -> ResolveError {
    let path = images.display().to_string();
    move |source| ResolveError::Images { path, source }
}
