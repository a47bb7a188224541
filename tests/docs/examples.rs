//! The examples that need machines of their own. These tests only check that their files can be
//! parsed; tests in `tests/it/migrate` run the same steps.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::Cmd;
use walkdir::WalkDir;

fn files(extension: &str) -> Vec<PathBuf> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found: Vec<PathBuf> = ["examples", "scripts", "tests"]
        .iter()
        .flat_map(|dir| WalkDir::new(top.join(dir)))
        .map(|entry| entry.unwrap().into_path())
        .filter(|path| path.extension().is_some_and(|name| name == extension))
        .collect();
    assert!(!found.is_empty(), "no file *.{extension}");
    found
}

#[test]
fn shell_scripts_can_be_parsed() {
    for script in files("sh") {
        Cmd::new("bash").arg("-n").arg(script).run().ok();
    }
    assert_ne!(Cmd::new("bash").args(["-nc", "if then"]).run().code(), 0);
}

#[test]
fn python_programs_can_be_compiled() {
    let check = "import ast, sys\nfor path in sys.argv[1:]: ast.parse(open(path).read(), path)";
    Cmd::new("python3")
        .args(["-c", check])
        .args(files("py"))
        .run()
        .ok();
}

/// A Vagrantfile can be executed without Vagrant: it only describes the machines.
#[test]
fn the_vagrantfile_names_two_machines() {
    const VAGRANT: &str = "
        class Machine
          def method_missing(name, *words, **more, &block)
            puts words.first if name == :define
            block&.call(Machine.new)
            Machine.new
          end
        end
        module Vagrant
          def self.configure(_version) = yield(Machine.new)
        end
        load ARGV[0]";
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/two-workers/Vagrantfile"
    );
    let output = Cmd::new("ruby")
        .args(["-w", "-e", VAGRANT, path])
        .run()
        .ok();
    assert_eq!(output.stdout(), "worker1\nworker2\n", "{output:?}");
}

/// Each file of the playbook is YAML, and all files that its tasks copy, fill in or import exist.
#[test]
fn the_playbook_can_be_read() {
    let files = files("yml");
    let parse =
        "ARGV.each { |path| YAML.safe_load(File.read(path), filename: path) or abort path }";
    Cmd::new("ruby")
        .args(["-ryaml", "-e", parse])
        .args(&files)
        .run()
        .ok();
    assert_ne!(
        Cmd::new("ruby")
            .args(["-ryaml", "-e", "YAML.safe_load('a: [')"])
            .run()
            .code(),
        0
    );
    let mut named = 0;
    for path in files
        .iter()
        .filter(|path| path.parent().is_some_and(|dir| dir.ends_with("tasks")))
    {
        let role = path.ancestors().nth(2).unwrap();
        for line in fs::read_to_string(path).unwrap().lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let dir = match words.as_slice() {
                ["src:", name] if name.ends_with(".j2") => role.join("templates").join(name),
                ["ansible.builtin.import_tasks:", name] => role.join("tasks").join(name),
                _ => continue,
            };
            assert!(dir.exists(), "{}: {}", path.display(), dir.display());
            named += 1;
        }
    }
    assert!(named > 4, "only {named} files are named");
}
