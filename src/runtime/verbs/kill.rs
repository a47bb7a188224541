//! Signals to a container.

use std::str::FromStr;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use oci_spec::runtime::LinuxNamespaceType;

use crate::runtime::container::Container;
use crate::runtime::error::{Error, Result};
use crate::runtime::spec::namespaces::Namespaces;
use crate::runtime::status::Status;
use crate::sys::process;

/// Highest signal number of Linux (signal(7)).
const LAST_SIGNAL: i32 = 64;

/// Parses a signal as runc does: a number, or a name with or without `SIG`, in any case.
#[must_use]
pub fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (0..=LAST_SIGNAL).contains(&number).then_some(number);
    }
    let upper = text.to_uppercase();
    let name = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    Signal::from_str(&name).ok().map(|signal| signal as i32)
}

/// Sends a signal to the container's first process. Signal 0 only checks that it exists. SIGKILL
/// goes to all processes if these would outlive the first one.
///
/// # Errors
/// [`Error::NotRunning`].
pub fn kill(container: &Container, signal: i32) -> Result<()> {
    let own_pids = container
        .spec()
        .is_ok_and(|spec| Namespaces::of(&spec).has(LinuxNamespaceType::Pid));
    let is_stopped = container.status() == Status::Stopped;
    let outlives = signal == Signal::SIGKILL as i32 && !own_pids && container.cgroup().exists();
    if is_stopped && !(outlives && container.cgroup().pids().is_ok_and(|pids| !pids.is_empty())) {
        return Err(Error::NotRunning);
    }
    if outlives {
        // Without a PID namespace of its own, the other processes outlive the first one.
        return container
            .cgroup()
            .kill_all()
            .map_err(Error::cgroup("kill", container.id()));
    }
    let pid = container.live_init()?;
    match process::kill(pid, signal) {
        Ok(()) => {}
        Err(Errno::ESRCH) => return Err(Error::NotRunning),
        Err(errno) => return Err(Error::system("signal the container's first process")(errno)),
    }
    let cgroup = container.cgroup();
    if signal == Signal::SIGKILL as i32 && !cgroup.is_v2() && cgroup.is_frozen() {
        // The v1 freezer delivers signals, even SIGKILL, only after a thaw.
        cgroup
            .thaw()
            .map_err(Error::cgroup("thaw", container.id()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        assert_eq!(parse_signal("KILL"), Some(9));
        assert_eq!(parse_signal("sigterm"), Some(15));
        assert_eq!(parse_signal("Hup"), Some(1));
        assert_eq!(parse_signal("0"), Some(0));
        assert_eq!(parse_signal("42"), Some(42));
        assert_eq!(parse_signal("65"), None);
        assert_eq!(parse_signal("-1"), None);
        assert_eq!(parse_signal("FOO"), None);
        assert_eq!(parse_signal(""), None);
    }
}
