//! The rules as data, and the check of a file by them.

use crate::tokens::{Findings, FoundPath, module_of};

/// Top-level modules, and the modules that each may import besides itself. Downward only: no module
/// stands in the list of one that it lists.
pub const LAYERS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    (
        "cli",
        &[
            "migrate", "engines", "runtime", "criu", "image", "logging", "sys", "error", "text",
        ],
    ),
    (
        "migrate",
        &[
            "engines", "runtime", "criu", "image", "sys", "error", "text",
        ],
    ),
    ("engines", &["runtime", "sys", "error", "text"]),
    ("runtime", &["criu", "image", "sys", "error", "text"]),
    ("criu", &["sys", "error", "text"]),
    ("image", &["sys", "error", "text"]),
    ("logging", &["sys"]),
    ("sys", &[]),
    ("error", &[]),
    ("text", &[]),
];

/// Floors of the migration, from the ground up. A module imports from lower floors, from itself,
/// and from nothing else of `migrate`.
pub const FLOORS: &[&[&str]] = &[
    &["fate", "wire"],
    &["limits"],
    &["agreement", "method", "trust"],
    &["progress", "record"],
    &["link", "unix_sockets"],
    &["preflight", "transfer"],
    &["destination", "source"],
    &["container"],
    &["ops"],
];

/// Crates that only some top-level modules may name.
const CONFINED: &[(&str, &[&str])] = &[
    ("clap", &["main", "cli"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("anyhow", &["main", "cli"]),
    ("libcontainer", &["runtime"]),
    ("libcgroups", &["runtime"]),
    ("protobuf", &["criu"]),
    ("rust_criu", &["criu"]),
];

/// Modules that are tested without root because they touch nothing outside the process.
const WITHOUT_IO: &[&[&str]] = &[&["migrate", "wire"], &["migrate", "agreement"]];

/// Paths that the modules of [`WITHOUT_IO`] may not name. The traits of `std::io` are fine.
const IO: &[&[&str]] = &[
    &["std", "env"],
    &["std", "fs"],
    &["std", "net"],
    &["std", "os", "unix", "net"],
    &["std", "process"],
    &["std", "thread"],
    &["libc"],
    &["nix"],
    &["crate", "sys"],
];

/// Modules, and others that they must not import although the layers would allow it: the command
/// line knows the operations of a migration, but no lock, journal or CRIU.
const STRANGERS: &[(&[&str], &[&str])] = &[
    (&["cli", "live_migrate"], &["migrate", "record"]),
    (&["cli", "live_migrate"], &["criu"]),
];

/// The only module whose files may contain `unsafe`.
const UNSAFE_MODULE: &str = "sys";

/// Longest file, in lines.
pub const MOST_FILE_LINES: usize = 500;

/// Longest function, in lines from `fn` to its closing brace.
pub const MOST_FUNCTION_LINES: usize = 80;

/// Longer functions that may stay, by the name of the file and their own: tables and lists, which
/// are read from top to bottom and have no flow to follow.
const LONG_FUNCTIONS: &[(&str, &str)] = &[
    // One finding after the other.
    ("judge.rs", "judge_container"),
];

/// Is the function of a file (or the file itself, without a function) in a list of
/// [`LONG_FUNCTIONS`]' form?
fn lists(list: &[(&str, &str)], file: &str, function: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    list.contains(&(name, function))
}

fn starts_with(path: &[String], prefix: &[&str]) -> bool {
    path.len() >= prefix.len()
        && path
            .iter()
            .zip(prefix)
            .all(|(segment, wanted)| segment == wanted)
}

/// Is the `unsafe` on `line` (from 1) documented? Its comment stands above the statement that
/// contains it.
fn has_safety_comment(text: &str, line: usize) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mut above = lines[..line - 1].iter().rev().peekable();
    while let Some(candidate) = above.next() {
        if candidate.starts_with("//") {
            let rest = above.take_while(|candidate| candidate.starts_with("//"));
            return [candidate]
                .into_iter()
                .chain(rest)
                .any(|comment| comment.contains("SAFETY:"));
        }
        if candidate.is_empty() || candidate.ends_with([';', '{', '}']) {
            return false;
        }
    }
    false
}

/// Floor of a module of `migrate`, from 0.
fn floor(name: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&name))
}

