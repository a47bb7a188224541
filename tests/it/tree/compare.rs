//! All attributes of a tree that have to arrive, as text for a comparison. It is read by other
//! means than rcm's own walk, if there are any.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::unistd::{Whence, lseek};
use rcm::sys::beneath::Dir;

/// One line per path.
pub fn describe(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut all = Tree::default();
    let dir = File::open(root).expect("the root opens");
    all.line(b"", Path::new(&proc(&dir)).join(".").as_path(), None);
    all.inside(&dir, b"");
    all.lines
}

#[track_caller]
pub fn assert_same(left: &Path, right: &Path) {
    let (left, right) = (describe(left), describe(right));
    let mut differences = Vec::new();
    for path in left.keys().chain(right.keys()) {
        if left.get(path) != right.get(path) {
            differences.push(format!(
                "/{}\n  {:?}\n  {:?}",
                path.escape_ascii(),
                left.get(path),
                right.get(path)
            ));
        }
    }
    differences.dedup();
    assert!(
        differences.is_empty(),
        "{} differences of {}:\n{}",
        differences.len(),
        left.len(),
        differences[..differences.len().min(20)].join("\n")
    );
}

fn proc(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

#[derive(Default)]
struct Tree {
    lines: BTreeMap<Vec<u8>, String>,
    /// The first path of an inode.
    first: BTreeMap<(u64, u64), Vec<u8>>,
}

impl Tree {
    fn inside(&mut self, dir: &File, prefix: &[u8]) {
        // Through the descriptor: paths may be longer than the kernel takes at once.
        let mut names: Vec<_> = fs::read_dir(proc(dir))
            .expect("a directory can be listed")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        for name in names {
            let path = [prefix, b"/", name.as_bytes()].concat();
            let on_host = Path::new(&proc(dir)).join(&name);
            let is_dir = fs::symlink_metadata(&on_host)
                .expect("it is there")
                .is_dir();
            self.line(&path, &on_host, Some((dir, &name)));
            if is_dir {
                self.inside(&File::open(&on_host).expect("a directory opens"), &path);
            }
        }
    }

    fn line(&mut self, path: &[u8], on_host: &Path, place: Option<(&File, &std::ffi::OsString)>) {
        let found = fs::symlink_metadata(on_host).expect("it is there");
        let kind = found.file_type();
        let mut line = format!(
            "mode {:o} owner {}:{} modified {}.{:09}",
            found.mode(),
            found.uid(),
            found.gid(),
            found.mtime(),
            found.mtime_nsec()
        );
        if !kind.is_dir() {
            let first = self
                .first
                .entry((found.dev(), found.ino()))
                .or_insert_with(|| path.to_vec());
            let _ = write!(
                line,
                " links {} first {}",
                found.nlink(),
                first.escape_ascii()
            );
        }
        if kind.is_char_device() || kind.is_block_device() {
            let _ = write!(line, " device {:x}", found.rdev());
        }
        if kind.is_symlink() {
            let _ = write!(line, " to {:?}", fs::read_link(on_host).expect("a link"));
        }
        if kind.is_file() {
            let _ = write!(line, " size {}", found.len());
            contents(on_host, &mut line);
        }
        let node = match place {
            Some((dir, name)) => Dir::open(Path::new(&proc(dir))).and_then(|dir| dir.object(name)),
            None => Dir::open(on_host).and_then(|dir| dir.as_object()),
        }
        .expect("it is there");
        let mut names = node.attribute_names().expect("attributes can be listed");
        names.sort();
        for name in names {
            if name.as_c_str() != c"security.selinux" {
                let value = node.attribute(&name).expect("an attribute");
                let _ = write!(line, " {name:?}={}", value.escape_ascii());
            }
        }
        self.lines.insert(path.to_vec(), line);
    }
}

/// Returns the places of data and holes, and the data.
fn contents(path: &Path, line: &mut String) {
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOATIME)
        .open(path)
        .expect("a file opens");
    let mut at = 0;
    while let Ok(start) = lseek(file.as_raw_fd(), at, Whence::SeekData) {
        let end = lseek(file.as_raw_fd(), start, Whence::SeekHole).expect("an end");
        lseek(file.as_raw_fd(), start, Whence::SeekSet).expect("a position");
        let mut data = Vec::new();
        (&file)
            .take((end - start) as u64)
            .read_to_end(&mut data)
            .expect("it can be read");
        let mut hasher = DefaultHasher::new();
        data.hash(&mut hasher);
        let _ = write!(line, " {start}..{end}:{:x}", hasher.finish());
        at = end;
    }
}
