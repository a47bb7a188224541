//! The list of a dump's files, with digests.
//!
//! The source writes it when CRIU has written the images. The destination checks it before CRIU
//! reads them. A file system that several hosts share may show the other host an old length or a
//! hole, and CRIU would restore that.
//!
//! The digest finds damage, not malice: anybody who can write to the image store controls the
//! container anyway. Both ends compute it while the container is frozen. So it is XXH3-64 (twenty
//! times the speed of SHA-256) over pieces of [`PIECE_BYTES`], which the processors share. A file's
//! digest is that of its pieces' digests in order. Reading the images brings them into the page
//! cache of the destination, where CRIU needs them next. So over a network file system the check
//! costs no second transfer.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::sys::file::Failed;

/// The unit of work. It is so large that a thread's start does not count, and so small that one
/// file keeps all threads busy.
pub const PIECE_BYTES: u64 = 4 << 20;
/// Memory of a thread.
const BUFFER_BYTES: usize = 256 << 10;
/// More threads do not read any faster.
const MAX_THREADS: usize = 8;

/// Images cannot be listed, or differ from the manifest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] Failed),
    /// A name in the manifest could lead out of the directory.
    #[error("the manifest names {name:?}, which is not the name of a file in the image directory")]
    Name {
        /// The name.
        name: String,
    },
    /// A file has another length than in the manifest.
    #[error(
        "image {path} has {found_bytes} bytes instead of {expected_bytes}: the image store does not show what the source wrote"
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Length in the manifest.
        expected_bytes: u64,
        /// Length of the file.
        found_bytes: u64,
    },
    /// A file has other contents than in the manifest.
    #[error("image {path} is damaged: its digest is not that of the source")]
    Digest {
        /// The file.
        path: PathBuf,
    },
}

type Result<T, E = ManifestError> = std::result::Result<T, E>;

/// The files of one dump.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The files, in the order of their names.
    pub files: Vec<ImageFile>,
}

/// One file of a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageFile {
    /// Its name in the image directory; never a path.
    pub name: String,
    /// Its length.
    pub size_bytes: u64,
    /// XXH3-64 over the little-endian XXH3-64 digests of its pieces, as 16 hexadecimal digits.
    pub digest: String,
}

impl Manifest {
    /// Lists the regular files in `dir`.
    ///
    /// # Errors
    /// [`ManifestError::File`].
    pub fn of_directory(dir: &Path) -> Result<Self> {
        let names: Vec<String> = list(dir)?.into_iter().map(|(name, _)| name).collect();
        let opened = open_all(dir, &names)?;
        let digests = digests(&opened)?;
        let files = names
            .into_iter()
            .zip(&opened)
            .zip(digests)
            .map(|((name, image), digest)| ImageFile {
                name,
                size_bytes: image.size_bytes,
                digest: text_of(digest),
            })
            .collect();
        Ok(Self { files })
    }

    /// Compares the files in `dir` with the manifest.
    ///
    /// # Errors
    /// The first difference.
    pub fn verify(&self, dir: &Path) -> Result<()> {
        for entry in &self.files {
            if entry.name.contains('/') || !is_image(&entry.name) {
                return Err(ManifestError::Name {
                    name: entry.name.clone(),
                });
            }
        }
        let names: Vec<String> = self.files.iter().map(|entry| entry.name.clone()).collect();
        let opened = open_all(dir, &names)?;
        for (entry, image) in self.files.iter().zip(&opened) {
            if entry.size_bytes != image.size_bytes {
                return Err(ManifestError::Length {
                    path: image.path.clone(),
                    expected_bytes: entry.size_bytes,
                    found_bytes: image.size_bytes,
                });
            }
        }
        let found = digests(&opened)?;
        for ((entry, image), digest) in self.files.iter().zip(&opened).zip(found) {
            if entry.digest != text_of(digest) {
                return Err(ManifestError::Digest {
                    path: image.path.clone(),
                });
            }
        }
        Ok(())
    }

    /// Waits until the files are on the store's disks, so that they survive a crash of this host.
    ///
    /// Another host need not wait for that. CRIU has closed the files, and a host that opens them
    /// afterwards sees them (close-to-open consistency, nfs(5)).
    ///
    /// # Errors
    /// [`ManifestError::File`].
    pub fn sync(&self, dir: &Path) -> Result<()> {
        let names: Vec<String> = self.files.iter().map(|entry| entry.name.clone()).collect();
        for image in open_all(dir, &names)? {
            image
                .file
                .sync_data()
                .map_err(Failed::to("sync", &image.path))?;
        }
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|error| Failed::to("sync", dir)(error).into())
    }

    /// Returns the length of all files together.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|entry| entry.size_bytes).sum()
    }
}

