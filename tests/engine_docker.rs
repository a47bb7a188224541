//! Docker with rcm as its runtime: a daemon of the test's own, with its own directories, socket and containerd.

mod common;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{COMMAND_LIMIT_DUR, Cmd, Host, Output, Running, skip, wait_until};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

/// A running dockerd. Its containers' cgroups are below the host's parent and its files in the host's directory, so that
/// the host notices what is left.
struct Docker {
    dir: PathBuf,
    /// Taken when it is stopped.
    daemon: Option<Running>,
}

impl Docker {
    /// Starts a daemon that has the image `busybox`.
    fn start(host: &Host) -> Self {
        let dir = host.dir().join("docker");
        fs::create_dir(&dir).unwrap();
        // Nothing of the machine's own Docker is read or written.
        fs::write(dir.join("daemon.json"), "{}").unwrap();
        let daemon = Cmd::new("dockerd")
            .arg("--config-file")
            .arg(dir.join("daemon.json"))
            .arg("--data-root")
            .arg(dir.join("data"))
            .arg("--exec-root")
            .arg(dir.join("exec"))
            .arg("--pidfile")
            .arg(dir.join("pid"))
            .arg("--host")
            .arg(format!("unix://{}", dir.join("sock").display()))
            .arg("--add-runtime")
            .arg(format!("rcm={}", env!("CARGO_BIN_EXE_rcm")))
            .args(["--cgroup-parent", host.cgroup_parent()])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .args(["--storage-driver", "vfs"])
            .args([
                "--iptables=false",
                "--ip6tables=false",
                "--ip-forward=false",
            ])
            .args(["--bridge=none", "--log-level=warn"])
            .spawn();
        let mut docker = Self {
            dir,
            daemon: Some(daemon),
        };
        wait_until("dockerd answers", || {
            let daemon = docker.daemon.as_mut().unwrap();
            assert!(daemon.is_running(), "dockerd: {}", daemon.stderr());
            docker.client(["version"]).run().code() == 0
        });
        let bundle = host.bundle("image");
        let archive = docker.dir.join("image.tar");
        Cmd::new("tar")
            .arg("-C")
            .arg(bundle.rootfs())
            .arg("-cf")
            .arg(&archive)
            .arg(".")
            .run()
            .ok();
        docker
            .client(["import"])
            .arg(&archive)
            .arg("busybox")
            .run()
            .ok();
        docker
    }

    fn client<const N: usize>(&self, args: [&str; N]) -> Cmd {
        Cmd::new("docker")
            .env("DOCKER_CONFIG", self.dir.join("client"))
            .arg("--host")
            .arg(format!("unix://{}", self.dir.join("sock").display()))
            .args(args)
            .limit(Duration::from_secs(60))
    }

    /// `docker run --runtime rcm FLAGS busybox COMMAND`.
    fn run(&self, flags: &[&str], command: &[&str]) -> Output {
        self.client(["run", "--runtime", "rcm", "--network", "none"])
            .args(flags)
            .arg("busybox")
            .args(command)
            .run()
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else {
            return;
        };
        if daemon.is_running() {
            // It ends its containers and its containerd, too.
            daemon.signal(Signal::SIGTERM);
            let deadline = Instant::now() + COMMAND_LIMIT_DUR;
            while daemon.is_running() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        // dockerd makes its data directory a mount of its own and leaves that.
        let _ = umount2(&self.dir.join("data"), MntFlags::MNT_DETACH);
    }
}

/// Whether Docker is there; says so where it is not.
fn missing() -> Option<&'static str> {
    ["dockerd", "docker", "containerd", "containerd-shim-runc-v2"]
        .into_iter()
        .find(|program| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            !std::env::split_paths(&path).any(|dir| dir.join(program).exists())
        })
}

