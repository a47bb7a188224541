//! Definitions that must stand in one place, or have a name of their own: limits and types.

use std::collections::BTreeSet;

use crate::source_tree;

/// Limits of formats, of CRIU and of the kernel, which stand beside the format.
const GIVEN_LIMITS: &[&str] = &[
    "GHOST_LIMIT_BYTES",
    "MAX_FILE_BYTES",
    "MAX_REST_BYTES",
    "MAX_VERSIONS",
];

/// The constants of a file that limit a time or a size, without those of its tests.
fn limits_of(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod tests {").next();
    let lines = code.unwrap_or_default().lines().map(str::trim);
    let constants = lines.filter_map(|line| {
        let (visibility, rest) = line.split_once("const ")?;
        let (name, kind) = rest.split_once(": ")?;
        let is_one = visibility.is_empty() || visibility.starts_with("pub");
        let limits = name.contains("LIMIT") || name.starts_with("MAX_") || name == "CAP_BYTES";
        (is_one && (limits || kind.starts_with("Duration"))).then(|| name.to_owned())
    });
    constants.collect()
}

/// If each end had its own, the one that waits longer would find the other one gone.
#[test]
fn limits_of_migrations_stand_in_one_file() {
    let tree = source_tree();
    let elsewhere: Vec<String> = tree
        .iter()
        .filter(|(file, _)| file.starts_with("migrate/") && *file != "migrate/limits.rs")
        .filter(|(file, _)| !file.contains("tests"))
        .flat_map(|(file, text)| {
            let limits = limits_of(text).into_iter();
            limits.map(move |name| format!("{file}: {name}"))
        })
        .filter(|found| !GIVEN_LIMITS.iter().any(|given| found.ends_with(given)))
        .collect();
    assert!(elsewhere.is_empty(), "{elsewhere:#?}");
    let text = tree.get("migrate/limits.rs").expect("the file of limits");
    for name in limits_of(text) {
        let listed = format!("        {name},");
        assert!(text.contains(&listed), "--debug does not print {name}");
    }
}

/// The types that the code of a file defines, without those of its tests and type aliases.
fn types_of(text: &str) -> impl Iterator<Item = &str> {
    let code = text.split("#[cfg(test)]\nmod tests {").next();
    code.unwrap_or_default().lines().filter_map(|line| {
        let mut words = line.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        words
            .by_ref()
            .take_while(|word| !matches!(*word, "fn" | "use" | "impl" | "let"))
            .find(|word| matches!(*word, "struct" | "enum" | "trait"))
            .filter(|_| !line.trim_start().starts_with("//"))?;
        words.next()
    })
}

/// Names of types that more than one file of a layer defines, as `layer: name`.
fn doubled_types(tree: &[(&str, &str)]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut doubled = BTreeSet::new();
    for (file, text) in tree {
        let layer = file.split('/').next().unwrap_or(file);
        for name in types_of(text) {
            // Each verb of the command line has its arguments, as clap's documentation names them.
            if (layer, name) != ("cli", "Args") && !seen.insert((layer, name)) {
                doubled.insert(format!("{layer}: {name}"));
            }
        }
    }
    doubled.into_iter().collect()
}

#[test]
fn no_type_name_stands_for_two_things_in_a_layer() {
    let planted = [
        ("migrate/a.rs", "pub struct Session;"),
        ("migrate/b.rs", "    pub(super) enum Session {\n"),
        ("runtime/c.rs", "trait Session {}"),
    ];
    assert_eq!(doubled_types(&planted), ["migrate: Session"]);
    let tree = source_tree();
    let files: Vec<(&str, &str)> = tree
        .iter()
        .filter(|(file, _)| !file.contains("tests"))
        .map(|(file, text)| (file.as_str(), text.as_str()))
        .collect();
    assert_eq!(doubled_types(&files), [""; 0]);
}
