//! The destination's half of the transfer of images.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use xxhash_rust::xxh3::Xxh3;

use super::block::{
    BlockHeader, CHUNK_BYTES, CHUNK_HEADER_BYTES, Chunk, Encoding, PIECE_HEADER_BYTES, decode_name,
};
use super::compress::Decompressor;
use super::{BulkError, Result};
use crate::image::manifest::{ImageFile, Manifest, ManifestError, PIECE_BYTES, pieces_of};
use crate::image::rounds;
use crate::migrate::limits::{MAX_FILES, MAX_PIECES, STALL_LIMIT_DUR};
use crate::migrate::link::channel::{Channel, Patience, TransportError};
use crate::sys::bell::Bell;
use crate::sys::file::Failed;

/// Receives images from several connections, each with its own thread. On drop it ends them at
/// once.
#[derive(Debug)]
pub struct ImageReceiver {
    shared: Arc<ReceiverShared>,
    workers: Vec<JoinHandle<()>>,
    /// Sockets of the connections. Shutting them down ends every wait of a worker.
    sockets: Vec<OwnedFd>,
}

#[derive(Debug)]
struct ReceiverShared {
    /// This migration's directory in the store here.
    images: PathBuf,
    arrivals: Mutex<Arrivals>,
    /// Rings when a connection has sent all of a directory, or has ended.
    changed: Bell,
    /// Rings when a connection has failed.
    failed: Bell,
}

#[derive(Debug, Default)]
struct Arrivals {
    /// Number of the current directory.
    number: u32,
    files: BTreeMap<String, Arc<File>>,
    /// Digest and length of each piece that has arrived, by name and offset.
    pieces: BTreeMap<(String, u64), (u64, u32)>,
    /// The files of which a short piece has arrived, which must be the last one.
    ends: BTreeSet<String>,
    /// Number of connections that have sent all of this directory.
    ended: usize,
    /// Number of connections that have ended.
    closed: usize,
    error: Option<BulkError>,
}

fn bell() -> Result<Bell> {
    Bell::new().map_err(|source| TransportError::Poll { source }.into())
}

impl ImageReceiver {
    /// Makes the first directory in `images` and starts a thread for each of `channels`.
    ///
    /// # Errors
    /// [`BulkError::File`].
    pub fn start(channels: Vec<Channel>, images: &Path) -> Result<Self> {
        let shared = Arc::new(ReceiverShared {
            images: images.to_path_buf(),
            arrivals: Mutex::default(),
            changed: bell()?,
            failed: bell()?,
        });
        shared.make_dir(0)?;
        let sockets = channels
            .iter()
            .map(Channel::handle)
            .collect::<Result<_, _>>()?;
        let workers = channels
            .into_iter()
            .map(|channel| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.work(channel))
            })
            .collect();
        Ok(Self {
            shared,
            workers,
            sockets,
        })
    }

    /// Waits until all of directory `number` has arrived, and compares it with the source's
    /// manifest.
    ///
    /// # Errors
    /// If a connection has failed, if something differs, or if `patience` ends.
    pub fn verify(&self, number: u32, manifest: &Manifest, patience: Patience) -> Result<()> {
        let arrivals = loop {
            // The bell is silenced before the state is read, so that a later ring ends the wait.
            self.shared.changed.hush();
            let mut arrivals = self.shared.lock();
            if let Some(error) = arrivals.error.take() {
                return Err(error);
            }
            if arrivals.ended == self.workers.len() {
                break arrivals;
            }
            if arrivals.closed > 0 {
                return Err(BulkError::Incomplete);
            }
            drop(arrivals);
            if !patience.readable(&self.shared.changed)? {
                return Err(BulkError::Incomplete);
            }
        };
        let dir = rounds::directory(&self.shared.images, number);
        for entry in &manifest.files {
            arrivals.compare(entry, &dir)?;
        }
        if arrivals.files.len() != manifest.files.len() {
            return Err(BulkError::Invalid {
                reason: "a file that is not in the manifest",
            });
        }
        Ok(())
    }

    /// Returns the error of the connection that has failed, if any.
    #[must_use]
    pub fn failure(&self) -> Option<BulkError> {
        self.shared.lock().error.take()
    }

    /// Returns the bell that rings when [`Self::failure`] has something to say.
    #[must_use]
    pub fn failed(&self) -> &Bell {
        &self.shared.failed
    }

    /// Begins the next directory, which builds on the one before it.
    ///
    /// # Errors
    /// [`BulkError::File`].
    pub fn go_on(&self) -> Result<()> {
        let mut arrivals = self.shared.lock();
        let number = arrivals.number + 1;
        self.shared.make_dir(number)?;
        *arrivals = Arrivals {
            number,
            closed: arrivals.closed,
            error: arrivals.error.take(),
            ..Arrivals::default()
        };
        Ok(())
    }
}

