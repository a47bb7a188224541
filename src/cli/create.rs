use std::path::PathBuf;

use crate::runtime::process::notify::Manager;
use crate::runtime::verbs::create::CreateRequest;

use super::{Globals, absolute};

/// Flags that `create` and `run` share.
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// The name of the container, unique on this host
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
    /// Path to the root of the bundle directory
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Path to an AF_UNIX socket which will receive the master end of the console's pseudoterminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Path to an AF_UNIX socket which will receive a file descriptor referencing the init process
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// The file to write the process id to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Do not use pivot_root: for a root filesystem on a ramdisk
    #[arg(long)]
    pub no_pivot: bool,
    /// Do not create a new session keyring for the container
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Pass N additional file descriptors to the container (stdio + $LISTEN_FDS + N in total)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: i32,
}

impl CreateArgs {
    pub(super) fn request(self, globals: &Globals, detach: bool) -> CreateRequest {
        CreateRequest {
            root: globals.root.clone(),
            id: self.id,
            bundle: self.bundle,
            systemd_cgroup: globals.systemd_cgroup,
            rootless: globals.rootless,
            notifies: Manager::of_environment().is_some(),
            console_socket: self.console_socket,
            pidfd_socket: self.pidfd_socket,
            pid_file: self.pid_file.map(absolute),
            no_pivot: self.no_pivot,
            no_new_keyring: self.no_new_keyring,
            preserve_fds: self.preserve_fds,
            detach,
        }
    }
}

/// Create a container
///
/// Sets up an instance of a container for a bundle; `start` executes the user's process in it.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    create: CreateArgs,
}

pub fn run(globals: &Globals, args: Args) -> anyhow::Result<i32> {
    crate::runtime::verbs::create::create(&args.create.request(globals, true))?;
    Ok(0)
}
