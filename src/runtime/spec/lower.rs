//! Spec lowering: an OCI spec is validated as runc validates it, then turned into an equivalent one
//! that libcontainer can run.
//!
//! Everything that libcontainer understands differently from runc is translated here, one function
//! for each topic. All code after this module sees one spec with one meaning. The user's spec stays
//! unchanged in the container's directory.

use std::collections::HashSet;
use std::path::Path;

use libcontainer::syscall::syscall::create_syscall;
use libcontainer::validator::Validator;
use oci_spec::runtime::{Linux, LinuxResources, LinuxSchedulerPolicy, Spec};

mod error;
mod process;

pub use error::InvalidSpec;
pub use process::{normalize_process, validate_process};

use super::namespaces::Namespaces;
use super::normalize::count_of_list;
use crate::runtime::linux::mounts;
use crate::runtime::linux::seccomp;
use error::Result;

fn refused(error: impl std::error::Error) -> InvalidSpec {
    InvalidSpec::Libcontainer {
        reason: crate::error::chain(&error),
    }
}

/// Checks a spec before anything is made. Nothing on the host changes.
///
/// # Errors
/// [`InvalidSpec`].
pub fn validate(spec: &Spec) -> Result<()> {
    if !spec.version().starts_with("1.") {
        return Err(InvalidSpec::Version {
            version: spec.version().clone(),
        });
    }
    let process = spec.process().as_ref().ok_or(InvalidSpec::Missing {
        property: "process",
    })?;
    validate_process(process)?;
    if spec.root().is_none() {
        return Err(InvalidSpec::Missing { property: "root" });
    }
    let linux = spec
        .linux()
        .as_ref()
        .ok_or(InvalidSpec::Missing { property: "linux" })?;
    let namespaces = Namespaces::of(spec);
    for mount in spec.mounts().iter().flatten() {
        mounts::validate(mount, spec, &namespaces).map_err(|source| InvalidSpec::Mount {
            destination: mount.destination().clone(),
            source,
        })?;
    }
    refuse_unsupported(spec)?;
    if let Some(filter) = linux.seccomp() {
        seccomp::validate(filter)?;
    }
    let listed = linux.namespaces().as_deref().unwrap_or_default();
    for (index, namespace) in listed.iter().enumerate() {
        if listed[..index]
            .iter()
            .any(|one| one.typ() == namespace.typ())
        {
            return Err(InvalidSpec::DuplicateNamespace {
                kind: namespace.typ(),
            });
        }
    }
    Ok(())
}

/// Refuses properties that libcontainer would silently ignore.
fn refuse_unsupported(spec: &Spec) -> Result<()> {
    let unified = resources(spec).and_then(|resources| resources.unified().as_ref());
    if unified.is_some_and(|files| !files.is_empty())
        && !Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
    {
        return Err(InvalidSpec::UnifiedOnV1);
    }
    // libcontainer sets the policy before the group has its limits, so the kernel would not refuse
    // it.
    let processors = resources(spec)
        .and_then(|resources| resources.cpu().as_ref()?.cpus().as_deref())
        .and_then(count_of_list);
    let deadline = spec
        .process()
        .as_ref()
        .and_then(|process| process.scheduler().as_ref())
        .is_some_and(|scheduler| *scheduler.policy() == LinuxSchedulerPolicy::SchedDeadline);
    if deadline
        && processors
            .zip(online_processors())
            .is_some_and(|(some, all)| some < all)
    {
        return Err(InvalidSpec::DeadlineOnSomeProcessors);
    }
    Ok(())
}

/// Turns a valid spec into the one that libcontainer runs.
///
/// # Errors
/// [`InvalidSpec`] if the host lacks something that the spec names.
pub fn lower(mut spec: Spec, id: &str, bundle: &Path, systemd_cgroup: bool) -> Result<Spec> {
    lower_root(&mut spec, bundle)?;
    lower_process(&mut spec);
    lower_mounts(&mut spec, bundle);
    lower_namespaces(&mut spec);
    lower_cgroup(&mut spec, id, systemd_cgroup);
    lower_linux(&mut spec);

    Validator::validate_spec(&spec).map_err(refused)?;
    let syscall = create_syscall();
    if let Some(mounts) = spec.mounts() {
        libcontainer::utils::validate_mount_options(mounts).map_err(refused)?;
    }
    libcontainer::utils::validate_spec_for_new_user_ns(&spec, &*syscall).map_err(refused)?;
    libcontainer::utils::validate_spec_for_net_devices(&spec, &*syscall).map_err(refused)?;
    Ok(spec)
}