impl Drop for ImageReceiver {
    fn drop(&mut self) {
        super::hang_up(&self.sockets);
        for worker in self.workers.drain(..) {
            // A worker that panicked writes nothing more.
            let _ = worker.join();
        }
    }
}

impl Arrivals {
    /// Notes a piece that has arrived. A peer cannot make this end remember more than it sends.
    fn note(&mut self, name: &str, offset: u64, digest: u64, length_bytes: u32) -> Result<()> {
        if u64::from(length_bytes) < PIECE_BYTES && !self.ends.insert(name.to_owned()) {
            return Err(BulkError::Invalid {
                reason: "a file with two last pieces",
            });
        }
        if self.pieces.len() == MAX_PIECES {
            return Err(BulkError::Invalid {
                reason: "too many pieces",
            });
        }
        self.pieces
            .insert((name.to_owned(), offset), (digest, length_bytes));
        Ok(())
    }

    /// Compares a file with its entry in the manifest: every piece must have arrived with its
    /// digest.
    fn compare(&self, entry: &ImageFile, dir: &Path) -> Result<()> {
        let path = dir.join(&entry.name);
        let Some(file) = self.files.get(&entry.name) else {
            return Err(BulkError::Incomplete);
        };
        // Zeros at the end of the file were not written, so its length is set.
        file.set_len(entry.size_bytes)
            .map_err(Failed::to("write", &path))?;
        let mut digests = Vec::new();
        for offset in (0..pieces_of(entry.size_bytes)).map(|index| index * PIECE_BYTES) {
            let expected_bytes = PIECE_BYTES.min(entry.size_bytes - offset);
            match self.pieces.get(&(entry.name.clone(), offset)) {
                Some((digest, length_bytes)) if u64::from(*length_bytes) == expected_bytes => {
                    digests.push(*digest);
                }
                _ => return Err(BulkError::Incomplete),
            }
        }
        let found = ImageFile::of_pieces(entry.name.clone(), entry.size_bytes, &digests);
        if found.digest != entry.digest {
            return Err(ManifestError::Digest { path }.into());
        }
        Ok(())
    }
}

impl ReceiverShared {
    fn lock(&self) -> MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make_dir(&self, number: u32) -> Result<()> {
        let dir = rounds::directory(&self.images, number);
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(Failed::to("create", &dir))?;
        match rounds::parent(number) {
            None => Ok(()),
            Some(parent) => {
                let link = dir.join(rounds::PARENT);
                symlink(parent, &link).map_err(|error| Failed::to("create", &link)(error).into())
            }
        }
    }

    fn work(&self, mut channel: Channel) {
        let worked = self.receive(&mut channel);
        let mut arrivals = self.lock();
        arrivals.closed += 1;
        if let Err(error) = worked {
            arrivals.error.get_or_insert(error);
            self.failed.ring();
        }
        self.changed.ring();
    }

