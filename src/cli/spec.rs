use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};

use crate::runtime::spec::template;

/// Name of a bundle's specification.
const SPEC_FILE: &str = "config.json";

/// Create a new specification file, a starting point to edit
///
/// The file is named config.json. Its process is "sh" on a terminal, with the directory rootfs
/// beside the file as root.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Path to the root of the bundle directory (default is the current one)
    #[arg(long, short, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Generate a configuration for a rootless container
    #[arg(long)]
    rootless: bool,
}

pub fn run(args: Args) -> anyhow::Result<i32> {
    let spec = if args.rootless {
        template::rootless_example()
    } else {
        template::example()
    };
    let mut text = Vec::new();
    let formatter = PrettyFormatter::with_indent(b"\t");
    spec.serialize(&mut Serializer::with_formatter(&mut text, formatter))?;

    let path = args.bundle.unwrap_or_default().join(SPEC_FILE);
    let created = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o666)
        .open(&path);
    let mut file = match created {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("File {SPEC_FILE} exists. Remove it first");
        }
        Err(error) => {
            return Err(error).with_context(|| format!("cannot create {}", path.display()));
        }
    };
    file.write_all(&text)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(0)
}
