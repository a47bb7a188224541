//! containerd with rcm behind its shim for runc, as Kubernetes and `ctr` use it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::common::{Cmd, Host, Output, Running, is_alive, skip, wait_until};
use crate::engine::{CLIENT_LIMIT_DUR, Shared, end, image_archive, missing, setting};

pub const PROGRAMS: [&str; 3] = ["containerd", "containerd-shim-runc-v2", "ctr"];
const IMAGE: &str = "docker.io/local/busybox:latest";

/// A running containerd that has [`IMAGE`]. Its containers' state is below the host's directory,
/// their cgroups are below the host's parent.
pub struct Containerd {
    dir: PathBuf,
    /// Taken when it is stopped.
    daemon: Option<Running>,
    /// Dropped last.
    host: Host,
}

impl Containerd {
    pub fn shared() -> Arc<Self> {
        static SHARED: Shared<Containerd> = Shared::new();
        SHARED.get(Self::start)
    }

    fn start() -> Self {
        let host = Host::new();
        let dir = host.dir().join("containerd");
        fs::create_dir(&dir).unwrap();
        let place = dir.display();
        let config = format!(
            r#"
version = 2
root = "{place}/root"
state = "{place}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = "{place}/sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{place}/opt"
"#
        );
        let path = dir.join("config.toml");
        fs::write(&path, config).unwrap();
        let daemon = Cmd::new("containerd")
            .arg("--config")
            .arg(&path)
            .args(["--log-level", "warn"])
            .spawn();
        let mut containerd = Self {
            dir,
            daemon: Some(daemon),
            host,
        };
        wait_until("containerd answers", || {
            let daemon = containerd.daemon.as_mut().unwrap();
            assert!(daemon.is_running(), "containerd: {}", daemon.stderr());
            containerd.ctr(&["version"]).run().code() == 0
        });
        let image = containerd.image();
        containerd.ctr(&["image", "import"]).arg(image).run().ok();
        containerd
    }

    /// An archive as `docker save` makes them, of one layer.
    fn image(&self) -> PathBuf {
        let layer = image_archive(&self.host);
        let dir = layer.parent().unwrap();
        let output = Command::new("sha256sum").arg(&layer).output().unwrap();
        let digest = String::from_utf8(output.stdout).unwrap();
        let digest = digest.split(' ').next().unwrap();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]}
        });
        let manifest =
            json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["image.tar"]}]);
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
        let archive = dir.join("saved.tar");
        Cmd::new("tar")
            .arg("-C")
            .arg(dir)
            .arg("-cf")
            .arg(&archive)
            .args(["manifest.json", "config.json", "image.tar"])
            .run()
            .ok();
        archive
    }

    /// `ctr ARGUMENTS`.
    fn ctr(&self, args: &[&str]) -> Cmd {
        Cmd::new("ctr")
            .arg("--address")
            .arg(self.dir.join("sock"))
            .args(args)
            .limit(CLIENT_LIMIT_DUR)
    }

    /// `ctr run FLAGS IMAGE ID COMMAND`.
    fn run_command(&self, id: &str, flags: &[&str], command: &[&str]) -> Cmd {
        self.ctr(&["run", "--runc-binary", env!("CARGO_BIN_EXE_rcm")])
            .arg("--runc-root")
            .arg(self.runtime_root())
            .arg("--cgroup")
            .arg(format!("{}/{id}", self.host.cgroup_parent()))
            .args(flags)
            .args([IMAGE, id])
            .args(command)
    }

    pub fn run(&self, id: &str, flags: &[&str], command: &[&str]) -> Output {
        self.run_command(id, flags, command).run()
    }

    /// A process in a container; its name only has to be free.
    pub fn exec(&self, id: &str, command: &[&str]) -> Output {
        let exec = self.ctr(&["task", "exec", "--exec-id", "inside", id]);
        exec.args(command).run()
    }

    /// A client that prints all events from now on.
    fn events(&self) -> Running {
        let mut events = self.ctr(&["events"]).spawn();
        let mut number = 0;
        wait_until("the client is told of events", || {
            assert!(events.is_running(), "{}", events.stderr());
            number += 1;
            let label = format!("probe={number}");
            let probe = self.ctr(&["namespaces", "label", "default", &label]);
            probe.run().ok();
            events.stdout().contains("/namespaces/")
        });
        events
    }

    /// Returns the status from `ctr task ls`; `None` if there is no such task.
    fn status(&self, id: &str) -> Option<String> {
        let tasks = self.ctr(&["task", "ls"]).run().ok().stdout();
        tasks.lines().find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words.first() == Some(&id)).then(|| words[2].to_owned())
        })
    }

    pub fn wait_for_status(&self, id: &str, status: &str) {
        wait_until(status, || self.status(id).as_deref() == Some(status));
    }

    /// Kills the task, and removes it and its container.
    pub fn remove(&self, id: &str) {
        if self.status(id).as_deref() == Some("RUNNING") {
            let kill = self.ctr(&["task", "kill", "--signal", "SIGKILL", id]);
            kill.run().ok();
        }
        if self.status(id).is_some() {
            self.wait_for_status(id, "STOPPED");
            // It passes the task's exit status on.
            self.ctr(&["task", "delete", id]).run();
        }
        self.ctr(&["container", "delete", id]).run().ok();
    }

    pub fn dir(&self) -> &Path {
        self.host.dir()
    }

    /// The value of `--root` but for the namespace.
    pub fn runtime_root(&self) -> PathBuf {
        self.dir.join("runc")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            end(daemon);
        }
    }
}

