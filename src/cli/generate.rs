use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell;

use super::Cli;

/// Write man pages or shell completions (for packaging)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to write
    what: What,
    /// Where to
    dir: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    /// One page per verb, section 8
    Man,
    /// For bash, zsh and fish
    Completion,
}

pub fn run(args: Args) -> anyhow::Result<i32> {
    fs::create_dir_all(&args.dir)
        .with_context(|| format!("cannot create {}", args.dir.display()))?;
    match args.what {
        What::Man => man(&args.dir)?,
        What::Completion => {
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
    let pages = std::iter::once(("rcm".to_owned(), command.clone())).chain(
        command
            .get_subcommands()
            .filter(|verb| !verb.is_hide_set() && verb.get_name() != "help")
            .map(|verb| (format!("rcm-{}", verb.get_name()), verb.clone())),
    );
    for (name, command) in pages {
        let path = dir.join(format!("{name}.8"));
        let mut page = Vec::new();
        clap_mangen::Man::new(command)
            .title(name.to_uppercase())
            .section("8")
            .render(&mut page)
            .with_context(|| format!("cannot render {name}.8"))?;
        fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
