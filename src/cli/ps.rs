use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, bail};

use super::Globals;

/// Display the processes running inside a container
#[derive(Debug, clap::Args)]
#[command(override_usage = "rcm ps [OPTIONS] <CONTAINER-ID> [PS-OPTIONS]...")]
pub struct Args {
    /// Select one of: table or json
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    format: String,
    /// The name of the container, then options for ps(1) instead of -ef
    // One clap argument for both, because everything after the name belongs to ps, even `-f`.
    #[arg(
        value_name = "CONTAINER-ID [PS-OPTIONS]",
        required = true,
        num_args = 1..,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    id_and_options: Vec<String>,
}

pub fn run(globals: &Globals, args: Args) -> anyhow::Result<i32> {
    let (id, options) = args
        .id_and_options
        .split_first()
        .context("incorrect usage: no container is named")?;
    if id.starts_with('-') {
        bail!("incorrect usage: unexpected argument '{id}' found");
    }
    let container = globals.load(id)?;
    let pids: Vec<i32> = container
        .cgroup()
        .pids()
        .context("unable to get all container pids")?
        .into_iter()
        .map(nix::unistd::Pid::as_raw)
        .collect();
    match args.format.as_str() {
        "json" => println!("{}", serde_json::to_string(&pids)?),
        "table" => print!("{}", select(&ps(options)?, &pids)?),
        _ => bail!("invalid format option"),
    }
    Ok(0)
}

fn ps(options: &[String]) -> anyhow::Result<String> {
    let mut command = Command::new("ps");
    if options.is_empty() {
        command.arg("-ef");
    } else {
        command.args(options);
    }
    let output = command
        .stdin(Stdio::null())
        .output()
        .context("cannot execute ps(1)")?;
    if !output.status.success() {
        bail!(
            "{}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns the header of ps's table, and the lines with a `PID` that is one of `pids`.
fn select(table: &str, pids: &[i32]) -> anyhow::Result<String> {
    let mut lines = table.lines();
    let header = lines.next().unwrap_or_default();
    let column = header
        .split_whitespace()
        .position(|title| title == "PID")
        .ok_or_else(|| anyhow!("couldn't find PID field in ps output"))?;
    let mut selected = format!("{header}\n");
    for line in lines.filter(|line| !line.is_empty()) {
        let pid = line.split_whitespace().nth(column).unwrap_or_default();
        let pid: i32 = pid
            .parse()
            .with_context(|| format!("unable to parse pid {pid:?}"))?;
        if pids.contains(&pid) {
            selected.push_str(line);
            selected.push('\n');
        }
    }
    Ok(selected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_selected_by_their_pid() {
        let table = "UID   PID  PPID CMD\nroot    1     0 init\nroot   17     1 sleep 17\n\nroot   18    17 sh\n";
        assert_eq!(
            select(table, &[17, 99]).unwrap(),
            "UID   PID  PPID CMD\nroot   17     1 sleep 17\n"
        );
        // Numbers in other columns and in empty lines are not process ids.
        assert_eq!(select(table, &[0]).unwrap(), "UID   PID  PPID CMD\n");
    }

    #[test]
    fn a_table_without_pids_is_refused() {
        let error = select("CMD\nsh\n", &[1]).unwrap_err();
        assert_eq!(error.to_string(), "couldn't find PID field in ps output");
        let error = select("PID CMD\nx sh\n", &[1]).unwrap_err();
        assert!(
            error.to_string().starts_with("unable to parse pid"),
            "{error}"
        );
    }
}
