//! The destination.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::{Args, LINGER_DUR, PROMPT_DUR, SETTLE_LIMIT_DUR, look_around};
use crate::cli::{Globals, absolute};
use crate::migrate::cancel::Gate;
use crate::migrate::destination::{self, Arrived, Prepared, Setup};
use crate::migrate::journal::{self, Lock};
use crate::migrate::lobby::Lobby;
use crate::migrate::node::Node;
use crate::migrate::progress::{Event, Progress};
use crate::migrate::protocol::{Phase, Side};
use crate::migrate::rendezvous::Rendezvous;
use crate::migrate::report::Outcome;
use crate::migrate::resolve::{Means, resolve};
use crate::runtime::foreground::Foreground;
use crate::runtime::restore::{RestoreRequest, Restored};
use crate::runtime::{Error, delete, engine};
use crate::sys::interrupt::Interrupt;
use crate::sys::process::become_subreaper;

pub fn receive(globals: &Globals, args: &Args, image_path: &Path) -> anyhow::Result<i32> {
    let mut progress = args.output.begin(&args.id, Side::Destination);
    let taken = take(globals, args, image_path, &mut progress);
    // In the foreground too the migration is over now, and the container's own output comes after the report.
    args.output
        .end(progress, Outcome::Moved, taken.as_ref().map(|_| 0));
    let Taken {
        arrived,
        interrupt,
        lock,
    } = taken?;
    if args.receiver.detach {
        return Ok(stay_until_settled(arrived, &args.id, &interrupt));
    }
    // A signal is for the container from here on, which may also be sent on.
    drop(Gate::hold(&globals.root));
    drop(lock);
    stay(arrived, interrupt)
}

/// A container that runs here.
struct Taken {
    arrived: Arrived<Restored>,
    interrupt: Interrupt,
    lock: Lock,
}

/// Waits for the container, up to its first instruction here.
fn take(
    globals: &Globals,
    args: &Args,
    image_path: &Path,
    progress: &mut Progress,
) -> anyhow::Result<Taken> {
    args.output.check()?;
    let lock = Lock::take(&globals.root, &args.id)?;
    tidy_up(globals, &args.id, &lock)?;
    if globals.root.join(&args.id).exists() {
        return Err(anyhow::Error::new(Error::Exist).context(format!(
            "container {:?} cannot come here (its own host sends it with --destination)",
            args.id
        )));
    }
    if let Err(errno) = become_subreaper() {
        tracing::warn!("cannot become a subreaper: {errno}");
    }
    let (criu, facts) = look_around(globals)?;
    let receiver = &args.receiver;
    let path = |path: &Option<PathBuf>| path.clone().map(absolute);
    let node = Node {
        criu,
        facts,
        image_path: image_path.to_path_buf(),
        bundle: path(&receiver.bundle),
        request: RestoreRequest {
            root: globals.root.clone(),
            id: args.id.clone(),
            systemd_cgroup: globals.systemd_cgroup,
            cgroup_parent: receiver.cgroup_parent.clone(),
            console_socket: path(&receiver.console_socket),
            pid_file: path(&receiver.pid_file),
            detach: receiver.detach,
            ..RestoreRequest::default()
        },
        choices: args.criu.choices(),
        work_path: args.criu.work_path(globals, &args.id)?,
    };
    let interrupt = Interrupt::install().context("cannot catch signals")?;
    let trust = args.trust.trust()?;
    let rendezvous = Rendezvous::leave(image_path, &args.id, &trust)?;
    journal::remember_litter(&globals.root, &args.id, rendezvous.path())?;
    let mut lobby = Lobby::open(receiver.listen, rendezvous.acquaintance(), trust)?;
    let address = lobby
        .address()
        .context("cannot find the listening address")?;
    lobby.announce(&globals.root, &args.id, address, rendezvous.path())?;
    progress.tell(Event::Listening { address });
    let setup = Setup {
        root: globals.root.clone(),
        container: args.id.clone(),
        image_path: image_path.to_path_buf(),
        limit_dur: args.timeout,
        linger_dur: LINGER_DUR,
    };
    let prepared = Prepared::new(setup, node, rendezvous, lobby);
    let arrived = destination::receive(prepared, progress, Some(&interrupt))?;
    Ok(Taken {
        arrived,
        interrupt,
        lock,
    })
}

/// Removes what an earlier receiver has left that was killed before the commit, and an earlier source after the end.
fn tidy_up(globals: &Globals, id: &str, lock: &Lock) -> anyhow::Result<()> {
    journal::remove_litter(&globals.root, id)?;
    let Some(record) = journal::read(&globals.root, id)? else {
        return Ok(());
    };
    let left = match record.side {
        Side::Source => record.phase == Phase::Committed,
        Side::Destination => record.phase.may_roll_back() && !record.phase.is_final(),
    };
    if left {
        resolve(&globals.root, id, &Means::default(), lock)?;
    } else if record.side == Side::Destination && record.phase == Phase::Committed {
        bail!(
            "the last migration of container {id:?} to this host is not settled: `rcm live-migrate {id} --resolve` settles it"
        );
    }
    Ok(())
}

/// With `--detach`: the source should know before this process is gone.
fn stay_until_settled(mut arrived: Arrived<Restored>, id: &str, interrupt: &Interrupt) -> i32 {
    if !arrived.settlement.answer(SETTLE_LIMIT_DUR, Some(interrupt)) {
        tracing::warn!(
            "the source of container {id} has not confirmed; its --resolve will find the answer in the image store"
        );
    }
    0
}

/// The container's parent: forwards signals and terminal, exits with its status.
fn stay(arrived: Arrived<Restored>, interrupt: Interrupt) -> anyhow::Result<i32> {
    let Restored {
        container,
        pid,
        terminal,
    } = arrived.running;
    let mut settlement = arrived.settlement;
    let mut foreground = Foreground::watch(pid)?;
    interrupt
        .restore_defaults()
        .context("cannot reset signals")?;
    if settlement.answer(PROMPT_DUR, None) {
        // The port and the secret are for a source that does not know.
        drop(settlement);
    } else {
        // A thread, and only now: nothing is forked any more, and the signals are blocked in it as they are here.
        std::thread::spawn(move || settlement.answer(SETTLE_LIMIT_DUR, None));
    }
    let status = foreground.attach(terminal).and_then(|()| foreground.wait());
    if let Err(error) = delete::destroy_forcibly(&container) {
        tracing::warn!(
            "cannot remove container {}: {}",
            container.id(),
            engine::chain(&error)
        );
    }
    Ok(status?)
}
