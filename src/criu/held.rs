//! Dumps and restores that wait for a yes or no.

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
use super::session::{CriuSession, Job, Pause, Surroundings};
use crate::sys::mount;

const RESTORE_LOG: &str = "restore.log";

/// Opens the directories of a request. CRIU reads them through `/proc/PID/fd` of this process, so
/// they must stay open.
fn open_directories(common: &Common) -> Result<(File, Option<File>), Error> {
    let open = |what, path: &Path| {
        File::open(path)
            .and_then(|file| {
                if file.metadata()?.is_dir() {
                    Ok(file)
                } else {
                    Err(ErrorKind::NotADirectory.into())
                }
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

/// Removes the log of a failed earlier attempt, so that it is not taken for this one's.
fn remove_old_log(job: &Job) {
    if let Some(log) = job.log()
        && let Err(error) = std::fs::remove_file(log)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::debug!(%error, log = %log.display(), "cannot remove an old log");
    }
}

/// A complete dump. The tasks are stopped, and CRIU waits for the answer. Dropping it refuses.
#[derive(Debug)]
#[must_use = "dropping a held dump lets the tasks run on"]
pub struct PausedDump<N> {
    pub(super) session: CriuSession,
    pub(super) notify: N,
}

/// A complete restore. No restored task has executed yet, and CRIU waits for the answer. Dropping
/// it refuses.
#[derive(Debug)]
#[must_use = "dropping a held restore kills the restored tasks"]
pub struct PausedRestore<N> {
    pub(super) session: CriuSession,
    pub(super) notify: N,
    pub(super) pid: i32,
}

/// A restore that failed after it was complete. Nothing is left of the restored tasks.
#[derive(Debug)]
pub struct NotResumed<E> {
    /// Whether a task may have executed. If not, the same images can be restored again.
    pub may_have_run: bool,
    /// The failure.
    pub source: E,
}

impl<E> NotResumed<E> {
    /// A failure before CRIU had its yes.
    pub const fn before(source: E) -> Self {
        Self {
            may_have_run: false,
            source,
        }
    }

    /// The same failure as an error of another layer.
    pub fn map<F>(self, change: impl FnOnce(E) -> F) -> NotResumed<F> {
        NotResumed {
            may_have_run: self.may_have_run,
            source: change(self.source),
        }
    }
}

/// Whether the log of the last restore in `work_dir` says that the tasks execute. To be asked only
/// after that CRIU has ended.
///
/// CRIU writes the sentence after the tasks have been released (criu/cr-restore.c, CRIU 4.2), so
/// its absence proves nothing. It is only for journals of releases that had nothing better.
#[must_use]
pub fn has_resumed(work_dir: &Path) -> bool {
    const SENTENCE: &[u8] = b"Restore finished successfully. Tasks resumed.";
    // Names in a log may be other than UTF-8.
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
    /// Dumps, and pauses when the images are complete and the tasks are still stopped.
    ///
    /// # Errors
    /// CRIU's first error, or that of `notify`. CRIU has resumed the tasks then, unless they were
    /// stopped or frozen before.
    pub fn dump<N: Notify>(
        &self,
        options: &DumpOptions,
        mut notify: N,
    ) -> Result<PausedDump<N>, Error> {
        const LOG: &str = "dump.log";
        let job = Job::work(Action::Dump, &options.common, LOG);
        let (images, work) = open_directories(&options.common)?;
        remove_old_log(&job);
        let mut session = CriuSession::start(self.path(), job, dump_surroundings(options))?;
        session.introduce(&mut notify, |_| Ok(()))?;
        let directories = numbers(&images, work.as_ref());
        session.send(&rpc::dump_request(options, directories, LOG, false))?;
        match session.talk(&mut notify, Some("post-dump"))? {
            Pause::Held { .. } => Ok(PausedDump { session, notify }),
            Pause::Finished => Err(Error::Protocol {
                action: Action::Dump,
                what: "it finished without asking at post-dump",
            }),
        }
    }

    /// Copies the memory of the tasks, which CRIU stops only for moments.
    ///
    /// # Errors
    /// As [`Self::dump`].
    pub fn pre_dump(&self, options: &DumpOptions, notify: &mut dyn Notify) -> Result<(), Error> {
        const LOG: &str = "pre-dump.log";
        let job = Job::work(Action::PreDump, &options.common, LOG);
        let (images, work) = open_directories(&options.common)?;
        remove_old_log(&job);
        let mut session = CriuSession::start(self.path(), job, dump_surroundings(options))?;
        session.introduce(notify, |_| Ok(()))?;
        let directories = numbers(&images, work.as_ref());
        session.send(&rpc::dump_request(options, directories, LOG, true))?;
        session.talk(notify, None).map(drop)
    }

    /// Restores, and pauses when everything is restored but no task has executed. The restored
    /// first process is a child of this one.
    ///
    /// `prepare` is called with the process id of CRIU before CRIU gets its request. It can move
    /// CRIU to the control group of the future tasks, and may still change the options.
    ///
    /// # Errors
    /// CRIU's first error, or that of `prepare` or `notify`. Nothing is left of the restored tasks
    /// then.
    pub fn restore<N: Notify>(
        &self,
        mut options: RestoreOptions,
        mut notify: N,
        prepare: impl FnOnce(i32, &mut RestoreOptions) -> Result<(), CallbackError>,
    ) -> Result<PausedRestore<N>, Error> {
        const LOG: &str = RESTORE_LOG;
        let mut job = Job::work(Action::Restore, &options.common, LOG);
        // A shell job shares the session and the process group of the shell that restores it.
        job.foreground = options.common.choices.shell_job;
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
            // CRIU works in these directories and mounts there, so they must be opened in CRIU's
            // mount namespace.
            let (images, work) = open_directories(&options.common)?;
            Ok((
                CriuSession::start(self.path(), job, surroundings)?,
                images,
                work,
            ))
        };
        let known = self.kerndat.provide();
        let started = match (&options.rootfs, &options.common.root) {
            (Some(rootfs), Some(root)) => {
                let trees = options.trees.take();
                let prepare = || {
                    mount::bind(rootfs, root)?;
                    // The root file system of an engine is shared, so that its mounts reach the
                    // container. CRIU restores that from the sharing of this mount, and fails if
                    // the host's mount is private (restore_one_sharing in criu/mount-v2.c, CRIU
                    // 4.2).
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
            Pause::Held { pid: Some(pid) } => Ok(PausedRestore {
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

impl<N: Notify> PausedDump<N> {
    /// Answers yes. CRIU kills the tasks, or resumes them if the options say so. For a lazy dump
    /// this call serves pages until all were fetched.
    ///
    /// # Errors
    /// If CRIU fails or dies on the way. The caller must then find out whether the tasks still
    /// execute.
    pub fn commit(mut self) -> Result<N, Error> {
        self.session.send(&rpc::answer(true, &[]))?;
        self.session.talk(&mut self.notify, None)?;
        Ok(self.notify)
    }

    /// Answers no, and returns when CRIU has released the tasks. They run on unless their cgroup is
    /// frozen.
    pub fn refuse(mut self) -> N {
        self.session.refuse();
        self.notify
    }

    /// Returns the receiver of the notifications.
    pub fn notify_mut(&mut self) -> &mut N {
        &mut self.notify
    }
}

impl<N: Notify> PausedRestore<N> {
    /// Returns the restored first process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.pid)
    }

    /// Answers yes, and returns when the tasks execute.
    ///
    /// # Errors
    /// If CRIU fails or dies on the way. The restored tasks are killed then, possibly after they
    /// have executed.
    pub fn resume(mut self) -> Result<N, NotResumed<Error>> {
        // The restored tasks have copies of CRIU's end of the socket, so that sending to a dead
        // CRIU succeeds.
        (self.session.check_alive())
            .and_then(|()| self.session.send(&rpc::answer(true, &[])))
            .map_err(NotResumed::before)?;
        // From here on CRIU needs nobody any more (criu/cr-restore.c, CRIU 4.2): it ignores that
        // the answer to `pre-resume` is missing, and if it dies, the tasks that it traces are
        // released.
        match self.session.talk(&mut self.notify, None) {
            Ok(_) => {
                self.session.keep_restored();
                Ok(self.notify)
            }
            Err(source) => {
                // CRIU reports a failure after it has killed the tasks. None of them had executed
                // if it did not get as far as `pre-resume`, behind which it releases them.
                let was_killed = matches!(source, Error::Failed { .. });
                Err(NotResumed {
                    may_have_run: !was_killed || self.session.pre_resume,
                    source,
                })
            }
        }
    }

    /// Answers no, and returns when CRIU has killed the restored tasks. The first process is waited
    /// for.
    pub fn refuse(mut self) -> N {
        self.session.refuse();
        self.notify
    }

    /// Returns the receiver of the notifications.
    pub fn notify_mut(&mut self) -> &mut N {
        &mut self.notify
    }
}
