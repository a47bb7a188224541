//! Template of `rcm spec`, which is runc's.

use std::path::Path;

use nix::unistd::{getegid, geteuid};
use serde_json::{Value, json};

/// Returns a spec with many options set. Its root file system is the directory `rootfs` beside it.
#[must_use]
pub fn example() -> Value {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let mut namespaces: Vec<Value> = ["pid", "network", "ipc", "uts", "mount"]
        .map(|kind| json!({"type": kind}))
        .into();
    if unified {
        // On cgroup v1, the directory of each controller would have to be looked up in the
        // namespace first.
        namespaces.push(json!({"type": "cgroup"}));
    }
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    json!({
        "ociVersion": oci_spec::runtime::VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "runc",
        "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &[
                "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"
            ]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"])
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": namespaces,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    let mut mount = json!({"destination": destination, "type": kind, "source": source});
    if !options.is_empty() {
        mount["options"] = json!(options);
    }
    mount
}

/// Returns a spec for a user without privileges, who becomes the container's root. It has no
/// network namespace, because the user could not connect it to anything. It has the host's `/sys`,
/// because a new sysfs needs a network namespace. It has no ids that are not mapped, and no limits.
#[must_use]
pub fn rootless_example() -> Value {
    let mut spec = example();
    let linux = &mut spec["linux"];
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({"type": "user"}));
    }
    linux["uidMappings"] = json!([{"containerID": 0, "hostID": geteuid().as_raw(), "size": 1}]);
    linux["gidMappings"] = json!([{"containerID": 0, "hostID": getegid().as_raw(), "size": 1}]);
    if let Some(linux) = linux.as_object_mut() {
        linux.shift_remove("resources");
    }
    for entry in spec["mounts"].as_array_mut().into_iter().flatten() {
        if entry["destination"] == "/sys" {
            *entry = mount(
                "/sys",
                "none",
                "/sys",
                &["rbind", "nosuid", "noexec", "nodev", "ro"],
            );
        }
        if let Some(options) = entry.get_mut("options").and_then(Value::as_array_mut) {
            options.retain(|option| {
                !option
                    .as_str()
                    .is_some_and(|option| option.starts_with("uid=") || option.starts_with("gid="))
            });
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::spec::lower;
    use oci_spec::runtime::Spec;

    #[test]
    fn the_examples_are_valid() {
        for value in [example(), rootless_example()] {
            let spec: Spec = serde_json::from_value(value).unwrap();
            lower::validate(&spec).unwrap();
        }
    }

    #[test]
    fn the_rootless_example_needs_no_privileges() {
        let spec = rootless_example();
        let text = spec.to_string();
        assert!(
            !text.contains("gid=5") && !text.contains("\"network\""),
            "{text}"
        );
        assert!(spec["linux"].get("resources").is_none());
        assert_eq!(spec["linux"]["uidMappings"][0]["size"], 1);
        let sys = spec["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .find(|mount| mount["destination"] == "/sys")
            .unwrap();
        assert_eq!(sys["type"], "none");
    }
}
