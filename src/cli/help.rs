//! Help in runc's shape. Scripts of its users match the first lines: `NAME:`, then the command and
//! its purpose.

use clap::Command;

/// Gives this shape to a command and its subcommands. `path` is the words that the user types for
/// the command.
pub fn shaped(command: Command, path: &str) -> Command {
    let about = command.get_about().map(ToString::to_string);
    let template = format!(
        "NAME:\n   {path} - {}\n\n{{before-help}}USAGE:\n   {{usage}}\n\n{{all-args}}{{after-help}}",
        about.unwrap_or_default()
    );
    let mut command = command.help_template(template);
    if let Some(long) = command.get_long_about().cloned() {
        command = command.before_long_help(long);
    }
    command.mut_subcommands(|verb| {
        let path = format!("{path} {}", verb.get_name());
        shaped(verb, &path)
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn the_first_lines_are_runcs() {
        let mut command = shaped(Cli::command(), "runc");
        let first = |help: String| help.lines().take(2).map(str::to_owned).collect::<Vec<_>>();
        let title = "   runc - Open Container Initiative runtime with live migration";
        assert_eq!(first(command.render_help().to_string()), ["NAME:", title]);
        assert_eq!(
            first(command.render_long_help().to_string()),
            ["NAME:", title]
        );
        command.build();
        let verb = command.find_subcommand_mut("kill").unwrap();
        let line = &first(verb.render_help().to_string())[1];
        assert!(line.starts_with("   runc kill - Send "), "{line}");
    }
}
