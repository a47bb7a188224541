//! A failure is one line and one error record, and leaves nothing behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::common::{Cmd, Host};
use serde_json::{Value, json};

/// Asserts that rcm left nothing of a failed creation: state, process, cgroup or mount.
#[track_caller]
fn assert_nothing_left(host: &Host) {
    assert_eq!(host.remains(), Vec::<String>::new());
}

/// `create` and `run` of the bundle fail alike with one line, and leave nothing.
#[track_caller]
fn assert_refused(host: &Host, dir: &Path, sentence: &str) {
    for verb in ["create", "run"] {
        host.cmd(verb)
            .arg("--bundle")
            .arg(dir)
            .arg("web")
            .run()
            .fails_with(1, sentence);
        assert_nothing_left(host);
    }
}

#[test]
fn a_bundle_without_a_spec() {
    let host = Host::new();
    let bundle = host.bundle("web");
    fs::remove_file(bundle.config_path()).unwrap();
    assert_refused(&host, bundle.dir(), "config.json not found");
}

#[test]
fn a_bundle_that_is_not_there() {
    let host = Host::new();
    assert_refused(&host, &host.dir().join("nowhere"), "nowhere");
}

#[test]
fn a_spec_that_is_no_json() {
    let host = Host::new();
    let bundle = host.bundle("web");
    for text in ["", "{", "{\"ociVersion\": \"1.2.0\",}", "7", "\u{0}"] {
        fs::write(bundle.config_path(), text).unwrap();
        assert_refused(
            &host,
            bundle.dir(),
            "config.json is not a valid OCI runtime",
        );
    }
}

#[test]
fn a_spec_that_asks_for_nonsense() {
    let host = Host::new();
    let pids = json!([{"type": "pid"}, {"type": "pid"}]);
    for (pointer, value, sentence) in [
        ("/ociVersion", json!("2.0.0"), "is not supported"),
        (
            "/process/cwd",
            json!("relative"),
            "Cwd must be an absolute path",
        ),
        (
            "/process/args",
            json!([]),
            "args property must not be empty",
        ),
        (
            "/process",
            Value::Null,
            "process property must not be empty",
        ),
        ("/linux/namespaces", pids, "duplicated ns"),
        ("/linux/namespaces", json!([{"type": "moon"}]), "moon"),
    ] {
        let bundle = host.bundle("web").set(pointer, value);
        assert_refused(&host, bundle.dir(), sentence);
    }
}

#[test]
fn a_root_file_system_that_is_not_there() {
    let host = Host::new();
    let bundle = host.bundle("web").set("/root/path", json!("no-such-dir"));
    assert_refused(&host, bundle.dir(), "invalid rootfs");
    let bundle = host.bundle("web").set("/root/path", json!("config.json"));
    assert_refused(&host, bundle.dir(), "not a directory");
}

#[test]
fn a_program_that_cannot_be_executed() {
    let host = Host::new();
    let bundle = host.bundle("web");
    fs::write(bundle.rootfs().join("bin/not-executable"), "#!/bin/sh\n").unwrap();
    for (args, sentence) in [
        (["no-such"], "executable file not found in $PATH"),
        (["/no/such"], "no such file or directory"),
        (["/bin/not-executable"], "permission denied"),
        (["/bin"], "is a directory"),
    ] {
        let bundle = host.bundle("web").args(args);
        assert_refused(&host, bundle.dir(), sentence);
    }
}

#[test]
fn a_program_that_fails_to_execute_after_the_start() {
    let host = Host::new();
    let bundle = host.bundle("web").args(["/bin/broken"]);
    fs::write(bundle.rootfs().join("bin/broken"), "#!/no/interpreter\n").unwrap();
    let mut permissions = bundle
        .rootfs()
        .join("bin/broken")
        .metadata()
        .unwrap()
        .permissions();
    permissions.set_mode(0o755);
    fs::set_permissions(bundle.rootfs().join("bin/broken"), permissions).unwrap();
    // The container fails and not rcm. So the reason is in the container's output, which `docker
    // logs` shows.
    let output = host.run(&bundle).exits_with(255);
    assert_eq!(
        output.stderr(),
        "exec /bin/broken: no such file or directory\n"
    );
    assert_nothing_left(&host);
    fs::write(
        bundle.rootfs().join("bin/broken"),
        [0x7f, b'E', b'L', b'F', 0, 0],
    )
    .unwrap();
    let output = host.run_detached(&bundle);
    host.wait_for_status("web", "stopped");
    assert_eq!(output.stderr(), "exec /bin/broken: exec format error\n");
    host.delete("web");
    assert_nothing_left(&host);
}

