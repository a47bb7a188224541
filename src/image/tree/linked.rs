//! Copies a tree by hard links: the same files under other names.

use std::path::Path;

use super::attributes;
use super::entry::Attributes;
use super::error::TreeError;
use super::path::TreePath;
use super::walk::{Look, Stamps, View, Walk};
use crate::sys::beneath::Dir;
use crate::sys::file::Failed;

/// Fills the empty directory `to`, on the same file system, with the tree `from`. Directories are
/// made anew; everything else gets another name (link(2)).
///
/// [`super::apply`] replaces a file with several names instead of writing to it, so changes to `to`
/// do not change `from`. The copy takes no space for contents and no time to copy them. Files that
/// the kernel does not link (an immutable file, a mount point, a file with too many names already)
/// are left out. A later inventory of `to` does not list them, so the source sends them.
///
/// # Errors
/// [`TreeError`].
pub fn link_copy(from: &Path, to: &Path) -> Result<(), TreeError> {
    let mut walk = Walk::new(from, View::Tree, Stamps::None)?;
    let mut levels: Vec<CopyLevel> = Vec::new();
    while let Some(path) = walk.next()? {
        let Look::Found(found) = walk.look(path, None)? else {
            continue;
        };
        let path = found.entry.path;
        while levels
            .last()
            .is_some_and(|level| levels.len() > path.depth() || !path.is_within(&level.path))
        {
            close(&mut levels, to)?;
        }
        let (on_host, name) = (path.below(to), path.name());
        let failed = |action| Failed::to(action, &on_host);
        match levels.last() {
            Some(level) if !found.entry.kind.is_directory() => {
                if let Err(error) = level.dir.make_link(name, &found.object) {
                    tracing::debug!("cannot link {}: {error}", on_host.display());
                }
            }
            above => {
                let dir = match above {
                    None => Dir::open(to),
                    Some(level) => level
                        .dir
                        .make_dir(name)
                        .and_then(|()| level.dir.open_dir(name)),
                };
                levels.push(CopyLevel {
                    dir: dir.map_err(failed("create"))?,
                    path,
                    attributes: found.entry.attributes,
                });
            }
        }
    }
    while !levels.is_empty() {
        close(&mut levels, to)?;
    }
    Ok(())
}

struct CopyLevel {
    dir: Dir,
    path: TreePath,
    attributes: Attributes,
}

/// Sets the attributes of a directory. New entries change its times, so this comes last.
fn close(levels: &mut Vec<CopyLevel>, to: &Path) -> Result<(), TreeError> {
    let Some(level) = levels.pop() else {
        return Ok(());
    };
    let on_host = level.path.below(to);
    let object = level
        .dir
        .as_object()
        .map_err(Failed::to("read", &on_host))?;
    attributes::set(&object, &on_host, &level.attributes)
}
