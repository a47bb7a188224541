//! Work in a container's namespaces while its first process waits.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use libcontainer::syscall::syscall::create_syscall;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Pid, Uid, chdir, geteuid};

use super::{LaunchError, Result, system};
use crate::error::chain;
use crate::sys;
use crate::sys::file::Failed;
use crate::sys::fork::{Parent, fork};

/// Names in `/proc/PID/ns`. A process enters a time namespace only with its next program, and hooks
/// do not need one.
const NAMESPACES: [(&str, CloneFlags); 6] = [
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("net", CloneFlags::CLONE_NEWNET),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("mnt", CloneFlags::CLONE_NEWNS),
];
const USER: (&str, CloneFlags) = ("user", CloneFlags::CLONE_NEWUSER);

/// Does `work` in the namespaces of the process `pid`, as root there, in the directory `dir`.
///
/// # Errors
/// [`LaunchError::InNamespaces`].
pub(crate) fn run_in_namespaces(
    pid: Pid,
    dir: &Path,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let pipe = |source: io::Error| {
        LaunchError::File(Failed {
            action: "make",
            path: "a pipe".into(),
            source,
        })
    };
    let (mut reader, mut writer) = io::pipe().map_err(pipe)?;
    let child = fork(Parent::This, || {
        let done = enter(pid, dir).and_then(|()| work());
        match done {
            Ok(()) => 0,
            Err(error) => {
                let _ = writer.write_all(chain(&error).as_bytes());
                1
            }
        }
    })
    .map_err(system("fork"))?;
    drop(writer);
    let mut reason = String::new();
    let read = reader.read_to_string(&mut reason);
    let status = sys::process::wait(child).map_err(system(
        "wait for what is done in the container's namespaces",
    ))?;
    if status.success() && read.is_ok() {
        return Ok(());
    }
    Err(LaunchError::InNamespaces { reason })
}

fn enter(pid: Pid, dir: &Path) -> Result<()> {
    // The user namespace that owns the others gives rights over them. Root has these rights before
    // it enters the user namespace, and loses them in it; so it enters it last. Others gain them
    // there, and enter it first.
    let kinds = if geteuid().is_root() {
        [&NAMESPACES[..], &[USER]].concat()
    } else {
        [&[USER], &NAMESPACES[..]].concat()
    };
    // All are opened before one is entered, because the container's /proc may be another one.
    let mut others = Vec::with_capacity(kinds.len());
    for (name, kind) in kinds {
        let path = format!("/proc/{pid}/ns/{name}");
        let own = fs::read_link(format!("/proc/self/ns/{name}"));
        match fs::read_link(&path) {
            // It is the same namespace, or a kind that this kernel does not have.
            Ok(theirs) if own.is_ok_and(|own| own == theirs) => continue,
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => continue,
            _ => {}
        }
        let namespace = File::open(&path).map_err(|source| {
            LaunchError::File(Failed {
                action: "open",
                path: path.into(),
                source,
            })
        })?;
        others.push((namespace, kind));
    }
    for (namespace, kind) in others {
        setns(namespace, kind).map_err(system("enter a namespace of the container"))?;
        if kind == CloneFlags::CLONE_NEWUSER {
            create_syscall().set_id(Uid::from_raw(0), Gid::from_raw(0))?;
        }
    }
    chdir(dir).map_err(system("change to the root file system"))
}
