//! A receiver for any container, one after the other.
//!
//! A process of its own receives each container, as if with `--detach`. When that process ends, the
//! container has no parent, and nothing that one migration does to its process concerns the next.
//! The serving process only keeps the port, at which sources wait meanwhile.

use std::io;
use std::net::TcpListener;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Port, ReceiveRequest};
use crate::migrate::fate::{Fate, Fated};
use crate::migrate::limits::RETRY_PAUSE_DUR;
use crate::migrate::link::channel::Patience;
use crate::migrate::link::channel::TransportError;
use crate::migrate::link::listener;
use crate::migrate::record::error::JournalError;
use crate::migrate::record::lock::Lock;
use crate::migrate::record::paths;
use crate::migrate::wire::protocol::ANY;
use crate::sys::interrupt::Interrupt;
use crate::sys::process;
use crate::sys::spawn::copy_process;

/// Containers cannot be received any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Another rcm serves this state directory, or the journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The port cannot be opened.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The port cannot be shared with a receiving process.
    #[error("cannot use the listening socket")]
    Socket {
        /// The failure of dup(2).
        #[source]
        source: io::Error,
    },
    /// No process can be started.
    #[error("cannot start a process for the next container")]
    Start {
        /// The failure of fork(2); `EBUSY` if this process has other threads.
        #[source]
        source: Errno,
    },
    /// A receiving process cannot be watched or waited for.
    #[error("cannot {action} the receiving process")]
    Wait {
        /// "watch" or "wait for".
        action: &'static str,
        /// The failure.
        #[source]
        source: io::Error,
    },
}

impl Fated for ServeError {
    fn fate(&self) -> Fate {
        Fate::AsBefore
    }
}

/// Receives one container after the other at `port` until `interrupt`.
///
/// `receive_one` runs in a process of its own for each container, and returns whether one came. It
/// installs an interrupt of its own and calls [`receive`](super::receive()). The calling process
/// must have no other thread.
///
/// # Errors
/// [`ServeError`].
pub fn serve(
    request: &ReceiveRequest,
    port: Port,
    interrupt: &Interrupt,
    receive_one: impl Fn(Port) -> bool,
) -> Result<(), ServeError> {
    let _lock = Lock::take(&request.root, ANY)?;
    paths::remove_litter(&request.root, ANY)?;
    let listener = match port {
        Port::At(address) => listener::listen(address)?,
        Port::Open(listener) => listener,
    };
    loop {
        let next = share(&listener)?;
        let worker = copy_process(|| i32::from(!receive_one(next)))
            .map_err(|source| ServeError::Start { source })?;
        let came = wait(worker, interrupt)?;
        if !came {
            // A signal ends the pause.
            let pause = Patience::within(RETRY_PAUSE_DUR).or_interrupt(Some(interrupt));
            let _ = pause.poll(&mut Vec::new());
        }
        if interrupt.received().is_some() {
            return Ok(());
        }
    }
}

fn share(listener: &TcpListener) -> Result<Port, ServeError> {
    let shared = listener.try_clone();
    shared
        .map(Port::Open)
        .map_err(|source| ServeError::Socket { source })
}

/// Waits for the worker's end and returns whether a container came. A signal is passed on: the
/// worker rolls back a migration that is not committed.
fn wait(worker: Pid, interrupt: &Interrupt) -> Result<bool, ServeError> {
    let pidfd = process::pidfd_open(worker).map_err(|errno| ServeError::Wait {
        action: "watch",
        source: errno.into(),
    })?;
    let patience = Patience::default().or_interrupt(Some(interrupt));
    if patience.readable(pidfd).is_err() {
        // Until the worker, our child, was waited for, its id belongs to nobody else.
        let _ = kill(worker, Signal::SIGTERM);
    }
    let status = process::wait(worker).map_err(|errno| ServeError::Wait {
        action: "wait for",
        source: errno.into(),
    })?;
    Ok(status.code() == Some(0))
}
