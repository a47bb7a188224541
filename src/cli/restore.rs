use std::path::PathBuf;

use crate::criu::Criu;
use crate::error::chain;
use crate::runtime::process::foreground::Foreground;
use crate::runtime::verbs::delete;
use crate::runtime::verbs::restore::{self, RestoreRequest};
use crate::sys::process::become_subreaper;

use super::Globals;
use super::checkpoint::ImageArgs;

/// Restore a container from a previous checkpoint
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name of the container, unique on this host
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    #[command(flatten)]
    criu: ImageArgs,
    /// Path to the root of the bundle directory
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// Path to an AF_UNIX socket which will receive the master end of the console's pseudoterminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Detach from the container's process
    #[arg(long, short)]
    detach: bool,
    /// The file to write the process id to
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Do not reap the processes that the container leaves behind
    #[arg(long)]
    no_subreaper: bool,
    /// Do not use pivot_root: for a root filesystem on a ramdisk
    #[arg(long)]
    no_pivot: bool,
    /// Specify an LSM profile to be used during restore in the form of TYPE:NAME
    #[arg(long, value_name = "TYPE:NAME")]
    lsm_profile: Option<String>,
    /// Specify an LSM mount context to be used during restore
    #[arg(long, value_name = "CONTEXT")]
    lsm_mount_context: Option<String>,
}

pub fn run(globals: &Globals, args: Args) -> anyhow::Result<i32> {
    if !args.no_subreaper
        && let Err(errno) = become_subreaper()
    {
        tracing::warn!("cannot become a subreaper: {errno}");
    }
    let request = RestoreRequest {
        root: globals.root.clone(),
        id: args.id,
        bundle: args.bundle,
        systemd_cgroup: globals.systemd_cgroup,
        cgroup_parent: None,
        console_socket: args.console_socket,
        pid_file: args.pid_file,
        no_pivot: args.no_pivot,
        detach: args.detach,
        flags: args.criu.flags(false),
        lsm_profile: args.lsm_profile,
        lsm_mount_context: args.lsm_mount_context,
        network_namespace: None,
        answer_limit_dur: None,
        moves: false,
    };
    let criu = Criu::find(globals.criu.as_deref())?;
    let held = restore::begin(&criu, &request)?;
    if args.detach {
        held.resume()?;
        return Ok(0);
    }
    // Watch before the process executes, so that neither its exit nor a signal for it is missed.
    let mut foreground = Foreground::watch(held.pid())?;
    let restored = held.resume()?;
    foreground.attach(restored.terminal)?;
    let status = foreground.wait()?;
    if let Err(error) = delete::destroy_forcibly(&restored.container) {
        tracing::warn!(
            "cannot remove container {}: {}",
            restored.container.id(),
            chain(&error)
        );
    }
    Ok(status)
}
