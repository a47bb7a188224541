use std::thread;

use nix::unistd::Pid;

use crate::error::chain;
use crate::runtime::Container;
use crate::runtime::process::foreground::Foreground;
use crate::runtime::process::notify::Manager;
use crate::runtime::verbs::create::{self, Created};
use crate::runtime::verbs::{delete, start};
use crate::sys::process::become_subreaper;

use super::Globals;
use super::create::CreateArgs;

/// Create and run a container
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    create: CreateArgs,
    /// Detach from the container's process
    #[arg(long, short)]
    detach: bool,
    /// Do not delete the container after it exits
    #[arg(long)]
    keep: bool,
    /// Do not reap the processes that the container leaves behind
    #[arg(long)]
    no_subreaper: bool,
}

pub fn run(globals: &Globals, args: Args) -> anyhow::Result<i32> {
    if !args.no_subreaper
        && let Err(errno) = become_subreaper()
    {
        tracing::warn!("cannot become a subreaper: {errno}");
    }
    let request = args.create.request(globals, args.detach);
    let Created {
        container,
        terminal,
        pid,
    } = create::create(&request)?;
    let result = (|| {
        let listener = match Manager::of_environment() {
            Some(manager) => manager.listen(&container)?,
            None => None,
        };
        if args.detach {
            start::start(&container)?;
            if let Some(listener) = listener {
                listener.forward(pid, pid);
            }
            return Ok(0);
        }
        let mut foreground = Foreground::watch(pid)?;
        foreground.attach(terminal)?;
        start::start(&container)?;
        if let Some(listener) = listener {
            // This process exits with the container. It no longer forks, so it may have threads.
            thread::spawn(move || {
                listener.forward(pid, Pid::this());
                listener.drain();
            });
        }
        foreground.wait()
    })();
    match result {
        Ok(status) => {
            if !args.detach && !args.keep {
                remove(&container);
            }
            Ok(status)
        }
        Err(error) => {
            remove(&container);
            Err(error.into())
        }
    }
}

/// Removes a container whose process has exited or must not run. A failure is only a warning: the
/// exit status is that of the process.
fn remove(container: &Container) {
    if let Err(error) = delete::destroy_forcibly(container) {
        tracing::warn!(
            "cannot remove container {}: {}",
            container.id(),
            chain(&error)
        );
    }
}
