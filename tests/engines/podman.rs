//! Podman with rcm as its runtime, with conmon between them; as root and as a user.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use crate::common::{Cmd, Host, Namespace, Output, is_alive, skip, wait_until, wait_within};
use crate::engine::{CLIENT_LIMIT_DUR, Machine, Shared, image_archive, missing, setting};

pub const PROGRAMS: [&str; 2] = ["podman", "conmon"];
const MISSING: &str =
    "is not installed; `make deps` installs podman, conmon, uidmap and slirp4netns";
const IMAGE: &str = "localhost/busybox";

/// The files of an engine that has no daemon. Its containers' cgroups are below the host's parent,
/// its bridge is in a network namespace.
pub struct Podman {
    machine: Machine,
    network: Namespace,
    dir: PathBuf,
    /// Dropped last.
    host: Host,
}

impl Podman {
    pub fn shared() -> Arc<Self> {
        static SHARED: Shared<Podman> = Shared::new();
        SHARED.get(Self::new)
    }

    fn new() -> Self {
        let host = Host::new();
        let dir = host.dir().join("podman");
        fs::create_dir_all(dir.join("networks")).unwrap();
        fs::write(
            dir.join("containers.conf"),
            configuration(Path::new(env!("CARGO_BIN_EXE_rcm"))),
        )
        .unwrap();
        // With CNI: which addresses are taken is otherwise remembered for the whole machine.
        let network = json!({
            "cniVersion": "0.4.0", "name": "podman", "plugins": [
                {"type": "bridge", "bridge": "cni-podman0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                 "ipam": {"type": "host-local", "dataDir": dir.join("addresses"), "routes": [{"dst": "0.0.0.0/0"}],
                          "ranges": [[{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}]]}},
                {"type": "portmap", "capabilities": {"portMappings": true}},
                {"type": "firewall"}
            ]
        });
        fs::write(dir.join("networks/podman.conflist"), network.to_string()).unwrap();
        let podman = Self {
            machine: Machine::new(),
            network: Namespace::new(host.dir().join("network")),
            dir,
            host,
        };
        let archive = image_archive(&podman.host);
        podman
            .client(&["import"])
            .arg(archive)
            .arg(IMAGE)
            .run()
            .ok();
        podman
    }

    /// A program in the containers' network: the host's side of mapped ports.
    fn within(&self, program: &str) -> Cmd {
        self.machine
            .enter()
            .arg(format!("--net={}", self.network.path().display()))
            .arg(program)
            .limit(CLIENT_LIMIT_DUR)
    }

    /// `podman ARGUMENTS`.
    fn client(&self, args: &[&str]) -> Cmd {
        let mut client = self
            .within("podman")
            .env("CONTAINERS_CONF", self.dir.join("containers.conf"));
        for (flag, name) in [
            ("--root", "root"),
            ("--runroot", "run"),
            ("--tmpdir", "tmp"),
            ("--network-config-dir", "networks"),
        ] {
            client = client.arg(flag).arg(self.dir.join(name));
        }
        client.args(["--storage-driver", "vfs"]).args(args)
    }

    /// `podman run FLAGS IMAGE COMMAND`.
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Output {
        self.run_command(flags, command).run()
    }

    fn run_command(&self, flags: &[&str], command: &[&str]) -> Cmd {
        self.client(&["run", "--cgroup-parent", self.host.cgroup_parent()])
            .args(flags)
            .arg(IMAGE)
            .args(command)
    }

    pub fn exec(&self, name: &str, command: &[&str]) -> Output {
        self.client(&["exec", name]).args(command).run()
    }

    fn logs(&self, name: &str) -> String {
        self.client(&["logs", name]).run().ok().stdout()
    }

    /// `podman inspect --format {{field}}`.
    pub fn inspect(&self, name: &str, field: &str) -> String {
        let format = format!("{{{{{field}}}}}");
        let output = self.client(&["inspect", "--format", &format, name]).run();
        output.ok().stdout().trim().to_owned()
    }

    /// rcm as the containers' machine has it, in the test's network.
    pub fn rcm(&self) -> Cmd {
        self.machine.enter().arg(env!("CARGO_BIN_EXE_rcm"))
    }

    pub fn dir(&self) -> &Path {
        self.host.dir()
    }

    pub fn remove(&self, name: &str) {
        self.client(&["rm", "--force", "--time", "0", name])
            .run()
            .ok();
    }
}

