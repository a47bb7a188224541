//! Receives any container, one after the other.

use std::path::Path;

use anyhow::Context;

use super::receive::{request, take};
use super::{Args, Failed, Result};
use crate::cli::Globals;
use crate::error::chain;
use crate::migrate::limits::SETTLE_LIMIT_DUR;
use crate::migrate::ops::{self, Port, ReceiveRequest};
use crate::migrate::progress::report::Outcome;
use crate::migrate::wire::id::Side;
use crate::migrate::wire::protocol::ANY;
use crate::sys::interrupt::Interrupt;

/// Receives one container after the other until a signal arrives.
pub fn serve(globals: &Globals, args: &Args, image_path: &Path) -> Result<i32> {
    args.output.check()?;
    let request = request(globals, args, image_path);
    let interrupt = Interrupt::install().context("cannot catch signals")?;
    let port = Port::At(args.receiver.listen);
    let served = ops::serve(&request, port, &interrupt, |port| {
        receive_one(&request, args, port)
    });
    served.map(|()| 0).map_err(Failed::at_destination)
}

/// Returns whether a container arrived.
fn receive_one(request: &ReceiveRequest, args: &Args, port: Port) -> bool {
    let mut progress = args.output.begin(ANY, Side::Destination);
    let taken = take(request, args, port, &mut progress);
    // A signal before any source has connected is not a failed migration.
    if progress.report().migration.is_some() {
        args.output
            .end(progress, Outcome::Moved, taken.as_ref().map(|_| 0));
    } else {
        drop(progress);
    }
    match taken {
        Ok((arrival, interrupt)) => {
            arrival.leave(SETTLE_LIMIT_DUR, Some(&interrupt));
            true
        }
        Err(failed) => {
            tracing::error!("{}", chain(failed.error.as_ref()));
            false
        }
    }
}
