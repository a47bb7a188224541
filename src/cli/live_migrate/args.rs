//! Flags of `live-migrate`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::mode::ModeArgs;
use super::show::OutputArgs;
use super::streaming::StreamingArgs;
use super::time::parse_time;
use crate::cli::criu_args::CriuArgs;
use crate::cli::{Globals, absolute};
use crate::migrate::link::address::Destination;
use crate::migrate::ops::CriuSettings;
use crate::migrate::trust::{TlsFiles, TrustSettings};

/// Move a running container to another host
///
/// On the destination, `rcm live-migrate ID --image-path=DIR` waits for the container. On the
/// source, the same command with `--destination=HOST` sends it. DIR is a directory that both hosts
/// share, or a local directory on each host. With local directories the images cross the network,
/// and both ends need the same --token-file or certificates. At the destination the container
/// resumes at the instruction where it was frozen. On any failure it keeps running at the source.
///
/// Exit status: 0 the container was moved; 1 it was not moved and runs at the source; 2 wrong
/// usage; 3 it is unknown where it runs, and the message names the command that settles it. A
/// receiver without --detach stays as the container's parent and exits with its status.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name of the container, the same on both hosts; at a receiver, - accepts any
    #[arg(
        value_name = "CONTAINER-ID",
        required = false,
        required_unless_present = "any",
        default_value_if("any", "true", "-")
    )]
    pub id: String,
    /// Directory of the image store, shared by both hosts or local
    #[arg(long, value_name = "DIR", required_unless_present_any = ["relay", "status", "resolve", "cancel"])]
    pub image_path: Option<PathBuf>,
    /// Send the container to the receiver at HOST (default port 7260); with ssh://, connect through
    /// ssh, and PORT is that of ssh
    #[arg(long, value_name = "[ssh://[USER@]]HOST[:PORT]")]
    pub destination: Option<Destination>,
    /// Longest time that the container may be frozen before it is resumed, such as 90s or 5m
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_time)]
    pub timeout: Duration,
    /// Test on this host whether the container can be migrated: dump it, and restore a copy that
    /// never runs
    ///
    /// The container is frozen during the test, then it is resumed. The images go to --image-path.
    #[arg(long, conflicts_with_all = ["destination", "status", "resolve", "cancel", "receiver-flags", "trust-flags"])]
    pub local_test: bool,
    /// Report how the last migration of the container went
    #[arg(long, conflicts_with_all = ["destination", "resolve"])]
    pub status: bool,
    /// Finish or roll back a migration that was left open
    ///
    /// A destination that was rebooted has no record of the migration. With its --image-path, the
    /// container goes back to its source.
    #[arg(long, conflicts_with_all = ["destination", "receiver", "listen", "bundle", "detach", "pid_file", "cgroup_parent"])]
    pub resolve: bool,
    /// With --resolve at the source: take the container back if the destination does not answer
    ///
    /// Only for a destination that is switched off for good, or was rebooted and has lost its image
    /// store. If the container runs there, this creates a second running copy.
    #[arg(long, requires = "resolve", conflicts_with = "console_socket")]
    pub peer_lost: bool,
    /// Cancel the current migration of the container, from either host; the container keeps running
    /// at the source
    ///
    /// Also ends a receiver that still waits. Exit status: 0 cancelled, 1 there is no migration, 3
    /// too late, and the message tells the state of the container.
    #[arg(long, conflicts_with_all = ["destination", "status", "resolve"])]
    pub cancel: bool,
    /// Connect a source that came through ssh to the receiver on this host
    #[arg(long, hide = true, conflicts_with_all = ["destination", "status", "resolve", "receiver-flags", "trust-flags"])]
    pub relay: bool,
    #[command(flatten)]
    pub mode: ModeArgs,
    #[command(flatten)]
    pub streaming: StreamingArgs,
    #[command(flatten)]
    pub receiver: ReceiverArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub trust: TrustArgs,
    #[command(flatten)]
    pub criu: DumpArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Receiver")]
#[group(id = "receiver-flags", multiple = true, conflicts_with_all = ["destination", "status", "cancel"])]
pub struct ReceiverArgs {
    /// Wait for the container; the default without --destination
    #[arg(long)]
    pub receiver: bool,
    /// Address to listen on [default: port 7260 of every address]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Bundle directory on this host [default: the same path as at the source]
    #[arg(long, short, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Accept any container, one after the other, until a signal arrives; the same as - for the
    /// container's name
    ///
    /// Implies --detach. With --bundle DIR the bundle of a container is DIR/CONTAINER-ID.
    #[arg(long, conflicts_with_all = ["id", "pid_file"])]
    pub any: bool,
    /// Exit as soon as the container runs here
    #[arg(long, short)]
    pub detach: bool,
    /// Write the container's process id to FILE
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Restore into the network namespace at PATH instead of that of the config
    #[arg(long, value_name = "PATH")]
    pub netns: Option<PathBuf>,
    /// Use the cgroup PATH/ID instead of that of the config
    #[arg(long, value_name = "PATH")]
    pub cgroup_parent: Option<PathBuf>,
    /// Unix socket that receives the container's terminal; with --resolve, that of a container that
    /// it restores
    #[arg(long, value_name = "PATH")]
    pub console_socket: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Trust, the same at both ends")]
#[group(id = "trust-flags", multiple = true, conflicts_with_all = ["status", "resolve", "cancel"])]
pub struct TrustArgs {
    /// File with a secret of at least 32 bytes, the same at both ends
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Certificate authorities that must have signed the certificate of the other end, in PEM
    /// format
    #[arg(long, value_name = "FILE", requires = "tls_cert", requires = "tls_key")]
    pub tls_ca: Option<PathBuf>,
    /// Certificate of this end; that of a receiver must be for the name or address in --destination
    #[arg(long, value_name = "FILE", requires = "tls_ca", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of that certificate
    #[arg(long, value_name = "FILE", requires = "tls_ca", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

impl TrustArgs {
    pub fn settings(&self) -> TrustSettings {
        let path = |path: &Option<PathBuf>| path.clone().map(absolute);
        let tls = path(&self.tls_ca)
            .zip(path(&self.tls_cert))
            .zip(path(&self.tls_key));
        TrustSettings {
            token_file: path(&self.token_file),
            tls: tls.map(|((authorities, certificate), key)| TlsFiles {
                authorities,
                certificate,
                key,
            }),
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "CRIU")]
pub struct DumpArgs {
    /// Directory for CRIU's logs
    #[arg(long, value_name = "DIR")]
    work_path: Option<PathBuf>,
    #[command(flatten, next_help_heading = "CRIU")]
    common: CriuArgs,
    /// Give deleted but open files a temporary name
    #[arg(long)]
    link_remap: bool,
}

impl DumpArgs {
    pub fn settings(&self, globals: &Globals) -> CriuSettings {
        CriuSettings {
            program: globals.criu.clone(),
            choices: self.common.choices(self.link_remap),
            work_path: self.work_path.clone().map(absolute),
        }
    }
}