/// Does a file of `module` import from a floor that is not below its own?
fn climbs(module: &[String], segments: &[String]) -> bool {
    let ([migrate, from, ..], [root, other, to, ..]) = (module, segments) else {
        return false;
    };
    migrate == "migrate"
        && root == "crate"
        && other == "migrate"
        && from != to
        && matches!((floor(from), floor(to)), (Some(from), Some(to)) if to >= from)
}

/// Returns every breach of the rules in `file` (relative to `src/`), as `file:line: rule`.
pub fn breaches(file: &str, text: &str) -> Vec<String> {
    let module = module_of(file);
    let findings = Findings::of(file, text);

    let mut breaches = Vec::new();
    let mut breach =
        |line: usize, rule: String| breaches.push(format!("src/{file}:{line}: {rule}"));

    // The root of the library declares the modules and is bound by no layer.
    if let Some(top) = module.first() {
        if top == "migrate"
            && let Some(name) = module.get(1)
            && name != "tests"
            && floor(name).is_none()
        {
            breach(
                1,
                format!(
                    "the module migrate::{name} has no place in FLOORS of tests/house/rules.rs"
                ),
            );
        }
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| name == top) else {
            return vec![format!(
                "src/{file}:1: the module {top} has no place in LAYERS of tests/house/rules.rs"
            )];
        };
        for FoundPath {
            segments,
            line,
            in_tests,
            ..
        } in &findings.paths
        {
            let imported = segments.get(1).filter(|_| segments[0] == "crate");
            if let Some(imported) =
                imported.filter(|name| LAYERS.iter().any(|(layer, _)| layer == name))
                && imported != top
                && !allowed.contains(&imported.as_str())
            {
                breach(
                    *line,
                    format!("{top} imports {imported}: imports run downward only"),
                );
            }
            if !in_tests && climbs(&module, segments) {
                breach(
                    *line,
                    format!(
                        "migrate::{} imports migrate::{}, which is not on a floor below",
                        module[1], segments[2]
                    ),
                );
            }
            for (name, users) in CONFINED {
                if segments[0] == *name && !users.contains(&top.as_str()) {
                    breach(
                        *line,
                        format!(
                            "{top} names {name}, which belongs to {}",
                            users.join(" and ")
                        ),
                    );
                }
            }
            if WITHOUT_IO.iter().any(|pure| starts_with(&module, pure))
                && IO.iter().any(|io| starts_with(segments, io))
            {
                breach(
                    *line,
                    format!("{} does I/O: {}", module.join("::"), segments.join("::")),
                );
            }
            for (from, to) in STRANGERS {
                if starts_with(&module, from)
                    && segments[0] == "crate"
                    && starts_with(&segments[1..], to)
                {
                    breach(
                        *line,
                        format!("{} imports {}", from.join("::"), to.join("::")),
                    );
                }
            }
        }
        if top != UNSAFE_MODULE {
            for line in &findings.unsafe_lines {
                breach(*line, format!("unsafe outside src/{UNSAFE_MODULE}"));
            }
        }
    }
    let lines = text.lines().count();
    if lines > MOST_FILE_LINES {
        breach(
            lines,
            format!("the file has {lines} lines, more than {MOST_FILE_LINES}"),
        );
    }
    for function in &findings.functions {
        let is_listed = lists(LONG_FUNCTIONS, file, &function.name);
        if function.lines > MOST_FUNCTION_LINES && !function.in_tests && !is_listed {
            breach(
                function.line,
                format!(
                    "the function {} has {} lines, more than {MOST_FUNCTION_LINES}",
                    function.name, function.lines
                ),
            );
        }
    }
    for line in &findings.unsafe_block_lines {
        if !has_safety_comment(text, *line) {
            breach(
                *line,
                String::from("unsafe without a SAFETY comment above it"),
            );
        }
    }
    breaches
}
