//! Hooks: each kind runs once, in its place, with the state on its standard input.

use std::fs;
use std::path::PathBuf;

use crate::common::Host;
use serde_json::{Value, json};

const KINDS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// The states that the hooks of a kind got, in the order in which they ran.
fn states(dir: &std::path::Path, kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(dir.join(kind)).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn each_kind_gets_the_state_at_its_time() {
    let host = Host::new();
    let dir = host.dir().join("hooks");
    fs::create_dir(&dir).unwrap();
    let path = dir.display().to_string();
    let mut bundle = host
        .bundle("web")
        .bind(&dir, &path, "rw")
        .annotation("com.example.key", "value")
        .args(["sleep", "1000"]);
    fs::create_dir_all(bundle.rootfs().join(dir.strip_prefix("/").unwrap())).unwrap();
    for kind in KINDS {
        // startContainer runs in the container: busybox is there under the same name. It is slow:
        // poststart has to wait for it.
        let pause = if kind == "startContainer" {
            "sleep 0.2"
        } else {
            "true"
        };
        let script = format!("{pause}; (cat; echo) >> {path}/{kind}; echo {kind} >> {path}/order");
        bundle = bundle.hook(kind, &script);
    }
    host.create(&bundle);
    let pid = host.pid("web");
    let order = || fs::read_to_string(dir.join("order")).unwrap();
    assert_eq!(order(), "prestart\ncreateRuntime\ncreateContainer\n");
    host.start("web");
    assert_eq!(
        order(),
        "prestart\ncreateRuntime\ncreateContainer\nstartContainer\npoststart\n"
    );
    host.delete("web");
    assert!(order().ends_with("poststart\npoststop\n"), "{}", order());

    for (kind, status) in [
        ("prestart", "creating"),
        ("createRuntime", "creating"),
        ("createContainer", "creating"),
        ("startContainer", "created"),
        ("poststart", "running"),
        ("poststop", "stopped"),
    ] {
        let states = states(&dir, kind);
        assert_eq!(states.len(), 1, "{kind}");
        let state = &states[0];
        assert_eq!(state["ociVersion"], "1.2.0", "{kind}");
        assert_eq!(state["id"], "web", "{kind}");
        assert_eq!(state["bundle"], bundle.dir().to_str().unwrap(), "{kind}");
        assert_eq!(state["annotations"]["com.example.key"], "value", "{kind}");
        assert_eq!(state["status"], status, "{kind}");
        if ["prestart", "createRuntime", "poststart"].contains(&kind) {
            assert_eq!(state["pid"], pid, "{kind}: {state}");
        }
    }
}

#[test]
fn a_failing_hook_of_the_creation_leaves_nothing() {
    let host = Host::new();
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let bundle = host
            .bundle("web")
            .hook(kind, "true")
            .hook(kind, "printf out; printf because >&2; exit 3");
        for verb in ["create", "run"] {
            let output = host.cmd(verb).bundle(&bundle).run().exits_with(1);
            let stderr = output.stderr();
            let sentence = format!(
                "error running {kind} hook #1: exit status 3, stdout: out, stderr: because"
            );
            assert!(stderr.contains(&sentence), "{kind}: {output:?}");
            assert!(!stderr.contains("panicked"), "{kind}: {output:?}");
            assert_eq!(host.remains(), Vec::<String>::new(), "{kind}");
        }
    }
}

#[test]
fn a_failing_start_container_hook_ends_the_container() {
    let host = Host::new();
    let bundle = host.bundle("web").hook("startContainer", "exit 3");
    host.run(&bundle)
        .fails_with(255, "error running startContainer hook #0: exit status 3");
    assert_eq!(host.remains(), Vec::<String>::new());
}

#[test]
fn a_failing_poststart_hook_ends_the_container() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .args(["sleep", "1000"])
        .hook("poststart", "kill $$");
    host.create(&bundle);
    host.rcm(["start", "web"])
        .fails_with(1, "error running poststart hook #0: signal: terminated");
    host.wait_for_status("web", "stopped");
    host.delete("web");
    host.run(&bundle)
        .fails_with(1, "error running poststart hook #0");
    assert_eq!(host.remains(), Vec::<String>::new());
}

