//! Bundles: a busybox root file system and a `config.json` that tests change as they need.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

/// A bundle. Every change is written at once.
#[derive(Debug)]
pub struct Bundle {
    id: String,
    dir: PathBuf,
    config: Value,
}

/// The statically linked busybox of the distribution and the names of its applets.
fn busybox() -> &'static (PathBuf, Vec<String>) {
    static BUSYBOX: OnceLock<(PathBuf, Vec<String>)> = OnceLock::new();
    BUSYBOX.get_or_init(|| {
        let path = ["/bin/busybox", "/usr/bin/busybox"]
            .iter()
            .map(PathBuf::from)
            .find(|path| path.exists())
            .expect("busybox is missing: `make deps` installs busybox-static");
        let output = Command::new(&path)
            .arg("--list")
            .output()
            .expect("busybox runs");
        let applets = String::from_utf8(output.stdout).expect("applets have ASCII names");
        (path, applets.lines().map(str::to_owned).collect())
    })
}

/// Fills `dir` with a busybox system: `/bin` with all applets and the directories that containers
/// mount on.
///
/// # Panics
/// If it cannot be made.
pub fn make_rootfs(dir: &Path) {
    let (program, applets) = busybox();
    for name in [
        "bin", "dev", "etc", "home", "mnt", "proc", "root", "sys", "tmp", "usr/bin", "var",
    ] {
        fs::create_dir_all(dir.join(name)).expect("a directory in the root file system");
    }
    fs::copy(program, dir.join("bin/busybox")).expect("a copy of busybox");
    for applet in applets.iter().filter(|applet| *applet != "busybox") {
        symlink("busybox", dir.join("bin").join(applet)).expect("a link to busybox");
    }
    fs::write(
        dir.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home:/bin/sh\n",
    )
    .expect("etc/passwd");
    fs::write(dir.join("etc/group"), "root:x:0:\nuser:x:1000:\n").expect("etc/group");
    fs::set_permissions(dir.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("modes");
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("modes");
}

/// Capabilities that Docker gives a container, by name without `CAP_`.
const CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

impl Bundle {
    pub(super) fn new(id: &str, dir: PathBuf, cgroups_path: &str) -> Self {
        let rootfs = dir.join("rootfs");
        // A bundle may be made anew with another spec; its files stay then.
        if !rootfs.exists() {
            fs::create_dir_all(&rootfs).expect("a bundle");
            make_rootfs(&rootfs);
        }
        let capabilities: Vec<String> = CAPABILITIES
            .iter()
            .map(|name| format!("CAP_{name}"))
            .collect();
        let config = json!({
            "ociVersion": "1.2.0",
            "process": {
                "terminal": false,
                "user": {"uid": 0, "gid": 0},
                "args": ["true"],
                "env": ["PATH=/bin:/usr/bin", "TERM=xterm"],
                "cwd": "/",
                "capabilities": {
                    "bounding": capabilities, "effective": capabilities, "permitted": capabilities
                },
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
                "noNewPrivileges": true
            },
            "root": {"path": "rootfs", "readonly": false},
            "hostname": "rcm",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                 "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                 "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                 "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                 "options": ["nosuid", "noexec", "nodev", "ro"]}
            ],
            "linux": {
                "cgroupsPath": cgroups_path,
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                "namespaces": [
                    {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}
                ],
                "maskedPaths": [
                    "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                    "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"
                ],
                "readonlyPaths": [
                    "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"
                ]
            }
        });
        let bundle = Self {
            id: id.to_owned(),
            dir,
            config,
        };
        bundle.save();
        bundle
    }

    /// The container's name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The bundle's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The root file system.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// The path of `config.json`.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    fn save(&self) {
        let text = serde_json::to_vec_pretty(&self.config).expect("a JSON value");
        fs::write(self.config_path(), text).expect("config.json is written");
    }

    /// Changes anything of the spec.
    #[must_use]
    pub fn edit(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self.save();
        self
    }

    /// Replaces the value at a JSON pointer such as `/linux/resources`; the parent must be there.
    #[must_use]
    pub fn set(self, pointer: &str, value: Value) -> Self {
        self.edit(|config| {
            let (parent, key) = pointer.rsplit_once('/').expect("a pointer with a slash");
            config
                .pointer_mut(parent)
                .unwrap_or_else(|| panic!("config.json has no {parent}"))[key] = value;
        })
    }

    fn push(self, pointer: &str, value: Value) -> Self {
        self.edit(|config| {
            config
                .pointer_mut(pointer)
                .and_then(Value::as_array_mut)
                .unwrap_or_else(|| panic!("config.json has no array {pointer}"))
                .push(value);
        })
    }

    /// The command line of the first process.
    #[must_use]
    pub fn args<S: AsRef<str>>(self, args: impl IntoIterator<Item = S>) -> Self {
        let args: Vec<String> = args
            .into_iter()
            .map(|arg| arg.as_ref().to_owned())
            .collect();
        self.set("/process/args", json!(args))
    }

    /// The first process is a shell with this script.
    #[must_use]
    pub fn script(self, script: &str) -> Self {
        self.args(["sh", "-c", script])
    }

    /// One more variable, `NAME=VALUE`.
    #[must_use]
    pub fn env(self, variable: &str) -> Self {
        self.push("/process/env", json!(variable))
    }

    /// The first process gets a terminal.
    #[must_use]
    pub fn terminal(self) -> Self {
        self.set("/process/terminal", json!(true))
    }

    /// The user and group of the first process.
    #[must_use]
    pub fn user(self, uid: u32, gid: u32) -> Self {
        self.set("/process/user", json!({"uid": uid, "gid": gid}))
    }

    /// One more mount.
    #[must_use]
    pub fn mount(self, kind: &str, source: &Path, destination: &str, options: &[&str]) -> Self {
        self.push(
            "/mounts",
            json!({"type": kind, "source": source, "destination": destination, "options": options}),
        )
    }

    /// One more bind mount, recursive, read-only or not.
    #[must_use]
    pub fn bind(self, source: &Path, destination: &str, access: &str) -> Self {
        self.mount("bind", source, destination, &["rbind", access])
    }

    /// Programs and libraries of the host, read-only, because busybox does not have all.
    #[must_use]
    pub fn host_programs(mut self) -> Self {
        for name in ["usr", "lib", "lib64", "etc"] {
            let path = Path::new("/").join(name);
            if path.exists() {
                fs::create_dir_all(self.rootfs().join(name)).expect("a mount point");
                self = self.bind(&path, path.to_str().expect("ASCII"), "ro");
            }
        }
        self.set(
            "/process/env",
            json!(["PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin", "TERM=xterm"]),
        )
    }

    /// Joins or makes a namespace, in place of the spec's entry of that kind.
    #[must_use]
    pub fn namespace(self, kind: &str, path: Option<&Path>) -> Self {
        let value = match path {
            Some(path) => json!({"type": kind, "path": path}),
            None => json!({"type": kind}),
        };
        self.without_namespace(kind)
            .push("/linux/namespaces", value)
    }

    /// Shares this kind of namespace with the host.
    #[must_use]
    pub fn without_namespace(self, kind: &str) -> Self {
        self.edit(|config| {
            config["linux"]["namespaces"]
                .as_array_mut()
                .expect("namespaces")
                .retain(|namespace| namespace["type"] != kind);
        })
    }

    /// The container gets a user namespace: its ids from 0 to 65535 are those from `base` on the
    /// host, which own the root file system.
    #[must_use]
    pub fn user_namespace(self, base: u32) -> Self {
        for entry in walkdir::WalkDir::new(self.rootfs()) {
            let entry = entry.expect("the root file system can be walked");
            std::os::unix::fs::lchown(entry.path(), Some(base), Some(base)).expect("lchown");
        }
        let mapping = json!([{"containerID": 0, "hostID": base, "size": 65536}]);
        self.namespace("user", None)
            .set("/linux/uidMappings", mapping.clone())
            .set("/linux/gidMappings", mapping)
    }

    /// Limits as in `linux.resources`, beside the device rules.
    #[must_use]
    pub fn resource(self, name: &str, value: Value) -> Self {
        self.set(&format!("/linux/resources/{name}"), value)
    }

    /// One more hook of a kind such as `prestart`: a shell script on the host, with the state on
    /// its standard input.
    #[must_use]
    pub fn hook(self, kind: &str, script: &str) -> Self {
        self.edit(|config| {
            let hook = json!({
                "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]
            });
            if config.get("hooks").is_none() {
                config["hooks"] = json!({});
            }
            let hooks = &mut config["hooks"];
            if hooks.get(kind).is_none() {
                hooks[kind] = json!([]);
            }
            hooks[kind].as_array_mut().expect("hooks").push(hook);
        })
    }

    /// One more annotation.
    #[must_use]
    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.edit(|config| {
            if config.get("annotations").is_none() {
                config["annotations"] = json!({});
            }
            config["annotations"][key] = json!(value);
        })
    }
}
