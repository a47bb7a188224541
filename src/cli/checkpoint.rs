use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::criu::{Criu, PageServer};
use crate::error::chain;
use crate::runtime::criu_flags::CriuFlags;
use crate::runtime::verbs::checkpoint::{self, CheckpointOptions};
use crate::runtime::verbs::delete;

use super::criu_args::CriuArgs;
use super::{Globals, absolute};

/// Flags that `checkpoint` and `restore` share.
#[derive(Debug, clap::Args)]
pub struct ImageArgs {
    /// Path to the directory of the CRIU image files (default is "checkpoint" in the working
    /// directory)
    #[arg(long, value_name = "DIR")]
    image_path: Option<PathBuf>,
    /// Path to the directory of CRIU's work files and logs (default is the image path)
    #[arg(long, value_name = "DIR")]
    work_path: Option<PathBuf>,
    #[command(flatten)]
    common: CriuArgs,
    /// Enable auto deduplication of memory images
    #[arg(long)]
    auto_dedup: bool,
    /// Use userfaultfd to lazily restore memory pages
    #[arg(long)]
    lazy_pages: bool,
}

impl ImageArgs {
    /// Returns the flags for the runtime. It ignores `--empty-ns=network`, because rcm always does
    /// that, like runc.
    pub(super) fn flags(self, link_remap: bool) -> CriuFlags {
        CriuFlags {
            image_path: absolute(self.image_path.unwrap_or_else(|| "checkpoint".into())),
            work_path: self.work_path.map(absolute),
            choices: self.common.choices(link_remap),
            auto_dedup: self.auto_dedup,
            lazy_pages: self.lazy_pages,
        }
    }
}

/// Checkpoint a running container
///
/// Saves the state of the container's processes with CRIU, then deletes the container unless
/// --leave-running is set.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name of the container
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    #[command(flatten)]
    criu: ImageArgs,
    /// Path to previous CRIU image files, relative to the image path
    #[arg(long, value_name = "DIR")]
    parent_path: Option<PathBuf>,
    /// Leave the process running after checkpointing
    #[arg(long)]
    leave_running: bool,
    /// Skip in-flight TCP connections
    #[arg(long)]
    tcp_skip_in_flight: bool,
    /// Allow one to link unlinked files back when possible
    #[arg(long)]
    link_remap: bool,
    /// CRIU writes \0 to this descriptor once lazy-pages is ready
    #[arg(long, value_name = "FD", default_value_t = -1, allow_negative_numbers = true)]
    status_fd: i32,
    /// ADDRESS:PORT of the page server
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_page_server)]
    page_server: Option<PageServer>,
    /// Dump the container's memory only, leave the container running after this
    #[arg(long)]
    pre_dump: bool,
}

fn parse_page_server(text: &str) -> Result<PageServer, &'static str> {
    const USAGE: &str = "use --page-server ADDRESS:PORT to specify the page server";
    let (address, port) = text.rsplit_once(':').ok_or(USAGE)?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    if address.is_empty() {
        return Err(USAGE);
    }
    Ok(PageServer {
        address: Some(address.to_owned()),
        port: port.parse().map_err(|_| "invalid port number")?,
    })
}

pub fn run(globals: &Globals, args: Args) -> anyhow::Result<i32> {
    let container = globals.load(&args.id)?;
    // The frozen copy of a migration in doubt may run at the destination. A checkpoint would remove
    // it together with its journal, and a restore of the images would be a second copy.
    crate::migrate::ops::refuse_if_open(&globals.root, &args.id)?;
    let status_fd = status_fd(args.status_fd)?;
    let options = CheckpointOptions {
        page_connection: None,
        flags: args.criu.flags(args.link_remap),
        parent_path: args.parent_path,
        leave_running: args.leave_running,
        tcp_skip_in_flight: args.tcp_skip_in_flight,
        ghost_limit_bytes: None,
        page_server: args.page_server,
        status_fd,
        answer_limit_dur: None,
        moves: false,
    };
    let criu = Criu::find(globals.criu.as_deref())?;
    if args.pre_dump {
        checkpoint::pre_dump(&criu, &container, options)?;
        return Ok(0);
    }
    checkpoint::begin(&criu, &container, options)?.commit()?;
    if !args.leave_running
        && let Err(error) = delete::destroy(&container)
    {
        // A warning only, as with runc: the images are complete, and the caller asked for those.
        tracing::warn!("cannot delete container {}: {}", args.id, chain(&error));
    }
    Ok(0)
}

/// Returns the descriptor of `--status-fd`, which must be open for writing.
fn status_fd(number: i32) -> anyhow::Result<Option<OwnedFd>> {
    if number < 0 {
        return Ok(None);
    }
    let path = format!("/proc/self/fd/{number}");
    if std::fs::symlink_metadata(&path).is_err() {
        bail!("invalid --status-fd argument {number}: it is not open");
    }
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .with_context(|| format!("invalid --status-fd argument {number}: not writable"))?;
    Ok(Some(file.into()))
}
