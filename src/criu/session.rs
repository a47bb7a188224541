//! One conversation with `criu swrk`.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MemFdCreateFlag, memfd_create};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::error::{Action, CallbackError, Error};
use super::log::Failure;
use super::notify::{Event, Notify};
use super::options::Common;
use super::rpc::{self, Response};
use crate::sys::{process, socket, spawn};

/// Larger than any message: the longest part of one is CRIU's first error, 512 bytes (criu/log.c).
const PACKET_BYTES: usize = 64 * 1024;
/// How long questions that need no work may take; a cold start probes the kernel.
const QUERY_LIMIT_DUR: Duration = Duration::from_secs(30);
/// How long CRIU may take to end after its last message, and to roll back after a refusal.
const END_LIMIT_DUR: Duration = Duration::from_secs(60);

/// What a conversation is about.
#[derive(Debug, Clone)]
pub(super) struct Job {
    action: Action,
    subject: String,
    log: Option<PathBuf>,
    answer_limit_dur: Option<Duration>,
    /// CRIU stays in this process's group and thereby on its terminal.
    pub(super) foreground: bool,
}

impl Job {
    pub(super) fn query(action: Action, criu: &Path) -> Self {
        Self {
            action,
            subject: criu.display().to_string(),
            log: None,
            answer_limit_dur: Some(QUERY_LIMIT_DUR),
            foreground: false,
        }
    }

    /// Where CRIU logs.
    pub(super) fn log(&self) -> Option<&Path> {
        self.log.as_deref()
    }

    pub(super) fn work(action: Action, common: &Common, log_file: &str) -> Self {
        let dir = common.work_dir.as_ref().unwrap_or(&common.images_dir);
        Self {
            action,
            subject: common.subject.clone(),
            log: Some(dir.join(log_file)),
            answer_limit_dur: common.answer_limit_dur,
            foreground: false,
        }
    }
}

/// What a worker finds when it starts.
#[derive(Debug, Default)]
pub(super) struct Surroundings<'a> {
    /// Descriptors, under the numbers that they have here.
    pub descriptors: Vec<BorrowedFd<'a>>,
    /// What it has as stdin; `/dev/null` if none.
    pub stdin: Option<BorrowedFd<'a>>,
    /// The network namespace that it is in; this process's if none.
    pub network: Option<BorrowedFd<'a>>,
}

/// The worker's process.
#[derive(Debug)]
struct Worker {
    child: Child,
    pidfd: OwnedFd,
    stderr: File,
}

/// A conversation. Dropped in the middle it hangs up, upon which CRIU rolls back, and waits for CRIU's end.
#[derive(Debug)]
pub(super) struct Session {
    job: Job,
    /// `None` once hung up.
    socket: Option<OwnedFd>,
    /// `None` where the unit tests play CRIU.
    worker: Option<Worker>,
    /// The restored first process, our child, as long as it may have to be killed.
    restored: Option<Pid>,
}

/// Where [`Session::talk`] stopped.
#[derive(Debug)]
pub(super) enum Pause {
    /// At the stage that the caller wants to hold.
    Held { pid: Option<i32> },
    /// CRIU has finished successfully.
    Finished,
}

