//! A Docker daemon of the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MntFlags, umount2};

use crate::common::{Cmd, Host, Namespace, Output, Running, wait_until};
use crate::engine::{CLIENT_LIMIT_DUR, Machine, Shared, end, image_archive, setting};

/// Programs of a daemon and its client.
pub const PROGRAMS: [&str; 4] = ["dockerd", "docker", "containerd", "containerd-shim-runc-v2"];

const RCM: &str = env!("CARGO_BIN_EXE_rcm");

/// Way in which the daemon gets to know rcm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// By its settings: `docker run` takes it.
    Default,
    /// By a flag: `docker run --runtime rcm` takes it.
    Added,
}

/// A running dockerd with the image `busybox`. Its files are in the host's directory and its
/// containers' cgroups below the host's parent, so that the host notices anything that is left; its
/// bridges and packet filters are in a network namespace.
pub struct Docker {
    role: Role,
    flags: &'static [&'static str],
    /// `None` for the test's own.
    machine: Option<Machine>,
    network: Namespace,
    dir: PathBuf,
    /// Taken when it is stopped.
    daemon: Option<Running>,
    /// Dropped last.
    host: Host,
}

impl Docker {
    /// One that has rcm as its default runtime, for tests that leave it as it is.
    pub fn shared() -> Arc<Self> {
        static SHARED: Shared<Docker> = Shared::new();
        SHARED.get(|| Self::start(Role::Default, &["--experimental"]))
    }

    pub fn start(role: Role, flags: &'static [&'static str]) -> Self {
        Self::start_on(role, flags, None)
    }

    /// One whose containers' state is where Docker has it by default: in a `/run` that only the
    /// daemon and programs that are started [`Self::within`] its machine see.
    pub fn start_with_own_run(role: Role, flags: &'static [&'static str]) -> Self {
        Self::start_on(role, flags, Some(Machine::new()))
    }

    fn start_on(role: Role, flags: &'static [&'static str], machine: Option<Machine>) -> Self {
        let host = Host::new();
        let dir = host.dir().join("docker");
        fs::create_dir(&dir).unwrap();
        // Nothing of the machine's own Docker is read or written.
        let settings = match role {
            Role::Default => setting("/etc/docker/daemon.json", Path::new(RCM)),
            Role::Added => "{}".into(),
        };
        fs::write(dir.join("daemon.json"), settings).unwrap();
        let mut docker = Self {
            role,
            flags,
            machine,
            network: Namespace::new(host.dir().join("network")),
            dir,
            daemon: None,
            host,
        };
        docker.begin();
        let archive = image_archive(&docker.host);
        docker
            .client(["import"])
            .arg(&archive)
            .arg("busybox")
            .run()
            .ok();
        docker
    }

    /// Starts the daemon, again after [`Self::stop`].
    pub fn begin(&mut self) {
        let mut daemon = self
            .within("dockerd")
            .arg("--config-file")
            .arg(self.dir.join("daemon.json"))
            .arg("--data-root")
            .arg(self.dir.join("data"))
            .arg("--pidfile")
            .arg(self.dir.join("pid"))
            .arg("--host")
            .arg(self.socket())
            .args(["--cgroup-parent", self.host.cgroup_parent()])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .args(["--log-level", "warn"])
            .args(self.flags);
        if self.machine.is_none() {
            daemon = daemon.arg("--exec-root").arg(self.dir.join("exec"));
        }
        if self.role == Role::Added {
            daemon = daemon.arg("--add-runtime").arg(format!("rcm={RCM}"));
        }
        self.daemon = Some(daemon.spawn());
        wait_until("dockerd answers", || {
            let daemon = self.daemon.as_mut().unwrap();
            assert!(daemon.is_running(), "dockerd: {}", daemon.stderr());
            self.client(["version"]).run().code() == 0
        });
    }

    /// Ends the daemon. Its containers end with it, but for `--live-restore`.
    pub fn stop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            end(daemon);
        }
        // It makes its data directory a mount of its own and leaves that.
        let _ = umount2(&self.dir.join("data"), MntFlags::MNT_DETACH);
    }

    /// The containers' and the test's place.
    pub fn dir(&self) -> &Path {
        self.host.dir()
    }

    fn socket(&self) -> String {
        format!("unix://{}", self.dir.join("sock").display())
    }

    /// A program on the daemon's machine: its network has the host's side of mapped ports.
    pub fn within(&self, program: &str) -> Cmd {
        let network = format!("--net={}", self.network.path().display());
        self.enter().arg(network).arg(program)
    }

    /// rcm as the daemon's machine has it, in the test's network.
    pub fn rcm(&self) -> Cmd {
        self.enter().arg(RCM).limit(CLIENT_LIMIT_DUR)
    }

    fn enter(&self) -> Cmd {
        let machine = self.machine.as_ref();
        machine.map_or_else(|| Cmd::new("nsenter"), Machine::enter)
    }

    /// Gives a program the daemon's address.
    pub fn address(&self, program: Cmd) -> Cmd {
        program
            .env("DOCKER_CONFIG", self.dir.join("client"))
            .env("DOCKER_HOST", self.socket())
            .limit(CLIENT_LIMIT_DUR)
    }

    /// `docker ARGUMENTS`.
    pub fn client<const N: usize>(&self, args: [&str; N]) -> Cmd {
        self.address(Cmd::new("docker")).args(args)
    }

    /// `docker run FLAGS busybox COMMAND`.
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Output {
        self.run_command(flags, command).run()
    }

    /// As [`Self::run`], not started yet.
    pub fn run_command(&self, flags: &[&str], command: &[&str]) -> Cmd {
        let mut client = self.client(["run"]);
        if self.role == Role::Added {
            client = client.args(["--runtime", "rcm"]);
        }
        client.args(flags).arg("busybox").args(command)
    }

    /// A process in the container called `name`.
    pub fn exec(&self, name: &str, command: &[&str]) -> Output {
        self.client(["exec", name]).args(command).run()
    }

    /// Returns the output of the container called `name`.
    pub fn logs(&self, name: &str) -> String {
        self.client(["logs", name]).run().ok().stdout()
    }

    /// `docker inspect --format {{field}}`.
    pub fn inspect(&self, name: &str, field: &str) -> String {
        let format = format!("{{{{{field}}}}}");
        let output = self.client(["inspect", "--format", &format, name]).run();
        output.ok().stdout().trim().to_owned()
    }

    /// Ends and removes the container called `name`.
    pub fn remove(&self, name: &str) {
        self.client(["rm", "--force", "--volumes", name]).run().ok();
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        self.stop();
    }
}