/// Makes the root file system's path absolute, as libcontainer needs it.
fn lower_root(spec: &mut Spec, bundle: &Path) -> Result<()> {
    if let Some(root) = spec.root_mut() {
        let path = bundle.join(root.path());
        let absolute = path
            .canonicalize()
            .map_err(|source| InvalidSpec::Rootfs { path, source })?;
        if !absolute.is_dir() {
            return Err(InvalidSpec::RootfsNotDirectory { path: absolute });
        }
        root.set_path(absolute);
    }
    Ok(())
}

/// Refuses a root file system whose `/dev` is a link. While the container is created, libcontainer
/// makes links there and removes a file. The path that it uses would follow the link on the host
/// (CVE-2026-41579).
///
/// # Errors
/// [`InvalidSpec::DevIsLink`].
pub fn check_dev(lowered: &Spec) -> Result<()> {
    match lowered.root() {
        Some(root) if root.path().join("dev").is_symlink() => Err(InvalidSpec::DevIsLink {
            path: root.path().clone(),
        }),
        _ => Ok(()),
    }
}

fn lower_process(spec: &mut Spec) {
    if let Some(process) = spec.process_mut() {
        normalize_process(process);
    }
}

/// Makes the paths of mounts absolute. Sources of bind mounts are relative to the bundle;
/// libcontainer resolves them against its working directory. Destinations are absolute in the
/// container even without a slash, or with the root file system's path on the host in front, as
/// with runc.
fn lower_mounts(spec: &mut Spec, bundle: &Path) {
    let rootfs = spec.root().as_ref().map(|root| root.path().clone());
    for mount in spec.mounts_mut().iter_mut().flatten() {
        let below = rootfs
            .as_ref()
            .filter(|rootfs| rootfs.parent().is_some())
            .and_then(|rootfs| mount.destination().strip_prefix(rootfs).ok())
            .map(Path::to_path_buf);
        if let Some(below) = below {
            mount.set_destination(below);
        }
        if !mount.destination().is_absolute() {
            mount.set_destination(Path::new("/").join(mount.destination()));
        }
        if mounts::is_bind(mount)
            && let Some(source) = mount.source()
            && !source.is_absolute()
        {
            mount.set_source(Some(bundle.join(source)));
        }
        if mount.source().is_none() {
            // libcontainer requires a source. For a file system without a device any text will do.
            let source = mount.typ().clone().unwrap_or_else(|| "none".into());
            mount.set_source(Some(source.into()));
        }
    }
}

/// Removes empty paths, which mean a new namespace. libcontainer would try to open them.
fn lower_namespaces(spec: &mut Spec) {
    if let Some(linux) = spec.linux_mut() {
        for namespace in linux.namespaces_mut().iter_mut().flatten() {
            if namespace
                .path()
                .as_ref()
                .is_some_and(|path| path.as_os_str().is_empty())
            {
                namespace.set_path(None);
            }
        }
    }
}

/// Sets the default path of the cgroup, which is the container's name. libcontainer has another
/// default.
fn lower_cgroup(spec: &mut Spec, id: &str, systemd_cgroup: bool) {
    if let Some(linux) = spec.linux_mut()
        && linux
            .cgroups_path()
            .as_ref()
            .is_none_or(|path| path.as_os_str().is_empty())
    {
        linux.set_cgroups_path(Some(if systemd_cgroup {
            // The format is slice:prefix:name, here with systemd's default slice. The unit is
            // rcm-ID.scope.
            format!(":rcm:{id}").into()
        } else {
            Path::new("/").join(id)
        }));
    }
}

/// Translates the properties of `linux` that libcontainer understands differently from runc, or
/// refuses.
fn lower_linux(spec: &mut Spec) {
    let Some(linux) = spec.linux_mut() else {
        return;
    };
    if let Some(resources) = linux.resources_mut() {
        lower_resources(resources);
    }
    // libcontainer knows only the words without the `r`, and applies them recursively all the same.
    let propagation = linux.rootfs_propagation().as_deref();
    let propagation = propagation.map(|word| match word {
        "rprivate" | "rshared" | "rslave" | "runbindable" => word[1..].to_owned(),
        _ => word.to_owned(),
    });
    linux.set_rootfs_propagation(propagation.filter(|word| !word.is_empty()));
    let mut filter = linux.seccomp().clone();
    filter.iter_mut().for_each(seccomp::lower);
    linux.set_seccomp(filter);
    if let Some(mut paths) = linux.masked_paths().clone() {
        // A second mask would be one more mount on top of the first.
        let mut seen = HashSet::new();
        paths.retain(|path| seen.insert(path.clone()));
        linux.set_masked_paths(Some(paths));
    }
    if let Some(flags) = drop_personality_flags(linux) {
        tracing::warn!(
            "ignoring unsupported personality flags: {flags:?} because personality flag has not supported at this time"
        );
    }
}

