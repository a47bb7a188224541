use clap::builder::PossibleValuesParser;

use crate::criu::CriuChoices;

/// CRIU's flags that `checkpoint`, `restore` and `live-migrate` have in common.
#[derive(Debug, clap::Args)]
pub struct CriuArgs {
    /// Allow open TCP connections
    #[arg(long)]
    tcp_established: bool,
    /// Allow external unix sockets
    #[arg(long)]
    ext_unix_sk: bool,
    /// Allow shell jobs
    #[arg(long)]
    shell_job: bool,
    /// Handle file locks, for safety
    #[arg(long)]
    file_locks: bool,
    /// How cgroups are treated: soft, full, strict or ignore (default: soft)
    #[arg(long, value_name = "MODE", value_parser = PossibleValuesParser::new(["soft", "full", "strict", "ignore", ""]), hide_possible_values = true)]
    manage_cgroups_mode: Option<String>,
    /// Create a namespace, but don't save or restore its properties
    #[arg(long, value_name = "NAMESPACE", value_parser = ["network"])]
    empty_ns: Vec<String>,
}

impl CriuArgs {
    /// Returns the choices for the dump and the restore.
    pub fn choices(&self, link_remap: bool) -> CriuChoices {
        CriuChoices {
            tcp_established: self.tcp_established,
            ext_unix_sk: self.ext_unix_sk,
            shell_job: self.shell_job,
            file_locks: self.file_locks,
            link_remap,
            manage_cgroups_mode: self.manage_cgroups_mode.clone().unwrap_or_default(),
            empty_ns: self.empty_ns.clone(),
        }
    }
}
