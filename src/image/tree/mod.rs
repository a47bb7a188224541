//! Root file systems on their way between hosts: whole, as differences, and once more as what has changed since.
//!
//! ```text
//!   destination                                   source
//!   take_inventory ------ inventory ------------> pack(Base::Peer)    the container runs
//!   apply <-------------- changes ------------------+   |
//!                                                       | inventory of what was sent
//!   apply <-------------- changes ---------------- pack(Base::Sent)   the container is frozen
//! ```
//!
//! With [`Base::Nothing`] everything is sent; with [`Base::Lower`] the upper directory of an overlay. What comes goes into a [`Staging`] tree, which is empty, or has
//! the files of the old one ([`link_copy`]), and takes its place when all is there.
//!
//! **What arrives**: names, kinds, contents, owners, permission bits with set-user-ID and its like, modification times to the nanosecond, hard links,
//! holes, device numbers, ACLs, capabilities, `user.*` and `trusted.*` attributes. What does not: access and change times, inode flags (chattr(1)), attributes
//! that belong to the host (SELinux labels, EVM), and what is mounted in the tree.
//!
//! **The format** is rcm's own and not tar: tar has no way to say that an entry is gone, that only its attributes or one block of it changed, and the
//! `tar` crate neither reads nor bounds what a hostile archive may put into its extension headers (they are read into memory whole). Here every frame has a
//! length limit. An entry names its depth and one name: there are no paths that could lead anywhere, and the entries' strict order rules out
//! duplicates and entries inside links. The end has a digest, so that a cut stream is noticed.
//!
//! **Changes since** are found by change time, inode and size, as the kernel sets them. A change in the same tick of the clock as the reading, and one
//! through a mapping of a page that was dirty already, would not show: so all is written back first, and a file that was changed
//! shortly before counts as changed. Where the file system gives no such promise (tmpfs, network file systems) contents are compared.

mod attributes;
mod changes;
mod codec;
mod content;
mod defect;
mod entry;
mod error;
mod frame;
mod inventory;
mod linked;
mod pack;
mod path;
mod size;
mod staging;
mod unpack;
mod walk;

use std::io;
use std::path::Path;

pub use changes::Totals;
pub use defect::Defect;
pub use error::TreeError;
pub use frame::Compression;
pub use inventory::Inventory;
pub use linked::link_copy;
pub use pack::{Base, pack, take_inventory};
pub use path::TreePath;
pub use size::size_bytes;
pub use staging::{Place, Staging};
pub use unpack::{Limits, MAX_NOTED, apply, apply_noting};

/// Directories inside one another. Each is held open on the way: this leaves room below the usual limit of 1024 descriptors.
pub const MAX_DEPTH: usize = 256;

/// The longest name of a file (`NAME_MAX`).
const MAX_NAME_BYTES: usize = 255;

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TreeError + use<> {
    let path = path.to_path_buf();
    move |source| TreeError::File {
        action,
        path,
        source,
    }
}
