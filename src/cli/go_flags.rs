//! Long options with one dash, as Go's flag packages accept them: containerd's client library
//! passes `-no-subreaper` to `restore`.

use std::ffi::OsString;

use clap::Command;

/// Adds the second dash to long options with one dash, up to the first argument of the verb. As
/// with runc, the rest may be a command of the container and stays as it is.
///
/// A cluster of short options does not change: no cluster has the name of a long option.
pub fn with_two_dashes(
    command: &Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Vec<OsString> {
    let mut arguments = arguments.into_iter();
    let mut found: Vec<OsString> = arguments.next().into_iter().collect();
    let mut level = command;
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        let Some(option) = text.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
            let verb = level.find_subcommand(text.as_ref());
            found.push(argument);
            match verb {
                Some(verb) => level = verb,
                None => break,
            }
            continue;
        };
        if option == "-" {
            found.push(argument);
            break;
        }
        let name = option.strip_prefix('-').unwrap_or(option);
        let (name, has_value) = match name.split_once('=') {
            Some((name, _)) => (name, true),
            None => (name, false),
        };
        let known = level.get_arguments().find(|known| {
            known.get_long() == Some(name)
                || !option.starts_with('-')
                    && known
                        .get_short()
                        .is_some_and(|short| option == short.to_string())
        });
        // clap adds `--help` later.
        let is_long = name == "help" || known.is_some_and(|known| known.get_long() == Some(name));
        if is_long && !option.starts_with('-') {
            let mut doubled = OsString::from("-");
            doubled.push(&argument);
            found.push(doubled);
        } else {
            found.push(argument.clone());
        }
        if !has_value && known.is_some_and(|known| known.get_action().takes_values()) {
            found.extend(arguments.next());
        }
    }
    found.extend(arguments);
    found
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn changed(line: &str) -> String {
        let words = line.split(' ').map(OsString::from);
        let found = with_two_dashes(&crate::cli::Cli::command(), words);
        found.join(" ".as_ref()).into_string().unwrap()
    }

    #[test]
    fn long_options_get_their_second_dash() {
        for (given, wanted) in [
            (
                "rcm restore -no-subreaper --detach w",
                "rcm restore --no-subreaper --detach w",
            ),
            (
                "rcm -root /r -log=l run -d -bundle b w",
                "rcm --root /r --log=l run -d --bundle b w",
            ),
            ("rcm -help", "rcm --help"),
            // The value of an option may begin with a dash.
            ("rcm --root -log list -q", "rcm --root -log list -q"),
            ("rcm run -b -detach w", "rcm run -b -detach w"),
            // Arguments of the container's command do not change.
            ("rcm exec -tty w ls -root", "rcm exec --tty w ls -root"),
            ("rcm exec -- -tty", "rcm exec -- -tty"),
            ("rcm kill w -9", "rcm kill w -9"),
            ("rcm exec -t -unknown w", "rcm exec -t -unknown w"),
        ] {
            assert_eq!(changed(given), wanted);
        }
    }
}
