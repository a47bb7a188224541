//! Compression of chunks, and the choice whether to compress.
//!
//! `auto` measures. Compression is worth it if compressing a chunk and sending the result takes
//! less time than sending it uncompressed. Both times depend on the data, the processors and the
//! link, and change during a migration. So each connection keeps measuring: one chunk in
//! [`PROBE_EVERY`] is sent in the way that is not the chosen one.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use super::block::{Chunk, Encoding};
use super::{BulkError, Result};

/// Compression of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// Zstandard if it is measured to be faster.
    #[default]
    Auto,
    /// Never.
    None,
    /// Zstandard, always.
    Zstd,
    /// gzip, always.
    Gzip,
}

/// The fastest level of each. Higher levels gain little on memory and cost much.
const ZSTD_LEVEL: i32 = 1;
const GZIP_LEVEL: u32 = 1;
/// One chunk in this many is sent in the other way, to see whether that has become faster.
const PROBE_EVERY: u32 = 32;
/// Weight of a new measurement against the earlier ones.
const NEW_WEIGHT: f64 = 0.25;

/// One connection's encoder.
pub struct Encoder {
    compression: Compression,
    zstd: zstd::bulk::Compressor<'static>,
    /// Seconds per raw byte, uncompressed and compressed; the time of compressing and sending
    /// together.
    plain_cost: Option<f64>,
    zstd_cost: Option<f64>,
    count: u32,
}

impl Encoder {
    pub fn new(compression: Compression) -> Result<Self> {
        let zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(failed("compress"))?;
        Ok(Self {
            compression,
            zstd,
            plain_cost: None,
            zstd_cost: None,
            count: 0,
        })
    }

    /// Appends the header and the encoded data of `raw`, which has at most
    /// [`CHUNK_BYTES`](super::block::CHUNK_BYTES). [`Encoding::Plain`] data is not copied: the
    /// caller sends `raw` itself after the header. Returns the encoding and the time that it took.
    ///
    /// # Errors
    /// [`BulkError::Compression`].
    pub fn encode(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<(Encoding, Duration)> {
        let began = Instant::now();
        let header_at = out.len();
        let mut chunk = Chunk {
            encoding: self.choose(),
            raw_bytes: raw.len(),
            wire_bytes: raw.len(),
        };
        if is_zero(raw) {
            chunk.encoding = Encoding::Zeros;
            chunk.wire_bytes = 0;
            chunk.encode(out);
            return Ok((chunk.encoding, began.elapsed()));
        }
        chunk.encode(out);
        let data_at = out.len();
        match chunk.encoding {
            Encoding::Zstd => {
                let packed = self.zstd.compress(raw).map_err(failed("compress"))?;
                out.extend(packed);
            }
            Encoding::Gzip => {
                let mut packer = GzEncoder::new(&mut *out, flate2::Compression::new(GZIP_LEVEL));
                packer
                    .write_all(raw)
                    .and_then(|()| packer.finish().map(drop))
                    .map_err(failed("compress"))?;
            }
            Encoding::Plain | Encoding::Zeros => {}
        }
        match out.len() - data_at {
            packed_bytes if (1..raw.len()).contains(&packed_bytes) => {
                chunk.wire_bytes = packed_bytes;
            }
            _ => {
                out.truncate(data_at);
                chunk.encoding = Encoding::Plain;
            }
        }
        let mut header = Vec::with_capacity(data_at - header_at);
        chunk.encode(&mut header);
        out[header_at..data_at].copy_from_slice(&header);
        Ok((chunk.encoding, began.elapsed()))
    }

    /// Notes the time that a chunk took, from its encoding to the last byte that the socket has
    /// taken.
    pub fn learn(&mut self, encoding: Encoding, raw_bytes: usize, took_dur: Duration) {
        let cost = match encoding {
            // A chunk that did not get smaller has still cost the attempt, so it counts for the way
            // that `choose` tried.
            Encoding::Plain if self.chose_zstd() => &mut self.zstd_cost,
            Encoding::Plain => &mut self.plain_cost,
            Encoding::Zstd => &mut self.zstd_cost,
            Encoding::Zeros | Encoding::Gzip => return,
        };
        let new = took_dur.as_secs_f64() / raw_bytes as f64;
        *cost = Some(cost.map_or(new, |old| old + NEW_WEIGHT * (new - old)));
        self.count = self.count.wrapping_add(1);
    }

    fn choose(&self) -> Encoding {
        match self.compression {
            Compression::None => Encoding::Plain,
            Compression::Zstd => Encoding::Zstd,
            Compression::Gzip => Encoding::Gzip,
            Compression::Auto if self.chose_zstd() => Encoding::Zstd,
            Compression::Auto => Encoding::Plain,
        }
    }

    fn chose_zstd(&self) -> bool {
        let faster = match (self.plain_cost, self.zstd_cost) {
            (None, _) => false,
            (_, None) => true,
            (Some(plain), Some(zstd)) => zstd < plain,
        };
        faster != (self.count % PROBE_EVERY == PROBE_EVERY - 1)
    }
}

fn is_zero(raw: &[u8]) -> bool {
    // The chunk is compared with itself, shifted by one byte: a `memcmp`, as fast as the memory.
    raw.first() == Some(&0) && raw[1..] == raw[..raw.len() - 1]
}

/// One connection's decoder.
pub struct Decompressor {
    zstd: zstd::bulk::Decompressor<'static>,
}

impl Decompressor {
    pub fn new() -> Result<Self> {
        let zstd = zstd::bulk::Decompressor::new().map_err(failed("decompress"))?;
        Ok(Self { zstd })
    }

