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
use super::notify::{Notification, Notify};
use super::options::Common;
use super::rpc::{self, Response};
use crate::sys::{process, socket, spawn};

/// Buffer for one message. The longest part of a message is CRIU's first error, 512 bytes
/// (criu/log.c, CRIU 4.2).
const PACKET_BYTES: usize = 64 * 1024;
/// Time limit for queries. A cold start probes the kernel.
const QUERY_LIMIT_DUR: Duration = Duration::from_secs(30);
/// Time limit for CRIU to end after its last message, and to roll back after a refusal.
const END_LIMIT_DUR: Duration = Duration::from_secs(60);

/// The subject and the limits of a conversation.
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

    /// Returns the path of CRIU's log.
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

/// The environment in which a worker starts.
#[derive(Debug, Default)]
pub(super) struct Surroundings<'a> {
    /// Descriptors for the worker, under the numbers that they have here.
    pub descriptors: Vec<BorrowedFd<'a>>,
    /// Stdin of the worker; `None`: `/dev/null`.
    pub stdin: Option<BorrowedFd<'a>>,
    /// Network namespace of the worker; `None`: this process's.
    pub network: Option<BorrowedFd<'a>>,
}

/// The worker's process.
#[derive(Debug)]
struct Worker {
    child: Child,
    pidfd: OwnedFd,
    stderr: File,
}

/// A conversation. If it is dropped in the middle, it closes the connection, upon which CRIU rolls
/// back, and waits for CRIU's end.
#[derive(Debug)]
pub(super) struct CriuSession {
    job: Job,
    /// `None` once the connection is closed.
    socket: Option<OwnedFd>,
    /// `None` in the unit tests, which play CRIU.
    worker: Option<Worker>,
    /// The restored first process, our child, as long as it may have to be killed.
    restored: Option<Pid>,
    /// Whether CRIU has reported `pre-resume`, after which nothing keeps it from releasing the
    /// tasks.
    pub(super) pre_resume: bool,
}

/// The result of [`CriuSession::talk`].
#[derive(Debug)]
pub(super) enum Pause {
    /// CRIU waits for an answer at the stage `hold`.
    Held { pid: Option<i32> },
    /// CRIU has finished successfully.
    Finished,
}

impl CriuSession {
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
        // CRIU writes to stderr until it has opened its log.
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
        // Only CRIU may have its end of the socket, so that its death is noticed.
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
            pre_resume: false,
        })
    }

    /// Tells `notify` and `prepare` the worker's process id, before the worker gets its request.
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

    /// Sends one request and receives its response.
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

    /// Passes notifications on until CRIU finishes or reports the stage `hold`, which is left
    /// unanswered.
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
            self.pre_resume |= stage == "pre-resume";
            if self.job.action == Action::Restore
                && let Some(pid) = pid
            {
                self.restored = Some(Pid::from_raw(pid));
            }
            if hold == Some(stage) {
                return Ok(Pause::Held { pid });
            }
            let answered = Notification::parse(stage, pid, fd)
                .map_err(|what| Error::Protocol {
                    action: self.job.action,
                    what,
                })
                .and_then(|notification| {
                    notify.on(notification).map_err(|source| Error::Refused {
                        action: self.job.action,
                        subject: self.job.subject.clone(),
                        stage: stage.to_owned(),
                        source,
                    })
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

    /// Checks that CRIU has not ended. If it has, the restored tasks are killed.
    pub(super) fn check_alive(&mut self) -> Result<(), Error> {
        let has_ended = self.worker.as_ref().is_some_and(|worker| {
            let mut ended = [PollFd::new(worker.pidfd.as_fd(), PollFlags::POLLIN)];
            matches!(poll(&mut ended, PollTimeout::ZERO), Ok(1..))
        });
        if has_ended { Err(self.died()) } else { Ok(()) }
    }

    /// Keeps the restored tasks alive: from now on they belong to the caller.
    pub(super) fn keep_restored(&mut self) {
        self.restored = None;
    }

    pub(super) fn send(&mut self, packet: &[u8]) -> Result<(), Error> {
        // The encoding has failed (`rpc::bytes`), and CRIU would take it for the end.
        if packet.is_empty() {
            return Err(socket_error("encode a message for")(Errno::EINVAL));
        }
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
            // Restored tasks have copies of CRIU's end of the socket for a while. So CRIU's death
            // does not close the socket.
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
                        // CRIU rolls back at its next report, when it finds the connection closed.
                        // rcm does not wait for that, because the kernel itself may hang.
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
            // CRIU may report `network-unlock` while it rolls back. At the end it reports failure.
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

    /// Removes the rest of a restore that did not succeed. CRIU kills the restored tasks itself,
    /// unless CRIU was killed. But the first process is our child, so we have to wait for it.
    fn reap_restored(&mut self) {
        if let Some(pid) = self.restored.take() {
            // A child keeps its id until it was waited for, so this cannot hit another process.
            if nix::sys::signal::kill(pid, Signal::SIGKILL).is_ok() {
                while waitpid(pid, None) == Err(Errno::EINTR) {}
            }
        }
    }

    /// Ends a restore that makes no progress. None of its tasks has executed, so unlike the CRIU of
    /// a dump this one may be killed. It also must be killed: nobody can wait for the tasks that it
    /// traces before that.
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

    /// Waits for the worker's end. It does not kill CRIU: CRIU's code would stay in the tasks of a
    /// dump.
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

    /// Makes the error of a response that reports failure.
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

    /// Makes the error of a worker that ended or closed the connection in the middle.
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
                action: "keep talking to",
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

impl Drop for CriuSession {
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
    // A poll that ends a little too early would be repeated. Rounding up keeps it from spinning.
    let left_ms = left_dur.as_millis().saturating_add(1);
    PollTimeout::try_from(left_ms).unwrap_or(PollTimeout::MAX)
}

fn socket_error(action: &'static str) -> impl Fn(Errno) -> Error {
    move |source| Error::Socket { action, source }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
