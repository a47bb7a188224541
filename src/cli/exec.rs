use std::path::PathBuf;

use anyhow::{Context, anyhow, ensure};
use oci_spec::runtime::Process;

use crate::runtime::linux::cgroup::SubCgroups;
use crate::runtime::process::foreground::Foreground;
use crate::runtime::verbs::exec::{self, ExecRequest};
use crate::runtime::{Container, spec};

use super::{Globals, absolute};

/// Execute new process inside the container
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Path to an AF_UNIX socket which will receive the master end of the console's pseudoterminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Path to an AF_UNIX socket which will receive a file descriptor referencing the exec process
    #[arg(long, value_name = "SOCKET")]
    pidfd_socket: Option<PathBuf>,
    /// Current working directory in the container
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Set environment variables
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Allocate a pseudo-TTY
    #[arg(long, short)]
    tty: bool,
    /// UID, or UID:GID
    #[arg(long, short, value_name = "UID[:GID]")]
    user: Option<String>,
    /// Additional gids
    #[arg(long, short = 'g', value_name = "GID")]
    additional_gids: Vec<u32>,
    /// Path to the process.json
    #[arg(long, short, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Detach from the container's process
    #[arg(long, short)]
    detach: bool,
    /// The file to write the process id to
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Set the asm process label for the process commonly used with selinux
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// Set the apparmor profile for the process
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// Set the no new privileges value for the process
    #[arg(long)]
    no_new_privs: bool,
    /// Add a capability to the bounding set for the process
    #[arg(long, short, value_name = "CAP")]
    cap: Vec<String>,
    /// Pass N additional file descriptors to the container (stdio + $LISTEN_FDS + N in total)
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: i32,
    /// Run the process in an existing sub-cgroup of the container's; on cgroup v1 also by
    /// controller, several times
    #[arg(long, value_name = "[CONTROLLER[,CONTROLLER]:]CGROUP")]
    cgroup: Vec<String>,
    /// Allow exec in a paused container
    #[arg(long)]
    ignore_paused: bool,
    /// The name of the container
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub fn run(globals: &Globals, args: Args) -> anyhow::Result<i32> {
    let container = globals.load(&args.id)?;
    // With --ignore-paused the process would wait in the frozen copy of a migration, perhaps for
    // ever.
    crate::migrate::ops::refuse_if_open(&globals.root, &args.id)?;
    let process = process(&container, &args)?;
    let request = ExecRequest {
        process,
        console_socket: args.console_socket,
        pidfd_socket: args.pidfd_socket,
        pid_file: args.pid_file.map(absolute),
        preserve_fds: args.preserve_fds,
        detach: args.detach,
        ignore_paused: args.ignore_paused,
        sub_cgroups: sub_cgroups(&args.cgroup)?,
    };
    let mut executed = exec::exec(&container, request)?;
    if args.detach {
        executed.start()?;
        return Ok(0);
    }
    let mut foreground = Foreground::watch(executed.pid)?;
    foreground.attach(executed.terminal.take())?;
    executed.start()?;
    Ok(foreground.wait()?)
}

/// Returns the process of `--process`; without it, the process of the spec with the changes of the
/// flags.
fn process(container: &Container, args: &Args) -> anyhow::Result<Process> {
    if let Some(path) = &args.process {
        return Ok(spec::load_process(path)?);
    }
    let spec = container.spec()?;
    let mut process = spec
        .process()
        .clone()
        .context("the container's spec has no process")?;
    ensure!(!args.command.is_empty(), "exec args cannot be empty");
    process.set_args(Some(args.command.clone()));
    process.set_terminal(Some(args.tty));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    if let Some(profile) = &args.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(label) = &args.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(args.env.iter().cloned());
    process.set_env(Some(env));
    add_capabilities(&mut process, &args.cap)?;
    set_user(&mut process, args)?;
    Ok(process)
}

