//! Receives one container.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{Args, Failed, Result};
use crate::cli::{Globals, absolute};
use crate::migrate::limits::SETTLE_LIMIT_DUR;
use crate::migrate::ops::{self, Arrival, Port, ReceiveRequest};
use crate::migrate::progress::Progress;
use crate::migrate::progress::report::Outcome;
use crate::migrate::wire::id::Side;
use crate::sys::interrupt::Interrupt;

pub fn receive(globals: &Globals, args: &Args, image_path: &Path) -> Result<i32> {
    let request = request(globals, args, image_path);
    let mut progress = args.output.begin(&args.id, Side::Destination);
    let port = Port::At(args.receiver.listen);
    let taken = take(&request, args, port, &mut progress);
    // The migration is over, in the foreground, too: the output of the container comes after the
    // report.
    args.output
        .end(progress, Outcome::Moved, taken.as_ref().map(|_| 0));
    let (arrival, interrupt) = taken?;
    if request.detach {
        arrival.leave(SETTLE_LIMIT_DUR, Some(&interrupt));
        return Ok(0);
    }
    let status = arrival.stay(SETTLE_LIMIT_DUR, interrupt);
    Ok(status.map_err(anyhow::Error::from)?)
}

pub fn request(globals: &Globals, args: &Args, image_path: &Path) -> ReceiveRequest {
    let receiver = &args.receiver;
    let path = |path: &Option<PathBuf>| path.clone().map(absolute);
    ReceiveRequest {
        root: globals.root.clone(),
        container: args.id.clone(),
        image_path: image_path.to_path_buf(),
        trust: args.trust.settings(),
        criu: args.criu.settings(globals),
        bundle: path(&receiver.bundle),
        systemd_cgroup: globals.systemd_cgroup,
        cgroup_parent: receiver.cgroup_parent.clone(),
        network_namespace: path(&receiver.netns),
        console_socket: path(&receiver.console_socket),
        pid_file: path(&receiver.pid_file),
        detach: receiver.detach,
        limit_dur: args.timeout,
    }
}

/// Waits for the container and returns when it runs here.
pub fn take(
    request: &ReceiveRequest,
    args: &Args,
    port: Port,
    progress: &mut Progress,
) -> Result<(Arrival, Interrupt)> {
    args.output.check()?;
    let interrupt = Interrupt::install().context("cannot catch signals")?;
    let arrival = ops::receive(request, port, progress, Some(&interrupt));
    Ok((arrival.map_err(Failed::at_destination)?, interrupt))
}
