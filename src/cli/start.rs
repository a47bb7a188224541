use crate::runtime::process::notify::Manager;
use crate::runtime::verbs::start;

use super::Globals;

/// Execute the user defined process in a created container
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name of the container
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

pub fn run(globals: &Globals, args: Args) -> anyhow::Result<i32> {
    let container = globals.load(&args.id)?;
    let listener = match Manager::of_environment() {
        Some(manager) => manager.listen(&container)?,
        None => None,
    };
    start::start(&container)?;
    if let (Some(listener), Some(pid)) = (listener, container.init_pid()) {
        listener.forward(pid, pid);
    }
    Ok(0)
}
