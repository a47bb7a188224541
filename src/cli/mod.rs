//! The command line: runc's verbs and flags, and rcm's own.
//!
//! One file per verb turns arguments into a request to [`crate::runtime`] or [`crate::migrate`] and
//! prints the answer.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::builder::PossibleValue;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::logging::{self, LogFormat};
use crate::runtime::Container;
use crate::sys::process::in_user_namespace;

mod checkpoint;
mod create;
mod criu_args;
mod delete;
mod duration;
mod events;
mod exec;
mod features;
mod generate;
mod go_flags;
mod help;
mod kill;
mod list;
mod live_migrate;
mod pause;
mod ps;
mod restore;
mod resume;
mod run;
mod spec;
mod start;
mod state;
mod update;
mod version;

/// Exit status of a command that failed; the same as runc's.
const FAILED: u8 = 1;
/// Exit status for a verb that does not exist; the same as runc's.
const UNKNOWN_VERB: u8 = 3;

/// Runs containers like runc and moves them, running, between hosts.
#[derive(Debug, Parser)]
#[command(
    name = "rcm",
    about = "Open Container Initiative runtime with live migration",
    long_about = "rcm runs applications packaged according to the Open Container Initiative (OCI) format, as runc does, and moves running \
                  containers between hosts.\n\nContainers are configured using bundles. A bundle is a directory that has a specification file \
                  named \"config.json\" and a root filesystem.",
    disable_version_flag = true,
    // As in Go, the last value counts: Podman passes some flags twice.
    args_override_self = true,
    disable_help_subcommand = false,
    subcommand_required = false,
    max_term_width = 120
)]
pub struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    /// Print the version.
    #[arg(long, short = 'v')]
    version: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Args)]
struct GlobalArgs {
    /// Enable debug logging
    #[arg(long)]
    debug: bool,
    /// Set the log file to write rcm logs to (default is stderr)
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Set the log format
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
    /// Root directory for storage of container state, which should be located in tmpfs (default is
    /// /run/rcm, or $XDG_RUNTIME_DIR/rcm for users)
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Path to the criu binary (default is $RCM_CRIU, then the PATH)
    #[arg(long, value_name = "PATH")]
    criu: Option<PathBuf>,
    /// Enable systemd cgroup support; cgroupsPath is then of the form "slice:prefix:name"
    #[arg(long)]
    systemd_cgroup: bool,
    /// Ignore cgroup permission errors: true, false, or auto
    #[arg(long, value_name = "CHOICE", default_value = "auto", value_parser = rootless)]
    rootless: Choice,
}

/// The size does not matter: a process has one value of this type.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Subcommand)]
enum Command {
    Checkpoint(checkpoint::Args),
    Create(create::Args),
    Delete(delete::Args),
    Events(events::Args),
    Exec(exec::Args),
    Features(features::Args),
    Kill(kill::Args),
    List(list::Args),
    LiveMigrate(Box<live_migrate::Args>),
    Pause(pause::Args),
    Ps(ps::Args),
    Restore(restore::Args),
    Resume(resume::Args),
    Run(run::Args),
    Spec(spec::Args),
    Start(start::Args),
    State(state::Args),
    Update(update::Args),
    #[command(hide = true)]
    Generate(generate::Args),
}

impl Command {
    /// Whether rcm's own code executes inside a container. If so, the container must not be able to
    /// write to rcm's binary through `/proc/PID/exe` (CVE-2019-5736).
    fn enters_container(&self) -> bool {
        matches!(self, Self::Create(_) | Self::Run(_) | Self::Exec(_))
    }

    /// Whether the command only prints. It has nothing to clean up, so a signal may end it at any
    /// point.
    fn only_prints(&self) -> bool {
        matches!(
            self,
            Self::Events(_) | Self::Features(_) | Self::List(_) | Self::Ps(_) | Self::State(_)
        )
    }
}

// Here and not beside the type, because only this module uses clap.
impl ValueEnum for LogFormat {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Text, Self::Json]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Self::Text => "text",
            Self::Json => "json",
        }))
    }
}

/// Settings that every verb needs.
#[derive(Debug, Clone)]
pub struct Globals {
    /// State directory.
    pub root: PathBuf,
    /// Whether `--root` was given. As with runc, a missing directory counts as empty only if it is
    /// the default one.
    pub root_given: bool,
    /// Whether systemd manages the cgroups of new containers.
    pub systemd_cgroup: bool,
    /// Whether new containers ignore permission errors of cgroups.
    pub rootless: bool,
    /// CRIU binary from `--criu`.
    pub criu: Option<PathBuf>,
    /// Whether debug records are written.
    pub debug: bool,
    /// Whether the log goes to a file instead of stderr.
    pub log_to_file: bool,
}

