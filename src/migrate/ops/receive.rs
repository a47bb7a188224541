//! Receiving a container.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;

use super::CriuSettings;
use super::subject::ThisHost;
use crate::error::chain;
use crate::migrate::container::incoming::AnyContainer;
use crate::migrate::container::incoming::IncomingHost;
use crate::migrate::destination::{self, DestinationError, Prepared, Settlement, Setup};
use crate::migrate::fate::{Fate, Fated};
use crate::migrate::limits::{self, LINGER_DUR, PROMPT_DUR};
use crate::migrate::link::channel::TransportError;
use crate::migrate::link::listener;
use crate::migrate::link::listener::Listener;
use crate::migrate::ops::cancel::Gate;
use crate::migrate::ops::resolve::ResolveError;
use crate::migrate::ops::resolve::tidy_up;
use crate::migrate::preflight::facts::FactsError;
use crate::migrate::progress::{Event, Progress};
use crate::migrate::record::boot_stamp;
use crate::migrate::record::boot_stamp::Boot;
use crate::migrate::record::error::JournalError;
use crate::migrate::record::journal;
use crate::migrate::record::ledger::Known;
use crate::migrate::record::lock::Lock;
use crate::migrate::record::paths;
use crate::migrate::trust::rendezvous::Rendezvous;
use crate::migrate::trust::rendezvous::RendezvousError;
use crate::migrate::trust::{Trust, TrustError, TrustSettings};
use crate::migrate::wire::id::{MigrationId, Side};
use crate::migrate::wire::protocol::ANY;
use crate::runtime::process::foreground::Foreground;
use crate::runtime::verbs::delete;
use crate::runtime::verbs::restore::{RestoreRequest, Restored};
use crate::sys::interrupt::Interrupt;
use crate::sys::process::{ProcessId, become_subreaper};

/// A receiver.
#[derive(Debug, Clone)]
pub struct ReceiveRequest {
    /// State directory of rcm.
    pub root: PathBuf,
    /// Id of the container; [`ANY`] for the first that comes.
    pub container: String,
    /// Image store: an existing directory.
    pub image_path: PathBuf,
    /// Secrets and certificates.
    pub trust: TrustSettings,
    /// CRIU and its options. For any container, the work path has a directory for each.
    pub criu: CriuSettings,
    /// The bundle, or for any container the directory of their bundles; `None` for the path at the
    /// source.
    pub bundle: Option<PathBuf>,
    /// Whether systemd manages the container's cgroup.
    pub systemd_cgroup: bool,
    /// Parent of the container's cgroup, whatever its spec says.
    pub cgroup_parent: Option<PathBuf>,
    /// Network namespace, whatever the container's spec says.
    pub network_namespace: Option<PathBuf>,
    /// Unix socket that gets the container's terminal.
    pub console_socket: Option<PathBuf>,
    /// File that gets the id of the container's first process.
    pub pid_file: Option<PathBuf>,
    /// Whether the container is left to itself, without a parent.
    pub detach: bool,
    /// How long the source may take from the last images to the commit.
    pub limit_dur: Duration,
}

impl ReceiveRequest {
    fn is_for_any(&self) -> bool {
        self.container == ANY
    }
}

/// Port of a receiver.
#[derive(Debug)]
pub enum Port {
    /// A port to be opened: at this address, or at the default one.
    At(Option<SocketAddr>),
    /// A port that is open.
    Open(TcpListener),
}

