//! The documentation: its commands work, its links lead somewhere, and no message is missing.
//! CONTRIBUTING.md explains the kinds of blocks.

#[path = "../it/common/mod.rs"]
mod common;
mod examples;
mod messages;
mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Cmd, Host};
use page::{DEVELOPING, Page, SHELL};
use rcm::migrate::limits::listed;
use rcm::migrate::wire::id::Side;
use walkdir::WalkDir;

/// One page's commands, containers and migrations included.
const PAGE_LIMIT_DUR: Duration = Duration::from_secs(120);
const GLOBAL_WITH_VALUE: [&str; 4] = ["--criu", "--log", "--log-format", "--root"];

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every page: those at the top, in `docs` and in `examples`.
fn pages() -> Vec<Page> {
    let mut paths: Vec<PathBuf> = fs::read_dir(top())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    for dir in ["docs", "examples"] {
        let entries = WalkDir::new(top().join(dir)).into_iter();
        paths.extend(entries.map(|entry| entry.unwrap().into_path()));
    }
    paths.retain(|path| path.extension().is_some_and(|name| name == "md"));
    paths.sort();
    let pages: Vec<Page> = paths.iter().map(|path| Page::read(path)).collect();
    assert!(pages.len() > 8, "only {paths:?}");
    pages
}

#[track_caller]
fn none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

#[test]
fn every_block_says_what_it_is() {
    let faults: Vec<String> = pages().into_iter().flat_map(|page| page.faults).collect();
    none("blocks", &faults);
    // The checks must find something in this page.
    let wrong = Page::parse(
        Path::new("x.md"),
        "```\nrcm list\n```\n\n    rcm list\n\n```sh real-hosts third\n```\n```sh\nrcm",
    );
    assert_eq!(wrong.faults.len(), 4, "{:?}", wrong.faults);
}

#[test]
fn links_lead_somewhere() {
    let dead: Vec<String> = pages().iter().flat_map(Page::dead_links).collect();
    none("dead links", &dead);
    let wrong = Page::parse(
        &top().join("README.md"),
        "# Here\n[a](#here) [b](#there) [c](no.md) [d](LICENSE) [e](docs/lab.md#nowhere)\n",
    );
    assert_eq!(wrong.dead_links().len(), 3, "{:?}", wrong.dead_links());
}