    /// Decodes `wire` into `raw`, which has the announced length.
    ///
    /// # Errors
    /// [`BulkError::Compression`], [`BulkError::Invalid`] if the length is different.
    pub fn decode(&mut self, encoding: Encoding, wire: &[u8], raw: &mut [u8]) -> Result<()> {
        let unpacked_bytes = match encoding {
            Encoding::Plain => {
                raw.copy_from_slice(wire);
                raw.len()
            }
            Encoding::Zeros => {
                raw.fill(0);
                raw.len()
            }
            Encoding::Zstd => self
                .zstd
                .decompress_to_buffer(wire, raw)
                .map_err(failed("decompress"))?,
            Encoding::Gzip => {
                let mut unpacker = GzDecoder::new(wire);
                unpacker.read_exact(raw).map_err(failed("decompress"))?;
                // The checksum follows the last byte. A further byte makes the length wrong.
                raw.len() + unpacker.read(&mut [0]).map_err(failed("decompress"))?
            }
        };
        if unpacked_bytes != raw.len() {
            return Err(BulkError::Invalid {
                reason: "a chunk whose length differs from its header",
            });
        }
        Ok(())
    }
}

fn failed(action: &'static str) -> impl FnOnce(std::io::Error) -> BulkError {
    move |source| BulkError::Compression { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::transfer::images::block::{CHUNK_BYTES, CHUNK_HEADER_BYTES};

    fn round_trip(compression: Compression, raw: &[u8]) -> (Encoding, usize) {
        let mut out = Vec::new();
        let (encoding, _) = Encoder::new(compression)
            .unwrap()
            .encode(raw, &mut out)
            .unwrap();
        if encoding == Encoding::Plain {
            out.extend(raw);
        }
        let (header, wire) = out.split_first_chunk::<CHUNK_HEADER_BYTES>().unwrap();
        let chunk = Chunk::decode(header, raw.len()).unwrap();
        assert_eq!(chunk.encoding, encoding);
        assert_eq!(chunk.wire_bytes, wire.len());
        let mut decoded = vec![7; chunk.raw_bytes];
        Decompressor::new()
            .unwrap()
            .decode(encoding, wire, &mut decoded)
            .unwrap();
        assert_eq!(decoded, raw);
        (encoding, wire.len())
    }

    #[test]
    fn every_encoding_round_trips() {
        let text = b"a page of text ".repeat(1000);
        let mut noise = vec![0; 10_000];
        getrandom::fill(&mut noise).unwrap();
        for compression in [Compression::Zstd, Compression::Gzip] {
            let (encoding, wire_bytes) = round_trip(compression, &text);
            assert!(matches!(encoding, Encoding::Zstd | Encoding::Gzip));
            assert!(wire_bytes < text.len() / 10);
            // Data that does not get smaller is sent uncompressed.
            assert_eq!(
                round_trip(compression, &noise),
                (Encoding::Plain, noise.len())
            );
        }
        assert_eq!(round_trip(Compression::None, &text).0, Encoding::Plain);
        assert_eq!(
            round_trip(Compression::None, &[0; 5000]),
            (Encoding::Zeros, 0)
        );
        assert_eq!(round_trip(Compression::None, &[0, 0, 1]).0, Encoding::Plain);
    }

    #[test]
    fn a_chunk_that_unpacks_to_more_than_it_says_is_refused() {
        let long = vec![5; 100_000];
        for compression in [Compression::Zstd, Compression::Gzip] {
            let mut out = Vec::new();
            let mut encoder = Encoder::new(compression).unwrap();
            let (encoding, _) = encoder.encode(&long, &mut out).unwrap();
            let mut raw = vec![0; 50_000];
            let wire = &out[CHUNK_HEADER_BYTES..];
            let mut decoder = Decompressor::new().unwrap();
            assert!(decoder.decode(encoding, wire, &mut raw).is_err());
            // Nor one that unpacks to less.
            let mut raw = vec![0; 100_001];
            assert!(decoder.decode(encoding, wire, &mut raw).is_err());
        }
    }

    #[test]
    fn auto_takes_what_is_faster_and_goes_on_looking() {
        let mut encoder = Encoder::new(Compression::Auto).unwrap();
        let (slow, fast) = (Duration::from_millis(3), Duration::from_millis(1));
        let run = |encoder: &mut Encoder, plain, zstd| {
            let mut zstd_count = 0;
            for _ in 0..100 {
                let encoding = encoder.choose();
                zstd_count += u32::from(encoding == Encoding::Zstd);
                let took = if encoding == Encoding::Zstd {
                    zstd
                } else {
                    plain
                };
                encoder.learn(encoding, CHUNK_BYTES, took);
            }
            zstd_count
        };
        assert!(run(&mut encoder, slow, fast) > 80, "a slow link");
        run(&mut encoder, fast, slow);
        assert!(run(&mut encoder, fast, slow) < 20, "a fast one");
    }
}
