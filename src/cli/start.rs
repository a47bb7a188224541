use super::Globals;

/// Execute the user defined process in a created container
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name of the container
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

pub fn run(globals: &Globals, args: Args) -> anyhow::Result<i32> {
    crate::runtime::start::start(&globals.load(&args.id)?)?;
    Ok(0)
}
