//! Walks through a tree once: finds the changes, sends them, and lists the current entries.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::io::{Read, Sink, Write};
use std::ops::Range;
use std::path::Path;

use super::changes::{ChangeWriter, How, Totals};
use super::content::{CHUNK_BYTES, Chunks, Digest, HOLE, Part};
use super::entry::{EntryKind, TreeEntry};
use super::error::TreeError;
use super::frame::Compression;
use super::inventory::{Inventory, InventoryWriter};
use super::path::TreePath;
use super::walk::{Found, Look, Stamps, View, Walk};
use crate::sys::file::Failed;

/// The tree that the destination has already.
pub enum Base<R: Read> {
    /// Nothing that can be used: everything is sent.
    Nothing,
    /// The lower layers of the overlay whose upper directory is packed. The upper directory is
    /// sent; its whiteouts and opaque directories become deletions.
    Lower,
    /// The tree that this inventory was taken of. All contents are read here and compared by their
    /// digests.
    Peer(Inventory<R>),
    /// The result of an earlier [`pack`] of the same directory, which wrote this inventory. Only
    /// files that have changed since are read.
    Sent(Inventory<R>),
}

/// Lists the tree at `root` with digests of all contents, as the [`Base::Peer`] of the other host.
///
/// # Errors
/// [`TreeError`]: a file that cannot be read, or an `inventory` that cannot be written.
pub fn take_inventory(
    root: &Path,
    inventory: impl Write,
    compression: Compression,
) -> Result<(), TreeError> {
    let mut packer = Packer::<Sink, _, std::io::Empty> {
        walk: Walk::new(root, View::Tree, Stamps::None)?,
        have: None,
        trusts_stamps: false,
        changes: None,
        list: Some(InventoryWriter::new(inventory, View::Tree, compression)?),
        covered: None,
        matched: false,
        sent_links: HashSet::new(),
    };
    packer.run()?;
    packer.list.map_or(Ok(()), InventoryWriter::finish)
}

/// Writes to `changes` the parts of the tree at `root` that the destination lacks. Writes to
/// `inventory` the tree that the destination then has: the [`Base::Sent`] of the next call. The
/// last call, during the freeze, needs no inventory and does not wait for the disk as the others
/// do.
///
/// The container may run during the call. A file that changes on the way arrives in one of its
/// states, and the next call sends it again. Memory: a chunk, the compressor, the names in the
/// directories above the current place, and a path for each file with several names.
///
/// # Errors
/// [`TreeError`]: a file that cannot be read, outputs that cannot be written, or an inventory that
/// does not fit.
pub fn pack<R: Read>(
    root: &Path,
    base: Base<R>,
    changes: impl Write,
    inventory: Option<impl Write>,
    compression: Compression,
) -> Result<Totals, TreeError> {
    let (view, have, trusts_stamps) = match base {
        Base::Nothing => (View::Tree, None, false),
        Base::Lower => (View::Upper, None, false),
        Base::Peer(have) if have.view() == View::Upper => return Err(TreeError::OtherView),
        Base::Peer(have) => (View::Tree, Some(have), false),
        Base::Sent(have) => (have.view(), Some(have), true),
    };
    let mut packer = Packer {
        walk: Walk::new(
            root,
            view,
            match inventory {
                Some(_) => Stamps::Lasting,
                None => Stamps::Compared,
            },
        )?,
        have,
        trusts_stamps,
        changes: Some(ChangeWriter::new(changes, compression)?),
        // The inventory stays on this host.
        list: inventory
            .map(|inventory| InventoryWriter::new(inventory, view, Compression::None))
            .transpose()?,
        covered: None,
        matched: false,
        sent_links: HashSet::new(),
    };
    packer.run()?;
    if let Some(list) = packer.list {
        list.finish()?;
    }
    match packer.changes {
        Some(changes) => changes.finish(),
        None => Ok(Totals::default()),
    }
}

