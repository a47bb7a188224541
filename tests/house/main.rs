//! Rules of the source tree that the compiler does not check: allowed imports, the place of
//! `unsafe`, and the Rust version that the crate needs. Tests of the checker feed it sources that
//! break each rule.

mod circles;
mod definitions;
mod rules;
mod tokens;

use std::fs;
use std::path::Path;
use std::process::Command;

use circles::{EXCEPTIONS, Tree, circles};
use rules::{LAYERS, breaches};
use walkdir::WalkDir;

/// `1.88` or `1.88.0` as numbers that compare.
fn version(text: &str) -> Vec<u64> {
    let mut parts: Vec<u64> = text
        .split('.')
        .map(|part| part.parse().expect("a number"))
        .collect();
    parts.resize(3, 0);
    parts
}

/// The files below `src/`.
fn source_tree() -> Tree {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = WalkDir::new(&root)
        .into_iter()
        .map(|entry| entry.expect("src can be walked").into_path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let tree: Tree = files
        .map(|path| {
            let file = path.strip_prefix(&root).expect("below src");
            let text = fs::read_to_string(&path).expect("a source file can be read");
            (file.to_str().expect("UTF-8").to_owned(), text)
        })
        .collect();
    assert!(!tree.is_empty(), "no source file below {}", root.display());
    tree
}

#[test]
fn the_source_tree_keeps_its_rules() {
    let all: Vec<String> = source_tree()
        .iter()
        .flat_map(|(file, text)| breaches(file, text))
        .collect();
    assert!(
        all.is_empty(),
        "{} breaches:\n{}",
        all.len(),
        all.join("\n")
    );
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let (known, new): (Vec<_>, Vec<_>) = circles(&source_tree())
        .into_iter()
        .partition(circles::Circle::is_known);
    for circle in &known {
        println!("known: {:?}\n{}", circle.files, circle.arrows.join("\n"));
    }
    for circle in &new {
        eprintln!(
            "{} files import each other:\n{}",
            circle.files.len(),
            circle.arrows.join("\n")
        );
    }
    assert!(new.is_empty(), "{} circles of files", new.len());
    for exception in EXCEPTIONS {
        let is_used = known
            .iter()
            .any(|circle| circle.files.iter().any(|file| file.starts_with(exception)));
        assert!(is_used, "{exception} has no circle any more: strike it");
    }
}

/// A source tree of these files.
fn tree(files: &[(&str, &str)]) -> Tree {
    files
        .iter()
        .map(|(file, text)| ((*file).to_owned(), (*text).to_owned()))
        .collect()
}

/// The files of each circle, in a tree of these files.
fn circle_files(files: &[(&str, &str)]) -> Vec<Vec<String>> {
    circles(&tree(files))
        .into_iter()
        .map(|circle| circle.files.into_iter().collect())
        .collect()
}

#[test]
fn circles_are_found_however_they_are_closed() {
    let found = ["a.rs", "b.rs"].map(String::from).to_vec();
    for back in [
        "use crate::a::X;",
        "use crate::a;",
        "use super::a::{self, X};",
        "use crate::a::*;",
        "fn f() { crate::a::x() }",
        // Over a re-export.
        "use crate::c::X;",
    ] {
        let files = [
            ("a.rs", "pub struct X; use crate::b::Z;"),
            ("b.rs", back),
            ("c/mod.rs", "pub use crate::a::X; pub use crate::a::X as Y;"),
        ];
        assert_eq!(circle_files(&files), std::slice::from_ref(&found), "{back}");
    }
    let named = [
        ("a.rs", "pub struct X; use crate::b::Z;"),
        ("b.rs", "use crate::c; fn f() { c::Y::x() }"),
        ("c/mod.rs", "mod d; pub use d::Y;"),
        ("c/d.rs", "pub use crate::a::X as Y;"),
    ];
    assert_eq!(circle_files(&named), [["a.rs", "b.rs", "c/mod.rs"]]);
    let longer = [
        ("a.rs", "use crate::b::X;"),
        ("b.rs", "use crate::c::X;"),
        ("c.rs", "use crate::a::X;"),
        ("d.rs", "use crate::a::X;"),
    ];
    assert_eq!(circle_files(&longer), [["a.rs", "b.rs", "c.rs"]]);
}

#[test]
fn a_parent_and_its_children_may_import_each_other() {
    let family = [
        (
            "a/mod.rs",
            "mod b; mod c; use b::X; use c::Y; pub struct Z;",
        ),
        ("a/b.rs", "use super::Z; use super::c::Y;"),
        ("a/c.rs", "use super::Z;"),
    ];
    assert!(circle_files(&family).is_empty());
    let mut siblings = family;
    siblings[2].1 = "use super::Z; use super::b::X;";
    assert_eq!(circle_files(&siblings), [["a/b.rs", "a/c.rs"]]);
    let stranger = [
        (
            "a/mod.rs",
            "mod b; use b::X; pub struct Z; use crate::d::D;",
        ),
        ("a/b.rs", "use super::Z;"),
        ("d.rs", "use crate::a::X; pub struct D; use crate::a::Z;"),
    ];
    assert_eq!(circle_files(&stranger), [["a/b.rs", "a/mod.rs", "d.rs"]]);
}

#[test]
fn tests_and_other_crates_close_no_circle() {
    let files = [
        ("a.rs", "use crate::b::X;"),
        (
            "b.rs",
            "use a::X; #[cfg(test)] mod tests { use crate::a::X; use super::*; }",
        ),
        ("a/tests.rs", "use crate::b::X;"),
    ];
    // `a` is no child of `b`: the path is another crate's.
    assert!(circle_files(&files).is_empty());
}

#[test]
fn long_files_and_functions_are_found() {
    let body = "    let _ = 1;\n".repeat(79);
    let long = format!("fn f() {{\n{body}}}\n");
    assert_breach("sys/mod.rs", &long, 1, "the function f has 81 lines");
    let body = "    let _ = 1;\n".repeat(78);
    assert_clean("sys/mod.rs", &format!("fn f() {{\n{body}}}\n"));
    assert_clean(
        "sys/mod.rs",
        &format!("#[cfg(test)]\nmod tests {{\n{long}}}\n"),
    );
    assert_clean(
        "sys/mod.rs",
        "trait T { fn f(&self); fn g(&self) -> [u8; 2]; }",
    );
    assert_breach("sys/mod.rs", &"// a\n".repeat(501), 501, "501 lines");
    assert_clean("sys/mod.rs", &"// a\n".repeat(500));
}

#[test]
fn the_stated_rust_version_covers_every_dependency() {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--locked",
            "--format-version=1",
            "--filter-platform",
        ])
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        // The PATH that sudo sets may lack the toolchain.
        .env("RUSTC", Path::new(env!("CARGO")).with_file_name("rustc"))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let stated = env!("CARGO_PKG_RUST_VERSION");
    assert!(!stated.is_empty(), "Cargo.toml states no rust-version");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    assert!(packages.len() > 1, "no dependencies found");
    let newer: Vec<String> = packages
        .iter()
        .filter_map(|package| Some((package, package["rust_version"].as_str()?)))
        .filter(|(_, needed)| version(needed) > version(stated))
        .map(|(package, needed)| {
            format!("{} {} needs {needed}", package["name"], package["version"])
        })
        .collect();
    assert!(
        newer.is_empty(),
        "rust-version = \"{stated}\" is too low: {}",
        newer.join(", ")
    );
}

