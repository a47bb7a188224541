//! The destination.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use nix::unistd::Pid;

use super::{Args, LINGER_DUR, PROMPT_DUR, SETTLE_LIMIT_DUR, look_around};
use crate::cli::{Globals, absolute};
use crate::error::chain;
use crate::migrate::container::incoming::{Any, Node};
use crate::migrate::destination::{self, Arrived, Prepared, Setup};
use crate::migrate::link::listener::{self, Lobby};
use crate::migrate::ops::cancel::Gate;
use crate::migrate::ops::resolve::tidy_up;
use crate::migrate::progress::report::Outcome;
use crate::migrate::progress::{Event, Progress};
use crate::migrate::record::boot_stamp::{self, Boot};
use crate::migrate::record::journal;
use crate::migrate::record::lock::Lock;
use crate::migrate::record::paths;
use crate::migrate::trust::rendezvous::Rendezvous;
use crate::migrate::wire::id::{MigrationId, Side};
use crate::migrate::wire::protocol::ANY;
use crate::runtime::Error;
use crate::runtime::process::foreground::Foreground;
use crate::runtime::verbs::delete;
use crate::runtime::verbs::restore::{RestoreRequest, Restored};
use crate::sys::interrupt::Interrupt;
use crate::sys::process::{ProcessId, become_subreaper};

pub fn receive(globals: &Globals, args: &Args, image_path: &Path) -> anyhow::Result<i32> {
    let mut progress = args.output.begin(&args.id, Side::Destination);
    let port = Port::At(args.receiver.listen);
    let taken = take(globals, args, image_path, port, &mut progress);
    // In the foreground too the migration is over now, and the container's own output comes after the report.
    args.output
        .end(progress, Outcome::Moved, taken.as_ref().map(|_| 0));
    let mut taken = taken?;
    if args.receiver.detach {
        taken.settle(&globals.root, &args.id, SETTLE_LIMIT_DUR);
        if let Some(announcement) = taken.arrived.running.announcement {
            announcement.finish();
        }
        return Ok(0);
    }
    // A signal is for the container from here on, which may also be sent on.
    drop(Gate::hold(&globals.root));
    drop(taken.lock);
    stay(&globals.root, taken.arrived, taken.interrupt)
}

/// Where a receiver listens.
pub enum Port {
    /// At this address, or at the default one.
    At(Option<SocketAddr>),
    /// At an open port.
    Open(TcpListener),
}

/// A container that runs here.
pub struct Taken {
    arrived: Arrived<Restored>,
    interrupt: Interrupt,
    /// None where the receiver was for any container: then the node has it.
    lock: Option<Lock>,
}

impl Taken {
    /// The source should know before this process is gone.
    pub fn settle(&mut self, root: &Path, container: &str, limit_dur: Duration) {
        let settlement = &mut self.arrived.settlement;
        if settlement.answer(limit_dur, Some(&self.interrupt)) {
            forget_receiver(root, settlement.migration(), container);
        } else {
            tracing::warn!(
                "the source of container {container} has not confirmed that it knows: `rcm live-migrate {container} --resolve`, here and then there, tells it"
            );
        }
    }
}

