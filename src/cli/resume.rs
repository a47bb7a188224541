use super::Globals;

/// Resume all processes that have been previously paused
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name of the container
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

pub fn run(globals: &Globals, args: Args) -> anyhow::Result<i32> {
    crate::runtime::pause::resume(&globals.load(&args.id)?)?;
    Ok(0)
}
