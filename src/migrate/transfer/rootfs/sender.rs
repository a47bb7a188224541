//! The source's half of the transfer of the root file system.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::stream::{Incoming, Outgoing};
use super::{CONFIG, Result, RootfsError, lift};
use crate::image::tree::{Base, Compression, Inventory, Totals, pack};
use crate::migrate::limits::TREE_PAUSE_DUR;
use crate::migrate::link::channel::{Channel, Patience};
use crate::migrate::progress::TreePass;
use crate::migrate::transfer::images;
use crate::migrate::wire::payload::Synced;
use crate::migrate::wire::rootfs::RootfsWay;
use crate::sys::file::Failed;

/// Size of the changes below which no further pass follows at once.
const FEW_BYTES: u64 = 4 << 20;
/// Ratio of a pause to the pass before it, so that passes take at most a fifth of one processor's
/// time.
const PAUSE_RATIO: u32 = 4;

/// TreeSettings of the transfer.
#[derive(Debug, Clone)]
pub struct TreeSettings {
    /// Path of the root file system.
    pub root: PathBuf,
    /// The contents of the bundle's `config.json`.
    pub config: Vec<u8>,
    /// Way of the copy: full or diff.
    pub way: RootfsWay,
    /// Directory for the lists of sent files, about 100 bytes for each file.
    pub spool: PathBuf,
    /// Compression and rate limit (`--compress`, `--bandwidth`).
    pub sending: images::ImageSettings,
}

/// Sends the tree on its own thread. On drop it ends at once.
#[derive(Debug)]
pub struct TreeSender {
    shared: Arc<TreeShared>,
    worker: Option<JoinHandle<()>>,
    /// Socket of the connection. Shutting it down ends every wait of the worker.
    socket: OwnedFd,
}

#[derive(Debug)]
struct TreeShared {
    state: Mutex<State>,
    changed: Condvar,
    settings: TreeSettings,
    sent_bytes: Arc<AtomicU64>,
}

/// Instruction to the worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Wish {
    /// Follow the container's changes.
    #[default]
    Follow,
    /// Wait: the container is about to be frozen.
    Hold,
    /// Send the last changes: nothing changes any more.
    Finish,
    Stop,
}

/// Progress of the worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Reached {
    #[default]
    Begun,
    /// The destination has everything except for the latest changes.
    Following,
    Held,
    Finished,
}

#[derive(Debug, Default)]
struct State {
    wish: Wish,
    reached: Reached,
    passes: Vec<TreePass>,
    error: Option<RootfsError>,
}

impl TreeSender {
    /// Starts to send over `channel`.
    ///
    /// # Errors
    /// [`RootfsError::Transport`] if the connection cannot be duplicated.
    pub fn start(channel: Channel, settings: TreeSettings) -> Result<Self> {
        let socket = channel.handle()?;
        let shared = Arc::new(TreeShared {
            state: Mutex::default(),
            changed: Condvar::new(),
            settings,
            sent_bytes: Arc::default(),
        });
        let worker = Arc::clone(&shared);
        Ok(Self {
            shared,
            worker: Some(std::thread::spawn(move || worker.work(channel))),
            socket,
        })
    }

    /// Returns the counter of the sent bytes.
    #[must_use]
    pub fn sent(&self) -> &Arc<AtomicU64> {
        &self.shared.sent_bytes
    }

    /// Waits until the destination has the tree except for the latest changes. Returns the passes
    /// since the last call, as the other waits do.
    ///
    /// # Errors
    /// If the worker has failed, a signal arrives, or `patience` ends.
    pub fn follow(&self, patience: Patience) -> Result<Vec<TreePass>> {
        self.await_reached(Reached::Following, patience)
    }

    /// Waits until no pass is under way, right before the freeze.
    ///
    /// # Errors
    /// As [`Self::follow`].
    pub fn hold(&self, patience: Patience) -> Result<Vec<TreePass>> {
        self.wish(Wish::Hold);
        self.await_reached(Reached::Held, patience)
    }

    /// Begins to send the last changes. The container is frozen and changes nothing any more.
    pub fn finish(&self) {
        self.wish(Wish::Finish);
    }

    /// Waits until the last changes are sent.
    ///
    /// # Errors
    /// As [`Self::follow`].
    pub fn await_finish(&self, patience: Patience) -> Result<Vec<TreePass>> {
        self.await_reached(Reached::Finished, patience)
    }

    fn wish(&self, wish: Wish) {
        self.shared.lock().wish = wish;
        self.shared.changed.notify_all();
    }

    fn await_reached(&self, reached: Reached, patience: Patience) -> Result<Vec<TreePass>> {
        let mut state = self.shared.lock();
        loop {
            if let Some(error) = state.error.take() {
                return Err(error);
            }
            if state.reached >= reached {
                return Ok(std::mem::take(&mut state.passes));
            }
            patience.check()?;
            if patience.is_over() {
                return Err(RootfsError::Incomplete);
            }
            state = self.shared.wait(state, Duration::from_millis(20));
        }
    }
}

impl Drop for TreeSender {
    fn drop(&mut self) {
        self.wish(Wish::Stop);
        images::hang_up(std::slice::from_ref(&self.socket));
        if let Some(worker) = self.worker.take() {
            // A worker that panicked sends nothing more.
            let _ = worker.join();
        }
    }
}