struct Packer<C: Write, L: Write, R: Read> {
    walk: Walk,
    have: Option<Inventory<R>>,
    trusts_stamps: bool,
    changes: Option<ChangeWriter<C>>,
    list: Option<InventoryWriter<L>>,
    /// Entries of the destination inside this path count as gone: the path was deleted, replaced or
    /// cleared.
    covered: Option<TreePath>,
    /// The current entry of `have` is done.
    matched: bool,
    /// Sent files with several names. They may be new files at the destination, so their other
    /// names have to be sent again.
    sent_links: HashSet<TreePath>,
}

impl<C: Write, L: Write, R: Read> Packer<C, L, R> {
    fn run(&mut self) -> Result<(), TreeError> {
        while let Some(path) = self.walk.next()? {
            let have = self.catch_up(Some(&path))?;
            let stamp = have.as_ref().and_then(|have| have.stamp.as_ref());
            match self.walk.look(path, stamp.filter(|_| self.trusts_stamps))? {
                Look::Found(found) => {
                    self.list_entry(&found.entry)?;
                    self.compare(found, have)?;
                }
                Look::Same => {
                    if let Some(have) = &have {
                        self.list_entry(have)?;
                    }
                    self.copy_digests()?;
                }
                Look::Gone => {
                    if let Some(have) = have {
                        self.delete(&have)?;
                    }
                }
            }
        }
        self.catch_up(None)?;
        Ok(())
    }

    /// Deletes the entries before `path` that the destination has and the source does not. Returns
    /// the destination's entry at `path`.
    fn catch_up(&mut self, path: Option<&TreePath>) -> Result<Option<TreeEntry>, TreeError> {
        loop {
            let Some(have) = &mut self.have else {
                return Ok(None);
            };
            if std::mem::take(&mut self.matched) {
                have.advance()?;
            }
            let Some(current) = have.current() else {
                return Ok(None);
            };
            let is_covered = self
                .covered
                .as_ref()
                .is_some_and(|covered| current.path.is_within(covered));
            match path.map_or(Ordering::Less, |path| current.path.cmp(path)) {
                Ordering::Greater => return Ok(None),
                Ordering::Equal => {
                    self.matched = true;
                    return Ok((!is_covered).then(|| current.clone()));
                }
                Ordering::Less => {
                    self.matched = true;
                    if !is_covered {
                        let gone = current.clone();
                        self.delete(&gone)?;
                    }
                }
            }
        }
    }

    /// Deletes `gone`, which the destination has and the source does not.
    fn delete(&mut self, gone: &TreeEntry) -> Result<(), TreeError> {
        if gone.kind == EntryKind::Whiteout {
            return Ok(());
        }
        if let Some(changes) = &mut self.changes {
            changes.delete(&gone.path)?;
        }
        self.covered = Some(gone.path.clone());
        Ok(())
    }

    fn list_entry(&mut self, entry: &TreeEntry) -> Result<(), TreeError> {
        match &mut self.list {
            Some(list) => list.entry(entry),
            None => Ok(()),
        }
    }

    fn compare(&mut self, found: Found, have: Option<TreeEntry>) -> Result<(), TreeError> {
        let Found { entry, object } = found;
        let has_directory = have.as_ref().is_some_and(|have| have.kind.is_directory());
        if has_directory && !entry.kind.is_directory() {
            self.covered = Some(entry.path.clone());
        }
        if let EntryKind::File { size_bytes } = entry.kind {
            if self.is_unchanged(&entry, have.as_ref()) {
                return self.copy_digests();
            }
            let path = entry.path.below(self.walk.root());
            let file = object.open_to_read().map_err(Failed::to("open", &path))?;
            let chunks = Chunks::new(file, size_bytes);
            return self.contents(&entry, have.as_ref(), chunks);
        }
        let Some(changes) = &mut self.changes else {
            return Ok(());
        };
        let is_same = have
            .as_ref()
            .is_some_and(|have| have.kind == entry.kind && have.attributes == entry.attributes);
        match &entry.kind {
            // The lower layers have this name, unless an earlier pack has deleted it.
            EntryKind::Whiteout if is_same => Ok(()),
            EntryKind::Whiteout => changes.delete(&entry.path),
            EntryKind::Directory { opaque } => {
                let was_opaque = have
                    .as_ref()
                    .is_some_and(|have| have.kind == EntryKind::Directory { opaque: true });
                if *opaque && !was_opaque {
                    self.covered = Some(entry.path.clone());
                    changes.entry(How::Clear, &plain(&entry))
                } else if has_directory
                    && have.is_some_and(|have| have.attributes == entry.attributes)
                {
                    changes.unchanged_directory(&plain(&entry));
                    Ok(())
                } else {
                    changes.entry(How::Whole, &plain(&entry))
                }
            }
            EntryKind::Link { to } if is_same && !self.sent_links.contains(to) => Ok(()),
            _ if is_same && !matches!(entry.kind, EntryKind::Link { .. }) => Ok(()),
            _ => {
                if entry.linked {
                    self.sent_links.insert(entry.path.clone());
                }
                changes.entry(How::Whole, &plain(&entry))
            }
        }
    }

