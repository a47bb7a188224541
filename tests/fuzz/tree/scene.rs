//! The directory to which the streams are applied.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rcm::image::tree::{TreeError, apply};

use super::LIMITS;

/// A tree beside something precious, with ways out of it.
pub struct Scene {
    pub dir: tempfile::TempDir,
}

impl Scene {
    pub fn new() -> Self {
        let scene = Self {
            dir: tempfile::tempdir_in(if Path::new("/dev/shm").exists() {
                "/dev/shm"
            } else {
                "/tmp"
            })
            .expect("a directory"),
        };
        fs::create_dir(scene.outside()).unwrap();
        fs::write(scene.outside().join("precious"), "precious").unwrap();
        scene.fill();
        scene
    }

    pub fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    pub fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    pub fn fill(&self) {
        if self.tree().exists() {
            fs::remove_dir_all(self.tree()).unwrap();
        }
        fs::create_dir_all(self.tree().join("b/c")).unwrap();
        symlink("../outside", self.tree().join("a")).unwrap();
        symlink(self.outside(), self.tree().join("b/d")).unwrap();
        fs::hard_link(self.outside().join("precious"), self.tree().join("b/e")).unwrap();
        fs::write(self.tree().join("f"), "f").unwrap();
    }

    /// Applies a stream and checks that nothing else has changed.
    #[track_caller]
    pub fn apply(&self, stream: &[u8]) -> Result<(), TreeError> {
        let result = apply(&self.tree(), stream, LIMITS).map(drop);
        let names = |path: &Path| {
            let mut names: Vec<_> = fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(self.dir.path()), ["outside", "tree"]);
        assert_eq!(names(&self.outside()), ["precious"]);
        let precious = self.outside().join("precious");
        assert_eq!(fs::read(precious).unwrap(), b"precious");
        result
    }
}
