use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell;

use super::Cli;

/// Write man pages or shell completions (for packaging)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kind of files to write
    kind: Kind,
    /// Directory for the files
    dir: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// Man pages of section 8, one for each verb
    Man,
    /// Shell completions for bash, zsh and fish
    Completion,
}

/// Hand-written sections of a page. clap generates only names, synopsis, description and options.
fn hand_written(verb: Option<&str>) -> &'static str {
    match verb {
        None => include_str!("generate/rcm.roff"),
        Some("live-migrate") => include_str!("generate/live-migrate.roff"),
        Some("exec" | "restore" | "run") => include_str!("generate/process.roff"),
        Some(_) => include_str!("generate/verb.roff"),
    }
}

pub fn run(args: Args) -> anyhow::Result<i32> {
    fs::create_dir_all(&args.dir)
        .with_context(|| format!("cannot create {}", args.dir.display()))?;
    match args.kind {
        Kind::Man => man(&args.dir)?,
        Kind::Completion => {
            for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
                clap_complete::generate_to(shell, &mut Cli::command(), "rcm", &args.dir)
                    .with_context(|| format!("cannot write to {}", args.dir.display()))?;
            }
        }
    }
    Ok(0)
}

fn man(dir: &Path) -> anyhow::Result<()> {
    let mut command = Cli::command();
    command.build();
    let verbs = command
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set() && verb.get_name() != "help");
    for verb in std::iter::once(None).chain(verbs.map(Some)) {
        let verb_name = verb.map(clap::Command::get_name);
        let name = verb_name.map_or("rcm".to_owned(), |verb| format!("rcm-{verb}"));
        let path = dir.join(format!("{name}.8"));
        let mut page = Vec::new();
        clap_mangen::Man::new(verb.unwrap_or(&command).clone())
            .title(name.to_uppercase())
            .section("8")
            .source(concat!("rcm ", env!("CARGO_PKG_VERSION")))
            .manual("rcm")
            .render(&mut page)
            .with_context(|| format!("cannot render {name}.8"))?;
        page.extend_from_slice(hand_written(verb_name).as_bytes());
        fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
