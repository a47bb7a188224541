use super::Globals;

/// Suspend all processes inside the container
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name of the container
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

pub fn run(globals: &Globals, args: Args) -> anyhow::Result<i32> {
    crate::runtime::verbs::pause::pause(&globals.load(&args.id)?)?;
    Ok(0)
}
