use super::Globals;

/// Delete any resources held by the container
///
/// Often used with detached containers.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name of the container
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    /// Forcibly delete the container if it is still running (uses SIGKILL)
    #[arg(long, short)]
    force: bool,
}

pub fn run(globals: &Globals, args: Args) -> anyhow::Result<i32> {
    crate::runtime::verbs::delete::delete(&globals.root, &args.id, args.force)?;
    Ok(0)
}
