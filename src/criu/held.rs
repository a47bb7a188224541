//! Dumps and restores that are held at the moment of decision.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use nix::unistd::Pid;

use super::binary::Criu;
use super::error::{Action, CallbackError, Error};
use super::notify::Notify;
use super::options::{Common, DumpOptions, RestoreOptions, Trees};
use super::rpc::{self, Directories};
use super::session::{Job, Pause, Session, Surroundings};
use crate::sys::mount;

const RESTORE_LOG: &str = "restore.log";

/// Opens the directories of a request. CRIU reads them through `/proc/PID/fd` of this process, so they must stay open.
fn open_directories(common: &Common) -> Result<(File, Option<File>), Error> {
    let open = |what, path: &Path| {
        File::open(path)
            .and_then(|file| match file.metadata()?.is_dir() {
                true => Ok(file),
                false => Err(ErrorKind::NotADirectory.into()),
            })
            .map_err(|source| Error::Directory {
                what,
                path: path.to_path_buf(),
                source,
            })
    };
    let images = open("image directory", &common.images_dir)?;
    let work = common
        .work_dir
        .as_ref()
        .map(|path| open("work directory", path))
        .transpose()?;
    Ok((images, work))
}

fn numbers(images: &File, work: Option<&File>) -> Directories {
    Directories {
        images: images.as_raw_fd(),
        work: work.map(AsRawFd::as_raw_fd),
    }
}

/// The log of a failed earlier attempt must not be taken for this one's.
fn remove_old_log(job: &Job) {
    if let Some(log) = job.log()
        && let Err(error) = std::fs::remove_file(log)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::debug!(%error, log = %log.display(), "cannot remove an old log");
    }
}

/// A complete dump whose tasks are stopped and wait for the answer. Dropping it refuses.
#[derive(Debug)]
#[must_use = "dropping a held dump lets the tasks run on"]
pub struct HeldDump<N> {
    pub(super) session: Session,
    pub(super) notify: N,
}

/// A complete restore of which nothing has executed yet. Dropping it refuses.
#[derive(Debug)]
#[must_use = "dropping a held restore kills the restored tasks"]
pub struct HeldRestore<N> {
    session: Session,
    notify: N,
    pid: i32,
}

/// Whether the last restore that logged to `work_dir` came to the point at which the tasks execute. Only for a CRIU that has ended.
///
/// The sentence is criu/cr-restore.c's, at a level that rcm's restores have.
#[must_use]
pub fn has_resumed(work_dir: &Path) -> bool {
    const SENTENCE: &[u8] = b"Restore finished successfully. Tasks resumed.";
    // Names in a log need not be UTF-8.
    std::fs::read(work_dir.join(RESTORE_LOG))
        .is_ok_and(|log| log.windows(SENTENCE.len()).any(|window| window == SENTENCE))
}

fn dump_surroundings(options: &DumpOptions) -> Surroundings<'_> {
    Surroundings {
        descriptors: options
            .page_connection
            .iter()
            .map(|connection| connection.as_fd())
            .collect(),
        stdin: None,
        network: options.network.as_ref().map(|network| network.as_fd()),
    }
}

impl Criu {
    /// Dumps, and holds when the images are complete and the tasks are still stopped.
    ///
    /// # Errors
    /// CRIU's first error, or that of `notify`. The tasks run on then, unless they were stopped or frozen before.
    pub fn dump<N: Notify>(
        &self,
        options: &DumpOptions,
        mut notify: N,
    ) -> Result<HeldDump<N>, Error> {
        const LOG: &str = "dump.log";
        let job = Job::work(Action::Dump, &options.common, LOG);
        let (images, work) = open_directories(&options.common)?;
        remove_old_log(&job);
        let mut session = Session::start(self.path(), job, dump_surroundings(options))?;
        session.introduce(&mut notify, |_| Ok(()))?;
        let directories = numbers(&images, work.as_ref());
        session.send(&rpc::dump_request(options, directories, LOG, false))?;
        match session.talk(&mut notify, Some("post-dump"))? {
            Pause::Held { .. } => Ok(HeldDump { session, notify }),
            Pause::Finished => Err(Error::Protocol {
                action: Action::Dump,
                what: "it finished without asking at post-dump",
            }),
        }
    }

    /// Copies the memory of the tasks, which are stopped only for moments.
    ///
    /// # Errors
    /// As [`Self::dump`].
    pub fn pre_dump(&self, options: &DumpOptions, notify: &mut dyn Notify) -> Result<(), Error> {
        const LOG: &str = "pre-dump.log";
        let job = Job::work(Action::PreDump, &options.common, LOG);
        let (images, work) = open_directories(&options.common)?;
        remove_old_log(&job);
        let mut session = Session::start(self.path(), job, dump_surroundings(options))?;
        session.introduce(notify, |_| Ok(()))?;
        let directories = numbers(&images, work.as_ref());
        session.send(&rpc::dump_request(options, directories, LOG, true))?;
        session.talk(notify, None).map(drop)
    }

