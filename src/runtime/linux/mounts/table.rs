//! Mount table of a process.

use std::io;

use nix::unistd::Pid;
use procfs::ProcResult;
use procfs::process::{MountInfo, Process};

use crate::sys::file::Failed;

/// Reads `/proc/PID/mountinfo`; `None` stands for this process.
///
/// # Errors
/// If the process is gone, or its mounts may not be read.
pub(in crate::runtime) fn mount_table(process: Option<Pid>) -> Result<Vec<MountInfo>, Failed> {
    let read = || -> ProcResult<Vec<MountInfo>> {
        let process = match process {
            None => Process::myself()?,
            Some(pid) => Process::new(pid.as_raw())?,
        };
        Ok(process.mountinfo()?.into_iter().collect())
    };
    read().map_err(|error| Failed {
        action: "read",
        path: match process {
            None => "/proc/self/mountinfo".into(),
            Some(pid) => format!("/proc/{pid}/mountinfo").into(),
        },
        source: io::Error::other(error),
    })
}