/// Waits for the container, up to its first instruction here.
pub fn take(
    globals: &Globals,
    args: &Args,
    image_path: &Path,
    port: Port,
    progress: &mut Progress,
) -> anyhow::Result<Taken> {
    args.output.check()?;
    let is_any = args.id == ANY;
    let lock = match is_any {
        true => None,
        false => Some(lock(globals, &args.id)?),
    };
    if let Err(errno) = become_subreaper() {
        tracing::warn!("cannot become a subreaper: {errno}");
    }
    let (criu, facts) = look_around(globals)?;
    let criu = criu.map_err(|error| chain(&error));
    if let Err(error) = &criu {
        // A source hears it, with what else speaks against a migration.
        progress.say(&format!("error: {error}"));
    }
    let receiver = &args.receiver;
    let path = |path: &Option<PathBuf>| path.clone().map(absolute);
    let (bundle, work_path) = (path(&receiver.bundle), path(&args.criu.work_path));
    let node = Node {
        criu,
        facts,
        image_path: image_path.to_path_buf(),
        any: is_any.then(|| Any::new(bundle.clone(), work_path)),
        bundle,
        request: RestoreRequest {
            root: globals.root.clone(),
            id: args.id.clone(),
            systemd_cgroup: globals.systemd_cgroup,
            cgroup_parent: receiver.cgroup_parent.clone(),
            console_socket: path(&receiver.console_socket),
            pid_file: path(&receiver.pid_file),
            network_namespace: path(&receiver.netns),
            detach: receiver.detach || is_any,
            answer_limit_dur: Some(args.timeout),
            ..RestoreRequest::default()
        },
        choices: args.criu.choices(),
        work_path: match is_any {
            // Each container has its own.
            true => PathBuf::new(),
            false => args.criu.work_path(globals, &args.id)?,
        },
    };
    if let Some(here) = Boot::current()
        && !boot_stamp::find(image_path, &args.id, &here).is_empty()
    {
        progress.say(&format!(
            "note: this host was started again in the middle of an earlier migration: `rcm live-migrate {} --resolve --image-path={}` gives the container back to a source that still waits for an answer",
            args.id,
            image_path.display()
        ));
    }
    let interrupt = Interrupt::install().context("cannot catch signals")?;
    let trust = args.trust.trust()?;
    let mut rendezvous = Rendezvous::leave(image_path, &args.id, &trust)?;
    let note = paths::remember_litter(&globals.root, &args.id, rendezvous.path())?;
    rendezvous.go_with(note);
    let listener = match port {
        Port::At(address) => listener::listen(address)?,
        Port::Open(listener) => listener,
    };
    let mut lobby = Lobby::new(listener, rendezvous.acquaintance(), trust);
    let address = lobby
        .address()
        .context("cannot find the listening address")?;
    // Who receives one container after the other starts a process for each.
    let keeper = match is_any {
        true => Pid::parent(),
        false => Pid::this(),
    };
    let keeper = ProcessId::of(keeper).context("cannot read a process's start time")?;
    let place = rendezvous.path();
    lobby.announce(&globals.root, &args.id, address, place, Some(keeper))?;
    progress.tell(Event::Listening { address });
    let setup = Setup {
        root: globals.root.clone(),
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

/// The right to receive container `id`, which does not exist here.
fn lock(globals: &Globals, id: &str) -> anyhow::Result<Lock> {
    let lock = Lock::take(&globals.root, id)?;
    tidy_up(&globals.root, id, &lock)?;
    if globals.root.join(id).exists() {
        return Err(anyhow::Error::new(Error::Exist).context(format!(
            "container {id:?} cannot come here (its own host sends it with --destination)",
        )));
    }
    Ok(lock)
}

/// Nobody will ask any more. If that cannot be noted, the next `--resolve` waits for a source in vain, and no more.
fn forget_receiver(root: &Path, migration: MigrationId, container: &str) {
    if let Err(error) = journal::forget_receiver(root, migration, container) {
        tracing::warn!("{}", chain(&error));
    }
}

/// The container's parent: forwards signals and terminal, exits with its status.
fn stay(root: &Path, arrived: Arrived<Restored>, interrupt: Interrupt) -> anyhow::Result<i32> {
    let Restored {
        container,
        pid,
        terminal,
        // It goes on by itself.
        announcement: _,
    } = arrived.running;
    let mut settlement = arrived.settlement;
    let mut foreground = Foreground::watch(pid)?;
    interrupt
        .restore_defaults()
        .context("cannot reset signals")?;
    let migration = settlement.migration();
    if settlement.answer(PROMPT_DUR, None) {
        forget_receiver(root, migration, container.id());
        // The port and the secret are for a source that does not know.
        drop(settlement);
    } else {
        // A thread, and only now: nothing is forked any more, and the signals are blocked in it as they are here.
        let (root, id) = (root.to_path_buf(), container.id().to_owned());
        std::thread::spawn(move || {
            if settlement.answer(SETTLE_LIMIT_DUR, None) {
                forget_receiver(&root, migration, &id);
            }
        });
    }
    let status = foreground.attach(terminal).and_then(|()| foreground.wait());
    if let Err(error) = delete::destroy_forcibly(&container) {
        tracing::warn!(
            "cannot remove container {}: {}",
            container.id(),
            chain(&error)
        );
    }
    Ok(status?)
}