impl TreeShared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, limit_dur: Duration) -> MutexGuard<'a, State> {
        self.changed
            .wait_timeout(state, limit_dur)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    fn reach(&self, reached: Reached) {
        let mut state = self.lock();
        state.reached = state.reached.max(reached);
        self.changed.notify_all();
    }

    fn work(&self, mut channel: Channel) {
        if let Err(error) = self.send(&mut channel) {
            self.lock().error.get_or_insert(error);
            self.changed.notify_all();
        }
    }

    fn send(&self, channel: &mut Channel) -> Result<()> {
        let settings = &self.settings;
        let mut stream = self.outgoing(channel);
        stream
            .write_all(&settings.config)
            .map_err(Failed::to("send", Path::new(CONFIG)))?;
        stream.end(false)?;
        // The inventory is received as a whole first: the destination does not read changes while
        // it writes it.
        let had = match settings.way {
            RootfsWay::Diff => Some(self.take_inventory(channel)?),
            _ => None,
        };
        let mut list = self.list(0);
        let mut last = self.pass(channel, had.map(Have::Peer), Some(&list))?;
        let mut passes = 1;
        loop {
            // A pass must be at least twice as fast as the container changes its files. Otherwise
            // another one at once has no point.
            let before = last.0.content_bytes;
            if before > FEW_BYTES && self.lock().wish == Wish::Follow && passes < 8 {
                let next = self.list(passes);
                last = self.pass(channel, Some(Have::Sent(list)), Some(&next))?;
                list = next;
                passes += 1;
                if last.0.content_bytes < before / 2 {
                    continue;
                }
            }
            break;
        }
        self.reach(Reached::Following);
        while self.pause(last.1) {
            let next = self.list(passes);
            last = self.pass(channel, Some(Have::Sent(list)), Some(&next))?;
            list = next;
            passes += 1;
        }
        self.reach(Reached::Held);
        if self.await_freeze() {
            self.pass(channel, Some(Have::Sent(list)), None)?;
            self.reach(Reached::Finished);
        }
        Ok(())
    }

    fn outgoing<'a>(&'a self, channel: &'a mut Channel) -> Outgoing<'a> {
        Outgoing::new(
            channel,
            self.settings.sending.rate_limit.as_deref(),
            &self.sent_bytes,
        )
    }

    fn list(&self, number: u32) -> PathBuf {
        self.settings.spool.join(format!("tree-{number}.list"))
    }

    fn take_inventory(&self, channel: &mut Channel) -> Result<PathBuf> {
        let path = self.settings.spool.join("tree-had.list");
        let mut to = File::create(&path).map_err(Failed::to("create", &path))?;
        let mut stream = Incoming::new(channel);
        io::copy(&mut stream, &mut to).map_err(Failed::to("receive", &path))?;
        stream.end()?;
        Ok(path)
    }

    /// Sends the changes that the destination lacks, and waits until it has synced them. The last
    /// changes have no list, and the destination does not confirm them here.
    fn pass(
        &self,
        channel: &mut Channel,
        have: Option<Have>,
        list: Option<&Path>,
    ) -> Result<(Totals, Duration)> {
        let began = Instant::now();
        let sent_before_bytes = self.sent_bytes.load(Ordering::Relaxed);
        let base = match &have {
            None => Base::Nothing,
            Some(have) => have.base()?,
        };
        let mut listed = match list {
            Some(path) => {
                let made = File::create(path).map_err(Failed::to("create", path))?;
                Some(BufWriter::new(made))
            }
            None => None,
        };
        let compression = match self.settings.sending.compression {
            images::Compression::None => Compression::None,
            _ => Compression::Zstd,
        };
        let mut stream = self.outgoing(channel);
        let root = &self.settings.root;
        let totals = pack(root, base, &mut stream, listed.as_mut(), compression).map_err(lift)?;
        stream.end(list.is_none())?;
        if let (Some(listed), Some(path)) = (&mut listed, list) {
            listed.flush().map_err(Failed::to("write", path))?;
            let _: Synced = channel.expect(Patience::default())?;
        }
        if let Some(Have::Peer(path) | Have::Sent(path)) = have {
            // If this fails, the file is removed with its directory.
            let _ = std::fs::remove_file(path);
        }
        let took_dur = began.elapsed();
        self.lock().passes.push(TreePass {
            took_dur,
            frozen: list.is_none(),
            entries: totals.entries,
            deletions: totals.deletions,
            content_bytes: totals.content_bytes,
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed) - sent_before_bytes,
        });
        Ok((totals, took_dur))
    }

    /// Waits for the next pass. Returns false if there is none while the container runs.
    fn pause(&self, last_dur: Duration) -> bool {
        let until = Instant::now() + TREE_PAUSE_DUR.max(last_dur * PAUSE_RATIO);
        let mut state = self.lock();
        while state.wish == Wish::Follow {
            let left_dur = until.saturating_duration_since(Instant::now());
            if left_dur.is_zero() {
                return true;
            }
            state = self.wait(state, left_dur);
        }
        false
    }

    /// Waits for the freeze. Returns false if the transfer ends instead.
    fn await_freeze(&self) -> bool {
        let mut state = self.lock();
        while state.wish == Wish::Hold {
            state = self.wait(state, Duration::from_secs(1));
        }
        state.wish == Wish::Finish
    }
}

/// A list of the files that the destination has.
enum Have {
    /// The destination's own inventory.
    Peer(PathBuf),
    /// The list of the files that were sent.
    Sent(PathBuf),
}

impl Have {
    fn base(&self) -> Result<Base<BufReader<File>>> {
        let (Self::Peer(path) | Self::Sent(path)) = self;
        let opened = File::open(path).map_err(Failed::to("open", path))?;
        let inventory = Inventory::open(BufReader::new(opened)).map_err(lift)?;
        Ok(match self {
            Self::Peer(_) => Base::Peer(inventory),
            Self::Sent(_) => Base::Sent(inventory),
        })
    }
}
