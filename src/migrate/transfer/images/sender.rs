//! The source's half of the transfer of images.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::Xxh3;

use super::block::{BlockHeader, CHUNK_BYTES, Encoding};
use super::compress::{Compression, Encoder};
use super::page_sink::Memory;
use super::queue::{Contents, Directory, Piece, Queue};
use super::rate_limit::RateLimit;
use super::{BulkError, Result};
use crate::criu::page_server::{self, PageServerError};
use crate::image::manifest::Manifest;
use crate::migrate::limits::STALL_LIMIT_DUR;
use crate::migrate::link::channel::{Channel, Patience};
use crate::sys::file::Failed;

/// Settings of the transfer.
#[derive(Debug, Clone, Default)]
pub struct ImageSettings {
    /// Compression of the chunks.
    pub compression: Compression,
    /// Limit for the bandwidth of all connections of a migration together.
    pub rate_limit: Option<Arc<RateLimit>>,
}

/// Sends images over several connections, each with its own thread. On drop it ends them at once.
#[derive(Debug)]
pub struct ImageSender {
    shared: Arc<SenderShared>,
    workers: Vec<JoinHandle<()>>,
    /// Receives the memory of the current dump.
    page_server: Mutex<Option<PageServer>>,
    /// Sockets of the connections. Shutting them down ends every wait of a worker.
    sockets: Vec<OwnedFd>,
}

#[derive(Debug)]
struct PageServer {
    thread: JoinHandle<Result<(), PageServerError>>,
    /// The page server's end of the connection to CRIU.
    socket: OwnedFd,
}

#[derive(Debug)]
struct SenderShared {
    queue: Arc<Queue>,
    rate_limit: Option<Arc<RateLimit>>,
    compression: Compression,
    sent_bytes: Arc<AtomicU64>,
}

enum Task {
    Send(Piece),
    End(u32),
    Stop,
}