impl Podman {
    /// Removes the groups that Podman made itself and leaves: conmon's, and empty ones of its pods.
    /// Those of containers are the runtime's to remove. Returns whether none is left.
    fn remove_groups(&self) -> bool {
        let parents = self.host.cgroup_dirs("");
        let groups = parents.iter().flat_map(fs::read_dir).flatten().flatten();
        let own = groups.filter(|entry| {
            let is_containers = entry.file_name().to_string_lossy().starts_with("libpod-");
            entry.path().is_dir() && !is_containers
        });
        own.filter(|group| fs::remove_dir(group.path()).is_err())
            .count()
            == 0
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // conmon ends a moment after its container. If it stays, the host finds it.
        let _ = wait_within(CLIENT_LIMIT_DUR, || {
            self.remove_groups() || std::thread::panicking()
        });
    }
}

/// The documented settings, and settings that keep the test apart. Limits are set because Podman's
/// own are more than a root without `CAP_SYS_RESOURCE` may have.
fn configuration(rcm: &Path) -> String {
    let apart = r#"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
"#;
    // Only one section can have this name.
    let documented = setting("/etc/containers/containers.conf", rcm);
    let (_, documented) = documented.split_once("[engine]").expect("a section");
    format!("{apart}{documented}")
}

#[test]
fn containers_run_and_are_managed() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} {MISSING}");
    }
    let podman = Podman::shared();
    let alone = ["--rm", "--network", "none"];
    let run = |command: &[&str]| podman.run(&alone, command);
    assert_eq!(run(&["echo", "hello"]).ok().stdout(), "hello\n");
    let info = podman.client(&["info", "--format", "{{.Host.OCIRuntime.Name}}"]);
    assert_eq!(info.run().ok().stdout(), "rcm\n");
    run(&["sh", "-c", "exit 42"]).exits_with(42);
    // Podman reads these off the runtime's sentence, too.
    run(&["no-such-program"]).exits_with(127);
    run(&["/etc/passwd"]).exits_with(126);
    let mut session = podman
        .run_command(&["--rm", "--network", "none", "-it"], &["sh"])
        .on_terminal();
    session.terminal.expect("/ # ");
    session.terminal.send("tty; exit 6\n");
    session.terminal.expect("/dev/pts/0");
    let (code, transcript) = session.wait();
    assert_eq!(code, 6, "{transcript}");

    let serve = "echo served >/tmp/page; httpd -p 80 -h /tmp; trap 'echo ended; exit 3' TERM; echo begun; while :; do sleep 0.1; done";
    let flags = [
        "--detach",
        "--name",
        "web",
        "--memory",
        "64m",
        "--publish",
        "127.0.0.1:18090:80",
    ];
    podman.run(&flags, &["sh", "-c", serve]).ok();
    wait_until("its output is in the log", || {
        podman.logs("web") == "begun\n"
    });
    let fetch = podman.within("busybox").args(["wget", "-q", "-O", "-"]);
    let fetched = fetch.arg("http://127.0.0.1:18090/page").run().ok();
    assert_eq!(fetched.stdout(), "served\n");

    let output = podman.exec("web", &["sh", "-c", "echo inside; exit 4"]);
    assert_eq!(output.exits_with(4).stdout(), "inside\n");
    let mut session = podman.client(&["exec", "-it", "web", "sh"]).on_terminal();
    session.terminal.expect("/ # ");
    session.terminal.send("exit 5\n");
    assert_eq!(session.wait().0, 5);
    let format = "{{.Name}} {{.PIDs}} {{.MemUsage}}";
    let stats = podman
        .client(&["stats", "--no-stream", "--format", format, "web"])
        .run()
        .ok()
        .stdout();
    let words: Vec<&str> = stats.split_whitespace().collect();
    assert_eq!((words[0], words[4]), ("web", "67.11MB"), "{stats}");
    assert!(words[1].parse::<u32>().unwrap() >= 2, "{stats}");
    let top = podman.client(&["top", "web"]).run().ok().stdout();
    assert!(top.contains("httpd -p 80"), "{top}");

    podman.client(&["pause", "web"]).run().ok();
    assert_eq!(podman.inspect("web", ".State.Status"), "paused");
    podman.client(&["unpause", "web"]).run().ok();
    podman.client(&["stop", "web"]).run().ok();
    assert_eq!(podman.inspect("web", ".State.ExitCode"), "3");
    podman.client(&["start", "web"]).run().ok();
    wait_until("it runs again", || {
        podman.logs("web") == "begun\nended\nbegun\n"
    });
    podman.client(&["kill", "web"]).run().ok();
    let code = podman.client(&["wait", "web"]).run().ok().stdout();
    assert_eq!(code, "137\n");
    podman.remove("web");
}

