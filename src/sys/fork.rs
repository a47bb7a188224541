//! Forks without executing another program.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::unistd::Pid;

/// The parent of a forked process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// This process.
    This,
    /// The parent of this process, which can still wait for the child after this process has ended.
    OfThis,
}

/// Forks. The child executes `body` and ends with the status that `body` returns. No destructors
/// and no exit handlers run then.
///
/// No other thread may run: the child would find the locks of that thread held for ever.
///
/// # Errors
/// As clone3(2), Linux 5.3.
pub fn fork(parent: Parent, body: impl FnOnce() -> i32) -> nix::Result<Pid> {
    // SAFETY: clone_args is plain data, for which zeros are a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    match parent {
        Parent::This => args.exit_signal = libc::SIGCHLD as u64,
        // A sibling signals its end with this process's own exit signal and must name none.
        Parent::OfThis => args.flags = libc::CLONE_PARENT as u64,
    }
    // SAFETY: without CLONE_VM and without a stack of its own, the child continues as after
    // fork(2), on a copy of this memory. The kernel only reads the arguments, which outlive the
    // call.
    let pid = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            std::mem::size_of::<libc::clone_args>(),
        )
    })?;
    if pid != 0 {
        return Ok(Pid::from_raw(pid as libc::pid_t));
    }
    // A panic must not unwind into the parent's code: the child would execute that as well.
    let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(-1);
    // SAFETY: the process ends here. The parent flushes and removes its own things at its own end.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, pipe};

    use super::*;
    use crate::sys::process::wait;

    // Other tests run at the same time, so the children allocate nothing.

    #[test]
    fn a_child_ends_with_its_status() {
        let child = fork(Parent::This, || 7).unwrap();
        assert_eq!(wait(child).unwrap().code(), Some(7));
    }

    #[test]
    fn a_sibling_belongs_to_the_parent() {
        let (mut reader, writer) = pipe().unwrap();
        let child = fork(Parent::This, || {
            fork(Parent::OfThis, || 8).map_or(1, |sibling| {
                let number = sibling.as_raw().to_ne_bytes();
                nix::unistd::write(&writer, &number).map_or(1, |_| 0)
            })
        })
        .unwrap();
        assert_eq!(wait(child).unwrap().code(), Some(0));
        let mut number = [0; 4];
        reader.read_exact(&mut number).unwrap();
        let sibling = Pid::from_raw(i32::from_ne_bytes(number));
        assert_eq!(wait(sibling).unwrap().code(), Some(8));
    }
}