impl ImageFile {
    /// Makes the entry of a file from the XXH3-64 digests of its pieces, in order.
    #[must_use]
    pub fn of_pieces(name: String, size_bytes: u64, pieces: &[u64]) -> Self {
        Self {
            name,
            size_bytes,
            digest: text_of(digest_of(pieces)),
        }
    }
}

/// Returns the number of pieces of a file.
#[must_use]
pub const fn pieces_of(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(PIECE_BYTES)
}

fn digest_of(pieces: &[u64]) -> u64 {
    let bytes: Vec<u8> = pieces
        .iter()
        .flat_map(|piece| piece.to_le_bytes())
        .collect();
    xxh3_64(&bytes)
}

fn text_of(digest: u64) -> String {
    format!("{digest:016x}")
}

/// Lists names and lengths of the images in `dir`, in the order of their names.
///
/// # Errors
/// [`ManifestError::File`].
pub fn list(dir: &Path) -> Result<Vec<(String, u64)>> {
    let mut images = Vec::new();
    for entry in fs::read_dir(dir).map_err(Failed::to("list", dir))? {
        let entry = entry.map_err(Failed::to("list", dir))?;
        let metadata = entry
            .metadata()
            .map_err(Failed::to("read", &entry.path()))?;
        // CRIU's file names are ASCII. Logs are not part of the dump and still grow.
        if let Ok(name) = entry.file_name().into_string()
            && metadata.is_file()
            && is_image(&name)
        {
            images.push((name, metadata.len()));
        }
    }
    images.sort();
    Ok(images)
}

/// Whether a file of that name is part of a dump.
#[must_use]
pub fn is_image(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.ends_with(".log")
}

struct Image {
    path: PathBuf,
    file: File,
    size_bytes: u64,
}

fn open_all(dir: &Path, names: &[String]) -> Result<Vec<Image>> {
    names
        .iter()
        .map(|name| {
            use std::os::unix::fs::OpenOptionsExt;
            let path = dir.join(name);
            // A link in the place of an image would lead out of the directory.
            let opened = fs::OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
                .open(&path)
                .map_err(Failed::to("open", &path))?;
            let size_bytes = opened.metadata().map_err(Failed::to("read", &path))?.len();
            Ok(Image {
                path,
                file: opened,
                size_bytes,
            })
        })
        .collect()
}

/// One piece of one image.
struct Piece {
    image: usize,
    offset: u64,
    size_bytes: u64,
}

fn digests(images: &[Image]) -> Result<Vec<u64>> {
    let pieces: Vec<Piece> = images
        .iter()
        .enumerate()
        .flat_map(|(image, opened)| {
            (0..opened.size_bytes)
                .step_by(PIECE_BYTES as usize)
                .map(move |offset| Piece {
                    image,
                    offset,
                    size_bytes: PIECE_BYTES.min(opened.size_bytes - offset),
                })
        })
        .collect();
    let piece_digests = Mutex::new(vec![0_u64; pieces.len()]);
    let first_error = Mutex::new(None);
    let failed = AtomicBool::new(false);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut buffer = vec![0; BUFFER_BYTES];
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = pieces.get(index) else {
                return;
            };
            let done = piece_digest(images, piece, &mut buffer).map(|digest| {
                piece_digests
                    .lock()
                    .unwrap_or_else(|poisoned| poisoned.into_inner())[index] = digest;
            });
            if let Err(error) = done {
                failed.store(true, Ordering::Relaxed);
                first_error
                    .lock()
                    .unwrap_or_else(|poisoned| poisoned.into_inner())
                    .get_or_insert(error);
            }
        }
    };
    let total_bytes: u64 = images.iter().map(|image| image.size_bytes).sum();
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(MAX_THREADS)
        .min((total_bytes / PIECE_BYTES) as usize + 1);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    if let Some(error) = first_error
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
    {
        return Err(error);
    }
    let piece_digests = piece_digests
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut by_image: Vec<Vec<u64>> = vec![Vec::new(); images.len()];
    for (piece, digest) in pieces.iter().zip(piece_digests) {
        by_image[piece.image].push(digest);
    }
    Ok(by_image.iter().map(|pieces| digest_of(pieces)).collect())
}

