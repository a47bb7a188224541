//! A receiver for whatever comes.
//!
//! Each container is received by a process of its own, as if with `--detach`: when that ends, the container is nobody's child, and nothing that one migration
//! does to its process concerns the next. This process only keeps the port, at which sources wait meanwhile.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::receive::{Port, take};
use super::{Args, SETTLE_LIMIT_DUR, failure_status};
use crate::cli::{FAILED, Globals};
use crate::error::chain;
use crate::migrate::link::listener;
use crate::migrate::progress::report::Outcome;
use crate::migrate::record::lock::Lock;
use crate::migrate::record::paths;
use crate::migrate::wire::id::Side;
use crate::migrate::wire::protocol::ANY;
use crate::sys::interrupt::Interrupt;
use crate::sys::process;
use crate::sys::spawn::copy_process;

/// The pause after a container that did not come: whatever it was may be over then.
const PAUSE_DUR: Duration = Duration::from_millis(500);

/// Receives one container after the other until a signal comes.
pub fn serve(globals: &Globals, args: &Args, image_path: &Path) -> anyhow::Result<i32> {
    args.output.check()?;
    let _lock = Lock::take(&globals.root, ANY)?;
    paths::remove_litter(&globals.root, ANY)?;
    let listener = listener::listen(args.receiver.listen)?;
    let interrupt = Interrupt::install().context("cannot catch signals")?;
    loop {
        let worker = copy_process(|| receive_one(globals, args, image_path, &listener))
            .context("cannot start a process for the next container")?;
        let status = wait(worker, &interrupt)?;
        if interrupt.received().is_some() {
            return Ok(0);
        }
        if status != 0 {
            std::thread::sleep(PAUSE_DUR);
        }
    }
}

/// Waits for the worker's end. A signal is passed on: the worker rolls back what is not committed.
fn wait(worker: Pid, interrupt: &Interrupt) -> anyhow::Result<i32> {
    let pidfd = process::pidfd_open(worker).context("cannot watch the receiving process")?;
    while interrupt.received().is_none() {
        let mut waited = [
            PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(interrupt.as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut waited, PollTimeout::NONE).is_ok() && waited[0].any() == Some(true) {
            break;
        }
    }
    if interrupt.received().is_some() {
        // Our child: until it was waited for its id belongs to nobody else.
        let _ = kill(worker, Signal::SIGTERM);
    }
    let status = process::wait(worker).context("cannot wait for the receiving process")?;
    Ok(status.code().unwrap_or(i32::from(FAILED)))
}

fn receive_one(globals: &Globals, args: &Args, image_path: &Path, listener: &TcpListener) -> i32 {
    let mut progress = args.output.begin(ANY, Side::Destination);
    let port = match listener.try_clone() {
        Ok(listener) => Port::Open(listener),
        Err(error) => {
            tracing::error!("cannot use the listening socket: {error}");
            return i32::from(FAILED);
        }
    };
    let taken = take(globals, args, image_path, port, &mut progress);
    let container = progress.report().container.clone();
    // A signal while nobody has come is no failure of anything.
    if progress.report().migration.is_some() {
        args.output
            .end(progress, Outcome::Moved, taken.as_ref().map(|_| 0));
    } else {
        drop(progress);
    }
    match taken {
        Ok(mut taken) => {
            taken.settle(&globals.root, &container, SETTLE_LIMIT_DUR);
            0
        }
        Err(error) => {
            tracing::error!("{}", chain(error.as_ref()));
            i32::from(failure_status(&error).unwrap_or(FAILED))
        }
    }
}
