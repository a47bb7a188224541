//! The rules of the source tree that the compiler does not hold: who may import whom, where `unsafe` may stand, and
//! which Rust the crate claims to need. The checker itself is fed sources that break each rule.

mod rules;

use std::fs;
use std::path::Path;
use std::process::Command;

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

#[test]
fn the_source_tree_keeps_its_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    let mut files = 0;
    for entry in WalkDir::new(&root).sort_by_file_name() {
        let entry = entry.expect("src can be walked");
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "rs")
        {
            let file = entry
                .path()
                .strip_prefix(&root)
                .expect("below src")
                .to_str()
                .expect("UTF-8");
            let text = fs::read_to_string(entry.path()).expect("a source file can be read");
            all.extend(breaches(file, &text));
            files += 1;
        }
    }
    assert!(files > 0, "no source file below {}", root.display());
    assert!(
        all.is_empty(),
        "{} breaches:\n{}",
        all.len(),
        all.join("\n")
    );
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

/// Asserts that `text` as `src/<file>` breaks exactly one rule, on `line`, and that the message contains `what`.
#[track_caller]
fn assert_breach(file: &str, text: &str, line: usize, what: &str) {
    let found = breaches(file, text);
    assert_eq!(found.len(), 1, "one breach expected in {text:?}: {found:?}");
    assert!(
        found[0].starts_with(&format!("src/{file}:{line}: ")),
        "{}",
        found[0]
    );
    assert!(found[0].contains(what), "{:?} not in {:?}", what, found[0]);
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
    assert_clean("migrate/transport.rs", "use std::net::TcpStream;");
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
