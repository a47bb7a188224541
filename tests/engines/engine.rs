//! Support that the tests of all engines share.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::{COMMAND_LIMIT_DUR, Cmd, Host, Running, wait_until};

/// How long a command of an engine's client may take: it waits for a daemon, which waits for
/// others.
pub const CLIENT_LIMIT_DUR: Duration = Duration::from_secs(60);

/// The first of these programs that is not installed.
pub fn missing(programs: &[&'static str]) -> Option<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    programs
        .iter()
        .copied()
        .find(|program| !dirs.iter().any(|dir| dir.join(program).exists()))
}

/// A busybox root file system as an archive that engines import.
pub fn image_archive(host: &Host) -> PathBuf {
    let bundle = host.bundle("image");
    let archive = host.dir().join("image.tar");
    Cmd::new("tar")
        .arg("-C")
        .arg(bundle.rootfs())
        .arg("-cf")
        .arg(&archive)
        .arg(".")
        .run()
        .ok();
    archive
}

/// The setting for `file` as `make install` prints it, with the tested binary at `rcm`.
pub fn setting(file: &str, rcm: &Path) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/engines.sh");
    let printed = Cmd::new(script).arg(rcm).run().ok().stdout();
    let heading = format!("{file}:");
    let block = printed.lines().skip_while(|line| *line != heading).skip(1);
    let lines = block.take_while(|line| line.is_empty() || line.starts_with("    "));
    let text: Vec<&str> = lines.collect();
    assert!(text.len() > 2, "no {file} in {printed}");
    text.join("\n")
}

/// A `/run` of its own, which only programs that enter it see: engines, runtimes and container
/// libraries use the same names there on every host.
pub struct Machine(Running);

impl Machine {
    pub fn new() -> Self {
        let script = "mount -t tmpfs tmpfs /run && echo ready && exec sleep infinity";
        let holder = Cmd::new("unshare").args(["--mount", "sh", "-c", script]);
        let holder = holder.spawn();
        wait_until("it has a /run", || holder.stdout() == "ready\n");
        Self(holder)
    }

    /// To be followed by flags of nsenter(1) and a program.
    pub fn enter(&self) -> Cmd {
        Cmd::new("nsenter").arg(format!("--mount=/proc/{}/ns/mnt", self.0.pid()))
    }
}

/// Asks a daemon to end, and waits for it.
pub fn end(mut daemon: Running) {
    if daemon.is_running() {
        daemon.signal(Signal::SIGTERM);
        // If the daemon stays, its host finds it.
        let _ = daemon.ends_within(COMMAND_LIMIT_DUR);
    }
}

/// One of a kind for all tests that run at the same time; the last of them ends it, and starting
/// one takes seconds.
pub struct Shared<T>(Mutex<Weak<T>>);

impl<T> Shared<T> {
    pub const fn new() -> Self {
        Self(Mutex::new(Weak::new()))
    }

    pub fn get(&self, start: impl FnOnce() -> T) -> Arc<T> {
        // A start that panicked has left nothing in it.
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let started = Arc::new(start());
            *shared = Arc::downgrade(&started);
            started
        })
    }
}
