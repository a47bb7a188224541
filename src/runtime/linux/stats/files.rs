//! Formats of a cgroup's files (Documentation/admin-guide/cgroup-v2.rst, "Interface Files").

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;

use super::{Pressure, PressureLine};
use crate::runtime::linux::cgroup::CgroupError;
use crate::sys::file::Failed;

pub(super) type Result<T> = std::result::Result<T, CgroupError>;

/// Reads a file; `None` if this kernel does not have it, or the group is gone.
pub(super) fn text(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                // The group is being removed, or these statistics are turned off.
                || [Errno::ENODEV, Errno::EOPNOTSUPP]
                    .map(|errno| Some(errno as i32))
                    .contains(&error.raw_os_error()) =>
        {
            Ok(None)
        }
        Err(source) => Err(failed(path, source)),
    }
}

fn failed(path: &Path, source: io::Error) -> CgroupError {
    CgroupError::File(Failed {
        action: "read",
        path: path.to_path_buf(),
        source,
    })
}

fn malformed(path: &Path, line: &str) -> CgroupError {
    let what = format!("unexpected content {line:?}");
    failed(path, io::Error::new(io::ErrorKind::InvalidData, what))
}

/// Reads a file with one number; `max` is the largest number.
pub(super) fn number(path: &Path) -> Result<Option<u64>> {
    let Some(text) = text(path)? else {
        return Ok(None);
    };
    let word = text.trim();
    if word == "max" {
        return Ok(Some(u64::MAX));
    }
    match word.parse::<i128>() {
        // Some v1 files have -1 for "no limit", which runc reads as 0.
        Ok(value) if value < 0 => Ok(Some(0)),
        Ok(value) => Ok(Some(u64::try_from(value).unwrap_or(u64::MAX))),
        Err(_) => Err(malformed(path, word)),
    }
}

/// Reads a file with numbers in a row.
pub(super) fn numbers(path: &Path) -> Result<Vec<u64>> {
    text(path)?
        .unwrap_or_default()
        .split_whitespace()
        .map(|word| word.parse().map_err(|_| malformed(path, word)))
        .collect()
}

/// Reads a file of `name number` lines.
pub(super) fn keyed(path: &Path) -> Result<BTreeMap<String, u64>> {
    text(path)?
        .unwrap_or_default()
        .lines()
        .map(|line| {
            line.split_once(' ')
                .and_then(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?)))
                .ok_or_else(|| malformed(path, line))
        })
        .collect()
}

/// Reads a file with a list such as `0-2,5` (cpuset(7), "List format").
pub(super) fn ranges(path: &Path) -> Result<Vec<u16>> {
    let text = text(path)?.unwrap_or_default();
    let mut members = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) => members.extend(first..=last),
            _ => return Err(malformed(path, part)),
        }
    }
    Ok(members)
}

/// Reads a `*.pressure` file.
pub(super) fn pressure(path: &Path) -> Result<Option<Pressure>> {
    let Some(text) = text(path)? else {
        return Ok(None);
    };
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let (kind, fields) = line.split_once(' ').unwrap_or((line, ""));
        let target = match kind {
            "some" => &mut pressure.some,
            "full" => &mut pressure.full,
            _ => continue,
        };
        *target = pressure_line(fields).ok_or_else(|| malformed(path, line))?;
    }
    Ok(Some(pressure))
}

fn pressure_line(fields: &str) -> Option<PressureLine> {
    let mut line = PressureLine::default();
    for field in fields.split_whitespace() {
        let (name, value) = field.split_once('=')?;
        match name {
            "avg10" => line.avg10 = value.parse().ok()?,
            "avg60" => line.avg60 = value.parse().ok()?,
            "avg300" => line.avg300 = value.parse().ok()?,
            "total" => line.total = value.parse().ok()?,
            _ => {}
        }
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        file
    }

    #[test]
    fn numbers_as_the_kernel_writes_them() {
        for (content, value) in [
            ("12\n", 12),
            ("max\n", u64::MAX),
            ("-1\n", 0),
            ("18446744073709551615\n", u64::MAX),
        ] {
            assert_eq!(number(file(content).path()).unwrap(), Some(value));
        }
        assert_eq!(number(Path::new("/nonexistent")).unwrap(), None);
        let error = number(file("many\n").path()).unwrap_err();
        assert!(matches!(error, CgroupError::File(_)));
        assert_eq!(numbers(file("1 2 \n").path()).unwrap(), [1, 2]);
    }

    #[test]
    fn keyed_files() {
        let read = keyed(file("cache 1\nrss 2\n").path()).unwrap();
        assert_eq!(
            read,
            BTreeMap::from([("cache".into(), 1), ("rss".into(), 2)])
        );
        assert!(keyed(file("cache\n").path()).is_err());
    }

    #[test]
    fn lists_of_processors() {
        assert_eq!(ranges(file("0-2,5\n").path()).unwrap(), [0, 1, 2, 5]);
        assert!(ranges(file("\n").path()).unwrap().is_empty());
        assert!(ranges(file("a\n").path()).is_err());
    }

    #[test]
    fn pressure_files() {
        let read = pressure(
            file(
                "some avg10=0.25 avg60=0.00 avg300=0.00 total=17\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n",
            )
            .path(),
        )
        .unwrap()
        .unwrap();
        assert!((read.some.avg10 - 0.25).abs() < f64::EPSILON);
        assert_eq!((read.some.total, read.full.total), (17, 9));
    }
}
