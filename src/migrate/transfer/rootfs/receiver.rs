//! The destination's half.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{self, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::stream::{Incoming, Outgoing};
use super::swap::{Placement, Targets};
use super::{MAX_CONFIG_BYTES, Result, RootfsError, lift};
use crate::error::chain;
use crate::image::tree::{Compression, Limits, TreePath, apply_noting, link_copy, take_inventory};
use crate::migrate::link::channel::{Channel, Patience, TransportError};
use crate::migrate::transfer::images;
use crate::migrate::wire::payload::Synced;
use crate::migrate::wire::protocol::Message;
use crate::sys::bell::Bell;
use crate::sys::file::Failed;

/// More than any file system has.
const MAX_ENTRIES: u64 = 1 << 32;
/// How long a source that was told to stop may go on sending.
const DRAIN_LIMIT_DUR: Duration = Duration::from_secs(10);

/// What the last changes concern; nothing where that is too much.
type Changed = Option<Vec<TreePath>>;

/// Takes the tree on a thread of its own. Dropped, it ends at once, and everything is as it was; see [`Placement`].
#[derive(Debug)]
pub struct Receiver {
    worker: Option<JoinHandle<()>>,
    /// Shut down, it ends every wait of the worker.
    socket: OwnedFd,
    /// How it ended.
    ended: mpsc::Receiver<Result<Changed>>,
    /// Rings when it has ended.
    bell: Arc<Bell>,
    /// Last: nobody may write any more when it is undone.
    placement: Placement,
}

impl Receiver {
    /// Starts to take what comes over `channel`, at most `limit_bytes` of contents with each stream of changes.
    ///
    /// # Errors
    /// [`RootfsError::Transport`] where the connection cannot be duplicated.
    pub fn start(channel: Channel, placement: Placement, limit_bytes: u64) -> Result<Self> {
        let socket = channel.handle()?;
        let (sender, ended) = mpsc::channel();
        let targets = placement.targets();
        let bell = Bell::new().map_err(|source| TransportError::Poll { source })?;
        let bell = Arc::new(bell);
        let at_end = RingAtEnd(Arc::clone(&bell));
        let worker = std::thread::spawn(move || {
            // Dropped last, also by a panic: then the sender says how the worker has ended.
            let _at_end = at_end;
            let sender = sender;
            // Nobody listens any more if the migration was rolled back.
            let _ = sender.send(work(channel, &targets, limit_bytes));
        });
        Ok(Self {
            worker: Some(worker),
            socket,
            ended,
            bell,
            placement,
        })
    }

    /// What has failed up to now, if anything.
    pub fn failure(&self) -> Option<RootfsError> {
        match self.ended.try_recv() {
            Ok(Err(error)) => Some(error),
            _ => None,
        }
    }

    /// Waits for the last changes and puts everything into its place.
    ///
    /// # Errors
    /// What has failed, a signal, or the end of `patience`.
    pub fn finish(&mut self, patience: Patience) -> Result<()> {
        let changed = loop {
            match self.ended.try_recv() {
                Ok(ended) => break ended?,
                Err(TryRecvError::Disconnected) => return Err(RootfsError::Incomplete),
                Err(TryRecvError::Empty) => {}
            }
            if !patience.readable(&*self.bell)? {
                return Err(RootfsError::Incomplete);
            }
        };
        if let Some(worker) = self.worker.take() {
            // It has said how it ended.
            let _ = worker.join();
        }
        self.placement.publish(changed)
    }

    /// Where what has come is.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// As [`Placement::keep`].
    ///
    /// # Errors
    /// [`RootfsError`].
    pub fn keep(mut self) -> Result<()> {
        self.placement.keep()
    }
}

/// Rings when it is dropped.
struct RingAtEnd(Arc<Bell>);

impl Drop for RingAtEnd {
    fn drop(&mut self) {
        self.0.ring();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        images::hang_up(std::slice::from_ref(&self.socket));
        if let Some(worker) = self.worker.take() {
            // A worker that panicked writes nothing more.
            let _ = worker.join();
        }
    }
}

fn work(mut channel: Channel, targets: &Targets, limit_bytes: u64) -> Result<Changed> {
    let received = receive(&mut channel, targets, limit_bytes);
    if let Err(error) = &received {
        channel.abort(&chain(error));
        // Closed with data in it, the connection would be reset, and the reason lost with it.
        let until = Instant::now() + DRAIN_LIMIT_DUR;
        let mut rest = vec![0; 64 << 10];
        while Instant::now() < until
            && channel
                .read(&mut rest, Patience::within(DRAIN_LIMIT_DUR))
                .is_ok()
        {}
    }
    received
}

fn receive(channel: &mut Channel, targets: &Targets, limit_bytes: u64) -> Result<Changed> {
    let mut stream = Incoming::new(channel);
    let mut config = Vec::new();
    (&mut stream)
        .take(MAX_CONFIG_BYTES)
        .read_to_end(&mut config)
        .map_err(Failed::to("receive", &targets.config_place))?;
    stream.end()?;
    if let Some(path) = &targets.config {
        fs::write(path, config).map_err(Failed::to("write", path))?;
    }
    if targets.is_diff {
        if let Some(old) = &targets.base {
            link_copy(old, &targets.tree).map_err(lift)?;
        }
        let nobody_counts = AtomicU64::new(0);
        let mut stream = Outgoing::new(channel, None, &nobody_counts);
        take_inventory(&targets.tree, &mut stream, Compression::Zstd).map_err(lift)?;
        stream.flush().map_err(Failed::to("send", &targets.tree))?;
        stream.end(false)?;
    }
    let limits = Limits {
        entries: MAX_ENTRIES,
        content_bytes: limit_bytes,
    };
    loop {
        let began = Instant::now();
        let mut stream = Incoming::new(channel);
        let (_, changed) = apply_noting(&targets.tree, &mut stream, limits).map_err(lift)?;
        if stream.end()? {
            return Ok(changed);
        }
        targets.sync()?;
        let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let synced = Message::Synced(Synced { took_us });
        channel.send(&synced, Patience::within(DRAIN_LIMIT_DUR))?;
    }
}
