//! Bundle of a container that an engine keeps: the engine's own files for it (`/etc/hosts` and the
//! like), and a spec without the engine's paths, so that rcm can run the container at the
//! destination without the engine.
//!
//! The destination's engine has its own directories, so the bundle there is a new one, with the
//! root file system in it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde_json::Value;

use super::outgoing::bind_mounts;
use crate::engines::detect;
use crate::migrate::limits::{MAX_ENGINE_FILE_BYTES, MAX_ENGINE_FILES};
use crate::migrate::source::offer::Bundle;
use crate::migrate::unix_sockets::is_bind;
use crate::migrate::wire::finding::Finding;
use crate::migrate::wire::id::Side;
use crate::migrate::wire::preamble::CarriedFile;
use crate::runtime::Container;

/// Directory of the bundles of containers that came from an engine.
const BUNDLES: &str = "/var/lib/rcm";
/// Name of the root file system in such a bundle.
const ROOTFS: &str = "rootfs";

/// A bundle for the destination, made from an engine's.
#[derive(Debug, Clone)]
pub struct EngineBundle {
    /// The spec for the destination.
    pub spec: Spec,
    /// Findings that forbid the migration.
    pub findings: Vec<Finding>,
    bundle: PathBuf,
    files: Vec<CarriedFile>,
}

impl EngineBundle {
    /// Packs the bundle of a container that an engine keeps; `None` for others.
    #[must_use]
    pub fn of(container: &Container, spec: &Spec) -> Option<Self> {
        let keeps = detect::keeps(container.bundle());
        keeps.then(|| Self::pack(container.id(), container.bundle(), spec.clone()))
    }

    fn pack(id: &str, old_bundle: &Path, mut spec: Spec) -> Self {
        let mut packed = Self {
            findings: shared_namespaces(&spec),
            bundle: Path::new(BUNDLES).join(id),
            files: Vec::new(),
            spec: Spec::default(),
        };
        if let Some(root) = spec.root_mut() {
            root.set_path(ROOTFS.into());
        }
        // Hooks set up the engine's network and devices.
        spec.set_hooks(None);
        if let Some(linux) = spec.linux_mut() {
            // This is a path in the engine's control groups.
            linux.set_cgroups_path(None);
            for namespace in linux.namespaces_mut().iter_mut().flatten() {
                if namespace.typ() == LinuxNamespaceType::Network {
                    namespace.set_path(None);
                }
            }
        }
        for mount in spec.mounts_mut().iter_mut().flatten() {
            if !is_bind(mount) {
                continue;
            }
            let Some(source) = mount.source().as_ref().map(|path| old_bundle.join(path)) else {
                continue;
            };
            packed.findings.extend(restarts(&source));
            if let Some(file) = packed.file(&source) {
                mount.set_source(Some(Path::new(CarriedFile::DIR).join(&file.name)));
                packed.files.push(file);
            }
        }
        packed.spec = spec;
        packed
    }

    /// Reads a file that the engine has made for this container, or an empty directory. Other
    /// mounts stay as they are: the destination must have their sources.
    fn file(&self, source: &Path) -> Option<CarriedFile> {
        if !detect::is_private(source) || self.files.len() >= MAX_ENGINE_FILES {
            return None;
        }
        let metadata = fs::metadata(source).ok()?;
        let contents = if metadata.is_dir() {
            fs::read_dir(source).ok()?.next().is_none().then_some(None)
        } else {
            let fits = metadata.is_file() && metadata.len() <= MAX_ENGINE_FILE_BYTES;
            fits.then(|| fs::read(source).ok()).flatten().map(Some)
        }?;
        let name = source.file_name()?.to_str()?;
        Some(CarriedFile {
            name: format!("{}-{name}", self.files.len()),
            contents,
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
        })
    }

    /// Returns the bundle that the destination makes.
    ///
    /// # Errors
    /// The spec has a path that is not UTF-8, and so no JSON form.
    pub fn bundle(&self) -> serde_json::Result<Bundle> {
        Ok(Bundle {
            path: self.bundle.clone(),
            rootfs: self.bundle.join(ROOTFS),
            spec: serde_json::to_value(&self.spec)?,
            bind_mounts: bind_mounts(&self.spec, &self.bundle),
            carried: self.files.clone(),
        })
    }

    /// Returns the bundle's `config.json`.
    ///
    /// # Errors
    /// As [`Self::bundle`].
    pub fn config(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec_pretty(&self.spec)
    }
}

