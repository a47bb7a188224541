//! Encodes entries as bytes.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;

use super::defect::Defect;
use super::entry::{Attributes, EntryKind, Stamp, TreeEntry};
use super::frame::{Fields, Put};
use super::path::{Order, TreePath};

const DIRECTORY: u8 = 1;
const FILE: u8 = 2;
const SYMLINK: u8 = 3;
const CHARACTER: u8 = 4;
const BLOCK: u8 = 5;
const FIFO: u8 = 6;
const SOCKET: u8 = 7;
const LINK: u8 = 8;
const WHITEOUT: u8 = 9;

const OPAQUE: u8 = 1;
const LINKED: u8 = 2;
const STAMPED: u8 = 4;

/// Limit of a symbolic link's target (`PATH_MAX`).
const MAX_TARGET_BYTES: usize = 4096;

/// Limit of attributes for one file. The kernel lists at most 64 KiB of names, and the shortest is
/// `user.` with one letter and a NUL.
const MAX_ATTRIBUTES: u64 = (64 << 10) / 7;

/// Appends the position of an entry: its depth and its name.
pub(super) fn put_place(payload: &mut Vec<u8>, path: &TreePath) {
    payload.put_number(path.depth() as u64);
    payload.put_bytes(path.name().as_bytes());
}

/// Takes the position of an entry, checked against `order`.
pub(super) fn place(
    fields: &mut Fields<'_>,
    order: &mut Order,
    is_dir: bool,
) -> Result<TreePath, Defect> {
    let depth = fields.number()?;
    let name = fields.bytes()?;
    let depth = usize::try_from(depth).map_err(|_| Defect::Depth)?;
    order.step(depth, name, is_dir)
}

/// Appends an entry.
pub(super) fn put_entry(payload: &mut Vec<u8>, entry: &TreeEntry) {
    let (tag, opaque) = match &entry.kind {
        EntryKind::Directory { opaque } => (DIRECTORY, *opaque),
        EntryKind::File { .. } => (FILE, false),
        EntryKind::Symlink { .. } => (SYMLINK, false),
        EntryKind::Character { .. } => (CHARACTER, false),
        EntryKind::Block { .. } => (BLOCK, false),
        EntryKind::Fifo => (FIFO, false),
        EntryKind::Socket => (SOCKET, false),
        EntryKind::Link { .. } => (LINK, false),
        EntryKind::Whiteout => (WHITEOUT, false),
    };
    let flag = |set, bit| if set { bit } else { 0 };
    payload.push(tag);
    payload.push(
        flag(opaque, OPAQUE) | flag(entry.linked, LINKED) | flag(entry.stamp.is_some(), STAMPED),
    );
    put_place(payload, &entry.path);
    match &entry.kind {
        EntryKind::File { size_bytes } => payload.put_number(*size_bytes),
        EntryKind::Symlink { target } => payload.put_bytes(target),
        EntryKind::Character { device } | EntryKind::Block { device } => {
            payload.put_number(*device)
        }
        EntryKind::Link { to } => return payload.put_bytes(to.as_bytes()),
        EntryKind::Whiteout => return,
        EntryKind::Directory { .. } | EntryKind::Fifo | EntryKind::Socket => {}
    }
    let attributes = &entry.attributes;
    payload.put_number(attributes.mode.into());
    payload.put_number(attributes.uid.into());
    payload.put_number(attributes.gid.into());
    payload.put_signed(attributes.modified_seconds);
    payload.put_number(attributes.modified_nanoseconds.into());
    payload.put_number(attributes.extended.len() as u64);
    for (name, value) in &attributes.extended {
        payload.put_bytes(name.to_bytes());
        payload.put_bytes(value);
    }
    if let Some(stamp) = &entry.stamp {
        payload.put_number(stamp.device);
        payload.put_number(stamp.inode);
        payload.put_number(stamp.size_bytes);
        payload.put_signed(stamp.changed_seconds);
        payload.put_number(stamp.changed_nanoseconds.into());
    }
}

/// Takes an entry, checked against `order`.
pub(super) fn entry(fields: &mut Fields<'_>, order: &mut Order) -> Result<TreeEntry, Defect> {
    let tag = fields.byte()?;
    let flags = fields.byte()?;
    if flags & !(OPAQUE | LINKED | STAMPED) != 0 {
        return Err(Defect::Field);
    }
    let path = place(fields, order, tag == DIRECTORY)?;
    let kind = match tag {
        DIRECTORY => EntryKind::Directory {
            opaque: flags & OPAQUE != 0,
        },
        FILE => EntryKind::File {
            size_bytes: fields.below(i64::MAX as u64)?,
        },
        SYMLINK => EntryKind::Symlink {
            target: target(fields.bytes()?)?,
        },
        CHARACTER => EntryKind::Character {
            device: fields.number()?,
        },
        BLOCK => EntryKind::Block {
            device: fields.number()?,
        },
        FIFO => EntryKind::Fifo,
        SOCKET => EntryKind::Socket,
        LINK => {
            let to = TreePath::from_bytes(fields.bytes()?)?;
            // The link's target does not exist yet, or is the directory of the link.
            if to >= path {
                return Err(Defect::Order);
            }
            EntryKind::Link { to }
        }
        WHITEOUT => EntryKind::Whiteout,
        _ => return Err(Defect::Field),
    };
    let bare = matches!(kind, EntryKind::Link { .. } | EntryKind::Whiteout);
    let attributes = if bare {
        Attributes::default()
    } else {
        attributes(fields)?
    };
    let stamp = match flags & STAMPED {
        0 => None,
        _ => Some(stamp(fields)?),
    };
    Ok(TreeEntry {
        path,
        kind,
        attributes,
        linked: flags & LINKED != 0,
        stamp,
    })
}

fn target(bytes: &[u8]) -> Result<Vec<u8>, Defect> {
    if bytes.is_empty() || bytes.len() >= MAX_TARGET_BYTES || bytes.contains(&0) {
        Err(Defect::Name)
    } else {
        Ok(bytes.to_vec())
    }
}

fn attributes(fields: &mut Fields<'_>) -> Result<Attributes, Defect> {
    // The identifier -1 would mean "unchanged" to chown(2).
    let identifiers = u64::from(u32::MAX);
    let mode = fields.below(0o10000)? as u32;
    let uid = fields.below(identifiers)? as u32;
    let gid = fields.below(identifiers)? as u32;
    let modified_seconds = fields.signed()?;
    let modified_nanoseconds = fields.below(1_000_000_000)? as u32;
    let mut extended: Vec<(CString, Vec<u8>)> = Vec::new();
    // Not reserved: the count comes from the peer.
    for _ in 0..fields.below(MAX_ATTRIBUTES + 1)? {
        let name = CString::new(fields.bytes()?).map_err(|_| Defect::Name)?;
        let value = fields.bytes()?.to_vec();
        if extended.last().is_some_and(|(last, _)| *last >= name) {
            return Err(Defect::Order);
        }
        if !super::entry::is_carried(&name) {
            return Err(Defect::Name);
        }
        extended.push((name, value));
    }
    Ok(Attributes {
        mode,
        uid,
        gid,
        modified_seconds,
        modified_nanoseconds,
        extended,
    })
}

fn stamp(fields: &mut Fields<'_>) -> Result<Stamp, Defect> {
    Ok(Stamp {
        device: fields.number()?,
        inode: fields.number()?,
        size_bytes: fields.number()?,
        changed_seconds: fields.signed()?,
        changed_nanoseconds: fields.below(1_000_000_000)? as u32,
    })
}
