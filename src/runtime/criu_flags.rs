//! What `checkpoint`, `restore` and a migration's two ends all tell CRIU.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::container::Container;
use super::error::{Error, Result};
use crate::criu::{Common, CriuChoices};

/// The annotation that names a CRIU configuration file; an empty one means none.
const CONFIG_ANNOTATION: &str = "org.criu.config";
/// Configuration files that are used without the annotation, if they exist: rcm's own before runc's.
const CONFIG_FILES: [&str; 2] = ["/etc/criu/rcm.conf", "/etc/criu/runc.conf"];

/// What `checkpoint` and `restore` both tell CRIU.
#[derive(Debug, Clone, Default)]
pub struct CriuFlags {
    /// The directory of the images.
    pub image_path: PathBuf,
    /// Where logs and statistics go; the image directory if none.
    pub work_path: Option<PathBuf>,
    /// Flags that the user gave.
    pub choices: CriuChoices,
    /// Remove superseded pages from images.
    pub auto_dedup: bool,
    /// Leave memory behind, to be fetched when touched.
    pub lazy_pages: bool,
}

impl CriuFlags {
    /// The options that follow from these and the container.
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
            // Devices and addresses are the business of whoever made the network namespace.
            empty_network_namespace: true,
            config_file: config_file(spec),
            ..Common::default()
        }
    }

    /// Makes the directory of the images if it is missing: for a dump. A restore must not, because what is missing has been removed by its owner.
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
