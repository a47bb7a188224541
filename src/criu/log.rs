//! Finds the first error in CRIU's log, and a hint that helps.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// CRIU's own reason for a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The first error, without the time stamp.
    pub first_error: Option<String>,
    /// Path of the log, if there is one.
    pub log: Option<PathBuf>,
}

impl Failure {
    /// Looks for the first error in `log`, then in CRIU's answer, then in CRIU's stderr.
    #[must_use]
    pub fn find(log: Option<&Path>, answered: Option<&str>, stderr: &str) -> Self {
        let file = log.and_then(|path| File::open(path).ok().map(|file| (path, file)));
        let mut found_log = None;
        let logged = file.and_then(|(path, file)| {
            found_log = Some(path.to_path_buf());
            first_error(BufReader::new(file))
        });
        let first_error = logged
            .or_else(|| answered.map(|text| text.trim().to_owned()))
            .or_else(|| first_error(stderr.as_bytes()))
            .or_else(|| stderr.lines().next().map(|line| line.trim().to_owned()))
            .filter(|text| !text.is_empty());
        Self {
            first_error,
            log: found_log,
        }
    }

    /// Returns a hint for the operator, if one is known.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        hint(self.first_error.as_deref()?)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.first_error {
            Some(text) => f.write_str(text)?,
            None => f.write_str("it did not say why")?,
        }
        if let Some(log) = &self.log {
            write!(f, " (log: {})", log.display())?;
        }
        if let Some(hint) = self.hint() {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

/// Errors that do not stop CRIU, or that only say that something failed before.
const NOISE: &[&str] = &[
    "action scripts failed",
    "RPC client reported script error",
    "Dumping FAILED",
    "Pre-dumping FAILED",
    "Restoring FAILED",
    "Aborting restore due to",
    "Killing processes because of failure on restore",
    "Can't find pipe fd", // the plugin directory is optional
    "Could not open /proc/config",
    // CRIU asks for more descriptors than it will need.
    "RLIMIT_NOFILE for self",
];

/// Returns the first error line of CRIU. A line that only reports an earlier failure counts if
/// there is no other.
fn first_error(log: impl BufRead) -> Option<String> {
    let mut only_noise = None;
    // Names and paths of containers in a log may be other than UTF-8.
    for line in log.split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        let Some(error) = error_in(&line) else {
            continue;
        };
        if !NOISE.iter().any(|noise| error.contains(noise)) {
            return Some(error.to_owned());
        }
        only_noise.get_or_insert_with(|| error.to_owned());
    }
    only_noise
}

/// Returns `(00.012345)      1: Error (criu/files-reg.c:1790): Can't ...` without the part before
/// `Error`.
fn error_in(line: &str) -> Option<&str> {
    let at = line.find("Error (")?;
    // That part is the time and, in a restore, the task.
    let is_prefix = line[..at]
        .chars()
        .all(|char| char.is_ascii_digit() || " ().:pie".contains(char));
    is_prefix.then(|| line[at..].trim_end())
}

/// Parts of CRIU's messages, each with a hint. The first match counts.
const HINTS: &[(&str, &str)] = &[
    (
        "rt vDSO area bounds",
        "this CRIU is too old for the kernel: kernels from 6.13 on need CRIU 4.1.1 or newer",
    ),
    (
        "Connected TCP socket",
        "there are established TCP connections: use --tcp-established",
    ),
    (
        "In-flight connection",
        "a connection is half open: use --tcp-skip-in-flight, or try again",
    ),
    (
        "xternal socket is used",
        "a Unix socket leads out of the container: use --ext-unix-sk",
    ),
    (
        "Can't dump half of stream unix connection",
        "a Unix socket leads out of the container: use --ext-unix-sk",
    ),
    (
        "Some file locks are hold",
        "files are locked: use --file-locks",
    ),
    (
        "not a session leader",
        "the session leader is outside the container: use --shell-job",
    ),
    (
        "A session leader of",
        "the session leader is outside the container: start the process with setsid",
    ),
    (
        "Found dangling tty",
        "a terminal of the host is in use: use --shell-job, or run the container with a terminal of its own",
    ),
    (
        "--shell-job",
        "a terminal or session of the host is in use: use --shell-job",
    ),
    (
        "Can't create link remap",
        "a deleted file is still open: use --link-remap",
    ),
    (
        "Can't dump ghost file",
        "a deleted file is still open and too large for the images: close it, or set ghost-limit in /etc/criu/rcm.conf",
    ),
    (
        "Can't lookup mount=",
        "a descriptor leads to a file outside the container's mounts",
    ),
    (
        "io_uring",
        "CRIU cannot save io_uring instances: let the program use epoll",
    ),
    (
        "irty track",
        "the kernel does not track changed memory (CONFIG_MEM_SOFT_DIRTY): no pre-dump and no --parent-path here",
    ),
    (
        "iptables",
        "install iptables, which CRIU runs to lock the network",
    ),
    (
        "nftables",
        "install nftables, which CRIU uses to lock the network",
    ),
    (
        "do not match expected",
        "a process id is taken: restore into a pid namespace of its own",
    ),
    (
        "Can't fork for",
        "a process id is taken: restore into a pid namespace of its own",
    ),
    (
        "Can't bind inet",
        "the address of a socket does not exist here or is taken",
    ),
    (
        "(criu/cgroup.c",
        "the control groups differ from those of the dump: try --manage-cgroups-mode=ignore",
    ),
    (
        "capabilities do not match run time",
        "the processor lacks features of the one that the images were made on",
    ),
    (
        "FPU feature required by image",
        "the processor lacks features of the one that the images were made on",
    ),
    (
        "has bad mode",
        "a file changed since the dump: the root file system must be the one of the dump",
    ),
    (
        "has bad size",
        "a file changed since the dump: the root file system must be the one of the dump",
    ),
    (
        "Can't open file",
        "a file that was open is missing: the root file system must be the one of the dump",
    ),
    (
        "doesn't have a proper root mount",
        "a mount was made that the container's configuration does not have",
    ),
    (
        "Failed to read inventory",
        "the image directory holds no complete dump",
    ),
    (
        "(empty-image)",
        "the image directory holds no complete dump",
    ),
    (
        "inventory.img",
        "the image directory holds no complete dump",
    ),
];

