//! The source's half.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
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
use crate::criu::page_server::{self, PageServerError, PageSink};
use crate::image::manifest::{self, Entry, Manifest, PIECE_BYTES};
use crate::migrate::transport::{Channel, Patience};

/// Pieces of memory that wait for a connection. With those that a worker has they are all that is held of a container's memory.
const MAX_WAITING: usize = 3;
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
    /// Takes the memory of the dump that is under way.
    page_server: Mutex<Option<PageServer>>,
    /// Shut down, these end every wait of a worker.
    sockets: Vec<OwnedFd>,
}

#[derive(Debug)]
struct PageServer {
    thread: JoinHandle<Result<(), PageServerError>>,
    /// Its end of CRIU's connection.
    socket: OwnedFd,
}

#[derive(Debug)]
pub(super) struct Shared {
    feed: Mutex<Feed>,
    changed: Condvar,
    pace: Option<Pace>,
    compression: Compression,
    sent_bytes: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
pub(super) struct Feed {
    current: Option<Directory>,
    error: Option<BulkError>,
    stopping: bool,
}

/// The directory that is being sent.
#[derive(Debug)]
struct Directory {
    number: u32,
    path: PathBuf,
    files: BTreeMap<String, Image>,
    /// Of memory, which is in no file here.
    waiting: VecDeque<Piece>,
    /// CRIU is done with it: all files are known, with their lengths.
    complete: bool,
    /// Pieces that a worker has at the moment.
    in_flight: usize,
    /// The workers that have said on their connection that this is all.
    ended: Vec<bool>,
}

#[derive(Debug, Default)]
struct Image {
    /// None for memory.
    file: Option<Arc<File>>,
    /// Where the next piece begins.
    next_offset: u64,
    /// As far as it is known.
    size_bytes: u64,
    /// Of the pieces, in order.
    digests: Vec<Option<u64>>,
}

/// A piece that a worker sends.
#[derive(Debug)]
struct Piece {
    number: u32,
    name: String,
    contents: Contents,
    offset: u64,
    length_bytes: usize,
}

#[derive(Debug)]
enum Contents {
    Memory(Vec<u8>),
    File { file: Arc<File>, path: PathBuf },
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
            page_server: Mutex::default(),
            sockets,
        })
    }

    /// CRIU is about to dump into `path`, after the images in `parent`. It is given the connection that is returned, over which the memory comes here and
    /// goes on to the destination, without being written on this host.
    ///
    /// # Errors
    /// [`BulkError::File`] where there is no connection to be had.
    pub fn begin(&self, number: u32, path: &Path, parent: Option<&Path>) -> Result<OwnedFd> {
        let (ours, theirs) = UnixStream::pair().map_err(super::file("make a socket for", path))?;
        let socket = ours
            .try_clone()
            .map_err(super::file("make a socket for", path))?;
        let mut sink = Memory::new(Arc::clone(&self.shared));
        let (dir, parent) = (path.to_path_buf(), parent.map(Path::to_path_buf));
        let serve = move || page_server::serve(ours, &dir, parent.as_deref(), &mut sink);
        *self.page_server() = Some(PageServer {
            thread: std::thread::spawn(serve),
            socket: socket.into(),
        });
        let mut feed = self.shared.lock();
        feed.current = Some(Directory {
            number,
            path: path.to_path_buf(),
            files: BTreeMap::new(),
            waiting: VecDeque::new(),
            complete: false,
            in_flight: 0,
            ended: vec![false; self.workers.len()],
        });
        self.shared.changed.notify_all();
        Ok(theirs.into())
    }

    /// Why the connections have ended, if they have.
    #[must_use]
    pub fn failure(&self) -> Option<BulkError> {
        self.shared.lock().error.take()
    }

    fn page_server(&self) -> MutexGuard<'_, Option<PageServer>> {
        self.page_server
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// CRIU is done with the directory: sends the rest, and returns what the destination should have then.
    ///
    /// # Errors
    /// What has failed since [`Self::begin`]; the end of `patience`.
    pub fn finish(&self, patience: Patience) -> Result<Manifest> {
        // It ended when CRIU said so, and CRIU has finished.
        if let Some(server) = self.page_server().take() {
            match server.thread.join() {
                Ok(served) => served?,
                Err(_) => return Err(BulkError::Incomplete),
            }
        }
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
        if let Some(server) = self.page_server().take() {
            super::hang_up(&[server.socket]);
            let _ = server.thread.join();
        }
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
            if let Some(directory) = &mut feed.current {
                match directory.next_piece() {
                    Some(piece) => {
                        // There is room for more memory.
                        self.changed.notify_all();
                        return Task::Send(piece);
                    }
                    None if directory.complete && !directory.ended[index] => {
                        return Task::End(directory.number);
                    }
                    None => {}
                }
            }
            feed = self.wait(feed, None);
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
            let want_bytes = CHUNK_BYTES.min(piece.length_bytes - done_bytes);
            let chunk = match &piece.contents {
                Contents::Memory(bytes) => &bytes[done_bytes..done_bytes + want_bytes],
                Contents::File { file, path } => {
                    let chunk = &mut raw[..want_bytes];
                    file.read_exact_at(chunk, piece.offset + done_bytes as u64)
                        .map_err(super::file("read", path))?;
                    chunk
                }
            };
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
    /// All that CRIU has written here is known now; what came from memory is, too.
    fn complete(&mut self) -> Result<()> {
        for (name, size_bytes) in manifest::list(&self.path)? {
            let path = self.path.join(&name);
            let file = fs::OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path)
                .map_err(super::file("open", &path))?;
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

    fn next_piece(&mut self) -> Option<Piece> {
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

    fn sent(&mut self, piece: &Piece, digest: u64) {
        self.in_flight -= 1;
        if let Some(image) = self.files.get_mut(&piece.name) {
            image.digests[(piece.offset / PIECE_BYTES) as usize] = Some(digest);
        }
    }

    fn is_sent(&self) -> bool {
        self.complete
            && self.waiting.is_empty()
            && self.in_flight == 0
            && self.ended.iter().all(|ended| *ended)
    }

    fn manifest(&self) -> Manifest {
        let entry = |(name, image): (&String, &Image)| {
            let digests: Vec<u64> = match image.size_bytes {
                0 => Vec::new(),
                _ => image.digests.iter().copied().flatten().collect(),
            };
            Entry::of_pieces(name.clone(), image.size_bytes, &digests)
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

/// Cuts the memory that a page server takes into pieces.
struct Memory {
    shared: Arc<Shared>,
    name: String,
    piece: Vec<u8>,
}

impl Memory {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            name: String::new(),
            piece: Vec::new(),
        }
    }

    /// Waits for a place for the piece. CRIU waits meanwhile, and what it dumps.
    fn push(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.piece);
        let mut feed = self.shared.lock();
        loop {
            let stopping = feed.stopping;
            let Some(directory) = feed.current.as_mut().filter(|_| !stopping) else {
                return Err(io::Error::other("the connections to the destination ended"));
            };
            if directory.waiting.len() < MAX_WAITING {
                let number = directory.number;
                let image = directory.files.entry(self.name.clone()).or_default();
                let offset = image.size_bytes;
                if !offset.is_multiple_of(PIECE_BYTES) {
                    return Err(io::Error::other(
                        "CRIU goes back to memory that it had left",
                    ));
                }
                image.size_bytes += bytes.len() as u64;
                image.digests.push(None);
                directory.waiting.push_back(Piece {
                    number,
                    name: self.name.clone(),
                    offset,
                    length_bytes: bytes.len(),
                    contents: Contents::Memory(bytes),
                });
                self.shared.changed.notify_all();
                return Ok(());
            }
            feed = self.shared.wait(feed, None);
        }
    }
}

impl PageSink for Memory {
    fn append(&mut self, name: &str, input: &mut dyn Read, count_bytes: u64) -> io::Result<()> {
        if self.name != name {
            self.push()?;
            name.clone_into(&mut self.name);
        }
        let mut left_bytes = count_bytes;
        while left_bytes > 0 {
            let have_bytes = self.piece.len();
            let take_bytes = left_bytes.min(PIECE_BYTES - have_bytes as u64) as usize;
            self.piece.reserve_exact(PIECE_BYTES as usize - have_bytes);
            let read_bytes = input.take(take_bytes as u64).read_to_end(&mut self.piece)?;
            if read_bytes < take_bytes {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left_bytes -= take_bytes as u64;
            if self.piece.len() as u64 == PIECE_BYTES {
                self.push()?;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.push()
    }
}
