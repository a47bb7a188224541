//! Versions and features of CRIU.

use std::fmt;

/// A version of CRIU. Versions are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 4 of 4.2.1.
    pub major: u32,
    /// 2 of 4.2.1.
    pub minor: u32,
    /// 1 of 4.2.1.
    pub sublevel: u32,
}

impl Version {
    /// First version with external pid namespaces and the `status-ready` notification.
    pub const EXTERNAL_PID_NAMESPACE: Self = Self::new(3, 15, 0);
    /// First version with external network namespaces.
    pub const EXTERNAL_NET_NAMESPACE: Self = Self::new(3, 11, 0);
    /// First version whose LSM options work. Earlier ones ignore another profile.
    pub const LSM: Self = Self::new(3, 16, 0);
    /// First version that can leave the network unlocked.
    pub const NETWORK_LOCK_SKIP: Self = Self::new(3, 18, 0);
    /// First version that asks, with the tasks stopped, for open files that it must not save
    /// (`query-ext-files`).
    pub const EXTERNAL_FILES_QUERY: Self = Self::new(3, 19, 0);
    /// First version that knows the freezer of cgroup v2.
    pub const FREEZER_V2: Self = Self::new(3, 14, 0);

    /// Makes the version `major.minor.sublevel`.
    #[must_use]
    pub const fn new(major: u32, minor: u32, sublevel: u32) -> Self {
        Self {
            major,
            minor,
            sublevel,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if self.sublevel != 0 {
            write!(f, ".{}", self.sublevel)?;
        }
        Ok(())
    }
}

/// Results of CRIU's feature check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// The kernel tracks changed memory (`CONFIG_MEM_SOFT_DIRTY` or the pagemap scan): for
    /// pre-dumps and incremental dumps.
    pub memory_tracking: bool,
    /// Missing memory can be fetched on access (userfaultfd with its non-cooperative events).
    pub lazy_pages: bool,
    /// Pidfds tell processes apart across pre-dumps.
    pub pidfd_store: bool,
}
