//! Transfer of the bundle and the root file system if the ends do not see the same tree.
//!
//! They have their own connection, which carries the streams of [`crate::image::tree`]. The first
//! stream has the whole tree, or the difference to the destination's tree, while the container
//! runs. Later streams have the changes since, again and again until the freeze. The last one
//! follows in the freeze, after CRIU's dump: memory and files then belong to the same instant, and
//! files that CRIU itself links into the tree (`--link-remap`) are in it, too.
//!
//! ```text
//!  source                                                       destination
//!    | ------------ config.json -----------------------------------> |
//!    | <----------- inventory of the destination's tree ------------- |  diff only
//!    | ------------ changes ----------------------------------------> |  into a new tree beside the old one
//!    | <----------- synced ------------------------------------------ |  on the disk
//!    |  the container runs, memory is pre-copied                      |
//!    | ------------ changes since, and so on -----------------------> |
//!    |  freeze, dump                                                  |
//!    | ------------ last changes -----------------------------------> |
//!    |                                                                |  swap the trees; restore
//!    |                                                                |  commit: remove the old tree; rollback: swap back
//! ```
//!
//! [`TreeSender`] and [`TreeReceiver`] have a thread each. [`TreeSwap`] changes the destination's
//! file system and undoes it. By [`SharedProbe`] the ends find out that they see the same tree.

use std::path::Path;

use crate::image::tree::TreeError;
use crate::migrate::link::channel::TransportError;
use crate::sys::file::Failed;

mod receiver;
mod sender;
mod shared_probe;
mod stream;
mod swap;

pub use receiver::TreeReceiver;
pub use sender::{TreeSender, TreeSettings};
pub use shared_probe::{SharedProbe, remove_probe};
pub use swap::{TreeSwap, settle};

/// Name of the spec in a bundle.
const CONFIG: &str = "config.json";

/// Errors of the transfer of the tree.
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
    /// The peer sent invalid data.
    #[error("invalid data for the root file system: {reason}")]
    Invalid {
        /// Description of the fault.
        reason: &'static str,
    },
    /// The last changes did not arrive before the images.
    #[error("the connection of the root file system ended before everything had arrived")]
    Incomplete,
}

/// Reads the spec of a bundle, which is sent with the tree.
///
/// # Errors
/// [`RootfsError::File`].
pub fn read_config(bundle: &Path) -> Result<Vec<u8>> {
    let path = bundle.join(CONFIG);
    std::fs::read(&path).map_err(|error| Failed::to("read", &path)(error).into())
}

type Result<T, E = RootfsError> = std::result::Result<T, E>;

/// Returns the error of the connection if that is the cause of the tree's error.
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