fn add_capabilities(process: &mut Process, names: &[String]) -> anyhow::Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let added = names
        .iter()
        .map(|name| spec::capability(name).ok_or_else(|| anyhow!("unknown capability {name:?}")))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut capabilities = process.capabilities().clone().unwrap_or_default();
    let join = |set: &Option<oci_spec::runtime::Capabilities>| {
        Some(
            set.iter()
                .flatten()
                .chain(&added)
                .copied()
                .collect::<oci_spec::runtime::Capabilities>(),
        )
    };
    let bounding = join(capabilities.bounding());
    let effective = join(capabilities.effective());
    let permitted = join(capabilities.permitted());
    // Ambient capabilities need inheritable ones (capabilities(7)), which exec does not add.
    let inheritable = capabilities.inheritable().as_ref();
    let ambient = if inheritable.is_some_and(|set| !set.is_empty()) {
        join(capabilities.ambient())
    } else {
        capabilities.ambient().clone()
    };
    capabilities
        .set_bounding(bounding)
        .set_effective(effective)
        .set_permitted(permitted)
        .set_ambient(ambient);
    process.set_capabilities(Some(capabilities));
    Ok(())
}

fn set_user(process: &mut Process, args: &Args) -> anyhow::Result<()> {
    let mut user = process.user().clone();
    if let Some(text) = &args.user {
        let (uid, gid) = match text.split_once(':') {
            Some((uid, gid)) => (uid, Some(gid)),
            None => (text.as_str(), None),
        };
        user.set_uid(
            uid.parse()
                .with_context(|| format!("bad uid {uid:?} in --user"))?,
        );
        if let Some(gid) = gid {
            user.set_gid(
                gid.parse()
                    .with_context(|| format!("bad gid {gid:?} in --user"))?,
            );
        }
    }
    if !args.additional_gids.is_empty() {
        let mut gids = user.additional_gids().clone().unwrap_or_default();
        gids.extend(&args.additional_gids);
        user.set_additional_gids(Some(gids));
    }
    process.set_user(user);
    Ok(())
}

/// Returns one group below the container's for all controllers, or one for each controller that is
/// named.
fn sub_cgroups(arguments: &[String]) -> anyhow::Result<SubCgroups> {
    let mut groups = SubCgroups::new();
    for argument in arguments {
        let Some((controllers, path)) = argument.split_once(':') else {
            ensure!(
                arguments.len() == 1,
                "invalid --cgroup argument: {argument} (missing <controller>: prefix)"
            );
            groups.insert(String::new(), argument.into());
            continue;
        };
        for controller in controllers.split(',') {
            ensure!(
                !controller.is_empty(),
                "invalid --cgroup argument: {argument} (empty <controller> prefix)"
            );
            ensure!(
                groups.insert(controller.to_owned(), path.into()).is_none(),
                "invalid --cgroup argument(s): controller {controller} specified multiple times"
            );
        }
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(arguments: &[&str]) -> anyhow::Result<Vec<String>> {
        let arguments: Vec<String> = arguments.iter().map(|one| (*one).to_owned()).collect();
        Ok(sub_cgroups(&arguments)?
            .iter()
            .map(|(controller, path)| format!("{controller}={}", path.display()))
            .collect())
    }

    #[test]
    fn groups_by_controller() {
        assert_eq!(groups(&[]).unwrap(), [""; 0]);
        assert_eq!(groups(&["a/b"]).unwrap(), ["=a/b"]);
        assert_eq!(
            groups(&["memory:m", "cpu,cpuacct:c:d"]).unwrap(),
            ["cpu=c:d", "cpuacct=c:d", "memory=m"]
        );
        for (arguments, part) in [
            (&["a", "b"][..], "missing <controller>: prefix"),
            (&["cpu:a", "b"], "missing <controller>: prefix"),
            (&[":a"], "empty <controller> prefix"),
            (&["cpu,:a"], "empty <controller> prefix"),
            (
                &["cpu:a", "cpu:a"],
                "controller cpu specified multiple times",
            ),
        ] {
            let error = groups(arguments).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