fn hint(error: &str) -> Option<&'static str> {
    HINTS
        .iter()
        .find(|(part, _)| error.contains(part))
        .map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
(00.000000) Version: 4.2.1 (gitid 0)
(00.012345) Warn  (criu/kerndat.c:1): Error (not one)
(00.034567) Error (criu/action-scripts.c:140): One of more action scripts failed
(00.139210) Error (criu/files-reg.c:1790): Can't lookup mount=27 for fd=1 path=/out.log
(00.139211) Error (criu/cr-dump.c:2128): Dumping FAILED.
";

    #[test]
    fn the_first_error_that_says_something() {
        assert_eq!(
            first_error(LOG.as_bytes()).unwrap(),
            "Error (criu/files-reg.c:1790): Can't lookup mount=27 for fd=1 path=/out.log"
        );
        let restore = "(00.1)      1: Error (criu/tty.c:411): tty: Can't bind\n";
        assert_eq!(
            first_error(restore.as_bytes()).unwrap(),
            "Error (criu/tty.c:411): tty: Can't bind"
        );
    }

    #[test]
    fn noise_is_better_than_nothing() {
        let log = "(00.1) Error (criu/cr-dump.c:2128): Dumping FAILED.\n";
        assert!(
            first_error(log.as_bytes())
                .unwrap()
                .ends_with("Dumping FAILED.")
        );
        assert_eq!(first_error(&b"(00.1) all went well\n"[..]), None);
    }

    #[test]
    fn the_sentence_has_error_log_and_hint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dump.log");
        std::fs::write(&path, LOG).unwrap();
        let text = Failure::find(Some(&path), Some("ignored"), "ignored").to_string();
        let expected = format!(
            "Error (criu/files-reg.c:1790): Can't lookup mount=27 for fd=1 path=/out.log (log: {}); \
             a descriptor leads to a file outside the container's mounts",
            path.display()
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn other_sources_where_there_is_no_log() {
        let none = Failure::find(None, None, "");
        assert_eq!(none.to_string(), "it did not say why");
        let answered = Failure::find(None, Some(" no caps \n"), "");
        assert_eq!(answered.to_string(), "no caps");
        let stderr = Failure::find(None, None, "Error (criu/util.c:1): no such thing\n");
        assert_eq!(stderr.to_string(), "Error (criu/util.c:1): no such thing");
    }

    #[test]
    fn hints_for_what_users_meet() {
        for (error, word) in [
            (
                "Error (criu/vdso.c:1): vdso: Unexpected rt vDSO area bounds",
                "4.1.1",
            ),
            (
                "Error (criu/sk-inet.c:1): inet: Connected TCP socket, consider using --tcp-established option.",
                "--tcp-established",
            ),
            (
                "Error (criu/sk-unix.c:1): unix: External socket is used. Consider using --ext-unix-sk option.",
                "--ext-unix-sk",
            ),
            (
                "Error (criu/file-lock.c:1): Some file locks are hold by dumping tasks! You can try --file-locks",
                "--file-locks",
            ),
        ] {
            assert!(hint(error).unwrap().contains(word), "{error}");
        }
        assert_eq!(hint("Error (criu/x.c:1): something new"), None);
    }
}