#[test]
fn mounts_and_resources_that_are_impossible() {
    let host = Host::new();
    let missing = host.dir().join("no-such-source");
    let bundle = host.bundle("web").bind(&missing, "/mnt", "rw");
    assert_refused(&host, bundle.dir(), "no-such-source");
    let bundle = host
        .bundle("web")
        .mount("no-such-fs", "none".as_ref(), "/mnt", &[]);
    assert_refused(&host, bundle.dir(), "/mnt");
    let bundle = host.bundle("web").resource("cpu", json!({"cpus": "4000"}));
    assert_refused(&host, bundle.dir(), "cpuset");
    let bundle = host
        .bundle("web")
        .namespace("network", Some("/proc/self/ns/no-such".as_ref()));
    assert_refused(&host, bundle.dir(), "no-such");
}

#[test]
fn ids_that_could_be_paths_or_options() {
    let host = Host::new();
    let bundle = host.bundle("web");
    let canary = host.dir().join("canary");
    fs::create_dir(&canary).unwrap();
    let with_slash = canary.to_str().unwrap();
    for id in [
        ".",
        "..",
        "../canary",
        "a/../../canary",
        "a/b",
        "a b",
        "a\nb",
        "\u{e4}",
        "a\u{7f}",
        with_slash,
    ] {
        for verb in ["create", "run"] {
            host.cmd(verb)
                .arg("--bundle")
                .arg(bundle.dir())
                .arg(id)
                .run()
                .fails_with(1, "invalid container ID format");
        }
        for verb in ["state", "start", "kill", "delete", "pause", "resume"] {
            host.cmd(verb)
                .arg(id)
                .run()
                .fails_with(1, "invalid container ID format");
        }
        let forced = host.rcm(["delete", "--force", id]);
        forced.fails_with(1, "invalid container ID format");
        host.exec(id, ["true"])
            .fails_with(255, "invalid container ID format");
    }
    for verb in ["create", "run"] {
        host.cmd(verb)
            .arg("--bundle")
            .arg(bundle.dir())
            .arg("")
            .run()
            .fails_with(1, "container id cannot be empty");
        let long = "x".repeat(1025);
        host.cmd(verb)
            .arg("--bundle")
            .arg(bundle.dir())
            .arg(long)
            .run()
            .exits_with(1);
    }
    assert!(canary.is_dir());
    assert_nothing_left(&host);
}

#[test]
fn an_id_in_use() {
    let host = Host::new();
    let bundle = host.bundle("web").args(["sleep", "1000"]);
    host.create(&bundle);
    let pid = host.pid("web");
    for verb in ["create", "run"] {
        host.cmd(verb)
            .bundle(&bundle)
            .run()
            .fails_with(1, "container with given ID already exists");
    }
    assert_eq!(host.status("web"), "created");
    assert_eq!(host.pid("web"), pid);
}

#[test]
fn a_container_that_nobody_knows() {
    let host = Host::new();
    for verb in ["state", "start", "kill", "delete", "pause", "resume"] {
        host.cmd(verb)
            .arg("web")
            .run()
            .fails_with(1, "container does not exist");
    }
    host.exec("web", ["true"])
        .fails_with(255, "container does not exist");
    // As with runc, so that cleaning up twice is no error.
    let output = host.rcm(["delete", "--force", "web"]).ok();
    assert_eq!(output.stderr(), "");
}

#[test]
fn a_state_directory_that_cannot_be_used() {
    let host = Host::new();
    let bundle = host.bundle("web");
    fs::write(host.root(), "a file").unwrap();
    for verb in ["create", "run"] {
        host.cmd(verb).bundle(&bundle).run().fails_with(1, "state");
    }
    host.cmd("list").run().fails_with(1, "state");
    host.rcm(["state", "web"]).exits_with(1);
    fs::remove_file(host.root()).unwrap();
}

#[test]
fn consoles_and_terminals_that_do_not_match() {
    let host = Host::new();
    let with = host.bundle("web").terminal();
    host.cmd("create")
        .bundle(&with)
        .run()
        .fails_with(1, "without setting console socket");
    host.cmd("run")
        .arg("--detach")
        .bundle(&with)
        .run()
        .fails_with(1, "without setting console socket");
    host.cmd("create")
        .args(["--console-socket", "/no/such/socket"])
        .bundle(&with)
        .run()
        .fails_with(1, "/no/such/socket");
    let without = host.bundle("web");
    host.cmd("create")
        .args(["--console-socket", "/no/such/socket"])
        .bundle(&without)
        .run()
        .fails_with(1, "cannot use console socket");
    host.cmd("create")
        .args(["--pidfd-socket", "/no/such/socket"])
        .bundle(&without)
        .run()
        .fails_with(1, "/no/such/socket");
    host.cmd("create")
        .args(["--pid-file", "/no/such/dir/pid"])
        .bundle(&without)
        .run()
        .fails_with(1, "/no/such/dir/pid");
    assert_nothing_left(&host);
}

