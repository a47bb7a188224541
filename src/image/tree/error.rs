use std::ffi::CString;
use std::io;
use std::path::PathBuf;

use super::defect::Defect;
use super::path::TreePath;
use crate::sys::file::Failed;

/// A tree cannot be read, sent or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] Failed),
    /// An extended attribute cannot be read or set.
    #[error("cannot {action} the extended attribute {} of {path}", name.to_string_lossy())]
    Attribute {
        /// "read", "set" or "remove".
        action: &'static str,
        /// Its name.
        name: CString,
        /// The file.
        path: PathBuf,
        /// The system's error: `ENOTSUP` if the file system has no attributes of that kind.
        #[source]
        source: io::Error,
    },
    /// The peer, the pipe or the file with a stream or an inventory failed.
    #[error("cannot {action} the {what}")]
    Stream {
        /// "read" or "write".
        action: &'static str,
        /// "stream of changes" or "inventory".
        what: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A stream or an inventory violates its format.
    #[error("the stream of the tree is damaged after {after}")]
    Malformed {
        /// The last valid path.
        after: TreePath,
        /// The violated rule.
        #[source]
        defect: Defect,
    },
    /// The tree is larger than the limits of the destination.
    #[error("the tree exceeds the limit of {limit} {what} at {path}")]
    Limit {
        /// "entries" or "bytes".
        what: &'static str,
        /// The limit.
        limit: u64,
        /// Path at which it was exceeded.
        path: TreePath,
    },
    /// The directories are nested deeper than rcm can hold them open.
    #[error("{path} is more than {limit} directories deep")]
    Deep {
        /// The directory.
        path: TreePath,
        /// [`super::MAX_DEPTH`].
        limit: usize,
    },
    /// Name, link target and attributes of one file do not fit into a frame.
    #[error("the extended attributes of {path} have more than {limit_bytes} bytes together")]
    Attributes {
        /// The file.
        path: TreePath,
        /// The limit.
        limit_bytes: usize,
    },
    /// A change does not fit the tree that it is applied to.
    #[error(
        "{path} is not what the changes were computed for: the tree was changed since its inventory; take a new one"
    )]
    OtherBase {
        /// The file.
        path: TreePath,
    },
    /// An upper directory alone does not tell the files that the container sees.
    #[error(
        "{path} refers to a lower layer of its overlay ({attribute}): pack the mounted overlay instead of its upper directory"
    )]
    Overlay {
        /// The file.
        path: TreePath,
        /// `trusted.overlay.redirect` or `trusted.overlay.metacopy`.
        attribute: &'static str,
    },
    /// The base inventory is of a tree, but one of an upper directory is needed, or the reverse.
    #[error("the base inventory was taken of another kind of tree")]
    OtherView,
}