/// Counts in a file of its writable layer.
const COUNTER: &str =
    "number=0; while :; do number=$((number + 1)); echo $number >>/numbers; usleep 20000; done";

/// Returns the numbers that the counter of a container has written, whole and in order.
fn numbers(containerd: &Containerd, id: &str) -> usize {
    let output = containerd.exec(id, &["cat", "/numbers"]).ok();
    let numbers: Vec<usize> = output
        .stdout()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    let expected: Vec<usize> = (1..=numbers.len()).collect();
    assert_eq!(numbers, expected);
    numbers.len()
}

#[test]
fn tasks_run_and_are_managed() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} is not installed; `make deps` installs containerd");
    }
    let containerd = Containerd::shared();
    let output = containerd.run("once", &["--rm"], &["echo", "hello"]);
    assert_eq!(output.ok().stdout(), "hello\n");
    let output = containerd.run("once", &["--rm"], &["sh", "-c", "exit 7"]);
    output.exits_with(7);
    let mut session = containerd
        .run_command("typed", &["--rm", "--tty"], &["sh"])
        .on_terminal();
    session.terminal.expect("/ # ");
    session.terminal.send("tty; exit 6\n");
    session.terminal.expect("/dev/pts/0");
    let (code, transcript) = session.wait();
    assert_eq!(code, 6, "{transcript}");

    let events = containerd.events();
    let flags = ["--detach", "--null-io", "--memory-limit", "33554432"];
    containerd.run("web", &flags, &["sh", "-c", COUNTER]).ok();
    containerd.wait_for_status("web", "RUNNING");
    let output = containerd.exec("web", &["sh", "-c", "echo inside; exit 4"]);
    assert_eq!(output.exits_with(4).stdout(), "inside\n");
    // The shim gets them from the runtime's `ps`.
    let processes = containerd.ctr(&["task", "ps", "web"]).run().ok().stdout();
    assert!(processes.lines().count() >= 2, "{processes}");

    let metrics: Value = containerd
        .ctr(&["task", "metrics", "--format", "json", "web"])
        .run()
        .ok()
        .json();
    let limit = metrics.pointer("/memory/usage/limit").unwrap();
    assert_eq!(limit.as_u64(), Some(33_554_432), "{metrics}");
    assert!(metrics["pids"]["current"].as_u64() > Some(0), "{metrics}");

    containerd.ctr(&["task", "pause", "web"]).run().ok();
    containerd.wait_for_status("web", "PAUSED");
    let output = containerd.exec("web", &["true"]);
    assert_ne!(output.code(), 0, "{output:?}");
    containerd.ctr(&["task", "resume", "web"]).run().ok();
    containerd.wait_for_status("web", "RUNNING");
    containerd
        .ctr(&["task", "kill", "--signal", "SIGKILL", "web"])
        .run()
        .ok();
    containerd.wait_for_status("web", "STOPPED");
    containerd.remove("web");
    assert_eq!(containerd.status("web"), None);

    for topic in [
        "create",
        "start",
        "exec-added",
        "exec-started",
        "paused",
        "resumed",
        "exit",
        "delete",
    ] {
        wait_until(topic, || {
            let stream = events.stdout();
            let line = |line: &str| {
                line.contains(&format!("/tasks/{topic} ")) && line.contains(r#""web""#)
            };
            stream.lines().any(line)
        });
    }
}

