//! The contents of a file in chunks, with their digests. Holes are neither read nor sent.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// Size of a chunk, the unit that is compared and sent. The digests of a file take 1/16384 of its
/// size.
pub(super) const CHUNK_BYTES: u64 = 256 << 10;

/// The first half of a BLAKE3 digest. Only somebody who writes to the container's files could make
/// two chunks with the same digest, and would only keep the old contents of one of them.
pub(super) type Digest = [u8; 16];

/// Stands for the digest of a chunk without data.
pub(super) const HOLE: Digest = [0; 16];

/// Returns the first range of data at or after `from`; `None` if there is none up to `size_bytes`.
pub(super) fn next_data(file: &File, from: u64, size_bytes: u64) -> io::Result<Option<Range<u64>>> {
    if from >= size_bytes {
        return Ok(None);
    }
    let seek = |offset: u64, whence| lseek(file.as_raw_fd(), offset as i64, whence);
    let start = match seek(from, Whence::SeekData) {
        Ok(start) => start as u64,
        Err(Errno::ENXIO) => return Ok(None),
        // The file system knows no holes.
        Err(Errno::EINVAL) => return Ok(Some(from..size_bytes)),
        Err(errno) => return Err(errno.into()),
    };
    let end = match seek(start, Whence::SeekHole) {
        Ok(end) => end as u64,
        // The file was cut at this moment.
        Err(Errno::ENXIO) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let range = start..end.min(size_bytes);
    Ok((!range.is_empty()).then_some(range))
}

/// A part of a file.
pub(super) enum Part {
    /// A number of chunks without data.
    Holes { chunks: u64 },
    /// One chunk. [`Chunks`] has its contents.
    Chunk { digest: Digest },
}

/// Reads a file that may change during the reading. Bytes beyond the initial size are not read.
pub(super) struct Chunks {
    file: File,
    size_bytes: u64,
    position: u64,
    data: Option<Range<u64>>,
    looked: bool,
    buffer: Vec<u8>,
    extents: Vec<Range<u64>>,
}

impl Chunks {
    pub(super) fn new(file: File, size_bytes: u64) -> Self {
        Self {
            file,
            size_bytes,
            position: 0,
            data: None,
            looked: false,
            buffer: Vec::new(),
            extents: Vec::new(),
        }
    }

    /// Returns the size. It is less than the initial size if the file was cut during the reading.
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Returns the range of the last part in the file.
    pub(super) fn range(&self) -> Range<u64> {
        let start = self.position.saturating_sub(1) / CHUNK_BYTES * CHUNK_BYTES;
        start..self.position
    }

    /// Returns the data of the last chunk, each extent with its offset in the file.
    pub(super) fn data(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let start = self.range().start;
        self.extents.iter().map(move |extent| {
            let (from, to) = (extent.start - start, extent.end - start);
            (extent.start, &self.buffer[from as usize..to as usize])
        })
    }

    /// Returns the holes between the data of the last chunk.
    pub(super) fn gaps(&self) -> Vec<Range<u64>> {
        let chunk = self.range();
        let mut gaps = Vec::new();
        let mut at = chunk.start;
        for extent in &self.extents {
            gaps.push(at..extent.start);
            at = extent.end;
        }
        gaps.push(at..chunk.end);
        gaps.retain(|gap| !gap.is_empty());
        gaps
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Part>> {
        self.extents.clear();
        if self.position >= self.size_bytes {
            return Ok(None);
        }
        self.look()?;
        let start = self.position;
        let data_start = self
            .data
            .as_ref()
            .map_or(self.size_bytes, |data| data.start);
        let chunks = if data_start >= self.size_bytes {
            (self.size_bytes - start).div_ceil(CHUNK_BYTES)
        } else {
            (data_start - start.min(data_start)) / CHUNK_BYTES
        };
        if chunks > 0 {
            self.position = (start + chunks * CHUNK_BYTES).min(self.size_bytes);
            return Ok(Some(Part::Holes { chunks }));
        }
        let mut end = (start + CHUNK_BYTES).min(self.size_bytes);
        self.buffer.clear();
        self.buffer.resize((end - start) as usize, 0);
        while let Some(data) = self.data.clone().filter(|data| data.start < end) {
            let extent = data.start.max(start)..data.end.min(end);
            let into = (extent.start - start) as usize..(extent.end - start) as usize;
            let read_bytes = self.read(into.clone(), extent.start)?;
            if read_bytes > 0 {
                self.extents
                    .push(extent.start..extent.start + read_bytes as u64);
            }
            if read_bytes < into.len() {
                end = extent.start + read_bytes as u64;
                self.size_bytes = end;
                self.buffer.truncate((end - start) as usize);
                break;
            }
            if data.end > end {
                break;
            }
            self.data = next_data(&self.file, data.end, self.size_bytes)?;
        }
        self.position = end;
        if end == start {
            return Ok(None);
        }
        let mut digest = HOLE;
        digest.copy_from_slice(&blake3::hash(&self.buffer).as_bytes()[..HOLE.len()]);
        Ok(Some(Part::Chunk { digest }))
    }

    /// Finds the first data at or after the position.
    fn look(&mut self) -> io::Result<()> {
        if !self.looked {
            self.looked = true;
            self.data = next_data(&self.file, self.position, self.size_bytes)?;
        }
        Ok(())
    }

    fn read(&mut self, into: Range<usize>, offset: u64) -> io::Result<usize> {
        let mut done = 0;
        let buffer = &mut self.buffer[into];
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(file: &File, size_bytes: u64) -> Vec<(Range<u64>, Option<u64>)> {
        let mut chunks = Chunks::new(file.try_clone().unwrap(), size_bytes);
        let mut parts = Vec::new();
        let mut at = 0;
        while let Some(part) = chunks.next().unwrap() {
            match part {
                Part::Holes { chunks: count } => {
                    let end = (at + count * CHUNK_BYTES).min(size_bytes);
                    parts.push((at..end, None));
                    at = end;
                }
                Part::Chunk { digest } => {
                    assert_ne!(digest, HOLE);
                    assert_eq!(chunks.range().start, at);
                    at = chunks.range().end;
                    let data_bytes: u64 = chunks.data().map(|(_, data)| data.len() as u64).sum();
                    let gap_bytes: u64 = chunks.gaps().iter().map(|gap| gap.end - gap.start).sum();
                    assert_eq!(data_bytes + gap_bytes, at - chunks.range().start);
                    parts.push((chunks.range(), Some(data_bytes)));
                }
            }
        }
        assert_eq!(at, chunks.size_bytes());
        parts
    }

    #[test]
    fn holes_are_not_read() {
        let file = tempfile::tempfile().unwrap();
        let size_bytes = (1 << 40) + 7;
        file.set_len(size_bytes).unwrap();
        assert_eq!(parts(&file, size_bytes), [(0..size_bytes, None)]);
        let at = CHUNK_BYTES * 1000;
        file.write_all_at(&[1; 4096], at + 8192).unwrap();
        file.write_all_at(b"end", size_bytes - 3).unwrap();
        let found = parts(&file, size_bytes);
        assert_eq!(found[0], (0..at, None));
        assert_eq!(found[1].0, at..at + CHUNK_BYTES);
        assert!(found[1].1 >= Some(4096));
        assert_eq!(
            found.last().map(|last| last.0.clone()),
            Some(1 << 40..size_bytes)
        );
    }

    #[test]
    fn a_file_that_was_cut_meanwhile_just_ends() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 5000], 0).unwrap();
        assert_eq!(parts(&file, 5000), [(0..5000, Some(5000))]);
        let mut chunks = Chunks::new(file.try_clone().unwrap(), CHUNK_BYTES * 3);
        while chunks.next().unwrap().is_some() {}
        assert!(chunks.size_bytes() >= 5000);
        assert_eq!(parts(&file, 0), []);
    }
}