#[test]
fn docker_runs_containers_with_rcm() {
    if let Some(program) = missing() {
        skip!("{program} is not installed; `make deps` installs docker.io");
    }
    let host = Host::new();
    let docker = Docker::start(&host);

    let output = docker.run(&["--rm"], &["echo", "hello"]).ok();
    assert_eq!(output.stdout(), "hello\n", "{output:?}");

    // Exit statuses, Docker's own for what cannot be executed included: it tells them by the runtime's sentence.
    docker.run(&["--rm"], &["false"]).exits_with(1);
    docker
        .run(&["--rm"], &["sh", "-c", "exit 42"])
        .exits_with(42);
    docker.run(&["--rm"], &["no-such-program"]).exits_with(127);
    docker.run(&["--rm"], &["/no/such/program"]).exits_with(127);
    docker.run(&["--rm"], &["/etc/passwd"]).exits_with(126);

    // A terminal: the runtime sends it to containerd's console socket.
    let output = docker
        .run(&["--rm", "--tty"], &["sh", "-c", "tty; stty size"])
        .ok();
    assert!(output.stdout().starts_with("/dev/pts/0"), "{output:?}");
    // Standard input.
    let output = docker
        .client(["run", "--rm", "--interactive", "--runtime", "rcm"])
        .args(["--network", "none", "busybox", "cat"])
        .stdin("through\n")
        .run()
        .ok();
    assert_eq!(output.stdout(), "through\n");

    // What Docker restricts by default and on request.
    let output = docker
        .run(
            &["--rm", "--cap-drop", "ALL", "--read-only", "--user", "1000:1000"],
            &["sh", "-c", "id -u; touch /x 2>/dev/null || echo read-only; grep -E '^(CapEff|Seccomp):' /proc/self/status"],
        )
        .ok();
    let text = output.stdout();
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(
        words,
        [
            "1000",
            "read-only",
            "CapEff:",
            "0000000000000000",
            "Seccomp:",
            "2"
        ],
        "{output:?}"
    );
    // The default seccomp profile forbids this without CAP_SYS_ADMIN; unconfined it works.
    let unshare: &[&str] = &["unshare", "-U", "echo", "made"];
    let output = docker.run(&["--rm"], unshare);
    assert_ne!(output.code(), 0, "{output:?}");
    let free = ["--rm", "--security-opt", "seccomp=unconfined"];
    assert_eq!(docker.run(&free, unshare).ok().stdout(), "made\n");
}

#[test]
fn docker_manages_a_container_of_rcm() {
    if let Some(program) = missing() {
        skip!("{program} is not installed; `make deps` installs docker.io");
    }
    let host = Host::new();
    let docker = Docker::start(&host);

    let script = "trap 'echo ended; exit 3' TERM; echo begun; while :; do sleep 0.1; done";
    docker
        .run(
            &[
                "--detach",
                "--name",
                "web",
                "--memory",
                "32m",
                "--pids-limit",
                "20",
            ],
            &["sh", "-c", script],
        )
        .ok();
    let logs = || docker.client(["logs", "web"]).run().ok().stdout();
    wait_until("its output is in the log", || logs() == "begun\n");

    let output = docker
        .client(["exec", "web", "sh", "-c", "echo inside; exit 5"])
        .run()
        .exits_with(5);
    assert_eq!(output.stdout(), "inside\n");
    let output = docker
        .client(["exec", "web", "sh", "-c"])
        .arg("cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true")
        .run()
        .ok();
    assert_eq!(output.stdout().trim(), (32 << 20).to_string(), "{output:?}");

    docker.client(["pause", "web"]).run().ok();
    let inspect = |what: &str| {
        let format = format!("{{{{{what}}}}}");
        docker
            .client(["inspect", "--format", &format, "web"])
            .run()
            .ok()
            .stdout()
            .trim()
            .to_owned()
    };
    assert_eq!(inspect(".State.Status"), "paused");
    docker.client(["unpause", "web"]).run().ok();
    assert_eq!(inspect(".State.Status"), "running");

    docker.client(["stop", "web"]).run().ok();
    assert_eq!(inspect(".State.ExitCode"), "3");
    assert_eq!(logs(), "begun\nended\n");
    docker.client(["start", "web"]).run().ok();
    wait_until("it runs again", || logs() == "begun\nended\nbegun\n");
    docker.client(["rm", "--force", "web"]).run().ok();

    // More memory than the limit: the kernel kills it, and Docker is told.
    docker
        .run(
            &["--name", "web", "--memory", "16m", "--memory-swap", "16m"],
            &["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"],
        )
        .exits_with(137);
    docker.client(["rm", "web"]).run().ok();

    // What is left running is the daemon's to end when it stops.
    docker.run(&["--detach", "--rm"], &["sleep", "1000"]).ok();
    drop(docker);
    assert_eq!(host.remains(), Vec::<String>::new());
}