/// Asserts that `text` as `src/<file>` breaks exactly one rule, on `line`, and that the message
/// contains `part`.
#[track_caller]
fn assert_breach(file: &str, text: &str, line: usize, part: &str) {
    let found = breaches(file, text);
    assert_eq!(found.len(), 1, "one breach expected in {text:?}: {found:?}");
    assert!(
        found[0].starts_with(&format!("src/{file}:{line}: ")),
        "{}",
        found[0]
    );
    assert!(found[0].contains(part), "{:?} not in {:?}", part, found[0]);
}

#[track_caller]
fn assert_clean(file: &str, text: &str) {
    assert_eq!(breaches(file, text), Vec::<String>::new());
}

#[test]
fn layers_point_downward() {
    for (index, (name, allowed)) in LAYERS.iter().enumerate() {
        for lower in *allowed {
            let position = LAYERS.iter().position(|(layer, _)| layer == lower);
            assert!(
                position.is_some_and(|position| position > index),
                "{name} lists {lower}"
            );
        }
    }
}

#[test]
fn an_upward_import_is_found_however_it_is_written() {
    for text in [
        "use crate::runtime::Container;",
        "use crate::{image::Store, runtime::{Container, state}};",
        "use super::super::runtime;",
        "fn f() { crate::runtime::load() }",
        "fn f() { println!(\"{}\", crate::runtime::LIMIT); }",
        "use crate::runtime as other;",
        "use crate::runtime::*;",
        "mod inner { use super::super::super::runtime::*; }",
    ] {
        let found = breaches("criu/session.rs", text);
        assert!(
            found
                .iter()
                .any(|breach| breach.contains("criu imports runtime")),
            "{text:?}: {found:?}"
        );
    }
    assert_breach("sys/mod.rs", "use crate::image;", 1, "sys imports image");
    assert_breach(
        "criu/mod.rs",
        "\nuse crate::image;",
        2,
        "criu imports image",
    );
    assert_breach(
        "runtime/exec.rs",
        "use crate::logging::Level;",
        1,
        "runtime imports logging",
    );
    assert_breach("cli/run.rs", "use crate::main;", 1, "cli imports main");
}

#[test]
fn downward_imports_and_look_alikes_are_allowed() {
    assert_clean("main.rs", "use rcm::cli; use anyhow::Result;");
    assert_clean(
        "cli/run.rs",
        "use clap::Args; use super::Globals; use crate::{migrate, sys};",
    );
    assert_clean(
        "criu/session.rs",
        "// use crate::runtime;\nconst S: &str = \"crate::runtime\"; use self::swrk::X;",
    );
    assert_clean(
        "sys/file.rs",
        "fn f(clap: u32) -> u32 { let anyhow = clap; anyhow }",
    );
    assert_clean("criu/mod.rs", "#[cfg(test)] mod tests { use super::*; }");
}

