//! Forking without executing another program.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::unistd::Pid;

/// Whose child a forked process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// This process's.
    This,
    /// That of this process's parent, which can wait for it when this process is gone.
    OfThis,
}

/// Forks; the child executes `body` and ends with the status that it returns. No destructors and no exit handlers run then.
///
/// No other thread may execute: the child would find the locks that it holds held for ever.
///
/// # Errors
/// As clone3(2), Linux 5.3.
pub fn fork(parent: Parent, body: impl FnOnce() -> i32) -> nix::Result<Pid> {
    // SAFETY: clone_args is plain data, for which zeros are a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    match parent {
        Parent::This => args.exit_signal = libc::SIGCHLD as u64,
        // A sibling tells its end by the signal that this process would, and must name none.
        Parent::OfThis => args.flags = libc::CLONE_PARENT as u64,
    }
    // SAFETY: without CLONE_VM and with no stack of its own the child goes on as after fork(2), on a copy of this memory; the kernel only reads
    // the arguments, which outlive the call.
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
    // A panic must not unwind into the parent's code, which this copy would go on with.
    let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(-1);
    // SAFETY: the process ends here; what the parent would flush or remove at its end is left to it.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, pipe};

    use super::*;
    use crate::sys::process::wait;

    // Other tests execute beside these: the children allocate nothing.

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
