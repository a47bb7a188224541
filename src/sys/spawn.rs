//! Starts helper programs with descriptors of this process.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, fork};

/// Hands `descriptors` to the program that `command` starts, each under the number that it has in
/// this process.
///
/// They keep their close-on-exec flag here, so that no other program of this process inherits them.
/// They must be open when the program is started.
pub fn pass_descriptors(command: &mut Command, descriptors: &[BorrowedFd]) {
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let clear = move || numbers.iter().copied().try_for_each(clear_close_on_exec);
    // SAFETY: the closure runs between fork and exec and only calls fcntl(2), which is
    // async-signal-safe; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(clear) };
}

/// Lets `command` start its program in a network namespace, which must still be open then.
pub fn enter_network(command: &mut Command, namespace: BorrowedFd) {
    let number = namespace.as_raw_fd();
    let enter = move || {
        // SAFETY: setns takes integers.
        Errno::result(unsafe { libc::setns(number, libc::CLONE_NEWNET) })?;
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec and only calls setns(2), which is
    // async-signal-safe; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(enter) };
}

/// Lets the program that `command` starts receive signals as if a shell had started it, even if
/// this process has blocked them.
pub fn unblock_signals(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and only changes the signal mask and actions,
    // which is async-signal-safe; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(super::process::reset_signals) };
}

/// Executes `work` in a copy of this process. The copy ends with the status that `work` returns,
/// and gets SIGTERM when this process ends.
///
/// # Errors
/// `EBUSY` if this process has other threads: the copy would have their locks, but not the threads.
/// As fork(2) otherwise.
pub fn copy_process(work: impl FnOnce() -> i32) -> nix::Result<Pid> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        return Err(Errno::EBUSY);
    }
    let parent = Pid::this();
    // SAFETY: there is no other thread that could hold a lock.
    match unsafe { fork()? } {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let watched = nix::sys::prctl::set_pdeathsig(Signal::SIGTERM);
            // Detects a parent that ended before prctl(2) took effect.
            let status = match watched {
                Ok(()) if Pid::parent() == parent => {
                    // A panic must not return to the caller, because that code runs in the parent,
                    // too.
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(101)
                }
                _ => 101,
            };
            std::process::exit(status)
        }
    }
}

fn clear_close_on_exec(descriptor: RawFd) -> std::io::Result<()> {
    // SAFETY: fcntl(F_SETFD) takes integers.
    Errno::result(unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, pipe};
    use std::os::fd::AsFd;

    #[test]
    fn a_descriptor_keeps_its_number() {
        let (mut reader, writer) = pipe().unwrap();
        let number = writer.as_raw_fd();
        let mut command = Command::new("sh");
        // Some shells do not know descriptor numbers of two digits.
        command
            .arg("-c")
            .arg(format!("echo here >/proc/self/fd/{number}"));
        pass_descriptors(&mut command, &[writer.as_fd()]);
        assert!(command.status().unwrap().success());
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "here\n");
    }
}
