//! The OCI features document (runtime-spec, features.md), which lists the abilities of this
//! runtime.
//!
//! Engines read it to decide which properties they may put into a spec. It describes this build,
//! and not the host's settings.

use libseccomp::{ScmpAction, ScmpArch, ScmpFilterContext, ScmpVersion};
use serde_json::{Value, json};

use crate::runtime::linux::mounts;

/// Oldest version of the OCI runtime specification that is accepted.
const OLDEST_SPEC: &str = "1.0.0";

const HOOKS: &[&str] = &[
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

const NAMESPACES: &[&str] = &[
    "cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts",
];

/// Capabilities in the order of their numbers (capabilities(7)).
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const SECCOMP_ACTIONS: &[&str] = &[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

const SECCOMP_OPERATORS: &[&str] = &[
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

/// Architectures that libcontainer translates. libseccomp and this machine's byte order decide
/// which of them a filter can have.
const SECCOMP_ARCHS: &[&str] = &[
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];

type SetFlag = fn(&mut ScmpFilterContext) -> bool;

/// Flags, each with the function that sets it. libseccomp refuses a flag that it or the kernel does
/// not support.
const SECCOMP_FLAGS: [(&str, SetFlag); 4] = [
    ("SECCOMP_FILTER_FLAG_LOG", |filter| {
        filter.set_ctl_log(true).is_ok()
    }),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", |filter| {
        filter.set_ctl_ssb(true).is_ok()
    }),
    ("SECCOMP_FILTER_FLAG_TSYNC", |filter| {
        filter.set_ctl_tsync(true).is_ok()
    }),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", |filter| {
        filter.set_ctl_waitkill(true).is_ok()
    }),
];

/// Returns libseccomp's version, `major.minor.micro`.
#[must_use]
pub fn libseccomp_version() -> Option<String> {
    let version = ScmpVersion::current().ok()?;
    Some(format!(
        "{}.{}.{}",
        version.major, version.minor, version.micro
    ))
}

/// Returns the document. `version` and `commit` are this build's.
#[must_use]
pub fn document(version: &str, commit: Option<&str>) -> Value {
    json!({
        "ociVersionMin": OLDEST_SPEC,
        "ociVersionMax": oci_spec::runtime::VERSION,
        "hooks": HOOKS,
        "mountOptions": mounts::names().collect::<Vec<_>>(),
        "linux": {
            "namespaces": NAMESPACES,
            "capabilities": CAPABILITIES,
            "cgroup": {
                "v1": true,
                "v2": true,
                "systemd": true,
                // libcontainer has code for it, but it is untested with rcm.
                "systemdUser": false,
                // libcontainer does not know this controller.
                "rdma": false
            },
            "seccomp": seccomp(),
            "apparmor": {"enabled": true},
            // libcontainer labels mounts, but not processes.
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
            "memoryPolicy": {
                "modes": [
                    "MPOL_BIND", "MPOL_DEFAULT", "MPOL_INTERLEAVE", "MPOL_LOCAL", "MPOL_PREFERRED", "MPOL_PREFERRED_MANY",
                    "MPOL_WEIGHTED_INTERLEAVE"
                ],
                "flags": ["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"]
            },
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true}
        },
        "annotations": annotations(version, commit),
        "potentiallyUnsafeConfigAnnotations": ["bundle", "org.systemd.property.", "org.criu.config"]
    })
}

fn seccomp() -> Value {
    let archs: Vec<&&str> = SECCOMP_ARCHS
        .iter()
        .filter(|name| accepts_arch(name))
        .collect();
    let supported: Vec<&str> = SECCOMP_FLAGS
        .into_iter()
        .filter(|(_, set)| {
            ScmpFilterContext::new(ScmpAction::Allow).is_ok_and(|mut filter| set(&mut filter))
        })
        .map(|(name, _)| name)
        .collect();
    json!({
        "enabled": true,
        "actions": SECCOMP_ACTIONS,
        "operators": SECCOMP_OPERATORS,
        "archs": archs,
        "knownFlags": SECCOMP_FLAGS.map(|(name, _)| name),
        "supportedFlags": supported
    })
}

/// Returns whether a filter that is made here can include the architecture.
fn accepts_arch(name: &str) -> bool {
    let add = || -> Result<(), libseccomp::error::SeccompError> {
        let arch: ScmpArch = name.parse()?;
        ScmpFilterContext::new(ScmpAction::Allow)?.add_arch(arch)?;
        Ok(())
    };
    add().is_ok()
}

/// Returns runc's annotations, which engines look for, and rcm's own.
fn annotations(version: &str, commit: Option<&str>) -> Value {
    let mut annotations = json!({});
    if let Some(version) = libseccomp_version() {
        annotations["io.github.seccomp.libseccomp.version"] = version.into();
    }
    annotations["org.opencontainers.runc.checkpoint.enabled"] = "true".into();
    if let Some(commit) = commit {
        annotations["org.opencontainers.runc.commit"] = commit.into();
    }
    annotations["org.opencontainers.runc.version"] = version.into();
    annotations["org.rcm.live-migration"] = "true".into();
    annotations["org.rcm.version"] = version.into();
    annotations
}

#[cfg(test)]
mod tests {
    use super::*;
    use libcontainer::syscall::linux::MountOption;
    use oci_spec::runtime::{
        Arch, Capability, Features, LinuxNamespaceType, LinuxSeccompAction, LinuxSeccompFilterFlag,
        LinuxSeccompOperator, MemoryPolicyFlagType, MemoryPolicyModeType,
    };
    use serde::de::DeserializeOwned;

    fn all_are<T: DeserializeOwned>(names: &Value) {
        let names = names.as_array().unwrap();
        assert!(!names.is_empty());
        for name in names {
            assert!(serde_json::from_value::<T>(name.clone()).is_ok(), "{name}");
        }
    }

    #[test]
    fn what_is_listed_is_what_a_spec_may_say() {
        let document = document("1.2.3", None);
        let linux = &document["linux"];
        all_are::<LinuxNamespaceType>(&linux["namespaces"]);
        all_are::<Capability>(&linux["capabilities"]);
        all_are::<LinuxSeccompAction>(&linux["seccomp"]["actions"]);
        all_are::<LinuxSeccompOperator>(&linux["seccomp"]["operators"]);
        all_are::<Arch>(&linux["seccomp"]["archs"]);
        all_are::<LinuxSeccompFilterFlag>(&linux["seccomp"]["knownFlags"]);
        all_are::<MemoryPolicyModeType>(&linux["memoryPolicy"]["modes"]);
        all_are::<MemoryPolicyFlagType>(&linux["memoryPolicy"]["flags"]);
        // rcm knows every option that libcontainer knows.
        let options = document["mountOptions"].as_array().unwrap();
        for option in MountOption::known_options() {
            assert!(options.contains(&option.as_str().into()), "{option}");
        }
        assert!(serde_json::from_value::<Features>(document).is_ok());
    }

    #[test]
    fn the_native_architecture_has_filters() {
        assert!(accepts_arch("SCMP_ARCH_NATIVE"));
        assert!(!accepts_arch("SCMP_ARCH_PDP11"));
    }

    #[test]
    fn the_commit_is_told_where_it_is_known() {
        let annotation = "org.opencontainers.runc.commit";
        assert_eq!(document("1", Some("abc"))["annotations"][annotation], "abc");
        assert!(document("1", None)["annotations"].get(annotation).is_none());
    }
}
