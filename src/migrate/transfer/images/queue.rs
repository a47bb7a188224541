//! Queue of the pieces of one directory, from memory and from files.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{BulkError, Result};
use crate::image::manifest::{self, ImageFile, Manifest, PIECE_BYTES};
use crate::migrate::limits::MAX_HELD_PIECES;
use crate::sys::file::Failed;

/// State that the threads of a sender share.
#[derive(Debug, Default)]
pub(super) struct Feed {
    pub current: Option<Directory>,
    /// The first thing that failed.
    pub error: Option<BulkError>,
    /// Time for which memory, and CRIU with it, has waited for space.
    pub waited_dur: Duration,
    pub stopping: bool,
}

/// Queue between CRIU and the threads of a sender.
#[derive(Debug, Default)]
pub(super) struct Queue {
    feed: Mutex<Feed>,
    pub changed: Condvar,
}

impl Queue {
    pub fn lock(&self) -> MutexGuard<'_, Feed> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn wait<'a>(
        &self,
        feed: MutexGuard<'a, Feed>,
        limit_dur: Option<Duration>,
    ) -> MutexGuard<'a, Feed> {
        match limit_dur {
            Some(limit_dur) => {
                self.changed
                    .wait_timeout(feed, limit_dur)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
            None => self
                .changed
                .wait(feed)
                .unwrap_or_else(PoisonError::into_inner),
        }
    }
}

/// The directory that is being sent.
#[derive(Debug)]
pub(super) struct Directory {
    pub number: u32,
    path: PathBuf,
    files: BTreeMap<String, Image>,
    /// Pieces of memory, which is in no file here.
    waiting: VecDeque<Piece>,
    /// Buffers of pieces that were sent. They are reused: allocating and freeing them each time
    /// costs as much as encrypting their contents.
    spare: Vec<Vec<u8>>,
    /// Whether CRIU is done with the directory: all files and their lengths are known.
    pub complete: bool,
    /// Number of pieces that workers are sending.
    in_flight: usize,
    /// For each worker, whether it has sent the end of the directory on its connection.
    pub ended: Vec<bool>,
}

#[derive(Debug, Default)]
struct Image {
    /// `None` for memory.
    file: Option<Arc<File>>,
    /// Offset of the next piece.
    next_offset: u64,
    /// Size, as far as it is known.
    size_bytes: u64,
    /// Digests of the pieces, in order.
    digests: Vec<Option<u64>>,
}

/// A piece that a worker sends.
#[derive(Debug)]
pub(super) struct Piece {
    pub number: u32,
    pub name: String,
    pub contents: Contents,
    pub offset: u64,
    pub length_bytes: usize,
}

#[derive(Debug)]
pub(super) enum Contents {
    /// The first bytes of this buffer.
    Memory(Vec<u8>),
    File {
        file: Arc<File>,
        path: PathBuf,
    },
}

impl Directory {
    /// Returns a directory that this number of `workers` send.
    pub fn new(number: u32, path: &Path, workers: usize) -> Self {
        Self {
            number,
            path: path.to_path_buf(),
            files: BTreeMap::new(),
            waiting: VecDeque::new(),
            spare: Vec::new(),
            complete: false,
            in_flight: 0,
            ended: vec![false; workers],
        }
    }

    /// Returns whether more memory may be added: waiting pieces are held in memory.
    pub fn has_space(&self) -> bool {
        self.waiting.len() + self.in_flight < MAX_HELD_PIECES
    }

    /// Appends the first `length_bytes` of `bytes` as a piece to the file `name`. Only the last
    /// piece of a file may be shorter than a full one. Returns false if an earlier one was.
    pub fn push(&mut self, name: &str, bytes: Vec<u8>, length_bytes: usize) -> bool {
        let image = self.files.entry(name.to_owned()).or_default();
        let offset = image.size_bytes;
        if !offset.is_multiple_of(PIECE_BYTES) {
            return false;
        }
        image.size_bytes += length_bytes as u64;
        image.digests.push(None);
        self.waiting.push_back(Piece {
            number: self.number,
            name: name.to_owned(),
            offset,
            length_bytes,
            contents: Contents::Memory(bytes),
        });
        true
    }

    /// Adds the files that CRIU has written here. CRIU is done, so no more memory comes either.
    pub fn complete(&mut self) -> Result<()> {
        for (name, size_bytes) in manifest::list(&self.path)? {
            let path = self.path.join(&name);
            let file = fs::OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path)
                .map_err(Failed::to("open", &path))?;
            let image = Image {
                file: Some(Arc::new(file)),
                size_bytes,
                ..Image::default()
            };
            self.files.insert(name, image);
        }
        self.complete = true;
        Ok(())
    }

    pub fn next_piece(&mut self) -> Option<Piece> {
        let piece = match self.waiting.pop_front() {
            Some(piece) => piece,
            None => self
                .files
                .iter_mut()
                .find_map(|(name, image)| image.next_piece(self.number, name, &self.path))?,
        };
        self.in_flight += 1;
        Some(piece)
    }

    /// Returns a buffer for a piece of memory, with old contents or empty.
    pub fn take_spare(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    pub fn sent(&mut self, piece: Piece, digest: u64) {
        self.in_flight -= 1;
        if let Some(image) = self.files.get_mut(&piece.name) {
            image.digests[(piece.offset / PIECE_BYTES) as usize] = Some(digest);
        }
        if let Contents::Memory(bytes) = piece.contents {
            self.spare.push(bytes);
        }
    }

    pub fn is_sent(&self) -> bool {
        self.complete
            && self.waiting.is_empty()
            && self.in_flight == 0
            && self.ended.iter().all(|ended| *ended)
    }

    pub fn manifest(&self) -> Manifest {
        let entry = |(name, image): (&String, &Image)| {
            let digests: Vec<u64> = match image.size_bytes {
                0 => Vec::new(),
                _ => image.digests.iter().copied().flatten().collect(),
            };
            ImageFile::of_pieces(name.clone(), image.size_bytes, &digests)
        };
        Manifest {
            files: self.files.iter().map(entry).collect(),
        }
    }
}

impl Image {
    fn next_piece(&mut self, number: u32, name: &str, dir: &Path) -> Option<Piece> {
        let file = Arc::clone(self.file.as_ref()?);
        let offset = self.next_offset;
        // An empty file is one empty piece.
        if offset >= self.size_bytes && !self.digests.is_empty() {
            return None;
        }
        let length_bytes = PIECE_BYTES.min(self.size_bytes - offset);
        self.next_offset += length_bytes;
        self.digests.push(None);
        Some(Piece {
            number,
            name: name.to_owned(),
            contents: Contents::File {
                file,
                path: dir.join(name),
            },
            offset,
            length_bytes: length_bytes as usize,
        })
    }
}
