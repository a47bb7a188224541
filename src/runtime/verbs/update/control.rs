//! Control files of cgroups, with changes that can be rolled back.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::error::UpdateError;
use crate::error::chain;

type Result<T> = std::result::Result<T, UpdateError>;

/// Changes to control files, with the former contents.
#[derive(Debug, Default)]
pub(super) struct ControlFiles {
    undo: Vec<(PathBuf, String)>,
}

impl ControlFiles {
    /// Writes a file that reads back as the value that was written.
    pub(super) fn write(&mut self, path: &Path, value: &str) -> Result<()> {
        let former = read(path)?;
        self.replace(path, value, former.trim())
    }

    /// Writes the weight of all devices. The file reads `default 100`, or has this as the first of
    /// several lines.
    pub(super) fn write_weight(&mut self, path: &Path, value: &str) -> Result<()> {
        let former = read(path)?;
        let former = former
            .lines()
            .next()
            .and_then(|line| line.split_whitespace().last())
            .unwrap_or_default();
        self.replace(path, value, former)
    }

    /// Writes a file that has a line for each device. `unset` is the value of a device without a
    /// setting.
    pub(super) fn write_device(
        &mut self,
        path: &Path,
        device: &str,
        value: &str,
        unset: &str,
    ) -> Result<()> {
        let former = read(path)?;
        let prefix = format!("{device} ");
        let former = former
            .lines()
            .find(|line| line.starts_with(&prefix))
            .map_or_else(|| format!("{device} {unset}"), str::to_owned);
        self.replace(path, &format!("{device} {value}"), &former)
    }

    /// Remembers a file that changes along with another one.
    pub(super) fn remember(&mut self, path: &Path) -> Result<()> {
        let former = read(path)?;
        self.undo
            .push((path.to_path_buf(), former.trim().to_owned()));
        Ok(())
    }

    fn replace(&mut self, path: &Path, value: &str, former: &str) -> Result<()> {
        write(path, value)?;
        self.undo.push((path.to_path_buf(), former.to_owned()));
        Ok(())
    }

    /// Rolls all changes back, the last one first. A failure is logged as a warning.
    pub(super) fn roll_back(self) {
        for (path, former) in self.undo.into_iter().rev() {
            if let Err(error) = write(&path, &former) {
                tracing::warn!(
                    "a limit of the container could not be rolled back: {}",
                    chain(&error)
                );
            }
        }
    }
}

/// Reads a control file.
pub(super) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|source| UpdateError::Read {
        path: path.to_path_buf(),
        source,
    })
}

fn write(path: &Path, value: &str) -> Result<()> {
    // Write an empty list as an empty line: a write of no bytes has no effect.
    let text = if value.is_empty() { "\n" } else { value };
    let written = OpenOptions::new()
        .write(true)
        // This has no effect in a cgroup; tests use ordinary files.
        .truncate(true)
        .open(path)
        .and_then(|mut file: fs::File| file.write_all(text.as_bytes()));
    written.map_err(|source: io::Error| UpdateError::Write {
        value: value.to_owned(),
        path: path.to_path_buf(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_taken_back_in_reverse() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("limit"), "100\n").unwrap();
        fs::write(path("weight"), "default 50\n8:0 70\n").unwrap();
        fs::write(path("throttle"), "8:0 5\n").unwrap();
        let mut files = ControlFiles::default();
        files.write(&path("limit"), "200").unwrap();
        files.write(&path("limit"), "300").unwrap();
        files.write_weight(&path("weight"), "60").unwrap();
        files
            .write_device(&path("throttle"), "8:16", "9", "0")
            .unwrap();
        assert_eq!(read(&path("limit")).unwrap(), "300");
        assert_eq!(read(&path("throttle")).unwrap(), "8:16 9");
        files.roll_back();
        assert_eq!(read(&path("limit")).unwrap(), "100");
        assert_eq!(read(&path("weight")).unwrap(), "50");
        assert_eq!(read(&path("throttle")).unwrap(), "8:16 0");
    }

    #[test]
    fn no_file_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cpu.max");
        let mut files = ControlFiles::default();
        let error = files.write(&path, "1").unwrap_err();
        assert!(matches!(error, UpdateError::Read { .. }));
        assert!(!path.exists());
    }
}
