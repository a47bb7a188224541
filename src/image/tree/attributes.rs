//! Sets the attributes of a file.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::entry::{Attributes, is_carried};
use super::error::TreeError;
use crate::sys::beneath::Object;
use crate::sys::file::Failed;

/// Gives `object` these attributes and no others. `path` is its path on this host, for messages.
///
/// The order matters: chown(2) drops set-user-ID bits and capabilities, an access ACL changes the
/// group's bits, and every call changes the times.
pub(super) fn set(object: &Object, path: &Path, attributes: &Attributes) -> Result<(), TreeError> {
    let metadata = object.metadata().map_err(Failed::to("read", path))?;
    if (metadata.uid(), metadata.gid()) != (attributes.uid, attributes.gid) {
        object
            .set_owner(attributes.uid, attributes.gid)
            .map_err(Failed::to("change the owner of", path))?;
    }
    let present = object
        .attribute_names()
        .map_err(Failed::to("list the extended attributes of", path))?;
    let wanted = &attributes.extended;
    for name in present.iter().filter(|name| is_carried(name)) {
        // A default ACL has left it here, or it is an old one.
        if wanted.iter().all(|(wanted, _)| wanted != name) {
            object
                .remove_attribute(name)
                .map_err(|source| TreeError::Attribute {
                    action: "remove",
                    name: name.clone(),
                    path: path.to_path_buf(),
                    source,
                })?;
        }
    }
    for (name, value) in wanted {
        if present.contains(name) && object.attribute(name).is_ok_and(|found| found == *value) {
            continue;
        }
        object
            .set_attribute(name, value)
            .map_err(|source| TreeError::Attribute {
                action: "set",
                name: name.clone(),
                path: path.to_path_buf(),
                source,
            })?;
    }
    if !metadata.is_symlink() {
        object
            .set_mode(attributes.mode)
            .map_err(Failed::to("change the mode of", path))?;
    }
    object
        .set_modified(attributes.modified_seconds, attributes.modified_nanoseconds)
        .map_err(|error| Failed::to("set the times of", path)(error).into())
}