/// The container did not come, or does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// Another rcm migrates the container, or the journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Remains of the last migration cannot be removed.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The container is on this host already.
    #[error(
        "container \"{container}\" cannot come here (its own host sends it with --destination)"
    )]
    Exists {
        /// Id of the container.
        container: String,
        /// The runtime's error for an id that is taken.
        #[source]
        source: Box<crate::runtime::Error>,
    },
    /// This host cannot be described.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// The secrets or certificates cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The secret cannot be left in the image store.
    #[error(transparent)]
    Rendezvous(#[from] RendezvousError),
    /// The port cannot be opened.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The kernel does not say which port it chose.
    #[error("cannot find the listening address")]
    Address {
        /// The failure of getsockname(2).
        #[source]
        source: io::Error,
    },
    /// The process that `--cancel` would end cannot be identified.
    #[error("cannot read a process's start time")]
    Keeper {
        /// The failure to read `/proc`.
        #[source]
        source: procfs::ProcError,
    },
    /// The migration has failed.
    #[error(transparent)]
    Failed(#[from] DestinationError),
}

impl Fated for ReceiveError {
    fn fate(&self) -> Fate {
        match self {
            Self::Resolve(error) => error.fate(),
            Self::Failed(error) => error.fate(),
            _ => Fate::AsBefore,
        }
    }
}

/// A container that runs here.
#[derive(Debug)]
pub struct Arrival {
    root: PathBuf,
    restored: Restored,
    settlement: Settlement,
    /// The right to migrate the container. For any container, the receiving host has it.
    lock: Option<Lock>,
}

/// The receiver cannot be the container's parent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArrivalError {
    /// The container cannot be watched.
    #[error(transparent)]
    Runtime(#[from] crate::runtime::Error),
    /// Signals cannot be passed on to the container.
    #[error("cannot reset signals")]
    Signals {
        /// The failure of sigaction(2).
        #[source]
        source: Errno,
    },
}

/// Waits for the container, up to its first instruction here.
///
/// `interrupt` ends the wait until the commit. The process becomes the reaper of orphans
/// (`PR_SET_CHILD_SUBREAPER`).
///
/// # Errors
/// [`ReceiveError`].
pub fn receive(
    request: &ReceiveRequest,
    port: Port,
    progress: &mut Progress,
    interrupt: Option<&Interrupt>,
) -> Result<Arrival, ReceiveError> {
    limits::log(Side::Destination, request.limit_dur);
    let lock = match request.is_for_any() {
        true => None,
        false => Some(lock(&request.root, &request.container)?),
    };
    if let Err(errno) = become_subreaper() {
        tracing::warn!("cannot become a subreaper: {errno}");
    }
    let host = incoming_host(request, progress)?;
    tell_of_earlier_boots(request, progress);
    let trust = Trust::of(&request.trust)?;
    let (listener, rendezvous) = listen(request, port, trust, progress)?;
    let setup = Setup {
        root: request.root.clone(),
        image_path: request.image_path.clone(),
        limit_dur: request.limit_dur,
        linger_dur: LINGER_DUR,
    };
    let prepared = Prepared::new(setup, host, rendezvous, listener);
    let arrived = destination::receive(prepared, progress, interrupt)?;
    Ok(Arrival {
        root: request.root.clone(),
        restored: arrived.running,
        settlement: arrived.settlement,
        lock,
    })
}

/// Takes the right to receive a container that does not exist here.
fn lock(root: &Path, id: &str) -> Result<Lock, ReceiveError> {
    let lock = take(root, id)?;
    if root.join(id).exists() {
        return Err(ReceiveError::Exists {
            container: id.to_owned(),
            source: Box::new(crate::runtime::Error::Exist),
        });
    }
    Ok(lock)
}

/// Takes the right to receive a container, and removes the remains of its last migration. Whether
/// the container exists here is judged with the other findings.
fn take(root: &Path, id: &str) -> Result<Lock, ReceiveError> {
    let lock = Lock::take(root, id)?;
    tidy_up(root, id, Known::open(root, id, &lock)?, &lock)?;
    Ok(lock)
}

/// This host as the place of the restore.
fn incoming_host(
    request: &ReceiveRequest,
    progress: &mut Progress,
) -> Result<IncomingHost, ReceiveError> {
    let is_any = request.is_for_any();
    let ThisHost { criu, facts } = ThisHost::look(request.criu.program.as_deref())?;
    let criu = criu.map_err(|error| chain(&error));
    if let Err(error) = &criu {
        // A source hears it as one of the findings.
        progress.say(&format!("error: {error}"));
    }
    let work_path = match is_any {
        // Each container has its own.
        true => PathBuf::new(),
        false => request.criu.work_path(&request.root, &request.container)?,
    };
    Ok(IncomingHost {
        criu,
        facts,
        image_path: request.image_path.clone(),
        any: is_any.then(|| {
            let (bundles, work_paths) = (request.bundle.clone(), request.criu.work_path.clone());
            AnyContainer::new(bundles, work_paths, |root, id| Ok(take(root, id)?))
        }),
        bundle: request.bundle.clone(),
        request: RestoreRequest {
            root: request.root.clone(),
            id: request.container.clone(),
            systemd_cgroup: request.systemd_cgroup,
            cgroup_parent: request.cgroup_parent.clone(),
            console_socket: request.console_socket.clone(),
            pid_file: request.pid_file.clone(),
            network_namespace: request.network_namespace.clone(),
            detach: request.detach || is_any,
            answer_limit_dur: Some(request.limit_dur),
            ..RestoreRequest::default()
        },
        choices: request.criu.choices.clone(),
        work_path,
    })
}

/// Tells the operator if a source may still wait for an answer from an earlier boot of this host.
fn tell_of_earlier_boots(request: &ReceiveRequest, progress: &mut Progress) {
    let (store, container) = (&request.image_path, &request.container);
    if let Some(here) = Boot::current()
        && !boot_stamp::find(store, container, &here).is_empty()
    {
        progress.say(&format!(
            "note: this host was started again in the middle of an earlier migration: `rcm live-migrate {container} --resolve --image-path={}` gives the container back to a source that still waits for an answer",
            store.display()
        ));
    }
}

/// Leaves the secret in the image store, opens the port and tells where it is.
fn listen(
    request: &ReceiveRequest,
    port: Port,
    trust: Trust,
    progress: &mut Progress,
) -> Result<(Listener, Rendezvous), ReceiveError> {
    let (root, container) = (&request.root, &request.container);
    let mut rendezvous = Rendezvous::create(&request.image_path, container, &trust)?;
    let note = paths::remember_litter(root, container, rendezvous.path())?;
    rendezvous.remove_with(note);
    let socket = match port {
        Port::At(address) => listener::listen(address)?,
        Port::Open(socket) => socket,
    };
    let mut listener = Listener::new(socket, rendezvous.acquaintance(), trust);
    let address = listener
        .address()
        .map_err(|source| ReceiveError::Address { source })?;
    // A receiver of one container after the other starts a process for each.
    let keeper = match request.is_for_any() {
        true => Pid::parent(),
        false => Pid::this(),
    };
    let keeper = ProcessId::of(keeper).map_err(|source| ReceiveError::Keeper { source })?;
    listener.announce(root, container, address, rendezvous.path(), Some(keeper))?;
    progress.tell(Event::Listening { address });
    Ok((listener, rendezvous))
}

impl Arrival {
    /// Id of the container.
    #[must_use]
    pub fn container(&self) -> &str {
        self.restored.container.id()
    }

    /// Tells the source, for at most `limit_dur`, and leaves the container to itself. The source
    /// should know before this process is gone.
    pub fn leave(mut self, limit_dur: Duration, interrupt: Option<&Interrupt>) {
        let container = self.container().to_owned();
        if self.settlement.answer(limit_dur, interrupt) {
            forget_receiver(&self.root, self.settlement.migration(), &container);
        } else {
            tracing::warn!(
                "the source of container {container} has not confirmed that it knows: `rcm live-migrate {container} --resolve`, here and then there, tells it"
            );
        }
        if let Some(announcement) = self.restored.announcement {
            announcement.finish();
        }
    }

    /// Stays as the container's parent, which gets the signals and the terminal, and removes the
    /// container after its end. Returns its exit status.
    ///
    /// A source that does not know how the migration ended is told meanwhile, for at most
    /// `limit_dur`.
    ///
    /// # Errors
    /// [`ArrivalError`]: the container runs on.
    pub fn stay(self, limit_dur: Duration, interrupt: Interrupt) -> Result<i32, ArrivalError> {
        // A signal is for the container from here on, which may also be sent on.
        drop(Gate::hold(&self.root));
        drop(self.lock);
        let Restored {
            container,
            pid,
            terminal,
            // The container runs on without this process.
            announcement: _,
        } = self.restored;
        let (root, mut settlement) = (self.root, self.settlement);
        let mut foreground = Foreground::watch(pid)?;
        interrupt
            .restore_defaults()
            .map_err(|source| ArrivalError::Signals { source })?;
        let migration = settlement.migration();
        if settlement.answer(PROMPT_DUR, None) {
            forget_receiver(&root, migration, container.id());
            // The port and the secret are for a source that does not know.
            drop(settlement);
        } else {
            // A thread, and only now: nothing is forked any more, and the signals are blocked in it
            // as they are here.
            let id = container.id().to_owned();
            std::thread::spawn(move || {
                if settlement.answer(limit_dur, None) {
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
}

/// Notes that no source will ask any more. If that fails, the next `--resolve` waits for a source
/// in vain, and no more.
fn forget_receiver(root: &Path, migration: MigrationId, container: &str) {
    if let Err(error) = journal::forget_receiver(root, migration, container) {
        tracing::warn!("{}", chain(&error));
    }
}
