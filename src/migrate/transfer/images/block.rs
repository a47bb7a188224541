//! Encoding of pieces of images. No input or output here.
//!
//! ```text
//! piece   1:u8  name_bytes:u8  number:u32  offset:u64  length:u32  name   chunks
//! end     2:u8  0:u8           number:u32  0:u64       0:u32
//! chunk   encoding:u8  raw_bytes:u32  wire_bytes:u32  data
//! ```
//!
//! The chunks of a piece make up `length` bytes. After an end no more of this number follows on the
//! connection.
//!
//! Numbers are big-endian. A piece begins at a multiple of [`PIECE_BYTES`] and is no longer than
//! that. An empty file is one piece of length 0. Every number is checked before it is used, so that
//! a peer never decides how much memory this end allocates.

use super::{BulkError, Result};
use crate::image::manifest::{PIECE_BYTES, is_image};

/// Size limit of a chunk, uncompressed.
pub const CHUNK_BYTES: usize = 256 << 10;
/// The length of a piece's header without the name.
pub const PIECE_HEADER_BYTES: usize = 18;
/// The length of a chunk's header.
pub const CHUNK_HEADER_BYTES: usize = 9;
/// Size limit of a file: the kernel's own (`loff_t`).
const MAX_FILE_BYTES: u64 = i64::MAX as u64;

const PIECE: u8 = 1;
const END: u8 = 2;

/// Header of a message on a connection for images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockHeader {
    /// A piece; its name follows.
    Piece {
        /// The number of the directory in the chain of rounds.
        number: u32,
        /// The length of the name.
        name_bytes: u8,
        /// Offset of the piece in the file.
        offset: u64,
        /// Length of the piece.
        length_bytes: u32,
    },
    /// All pieces of a directory were sent on this connection.
    End {
        /// The number of the directory.
        number: u32,
    },
}

/// Encoding of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Uncompressed.
    Plain,
    /// Zeros, which are not sent.
    Zeros,
    /// Zstandard.
    Zstd,
    /// gzip.
    Gzip,
}

/// A part of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Encoding of its data.
    pub encoding: Encoding,
    /// Its length in the file.
    pub raw_bytes: usize,
    /// Its length on the wire.
    pub wire_bytes: usize,
}

const fn invalid<T>(reason: &'static str) -> Result<T> {
    Err(BulkError::Invalid { reason })
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut number = [0; N];
    number.copy_from_slice(&bytes[at..at + N]);
    number
}

impl BlockHeader {
    /// Appends a piece's header and name.
    pub fn encode_piece(out: &mut Vec<u8>, directory: u32, name: &str, offset: u64, length: u32) {
        out.push(PIECE);
        // Names of images are names of files: at most 255 bytes (`NAME_MAX`).
        out.push(name.len() as u8);
        out.extend(directory.to_be_bytes());
        out.extend(offset.to_be_bytes());
        out.extend(length.to_be_bytes());
        out.extend(name.as_bytes());
    }

    /// Appends the end of a directory.
    pub fn encode_end(out: &mut Vec<u8>, directory: u32) {
        out.extend([END, 0]);
        out.extend(directory.to_be_bytes());
        out.extend([0; 12]);
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`BulkError::Invalid`].
    pub fn decode(bytes: &[u8; PIECE_HEADER_BYTES]) -> Result<Self> {
        let directory = u32::from_be_bytes(number(bytes, 2));
        let offset = u64::from_be_bytes(number(bytes, 6));
        let length_bytes = u32::from_be_bytes(number(bytes, 14));
        match (bytes[0], bytes[1]) {
            (END, 0) if offset == 0 && length_bytes == 0 => Ok(Self::End { number: directory }),
            (PIECE, 0) => invalid("a piece of a file without a name"),
            (PIECE, _) if !offset.is_multiple_of(PIECE_BYTES) => {
                invalid("a piece at an offset between two pieces")
            }
            (PIECE, _) if u64::from(length_bytes) > PIECE_BYTES => {
                invalid("a piece that is too long")
            }
            (PIECE, _) if offset > MAX_FILE_BYTES - PIECE_BYTES => {
                invalid("a piece beyond the size limit of files")
            }
            (PIECE, name_bytes) => Ok(Self::Piece {
                number: directory,
                name_bytes,
                offset,
                length_bytes,
            }),
            _ => invalid("neither a piece nor an end"),
        }
    }
}

/// Decodes the name of an image from the network. It is never a path and never a log.
///
/// # Errors
/// [`BulkError::Invalid`].
pub fn decode_name(bytes: &[u8]) -> Result<&str> {
    match std::str::from_utf8(bytes) {
        Ok(name) if is_image(name) && !name.contains(['/', '\0']) => Ok(name),
        _ => invalid("a name that is not the name of an image"),
    }
}

impl Chunk {
    /// Appends the header.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.push(match self.encoding {
            Encoding::Plain => 0,
            Encoding::Zeros => 1,
            Encoding::Zstd => 2,
            Encoding::Gzip => 3,
        });
        // Both are at most [`CHUNK_BYTES`].
        out.extend((self.raw_bytes as u32).to_be_bytes());
        out.extend((self.wire_bytes as u32).to_be_bytes());
    }

    /// Reads the header of a chunk in a piece of which `left_bytes` are still missing.
    ///
    /// # Errors
    /// [`BulkError::Invalid`].
    pub fn decode(bytes: &[u8; CHUNK_HEADER_BYTES], left_bytes: usize) -> Result<Self> {
        let raw_bytes = u32::from_be_bytes(number(bytes, 1)) as usize;
        let wire_bytes = u32::from_be_bytes(number(bytes, 5)) as usize;
        let encoding = match bytes[0] {
            0 => Encoding::Plain,
            1 => Encoding::Zeros,
            2 => Encoding::Zstd,
            3 => Encoding::Gzip,
            _ => return invalid("a chunk of unknown encoding"),
        };
        if raw_bytes == 0 || raw_bytes > CHUNK_BYTES || raw_bytes > left_bytes {
            return invalid("a chunk of impossible length");
        }
        let fits = match encoding {
            Encoding::Plain => wire_bytes == raw_bytes,
            Encoding::Zeros => wire_bytes == 0,
            // The sender sends a chunk uncompressed if compression does not make it shorter.
            Encoding::Zstd | Encoding::Gzip => (1..raw_bytes).contains(&wire_bytes),
        };
        if !fits {
            return invalid("a chunk whose lengths do not match");
        }
        Ok(Self {
            encoding,
            raw_bytes,
            wire_bytes,
        })
    }
}

#[cfg(test)]
mod tests;
