//! The source's half.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::Xxh3;

use super::block::{CHUNK_BYTES, Header};
use super::compress::{Compression, Encoder};
use super::pace::Pace;
use super::{BulkError, Result};
use crate::image::manifest::{self, Entry, Manifest, PIECE_BYTES};
use crate::migrate::transport::{Channel, Patience};

/// Files that CRIU only appends to (criu/page-xfer.c): what is there stays as it is.
const GROWING_PREFIX: &str = "pages-";
/// How often the files are looked at while CRIU writes them.
const LOOK_DUR: Duration = Duration::from_millis(3);
/// A connection that takes nothing for so long is dead.
const STALL_LIMIT_DUR: Duration = Duration::from_secs(30);

/// How images are sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settings {
    /// What is done to them.
    pub compression: Compression,
    /// How many bytes a second the connections may carry together.
    pub bandwidth_bytes_per_s: Option<u64>,
}

/// Sends images over several connections, each with a thread of its own. Dropped, it ends them at once.
#[derive(Debug)]
pub struct Sender {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Shut down, these end every wait of a worker.
    sockets: Vec<OwnedFd>,
}

#[derive(Debug)]
struct Shared {
    feed: Mutex<Feed>,
    changed: Condvar,
    pace: Option<Pace>,
    compression: Compression,
    sent_bytes: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Feed {
    current: Option<Directory>,
    error: Option<BulkError>,
    stopping: bool,
}

/// The directory that is being sent.
#[derive(Debug)]
struct Directory {
    number: u32,
    path: PathBuf,
    files: BTreeMap<String, Followed>,
    /// CRIU is done with it: all files are known, with their lengths.
    complete: bool,
    looked_at: Option<Instant>,
    /// Pieces that a worker has at the moment.
    in_flight: usize,
    /// The workers that have said on their connection that this is all.
    ended: Vec<bool>,
}

#[derive(Debug)]
struct Followed {
    file: Arc<File>,
    /// Where the next piece begins.
    next_offset: u64,
    /// Once it is final.
    size_bytes: Option<u64>,
    /// Of the pieces, in order.
    digests: Vec<Option<u64>>,
}

/// A piece that a worker sends.
struct Piece {
    number: u32,
    name: String,
    file: Arc<File>,
    path: PathBuf,
    offset: u64,
    length_bytes: usize,
}

enum Task {
    Send(Piece),
    End(u32),
    Stop,
}

impl Sender {
    /// Starts a thread for each of `channels`. What goes over the wire is added to `sent_bytes`.
    ///
    /// # Errors
    /// [`BulkError::File`] where a connection cannot be duplicated.
    pub fn start(
        channels: Vec<Channel>,
        settings: Settings,
        sent_bytes: Arc<AtomicU64>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            feed: Mutex::default(),
            changed: Condvar::new(),
            pace: settings.bandwidth_bytes_per_s.map(Pace::new),
            compression: settings.compression,
            sent_bytes,
        });
        let sockets = channels
            .iter()
            .map(Channel::handle)
            .collect::<Result<_, _>>()?;
        let count = channels.len();
        let workers = channels
            .into_iter()
            .enumerate()
            .map(|(index, channel)| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.work(index, count, channel))
            })
            .collect();
        Ok(Self {
            shared,
            workers,
            sockets,
        })
    }

    /// From here on the files of pages in `path`, which CRIU is about to write, are sent as they grow.
    pub fn begin(&self, number: u32, path: &Path) {
        let mut feed = self.shared.lock();
        feed.current = Some(Directory {
            number,
            path: path.to_path_buf(),
            files: BTreeMap::new(),
            complete: false,
            looked_at: None,
            in_flight: 0,
            ended: vec![false; self.workers.len()],
        });
        self.shared.changed.notify_all();
    }

    /// CRIU is done with the directory: sends the rest, and returns what the destination should have then.
    ///
    /// # Errors
    /// What has failed since [`Self::begin`]; the end of `patience`.
    pub fn finish(&self, patience: Patience) -> Result<Manifest> {
        let mut feed = self.shared.lock();
        let Some(directory) = &mut feed.current else {
            return Err(BulkError::Incomplete);
        };
        directory.complete()?;
        self.shared.changed.notify_all();
        loop {
            if let Some(error) = feed.error.take() {
                return Err(error);
            }
            if let Some(directory) = feed.current.take_if(|directory| directory.is_sent()) {
                return Ok(directory.manifest());
            }
            patience.check()?;
            if patience.is_over() {
                return Err(BulkError::Incomplete);
            }
            feed = self.shared.wait(feed, Some(Duration::from_millis(20)));
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_all();
        super::hang_up(&self.sockets);
        for worker in self.workers.drain(..) {
            // A worker that panicked has sent nothing more.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Feed> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
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

    fn work(&self, index: usize, count: usize, mut channel: Channel) {
        let worked = self.work_until_stopped(index, count, &mut channel);
        if let Err(error) = worked {
            let mut feed = self.lock();
            feed.error.get_or_insert(error);
            feed.stopping = true;
            self.changed.notify_all();
        }
    }

    fn work_until_stopped(&self, index: usize, count: usize, channel: &mut Channel) -> Result<()> {
        let mut encoder = Encoder::new(self.compression)?;
        let mut raw = vec![0; CHUNK_BYTES];
        let mut wire = Vec::with_capacity(CHUNK_BYTES + 1024);
        loop {
            match self.next(index) {
                Task::Stop => return Ok(()),
                Task::End(number) => {
                    wire.clear();
                    Header::encode_end(&mut wire, number);
                    channel.write_all(&wire, Patience::within(STALL_LIMIT_DUR))?;
                    let mut feed = self.lock();
                    if let Some(directory) = &mut feed.current {
                        directory.ended[index] = true;
                    }
                    self.changed.notify_all();
                }
                Task::Send(piece) => {
                    let digest = self.send(&piece, channel, &mut encoder, &mut raw, &mut wire)?;
                    let mut feed = self.lock();
                    if let Some(directory) = &mut feed.current {
                        directory.sent(&piece, digest);
                    }
                    if count > 1 {
                        self.changed.notify_all();
                    }
                }
            }
        }
    }

    /// What worker `index` does next; waits until there is something.
    fn next(&self, index: usize) -> Task {
        let mut feed = self.lock();
        loop {
            if feed.stopping {
                return Task::Stop;
            }
            let mut limit_dur = None;
            if let Some(directory) = &mut feed.current {
                match directory.next_piece() {
                    Ok(Some(piece)) => return Task::Send(piece),
                    Ok(None) if !directory.complete => limit_dur = Some(LOOK_DUR),
                    Ok(None) if !directory.ended[index] => return Task::End(directory.number),
                    Ok(None) => {}
                    Err(error) => {
                        feed.error.get_or_insert(error);
                        feed.stopping = true;
                        self.changed.notify_all();
                        continue;
                    }
                }
            }
            feed = self.wait(feed, limit_dur);
        }
    }

    /// Returns the piece's digest.
    fn send(
        &self,
        piece: &Piece,
        channel: &mut Channel,
        encoder: &mut Encoder,
        raw: &mut [u8],
        wire: &mut Vec<u8>,
    ) -> Result<u64> {
        wire.clear();
        Header::encode_piece(
            wire,
            piece.number,
            &piece.name,
            piece.offset,
            piece.length_bytes as u32,
        );
        let mut hasher = Xxh3::new();
        let mut done_bytes = 0;
        loop {
            let chunk = &mut raw[..CHUNK_BYTES.min(piece.length_bytes - done_bytes)];
            piece
                .file
                .read_exact_at(chunk, piece.offset + done_bytes as u64)
                .map_err(super::file("read", &piece.path))?;
            hasher.update(chunk);
            let encoded = match chunk.is_empty() {
                true => None,
                false => Some(encoder.encode(chunk, wire)?),
            };
            if let Some(pace) = &self.pace {
                std::thread::sleep(pace.wait_for(wire.len(), Instant::now()));
            }
            let began = Instant::now();
            channel.write_all(wire, Patience::within(STALL_LIMIT_DUR))?;
            self.sent_bytes
                .fetch_add(wire.len() as u64, Ordering::Relaxed);
            if let Some((encoding, encode_dur)) = encoded {
                encoder.learn(encoding, chunk.len(), encode_dur + began.elapsed());
            }
            wire.clear();
            done_bytes += chunk.len();
            if done_bytes == piece.length_bytes {
                return Ok(hasher.digest());
            }
        }
    }
}

impl Directory {
    fn open(&mut self, name: &str) -> Result<&mut Followed> {
        if !self.files.contains_key(name) {
            let path = self.path.join(name);
            let file = fs::OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path)
                .map_err(super::file("open", &path))?;
            let followed = Followed {
                file: Arc::new(file),
                next_offset: 0,
                size_bytes: None,
                digests: Vec::new(),
            };
            self.files.insert(name.to_owned(), followed);
        }
        // It is there: it was, or has just been put there.
        self.files.get_mut(name).ok_or(BulkError::Incomplete)
    }

    /// Finds files that have appeared, at most every [`LOOK_DUR`].
    fn look(&mut self) -> Result<()> {
        if self
            .looked_at
            .is_some_and(|looked_at| looked_at.elapsed() < LOOK_DUR)
        {
            return Ok(());
        }
        self.looked_at = Some(Instant::now());
        for (name, _) in manifest::list(&self.path)? {
            if name.starts_with(GROWING_PREFIX) {
                self.open(&name)?;
            }
        }
        Ok(())
    }

    fn complete(&mut self) -> Result<()> {
        for (name, size_bytes) in manifest::list(&self.path)? {
            self.open(&name)?.size_bytes = Some(size_bytes);
        }
        self.complete = true;
        Ok(())
    }

    fn next_piece(&mut self) -> Result<Option<Piece>> {
        if !self.complete {
            self.look()?;
        }
        for (name, followed) in &mut self.files {
            let path = || self.path.join(name);
            let offset = followed.next_offset;
            let length_bytes = match followed.size_bytes {
                Some(0) if followed.digests.is_empty() => 0,
                Some(size_bytes) if offset < size_bytes => PIECE_BYTES.min(size_bytes - offset),
                Some(_) => continue,
                None => {
                    let metadata = followed
                        .file
                        .metadata()
                        .map_err(super::file("look at", &path()))?;
                    // Only whole pieces, so that each has one digest.
                    if metadata.len() < offset + PIECE_BYTES {
                        continue;
                    }
                    PIECE_BYTES
                }
            };
            followed.next_offset += length_bytes;
            followed.digests.push(None);
            self.in_flight += 1;
            return Ok(Some(Piece {
                number: self.number,
                name: name.clone(),
                file: Arc::clone(&followed.file),
                path: path(),
                offset,
                length_bytes: length_bytes as usize,
            }));
        }
        Ok(None)
    }

    fn sent(&mut self, piece: &Piece, digest: u64) {
        self.in_flight -= 1;
        if let Some(followed) = self.files.get_mut(&piece.name) {
            followed.digests[(piece.offset / PIECE_BYTES) as usize] = Some(digest);
        }
    }

    fn is_sent(&self) -> bool {
        self.complete && self.in_flight == 0 && self.ended.iter().all(|ended| *ended)
    }

    fn manifest(&self) -> Manifest {
        let entry = |(name, followed): (&String, &Followed)| {
            let size_bytes = followed.size_bytes.unwrap_or(0);
            let digests = match size_bytes {
                0 => Vec::new(),
                _ => followed.digests.iter().copied().flatten().collect(),
            };
            Entry::of_pieces(name.clone(), size_bytes, &digests)
        };
        Manifest {
            files: self.files.iter().map(entry).collect(),
        }
    }
}
