//! The bundle and the root file system on their way, where the ends do not see the same tree.
//!
//! They cross on a connection of their own, as the streams of [`crate::image::tree`]: everything, or what the destination lacks, while the container runs; what has
//! changed since, again and again, until the freeze; and the last changes in the freeze, when CRIU is done with the dump, so that memory and files belong to the same
//! instant and what CRIU itself links into the tree (`--link-remap`) comes too.
//!
//! ```text
//!  source                                                       destination
//!    | ------------ config.json -----------------------------------> |
//!    | <----------- inventory of the tree that is there ------------ |  diff only
//!    | ------------ changes ----------------------------------------> |  into a tree beside the place
//!    | <----------- synced ------------------------------------------ |  on the disk
//!    |  the container runs, memory is pre-copied                      |
//!    | ------------ changes since, and so on -----------------------> |
//!    |  freeze, dump                                                  |
//!    | ------------ last changes -----------------------------------> |
//!    |                                                                |  the tree takes its place; restore
//!    |                                                                |  commit: the old tree goes. Otherwise it takes its place again
//! ```
//!
//! [`Sender`] and [`Receiver`] have a thread each, [`Placement`] is what happens to the destination's file system, [`Nonce`] is how the ends find out that they see the
//! same tree.

use std::path::Path;

use crate::image::tree::TreeError;
use crate::migrate::link::channel::TransportError;
use crate::sys::file::Failed;

mod receiver;
mod sender;
mod shared_probe;
mod stream;
mod swap;

pub use receiver::Receiver;
pub use sender::{Sender, Settings};
pub use shared_probe::{Nonce, remove_nonce};
pub use swap::{Placement, settle};

/// The spec, in a bundle.
const CONFIG: &str = "config.json";
/// More than any of these.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// The tree does not get across.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootfsError {
    /// The connection failed.
    #[error("the root file system cannot be sent")]
    Transport(#[from] TransportError),
    /// The tree cannot be read, sent or written.
    #[error("the root file system cannot be copied")]
    Tree(#[from] TreeError),
    /// A file beside the tree cannot be used.
    #[error(transparent)]
    File(#[from] Failed),
    /// The peer sent what cannot be understood.
    #[error("invalid data for the root file system: {reason}")]
    Invalid {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The last changes did not come before the images.
    #[error("the connection of the root file system ended before everything was there")]
    Incomplete,
}

/// The spec of a bundle, to be sent.
///
/// # Errors
/// [`RootfsError::File`].
pub fn read_config(bundle: &Path) -> Result<Vec<u8>> {
    let path = bundle.join(CONFIG);
    std::fs::read(&path).map_err(|error| Failed::to("read", &path)(error).into())
}

type Result<T, E = RootfsError> = std::result::Result<T, E>;

/// A failed connection is what it is, however deep in a stream it was noticed.
fn lift(error: TreeError) -> RootfsError {
    match error {
        TreeError::Stream {
            action,
            what,
            source,
        } => match source.downcast::<TransportError>() {
            Ok(error) => error.into(),
            Err(source) => TreeError::Stream {
                action,
                what,
                source,
            }
            .into(),
        },
        error => error.into(),
    }
}
