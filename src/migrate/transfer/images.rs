//! The images on their way where the ends share no store.
//!
//! Several connections carry them side by side, while CRIU still dumps: the source's [`Sender`] is CRIU's page server, so that the memory goes from the
//! container to the network and is never written on this host; the rest, small as it is, follows when the dump is complete. The destination's
//! [`Receiver`] writes each piece to its place, in any order. Neither ever holds more than a few pieces, whatever the size of the container.
//!
//! ```text
//!  source                                                destination
//!    |  CRIU hands over the memory ...                        |
//!    | == connection 1: piece of pages-1.img at 0 ==========> |  writes it to its place, and notes its digest
//!    | == connection 2: piece of pages-1.img at 4 MiB ======> |
//!    |  CRIU is done: what is left of all files               |
//!    | == connections 1, 2: end of number 0 ================> |
//!    | -- round or shipped, with the manifest --------------> |  compares the digests, before anything is restored
//! ```
//!
//! The digests in the manifest are those that the sender took from what it read, so nothing is read twice at either end.

mod block;
mod compress;
mod page_sink;
mod queue;
mod rate_limit;
mod receiver;
mod sender;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{Shutdown, shutdown};

pub use compress::Compression;
pub use rate_limit::Pace;
pub use receiver::Receiver;
pub use sender::{Sender, Settings};

use crate::criu::page_server::PageServerError;
use crate::image::manifest::ManifestError;
use crate::migrate::link::channel::TransportError;
use crate::sys::file::Failed;

/// The most connections that one migration has.
pub const MAX_STREAMS: u32 = 16;

/// Images do not get across.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BulkError {
    /// A connection failed.
    #[error("the images cannot be sent")]
    Transport(#[from] TransportError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] Failed),
    /// The memory does not come from CRIU.
    #[error(transparent)]
    PageServer(#[from] PageServerError),
    /// The images cannot be listed, or are not what the manifest says.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The peer sent what cannot be understood.
    #[error("invalid data for the images: {reason}")]
    Invalid {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A compressed chunk is damaged, or this end cannot compress.
    #[error("cannot {action} a piece of the images")]
    Compression {
        /// "compress" or "decompress".
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connections ended before everything was there.
    #[error("the connections for the images ended before everything had arrived")]
    Incomplete,
}

type Result<T, E = BulkError> = std::result::Result<T, E>;

/// Ends every wait at these sockets, whoever waits.
pub(crate) fn hang_up(sockets: &[OwnedFd]) {
    for socket in sockets {
        // The peer may have been first.
        let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
    }
}