#[test]
fn containers_share_a_pod() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} {MISSING}");
    }
    let podman = Podman::shared();
    // There is no image of a pause program here.
    podman
        .client(&["pod", "create", "--name", "pod", "--infra-image", IMAGE])
        .args(["--infra-command", "sleep 1000", "--share", "ipc,net,uts"])
        .args(["--cgroup-parent", podman.host.cgroup_parent()])
        .run()
        .ok();
    let member = |flags: &[&str], command: &[&str]| {
        let run = podman.client(&["run", "--pod", "pod"]);
        run.args(flags).arg(IMAGE).args(command).run().ok()
    };
    let serve = "echo shared >/tmp/page; exec httpd -f -p 80 -h /tmp";
    member(&["--detach", "--name", "server"], &["sh", "-c", serve]);
    let fetch = "until wget -q -O - http://127.0.0.1/page; do usleep 20000; done; hostname";
    let output = member(&["--rm"], &["sh", "-c", fetch]);
    assert_eq!(output.stdout(), "shared\npod\n");
    let format = "{{.Status}} {{.NumberOfContainers}}";
    let pods = podman.client(&["pod", "ps", "--format", format]).run().ok();
    assert_eq!(pods.stdout(), "Running 2\n");
    let stats = podman
        .client(&["pod", "stats", "--no-stream", "pod"])
        .run()
        .ok()
        .stdout();
    assert!(stats.contains("server"), "{stats}");
    podman
        .client(&["pod", "stop", "--time", "0", "pod"])
        .run()
        .ok();
    wait_until("the pod is removed", || {
        // Podman does not wait for conmon, which is in the pod's group, to end.
        let remove = podman.client(&["pod", "rm", "--force", "--ignore", "pod"]);
        remove.run().code() == 0
    });
}

#[test]
fn a_checkpoint_is_exported_and_imported() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} {MISSING}");
    }
    let podman = Podman::shared();
    // Into its writable layer: the log of a removed container goes with it.
    let count =
        "number=0; while :; do number=$((number + 1)); echo $number >>/numbers; usleep 20000; done";
    let numbers = || {
        let output = podman.exec("counter", &["cat", "/numbers"]).ok();
        let lines = output.stdout();
        let numbers = lines.lines().map(|line| line.parse().unwrap());
        let numbers: Vec<usize> = numbers.collect();
        let expected: Vec<usize> = (1..=numbers.len()).collect();
        assert_eq!(numbers, expected);
        numbers.len()
    };
    let counts_on = || {
        let before = numbers();
        wait_until("it counts", || numbers() > before + 3);
    };
    let flags = ["--detach", "--name", "counter"];
    podman.run(&flags, &["sh", "-c", count]).ok();
    counts_on();
    let pid: i32 = podman.inspect("counter", ".State.Pid").parse().unwrap();
    let archive = podman.dir.join("counter.tar.gz");
    podman
        .client(&["container", "checkpoint", "--compress", "gzip", "--export"])
        .arg(&archive)
        .arg("counter")
        .run()
        .ok();
    assert!(!is_alive(pid));
    podman.remove("counter");
    podman
        .client(&["container", "restore", "--import"])
        .arg(&archive)
        .run()
        .ok();
    counts_on();
    // And once more without an archive, left running.
    podman
        .client(&["container", "checkpoint", "--leave-running", "counter"])
        .run()
        .ok();
    counts_on();
    podman.remove("counter");
}

