//! CRIU's statistics of a dump or a restore: the files `stats-dump` and `stats-restore`
//! (images/stats.proto, CRIU 4.2).

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::error::Error;
use super::rpc::{self, FieldValue};

/// First magic number of every service image (criu/include/magic.h, CRIU 4.2).
const SERVICE_MAGIC: u32 = 0x5510_5940;
/// Second magic number of a statistics image (criu/include/magic.h, CRIU 4.2).
const STATS_MAGIC: u32 = 0x5709_3306;
/// Bytes of a page, the unit that CRIU counts in.
pub const PAGE_BYTES: u64 = 4096;

/// Cost of a dump or pre-dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DumpStats {
    /// From the first attempt to stop tasks until all were stopped.
    pub freezing_dur: Duration,
    /// Time for which the tasks were stopped. It ends with the answer to `post-dump`, so it
    /// includes a pause there.
    pub frozen_dur: Duration,
    /// Collecting memory.
    pub memdump_dur: Duration,
    /// Writing memory.
    pub memwrite_dur: Duration,
    /// Memory that CRIU has examined.
    pub scanned_bytes: u64,
    /// Memory left out because the parent images have it.
    pub skipped_parent_bytes: u64,
    /// Memory written.
    pub written_bytes: u64,
    /// Memory that stays at the source for a lazy restore.
    pub lazy_bytes: u64,
}

/// Cost of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RestoreStats {
    /// Making the processes.
    pub forking_dur: Duration,
    /// The whole restore, including a pause at `post-restore`.
    pub restore_dur: Duration,
    /// Memory restored.
    pub restored_bytes: u64,
}

impl DumpStats {
    /// Reads `stats-dump` in CRIU's work directory.
    ///
    /// # Errors
    /// [`Error::Stats`], also if the file is no such image.
    pub fn read(work_dir: &Path) -> Result<Self, Error> {
        let entry = read(&work_dir.join("stats-dump"), 1)?;
        let duration = |number| Duration::from_micros(number_of(&entry, number));
        let bytes = |number| number_of(&entry, number) * PAGE_BYTES;
        Ok(Self {
            freezing_dur: duration(1),
            frozen_dur: duration(2),
            memdump_dur: duration(3),
            memwrite_dur: duration(4),
            // Fields 12 to 14 count shared memory separately.
            scanned_bytes: bytes(5) + bytes(12),
            skipped_parent_bytes: bytes(6) + bytes(13),
            written_bytes: bytes(7) + bytes(14),
            lazy_bytes: bytes(9),
        })
    }
}

impl RestoreStats {
    /// Reads `stats-restore` in CRIU's work directory.
    ///
    /// # Errors
    /// [`Error::Stats`], also if the file is no such image.
    pub fn read(work_dir: &Path) -> Result<Self, Error> {
        let entry = read(&work_dir.join("stats-restore"), 2)?;
        Ok(Self {
            forking_dur: Duration::from_micros(number_of(&entry, 3)),
            restore_dur: Duration::from_micros(number_of(&entry, 4)),
            restored_bytes: number_of(&entry, 5) * PAGE_BYTES,
        })
    }
}

type Fields = Vec<(u32, FieldValue)>;

/// Returns the nested message `number` of a statistics image.
fn read(path: &Path, number: u32) -> Result<Fields, Error> {
    fs::read(path)
        .and_then(|image| entry(&image, number).ok_or_else(|| io::ErrorKind::InvalidData.into()))
        .map_err(|source| Error::Stats {
            path: path.to_path_buf(),
            source,
        })
}

/// Parses an image: two magic numbers, then a little-endian length before each message
/// (criu/image.c and criu/protobuf.c, CRIU 4.2).
fn entry(image: &[u8], number: u32) -> Option<Fields> {
    let word = |index: usize| {
        let bytes = image.get(4 * index..4 * index + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    if (word(0)?, word(1)?) != (SERVICE_MAGIC, STATS_MAGIC) {
        return None;
    }
    let length_bytes = usize::try_from(word(2)?).ok()?;
    let message = image.get(12..)?.get(..length_bytes)?;
    let nested = rpc::fields(message)?
        .into_iter()
        .find_map(|field| match field {
            (found, FieldValue::Bytes(nested)) if found == number => Some(nested),
            _ => None,
        })?;
    rpc::fields(&nested)
}

fn number_of(entry: &Fields, number: u32) -> u64 {
    entry
        .iter()
        .find_map(|field| match field {
            (found, FieldValue::Number(value)) if *found == number => Some(*value),
            _ => None,
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(message: &[u8]) -> Vec<u8> {
        let mut image = Vec::new();
        image.extend(SERVICE_MAGIC.to_le_bytes());
        image.extend(STATS_MAGIC.to_le_bytes());
        image.extend((message.len() as u32).to_le_bytes());
        image.extend(message);
        image
    }

    #[test]
    fn a_dump_s_numbers() {
        let dir = tempfile::tempdir().unwrap();
        // dump { freezing_time: 300, frozen_time: 5, pages_written: 2, shpages_written: 1 }
        let message = [0x0a, 9, 0x08, 0xac, 0x02, 0x10, 5, 0x38, 2, 0x70, 1];
        fs::write(dir.path().join("stats-dump"), image(&message)).unwrap();
        let stats = DumpStats::read(dir.path()).unwrap();
        assert_eq!(stats.freezing_dur, Duration::from_micros(300));
        assert_eq!(stats.frozen_dur, Duration::from_micros(5));
        assert_eq!(stats.written_bytes, 3 * PAGE_BYTES);
    }

    #[test]
    fn what_is_no_statistics_is_refused() {
        let whole = image(&[0x0a, 2, 0x08, 1]);
        assert!(entry(&whole, 1).is_some());
        assert!(entry(&whole, 2).is_none(), "a dump is no restore");
        for length in 0..whole.len() {
            assert!(entry(&whole[..length], 1).is_none(), "cut at {length}");
        }
        let mut wrong = whole;
        wrong[0] ^= 1;
        assert!(entry(&wrong, 1).is_none());
    }
}
