//! The source's half.

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
use crate::migrate::link::channel::{Channel, Patience};
use crate::migrate::progress::TreePass;
use crate::migrate::transfer::images;
use crate::migrate::wire::payload::Synced;
use crate::migrate::wire::rootfs::RootfsWay;
use crate::sys::file::Failed;

/// A pass that finds no more than this is worth no other one right behind it.
const FEW_BYTES: u64 = 4 << 20;
/// The pause between two passes while the container runs, at least.
const PAUSE_DUR: Duration = Duration::from_secs(2);
/// A pause is so many times as long as the pass before it, so that passes take no more than a fifth of one processor's time.
const PAUSE_RATIO: u32 = 4;

/// What is sent, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The root file system.
    pub root: PathBuf,
    /// The contents of the bundle's `config.json`.
    pub config: Vec<u8>,
    /// One that copies.
    pub way: RootfsWay,
    /// A directory for lists of what was sent, with about 100 bytes for each file.
    pub spool: PathBuf,
    /// `--compress`, `--bandwidth`.
    pub sending: images::Settings,
}

/// Sends the tree on a thread of its own. Dropped, it ends at once.
#[derive(Debug)]
pub struct Sender {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
    /// Shut down, it ends every wait of the worker.
    socket: OwnedFd,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    settings: Settings,
    sent_bytes: Arc<AtomicU64>,
}

/// What the worker shall do.
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

/// How far the worker is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Reached {
    #[default]
    Begun,
    /// The destination has everything but what has changed just now.
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

impl Sender {
    /// Starts to send over `channel`.
    ///
    /// # Errors
    /// [`RootfsError::Transport`] where the connection cannot be duplicated.
    pub fn start(channel: Channel, settings: Settings) -> Result<Self> {
        let socket = channel.handle()?;
        let shared = Arc::new(Shared {
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

    /// Counts what goes over the wire.
    #[must_use]
    pub fn sent(&self) -> &Arc<AtomicU64> {
        &self.shared.sent_bytes
    }

    /// Waits until the destination has the tree but for what has changed just now. Returns what has been sent since the last question, as the others do.
    ///
    /// # Errors
    /// What has failed; a signal, or the end of `patience`.
    pub fn follow(&self, patience: Patience) -> Result<Vec<TreePass>> {
        self.await_reached(Reached::Following, patience)
    }

    /// Waits until nothing is under way: right before the freeze.
    ///
    /// # Errors
    /// As [`Self::follow`].
    pub fn hold(&self, patience: Patience) -> Result<Vec<TreePass>> {
        self.wish(Wish::Hold);
        self.await_reached(Reached::Held, patience)
    }

    /// Begins to send the last changes: nothing changes any more.
    pub fn finish(&self) {
        self.wish(Wish::Finish);
    }

    /// Waits until they are sent.
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

impl Drop for Sender {
    fn drop(&mut self) {
        self.wish(Wish::Stop);
        images::hang_up(std::slice::from_ref(&self.socket));
        if let Some(worker) = self.worker.take() {
            // A worker that panicked sends nothing more.
            let _ = worker.join();
        }
    }
}

impl Shared {
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
        // Taken as a whole first: the destination reads no changes while it writes.
        let had = match settings.way {
            RootfsWay::Diff => Some(self.take_inventory(channel)?),
            _ => None,
        };
        let mut list = self.list(0);
        let mut last = self.pass(channel, had.map(Have::Peer), Some(&list))?;
        let mut passes = 1;
        loop {
            // Twice as fast as the container changes its files, or there is no point in another one.
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
            self.settings.sending.pace.as_deref(),
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

    /// Sends what the destination lacks, and waits until it has it; the last changes, those without a list, it confirms by going on.
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
            // It goes with its directory otherwise.
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

    /// Waits for the next pass; false where there is none while the container runs.
    fn pause(&self, last_dur: Duration) -> bool {
        let until = Instant::now() + PAUSE_DUR.max(last_dur * PAUSE_RATIO);
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

    /// Returns whether it came, and not the end.
    fn await_freeze(&self) -> bool {
        let mut state = self.lock();
        while state.wish == Wish::Hold {
            state = self.wait(state, Duration::from_secs(1));
        }
        state.wish == Wish::Finish
    }
}

/// A list of what the destination has.
enum Have {
    /// Its own.
    Peer(PathBuf),
    /// Of what was sent.
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
