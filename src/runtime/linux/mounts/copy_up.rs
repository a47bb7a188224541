//! A tmpfs that begins with a copy of the directory that it covers.

use std::fs;
use std::io::{self, pipe};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::thread;

use crate::image::tree::{Base, Compression, Limits, TreeError, apply, pack};
use crate::sys::file::Failed;

/// Copies the contents of the directory `from` to `to`, with owners, modes, times and attributes.
/// The directory `to` itself keeps its own.
///
/// # Errors
/// If a file cannot be read or written.
pub fn copy_up(from: &Path, to: &Path) -> Result<(), TreeError> {
    let own = fs::metadata(to).map_err(at(to))?;
    let (reader, writer) = pipe().map_err(at(to))?;
    let unbounded = Limits {
        entries: u64::MAX,
        content_bytes: u64::MAX,
    };
    let (packed, applied) = thread::scope(|scope| {
        let packing = scope.spawn(|| {
            pack(
                from,
                Base::<io::Empty>::Nothing,
                writer,
                None::<io::Sink>,
                Compression::None,
            )
        });
        let applied = apply(to, &reader, unbounded);
        // If writing fails, drain the pipe to its end: the packing thread must not get a broken
        // pipe, whose signal would end this process.
        let _ = io::copy(&mut &reader, &mut io::sink());
        let packed = packing
            .join()
            .unwrap_or_else(|_| Err(at(from)(io::Error::other("the thread panicked"))));
        (packed, applied)
    });
    // If packing fails, the stream is cut short and unpacking fails, too. So the first error is the
    // cause.
    packed.and(applied)?;
    chown(to, Some(own.uid()), Some(own.gid()))
        .and_then(|()| fs::set_permissions(to, fs::Permissions::from_mode(own.mode())))
        .map_err(at(to))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> TreeError + use<> {
    let path = path.to_path_buf();
    move |source| {
        TreeError::File(Failed {
            action: "copy",
            path,
            source,
        })
    }
}
