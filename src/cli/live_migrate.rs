use std::io::{Stderr, stderr};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

use super::Globals;
use crate::criu::{Criu, Version};
use crate::migrate::address::Destination;
use crate::migrate::destination::{self, Arrived, DestinationError, Prepared, Setup};
use crate::migrate::facts;
use crate::migrate::journal::{self, JournalRecord, Lock, make_work_dir};
use crate::migrate::lobby::Lobby;
use crate::migrate::node::Node;
use crate::migrate::preamble::{CriuChoices, Facts, Severity};
use crate::migrate::preflight::survey;
use crate::migrate::progress::Progress;
use crate::migrate::protocol::{MigrationId, Phase, Side};
use crate::migrate::rendezvous::{Rendezvous, random};
use crate::migrate::resolve::{Resolution, ResolveError, resolve};
use crate::migrate::source::{self, Failure, Plan};
use crate::migrate::trust::{TlsFiles, Trust, TrustSettings};
use crate::migrate::workload::{RunningContainer, preamble};
use crate::runtime::container::{Status, validate_id};
use crate::runtime::foreground::Foreground;
use crate::runtime::restore::{RestoreRequest, Restored};
use crate::runtime::{Container, Error, delete, engine};
use crate::sys::interrupt::Interrupt;
use crate::sys::process::become_subreaper;

mod mode;

use mode::ModeArgs;

/// The name of the command.
pub const VERB: &str = "live-migrate";
/// The container is not known to run anywhere; the message names the command that settles it.
const NOT_SETTLED: i32 = 3;
/// Wrong usage, found by the parser or after it.
pub const USAGE: u8 = 2;
/// How long the source waits for the destination's word before it leaves the matter to `--resolve`.
const SETTLE_LIMIT_DUR: Duration = Duration::from_secs(60);
/// How long a receiver that has given up stays for a source that does not know it.
const LINGER_DUR: Duration = Duration::from_secs(20);
/// How long a receiver waits for the source to confirm before it does so beside its other work.
const PROMPT_DUR: Duration = Duration::from_secs(2);

/// Move a running container to another host
///
/// On the destination, `rcm live-migrate ID --image-path=DIR` waits for the container; on the source, the same with `--destination=HOST` sends
/// it. DIR is a directory that both hosts share. The container goes on at the destination from the instruction at which it was stopped; on
/// any failure it runs on at the source.
///
/// Exit status: 0 the container was moved; 1 it was not, and runs on at the source; 2 wrong usage; 3 it is not settled where it runs, and the
/// message names the command that settles it. A receiver without --detach stays as the container's parent and exits with its status.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name of the container, the same on both hosts
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    /// The image store: a directory that both hosts share
    #[arg(long, value_name = "DIR", required_unless_present_any = ["status", "resolve"])]
    image_path: Option<PathBuf>,
    /// Send the container to the receiver at HOST; the default port is 7260
    #[arg(long, value_name = "HOST[:PORT]")]
    destination: Option<Destination>,
    /// How long the container may stand still before it is let go again, such as 90s or 5m
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_time)]
    timeout: Duration,
    /// Say how the last migration of the container went
    #[arg(long, conflicts_with_all = ["destination", "resolve"])]
    status: bool,
    /// Finish or roll back a migration that was left open
    #[arg(long, conflicts_with_all = ["destination"])]
    resolve: bool,
    #[command(flatten)]
    mode: ModeArgs,
    #[command(flatten)]
    receiver: ReceiverArgs,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    criu: CriuArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Receiver")]