impl ImageSender {
    /// Starts a thread for each of `channels`. The number of sent bytes is added to `sent_bytes`.
    ///
    /// # Errors
    /// [`BulkError::File`] if a connection cannot be duplicated.
    pub fn start(
        channels: Vec<Channel>,
        settings: ImageSettings,
        sent_bytes: Arc<AtomicU64>,
    ) -> Result<Self> {
        let shared = Arc::new(SenderShared {
            queue: Arc::default(),
            rate_limit: settings.rate_limit,
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

    /// Prepares for CRIU's dump into `path`, which builds on the images in `parent`. CRIU gets the
    /// returned connection: over it the memory comes here and goes on to the destination, without
    /// being written on this host.
    ///
    /// # Errors
    /// [`BulkError::File`] if no socket can be created.
    pub fn begin(&self, number: u32, path: &Path, parent: Option<&Path>) -> Result<OwnedFd> {
        let (ours, theirs) =
            page_server::connection().map_err(Failed::to("make a socket for", path))?;
        let socket = ours
            .try_clone()
            .map_err(Failed::to("make a socket for", path))?;
        let mut sink = Memory::new(Arc::clone(&self.shared.queue));
        let (dir, parent) = (path.to_path_buf(), parent.map(Path::to_path_buf));
        let serve = move || page_server::serve(ours, &dir, parent.as_deref(), &mut sink);
        *self.page_server() = Some(PageServer {
            thread: std::thread::spawn(serve),
            socket: socket.into(),
        });
        let mut feed = self.shared.queue.lock();
        feed.current = Some(Directory::new(number, path, self.workers.len()));
        self.shared.queue.changed.notify_all();
        Ok(theirs.into())
    }

    /// Returns the error that has ended the connections, if any.
    #[must_use]
    pub fn failure(&self) -> Option<BulkError> {
        self.shared.queue.lock().error.take()
    }

    /// Returns the time for which CRIU has waited for the connections since the last call. The rest
    /// of the time in which CRIU wrote memory is the cost of copying.
    #[must_use]
    pub fn take_waited(&self) -> Duration {
        std::mem::take(&mut self.shared.queue.lock().waited_dur)
    }

    fn page_server(&self) -> MutexGuard<'_, Option<PageServer>> {
        self.page_server
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the rest of the directory, with which CRIU is done. Returns the manifest of the images
    /// that the destination should have then.
    ///
    /// # Errors
    /// If something has failed since [`Self::begin`], or if `patience` ends.
    pub fn finish(&self, patience: Patience) -> Result<Manifest> {
        // The page server ends when CRIU says so, and CRIU has finished. So this does not wait, and
        // all memory is in the queue.
        if let Some(server) = self.page_server().take() {
            match server.thread.join() {
                Ok(served) => served?,
                Err(_) => return Err(BulkError::Incomplete),
            }
        }
        let mut feed = self.shared.queue.lock();
        let Some(directory) = &mut feed.current else {
            return Err(BulkError::Incomplete);
        };
        directory.complete()?;
        self.shared.queue.changed.notify_all();
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
            feed = self
                .shared
                .queue
                .wait(feed, Some(Duration::from_millis(20)));
        }
    }
}

impl Drop for ImageSender {
    fn drop(&mut self) {
        self.shared.queue.lock().stopping = true;
        self.shared.queue.changed.notify_all();
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

impl SenderShared {
    fn work(&self, index: usize, count: usize, mut channel: Channel) {
        let worked = self.work_until_stopped(index, count, &mut channel);
        if let Err(error) = worked {
            let mut feed = self.queue.lock();
            feed.error.get_or_insert(error);
            feed.stopping = true;
            self.queue.changed.notify_all();
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
                    BlockHeader::encode_end(&mut wire, number);
                    channel.write_all(&wire, Patience::within(STALL_LIMIT_DUR))?;
                    let mut feed = self.queue.lock();
                    if let Some(directory) = &mut feed.current {
                        directory.ended[index] = true;
                    }
                    self.queue.changed.notify_all();
                }
                Task::Send(piece) => {
                    let digest = self.send(&piece, channel, &mut encoder, &mut raw, &mut wire)?;
                    let mut feed = self.queue.lock();
                    if let Some(directory) = &mut feed.current {
                        directory.sent(piece, digest);
                    }
                    if count > 1 {
                        self.queue.changed.notify_all();
                    }
                }
            }
        }
    }

    /// Returns the next task of worker `index`, for which it may wait.
    fn next(&self, index: usize) -> Task {
        let mut feed = self.queue.lock();
        loop {
            if feed.stopping {
                return Task::Stop;
            }
            if let Some(directory) = &mut feed.current {
                match directory.next_piece() {
                    Some(piece) => {
                        // There is space for more memory.
                        self.queue.changed.notify_all();
                        return Task::Send(piece);
                    }
                    None if directory.complete && !directory.ended[index] => {
                        return Task::End(directory.number);
                    }
                    None => {}
                }
            }
            feed = self.queue.wait(feed, None);
        }
    }

    /// Sends a piece and returns its digest.
    fn send(
        &self,
        piece: &Piece,
        channel: &mut Channel,
        encoder: &mut Encoder,
        raw: &mut [u8],
        wire: &mut Vec<u8>,
    ) -> Result<u64> {
        wire.clear();
        BlockHeader::encode_piece(
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
                        .map_err(Failed::to("read", path))?;
                    chunk
                }
            };
            hasher.update(chunk);
            let encoded = if chunk.is_empty() {
                None
            } else {
                Some(encoder.encode(chunk, wire)?)
            };
            let plain: &[u8] = match encoded {
                Some((Encoding::Plain, _)) => chunk,
                _ => &[],
            };
            let wire_bytes = wire.len() + plain.len();
            if let Some(rate_limit) = &self.rate_limit {
                std::thread::sleep(rate_limit.wait_for(wire_bytes, Instant::now()));
            }
            let began = Instant::now();
            let mut parts = [IoSlice::new(wire), IoSlice::new(plain)];
            channel.write_all_vectored(&mut parts, Patience::within(STALL_LIMIT_DUR))?;
            self.sent_bytes
                .fetch_add(wire_bytes as u64, Ordering::Relaxed);
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