impl Globals {
    fn new(args: GlobalArgs) -> Self {
        let is_root = nix::unistd::geteuid().is_root();
        let is_hosts_root = is_root && !in_user_namespace();
        // As with runc, root of a user namespace counts as an unprivileged user, unless it is the
        // root user of a container.
        let has_own_root = !is_hosts_root
            && (!is_root || std::env::var_os("USER").is_none_or(|user| user != "root"));
        let default = || match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(dir) if !dir.is_empty() && has_own_root => Path::new(&dir).join("rcm"),
            _ => PathBuf::from("/run/rcm"),
        };
        if let (None, true) = (&args.root, has_own_root) {
            keep_root(&default());
        }
        Self {
            root_given: args.root.is_some(),
            root: args.root.map_or_else(default, absolute),
            systemd_cgroup: args.systemd_cgroup,
            // Root of a user namespace with --systemd-cgroup is assumed to be root for the systemd
            // that runs there.
            rootless: args
                .rootless
                .0
                .unwrap_or(!(is_hosts_root || is_root && args.systemd_cgroup)),
            criu: args.criu,
            debug: args.debug,
            log_to_file: args.log.is_some(),
        }
    }

    /// Loads the container called `id`.
    fn load(&self, id: &str) -> anyhow::Result<Container> {
        Ok(Container::load(&self.root, id)?)
    }
}

/// Creates a state directory below `$XDG_RUNTIME_DIR` with the sticky bit. Without the bit, a
/// cleaner may remove old files there (XDG Base Directory Specification). It ignores errors: the
/// command itself fails with a better one.
fn keep_root(root: &Path) {
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root);
    if made.is_ok() {
        let _ = std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o1700));
    }
}

/// `true` or `false`; `None` for `auto`.
#[derive(Debug, Clone, Copy)]
struct Choice(Option<bool>);

/// Reads the value of `--rootless` like runc: Go's words for a boolean, or `auto`.
fn rootless(text: &str) -> Result<Choice, String> {
    match text {
        "" => Ok(Choice(None)),
        auto if auto.eq_ignore_ascii_case("auto") => Ok(Choice(None)),
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Choice(Some(true))),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Choice(Some(false))),
        _ => Err("expected true, false or auto".into()),
    }
}

/// Returns a path that stays valid if the working directory changes.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// Returns the name by which this program was called. It may be `runc`, if rcm replaces runc.
fn program() -> String {
    std::env::args_os()
        .next()
        .and_then(|path| Some(Path::new(&path).file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "rcm".into())
}

/// Runs the command line of this process and returns its exit status.
#[must_use]
pub fn main() -> ExitCode {
    let program = program();
    let mut command = help::shaped(Cli::command(), &program);
    let arguments = go_flags::with_two_dashes(&command, std::env::args_os());
    let parsed = command.try_get_matches_from_mut(arguments);
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    if cli.version {
        version::print(&program, cli.global.criu.as_deref());
        return ExitCode::SUCCESS;
    }
    if let Err(error) = logging::init(
        cli.global.log.as_deref(),
        cli.global.log_format,
        cli.global.debug,
    ) {
        let path = cli.global.log.unwrap_or_default();
        eprintln!(
            "cannot open the log file {} (--log): {error}",
            path.display()
        );
        return ExitCode::from(FAILED);
    }
    let globals = Globals::new(cli.global);
    let Some(verb) = cli.command else {
        // As with runc, the answer without a command is the help and not an error.
        return match command.print_help() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(FAILED),
        };
    };
    if verb.enters_container()
        && let Err(error) = protect_binary(&globals)
    {
        return fail(
            &globals,
            FAILED,
            &anyhow::anyhow!("cannot protect the rcm binary from the container: {error}"),
        );
    }
    if verb.only_prints() {
        // A closed pipe must not cause a panic. An error here is harmless.
        let _ = crate::sys::process::end_on_broken_pipe();
    }
    let failed = verb.failure_status();
    match dispatch(&globals, verb) {
        // An exit status has only eight bits.
        Ok(status) => ExitCode::from(u8::try_from(status & 0xff).unwrap_or(FAILED)),
        Err(error) => fail(&globals, failed, &error),
    }
}

impl Command {
    /// runc exits with 255 if `exec` itself fails, to distinguish this from the status of the
    /// process.
    fn failure_status(&self) -> u8 {
        match self {
            Self::Exec(_) => 255,
            _ => FAILED,
        }
    }
}

