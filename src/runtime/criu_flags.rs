//! Options for CRIU that `checkpoint`, `restore` and both ends of a migration share.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::container::Container;
use super::error::{Error, Result};
use crate::criu::{Common, CriuChoices};

/// Annotation with the path of a CRIU configuration file; an empty path means none.
const CONFIG_ANNOTATION: &str = "org.criu.config";
/// Configuration files that are used without the annotation, if they exist. rcm's own comes before
/// runc's.
const CONFIG_FILES: [&str; 2] = ["/etc/criu/rcm.conf", "/etc/criu/runc.conf"];

/// Options for CRIU that `checkpoint` and `restore` share.
#[derive(Debug, Clone, Default)]
pub struct CriuFlags {
    /// Directory of the images.
    pub image_path: PathBuf,
    /// Directory for logs and statistics; `None` for the image directory.
    pub work_path: Option<PathBuf>,
    /// Flags that the user gave.
    pub choices: CriuChoices,
    /// Whether superseded pages are removed from images.
    pub auto_dedup: bool,
    /// Whether memory is left at the source, and fetched on access.
    pub lazy_pages: bool,
}

impl CriuFlags {
    /// Returns the options that follow from these and the container.
    pub(super) fn common(&self, container: &Container, spec: &Spec) -> Common {
        Common {
            subject: format!("container {:?}", container.id()),
            images_dir: self.image_path.clone(),
            work_dir: self.work_path.clone(),
            log_level: 4,
            choices: self.choices.clone(),
            auto_dedup: self.auto_dedup,
            lazy_pages: self.lazy_pages,
            manage_cgroups: self.choices.manage_cgroups(),
            // Devices and addresses are left to the creator of the network namespace.
            empty_network_namespace: true,
            config_file: config_file(spec),
            ..Common::default()
        }
    }

    /// Makes the directory of the images, for a dump, if it is missing. A restore must not do that:
    /// if the directory is missing there, its owner has removed it.
    pub(super) fn make_image_dir(&self) -> Result<()> {
        make_dir(&self.image_path)
    }

    /// Makes the work directory if it is missing.
    pub(super) fn make_work_dir(&self) -> Result<()> {
        self.work_path.as_deref().map_or(Ok(()), make_dir)
    }
}

fn make_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::file("create", path))
}

fn config_file(spec: &Spec) -> Option<PathBuf> {
    let annotation = spec
        .annotations()
        .as_ref()
        .and_then(|annotations| annotations.get(CONFIG_ANNOTATION));
    match annotation {
        Some(path) => Some(PathBuf::from(path)).filter(|path| !path.as_os_str().is_empty()),
        None => CONFIG_FILES
            .iter()
            .map(PathBuf::from)
            .find(|path| path.exists()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_annotation_decides_on_the_configuration_file() {
        let spec = |annotations: serde_json::Value| -> Spec {
            serde_json::from_value(serde_json::json!({
                "ociVersion": "1.0.2", "annotations": annotations
            }))
            .unwrap()
        };
        assert_eq!(
            config_file(&spec(serde_json::json!({CONFIG_ANNOTATION: "/x.conf"}))),
            Some("/x.conf".into())
        );
        assert_eq!(
            config_file(&spec(serde_json::json!({CONFIG_ANNOTATION: ""}))),
            None
        );
    }
}