    fn receive(&self, channel: &mut Channel) -> Result<()> {
        let mut decoder = Decompressor::new()?;
        let mut wire = vec![0; CHUNK_BYTES];
        let mut raw = vec![0; CHUNK_BYTES];
        loop {
            let mut header = [0; PIECE_HEADER_BYTES];
            // No time limit: the source may be silent for long between two directories. TCP finds
            // out if it has died.
            if !read_first(channel, &mut header)? {
                return Ok(());
            }
            match BlockHeader::decode(&header)? {
                BlockHeader::End { number } => {
                    let mut arrivals = self.lock();
                    if number != arrivals.number {
                        return Err(BulkError::Invalid {
                            reason: "the end of another directory",
                        });
                    }
                    arrivals.ended += 1;
                    self.changed.ring();
                }
                BlockHeader::Piece {
                    number,
                    name_bytes,
                    offset,
                    length_bytes,
                } => {
                    let mut name = vec![0; usize::from(name_bytes)];
                    read_exact(channel, &mut name)?;
                    let name = decode_name(&name)?;
                    let (file, path) = self.open(number, name)?;
                    let mut hasher = Xxh3::new();
                    let mut done_bytes = 0;
                    while done_bytes < length_bytes as usize {
                        let mut header = [0; CHUNK_HEADER_BYTES];
                        read_exact(channel, &mut header)?;
                        let chunk = Chunk::decode(&header, length_bytes as usize - done_bytes)?;
                        let wire = &mut wire[..chunk.wire_bytes];
                        read_exact(channel, wire)?;
                        let raw = &mut raw[..chunk.raw_bytes];
                        let raw = match chunk.encoding {
                            Encoding::Plain => &*wire,
                            _ => {
                                decoder.decode(chunk.encoding, wire, raw)?;
                                &*raw
                            }
                        };
                        hasher.update(raw);
                        // Zeros stay a hole: nothing was ever written there.
                        if chunk.wire_bytes > 0 {
                            file.write_all_at(raw, offset + done_bytes as u64)
                                .map_err(Failed::to("write", &path))?;
                        }
                        done_bytes += raw.len();
                    }
                    self.lock()
                        .note(name, offset, hasher.digest(), length_bytes)?;
                }
            }
        }
    }

    /// Returns the file of that name in the current directory.
    fn open(&self, number: u32, name: &str) -> Result<(Arc<File>, PathBuf)> {
        let path = rounds::directory(&self.images, number).join(name);
        let mut arrivals = self.lock();
        if number != arrivals.number {
            return Err(BulkError::Invalid {
                reason: "a piece of another directory",
            });
        }
        if let Some(file) = arrivals.files.get(name) {
            return Ok((Arc::clone(file), path));
        }
        if arrivals.files.len() == MAX_FILES {
            return Err(BulkError::Invalid {
                reason: "too many files",
            });
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(Failed::to("create", &path))?;
        let file = Arc::new(file);
        arrivals.files.insert(name.to_owned(), Arc::clone(&file));
        Ok((file, path))
    }
}

/// Fills `buffer`, without a time limit for its first byte. Returns `false` if the connection ends
/// before it.
fn read_first(channel: &mut Channel, buffer: &mut [u8]) -> Result<bool> {
    match channel.read(buffer, Patience::default()) {
        Ok(read_bytes) => read_exact(channel, &mut buffer[read_bytes..]).map(|()| true),
        Err(TransportError::Closed { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn read_exact(channel: &mut Channel, buffer: &mut [u8]) -> Result<()> {
    let mut done_bytes = 0;
    while done_bytes < buffer.len() {
        let patience = Patience::within(STALL_LIMIT_DUR);
        match channel.read(&mut buffer[done_bytes..], patience) {
            Ok(read_bytes) => done_bytes += read_bytes,
            Err(TransportError::Broken { source, .. })
                if source.kind() == ErrorKind::UnexpectedEof =>
            {
                return Err(BulkError::Incomplete);
            }
            Err(TransportError::Closed { .. }) => return Err(BulkError::Incomplete),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
