//! Starting helper programs with descriptors of this process.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;

/// Hands `descriptors` to the program that `command` starts, each under the number that it has in this process.
///
/// They keep their close-on-exec flag here, so that nothing else that this process starts inherits them. They must be open when
/// the program is started.
pub fn pass_descriptors(command: &mut Command, descriptors: &[BorrowedFd]) {
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let clear = move || numbers.iter().copied().try_for_each(clear_close_on_exec);
    // SAFETY: the closure runs between fork and exec and only calls fcntl(2), which is async-signal-safe; it allocates nothing
    // and takes no lock.
    unsafe { command.pre_exec(clear) };
}

/// Lets the program that `command` starts receive signals as if a shell had started it, whichever this process has blocked.
pub fn unblock_signals(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and only changes the signal mask and actions, which is async-signal-safe; it allocates
    // nothing and takes no lock.
    unsafe { command.pre_exec(super::process::reset_signals) };
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
        // Shells need not know numbers of two digits.
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
