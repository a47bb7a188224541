//! Inputs that a peer, CRIU or a damaged disk may give to rcm: thousands for each place that reads
//! one. No thread may panic, memory stays bounded, nothing is written outside the directory of the
//! test, and each case ends.
//!
//! A case that fails names its seed: `RCM_TEST_SEED=N` plays that one first. The tests for single
//! headers are beside their code.

mod bulk;
#[path = "../it/common/mod.rs"]
mod common;
mod files;
mod pages;
mod tree;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use common::random::Random;

/// The tests of this program share its memory, and its panics.
static ALONE: Mutex<()> = Mutex::new(());
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Keeps the other tests of this program out until it is dropped.
fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Plays `count` cases, each with a seed of its own.
fn cases(count: u64, mut play: impl FnMut(&mut Random)) {
    static COUNTING: Once = Once::new();
    let _alone = alone();
    COUNTING.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // A hook, because rcm may never join the thread that panics.
            PANICS.fetch_add(1, Ordering::Relaxed);
            hook(info);
        }));
    });
    let given = std::env::var("RCM_TEST_SEED").ok();
    let first = given.map_or_else(
        || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_nanos() as u64
        },
        |seed| seed.parse().unwrap(),
    );
    PANICS.store(0, Ordering::Relaxed);
    for seed in (first..).take(count as usize) {
        let played = catch_unwind(AssertUnwindSafe(|| play(&mut Random::new(seed))));
        let panics = PANICS.load(Ordering::Relaxed);
        assert!(played.is_ok() && panics == 0, "RCM_TEST_SEED={seed}");
    }
}

/// Changes a few bytes, or cuts something off, or puts something in.
fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..random.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        match random.below(5) {
            0 => bytes[at] = random.next() as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at),
            3 => {
                let more = random.below(40);
                bytes.splice(at..at, random.bytes(more)).for_each(drop);
            }
            _ => {
                let end = (at + random.below(40)).min(bytes.len());
                bytes.drain(at..end).for_each(drop);
            }
        }
    }
}

/// A directory beside something precious.
struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let place = if memory.exists() {
            memory
        } else {
            Path::new("/tmp")
        };
        let dir = tempfile::tempdir_in(place).unwrap();
        fs::write(dir.path().join("precious"), "precious").unwrap();
        fs::create_dir(dir.path().join("images")).unwrap();
        Self { dir }
    }

    fn images(&self) -> std::path::PathBuf {
        self.dir.path().join("images")
    }

    fn assert_nothing_outside(&self) {
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["images", "precious"]);
        assert_eq!(
            fs::read(self.dir.path().join("precious")).unwrap(),
            b"precious"
        );
    }
}

/// The most memory that the process had since the last call, in KiB (`VmHWM`,
/// `proc_pid_status(5)`).
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let peak = line.unwrap().split_whitespace().nth(1).unwrap().parse();
    fs::write("/proc/self/clear_refs", "5").unwrap();
    peak.unwrap()
}