#[group(id = "receiver-flags", multiple = true, conflicts_with_all = ["destination", "status", "resolve"])]
struct ReceiverArgs {
    /// Wait for the container; the default without --destination
    #[arg(long)]
    receiver: bool,
    /// Where to listen [default: port 7260 of every address]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// The bundle here [default: the path that it has at the source]
    #[arg(long, short, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Exit when the container runs here
    #[arg(long, short)]
    detach: bool,
    /// Write the container's process id to FILE
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// The container's cgroup is PATH/ID, whatever its config says
    #[arg(long, value_name = "PATH")]
    cgroup_parent: Option<PathBuf>,
    /// The Unix socket that gets the container's terminal
    #[arg(long, value_name = "PATH")]
    console_socket: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Trust, the same at both ends")]
#[group(id = "trust-flags", multiple = true, conflicts_with_all = ["status", "resolve"])]
struct TrustArgs {
    /// A secret of at least 32 bytes that both ends must know too
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The authorities that must vouch for the other end, in PEM format
    #[arg(long, value_name = "FILE", requires = "tls_cert", requires = "tls_key")]
    tls_ca: Option<PathBuf>,
    /// This end's certificate; a receiver's is for the name or address that --destination has
    #[arg(long, value_name = "FILE", requires = "tls_ca", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of that certificate
    #[arg(long, value_name = "FILE", requires = "tls_ca", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl TrustArgs {
    fn trust(&self) -> anyhow::Result<Trust> {
        let path = |path: &Option<PathBuf>| path.clone().map(super::absolute);
        let tls = path(&self.tls_ca)
            .zip(path(&self.tls_cert))
            .zip(path(&self.tls_key));
        Ok(Trust::of(&TrustSettings {
            token_file: path(&self.token_file),
            tls: tls.map(|((authorities, certificate), key)| TlsFiles {
                authorities,
                certificate,
                key,
            }),
        })?)
    }
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "CRIU")]
struct CriuArgs {
    /// Where CRIU writes its logs
    #[arg(long, value_name = "DIR")]
    work_path: Option<PathBuf>,
    /// Keep established TCP connections
    #[arg(long)]
    tcp_established: bool,
    /// Accept Unix sockets that lead out of the container
    #[arg(long)]
    ext_unix_sk: bool,
    /// Accept a terminal or session of the host
    #[arg(long)]
    shell_job: bool,
    /// Keep file locks
    #[arg(long)]
    file_locks: bool,
    /// Give deleted but open files a temporary name
    #[arg(long)]
    link_remap: bool,
    /// How control groups are treated
    #[arg(long, value_name = "MODE", value_parser = ["soft", "full", "strict", "ignore"])]
    manage_cgroups_mode: Option<String>,
    /// A namespace that is created, but whose contents are not restored
    #[arg(long, value_name = "NAMESPACE", value_parser = ["network"])]
    empty_ns: Vec<String>,
}

impl CriuArgs {
    fn choices(&self) -> CriuChoices {
        CriuChoices {
            tcp_established: self.tcp_established,
            ext_unix_sk: self.ext_unix_sk,
            shell_job: self.shell_job,
            file_locks: self.file_locks,
            link_remap: self.link_remap,
            manage_cgroups_mode: self.manage_cgroups_mode.clone().unwrap_or_default(),
            empty_ns: self.empty_ns.clone(),
        }
    }

    fn work_path(&self, globals: &Globals, id: &str) -> anyhow::Result<PathBuf> {
        Ok(match &self.work_path {
            Some(path) => super::absolute(path.clone()),
            None => make_work_dir(&globals.root, id)?,
        })
    }
}

/// "90s", "5m", "1h", "300ms", or a number of seconds.
fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("not a time such as 90s or 5m".into()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(milliseconds))
        .filter(|&total| total > 0)
        .map(Duration::from_millis)
        .ok_or_else(|| "not a time such as 90s or 5m".into())
}

/// The exit status of a failure, where it is not that of a container that runs on at the source.
pub fn failure_status(error: &anyhow::Error) -> Option<u8> {
    let unsettled = matches!(
        error.downcast_ref(),
        Some(Failure::NotSettled { .. } | Failure::Stands { .. } | Failure::Remains { .. })
    ) || matches!(
        error.downcast_ref(),
        Some(DestinationError::NotStarted { .. })
    ) || matches!(
        error.downcast_ref(),
        Some(
            ResolveError::NoAnswer { .. }
                | ResolveError::Trust(_)
                | ResolveError::NotYet { .. }
                | ResolveError::NotRunning { .. }
        )
    );
    unsettled.then_some(NOT_SETTLED as u8)
}

