//! The image store: images of dumps, their manifests, and root file systems as streams.
pub mod manifest;
pub mod rounds;
pub mod tree;

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Attempts to remove a directory to which another host still writes.
const REMOVE_ATTEMPTS: u32 = 20;
/// Pause between two attempts.
const REMOVE_PAUSE_DUR: Duration = Duration::from_millis(10);

/// Removes a directory of the image store with everything in it. It is no error if the directory is
/// gone.
///
/// The other end may write its last file into it at this moment, so the removal is repeated.
///
/// # Errors
/// As rmdir(2) and unlink(2).
pub fn remove_dir(dir: &Path) -> io::Result<()> {
    for _ in 1..REMOVE_ATTEMPTS {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
                thread::sleep(REMOVE_PAUSE_DUR);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            removed => return removed,
        }
    }
    fs::remove_dir_all(dir)
}

/// As [`remove_dir`], and syncs the removal: the directory stays gone after a power failure.
///
/// # Errors
/// As rmdir(2), unlink(2) and fsync(2).
pub fn remove_dir_for_good(dir: &Path) -> io::Result<()> {
    remove_dir(dir)?;
    match dir.parent().map(File::open) {
        Some(Ok(parent)) => parent.sync_all(),
        Some(Err(error)) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_directory_goes_although_somebody_writes_to_it() {
        let store = tempfile::tempdir().unwrap();
        let dir = store.path().join("images");
        fs::create_dir(&dir).unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) || number == 300 {
                        return;
                    }
                    // Fails once the directory is gone.
                    let _ = fs::write(dir.join(number.to_string()), "");
                }
            });
            remove_dir(&dir).unwrap();
            stop.store(true, Ordering::Relaxed);
        });
        assert!(!dir.exists());
        remove_dir(&dir).unwrap();
    }
}
