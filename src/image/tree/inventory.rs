//! Lists of a tree's entries, with the digests of the contents.

use std::io::{Read, Write};

use super::codec;
use super::content::{Digest, HOLE};
use super::defect::Defect;
use super::entry::TreeEntry;
use super::error::TreeError;
use super::frame::{
    Compression, Fields, FrameReader, FrameWriter, MAX_PAYLOAD_BYTES, Purpose, Put, malformed,
};
use super::path::{Order, TreePath};
use super::walk::View;

const VIEW: u8 = 1;
const ENTRY: u8 = 2;
const DIGESTS: u8 = 3;
const HOLES: u8 = 4;

/// Limit of digests in one frame.
const FRAME_DIGESTS: usize = 4096;

/// Writes an inventory.
pub(super) struct InventoryWriter<W: Write> {
    frames: FrameWriter<W>,
    digests: Vec<u8>,
    holes: u64,
}

impl<W: Write> InventoryWriter<W> {
    pub(super) fn new(output: W, view: View, compression: Compression) -> Result<Self, TreeError> {
        let mut frames = FrameWriter::new(output, Purpose::Inventory, compression)?;
        frames.frame(VIEW, |payload| payload.push(view as u8))?;
        Ok(Self {
            frames,
            digests: Vec::new(),
            holes: 0,
        })
    }

    pub(super) fn entry(&mut self, entry: &TreeEntry) -> Result<(), TreeError> {
        self.flush()?;
        if self
            .frames
            .frame(ENTRY, |payload| codec::put_entry(payload, entry))?
        {
            Ok(())
        } else {
            Err(TreeError::Attributes {
                path: entry.path.clone(),
                limit_bytes: MAX_PAYLOAD_BYTES,
            })
        }
    }

    /// Adds the digest of the next chunk of the last entry.
    pub(super) fn digest(&mut self, digest: &Digest) -> Result<(), TreeError> {
        if self.holes > 0 || self.digests.len() >= FRAME_DIGESTS * HOLE.len() {
            self.flush()?;
        }
        self.digests.extend(digest);
        Ok(())
    }

    /// Adds chunks without data to the last entry.
    pub(super) fn holes(&mut self, chunks: u64) -> Result<(), TreeError> {
        if !self.digests.is_empty() {
            self.flush()?;
        }
        self.holes += chunks;
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<(), TreeError> {
        self.flush()?;
        self.frames.finish()
    }

    /// Writes the pending digests or holes. At most one of the two lists is not empty.
    fn flush(&mut self) -> Result<(), TreeError> {
        if !self.digests.is_empty() {
            self.frames
                .frame(DIGESTS, |payload| payload.append(&mut self.digests))?;
        }
        if self.holes > 0 {
            self.frames
                .frame(HOLES, |payload| payload.put_number(self.holes))?;
            self.holes = 0;
        }
        Ok(())
    }
}

/// An inventory that is read entry by entry, so that its size does not matter.
pub struct Inventory<R: Read> {
    frames: FrameReader<R>,
    order: Order,
    view: View,
    current: Option<TreeEntry>,
    /// The next entry, if it was read during the search for digests of the current one.
    following: Option<TreeEntry>,
    is_last: bool,
    digests: Vec<u8>,
    used: usize,
    holes: u64,
}

impl<R: Read> Inventory<R> {
    /// Opens the inventory at the beginning of `input`.
    ///
    /// # Errors
    /// [`TreeError::Stream`] and [`TreeError::Malformed`].
    pub fn open(input: R) -> Result<Self, TreeError> {
        let mut frames = FrameReader::new(input, Purpose::Inventory)?;
        let root = TreePath::root();
        let view = match frames.next(&root)? {
            Some((VIEW, [0])) => View::Tree,
            Some((VIEW, [1])) => View::Upper,
            _ => return Err(malformed(Defect::Field, &root)),
        };
        let mut inventory = Self {
            frames,
            order: Order::default(),
            view,
            current: None,
            following: None,
            is_last: false,
            digests: Vec::new(),
            used: 0,
            holes: 0,
        };
        inventory.advance()?;
        Ok(inventory)
    }

    pub(super) fn view(&self) -> View {
        self.view
    }

    /// Returns the current entry.
    pub(super) fn current(&self) -> Option<&TreeEntry> {
        self.current.as_ref()
    }

    /// Moves to the next entry.
    pub(super) fn advance(&mut self) -> Result<(), TreeError> {
        while self.refill()? {
            (self.used, self.holes) = (self.digests.len(), 0);
        }
        self.current = self.following.take();
        Ok(())
    }

    /// Returns the digest of the next chunk of the current entry; `None` after its last.
    pub(super) fn digest(&mut self) -> Result<Option<Digest>, TreeError> {
        if !self.refill()? {
            return Ok(None);
        }
        if self.holes > 0 {
            self.holes -= 1;
            return Ok(Some(HOLE));
        }
        let mut digest = HOLE;
        let end = self.used + digest.len();
        digest.copy_from_slice(&self.digests[self.used..end]);
        self.used = end;
        Ok(Some(digest))
    }

    /// Skips up to `chunks` chunks without data, and returns their number.
    pub(super) fn skip_holes(&mut self, chunks: u64) -> Result<u64, TreeError> {
        if !self.refill()? {
            return Ok(0);
        }
        let skipped = self.holes.min(chunks);
        self.holes -= skipped;
        Ok(skipped)
    }

    /// Whether the current entry has another chunk. Reads on if necessary.
    fn refill(&mut self) -> Result<bool, TreeError> {
        loop {
            if self.holes > 0 || self.used < self.digests.len() {
                return Ok(true);
            }
            if self.following.is_some() || self.is_last {
                return Ok(false);
            }
            let after = self.order.path().clone();
            let Some((kind, payload)) = self.frames.next(&after)? else {
                self.is_last = true;
                continue;
            };
            let mut fields = Fields::new(payload);
            match kind {
                ENTRY => {
                    let entry = codec::entry(&mut fields, &mut self.order)
                        .and_then(|entry| fields.end().map(|()| entry))
                        .map_err(|defect| malformed(defect, &after))?;
                    self.following = Some(entry);
                }
                DIGESTS if payload.len().is_multiple_of(HOLE.len()) => {
                    self.digests.clear();
                    self.digests.extend(payload);
                    self.used = 0;
                }
                HOLES => {
                    self.holes = fields
                        .number()
                        .map_err(|defect| malformed(defect, &after))?;
                }
                kind => return Err(malformed(Defect::Frame { kind }, &after)),
            }
        }
    }
}