    /// Whether the file is as it was when the inventory was written, so that its contents need no
    /// reading.
    fn is_unchanged(&self, entry: &TreeEntry, have: Option<&TreeEntry>) -> bool {
        self.trusts_stamps
            && have.is_some_and(|have| {
                entry.stamp.is_some()
                    && have.stamp == entry.stamp
                    && have.kind == entry.kind
                    && have.attributes == entry.attributes
            })
    }

    fn copy_digests(&mut self) -> Result<(), TreeError> {
        let (Some(have), Some(list)) = (&mut self.have, &mut self.list) else {
            return Ok(());
        };
        loop {
            let chunks = have.skip_holes(u64::MAX)?;
            if chunks > 0 {
                list.holes(chunks)?;
                continue;
            }
            match have.digest()? {
                Some(digest) => list.digest(&digest)?,
                None => return Ok(()),
            }
        }
    }

    /// Reads a file, lists the digests of its chunks, and sends the chunks that the destination
    /// does not have.
    fn contents(
        &mut self,
        entry: &TreeEntry,
        have: Option<&TreeEntry>,
        mut chunks: Chunks,
    ) -> Result<(), TreeError> {
        let path = entry.path.below(self.walk.root());
        let had_bytes = match have.map(|have| &have.kind) {
            Some(EntryKind::File { size_bytes }) => Some(*size_bytes),
            _ => None,
        };
        // The digests of the destination's file, up to its end.
        let mut old = match had_bytes {
            Some(_) => self.have.as_mut(),
            None => None,
        };
        let mut sender = FileSender {
            entry,
            how: match had_bytes {
                Some(_) => How::Patch,
                None => How::Whole,
            },
            begun: false,
            changes: self.changes.as_mut(),
        };
        while let Some(part) = chunks.next().map_err(Failed::to("read", &path))? {
            match part {
                Part::Holes { chunks: count } => {
                    if let Some(list) = &mut self.list {
                        list.holes(count)?;
                    }
                    let start = chunks.range().start + CHUNK_BYTES - count * CHUNK_BYTES;
                    if let Some(old) = &mut old {
                        sender.holes(start..chunks.range().end, old)?;
                    }
                }
                Part::Chunk { digest } => {
                    if let Some(list) = &mut self.list {
                        list.digest(&digest)?;
                    }
                    let had = match &mut old {
                        Some(old) => old.digest()?,
                        None => None,
                    };
                    if had != Some(digest) {
                        sender.chunk(&chunks, had)?;
                    }
                }
            }
        }
        let is_same = had_bytes == Some(chunks.size_bytes())
            && have.is_some_and(|have| have.attributes == entry.attributes);
        if is_same && !sender.begun {
            return Ok(());
        }
        sender.finish(chunks.size_bytes())?;
        if entry.linked {
            self.sent_links.insert(entry.path.clone());
        }
        Ok(())
    }
}

/// Returns the entry as it is sent, without the data that only this host can use.
fn plain(entry: &TreeEntry) -> TreeEntry {
    let mut entry = entry.clone();
    entry.stamp = None;
    if let EntryKind::Directory { opaque } = &mut entry.kind {
        *opaque = false;
    }
    entry
}

