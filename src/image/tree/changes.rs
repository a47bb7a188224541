//! The frames of a stream of changes, and its writer.

use std::io::Write;

use super::codec;
use super::entry::TreeEntry;
use super::error::TreeError;
use super::frame::{Compression, FrameWriter, MAX_PAYLOAD_BYTES, Purpose, Put};
use super::path::TreePath;

/// An entry: how it is made ([`How`]), then its description.
pub(super) const ENTRY: u8 = 1;
/// The entry is removed, with everything inside it.
pub(super) const DELETE: u8 = 2;
/// Contents of the last file: offset, then bytes.
pub(super) const DATA: u8 = 3;
/// A hole in the last file: offset and length in bytes.
pub(super) const HOLE: u8 = 4;
/// The end of the last file: its size in bytes.
pub(super) const END: u8 = 5;

/// How an entry is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Replaces an existing file. An existing directory keeps its contents.
    Whole,
    /// Keeps an existing file. Changes of its contents follow, then it gets the attributes.
    Patch,
    /// Makes a directory empty, or makes an empty one.
    Clear,
}

impl How {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Whole),
            1 => Some(Self::Patch),
            2 => Some(Self::Clear),
            _ => None,
        }
    }
}

/// Amount that was sent or applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Entries, including those of which only the attributes changed.
    pub entries: u64,
    /// Entries that were removed, each with everything inside it.
    pub deletions: u64,
    /// Bytes of contents, without holes and before compression.
    pub content_bytes: u64,
}

/// Writes a stream of changes.
pub(super) struct ChangeWriter<W: Write> {
    frames: FrameWriter<W>,
    totals: Totals,
    /// The unchanged directories above the current place. They are sent once something inside them
    /// is: it changes their times, and the reader needs them on its way.
    above: Vec<TreeEntry>,
}

impl<W: Write> ChangeWriter<W> {
    pub(super) fn new(output: W, compression: Compression) -> Result<Self, TreeError> {
        Ok(Self {
            frames: FrameWriter::new(output, Purpose::Changes, compression)?,
            totals: Totals::default(),
            above: Vec::new(),
        })
    }

    /// Notes a directory that did not change itself.
    pub(super) fn unchanged_directory(&mut self, entry: &TreeEntry) {
        self.leave(&entry.path);
        self.above.push(entry.clone());
    }

    pub(super) fn entry(&mut self, how: How, entry: &TreeEntry) -> Result<(), TreeError> {
        self.enter(&entry.path)?;
        self.write_entry(how, entry)
    }

    pub(super) fn delete(&mut self, path: &TreePath) -> Result<(), TreeError> {
        self.enter(path)?;
        self.frames
            .frame(DELETE, |payload| codec::put_place(payload, path))?;
        self.totals.deletions += 1;
        Ok(())
    }

    /// Writes contents of the last entry, at most a chunk.
    pub(super) fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), TreeError> {
        self.frames.frame(DATA, |payload| {
            payload.put_number(offset);
            payload.extend(bytes);
        })?;
        self.totals.content_bytes += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn hole(&mut self, offset: u64, length_bytes: u64) -> Result<(), TreeError> {
        self.frames.frame(HOLE, |payload| {
            payload.put_number(offset);
            payload.put_number(length_bytes);
        })?;
        Ok(())
    }

    pub(super) fn end(&mut self, size_bytes: u64) -> Result<(), TreeError> {
        self.frames
            .frame(END, |payload| payload.put_number(size_bytes))?;
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Totals, TreeError> {
        self.frames.finish()?;
        Ok(self.totals)
    }

    fn leave(&mut self, path: &TreePath) {
        while self
            .above
            .last()
            .is_some_and(|above| !path.is_within(&above.path))
        {
            self.above.pop();
        }
    }

    fn enter(&mut self, path: &TreePath) -> Result<(), TreeError> {
        self.leave(path);
        for above in std::mem::take(&mut self.above) {
            self.write_entry(How::Whole, &above)?;
        }
        Ok(())
    }

    fn write_entry(&mut self, how: How, entry: &TreeEntry) -> Result<(), TreeError> {
        let written = self.frames.frame(ENTRY, |payload| {
            payload.push(how as u8);
            codec::put_entry(payload, entry);
        })?;
        if !written {
            return Err(TreeError::Attributes {
                path: entry.path.clone(),
                limit_bytes: MAX_PAYLOAD_BYTES,
            });
        }
        self.totals.entries += 1;
        Ok(())
    }
}