fn dispatch(globals: &Globals, command: Command) -> anyhow::Result<i32> {
    match command {
        Command::Checkpoint(args) => checkpoint::run(globals, args),
        Command::Create(args) => {
            create::run(globals, args).with_context(|| format!("{} create failed", program()))
        }
        Command::Delete(args) => delete::run(globals, args),
        Command::Events(args) => events::run(globals, args),
        Command::Exec(args) => exec::run(globals, args).context("exec failed"),
        Command::Features(args) => features::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Kill(args) => kill::run(globals, args),
        Command::List(args) => list::run(globals, args),
        Command::LiveMigrate(args) => live_migrate::run(globals, *args),
        Command::Pause(args) => pause::run(globals, args),
        Command::Ps(args) => ps::run(globals, args),
        Command::Restore(args) => {
            restore::run(globals, args).with_context(|| format!("{} restore failed", program()))
        }
        Command::Resume(args) => resume::run(globals, args),
        Command::Run(args) => {
            run::run(globals, args).with_context(|| format!("{} run failed", program()))
        }
        Command::Spec(args) => spec::run(args),
        Command::Start(args) => start::run(globals, args),
        Command::State(args) => state::run(globals, args),
        Command::Update(args) => update::run(globals, args),
    }
}

/// Seals the binary. The state directory is the second layer of the overlay. If it cannot be
/// created, the command itself fails with a better error.
fn protect_binary(globals: &Globals) -> std::io::Result<()> {
    let _ = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&globals.root);
    crate::sys::seal::ensure_sealed(&globals.root)?;
    // runc's words, because tests and scripts search the log for them.
    if !crate::sys::seal::is_copied() {
        tracing::debug!("runc exeseal: using overlayfs for sealed /proc/self/exe");
    }
    tracing::debug!("runc exeseal: using /proc/self/exe clone");
    Ok(())
}

fn fail(globals: &Globals, status: u8, error: &anyhow::Error) -> ExitCode {
    report_failure(globals, error);
    ExitCode::from(status)
}

/// Reports a failure: one error record, and the sentence on stderr if the log is elsewhere.
fn report_failure(globals: &Globals, error: &anyhow::Error) {
    let sentence = crate::error::chain(error.as_ref());
    tracing::error!("{sentence}");
    if globals.log_to_file {
        eprintln!("{sentence}");
    }
}

/// Prints the help for `--help`. Reports wrong usage as runc does: one log record, then the usage.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        return match error.print() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(FAILED),
        };
    }
    let (log, format) = log_arguments();
    if logging::init(log.as_deref(), format, false).is_ok() {
        let text = error.render().to_string();
        let (sentence, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
        let words: Vec<_> = sentence
            .trim_start_matches("error: ")
            .split_whitespace()
            .collect();
        let sentence = match unknown_verb(error) {
            Some(verb) => format!("No help topic for '{verb}'"),
            None => format!("incorrect usage: {}", words.join(" ")),
        };
        tracing::error!("{sentence}");
        if log.is_some() {
            eprintln!("{sentence}");
        }
        if unknown_verb(error).is_none() {
            eprintln!("{}", rest.trim_end());
        }
    } else {
        // There is no log, so the parser's own message is the best that is left.
        let _ = error.print();
    }
    ExitCode::from(match unknown_verb(error) {
        Some(_) => UNKNOWN_VERB,
        None => usage_status(),
    })
}

/// Returns the verb that does not exist. runc reports it like a missing help topic, with the same
/// sentence and status.
fn unknown_verb(error: &clap::Error) -> Option<&str> {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    match error.get(ContextKind::InvalidSubcommand)? {
        ContextValue::String(verb) => Some(verb),
        _ => None,
    }
}

/// Returns the exit status for wrong usage. `live-migrate` has its own, because its status 1 means
/// that the container was not moved.
fn usage_status() -> u8 {
    match std::env::args().any(|argument| argument == live_migrate::VERB) {
        true => live_migrate::USAGE,
        false => FAILED,
    }
}

/// Returns `--log` and `--log-format` of a command line that does not parse: the engine must still
/// get the log record.
fn log_arguments() -> (Option<PathBuf>, LogFormat) {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let with_equals = format!("{name}=");
        arguments.iter().enumerate().find_map(|(index, argument)| {
            argument
                .strip_prefix(&with_equals)
                .map(str::to_owned)
                .or_else(|| {
                    (argument == name)
                        .then(|| arguments.get(index + 1).cloned())
                        .flatten()
                })
        })
    };
    let format = match value("--log-format").as_deref() {
        Some("json") => LogFormat::Json,
        _ => LogFormat::Text,
    };
    (value("--log").map(PathBuf::from), format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