/// Sends a file once there is something to send.
struct FileSender<'a, C: Write> {
    entry: &'a TreeEntry,
    how: How,
    begun: bool,
    changes: Option<&'a mut ChangeWriter<C>>,
}

impl<C: Write> FileSender<'_, C> {
    fn begin(&mut self) -> Result<Option<&mut ChangeWriter<C>>, TreeError> {
        let Some(changes) = &mut self.changes else {
            return Ok(None);
        };
        if !self.begun {
            self.begun = true;
            changes.entry(self.how, &plain(self.entry))?;
        }
        Ok(Some(changes))
    }

    /// Makes holes of those chunks in `range` that the destination's file `old` has data for.
    fn holes<R: Read>(
        &mut self,
        range: Range<u64>,
        old: &mut Inventory<R>,
    ) -> Result<(), TreeError> {
        let mut at = range.start;
        while at < range.end {
            let same = old.skip_holes((range.end - at).div_ceil(CHUNK_BYTES))?;
            if same > 0 {
                at += same * CHUNK_BYTES;
            } else if old.digest()?.is_some() {
                self.hole(at, CHUNK_BYTES.min(range.end - at))?;
                at += CHUNK_BYTES;
            } else {
                break;
            }
        }
        Ok(())
    }

    /// Sends the last chunk. `had` is the digest of the chunk that the destination has instead.
    fn chunk(&mut self, chunks: &Chunks, had: Option<Digest>) -> Result<(), TreeError> {
        // Holes and data go out in the order of their offsets.
        let mut gaps = chunks.gaps();
        gaps.retain(|_| had.is_some_and(|had| had != HOLE));
        let mut gaps = gaps.into_iter().peekable();
        for (offset, data) in chunks.data() {
            while let Some(gap) = gaps.next_if(|gap| gap.start < offset) {
                self.hole(gap.start, gap.end - gap.start)?;
            }
            self.data(offset, data)?;
        }
        for gap in gaps {
            self.hole(gap.start, gap.end - gap.start)?;
        }
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), TreeError> {
        match self.begin()? {
            Some(changes) => changes.data(offset, bytes),
            None => Ok(()),
        }
    }

    fn hole(&mut self, offset: u64, length_bytes: u64) -> Result<(), TreeError> {
        match self.begin()? {
            Some(changes) => changes.hole(offset, length_bytes),
            None => Ok(()),
        }
    }

    fn finish(mut self, size_bytes: u64) -> Result<(), TreeError> {
        match self.begin()? {
            Some(changes) => changes.end(size_bytes),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tree::{Limits, apply};
    use crate::sys::mapping::Mapping;
    use std::fs::{self, File};
    use std::num::NonZeroUsize;
    use std::time::Duration;

    const LIMITS: Limits = Limits {
        entries: 10,
        content_bytes: 1 << 20,
    };

    /// The page is dirty and mapped. Without the write-back before the walk, the kernel would not
    /// notice the second write.
    #[test]
    fn a_write_through_a_mapping_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        let path = from.join("mapped");
        fs::write(&path, [0; 4096]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut mapping = Mapping::new(&file, NonZeroUsize::MIN).unwrap();
        mapping.write(0, 1);
        // By its time alone the file would be old enough to be trusted.
        std::thread::sleep(Duration::from_millis(2100));
        let (mut changes, mut sent) = (Vec::new(), Vec::new());
        let base = Base::<std::io::Empty>::Nothing;
        pack(
            &from,
            base,
            &mut changes,
            Some(&mut sent),
            Compression::None,
        )
        .unwrap();
        apply(&to, &changes[..], LIMITS).unwrap();
        mapping.write(0, 2);
        let base = Base::Sent(Inventory::open(&sent[..]).unwrap());
        changes.clear();
        pack(&from, base, &mut changes, None::<Sink>, Compression::None).unwrap();
        apply(&to, &changes[..], LIMITS).unwrap();
        assert_eq!(fs::read(to.join("mapped")).unwrap()[0], 2);
    }
}
