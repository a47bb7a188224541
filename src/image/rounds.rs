//! The images of one migration: a directory for each round of pre-copy, and for the final dump.
//!
//! ```text
//! STORE/MIGRATION/0/                   the first round: all memory
//! STORE/MIGRATION/1/parent -> ../0     the memory that has changed since
//! STORE/MIGRATION/2/parent -> ../1     the final dump: all state, and memory changed since
//! ```
//!
//! Without pre-copy the final dump is number 0. CRIU reads a page from the newest images that have
//! it, and follows the link `parent` to the older ones (criu/pagemap.c, CRIU 4.2). If the link
//! leads nowhere, CRIU silently makes a complete dump. If it leads to other images, a restore takes
//! the wrong memory. So both ends call [`check_link`].

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// CRIU's name of the link (`CR_PARENT_LINK` in criu/include/crtools.h, CRIU 4.2).
pub const PARENT: &str = "parent";

/// Images do not form the expected chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// A link is missing, has another target, or should not exist.
    #[error(
        "the images in {dir} build on {}, but should build on {}: their memory would be incomplete",
        name(found.as_ref()),
        name(wanted.as_ref())
    )]
    Link {
        /// The directory of the images.
        dir: PathBuf,
        /// Target of the link, if there is one.
        found: Option<PathBuf>,
        /// Target that the link should have, if there should be one.
        wanted: Option<PathBuf>,
    },
    /// The link cannot be read.
    #[error("cannot read the link {path}")]
    Unreadable {
        /// Path of the link.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

fn name(link: Option<&PathBuf>) -> String {
    link.map_or_else(|| "nothing".into(), |link| link.display().to_string())
}

/// Returns the directory with the number `number`.
#[must_use]
pub fn directory(images: &Path, number: u32) -> PathBuf {
    images.join(number.to_string())
}

/// Returns the target of the parent link in directory `number`: a path relative to that directory,
/// as CRIU wants it.
#[must_use]
pub fn parent(number: u32) -> Option<PathBuf> {
    Some(Path::new("..").join(number.checked_sub(1)?.to_string()))
}

/// Returns the directory with the greatest number, which is the final dump once that is written.
#[must_use]
pub fn last(images: &Path) -> Option<PathBuf> {
    let numbers = fs::read_dir(images).ok()?.filter_map(|entry| {
        let name = entry.ok()?.file_name();
        name.to_str()?.parse::<u32>().ok()
    });
    Some(directory(images, numbers.max()?))
}

/// Checks that directory `number` builds on the one before it, and on no other.
///
/// # Errors
/// [`ChainError::Link`], [`ChainError::Unreadable`].
pub fn check_link(images: &Path, number: u32) -> Result<(), ChainError> {
    let dir = directory(images, number);
    let path = dir.join(PARENT);
    let found = match fs::read_link(&path) {
        Ok(found) => Some(found),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(source) => return Err(ChainError::Unreadable { path, source }),
    };
    let wanted = parent(number);
    if found == wanted {
        Ok(())
    } else {
        Err(ChainError::Link { dir, found, wanted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn chain() -> tempfile::TempDir {
        let images = tempfile::tempdir().unwrap();
        for number in 0..3 {
            let dir = directory(images.path(), number);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("pages-1.img"), "pages").unwrap();
            if let Some(parent) = parent(number) {
                symlink(parent, dir.join(PARENT)).unwrap();
            }
        }
        images
    }

    #[test]
    fn a_chain_is_one_whose_links_lead_to_the_one_before() {
        let images = chain();
        for number in 0..3 {
            check_link(images.path(), number).unwrap();
        }
        assert_eq!(last(images.path()), Some(images.path().join("2")));
    }

    #[test]
    fn ten_comes_after_nine_and_other_names_do_not_count() {
        let images = tempfile::tempdir().unwrap();
        assert_eq!(last(images.path()), None);
        for name in ["9", "10", "verdict.json", "x11"] {
            fs::create_dir(images.path().join(name)).unwrap();
        }
        assert_eq!(last(images.path()), Some(images.path().join("10")));
    }

    #[test]
    fn a_wrong_link_is_found() {
        let images = chain();
        let link = |number| directory(images.path(), number).join(PARENT);
        let wrong = |number| {
            matches!(
                check_link(images.path(), number),
                Err(ChainError::Link { .. })
            )
        };
        fs::remove_file(link(2)).unwrap();
        assert!(wrong(2), "none");
        symlink("../0", link(2)).unwrap();
        assert!(wrong(2), "the one before the one before");
        symlink("../1", link(0)).unwrap();
        assert!(wrong(0), "one where there should be none");
        fs::remove_file(link(1)).unwrap();
        fs::write(link(1), "").unwrap();
        assert!(matches!(
            check_link(images.path(), 1),
            Err(ChainError::Unreadable { .. })
        ));
    }
}