#[test]
fn wrong_usage_is_an_error_with_the_status_of_runc() {
    let host = Host::new();
    for arguments in [
        &["--no-such-flag", "list"][..],
        &["state"],
        &["state", "--no-such-flag", "web"],
        &["kill"],
        &["--log-format", "xml", "list"],
        &["list", "superfluous"],
    ] {
        let output = host.global(arguments).run().exits_with(1);
        let stderr = output.stderr();
        assert!(stderr.contains("incorrect usage"), "{output:?}");
        assert!(!stderr.contains("panicked"), "{output:?}");
        assert_eq!(output.stdout(), "");
    }
    let help = host.bare().arg("--help").run().ok();
    assert!(help.stdout().contains("create"), "{help:?}");
    assert_eq!(help.stderr(), "");
}

/// The records of a log in JSON.
fn records(path: &Path) -> Vec<Value> {
    fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

#[test]
fn a_failed_command_writes_one_error_record() {
    let host = Host::new();
    let log = host.dir().join("log.json");
    let path = log.to_str().unwrap();
    let bundle = host.bundle("web").args(["no-such"]);
    let missing_source =
        host.bundle("mounts")
            .bind(&host.dir().join("no-such-source"), "/mnt", "rw");
    let dir = bundle.dir().to_str().unwrap().to_owned();
    let mounts_dir = missing_source.dir().to_str().unwrap().to_owned();
    for (arguments, code) in [
        (vec!["state", "unknown"], 1),
        (vec!["kill", "unknown", "KILL"], 1),
        (vec!["exec", "unknown", "true"], 255),
        (vec!["create", "--bundle", &dir, "web"], 1),
        (vec!["run", "--bundle", &dir, "web"], 1),
        (vec!["run", "--bundle", &mounts_dir, "mounts"], 1),
        (vec!["create", "--no-such-flag"], 1),
    ] {
        let _ = fs::remove_file(&log);
        let flags = ["--log", path, "--log-format", "json"];
        let output = host.global(flags).args(&arguments).run().exits_with(code);
        let records = records(&log);
        assert_eq!(records.len(), 1, "{records:?} of {output:?}");
        let record = records[0].as_object().unwrap();
        let mut members: Vec<_> = record.keys().collect();
        members.sort();
        assert_eq!(members, ["level", "msg", "time"]);
        assert_eq!(record["level"], "error");
        let time = record["time"].as_str().unwrap();
        assert!(chrono::DateTime::parse_from_rfc3339(time).is_ok(), "{time}");
        // The user sees it, too.
        let message = record["msg"].as_str().unwrap();
        assert!(
            output.stderr().contains(message),
            "{message:?} not in {output:?}"
        );
        assert_nothing_left(&host);
    }
}

#[test]
fn the_log_is_appended_to_and_text_by_default() {
    let host = Host::new();
    let log = host.dir().join("log");
    for _ in 0..2 {
        host.global([Path::new("--log"), &log])
            .args(["state", "unknown"])
            .run()
            .fails_with(1, "container does not exist");
    }
    let text = fs::read_to_string(&log).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    for line in text.lines() {
        assert!(line.starts_with("time=\""), "{line}");
        assert!(
            line.ends_with(r#" level=error msg="container does not exist""#),
            "{line}"
        );
    }
    host.global(["--log", "/no/such/dir/log", "list"])
        .run()
        .fails_with(1, "/no/such/dir/log");
}

#[test]
fn a_successful_command_logs_no_error() {
    let host = Host::new();
    let log = host.dir().join("log.json");
    let flags = [
        "--log",
        log.to_str().unwrap(),
        "--log-format",
        "json",
        "--debug",
    ];
    let bundle = host.bundle("web").script("exit 3");
    host.global(flags)
        .arg("run")
        .bundle(&bundle)
        .run()
        .exits_with(3);
    let records = records(&log);
    assert!(!records.is_empty(), "--debug says something");
    assert!(
        records.iter().all(|record| record["level"] != "error"),
        "{records:?}"
    );
}

#[test]
fn a_reader_that_goes_away_does_not_stop_list() {
    let host = Host::new();
    host.create(&host.bundle("web").args(["sleep", "1000"]));
    let output = Cmd::new("sh")
        .args(["-c", r#""$@" | true"#, "sh"])
        .arg(env!("CARGO_BIN_EXE_rcm"))
        .arg("--root")
        .arg(host.root())
        .arg("list")
        .run()
        .ok();
    assert!(!output.stderr().contains("panicked"), "{output:?}");
}
