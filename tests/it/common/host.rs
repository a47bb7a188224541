//! One host as rcm sees it: a state directory and a place in the cgroup tree.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::{Bundle, Cmd, Output};

/// Directory in which rcm prepares mounts for a container. It does so in mount namespaces only: on
/// the host the directory is always empty.
const STAGE: &str = "/run/rcm-mounts";

/// A state directory, a parent cgroup and a directory for bundles, all of its own.
#[derive(Debug)]
pub struct Host {
    dir: TempDir,
    cgroup_parent: String,
    prefix: Vec<OsString>,
    program: OsString,
}

impl Host {
    /// A fresh host.
    ///
    /// # Panics
    /// Without root's rights: containers need them.
    #[must_use]
    #[track_caller]
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test needs root: `make test` uses sudo"
        );
        let dir = tempfile::Builder::new()
            .prefix("rcm-test-")
            // The user who owns the files of a container with a user namespace must be able to
            // reach them.
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o711))
            .tempdir()
            .expect("a temporary directory");
        Self {
            dir,
            cgroup_parent: format!(
                "/rcm-test-{}-{}",
                std::process::id(),
                COUNT.fetch_add(1, Ordering::Relaxed)
            ),
            prefix: Vec::new(),
            program: env!("CARGO_BIN_EXE_rcm").into(),
        }
    }

    /// A fresh host with a container `web` in the background that does nothing for long.
    #[must_use]
    #[track_caller]
    pub fn with_container(change: impl FnOnce(Bundle) -> Bundle) -> Self {
        let host = Self::new();
        host.container("web", change);
        host
    }

    /// Executes every command through another, e.g. `ip netns exec NAME`.
    #[must_use]
    pub fn with_prefix<S: AsRef<OsStr>>(mut self, prefix: impl IntoIterator<Item = S>) -> Self {
        self.prefix = prefix
            .into_iter()
            .map(|word| word.as_ref().to_owned())
            .collect();
        self
    }

    /// Uses another runtime than rcm, with the same command line.
    #[must_use]
    pub fn with_program(mut self, program: impl AsRef<OsStr>) -> Self {
        program.as_ref().clone_into(&mut self.program);
        self
    }

    /// Directory for files of the test; removed with the host.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The value of `--root`.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The parent of its containers' cgroups, absolute within each hierarchy.
    #[must_use]
    pub fn cgroup_parent(&self) -> &str {
        &self.cgroup_parent
    }

    /// Directories of the container's cgroup that exist, one per hierarchy.
    #[must_use]
    pub fn cgroup_dirs(&self, id: &str) -> Vec<PathBuf> {
        existing_cgroups(&format!("{}/{id}", self.cgroup_parent))
    }

    /// Reads a file of the container's cgroup, by its name on cgroup v1 or that on v2.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    #[track_caller]
    pub fn cgroup_file(&self, id: &str, v1: &str, v2: &str) -> String {
        self.cgroup_dirs(id)
            .iter()
            .flat_map(|dir| [dir.join(v1), dir.join(v2)])
            .find_map(|path| fs::read_to_string(path).ok())
            .unwrap_or_else(|| panic!("the cgroup of {id} has neither {v1} nor {v2}"))
            .trim()
            .to_owned()
    }

    /// A bundle for a container called `id`: busybox, `true` in the five usual namespaces. Made
    /// again for the same id, it gets a fresh spec and keeps its root file system.
    #[must_use]
    pub fn bundle(&self, id: &str) -> Bundle {
        let dir = self.dir.path().join("bundles").join(id);
        Bundle::new(id, dir, &format!("{}/{id}", self.cgroup_parent))
    }

    /// `rcm --root ROOT VERB`.
    #[must_use]
    pub fn cmd(&self, verb: &str) -> Cmd {
        self.global::<&str>([]).arg(verb)
    }

    /// `rcm --root ROOT FLAGS`, for global flags.
    #[must_use]
    pub fn global<S: AsRef<OsStr>>(&self, flags: impl IntoIterator<Item = S>) -> Cmd {
        self.bare().arg("--root").arg(self.root()).args(flags)
    }

    /// `rcm` without arguments.
    #[must_use]
    pub fn bare(&self) -> Cmd {
        match self.prefix.split_first() {
            Some((first, rest)) => Cmd::new(first).args(rest).arg(&self.program),
            None => Cmd::new(&self.program),
        }
    }

    /// Creates the container of a bundle.
    #[track_caller]
    pub fn create(&self, bundle: &Bundle) -> Output {
        self.cmd("create").bundle(bundle).run().ok()
    }

    /// Starts a created container.
    #[track_caller]
    pub fn start(&self, id: &str) {
        self.cmd("start").arg(id).run().ok();
    }

    /// Runs the container of a bundle in the background.
    #[track_caller]
    pub fn run_detached(&self, bundle: &Bundle) -> Output {
        self.cmd("run").arg("--detach").bundle(bundle).run().ok()
    }

    /// Runs the container of a bundle in the foreground, to its end.
    #[track_caller]
    pub fn run(&self, bundle: &Bundle) -> Output {
        self.cmd("run").bundle(bundle).run()
    }

    /// Runs a container in the background that does nothing for long.
    #[track_caller]
    pub fn container(&self, id: &str, change: impl FnOnce(Bundle) -> Bundle) -> Bundle {
        let bundle = change(self.bundle(id).args(["sleep", "1000"]));
        self.run_detached(&bundle);
        bundle
    }

    /// `rcm --root ROOT ARGS`, to its end.
    #[track_caller]
    pub fn rcm<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.global(args).run()
    }

    /// Executes a process in a container and waits for its end.
    #[track_caller]
    pub fn exec<S: AsRef<OsStr>>(&self, id: &str, args: impl IntoIterator<Item = S>) -> Output {
        self.cmd("exec").arg(id).args(args).run()
    }

    /// As [`Self::exec`], with flags of `exec`, separated by spaces.
    #[track_caller]
    pub fn exec_with<S: AsRef<OsStr>>(
        &self,
        flags: &str,
        id: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Output {
        let command = self.cmd("exec").args(flags.split(' '));
        command.arg(id).args(args).run()
    }

    /// Executes a shell with this script in a container.
    #[track_caller]
    pub fn exec_sh(&self, id: &str, script: &str) -> Output {
        self.exec(id, ["sh", "-c", script])
    }

    /// Sends a signal to a container's first process.
    #[track_caller]
    pub fn kill(&self, id: &str, signal: &str) -> Output {
        self.rcm(["kill", id, signal])
    }

    /// Freezes a container.
    #[track_caller]
    pub fn pause(&self, id: &str) -> Output {
        self.rcm(["pause", id])
    }

    /// Resumes a frozen container.
    #[track_caller]
    pub fn resume(&self, id: &str) -> Output {
        self.rcm(["resume", id])
    }

    /// Settles a migration that did not end: `live-migrate --resolve`.
    #[track_caller]
    pub fn resolve(&self, id: &str) -> Output {
        self.rcm(["live-migrate", id, "--resolve"])
    }

    /// Ends a migration from outside: `live-migrate --cancel`.
    #[track_caller]
    pub fn cancel(&self, id: &str) -> Output {
        self.rcm(["live-migrate", id, "--cancel"])
    }

    /// Prints the status of a container's migration: `live-migrate --status`.
    #[track_caller]
    pub fn migration_status(&self, id: &str) -> Output {
        self.rcm(["live-migrate", id, "--status"])
    }

    /// The container's state.
    #[must_use]
    #[track_caller]
    pub fn state(&self, id: &str) -> Value {
        self.cmd("state").arg(id).run().ok().json()
    }

    /// The container's status, `gone` if there is none.
    #[must_use]
    #[track_caller]
    pub fn status(&self, id: &str) -> String {
        let output = self.cmd("state").arg(id).run();
        if output.code() != 0 && output.stderr().contains("container does not exist") {
            return "gone".into();
        }
        let status = &output.ok().json()["status"];
        status.as_str().expect("a status").to_owned()
    }

    /// The process id of a container that has one.
    #[must_use]
    #[track_caller]
    pub fn pid(&self, id: &str) -> i32 {
        let pid = self.state(id)["pid"].as_i64().expect("a pid");
        assert!(pid > 0, "{id} has no process");
        i32::try_from(pid).expect("a pid")
    }

    /// As [`Self::pid`], from the record, so that it works for a container that has ended, too.
    #[must_use]
    #[track_caller]
    pub fn recorded_pid(&self, id: &str) -> i32 {
        let text = fs::read(self.root().join(id).join("state.json")).expect("a record");
        let record: Value = serde_json::from_slice(&text).expect("JSON");
        i32::try_from(record["init"]["pid"].as_i64().expect("a pid")).expect("a pid")
    }

    /// Waits until the container has this status.
    #[track_caller]
    pub fn wait_for_status(&self, id: &str, status: &str) {
        super::wait_until(&format!("{id} is {status}"), || self.status(id) == status);
    }

    /// Kills and removes a container.
    #[track_caller]
    pub fn delete(&self, id: &str) {
        self.cmd("delete").arg("--force").arg(id).run().ok();
    }

    /// Lists all remains of containers: state directories, processes (in cgroups, with a root in
    /// this host's directory, or rcm itself), cgroups and mounts, also in the directory in which
    /// rcm prepares mounts. The list is empty after all containers were removed.
    #[must_use]
    pub fn remains(&self) -> Vec<String> {
        let mut found = Vec::new();
        let dir = self.dir.path().to_string_lossy().into_owned();
        for entry in fs::read_dir(self.root()).into_iter().flatten().flatten() {
            // Names that no container can have are rcm's own.
            if !entry.file_name().to_string_lossy().starts_with('@') {
                found.push(format!("state directory {}", entry.path().display()));
            }
        }
        for cgroup in existing_cgroups(&self.cgroup_parent) {
            for entry in walkdir::WalkDir::new(&cgroup)
                .min_depth(1)
                .into_iter()
                .flatten()
            {
                if entry.file_type().is_dir() {
                    found.push(format!("cgroup {}", entry.path().display()));
                }
            }
        }
        for pid in self.processes() {
            let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            found.push(format!("process {pid}: {}", command.replace('\0', " ")));
        }
        for point in [dir.as_str(), STAGE].into_iter().flat_map(mounts_below) {
            found.push(format!("mount {}", point.display()));
        }
        for entry in fs::read_dir(STAGE).into_iter().flatten().flatten() {
            found.push(format!("mount point {}", entry.path().display()));
        }
        found
    }

    /// Living processes that belong to this host.
    fn processes(&self) -> Vec<i32> {
        let dir = self.dir.path().to_string_lossy().into_owned();
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            if pid == own || !super::is_alive(pid) {
                continue;
            }
            let in_cgroup = fs::read_to_string(entry.path().join("cgroup")).is_ok_and(|text| {
                let below = format!(":{}/", self.cgroup_parent);
                text.lines().any(|line| line.contains(&below))
            });
            let names_dir = fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&dir));
            if in_cgroup || names_dir {
                pids.push(pid);
            }
        }
        pids
    }

    /// Removes by hand all that rcm has left.
    fn sweep(&self) {
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        for point in mounts_below(&self.dir.path().to_string_lossy())
            .iter()
            .rev()
        {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
        self.remove_cgroups();
    }

    fn remove_cgroups(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        for top in existing_cgroups(&self.cgroup_parent) {
            let _ = fs::write(top.join("freezer.state"), "THAWED");
            while top.exists() && Instant::now() < deadline {
                for entry in walkdir::WalkDir::new(&top)
                    .contents_first(true)
                    .into_iter()
                    .flatten()
                {
                    if entry.file_type().is_dir() {
                        let _ = fs::remove_dir(entry.path());
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let mut problems = Vec::new();
        for entry in fs::read_dir(self.root()).into_iter().flatten().flatten() {
            let id = entry.file_name();
            if id.to_string_lossy().starts_with('@') {
                continue;
            }
            // Not `run`: its panic while another unwinds would abort the test program and lose the
            // first message.
            let output = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.cmd("delete").arg("--force").arg(&id).run()
            }));
            match output {
                Ok(output) if output.code() == 0 => {}
                Ok(output) => problems.push(format!("{output:?}")),
                Err(_) => problems.push(format!("delete --force {} hangs", id.display())),
            }
        }
        // Killed processes take a moment to leave.
        let mut remains = Vec::new();
        let _ = super::wait_within(Duration::from_secs(2), || {
            remains = self.remains();
            remains.is_empty()
        });
        problems.extend(remains);
        if problems.is_empty() {
            self.remove_cgroups();
            return;
        }
        self.sweep();
        let report = format!("left behind:\n{}", problems.join("\n"));
        if std::thread::panicking() {
            eprintln!("{report}");
        } else {
            panic!("{report}");
        }
    }
}

/// The directories of a cgroup that exist, one per mounted hierarchy.
fn existing_cgroups(path: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (point, kind) = (fields.next()?, fields.next()?);
            kind.starts_with("cgroup")
                .then(|| PathBuf::from(format!("{point}{path}")))
        })
        .filter(|dir| dir.is_dir())
        .collect()
}

/// Mount points below a directory, parents first.
fn mounts_below(dir: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| point.starts_with(dir))
        .map(PathBuf::from)
        .collect()
}