    /// Restores, and holds when everything is restored and nothing has executed. The restored first process is a child of this one.
    ///
    /// `prepare` is called with the process id of CRIU before it is told anything, to put it where the tasks shall be (its control group),
    /// and may then still change the options.
    ///
    /// # Errors
    /// CRIU's first error, or that of `prepare` or `notify`. Nothing is left of the restored tasks then.
    pub fn restore<N: Notify>(
        &self,
        mut options: RestoreOptions,
        mut notify: N,
        prepare: impl FnOnce(i32, &mut RestoreOptions) -> Result<(), CallbackError>,
    ) -> Result<HeldRestore<N>, Error> {
        const LOG: &str = RESTORE_LOG;
        let mut job = Job::work(Action::Restore, &options.common, LOG);
        // A shell job shares the session and the process group of the one who restores it.
        job.foreground = options.common.shell_job;
        remove_old_log(&job);
        let start = || {
            let surroundings = Surroundings {
                descriptors: options
                    .inherited
                    .iter()
                    .map(|inherited| inherited.fd.as_fd())
                    .collect(),
                stdin: options.stdin.as_ref().map(AsFd::as_fd),
                network: options.network.as_ref().map(AsFd::as_fd),
            };
            // CRIU works in these directories and mounts there, so they must be opened where CRIU sees them.
            let (images, work) = open_directories(&options.common)?;
            Ok((
                Session::start(self.path(), job, surroundings)?,
                images,
                work,
            ))
        };
        let known = self.knowledge.provide();
        let started = match (&options.rootfs, &options.common.root) {
            (Some(rootfs), Some(root)) => {
                let trees = options.trees.take();
                let prepare = || {
                    mount::bind(rootfs, root)?;
                    // An engine's root file system passes mounts on to its container, which CRIU restores by taking the sharing of this one. Where the
                    // host's is private it has none, and CRIU fails (criu/mount-v2.c, restore_one_sharing).
                    mount::share(root)?;
                    if let Some(known) = &known {
                        known.attach();
                    }
                    trees.map_or(Ok(()), Trees::attach)
                };
                mount::with_private_mounts(prepare, start).unwrap_or_else(|source| {
                    Err(Error::Rootfs {
                        path: rootfs.clone(),
                        source,
                    })
                })
            }
            _ => start(),
        };
        let (mut session, images, work) = started?;
        session.introduce(&mut notify, |pid| prepare(pid, &mut options))?;
        let directories = numbers(&images, work.as_ref());
        session.send(&rpc::restore_request(&options, directories, LOG))?;
        match session.talk(&mut notify, Some("post-restore"))? {
            Pause::Held { pid: Some(pid) } => Ok(HeldRestore {
                session,
                notify,
                pid,
            }),
            Pause::Held { pid: None } => Err(Error::Protocol {
                action: Action::Restore,
                what: "post-restore without a process",
            }),
            Pause::Finished => Err(Error::Protocol {
                action: Action::Restore,
                what: "it finished without asking at post-restore",
            }),
        }
    }
}

impl<N: Notify> HeldDump<N> {
    /// Answers yes: CRIU kills the tasks, or lets them run on if that was asked for. For a lazy dump this serves pages until all were
    /// fetched.
    ///
    /// # Errors
    /// Where CRIU fails or dies on the way; whether the tasks still execute must be looked up then.
    pub fn commit(mut self) -> Result<N, Error> {
        self.session.send(&rpc::answer(true, &[]))?;
        self.session.talk(&mut self.notify, None)?;
        Ok(self.notify)
    }

    /// Answers no and returns when CRIU has let the tasks go. They run on unless their cgroup is frozen.
    pub fn refuse(mut self) -> N {
        self.session.refuse();
        self.notify
    }

    /// What gets the notifications.
    pub fn notify_mut(&mut self) -> &mut N {
        &mut self.notify
    }
}

impl<N: Notify> HeldRestore<N> {
    /// The restored first process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.pid)
    }

    /// Answers yes and returns when the tasks execute.
    ///
    /// # Errors
    /// Where CRIU fails or dies on the way; it then kills what it restored.
    pub fn resume(mut self) -> Result<N, Error> {
        self.session.send(&rpc::answer(true, &[]))?;
        self.session.talk(&mut self.notify, None)?;
        self.session.keep_restored();
        Ok(self.notify)
    }

    /// Answers no and returns when CRIU has killed what it restored. The first process is waited for.
    pub fn refuse(mut self) -> N {
        self.session.refuse();
        self.notify
    }

    /// What gets the notifications.
    pub fn notify_mut(&mut self) -> &mut N {
        &mut self.notify
    }
}
