use super::Globals;

/// Resume all processes that have been previously paused
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name of the container
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

pub fn run(globals: &Globals, args: Args) -> anyhow::Result<i32> {
    let container = globals.load(&args.id)?;
    // A container that is frozen because it was migrated away is not paused.
    crate::migrate::ops::refuse_if_open(&globals.root, &args.id)?;
    crate::runtime::verbs::pause::resume(&container)?;
    Ok(0)
}
