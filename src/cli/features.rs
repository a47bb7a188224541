use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};

use crate::runtime::verbs::features;

use super::version;

/// Show the enabled features
///
/// The result is JSON, as features.md of the OCI runtime specification defines it.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(Args {}: Args) -> anyhow::Result<i32> {
    let mut text = Vec::new();
    let formatter = PrettyFormatter::with_indent(b"    ");
    features::document(version::VERSION, version::COMMIT)
        .serialize(&mut Serializer::with_formatter(&mut text, formatter))?;
    println!("{}", String::from_utf8_lossy(&text));
    Ok(0)
}
