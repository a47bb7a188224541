//! The command line.

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
/// On the destination, `rcm live-migrate ID --image-path=DIR` waits for the container; on the source, the same with `--destination=HOST` sends
/// it. DIR is a directory that both hosts share, or each host's own: then the images cross the network, and both ends need the same --token-file, or
/// certificates. The container goes on at the destination from the instruction at which it was stopped; on
/// any failure it runs on at the source.
///
/// Exit status: 0 the container was moved; 1 it was not, and runs on at the source; 2 wrong usage; 3 it is not settled where it runs, and the
/// message names the command that settles it. A receiver without --detach stays as the container's parent and exits with its status.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name of the container, the same on both hosts; - at a receiver for any
    #[arg(
        value_name = "CONTAINER-ID",
        required = false,
        required_unless_present = "any",
        default_value_if("any", "true", "-")
    )]
    pub id: String,
    /// The image store: a directory that both hosts share, or this host's own
    #[arg(long, value_name = "DIR", required_unless_present_any = ["relay", "status", "resolve", "cancel"])]
    pub image_path: Option<PathBuf>,
    /// Send the container to the receiver at HOST; the default port is 7260. With ssh:// in front through ssh, whose port follows
    #[arg(long, value_name = "[ssh://[USER@]]HOST[:PORT]")]
    pub destination: Option<Destination>,
    /// How long the container may stand still before it is let go again, such as 90s or 5m
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_time)]
    pub timeout: Duration,
    /// Dump the container and restore a copy on this host, which does not get to run: can it be migrated at all?
    ///
    /// The container stands still meanwhile, and runs on. --image-path is where the images go.
    #[arg(long, conflicts_with_all = ["destination", "status", "resolve", "cancel", "receiver-flags", "trust-flags"])]
    pub local_test: bool,
    /// Say how the last migration of the container went
    #[arg(long, conflicts_with_all = ["destination", "resolve"])]
    pub status: bool,
    /// Finish or roll back a migration that was left open
    ///
    /// At a destination that was started again meanwhile, and has forgotten it, with its --image-path: the container goes back to its source.
    #[arg(long, conflicts_with_all = ["destination", "receiver", "listen", "bundle", "detach", "pid_file", "cgroup_parent"])]
    pub resolve: bool,
    /// With --resolve at the source: take the container back if the destination does not answer
    ///
    /// Only for a destination that is switched off for good, or was started again and has lost its image store. If the container runs there, two copies of it run.
    #[arg(long, requires = "resolve", conflicts_with = "console_socket")]
    pub peer_lost: bool,
    /// End the migration of the container that is under way, from either host; the container runs on at the source
    ///
    /// A receiver that only waits is ended, too. Exit status: 0 it was ended, 1 there is none, 3 it is too late, and the message says what has happened.
    #[arg(long, conflicts_with_all = ["destination", "status", "resolve"])]
    pub cancel: bool,
    /// Carry a source that came through ssh to the receiver on this host
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
    /// Where to listen [default: port 7260 of every address]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// The bundle here [default: the path that it has at the source]
    #[arg(long, short, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Take any container, one after the other, until a signal comes; the same as - for the container's name
    ///
    /// As with --detach. With --bundle DIR the bundle of a container is DIR/CONTAINER-ID.
    #[arg(long, conflicts_with_all = ["id", "pid_file"])]
    pub any: bool,
    /// Exit when the container runs here
    #[arg(long, short)]
    pub detach: bool,
    /// Write the container's process id to FILE
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Restore into the network namespace at PATH, whatever its config says
    #[arg(long, value_name = "PATH")]
    pub netns: Option<PathBuf>,
    /// The container's cgroup is PATH/ID, whatever its config says
    #[arg(long, value_name = "PATH")]
    pub cgroup_parent: Option<PathBuf>,
    /// The Unix socket that gets the container's terminal; with --resolve, of a container that it restores
    #[arg(long, value_name = "PATH")]
    pub console_socket: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Trust, the same at both ends")]
#[group(id = "trust-flags", multiple = true, conflicts_with_all = ["status", "resolve", "cancel"])]
pub struct TrustArgs {
    /// A secret of at least 32 bytes that both ends must know too
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The authorities that must vouch for the other end, in PEM format
    #[arg(long, value_name = "FILE", requires = "tls_cert", requires = "tls_key")]
    pub tls_ca: Option<PathBuf>,
    /// This end's certificate; a receiver's is for the name or address that --destination has
    #[arg(long, value_name = "FILE", requires = "tls_ca", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The private key of that certificate
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
    /// Where CRIU writes its logs
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
