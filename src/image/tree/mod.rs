//! Root file systems as streams between hosts: the whole tree, the differences to another tree, or
//! the changes since the last stream.
//!
//! ```text
//!   destination                                   source
//!   take_inventory ------ inventory ------------> pack(Base::Peer)    the container runs
//!   apply <-------------- changes ------------------+   |
//!                                                       | inventory of what was sent
//!   apply <-------------- changes ---------------- pack(Base::Sent)   the container is frozen
//! ```
//!
//! [`Base::Nothing`] sends everything; [`Base::Lower`] sends the upper directory of an overlay. The
//! destination applies the changes to a [`Staging`] tree. That tree is empty or has the files of
//! the old tree ([`link_copy`]), and replaces the old one when all changes are there.
//!
//! **Transferred**: names, kinds, contents, owners, permission bits with set-user-ID, set-group-ID
//! and sticky, modification times to the nanosecond, hard links, holes, device numbers, ACLs,
//! capabilities, `user.*` and `trusted.*` attributes. **Not transferred**: access and change times,
//! inode flags (chattr(1)), attributes that belong to the host (SELinux labels, EVM), and mounts in
//! the tree.
//!
//! **The format** is rcm's own and not tar. tar cannot express that an entry is gone, or that only
//! its attributes or one block of it changed. The `tar` crate reads extension headers into memory
//! whole, without a bound for those of a hostile archive. In rcm's format every frame has a length
//! limit. An entry has a depth and one name, so there are no paths that could lead anywhere else.
//! The strict order of the entries rules out duplicates and entries inside links. A digest at the
//! end shows a truncated stream.
//!
//! **Changes since the last stream** are found by change time, inode and size, which the kernel
//! sets. Two changes would not show: one in the same tick of the clock as the reading, and one
//! through a mapping of a page that was dirty already. So everything is written back first, and a
//! file that was changed shortly before counts as changed. If the file system does not guarantee
//! change times (tmpfs, network file systems), the contents are compared.

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

pub use changes::Totals;
pub use defect::Defect;
pub use error::TreeError;
pub use frame::Compression;
pub use inventory::Inventory;
pub use linked::link_copy;
pub use pack::{Base, pack, take_inventory};
pub use path::TreePath;
pub use size::size_bytes;
pub use staging::{Slot, Staging};
pub use unpack::{Limits, MAX_NOTED, apply, apply_noting};

/// Limit of nested directories. Each is held open on the way; this leaves room below the usual
/// limit of 1024 descriptors.
pub const MAX_DEPTH: usize = 256;

/// Limit of a file name's length (`NAME_MAX`).
const MAX_NAME_BYTES: usize = 255;
