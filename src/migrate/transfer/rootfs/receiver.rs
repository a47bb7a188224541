//! The destination's half of the transfer of the root file system.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{self, TryRecvError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::stream::{Incoming, Outgoing};
use super::swap::{Targets, TreeSwap};
use super::{Result, RootfsError, lift};
use crate::error::chain;
use crate::image::tree::{Compression, Limits, TreePath, apply_noting, link_copy, take_inventory};
use crate::migrate::limits::{DRAIN_LIMIT_DUR, MAX_CONFIG_BYTES, MAX_ENTRIES};
use crate::migrate::link::channel::{Channel, Patience, TransportError};
use crate::migrate::transfer::images;
use crate::migrate::wire::payload::Synced;
use crate::migrate::wire::protocol::Message;
use crate::sys::bell::Bell;
use crate::sys::file::Failed;

/// Paths of the last changes; `None` if they are too many.
type Changed = Option<Vec<TreePath>>;

/// Receives the tree on its own thread. On drop it ends at once and everything is undone; see
/// [`TreeSwap`].
#[derive(Debug)]
pub struct TreeReceiver {
    worker: Option<JoinHandle<()>>,
    /// Socket of the connection. Shutting it down ends every wait of the worker.
    socket: OwnedFd,
    /// Result of the worker.
    ended: mpsc::Receiver<Result<Changed>>,
    /// Rings when the worker has ended.
    bell: Arc<Bell>,
    /// Last member, so that it is dropped last: the worker must not write any more when the swap is
    /// undone.
    swap: TreeSwap,
}

impl TreeReceiver {
    /// Starts to receive over `channel`. Each stream of changes may have at most `limit_bytes` of
    /// contents.
    ///
    /// # Errors
    /// [`RootfsError::Transport`] if the connection cannot be duplicated.
    pub fn start(channel: Channel, swap: TreeSwap, limit_bytes: u64) -> Result<Self> {
        let socket = channel.handle()?;
        let (sender, ended) = mpsc::channel();
        let targets = swap.targets();
        let bell = Bell::new().map_err(|source| TransportError::Poll { source })?;
        let bell = Arc::new(bell);
        let at_end = RingAtEnd(Arc::clone(&bell));
        let worker = std::thread::spawn(move || {
            // Dropped last, also by a panic: then the sender says how the worker has ended.
            let _at_end = at_end;
            let sender = sender;
            // An error means that the migration was rolled back and the result is not needed.
            let _ = sender.send(work(channel, &targets, limit_bytes));
        });
        Ok(Self {
            worker: Some(worker),
            socket,
            ended,
            bell,
            swap,
        })
    }

    /// Returns the error that has ended the worker, if any.
    pub fn failure(&self) -> Option<RootfsError> {
        match self.ended.try_recv() {
            Ok(Err(error)) => Some(error),
            _ => None,
        }
    }

    /// Waits for the last changes and puts the new tree into its place.
    ///
    /// # Errors
    /// If the worker has failed, a signal arrives, or `patience` ends.
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
            // The worker has sent its result, so this does not wait long.
            let _ = worker.join();
        }
        self.swap.publish(changed)
    }

    /// Returns the swap of the trees.
    pub fn swap(&self) -> &TreeSwap {
        &self.swap
    }

    /// As [`TreeSwap::keep`].
    ///
    /// # Errors
    /// [`RootfsError`].
    pub fn keep(mut self) -> Result<()> {
        self.swap.keep()
    }
}

/// Rings when it is dropped.
struct RingAtEnd(Arc<Bell>);

impl Drop for RingAtEnd {
    fn drop(&mut self) {
        self.0.ring();
    }
}

impl Drop for TreeReceiver {
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
        // If the connection were closed with unread data, the kernel would reset it, and the source
        // would lose the reason.
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
