use std::io::ErrorKind;

use anyhow::Context;
use comfy_table::{Table, presets};

use crate::error::chain;
use crate::runtime::Container;

use super::Globals;
use super::state::{StateJson, format_time};

/// List the containers that rcm knows below its root
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Output format: table or json
    #[arg(long, short, value_name = "FORMAT", default_value = "table", value_parser = ["table", "json"])]
    format: String,
    /// Display only container IDs
    #[arg(long, short)]
    quiet: bool,
}

pub fn run(globals: &Globals, args: Args) -> anyhow::Result<i32> {
    let states = load(globals)?;
    if args.quiet {
        for state in &states {
            println!("{}", state.id);
        }
    } else if args.format == "json" {
        // Programs that read runc's list expect `null` if there are no containers.
        if states.is_empty() {
            println!("null");
        } else {
            println!("{}", serde_json::to_string(&states)?);
        }
    } else {
        print_table(&states);
    }
    Ok(0)
}

fn load(globals: &Globals) -> anyhow::Result<Vec<StateJson>> {
    let ids = match Container::list(&globals.root) {
        Ok(ids) => ids,
        Err(error) if error.kind() == ErrorKind::NotFound && !globals.root_given => Vec::new(),
        Err(error) => {
            return Err(error)
                .with_context(|| format!("cannot list containers in {}", globals.root.display()));
        }
    };
    let mut states = Vec::with_capacity(ids.len());
    for id in ids {
        match Container::load(&globals.root, &id) {
            Ok(container) => states.push(StateJson::of(&container)),
            // One damaged container must not hide the others.
            Err(error) => eprintln!("load container {id}: {}", chain(&error)),
        }
    }
    Ok(states)
}

fn print_table(states: &[StateJson]) {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    for state in states {
        table.add_row([
            state.id.clone(),
            state.pid.to_string(),
            state.status.to_string(),
            state.bundle.display().to_string(),
            format_time(state.created),
            state.owner.clone(),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    println!("{}", table.trim_fmt());
}
