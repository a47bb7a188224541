use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::defect::Defect;
use super::{MAX_DEPTH, MAX_NAME_BYTES};

/// The path of an entry below the root of its tree: names without `.` and `..`, joined with
/// slashes; empty for the root.
///
/// Paths compare name by name, so that a directory's entries follow it directly: `a`, `a/b`, `a-b`.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct TreePath {
    bytes: Vec<u8>,
}

impl TreePath {
    /// The root of a tree.
    pub(super) fn root() -> Self {
        Self::default()
    }

    /// Returns the number of directories above.
    pub(super) fn depth(&self) -> usize {
        self.names().count()
    }

    /// The names on the way from the root.
    pub(super) fn names(&self) -> impl Iterator<Item = &OsStr> {
        self.bytes
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
            .map(OsStr::from_bytes)
    }

    /// The last name; empty for the root.
    pub(super) fn name(&self) -> &OsStr {
        self.names().last().unwrap_or_default()
    }

    /// Whether this is `other` or inside it.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        match self.bytes.strip_prefix(&*other.bytes) {
            Some(rest) => rest.is_empty() || other.bytes.is_empty() || rest[0] == b'/',
            None => false,
        }
    }

    /// The same path below the directory `root` of this host.
    #[must_use]
    pub fn below(&self, root: &Path) -> PathBuf {
        if self.bytes.is_empty() {
            root.to_path_buf()
        } else {
            root.join(OsStr::from_bytes(&self.bytes))
        }
    }

    /// Shortens the path to `depth` names.
    pub(super) fn truncate(&mut self, depth: usize) {
        let mut length = 0;
        for (index, name) in self
            .bytes
            .split(|byte| *byte == b'/')
            .take(depth)
            .enumerate()
        {
            length += name.len() + usize::from(index > 0);
        }
        self.bytes.truncate(length);
    }

    /// Appends `name`.
    pub(super) fn push(&mut self, name: &[u8]) -> Result<(), Defect> {
        let valid = !matches!(name, b"" | b"." | b"..")
            && name.len() <= MAX_NAME_BYTES
            && !name.iter().any(|byte| matches!(byte, b'/' | 0));
        if !valid {
            return Err(Defect::Name);
        }
        if !self.bytes.is_empty() {
            self.bytes.push(b'/');
        }
        self.bytes.extend(name);
        Ok(())
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, Defect> {
        let mut path = Self::root();
        for (depth, name) in bytes.split(|byte| *byte == b'/').enumerate() {
            if depth >= MAX_DEPTH {
                return Err(Defect::Depth);
            }
            path.push(name)?;
        }
        Ok(path)
    }
}

impl Ord for TreePath {
    fn cmp(&self, other: &Self) -> Ordering {
        // No name has a NUL. In its place a slash sorts before every other byte.
        let order = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
        self.bytes
            .iter()
            .map(order)
            .cmp(other.bytes.iter().map(order))
    }
}

impl PartialOrd for TreePath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.bytes.escape_ascii())
    }
}

/// Formats the path as an absolute one, as the container sees it, on one line even if names contain
/// newlines.
impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Checks the order of a stream: the root first, then each path after its predecessor and inside an
/// earlier directory.
///
/// So a stream cannot express an entry inside a symbolic link, or one that appears twice.
#[derive(Debug, Default)]
pub(super) struct Order {
    started: bool,
    path: TreePath,
    depth: usize,
    is_dir: bool,
}

impl Order {
    /// Moves to the entry `name`, which lies `depth` names below the root.
    pub(super) fn step(
        &mut self,
        depth: usize,
        name: &[u8],
        is_dir: bool,
    ) -> Result<TreePath, Defect> {
        if !self.started {
            if depth != 0 || !name.is_empty() || !is_dir {
                return Err(Defect::Parent);
            }
            (self.started, self.is_dir) = (true, true);
            return Ok(TreePath::root());
        }
        if depth == 0 {
            return Err(Defect::Order);
        }
        if depth > self.depth + usize::from(self.is_dir) {
            return Err(Defect::Parent);
        }
        if depth > MAX_DEPTH {
            return Err(Defect::Depth);
        }
        let mut path = self.path.clone();
        path.truncate(depth - 1);
        path.push(name)?;
        if path <= self.path {
            return Err(Defect::Order);
        }
        (self.path, self.depth, self.is_dir) = (path.clone(), depth, is_dir);
        Ok(path)
    }

    /// The last path.
    pub(super) fn path(&self) -> &TreePath {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::from_bytes(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_inside_follows_directly() {
        let mut paths: Vec<_> = ["a-b", "a/b", "b", "a", "a/b/c", "a b", "a/b-c"]
            .map(path)
            .into();
        paths.sort();
        let expected = ["a", "a/b", "a/b/c", "a/b-c", "a b", "a-b", "b"].map(path);
        assert_eq!(paths, expected);
        assert!(path("a/b").is_within(&path("a")));
        assert!(!path("a-b").is_within(&path("a")));
        assert!(path("a").is_within(&TreePath::root()));
        let mut cut = path("a/bc/d");
        cut.truncate(2);
        assert_eq!(cut, path("a/bc"));
        cut.truncate(0);
        assert_eq!(cut, TreePath::root());
        assert_eq!((cut.depth(), path("a/bc/d").depth()), (0, 3));
        assert_eq!(path("a/bc/d").name(), "d");
    }

    #[test]
    fn only_names_that_files_have() {
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        for bad in [
            "", "/", "/a", "a/", "a//b", ".", "a/..", "a/./b", "a\0b", &*long,
        ] {
            assert_eq!(
                TreePath::from_bytes(bad.as_bytes()),
                Err(Defect::Name),
                "{bad:?}"
            );
        }
        let deep = vec!["d"; MAX_DEPTH + 1].join("/");
        assert_eq!(TreePath::from_bytes(deep.as_bytes()), Err(Defect::Depth));
    }

    #[test]
    fn the_order_leaves_no_way_out() {
        let begin = || {
            let mut order = Order::default();
            order.step(0, b"", true).unwrap();
            order.step(1, b"etc", true).unwrap();
            order.step(2, b"link", false).unwrap();
            order
        };
        for (depth, name, defect) in [
            (3, &b"inside"[..], Defect::Parent),
            (2, b"link", Defect::Order),
            (2, b"kink", Defect::Order),
            (1, b"etc", Defect::Order),
            (0, b"", Defect::Order),
            (2, b"..", Defect::Name),
            (1, b"", Defect::Name),
            (9, b"x", Defect::Parent),
        ] {
            assert_eq!(
                begin().step(depth, name, true),
                Err(defect),
                "{depth} {name:?}"
            );
        }
        assert_eq!(begin().step(1, b"f", false), Ok(path("f")));
        assert_eq!(Order::default().step(1, b"a", true), Err(Defect::Parent));
        assert_eq!(Order::default().step(0, b"", false), Err(Defect::Parent));
    }
}