/// A user that no machine needs to have: his mount namespace has other lists of users.
const USER: &str = "nobody";
const UID: u32 = 65534;

#[test]
fn a_user_runs_containers() {
    let programs = ["newuidmap", "slirp4netns"];
    if let Some(program) = missing(&PROGRAMS).or_else(|| missing(&programs)) {
        skip!("{program} {MISSING}");
    }
    let host = Host::new();
    let dir = host.dir();
    let archive = image_archive(&host);
    fs::create_dir_all(dir.join("home")).unwrap();
    fs::create_dir_all(dir.join("run")).unwrap();
    for owned in ["home", "run"] {
        std::os::unix::fs::chown(dir.join(owned), Some(UID), Some(UID)).unwrap();
    }
    // The directory of the build may be closed to other users, so the binary gets a name that they
    // reach.
    let rcm = dir.join("rcm");
    let built = Path::new(env!("CARGO_BIN_EXE_rcm"));
    fs::hard_link(built, &rcm)
        .or_else(|_| fs::copy(built, &rcm).map(drop))
        .unwrap();
    fs::write(dir.join("containers.conf"), configuration(&rcm)).unwrap();
    let home = dir.join("home").display().to_string();
    for (name, text) in [
        (
            "passwd",
            format!("root:x:0:0::/root:/bin/sh\n{USER}:x:{UID}:{UID}::{home}:/bin/sh\n"),
        ),
        ("subuid", format!("{USER}:200000:65536\n")),
        ("subgid", format!("{USER}:200000:65536\n")),
    ] {
        fs::write(dir.join(name), text).unwrap();
    }
    let script = r#"
cd "$HOME"
for name in passwd subuid subgid; do mount --bind "$DIR/$name" /etc/$name; done
ip link set lo up
# Ordinary users may open it, unless nobody (no udev) has said so on this machine.
mknod -m 666 "$DIR/tun" c 10 200
mount --bind "$DIR/tun" /dev/net/tun
podman() {
    setpriv --reuid $ID --regid $ID --clear-groups podman --storage-driver vfs "$@"
}
set -e
podman import "$ARCHIVE" localhost/busybox >/dev/null
podman run --rm --network none localhost/busybox sh -c 'id -u; head -n 1 /proc/self/uid_map'
podman run --detach --name web --network slirp4netns localhost/busybox sleep 1000 >/dev/null
podman exec web cat /sys/class/net/tap0/operstate
podman exec web sh -c 'exit 4' || echo $?
podman ps --format '{{.Names}}'
podman rm --force --time 0 web >/dev/null
podman run --rm --user 1000 --network none localhost/busybox id -u
# A process that keeps the user's namespaces for the next command.
kill "$(cat "$XDG_RUNTIME_DIR/libpod/tmp/pause.pid")"
"#;
    let output = Cmd::new("unshare")
        .args(["--mount", "--net", "sh", "-c", script])
        .env("DIR", dir)
        .env("ARCHIVE", archive)
        .env("ID", UID.to_string())
        .env("HOME", dir.join("home"))
        .env("USER", USER)
        .env("XDG_RUNTIME_DIR", dir.join("run"))
        .env("CONTAINERS_CONF", dir.join("containers.conf"))
        .limit(CLIENT_LIMIT_DUR)
        .run()
        .ok();
    let words: Vec<String> = output
        .stdout()
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    assert_eq!(
        words,
        ["0", "0", "65534", "1", "unknown", "4", "web", "1000"],
        "{output:?}"
    );
}