pub fn run(globals: &Globals, args: Args) -> anyhow::Result<i32> {
    validate_id(&args.id)?;
    if args.status {
        return status(globals, &args.id);
    }
    if args.resolve {
        return settle(globals, &args.id);
    }
    let Some(image_path) = &args.image_path else {
        bail!("--image-path is missing");
    };
    let image_path = super::absolute(image_path.clone());
    if !image_path.is_dir() {
        bail!(
            "{} is not a directory: --image-path names one that both hosts share",
            image_path.display()
        );
    }
    match &args.destination {
        Some(destination) => send(globals, &args, destination.clone(), &image_path),
        None => receive(globals, &args, &image_path),
    }
}

/// CRIU, and this host as it concerns a migration.
fn look_around(globals: &Globals) -> anyhow::Result<(Criu, Facts)> {
    let criu = Criu::find(globals.criu.as_deref())?;
    let features = criu.features()?;
    let names = [
        ("mem_track", features.memory_tracking),
        ("lazy_pages", features.lazy_pages),
    ];
    let features = names
        .into_iter()
        .filter(|(_, has)| *has)
        .map(|(name, _)| name.to_owned())
        .collect();
    let facts = facts::gather(criu_number(criu.version()), features)?;
    Ok((criu, facts))
}

/// As a preamble has it.
const fn criu_number(version: Version) -> u32 {
    version.major * 10_000 + version.minor * 100 + version.sublevel
}

fn send(
    globals: &Globals,
    args: &Args,
    destination: Destination,
    image_path: &Path,
) -> anyhow::Result<i32> {
    let container = globals.load(&args.id)?;
    let _lock = Lock::take(&globals.root, &args.id)?;
    refuse_if_open(globals, &args.id)?;
    match container.status() {
        Status::Running => {}
        Status::Paused => bail!(
            "container {:?} is paused: `rcm resume {}` first",
            args.id,
            args.id
        ),
        status => bail!(
            "container {:?} is {status}, and only a running one moves",
            args.id
        ),
    }
    let (criu, facts) = look_around(globals)?;
    let (pre_copy, why_not) = args.mode.choose(&criu, &facts)?;
    let choices = args.criu.choices();
    let spec = container.spec()?;
    let survey = survey(&container, &spec, &choices, image_path);
    let migration = MigrationId::new(random()?);
    let plan = Plan {
        root: globals.root.clone(),
        destination,
        trust: args.trust.trust()?,
        image_path: image_path.to_path_buf(),
        preamble: preamble(
            &container,
            migration,
            facts,
            image_path,
            &choices,
            &spec,
            survey.observed,
        ),
        findings: survey.findings,
        pre_copy,
        freeze_limit_dur: args.timeout,
        settle_limit_dur: SETTLE_LIMIT_DUR,
    };
    let interrupt = Interrupt::install().context("cannot catch signals")?;
    if args.mode.dry_run {
        return dry_run(&plan, &interrupt);
    }
    let mut progress = Progress::new(stderr(), &args.id);
    if let Some(why_not) = why_not {
        progress.say(why_not);
    }
    let workload = RunningContainer {
        criu,
        container,
        choices,
        work_path: args.criu.work_path(globals, &args.id)?,
        auto_dedup: args.mode.auto_dedup,
        ghost_limit_bytes: survey.ghost_limit_bytes,
    };
    source::migrate(&plan, workload, &mut progress, Some(&interrupt))?;
    Ok(0)
}

/// Says what speaks against the migration, each finding on a line of stdout: 0 where it would begin, 1 where not.
fn dry_run(plan: &Plan, interrupt: &Interrupt) -> anyhow::Result<i32> {
    let asked = source::preflight(plan, Some(interrupt));
    // A destination that cannot be asked is no reason to keep back what this end knows.
    let findings = asked.as_ref().unwrap_or(&plan.findings);
    let mut errors = 0;
    for finding in findings {
        let weight = match finding.severity {
            Severity::Error => {
                errors += 1;
                "error"
            }
            Severity::Warning => "warning",
        };
        println!("{weight}: {finding}");
    }
    asked?;
    let (container, destination) = (&plan.preamble.container, &plan.destination);
    match errors {
        0 => println!("container {container} can be moved to {destination}"),
        _ => println!("container {container} cannot be moved to {destination}: {errors} errors"),
    }
    Ok(i32::from(errors > 0))
}

