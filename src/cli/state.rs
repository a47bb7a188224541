use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, SecondsFormat, Utc};
use nix::unistd::{Uid, User};
use serde::{Serialize, Serializer};

use crate::runtime::{Container, Status};

use super::Globals;

/// Output the state of a container
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name of the container
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

/// State of a container in runc's JSON format.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StateJson {
    oci_version: String,
    pub(super) id: String,
    /// Process id of init; 0 for a stopped container.
    pub(super) pid: i32,
    pub(super) status: Status,
    pub(super) bundle: PathBuf,
    rootfs: PathBuf,
    #[serde(serialize_with = "nanoseconds")]
    pub(super) created: DateTime<Utc>,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    annotations: HashMap<String, String>,
    pub(super) owner: String,
}

fn nanoseconds<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format_time(*time))
}

pub(super) fn format_time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Nanos, true)
}

impl StateJson {
    pub(super) fn of(container: &Container) -> Self {
        let status = container.status();
        let record = container.record();
        let pid = match (status, record.init) {
            (Status::Stopped, _) | (_, None) => 0,
            (_, Some(init)) => init.pid,
        };
        Self {
            oci_version: record.oci_version.clone(),
            id: record.id.clone(),
            pid,
            status,
            bundle: record.bundle.clone(),
            rootfs: record.rootfs.clone(),
            created: record.created,
            annotations: record.annotations.clone(),
            owner: owner(container.dir()),
        }
    }
}

/// Returns the name of the user who owns the state directory, or `#UID`.
fn owner(dir: &Path) -> String {
    let Ok(metadata) = dir.metadata() else {
        return String::new();
    };
    match User::from_uid(Uid::from_raw(metadata.uid())) {
        Ok(Some(user)) => user.name,
        _ => format!("#{}", metadata.uid()),
    }
}

pub fn run(globals: &Globals, args: Args) -> anyhow::Result<i32> {
    let container = globals.load(&args.id)?;
    println!(
        "{}",
        serde_json::to_string_pretty(&StateJson::of(&container))?
    );
    Ok(0)
}
