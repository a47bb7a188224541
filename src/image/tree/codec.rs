//! Entries as bytes.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;

use super::defect::Defect;
use super::entry::{Attributes, Entry, Kind, Stamp};
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

/// A symbolic link's target is shorter (`PATH_MAX`).
const MAX_TARGET_BYTES: usize = 4096;

/// The kernel lists at most 64 KiB of names, and the shortest is `user.` with one letter and a NUL.
const MAX_ATTRIBUTES: u64 = (64 << 10) / 7;

/// Appends where an entry stands: its depth and its name.
pub(super) fn put_place(payload: &mut Vec<u8>, path: &TreePath) {
    payload.put_number(path.depth() as u64);
    payload.put_bytes(path.name().as_bytes());
}

/// Takes where an entry stands, in its `order`.
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
pub(super) fn put_entry(payload: &mut Vec<u8>, entry: &Entry) {
    let (tag, opaque) = match &entry.kind {
        Kind::Directory { opaque } => (DIRECTORY, *opaque),
        Kind::File { .. } => (FILE, false),
        Kind::Symlink { .. } => (SYMLINK, false),
        Kind::Character { .. } => (CHARACTER, false),
        Kind::Block { .. } => (BLOCK, false),
        Kind::Fifo => (FIFO, false),
        Kind::Socket => (SOCKET, false),
        Kind::Link { .. } => (LINK, false),
        Kind::Whiteout => (WHITEOUT, false),
    };
    let flag = |set, bit| if set { bit } else { 0 };
    payload.push(tag);
    payload.push(
        flag(opaque, OPAQUE) | flag(entry.linked, LINKED) | flag(entry.stamp.is_some(), STAMPED),
    );
    put_place(payload, &entry.path);
    match &entry.kind {
        Kind::File { size_bytes } => payload.put_number(*size_bytes),
        Kind::Symlink { target } => payload.put_bytes(target),
        Kind::Character { device } | Kind::Block { device } => payload.put_number(*device),
        Kind::Link { to } => return payload.put_bytes(to.as_bytes()),
        Kind::Whiteout => return,
        Kind::Directory { .. } | Kind::Fifo | Kind::Socket => {}
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

/// Takes an entry in its `order`.
pub(super) fn entry(fields: &mut Fields<'_>, order: &mut Order) -> Result<Entry, Defect> {
    let tag = fields.byte()?;
    let flags = fields.byte()?;
    if flags & !(OPAQUE | LINKED | STAMPED) != 0 {
        return Err(Defect::Field);
    }
    let path = place(fields, order, tag == DIRECTORY)?;
    let kind = match tag {
        DIRECTORY => Kind::Directory {
            opaque: flags & OPAQUE != 0,
        },
        FILE => Kind::File {
            size_bytes: fields.below(i64::MAX as u64)?,
        },
        SYMLINK => Kind::Symlink {
            target: target(fields.bytes()?)?,
        },
        CHARACTER => Kind::Character {
            device: fields.number()?,
        },
        BLOCK => Kind::Block {
            device: fields.number()?,
        },
        FIFO => Kind::Fifo,
        SOCKET => Kind::Socket,
        LINK => {
            let to = TreePath::from_bytes(fields.bytes()?)?;
            // A link to what does not exist yet, or to the directory that it lies in.
            if to >= path {
                return Err(Defect::Order);
            }
            Kind::Link { to }
        }
        WHITEOUT => Kind::Whiteout,
        _ => return Err(Defect::Field),
    };
    let bare = matches!(kind, Kind::Link { .. } | Kind::Whiteout);
    let attributes = match bare {
        true => Attributes::default(),
        false => attributes(fields)?,
    };
    let stamp = match flags & STAMPED {
        0 => None,
        _ => Some(stamp(fields)?),
    };
    Ok(Entry {
        path,
        kind,
        attributes,
        linked: flags & LINKED != 0,
        stamp,
    })
}

fn target(bytes: &[u8]) -> Result<Vec<u8>, Defect> {
    match bytes.is_empty() || bytes.len() >= MAX_TARGET_BYTES || bytes.contains(&0) {
        true => Err(Defect::Name),
        false => Ok(bytes.to_vec()),
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
    // Not reserved: the count is the peer's word.
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
