use clap::builder::PossibleValuesParser;

use crate::criu::ManageCgroups;

/// CRIU's flags that `checkpoint`, `restore` and `live-migrate` have in common.
#[derive(Debug, clap::Args)]
pub struct CriuArgs {
    /// Allow open TCP connections
    #[arg(long)]
    pub tcp_established: bool,
    /// Allow external unix sockets
    #[arg(long)]
    pub ext_unix_sk: bool,
    /// Allow shell jobs
    #[arg(long)]
    pub shell_job: bool,
    /// Handle file locks, for safety
    #[arg(long)]
    pub file_locks: bool,
    /// How cgroups are treated: soft, full, strict or ignore (default: soft)
    #[arg(long, value_name = "MODE", value_parser = PossibleValuesParser::new(["soft", "full", "strict", "ignore", ""]), hide_possible_values = true)]
    pub manage_cgroups_mode: Option<String>,
    /// Create a namespace, but don't save or restore its properties
    #[arg(long, value_name = "NAMESPACE", value_parser = ["network"])]
    pub empty_ns: Vec<String>,
}

impl CriuArgs {
    /// How control groups are treated.
    pub fn manage_cgroups(&self) -> ManageCgroups {
        ManageCgroups::of(self.manage_cgroups_mode.as_deref().unwrap_or_default())
    }
}