#[test]
fn a_new_top_level_module_needs_a_place() {
    assert_breach("agent/mod.rs", "", 1, "no place");
}

#[test]
fn confined_crates_stay_where_they_belong() {
    assert_breach(
        "runtime/mod.rs",
        "use anyhow::Context;",
        1,
        "belongs to main and cli",
    );
    assert_breach(
        "migrate/mod.rs",
        "#[derive(clap::Args)]\nstruct A;",
        1,
        "clap",
    );
    assert_breach(
        "migrate/mod.rs",
        "use libcontainer as lc;",
        1,
        "belongs to runtime",
    );
    assert_breach(
        "cli/list.rs",
        "type S = libcgroups::stats::Stats;",
        1,
        "libcgroups",
    );
    assert_breach("runtime/mod.rs", "use ::rust_criu::Criu;", 1, "rust_criu");
    assert_breach("runtime/mod.rs", "use ::anyhow;", 1, "anyhow");
    assert_breach("image/mod.rs", "use protobuf::{Message};", 1, "protobuf");
}

#[test]
fn the_floors_of_the_migration_are_kept() {
    assert_breach(
        "migrate/record/journal.rs",
        "use crate::migrate::ops::send;",
        1,
        "migrate::record imports migrate::ops, which is not on a floor below",
    );
    assert_breach(
        "migrate/source/session.rs",
        "use super::super::destination;",
        1,
        "not on a floor below",
    );
    assert_breach("migrate/cellar.rs", "", 1, "no place in FLOORS");
    assert_clean(
        "migrate/ops/send.rs",
        "use crate::migrate::record::journal;",
    );
}

/// The command line turns arguments into requests. Locks, records and CRIU are the business of the
/// operations that it calls.
#[test]
fn the_command_line_leaves_the_migration_to_the_operations() {
    for text in [
        "use crate::migrate::record::lock::Lock;",
        "use crate::migrate::record::journal;",
        "use crate::criu::Criu;",
    ] {
        assert_breach(
            "cli/live_migrate/send.rs",
            text,
            1,
            "cli::live_migrate imports",
        );
    }
    assert_clean("cli/live_migrate/send.rs", "use crate::migrate::ops::send;");
    assert_clean("cli/checkpoint.rs", "use crate::criu::Criu;");
}

#[test]
fn the_protocol_does_no_io() {
    for text in [
        "use std::fs::File;",
        "use std::{io, net::TcpStream};",
        "use crate::sys::file;",
        "fn f() { std::env::args(); }",
    ] {
        assert_breach(
            "migrate/wire/codec.rs",
            text,
            1,
            "migrate::wire::codec does I/O",
        );
    }
    assert_breach("migrate/wire/frame.rs", "use std::process;", 1, "does I/O");
    assert_clean("migrate/wire/codec.rs", "use std::io::{Read, Write};");
    assert_clean("migrate/link/channel.rs", "use std::net::TcpStream;");
}

#[test]
fn the_ends_of_a_migration_do_not_know_each_other() {
    assert_breach(
        "migrate/source.rs",
        "use super::destination::Prepared;",
        1,
        "migrate::source imports",
    );
    assert_breach(
        "migrate/destination/mod.rs",
        "use crate::migrate::{codec, source};",
        1,
        "migrate::destination imports",
    );
    assert_clean(
        "migrate/mod.rs",
        "pub mod source; pub mod destination; use self::source::Frozen;",
    );
}

#[test]
fn unsafe_stands_in_sys_with_a_reason() {
    assert_breach(
        "runtime/mod.rs",
        "// SAFETY: no\nfn f() {\n// SAFETY: none\nunsafe { g() } }",
        4,
        "outside src/sys",
    );
    assert_breach("cli/mod.rs", "#![allow(unsafe_code)]", 1, "outside src/sys");
    assert_breach(
        "sys/mod.rs",
        "fn f() {\n    let a = 1;\n    unsafe { g() }\n}",
        3,
        "SAFETY",
    );
    assert_breach(
        "sys/mod.rs",
        "struct A;\n// sendable\nunsafe impl Send for A {}",
        3,
        "SAFETY",
    );
    assert_breach(
        "sys/mod.rs",
        "fn f() {\n    // SAFETY: far away\n\n    unsafe { g() }\n}",
        4,
        "SAFETY",
    );
    assert_clean(
        "sys/mod.rs",
        "fn f() {\n    // SAFETY: g has no\n    // preconditions\n    let x =\n        unsafe { g() };\n}",
    );
    assert_clean(
        "sys/mod.rs",
        "// unsafe { }\nconst S: &str = \"unsafe { }\";",
    );
}

#[test]
fn versions_compare_as_numbers() {
    assert!(version("1.88") == version("1.88.0"));
    assert!(version("1.100") > version("1.88.1"));
}