#[test]
fn a_failing_poststop_hook_is_only_a_warning() {
    let host = Host::new();
    let bundle = host.bundle("web").hook("poststop", "exit 3");
    let output = host.run(&bundle).ok();
    assert!(output.stderr().contains("level=warning"), "{output:?}");
    assert_eq!(host.remains(), Vec::<String>::new());
}

#[test]
fn a_missing_hook_is_named() {
    let host = Host::new();
    let bundle = host.bundle("web").edit(|config| {
        config["hooks"] = json!({"createRuntime": [{"path": "/no/such/hook"}]});
    });
    host.cmd("create").bundle(&bundle).run().fails_with(
        1,
        "error running createRuntime hook #0: cannot execute /no/such/hook",
    );
    assert_eq!(host.remains(), Vec::<String>::new());
}

#[test]
fn a_hook_that_takes_too_long_is_ended() {
    let host = Host::new();
    for kind in ["createRuntime", "createContainer"] {
        let bundle = host.bundle("web").edit(|config| {
            config["hooks"] = json!({kind: [
                {"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}
            ]});
        });
        let sentence =
            format!("error running {kind} hook #0: hook ran past specified timeout of 1.0s");
        host.cmd("create")
            .bundle(&bundle)
            .run()
            .fails_with(1, &sentence);
        assert_eq!(host.remains(), Vec::<String>::new());
    }
}

#[test]
fn hooks_write_as_much_as_they_like() {
    let host = Host::new();
    let much = "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; sleep 0.1; cat > state";
    let bundle = host
        .bundle("web")
        .hook("prestart", much)
        .hook("createContainer", "cat > /proc/self/cwd/state")
        .annotation("long", &"x".repeat(100_000));
    host.run(&bundle).ok();
    // Outside they begin in the bundle, inside in the root file system.
    let outside: Value =
        serde_json::from_slice(&fs::read(bundle.dir().join("state")).unwrap()).unwrap();
    assert_eq!(
        outside["annotations"]["long"].as_str().unwrap().len(),
        100_000
    );
    let inside: Value =
        serde_json::from_slice(&fs::read(bundle.rootfs().join("state")).unwrap()).unwrap();
    assert_eq!(inside["pid"], 1);
}

#[test]
fn the_environment_of_hooks() {
    let host = Host::new();
    let out = host.dir().join("env");
    let script = format!("env >> {}", out.display());
    let bundle = host.bundle("web").edit(|config| {
        config["hooks"] = json!({"createRuntime": [
            {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["ONE=1", "EMPTY="]},
            // Without one of its own it gets rcm's, as with runc.
            {"path": "/bin/sh", "args": ["sh", "-c", script]},
        ]});
    });
    host.cmd("run")
        .bundle(&bundle)
        .env("OF_RCM", "2")
        .run()
        .ok();
    let text = fs::read_to_string(&out).unwrap();
    let (first, second) = text.split_once("OF_RCM=2\n").unwrap();
    assert!(
        first.contains("ONE=1\n") && first.contains("EMPTY=\n"),
        "{text}"
    );
    assert!(!second.contains("ONE="), "{text}");
}

#[test]
fn hooks_see_the_namespaces_of_their_kind() {
    let host = Host::new();
    let dir = host.dir().join("hooks");
    fs::create_dir(&dir).unwrap();
    let path = dir.display();
    let mut bundle = host.bundle("web").args(["sleep", "1000"]);
    for kind in ["prestart", "createRuntime", "createContainer", "poststart"] {
        let script = "for kind in net mnt uts ipc pid; do readlink /proc/self/ns/$kind; done";
        bundle = bundle.hook(kind, &format!("({script}) > {path}/{kind}"));
    }
    host.run_detached(&bundle);
    let link = |pid: &str| {
        let links = ["net", "mnt", "uts", "ipc", "pid"].map(|kind| {
            let link: PathBuf = fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
            format!("{}\n", link.display())
        });
        links.concat()
    };
    let (outside, inside) = (link("self"), link(&host.pid("web").to_string()));
    let seen = |kind: &str| fs::read_to_string(dir.join(kind)).unwrap();
    assert_eq!(seen("prestart"), outside);
    assert_eq!(seen("createRuntime"), outside);
    assert_eq!(seen("createContainer"), inside);
    assert_eq!(seen("poststart"), outside);
}