/// Returns a finding for each namespace that is shared with other containers, which stay here. Only
/// a network namespace can be replaced at the destination.
fn shared_namespaces(spec: &Spec) -> Vec<Finding> {
    let linux = spec.linux().as_ref();
    linux
        .and_then(|linux| linux.namespaces().as_ref())
        .into_iter()
        .flatten()
        .filter(|namespace| namespace.typ() != LinuxNamespaceType::Network)
        .filter_map(|namespace| {
            let path = namespace.path().as_ref()?;
            Some(Finding::error(
                Side::Source,
                format!(
                    "the container shares a namespace ({}) with other containers of its engine: {}",
                    namespace.typ(),
                    path.display()
                ),
                "start it without sharing (--ipc=private, outside of a pod)",
            ))
        })
        .collect()
}

/// Returns a finding if Docker would start the container again when it ends here, which would make
/// a second copy. The restart policy lies beside the files that Docker mounts.
fn restarts(source: &Path) -> Option<Finding> {
    if !source.ends_with("hosts") || !detect::is_private(source) {
        return None;
    }
    let text = fs::read(source.with_file_name("hostconfig.json")).ok()?;
    let settings: Value = serde_json::from_slice(&text).ok()?;
    let policy = settings.pointer("/RestartPolicy/Name")?.as_str()?;
    (!matches!(policy, "" | "no")).then(|| {
        Finding::error(
            Side::Source,
            format!("Docker starts the container again when it ends here (--restart {policy})"),
            "use `docker update --restart=no` first",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn nothing_of_the_engine_is_left_in_the_spec() {
        let dir = tempfile::tempdir().unwrap();
        let private = dir.path().join(format!("{:0<64}", "abc"));
        fs::create_dir_all(private.join("shm")).unwrap();
        fs::create_dir_all(private.join("full/x")).unwrap();
        fs::write(private.join("hosts"), "127.0.0.1 web\n").unwrap();
        let restart = r#"{"RestartPolicy": {"Name": "always"}}"#;
        fs::write(private.join("hostconfig.json"), restart).unwrap();
        let spec: Spec = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.0.2",
            "root": {"path": "/var/lib/docker/overlay2/x/merged"},
            "hooks": {"prestart": [{"path": "/proc/7/exe"}]},
            "mounts": [
                {"destination": "/etc/hosts", "type": "bind", "source": private.join("hosts"), "options": ["rbind"]},
                {"destination": "/dev/shm", "type": "bind", "source": private.join("shm"), "options": ["bind"]},
                {"destination": "/full", "type": "bind", "source": private.join("full"), "options": ["bind"]},
                {"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["bind"]}
            ],
            "linux": {
                "cgroupsPath": "/docker/abc",
                "namespaces": [{"type": "network", "path": "/run/netns/x"}, {"type": "ipc", "path": "/proc/8/ns/ipc"}]
            }
        }))
        .unwrap();
        let packed = EngineBundle::pack("abc", Path::new("/bundle"), spec);
        let spec: Value = serde_json::from_slice(&packed.config().unwrap()).unwrap();
        assert_eq!(spec["root"]["path"], "rootfs");
        assert_eq!(spec.get("hooks"), None);
        assert_eq!(spec.pointer("/linux/cgroupsPath"), None);
        assert_eq!(spec.pointer("/linux/namespaces/0/path"), None);
        let sources: Vec<&str> = spec["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|mount| mount["source"].as_str().unwrap())
            .collect();
        let full = private.join("full");
        let full = full.to_str().unwrap();
        assert_eq!(sources, ["files/0-hosts", "files/1-shm", full, "/srv/data"]);
        let contents: Vec<_> = packed.files.iter().map(|file| &file.contents).collect();
        assert_eq!(contents, [&Some(b"127.0.0.1 web\n".to_vec()), &None]);
        let findings: Vec<String> = packed.findings.iter().map(ToString::to_string).collect();
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[0].contains("(ipc)"), "{findings:?}");
        assert!(findings[1].contains("--restart always"), "{findings:?}");
    }

    /// The destination would judge, and write, another spec than the container's.
    #[test]
    fn a_spec_without_a_json_form_is_an_error() {
        let mut spec = Spec::default();
        let root = spec.root_mut().as_mut().unwrap();
        root.set_path(OsStr::from_bytes(b"rootfs\xff").into());
        let mut packed = EngineBundle::pack("abc", Path::new("/bundle"), Spec::default());
        packed.spec = spec;
        assert!(packed.config().is_err());
    }
}