fn piece_digest(images: &[Image], piece: &Piece, buffer: &mut [u8]) -> Result<u64> {
    let image = &images[piece.image];
    let mut hasher = Xxh3::new();
    let mut offset = piece.offset;
    let end = piece.offset + piece.size_bytes;
    while offset < end {
        let want_bytes = buffer.len().min((end - offset) as usize);
        image
            .file
            .read_exact_at(&mut buffer[..want_bytes], offset)
            .map_err(Failed::to("read", &image.path))?;
        hasher.update(&buffer[..want_bytes]);
        offset += want_bytes as u64;
    }
    Ok(hasher.digest())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("core-1.img"), b"core").unwrap();
        fs::write(dir.path().join("empty.img"), b"").unwrap();
        let pages: Vec<u8> = (0..PIECE_BYTES * 2 + 12_345)
            .map(|i| (i * 7 / 3) as u8)
            .collect();
        fs::write(dir.path().join("pages-1.img"), pages).unwrap();
        fs::write(dir.path().join("dump.log"), b"grows").unwrap();
        dir
    }

    #[test]
    fn an_untouched_directory_verifies() {
        let dir = store();
        let manifest = Manifest::of_directory(dir.path()).unwrap();
        manifest.sync(dir.path()).unwrap();
        let names: Vec<&str> = manifest.files.iter().map(|entry| &*entry.name).collect();
        assert_eq!(names, ["core-1.img", "empty.img", "pages-1.img"]);
        assert_eq!(manifest.total_bytes(), 4 + PIECE_BYTES * 2 + 12_345);
        fs::write(dir.path().join("dump.log"), b"has grown").unwrap();
        manifest.verify(dir.path()).unwrap();
    }

    #[test]
    fn one_changed_byte_is_found_wherever_it_is() {
        let dir = store();
        let manifest = Manifest::of_directory(dir.path()).unwrap();
        let path = dir.path().join("pages-1.img");
        for offset in [0, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES * 2 + 12_344] {
            let file = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset).unwrap();
            file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
            assert!(
                matches!(
                    manifest.verify(dir.path()),
                    Err(ManifestError::Digest { .. })
                ),
                "{offset}"
            );
            file.write_all_at(&byte, offset).unwrap();
        }
        manifest.verify(dir.path()).unwrap();
    }

    #[test]
    fn swapped_pieces_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pages-1.img");
        let (one, two) = (vec![1; PIECE_BYTES as usize], vec![2; PIECE_BYTES as usize]);
        fs::write(&path, [&one[..], &two].concat()).unwrap();
        let manifest = Manifest::of_directory(dir.path()).unwrap();
        fs::write(&path, [&two[..], &one].concat()).unwrap();
        assert!(matches!(
            manifest.verify(dir.path()),
            Err(ManifestError::Digest { .. })
        ));
    }

    #[test]
    fn length_and_absence_are_found() {
        let dir = store();
        let manifest = Manifest::of_directory(dir.path()).unwrap();
        fs::write(dir.path().join("core-1.img"), b"cor").unwrap();
        assert!(matches!(
            manifest.verify(dir.path()),
            Err(ManifestError::Length { .. })
        ));
        fs::remove_file(dir.path().join("core-1.img")).unwrap();
        assert!(matches!(
            manifest.verify(dir.path()),
            Err(ManifestError::File(_))
        ));
    }

    #[test]
    fn a_name_that_leads_out_is_refused() {
        let dir = store();
        for name in ["../core-1.img", "/etc/passwd", "", ".", "..", "a/b"] {
            let manifest = Manifest {
                files: vec![ImageFile {
                    name: name.into(),
                    size_bytes: 0,
                    digest: String::new(),
                }],
            };
            assert!(
                matches!(manifest.verify(dir.path()), Err(ManifestError::Name { .. })),
                "{name}"
            );
        }
    }

    #[test]
    fn a_link_in_the_place_of_an_image_is_refused() {
        let dir = store();
        let manifest = Manifest::of_directory(dir.path()).unwrap();
        let path = dir.path().join("core-1.img");
        fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        assert!(matches!(
            manifest.verify(dir.path()),
            Err(ManifestError::File(_))
        ));
    }
}