/// A container whose last migration is open is not this host's to move, nor to let run: it may run at the destination.
pub fn refuse_if_open(globals: &Globals, id: &str) -> anyhow::Result<()> {
    match journal::read_side(&globals.root, id, Side::Source)? {
        Some(record) if !record.phase.is_final() && !record.phase.may_roll_back() => bail!(
            "the last migration of container {id:?} is not settled: `rcm live-migrate {id} --resolve` settles it"
        ),
        _ => Ok(()),
    }
}

fn receive(globals: &Globals, args: &Args, image_path: &Path) -> anyhow::Result<i32> {
    let lock = Lock::take(&globals.root, &args.id)?;
    tidy_up(globals, &args.id, &lock)?;
    if globals.root.join(&args.id).exists() {
        return Err(anyhow::Error::new(Error::Exist).context(format!(
            "container {:?} cannot come here (its own host sends it with --destination)",
            args.id
        )));
    }
    if let Err(errno) = become_subreaper() {
        tracing::warn!("cannot become a subreaper: {errno}");
    }
    let (criu, facts) = look_around(globals)?;
    let receiver = &args.receiver;
    let path = |path: &Option<PathBuf>| path.clone().map(super::absolute);
    let node = Node {
        criu,
        facts,
        image_path: image_path.to_path_buf(),
        bundle: path(&receiver.bundle),
        request: RestoreRequest {
            root: globals.root.clone(),
            id: args.id.clone(),
            systemd_cgroup: globals.systemd_cgroup,
            cgroup_parent: receiver.cgroup_parent.clone(),
            console_socket: path(&receiver.console_socket),
            pid_file: path(&receiver.pid_file),
            detach: receiver.detach,
            ..RestoreRequest::default()
        },
        choices: args.criu.choices(),
        work_path: args.criu.work_path(globals, &args.id)?,
    };
    let interrupt = Interrupt::install().context("cannot catch signals")?;
    let mut progress = Progress::new(stderr(), &args.id);
    let trust = args.trust.trust()?;
    let rendezvous = Rendezvous::leave(image_path, &args.id, &trust)?;
    journal::remember_litter(&globals.root, &args.id, rendezvous.path())?;
    let lobby = Lobby::open(receiver.listen, rendezvous.acquaintance(), trust)?;
    let address = lobby
        .address()
        .context("cannot find the listening address")?;
    progress.say(&format!("waiting on {address}"));
    let setup = Setup {
        root: globals.root.clone(),
        container: args.id.clone(),
        image_path: image_path.to_path_buf(),
        limit_dur: args.timeout,
        linger_dur: LINGER_DUR,
    };
    let prepared = Prepared::new(setup, node, rendezvous, lobby);
    let arrived = destination::receive(prepared, &mut progress, Some(&interrupt))?;
    if receiver.detach {
        return stay_until_settled(arrived, &mut progress, &interrupt);
    }
    stay(arrived, interrupt)
}

/// Removes what an earlier receiver has left that was killed before the commit.
fn tidy_up(globals: &Globals, id: &str, lock: &Lock) -> anyhow::Result<()> {
    journal::remove_litter(&globals.root, id)?;
    match journal::read_side(&globals.root, id, Side::Destination)? {
        Some(record) if record.phase.may_roll_back() && !record.phase.is_final() => {
            resolve(&globals.root, id, lock)?;
        }
        Some(record) if record.phase == Phase::Committed => bail!(
            "the last migration of container {id:?} to this host is not settled: `rcm live-migrate {id} --resolve` settles it"
        ),
        _ => {}
    }
    Ok(())
}

