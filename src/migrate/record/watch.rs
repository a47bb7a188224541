//! Notices changes that another process makes to the records of a container.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::paths::{kept_path, source_path};

/// A descriptor that is readable after a record of the container was replaced.
#[derive(Debug)]
pub struct Watch {
    inotify: Inotify,
}

impl Watch {
    /// Watches both records. `None` if the kernel has no inotify instance left for this user.
    #[must_use]
    pub fn of(root: &Path, container: &str) -> Option<Self> {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let inotify = Inotify::init(flags).ok()?;
        // A record is replaced by rename(2). The directories are watched, because the file is a new
        // one each time.
        for path in [source_path(root, container), kept_path(root, container)] {
            let dir = path.parent()?;
            if dir.is_dir() {
                inotify.add_watch(dir, AddWatchFlags::IN_MOVED_TO).ok()?;
            }
        }
        Some(Self { inotify })
    }

    /// Discards the changes noticed up to now. Read the records after this, not before.
    pub fn clear(&self) {
        while self
            .inotify
            .read_events()
            .is_ok_and(|events| !events.is_empty())
        {}
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
