//! Real containers for the integration tests.
//!
//! A [`Host`] is one state directory with one parent cgroup, as `rcm --root` sees them. It makes
//! [`Bundle`]s, executes the real binary with a time limit, and when it is dropped removes its
//! containers and fails the test if anything of them is left: a process, a cgroup, a mount, a state
//! directory.
//!
//! ```ignore
//! let host = Host::new();
//! let bundle = host.bundle("web").args(["sleep", "1000"]);
//! host.cmd("run").arg("--detach").bundle(&bundle).run().ok();
//! assert_eq!(host.status("web"), "running");
//! ```
#![allow(dead_code, reason = "each test program uses a part of this")]
#![allow(unused_imports, unused_macros, reason = "as above")]

mod breakpoint;
mod bundle;
mod command;
mod host;
mod namespace;
pub mod pair;
pub mod random;
mod terminal;

use std::fmt::Display;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

pub use breakpoint::{Breakpoint, stop_when};
pub use bundle::{Bundle, make_rootfs};
pub use command::{Cmd, Output, Running};
pub use host::Host;
pub use namespace::Namespace;
pub use terminal::{ConsoleSocket, Session, Terminal};

/// How long one command may take before it counts as hanging. Generous: test programs run in
/// parallel on few processors.
pub const COMMAND_LIMIT_DUR: Duration = Duration::from_secs(30);

/// Asks until the answer is yes.
///
/// # Panics
/// After [`COMMAND_LIMIT_DUR`].
#[track_caller]
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    assert!(
        wait_within(COMMAND_LIMIT_DUR, condition),
        "not within {COMMAND_LIMIT_DUR:?}: {what}"
    );
}

/// Asks until the answer is yes, for at most `limit_dur`. Returns whether it was.
///
/// The pauses grow to a hundredth of the time that has passed, at least 5 ms: many conditions
/// execute a program.
#[must_use]
pub fn wait_within(limit_dur: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while !condition() {
        let passed_dur = began.elapsed();
        if passed_dur >= limit_dur {
            return false;
        }
        let pause_dur = passed_dur / 100;
        std::thread::sleep(pause_dur.clamp(Duration::from_millis(5), Duration::from_millis(100)));
    }
    true
}

/// Whether a process exists that is no zombie.
#[must_use]
pub fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        // The name in parentheses may hold anything; the state follows it (proc_pid_stat(5)).
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
    })
}

/// Leaves the test for a reason that lies in the machine. `.ci/run` fails on a skip that it does
/// not expect.
macro_rules! skip {
    ($($reason:tt)*) => {{
        fn here() {}
        $crate::common::report_skip(std::any::type_name_of_val(&here), format_args!($($reason)*));
        return;
    }};
}
pub(crate) use skip;

/// The part of [`skip!`] that needs no macro: `path` is that of a function inside the test.
pub fn report_skip(path: &str, reason: impl Display) {
    // Cargo names a test by its path within the test program.
    let name = path
        .split("::")
        .skip(1)
        .take_while(|part| *part != "here" && !part.starts_with("{{"))
        .collect::<Vec<_>>()
        .join("::");
    let line = format!("SKIP {name}: {reason}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("RCM_SKIP_LOG") {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .and_then(|mut log| log.write_all(line.as_bytes()))
            .unwrap_or_else(|error| panic!("cannot write to {}: {error}", path.display()));
    }
}

/// The machine on which the numbers were measured.
#[must_use]
pub fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or(std::env::consts::ARCH, |(_, model)| model);
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cgroup = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        "v2"
    } else {
        "v1"
    };
    format!(
        "{processors} x {model}, Linux {}, cgroup {cgroup}",
        kernel.trim()
    )
}