/// With `--detach`: the source should know before this process is gone.
fn stay_until_settled(
    mut arrived: Arrived<Restored>,
    progress: &mut Progress<Stderr>,
    interrupt: &Interrupt,
) -> anyhow::Result<i32> {
    if !arrived.settlement.answer(SETTLE_LIMIT_DUR, Some(interrupt)) {
        progress.say(
            "the source has not confirmed; its --resolve will find the answer in the image store",
        );
    }
    Ok(0)
}

/// The container's parent: forwards signals and terminal, exits with its status.
fn stay(arrived: Arrived<Restored>, interrupt: Interrupt) -> anyhow::Result<i32> {
    let Restored {
        container,
        pid,
        terminal,
    } = arrived.running;
    let mut settlement = arrived.settlement;
    let mut foreground = Foreground::watch(pid)?;
    interrupt
        .restore_defaults()
        .context("cannot reset signals")?;
    if settlement.answer(PROMPT_DUR, None) {
        // The port and the secret are for a source that does not know.
        drop(settlement);
    } else {
        // A thread, and only now: nothing is forked any more, and the signals are blocked in it as they are here.
        std::thread::spawn(move || settlement.answer(SETTLE_LIMIT_DUR, None));
    }
    let status = foreground.attach(terminal).and_then(|()| foreground.wait());
    if let Err(error) = delete::destroy_forcibly(&container) {
        tracing::warn!(
            "cannot remove container {}: {}",
            container.id(),
            engine::chain(&error)
        );
    }
    Ok(status?)
}

fn status(globals: &Globals, id: &str) -> anyhow::Result<i32> {
    let Some(record) = journal::read(&globals.root, id)? else {
        bail!("no migration of container {id:?} is known on this host");
    };
    println!("{}", describe(&record));
    let running = Container::load(&globals.root, id).map(|container| container.status());
    if let Ok(status) = running {
        println!("container {id} is {status} here");
    }
    Ok(0)
}

fn describe(record: &JournalRecord) -> String {
    let JournalRecord {
        container,
        peer,
        updated,
        migration,
        ..
    } = record;
    let at = updated.format("%Y-%m-%dT%H:%M:%SZ");
    let how = match (record.side, record.phase) {
        (Side::Source, Phase::Done) => format!("moved to {peer} at {at}"),
        (Side::Destination, Phase::Done) => format!("came from {peer} at {at}"),
        (Side::Source, Phase::RolledBack) => {
            format!("was not moved to {peer} and stayed here at {at}")
        }
        (Side::Destination, Phase::RolledBack) => format!("did not come from {peer} at {at}"),
        (_, phase) if record.is_driven() => {
            format!("is being migrated ({peer}): {phase} since {at}")
        }
        (Side::Source, phase) if phase.may_roll_back() => {
            format!(
                "was left in the middle of a migration to {peer} ({phase} since {at}); --resolve rolls it back"
            )
        }
        (_, phase) => format!("is not settled ({peer}, {phase} since {at}); --resolve settles it"),
    };
    let reason = record
        .reason
        .as_ref()
        .map(|reason| format!(": {reason}"))
        .unwrap_or_default();
    format!("container {container} {how}{reason} (migration {migration})")
}

/// As for a migration: 0 moved, 1 the container is the source's, 3 still open.
fn settle(globals: &Globals, id: &str) -> anyhow::Result<i32> {
    let lock = Lock::take(&globals.root, id)?;
    let (text, status) = match resolve(&globals.root, id, &lock)? {
        Resolution::Moved { peer } => (format!("container {id} runs at {peer}"), 0),
        Resolution::Arrived { peer } => (
            format!("container {id} came from {peer} and is this host's"),
            0,
        ),
        Resolution::RolledBack { side: Side::Source } => {
            (format!("container {id} was not moved and runs on here"), 1)
        }
        Resolution::RolledBack {
            side: Side::Destination,
        } => (
            format!("container {id} did not come here; it is the source's"),
            1,
        ),
    };
    println!("{text}");
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(parse_time("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(parse_time("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_time("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_time("1h"), Ok(Duration::from_secs(3600)));
        for bad in [
            "",
            "s",
            "0",
            "-1s",
            "1.5s",
            "5 m",
            "1d",
            "99999999999999999999s",
        ] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
