//! Giving a file the attributes that it should have.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::entry::{Attributes, is_carried};
use super::error::TreeError;
use super::file_error;
use crate::sys::beneath::Node;

/// Gives `node` its attributes and no others. `path` is where it lies on this host, for messages.
///
/// The order matters: chown(2) drops set-user-ID bits and capabilities, an access ACL changes the group's bits, and everything changes the times.
pub(super) fn set(node: &Node, path: &Path, attributes: &Attributes) -> Result<(), TreeError> {
    let metadata = node.metadata().map_err(file_error("read", path))?;
    if (metadata.uid(), metadata.gid()) != (attributes.uid, attributes.gid) {
        node.set_owner(attributes.uid, attributes.gid)
            .map_err(file_error("change the owner of", path))?;
    }
    let present = node
        .attribute_names()
        .map_err(file_error("list the extended attributes of", path))?;
    let wanted = &attributes.extended;
    for name in present.iter().filter(|name| is_carried(name)) {
        // One that a default ACL has left here, or an old one.
        if wanted.iter().all(|(wanted, _)| wanted != name) {
            node.remove_attribute(name)
                .map_err(|source| TreeError::Attribute {
                    action: "remove",
                    name: name.clone(),
                    path: path.to_path_buf(),
                    source,
                })?;
        }
    }
    for (name, value) in wanted {
        if present.contains(name) && node.attribute(name).is_ok_and(|found| found == *value) {
            continue;
        }
        node.set_attribute(name, value)
            .map_err(|source| TreeError::Attribute {
                action: "set",
                name: name.clone(),
                path: path.to_path_buf(),
                source,
            })?;
    }
    if !metadata.is_symlink() {
        node.set_mode(attributes.mode)
            .map_err(file_error("change the mode of", path))?;
    }
    node.set_modified(attributes.modified_seconds, attributes.modified_nanoseconds)
        .map_err(file_error("set the times of", path))
}