/// All blocks of a page, one after the other, in a fresh directory, with `rcm` and `sudo` on the
/// PATH.
fn run(script: &str) -> common::Output {
    let host = Host::new();
    let programs = host.dir().join("bin");
    let work = host.dir().join("work");
    fs::create_dir(&programs).unwrap();
    fs::create_dir(&work).unwrap();
    let program = |name: &str, text: String| {
        let path = programs.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    program("sudo", "#!/bin/sh\nexec \"$@\"\n".into());
    // A state directory of the test's own, unless the page names one.
    program(
        "rcm",
        format!(
            "#!/bin/sh\ncase $1 in --root) ;; *) set -- --root '{}' \"$@\" ;; esac\nexec '{}' \"$@\"\n",
            host.root().display(),
            env!("CARGO_BIN_EXE_rcm")
        ),
    );
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Cmd::new("bash")
        .args(["-euxo", "pipefail", "-c", script])
        .current_dir(&work)
        .env("PATH", format!("{}:{path}", programs.display()))
        .limit(PAGE_LIMIT_DUR)
        .run();
    // Other state directories that the page has made.
    for entry in fs::read_dir(&work).unwrap() {
        let root = entry.unwrap().path();
        let ids = fs::read_dir(&root).into_iter().flatten().flatten();
        for id in ids.filter(|id| id.path().join("state.json").exists()) {
            Cmd::new(env!("CARGO_BIN_EXE_rcm"))
                .arg("--root")
                .arg(&root)
                .args(["delete", "--force"])
                .arg(id.file_name())
                .run();
        }
    }
    output
}

#[test]
fn the_commands_of_the_pages_work() {
    let mut ran = 0;
    for page in pages() {
        let script: String = page
            .blocks(SHELL)
            .map(|block| block.text.as_str())
            .collect();
        if !script.is_empty() {
            eprintln!("{}", page.path.display());
            run(&script).ok();
            ran += 1;
        }
    }
    assert!(ran > 0, "no page has commands");
    assert_ne!(run("rcm state nobody\n").code(), 0);
}

fn help(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_rcm"))
        .args(args)
        .arg("--help")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn verbs() -> Vec<String> {
    let help = help(&[]);
    let (_, list) = help.split_once("Commands:\n").unwrap();
    list.lines()
        .take_while(|line| !line.is_empty())
        // A longer description continues in the next line, farther to the right.
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|verb| !verb.is_empty() && *verb != "help")
        .map(str::to_owned)
        .collect()
}

/// The flags of `rcm VERB`, from its help.
fn flags(verb: &str) -> BTreeSet<String> {
    let text = help(&[]) + &help(&[verb]);
    page::flags(&text).map(str::to_owned).collect()
}

/// Returns the verbs and flags in a script that rcm does not have.
fn unknown_to_rcm(script: &str) -> Vec<String> {
    let mut known = BTreeMap::new();
    let mut unknown = Vec::new();
    for line in script.replace("\\\n", " ").lines() {
        let line = line.split(" #").next().unwrap_or_default();
        let mut words = line.split_whitespace().skip_while(|word| *word == "sudo");
        if words.next() != Some("rcm") {
            continue;
        }
        let words: Vec<&str> = words.collect();
        // The verb is the first word that is neither a global flag nor its value.
        let takes_value = |at: usize| at > 0 && GLOBAL_WITH_VALUE.contains(&words[at - 1]);
        let is_verb = |(at, word): &(usize, &&str)| !word.starts_with('-') && !takes_value(*at);
        let Some((_, verb)) = words.iter().enumerate().find(is_verb) else {
            continue;
        };
        let known = known
            .entry((*verb).to_owned())
            .or_insert_with(|| flags(verb));
        for word in words.iter().filter(|word| word.starts_with("--")) {
            let flag = word.split('=').next().unwrap_or(word);
            if !known.contains(flag) {
                unknown.push(format!("rcm {verb} {flag}"));
            }
        }
    }
    unknown
}

fn is_shell(script: &str) -> bool {
    let output = Command::new("bash")
        .args(["-n", "-c", script])
        .output()
        .unwrap();
    output.status.success()
}

#[test]
fn commands_for_real_hosts_are_understood() {
    let mut faults = Vec::new();
    for page in pages() {
        let for_hosts = page.blocks.iter().filter(|block| block.is_for_hosts());
        for block in for_hosts.chain(page.blocks(SHELL)) {
            let place = format!("{}:{}", page.path.display(), block.line);
            if !is_shell(&block.text) {
                faults.push(format!("{place}: not a shell script"));
            }
            let unknown = unknown_to_rcm(&block.text);
            faults.extend(unknown.iter().map(|what| format!("{place}: {what}")));
        }
    }
    none("commands", &faults);
    assert!(!is_shell("if then"));
    let wrong = unknown_to_rcm(
        "sudo rcm live-migrate web --image-path=/x \\\n  --teleport # --not-this\nrcm --root there no-such --x\n",
    );
    assert_eq!(wrong, ["rcm live-migrate --teleport", "rcm no-such --x"]);
}

/// The scenario names the pages whose commands it runs, and fails if it does not run one of them.
#[test]
fn the_lab_runs_the_commands_for_real_hosts() {
    let mut missing = Vec::new();
    let mut ran = 0;
    for page in pages() {
        let name = page.path.strip_prefix(top()).unwrap().display().to_string();
        for block in &page.blocks {
            let Some(scenario) = block.scenario() else {
                continue;
            };
            let path = top().join(format!("tests/vm/scenarios/{scenario}.sh"));
            let text = fs::read_to_string(&path).unwrap_or_default();
            let says = format!("\ncommands {name}\n");
            if !text.contains(&says) {
                missing.push(format!("{name}:{}: not in {}", block.line, path.display()));
            }
            ran += 1;
        }
    }
    none("commands for the lab", &missing);
    assert!(ran > 10, "only {ran}");
}

/// Flags that the pages name and rcm does not have: of other programs, a family, and one that is
/// hidden.
const OTHER_FLAGS: [&str; 19] = [
    "--all",
    "--checkpoint",
    "--export",
    "--import",
    "--ipc",
    "--net",
    "--no-deps",
    "--open",
    "--pre-checkpoint",
    "--relay",
    "--remove",
    "--restart",
    "--runc-binary",
    "--runtime",
    "--scope",
    "--seed",
    "--tls",
    "--with-previous",
    "--xla",
];

#[test]
fn flags_in_the_text_exist() {
    let known: BTreeSet<String> = verbs().iter().flat_map(|verb| flags(verb)).collect();
    let unknown: Vec<String> = pages()
        .iter()
        .flat_map(|page| {
            let flags = page.named_flags().into_iter();
            flags.map(|flag| (page.path.display().to_string(), flag))
        })
        .filter(|(_, flag)| !known.contains(flag) && !OTHER_FLAGS.contains(&flag.as_str()))
        .map(|(page, flag)| format!("{page}: {flag}"))
        .collect();
    none("flags that nobody has", &unknown);
    let page = Page::parse(
        Path::new("x.md"),
        "`rcm list --quiet` and `--teleport=now` --not-this",
    );
    assert_eq!(page.named_flags(), ["--quiet", "--teleport"]);
}

/// Returns the names in a line of commands for developers that do not exist.
fn missing_for_developers(line: &str) -> Option<String> {
    let line = line.split('#').next().unwrap_or_default();
    let words: Vec<&str> = line
        .split_whitespace()
        .skip_while(|word| *word == "sudo")
        .collect();
    let makefile = fs::read_to_string(top().join("Makefile")).unwrap();
    match words.as_slice() {
        [] => None,
        ["make", targets @ ..] => targets
            .iter()
            .filter(|word| !word.contains('=') && !word.starts_with('-'))
            .find(|target| !makefile.contains(&format!("\n{target}:")))
            .map(|target| format!("make {target}")),
        ["cargo", "test", "--test", name, ..] => {
            let tests = top().join("tests");
            let exists = tests.join(format!("{name}.rs")).exists()
                || tests.join(name).join("main.rs").exists();
            (!exists).then(|| format!("test program {name}"))
        }
        ["cargo" | "cd" | "git", ..] => None,
        [script, ..] => (!top().join(script).is_file()).then(|| format!("script {script}")),
    }
}

#[test]
fn commands_for_developers_exist() {
    let mut faults = Vec::new();
    for page in pages() {
        for block in page.blocks(DEVELOPING) {
            let missing = block.text.lines().filter_map(missing_for_developers);
            faults.extend(
                missing.map(|what| format!("{}:{}: no {what}", page.path.display(), block.line)),
            );
        }
    }
    none("commands", &faults);
    for wrong in [
        "make no-such",
        "cargo test --test no-such",
        "scripts/no-such.sh",
    ] {
        assert!(missing_for_developers(wrong).is_some(), "{wrong}");
    }
    assert_eq!(
        missing_for_developers("make test-vm SCENARIOS=readme # it"),
        None
    );
}

/// Removes backquotes, and replaces line ends and several spaces by one space.
fn plain(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace('`', "")
}

#[test]
fn no_message_is_missing_in_troubleshooting() {
    let page = plain(&fs::read_to_string(top().join("docs/troubleshooting.md")).unwrap());
    let messages = messages::of_tree(&top().join("src"));
    assert!(
        messages.len() > 200,
        "only {} messages found",
        messages.len()
    );
    let log = fs::read_to_string(top().join("src/criu/log.rs")).unwrap();
    let hints = messages::first_of_pairs(&log, "HINTS");
    assert!(hints.len() > 20, "only {hints:?}");
    let missing: Vec<String> = messages
        .into_iter()
        .chain(hints)
        .filter(|message| !page.contains(&plain(message)))
        .collect();
    none("docs/troubleshooting.md lacks", &missing);
    let found = messages::of_source(
        "enum E { #[error(\"cannot {action} `{path:?}`: {}\\\n   it\", why())] A, #[error(transparent)] B, #[error(\"{X}\")] C }",
    );
    assert_eq!(found, ["cannot ACTION `PATH`: ...it"]);
}

/// Returns the text between `.EX` and `.EE`, as a reader sees it.
fn examples(page: &str) -> String {
    let mut inside = false;
    let mut script = String::new();
    for line in page.lines() {
        match line {
            ".EX" => inside = true,
            ".EE" => inside = false,
            line if inside => script += &format!("{}\n", line.replace("\\-", "-")),
            _ => {}
        }
    }
    script
}

#[test]
fn every_verb_has_a_page_with_its_sections() {
    let host = Host::new();
    let dir = host.dir().join("man");
    host.bare().args(["generate", "man"]).arg(&dir).run().ok();
    let mut names = vec!["rcm".to_owned()];
    names.extend(verbs().iter().map(|verb| format!("rcm-{verb}")));
    assert!(names.len() > 15, "only {names:?}");
    for name in names {
        let page = fs::read_to_string(dir.join(format!("{name}.8"))).unwrap();
        for section in [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "EXIT STATUS",
            "SEE ALSO",
        ] {
            let heading = page.lines().filter_map(|line| line.strip_prefix(".SH "));
            let found = heading
                .filter(|found| found.trim_matches('"') == section)
                .count();
            assert_eq!(found, 1, "{section} in {name}.8");
        }
        none(&name, &unknown_to_rcm(&examples(&page)));
    }
    let page = fs::read_to_string(dir.join("rcm-live-migrate.8")).unwrap();
    for section in ["EXAMPLES", "FILES", "ENVIRONMENT"] {
        assert!(page.contains(&format!(".SH {section}\n")), "{section}");
    }
    assert!(examples(&page).lines().count() > 8);
}

#[test]
fn the_reference_has_every_limit_with_its_value() {
    let page = fs::read_to_string(top().join("docs/reference.md")).unwrap();
    let limits = [Side::Source, Side::Destination].map(listed);
    let missing: BTreeSet<String> = limits
        .iter()
        .flatten()
        .map(|(name, value)| format!("| {value} | `{name}` |"))
        .filter(|row| !page.contains(row))
        .collect();
    assert!(missing.is_empty(), "docs/reference.md lacks {missing:#?}");
}