fn online_processors() -> Option<u64> {
    count_of_list(&std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?)
}

/// Translates limits that libcontainer understands differently from runc.
pub(crate) fn lower_resources(resources: &mut LinuxResources) {
    if let Some(pids) = resources.pids_mut()
        && pids.limit() == 0
    {
        // libcontainer takes 0 for no limit. systemd does not accept 0, so runc uses 1.
        pids.set_limit(1);
    }
    for device in resources.devices_mut().iter_mut().flatten() {
        // runc ignores other letters; the kernel refuses them.
        if let Some(access) = device.access_mut() {
            access.retain(|letter| "rwm".contains(letter));
        }
    }
    if let Some(memory) = resources.memory_mut()
        && (memory.kernel().is_some() || memory.kernel_tcp().is_some())
    {
        tracing::warn!("Kernel memory settings are ignored and will be removed");
        memory.set_kernel(None).set_kernel_tcp(None);
    }
    if let Some(cpu) = resources.cpu_mut()
        && Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
    {
        // cgroup v2 has no realtime limits. libcontainer would fail; runc ignores them.
        cpu.set_realtime_runtime(None).set_realtime_period(None);
    }
}

/// Removes the flags of a personality, and returns them if there are any. The specification defines
/// no flags.
pub fn drop_personality_flags(linux: &mut Linux) -> Option<Vec<String>> {
    let personality = linux.personality_mut().as_mut()?;
    let flags = personality
        .flags()
        .clone()
        .filter(|flags| !flags.is_empty());
    personality.set_flags(None);
    flags
}

/// Returns the limits of a spec.
#[must_use]
pub fn resources(spec: &Spec) -> Option<&LinuxResources> {
    spec.linux().as_ref()?.resources().as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> Spec {
        serde_json::from_value(json).unwrap()
    }

    fn minimal() -> serde_json::Value {
        serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs"},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid", "path": ""}]}
        })
    }

    #[test]
    fn what_is_missing_is_named() {
        for (pointer, sentence) in [
            ("process", "process property must not be empty"),
            ("root", "root property must not be empty"),
            ("linux", "linux property must not be empty"),
        ] {
            let mut json = minimal();
            json.as_object_mut().unwrap().remove(pointer);
            // The crate fills in defaults for absent members, so null stands for absence here.
            json[pointer] = serde_json::Value::Null;
            let error = validate(&spec(json)).unwrap_err();
            assert_eq!(error.to_string(), sentence);
        }
        let mut json = minimal();
        json["process"]["cwd"] = "relative".into();
        assert!(matches!(
            validate(&spec(json)),
            Err(InvalidSpec::RelativeCwd)
        ));
    }

    #[test]
    fn lowering_makes_paths_absolute() {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::create_dir(bundle.path().join("rootfs")).unwrap();
        let mut json = minimal();
        json["mounts"] = serde_json::json!([
            {"destination": "data", "source": "here", "options": ["bind"]},
            {"destination": "/tmp", "type": "tmpfs"}
        ]);
        let lowered = lower(spec(json), "web", bundle.path(), false).unwrap();
        let mounts = lowered.mounts().clone().unwrap();
        assert_eq!(mounts[0].destination(), Path::new("/data"));
        assert_eq!(
            mounts[0].source().as_deref(),
            Some(&*bundle.path().join("here"))
        );
        assert_eq!(mounts[1].source().as_deref(), Some(Path::new("tmpfs")));
        let linux = lowered.linux().clone().unwrap();
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/web")));
        assert_eq!(linux.namespaces().clone().unwrap()[1].path(), &None);
    }

    #[test]
    fn a_missing_rootfs_is_named() {
        let bundle = tempfile::tempdir().unwrap();
        let error = lower(spec(minimal()), "web", bundle.path(), false).unwrap_err();
        assert!(matches!(error, InvalidSpec::Rootfs { .. }), "{error}");
    }

    #[test]
    fn a_namespace_occurs_once() {
        let mut json = minimal();
        json["linux"]["namespaces"] = serde_json::json!([{"type": "pid"}, {"type": "pid"}]);
        assert!(matches!(
            validate(&spec(json)),
            Err(InvalidSpec::DuplicateNamespace { .. })
        ));
    }
}