impl Session {
    /// Starts a worker.
    pub(super) fn start(criu: &Path, job: Job, surroundings: Surroundings) -> Result<Self, Error> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(socket_error("make a socket for"))?;
        let start_error = |source: std::io::Error| Error::Start {
            path: criu.to_path_buf(),
            source,
        };
        // What CRIU says before it has opened its log goes to stderr.
        let stderr = memfd_create(c"criu-stderr", MemFdCreateFlag::MFD_CLOEXEC)
            .map(File::from)
            .map_err(socket_error("make a file for"))?;
        let mut command = Command::new(criu);
        command
            .arg("swrk")
            .arg(theirs.as_raw_fd().to_string())
            .stdin(match surroundings.stdin {
                Some(stdin) => stdin.try_clone_to_owned().map_err(start_error)?.into(),
                None => Stdio::null(),
            })
            .stdout(stderr.try_clone().map_err(start_error)?)
            .stderr(stderr.try_clone().map_err(start_error)?);
        if !job.foreground {
            // Ctrl-C must not kill CRIU while it holds tasks.
            command.process_group(0);
        }
        let mut passed = surroundings.descriptors;
        passed.push(theirs.as_fd());
        spawn::pass_descriptors(&mut command, &passed);
        if let Some(network) = surroundings.network {
            spawn::enter_network(&mut command, network);
        }
        let child = command.spawn().map_err(start_error)?;
        // Only CRIU has it now, so that its death is noticed.
        drop(theirs);
        let pidfd =
            process::pidfd_open(Pid::from_raw(child.id() as i32)).map_err(socket_error("watch"))?;
        Ok(Self {
            job,
            socket: Some(ours),
            worker: Some(Worker {
                child,
                pidfd,
                stderr,
            }),
            restored: None,
        })
    }

    /// Tells `notify` and `prepare` the worker's process id, before it is told anything.
    pub(super) fn introduce(
        &self,
        notify: &mut dyn Notify,
        prepare: impl FnOnce(i32) -> Result<(), CallbackError>,
    ) -> Result<(), Error> {
        let Some(worker) = &self.worker else {
            return Ok(());
        };
        let pid = worker.child.id() as i32;
        notify
            .started(Pid::from_raw(pid))
            .and_then(|()| prepare(pid))
            .map_err(|source| Error::Refused {
                action: self.job.action,
                subject: self.job.subject.clone(),
                stage: "the preparation".to_owned(),
                source,
            })
    }

    /// One question, one answer.
    pub(super) fn ask(&mut self, request: &[u8]) -> Result<Response, Error> {
        self.send(request)?;
        let (response, _) = self.receive()?;
        if !response.is_success() {
            return Err(self.failure(response.message()));
        }
        self.hang_up();
        self.wait_for_end();
        Ok(response)
    }

    /// Passes notifications on until CRIU finishes or reports the stage `hold`, which is left unanswered.
    pub(super) fn talk(
        &mut self,
        notify: &mut dyn Notify,
        hold: Option<&str>,
    ) -> Result<Pause, Error> {
        loop {
            let (response, fd) = self.receive()?;
            let Some((stage, pid)) = response.notification() else {
                if !response.is_success() {
                    return Err(self.failure(response.message()));
                }
                self.hang_up();
                self.wait_for_end();
                return Ok(Pause::Finished);
            };
            tracing::debug!(stage, "criu reports");
            if self.job.action == Action::Restore
                && let Some(pid) = pid
            {
                self.restored = Some(Pid::from_raw(pid));
            }
            if hold == Some(stage) {
                return Ok(Pause::Held { pid });
            }
            let answered = self
                .event(stage, pid, fd)
                .and_then(|event| match notify.on(event) {
                    Ok(reply) => Ok(reply),
                    Err(source) => Err(Error::Refused {
                        action: self.job.action,
                        subject: self.job.subject.clone(),
                        stage: stage.to_owned(),
                        source,
                    }),
                });
            match answered {
                Ok(reply) => {
                    let external: Vec<_> = reply.external.iter().map(ToString::to_string).collect();
                    self.send(&rpc::answer(true, &external))?;
                }
                Err(error) => {
                    self.refuse();
                    return Err(error);
                }
            }
        }
    }

    /// What was restored is alive and nobody's to kill.
    pub(super) fn keep_restored(&mut self) {
        self.restored = None;
    }

    fn event(&self, stage: &str, pid: Option<i32>, fd: Option<OwnedFd>) -> Result<Event, Error> {
        let protocol = |what| Error::Protocol {
            action: self.job.action,
            what,
        };
        Ok(match stage {
            "pre-dump" => Event::PreDump,
            "query-ext-files" => Event::QueryExternalFiles,
            "network-lock" => Event::NetworkLock,
            "network-unlock" => Event::NetworkUnlock,
            "pre-restore" => Event::PreRestore,
            "setup-namespaces" => Event::SetupNamespaces {
                pid: pid.ok_or_else(|| protocol("setup-namespaces without a process"))?,
            },
            "post-setup-namespaces" => Event::PostSetupNamespaces,
            "pre-resume" => Event::PreResume,
            "post-resume" => Event::PostResume,
            "orphan-pts-master" => Event::OrphanPtsMaster(
                fd.ok_or_else(|| protocol("orphan-pts-master without a descriptor"))?,
            ),
            "status-ready" => Event::StatusReady,
            other => Event::Other(other.to_owned()),
        })
    }

    pub(super) fn send(&mut self, packet: &[u8]) -> Result<(), Error> {
        let Some(socket) = &self.socket else {
            return Err(self.died());
        };
        match send(socket.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => Ok(()),
            Err(Errno::EPIPE | Errno::ECONNRESET) => Err(self.died()),
            Err(source) => Err(socket_error("send to")(source)),
        }
    }

    fn receive(&mut self) -> Result<(Response, Option<OwnedFd>), Error> {
        loop {
            self.wait_for_message()?;
            let Some(socket) = &self.socket else {
                return Err(self.died());
            };
            return match socket::recv_fd(socket.as_fd(), PACKET_BYTES) {
                Ok((packet, _)) if packet.is_empty() => Err(self.died()),
                Ok((packet, fd)) => match Response::parse(&packet) {
                    Some(response) => Ok((response, fd)),
                    None => Err(Error::Protocol {
                        action: self.job.action,
                        what: "it is no message of CRIU's protocol",
                    }),
                },
                Err(Errno::EINTR) => continue,
                Err(Errno::ECONNRESET) => Err(self.died()),
                Err(source) => Err(socket_error("receive from")(source)),
            };
        }
    }

    /// Returns once there is something to receive.
    fn wait_for_message(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        loop {
            let Some(socket) = &self.socket else {
                return Err(self.died());
            };
            let mut waited = vec![PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            // Restored tasks have copies of CRIU's end of the socket for a while, so its closing does not tell of CRIU's death.
            if let Some(worker) = &self.worker {
                waited.push(PollFd::new(worker.pidfd.as_fd(), PollFlags::POLLIN));
            }
            let timeout = match self.job.answer_limit_dur {
                None => PollTimeout::NONE,
                Some(limit_dur) => remaining(started, limit_dur),
            };
            match poll(&mut waited, timeout) {
                Err(Errno::EINTR) => {}
                Err(source) => return Err(socket_error("wait for")(source)),
                Ok(0) => {
                    if self
                        .job
                        .answer_limit_dur
                        .is_some_and(|limit_dur| started.elapsed() >= limit_dur)
                    {
                        // Hung up on, CRIU rolls back at its next report. It is not waited for: it may be the kernel that hangs.
                        self.hang_up();
                        if self.job.action == Action::Restore {
                            self.destroy();
                        }
                        return Err(Error::Timeout {
                            action: self.job.action,
                            subject: self.job.subject.clone(),
                            waited_dur: started.elapsed(),
                        });
                    }
                }
                // A message that was sent before CRIU's death is received first.
                Ok(_) if waited[0].any() == Some(true) => return Ok(()),
                Ok(_) => return Err(self.died()),
            }
        }
    }

    /// Says no to a notification and waits until CRIU has rolled back.
    pub(super) fn refuse(&mut self) {
        if self.send(&rpc::answer(false, &[])).is_ok() {
            // CRIU may report `network-unlock` while it rolls back, and then says that it failed.
            while let Ok((response, _)) = self.receive() {
                if response.notification().is_none() {
                    break;
                }
                if self.send(&rpc::answer(true, &[])).is_err() {
                    break;
                }
            }
        }
        self.hang_up();
        self.wait_for_end();
        self.reap_restored();
    }

    /// Sees to it that nothing is left of a restore that did not succeed. CRIU kills what it restored, but cannot if it was killed itself; and the
    /// first process is ours to wait for.
    fn reap_restored(&mut self) {
        if let Some(pid) = self.restored.take() {
            // Our child: until it was waited for its id belongs to nobody else.
            if nix::sys::signal::kill(pid, Signal::SIGKILL).is_ok() {
                while waitpid(pid, None) == Err(Errno::EINTR) {}
            }
        }
    }

    /// Ends a restore that does not get on. Nothing that it has made has executed, so unlike the CRIU of a dump this one may be killed; and it must be,
    /// because what it traces cannot be waited for before.
    fn destroy(&mut self) {
        if let Some(pid) = self.restored {
            // As in `reap_restored`.
            let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
        }
        if let Some(worker) = &mut self.worker
            && let Err(error) = worker.child.kill()
        {
            tracing::warn!(%error, "cannot kill CRIU");
        }
        self.wait_for_end();
        self.reap_restored();
    }

    fn hang_up(&mut self) {
        self.socket = None;
    }

    /// Waits for the worker's end. CRIU is never killed: the tasks that it holds would keep its code.
    fn wait_for_end(&mut self) -> Option<ExitStatus> {
        let worker = self.worker.as_mut()?;
        let started = Instant::now();
        loop {
            let mut waited = [PollFd::new(worker.pidfd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut waited, remaining(started, END_LIMIT_DUR)) {
                Ok(0) if started.elapsed() >= END_LIMIT_DUR => {
                    tracing::warn!(pid = worker.child.id(), "CRIU does not end");
                    self.worker = None;
                    return None;
                }
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) | Err(_) => break,
            }
        }
        let status = worker.child.wait();
        status.ok()
    }

    /// The error of a response that reports failure.
    fn failure(&mut self, message: Option<&str>) -> Error {
        self.hang_up();
        self.wait_for_end();
        self.reap_restored();
        Error::Failed {
            action: self.job.action,
            subject: self.job.subject.clone(),
            failure: Box::new(self.find_failure(message)),
        }
    }

    /// The error of a worker that ended or hung up in the middle.
    fn died(&mut self) -> Error {
        self.hang_up();
        let ended = self.wait_for_end();
        self.reap_restored();
        match ended {
            Some(status) => Error::Died {
                action: self.job.action,
                subject: self.job.subject.clone(),
                status,
                failure: Box::new(self.find_failure(None)),
            },
            None => Error::Socket {
                action: "go on talking to",
                source: Errno::EPIPE,
            },
        }
    }

    fn find_failure(&mut self, message: Option<&str>) -> Failure {
        let mut stderr = Vec::new();
        if let Some(worker) = &mut self.worker {
            let read = worker
                .stderr
                .rewind()
                .and_then(|()| worker.stderr.read_to_end(&mut stderr));
            if let Err(error) = read {
                tracing::debug!(%error, "cannot read what CRIU wrote to stderr");
            }
        }
        Failure::find(
            self.job.log.as_deref(),
            message,
            &String::from_utf8_lossy(&stderr),
        )
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.socket.is_some() {
            self.hang_up();
            self.wait_for_end();
        }
        self.reap_restored();
    }
}

fn remaining(started: Instant, limit_dur: Duration) -> PollTimeout {
    let left_dur = limit_dur.saturating_sub(started.elapsed());
    // A poll that ends a little too early is repeated; rounding up keeps that from spinning.
    let left_ms = left_dur.as_millis().saturating_add(1);
    PollTimeout::try_from(left_ms).unwrap_or(PollTimeout::MAX)
}

fn socket_error(action: &'static str) -> impl Fn(Errno) -> Error {
    move |source| Error::Socket { action, source }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