#[test]
fn the_documented_setting_is_understood() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} is not installed; `make deps` installs containerd");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    let rcm = Path::new(env!("CARGO_BIN_EXE_rcm"));
    fs::write(&path, setting("/etc/containerd/config.toml", rcm)).unwrap();
    let config = Cmd::new("containerd").arg("--config").arg(path);
    let config = config.args(["config", "dump"]).run().ok().stdout();
    let name = format!("BinaryName = \"{}\"", rcm.display());
    assert!(config.contains(&name), "{config}");
}

#[test]
fn memory_that_runs_out_is_an_event() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} is not installed; `make deps` installs containerd");
    }
    let containerd = Containerd::shared();
    let events = containerd.events();
    let flags = ["--detach", "--null-io", "--memory-limit", "16777216"];
    containerd.run("greedy", &flags, &["sleep", "1000"]).ok();
    // The shim watches the memory only from the start of the task on, so the memory runs out after
    // it.
    let greedy = ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"];
    assert_ne!(containerd.exec("greedy", &greedy).code(), 0);
    wait_until("the event", || {
        let stream = events.stdout();
        let line = |line: &str| line.contains("/tasks/oom ") && line.contains(r#""greedy""#);
        stream.lines().any(line)
    });
    containerd.remove("greedy");
}

#[test]
fn tasks_are_checkpointed_and_restored() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} is not installed; `make deps` installs containerd");
    }
    let containerd = Containerd::shared();
    let flags = ["--detach", "--null-io"];
    let counts_on = || {
        let before = numbers(&containerd, "counter");
        wait_until("it counts", || numbers(&containerd, "counter") > before + 3);
    };
    containerd
        .run("counter", &flags, &["sh", "-c", COUNTER])
        .ok();
    counts_on();
    // Memory and writable layer become an image, and the container runs on.
    containerd
        .ctr(&[
            "container",
            "checkpoint",
            "--task",
            "--rw",
            "--image",
            "counter",
            "local/kept:1",
        ])
        .run()
        .ok();
    counts_on();
    containerd.remove("counter");
    // All of that again: the numbers since are neither in the memory nor in the file.
    containerd
        .ctr(&[
            "container",
            "restore",
            "--live",
            "--rw",
            "counter",
            "local/kept:1",
        ])
        .run()
        .ok();
    containerd.wait_for_status("counter", "RUNNING");
    counts_on();

    // A checkpoint into a directory, which ends the task.
    let images = containerd.dir.join("images");
    let pid = pid(&containerd, "counter");
    containerd
        .ctr(&["task", "checkpoint", "--exit", "--image-path"])
        .arg(&images)
        .arg("counter")
        .run()
        .ok();
    containerd.wait_for_status("counter", "STOPPED");
    assert!(!is_alive(pid));
    assert!(images.join("inventory.img").exists());
    containerd.remove("counter");
    containerd.ctr(&["image", "rm", "local/kept:1"]).run().ok();
}

/// Returns the state that rcm has in the state directory of the shim.
fn pid(containerd: &Containerd, id: &str) -> i32 {
    let root = containerd.runtime_root().join("default");
    let state = Cmd::new(env!("CARGO_BIN_EXE_rcm"))
        .arg("--root")
        .arg(root)
        .args(["state", id])
        .run()
        .ok();
    i32::try_from(state.json()["pid"].as_i64().unwrap()).unwrap()
}

#[test]
fn ten_tasks_at_once() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} is not installed; `make deps` installs containerd");
    }
    let containerd = Containerd::shared();
    let names: Vec<String> = (0..10).map(|number| format!("many-{number}")).collect();
    let flags = ["--detach", "--null-io"];
    let starting: Vec<Running> = names
        .iter()
        .map(|name| {
            containerd
                .run_command(name, &flags, &["sleep", "1000"])
                .spawn()
        })
        .collect();
    for client in starting {
        client.wait().ok();
    }
    for name in &names {
        containerd.wait_for_status(name, "RUNNING");
    }
    for name in &names {
        containerd.remove(name);
    }
    let left = fs::read_dir(containerd.runtime_root().join("default")).unwrap();
    let left: Vec<_> = left
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("many-"))
        .collect();
    assert_eq!(left, [""; 0]);
}
