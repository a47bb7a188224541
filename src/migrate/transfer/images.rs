//! Transfer of the images if the ends share no store.
//!
//! Several connections carry them in parallel while CRIU still dumps. The source's [`ImageSender`]
//! is CRIU's page server, so the memory goes from the container to the network and is never written
//! on this host. The other images are small and follow when the dump is complete. The destination's
//! [`ImageReceiver`] writes each piece to its offset, in any order. Neither ever holds more than a
//! few pieces, even of a large container.
//!
//! ```text
//!  source                                                destination
//!    |  CRIU sends the memory ...                             |
//!    | == connection 1: piece of pages-1.img at 0 ==========> |  writes it to its offset, and notes its digest
//!    | == connection 2: piece of pages-1.img at 4 MiB ======> |
//!    |  CRIU is done: all other files                         |
//!    | == connections 1, 2: end of directory 0 =============> |
//!    | -- round or shipped, with the manifest --------------> |  compares the digests, before anything is restored
//! ```
//!
//! The sender computes the digests of the manifest from the bytes that it sends, so neither end
//! reads anything twice.

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
pub use rate_limit::RateLimit;
pub use receiver::ImageReceiver;
pub use sender::{ImageSender, ImageSettings};

use crate::criu::page_server::PageServerError;
use crate::image::manifest::ManifestError;
use crate::migrate::link::channel::TransportError;
use crate::sys::file::Failed;

/// Errors of the transfer of images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BulkError {
    /// A connection failed.
    #[error("the images cannot be sent")]
    Transport(#[from] TransportError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] Failed),
    /// The memory cannot be taken from CRIU.
    #[error(transparent)]
    PageServer(#[from] PageServerError),
    /// The images cannot be listed, or differ from the manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The peer sent invalid data.
    #[error("invalid data for the images: {reason}")]
    Invalid {
        /// Description of the fault.
        reason: &'static str,
    },
    /// A compressed chunk is damaged, or this end cannot compress.
    #[error("cannot {action} a piece of the images")]
    Compression {
        /// "compress" or "decompress".
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The connections ended before everything had arrived.
    #[error("the connections for the images ended before everything had arrived")]
    Incomplete,
}

type Result<T, E = BulkError> = std::result::Result<T, E>;

/// Ends every wait at these sockets, in any thread.
pub(crate) fn hang_up(sockets: &[OwnedFd]) {
    for socket in sockets {
        // An error means that the peer has closed the connection already.
        let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
    }
}
