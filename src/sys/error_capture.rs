//! Error capture: a file in memory that collects error messages of a process and of its forked
//! children.
//!
//! `libcontainer` reports a failure inside the container as one flat sentence ("failed to prepare
//! rootfs") and only logs the cause. An operator needs the cause. So while a container is created,
//! the error events of libcontainer go to an unlinked file in memory that all forked processes
//! share. If the creation fails, the parent reads that file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::{Arc, Mutex};

use nix::sys::memfd::{MemFdCreateFlag, memfd_create};

/// The file of the capture that this process or its parent has started.
static ACTIVE: Mutex<Option<Arc<File>>> = Mutex::new(None);

/// Collects errors until it is dropped. A process has at most one at a time.
#[derive(Debug)]
pub struct ErrorCapture {
    file: Arc<File>,
}

impl ErrorCapture {
    /// Starts collecting.
    ///
    /// # Errors
    /// As memfd_create(2).
    pub fn start() -> nix::Result<Self> {
        let file = memfd_create(c"rcm-errors", MemFdCreateFlag::MFD_CLOEXEC)?;
        let file = Arc::new(File::from(file));
        activate(Some(Arc::clone(&file)));
        Ok(Self { file })
    }

    /// Returns the recorded errors, oldest first. The oldest is the deepest cause.
    #[must_use]
    pub fn records(&mut self) -> Vec<String> {
        let mut text = Vec::new();
        let mut file = &*self.file;
        let read = file
            .seek(SeekFrom::Start(0))
            .and_then(|_| file.read_to_end(&mut text));
        match read {
            Ok(_) => String::from_utf8_lossy(&text)
                .split('\0')
                .filter(|record| !record.is_empty())
                .map(str::to_owned)
                .collect(),
            Err(_) => Vec::new(),
        }
    }
}

impl Drop for ErrorCapture {
    fn drop(&mut self) {
        activate(None);
    }
}

fn activate(file: Option<Arc<File>>) {
    *ACTIVE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner()) = file;
}

/// Records an error in the capture that this process or its parent has started. Does nothing
/// without one.
pub fn record(message: &str) {
    // A forked child must not wait for a lock that only its parent can release.
    let Ok(active) = ACTIVE.try_lock() else {
        return;
    };
    let Some(file) = &*active else {
        return;
    };
    let mut line = message.as_bytes().to_vec();
    line.push(0);
    // If the write fails, only this detail is lost, not the failure itself.
    let _ = (&**file).write(&line);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_in_order() {
        let mut capture = ErrorCapture::start().unwrap();
        record("deepest");
        record("outer");
        assert_eq!(capture.records(), ["deepest", "outer"]);
        drop(capture);
        record("nobody listens");
    }
}
