//! Counter of the bytes of a phase. The code that moves them counts, the code that shows them
//! reads.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// A counter that threads share. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    done_bytes: AtomicU64,
    /// Expected total; 0 if unknown.
    total_bytes: AtomicU64,
    grows: OnceLock<PathBuf>,
    /// Another counter, and its value at the beginning.
    follows: OnceLock<(Arc<AtomicU64>, u64)>,
}

impl Meter {
    /// Adds to the bytes that are done. Cheap enough for every buffer. It orders no other memory
    /// access.
    pub fn add(&self, bytes: u64) {
        self.0.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Sets the expected total.
    pub fn expect(&self, total_bytes: u64) {
        self.0.total_bytes.store(total_bytes, Ordering::Relaxed);
    }

    /// Also counts the sizes of the files in `dir`: CRIU writes images and reports no progress.
    /// Only the first directory is used.
    pub fn watch(&self, dir: &Path) {
        let _ = self.0.grows.set(dir.to_path_buf());
    }

    /// Also counts additions to `counter` from now on. Only the first counter is used.
    pub fn follow(&self, counter: &Arc<AtomicU64>) {
        let base_bytes = counter.load(Ordering::Relaxed);
        let _ = self.0.follows.set((Arc::clone(counter), base_bytes));
    }

    /// Returns the number of bytes that are done.
    #[must_use]
    pub fn done_bytes(&self) -> u64 {
        let written_bytes = self.0.grows.get().map_or(0, |dir| size_bytes(dir));
        let followed_bytes = self.0.follows.get().map_or(0, |(counter, base_bytes)| {
            counter.load(Ordering::Relaxed).saturating_sub(*base_bytes)
        });
        self.0.done_bytes.load(Ordering::Relaxed) + written_bytes + followed_bytes
    }

    /// Returns the expected total. It is an estimate if the phase measures memory.
    #[must_use]
    pub fn total_bytes(&self) -> Option<u64> {
        match self.0.total_bytes.load(Ordering::Relaxed) {
            0 => None,
            total_bytes => Some(total_bytes),
        }
    }
}

fn size_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .filter(std::fs::Metadata::is_file)
        .map(|metadata| metadata.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_counts_from_where_it_was() {
        let counter = Arc::new(AtomicU64::new(5));
        let meter = Meter::default();
        meter.follow(&counter);
        counter.fetch_add(37, Ordering::Relaxed);
        assert_eq!(meter.done_bytes(), 37);
    }

    #[test]
    fn clones_and_files_count_together() {
        let dir = tempfile::tempdir().unwrap();
        let meter = Meter::default();
        assert_eq!((meter.done_bytes(), meter.total_bytes()), (0, None));
        let clone = meter.clone();
        std::thread::spawn(move || clone.add(1000)).join().unwrap();
        meter.watch(dir.path());
        std::fs::write(dir.path().join("pages-1.img"), [0; 24]).unwrap();
        meter.expect(4096);
        assert_eq!(
            (meter.done_bytes(), meter.total_bytes()),
            (1024, Some(4096))
        );
    }
}
