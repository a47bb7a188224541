//! The operations of the migration service, for the command line and for an agent.
//!
//! Each operation is a function. It takes a request, a [`Progress`](super::progress::Progress) that
//! shows and records what happens, and an [`Interrupt`](crate::sys::interrupt::Interrupt) that ends
//! it before the commit. It returns an outcome, or an error that knows the fate of the container
//! ([`Fated`](super::fate::Fated)). Nothing here prints, parses flags or chooses an exit status.
//!
//! | operation | function |
//! | --- | --- |
//! | move a container, rehearse that, or ask whether it could move | [`send()`] |
//! | take one container | [`receive()`] |
//! | take one container after the other | [`serve()`] |
//! | dump and restore on this host, as a test | [`local_test()`] |
//! | settle a migration that was left open, and answer its source | [`resolve()`], [`Resolved::answer_source`] |
//! | end a migration that is under way | [`cancel()`] |
//! | tell how the last migration went | [`status()`] |
//! | find the container of an engine | [`locate`] |

pub mod answer;
pub mod cancel;
pub mod local_test;
pub mod resolve;

mod receive;
mod send;
mod serve;
mod settle;
mod status;
mod subject;

use std::path::{Path, PathBuf};

pub use local_test::{TestError, TestRequest, local_test};
pub use receive::{Arrival, ArrivalError, Port, ReceiveError, ReceiveRequest, receive};
pub use send::{Aim, Method, SendError, SendRequest, Sent, send};
pub use serve::{ServeError, serve};
pub use settle::{AnswerError, ResolveRequest, Resolved, resolve};
pub use status::{MigrationStatus, StatusError, status};
pub use subject::{OpenMigration, SubjectError, refuse_if_open};

pub use cancel::{CancelError, Ended, cancel};
pub use resolve::{Means, Resolution, ResolveError};

use super::record::error::JournalError;
use super::record::paths;
use crate::criu::CriuChoices;
use crate::engines::detect::{self, Ambiguous, Found};

/// CRIU and its options at this end.
#[derive(Debug, Clone, Default)]
pub struct CriuSettings {
    /// Path of the program; `None` for `$RCM_CRIU` and the `PATH`.
    pub program: Option<PathBuf>,
    /// Flags for the dump and the restore.
    pub choices: CriuChoices,
    /// Directory of CRIU's logs; `None` for one in the state directory.
    pub work_path: Option<PathBuf>,
}

impl CriuSettings {
    fn work_path(&self, root: &Path, container: &str) -> Result<PathBuf, JournalError> {
        match &self.work_path {
            Some(path) => Ok(path.clone()),
            None => paths::make_work_dir(root, container),
        }
    }
}

/// Finds the engine's state directory that knows the container `name`, if `root` does not.
///
/// Without `migrated`, only existing containers count. With it, a container that has left counts as
/// well.
///
/// # Errors
/// [`Ambiguous`].
pub fn locate(root: &Path, name: &str, migrated: bool) -> Result<Option<Found>, Ambiguous> {
    if root.join(name).exists() || paths::is_kept(root, name) {
        return Ok(None);
    }
    detect::find(root, name, |root| match migrated {
        true => paths::names(root),
        false => Vec::new(),
    })
}
