//! Frames: kind (1 byte), length (4 bytes, little endian), payload. A magic and the compression
//! come first; the compression covers everything after them.

use std::io::{self, BufReader, BufWriter, Read, Write};

use super::defect::Defect;
use super::error::TreeError;
use super::path::TreePath;

/// Limit of a payload. The kernel allows more attributes for one file, but file systems rarely do.
pub(super) const MAX_PAYLOAD_BYTES: usize = 1 << 20;
/// Limit of the decoder's window, and so of the memory that the peer can make this side use.
const MAX_WINDOW_LOG: u32 = 23;
/// Fast enough for 1 Gbit/s on one processor; the next levels gain little.
const ZSTD_LEVEL: i32 = 1;
const HEADER_BYTES: usize = 5;
/// The end of a stream: the digest of all earlier frames.
const FINISH: u8 = 0x7f;
const DIGEST_BYTES: usize = 32;

/// Compression of a stream or an inventory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// No compression, for a transport that compresses itself.
    None,
    /// Zstandard.
    Zstd,
}

/// The content of a sequence of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Changes,
    Inventory,
}

impl Purpose {
    /// Returns the first bytes of the sequence. The last byte is the version.
    fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Changes => b"rcmtree\x01",
            Self::Inventory => b"rcmlist\x01",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Changes => "stream of changes",
            Self::Inventory => "inventory",
        }
    }
}

enum Output<W: Write> {
    Plain(BufWriter<W>),
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(output) => output.write(bytes),
            Self::Zstd(output) => output.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(output) => output.flush(),
            Self::Zstd(output) => output.flush(),
        }
    }
}

/// Writes frames.
pub(super) struct FrameWriter<W: Write> {
    output: Output<W>,
    purpose: Purpose,
    hasher: blake3::Hasher,
    payload: Vec<u8>,
}

impl<W: Write> FrameWriter<W> {
    pub(super) fn new(
        mut output: W,
        purpose: Purpose,
        compression: Compression,
    ) -> Result<Self, TreeError> {
        let failed = stream("write", purpose);
        output.write_all(purpose.magic()).map_err(failed)?;
        output
            .write_all(&[compression as u8])
            .map_err(stream("write", purpose))?;
        let output = match compression {
            Compression::None => Output::Plain(BufWriter::new(output)),
            Compression::Zstd => Output::Zstd(
                zstd::Encoder::new(output, ZSTD_LEVEL).map_err(stream("write", purpose))?,
            ),
        };
        Ok(Self {
            output,
            purpose,
            hasher: blake3::Hasher::new(),
            payload: Vec::new(),
        })
    }

    /// Writes a frame whose payload `fill` appends to an empty buffer.
    ///
    /// Returns false, and writes nothing, if the payload is too long.
    pub(super) fn frame(
        &mut self,
        kind: u8,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> Result<bool, TreeError> {
        self.payload.clear();
        fill(&mut self.payload);
        if self.payload.len() > MAX_PAYLOAD_BYTES {
            return Ok(false);
        }
        let mut header = [kind; HEADER_BYTES];
        header[1..].copy_from_slice(&(self.payload.len() as u32).to_le_bytes());
        self.hasher.update(&header);
        self.hasher.update(&self.payload);
        self.output
            .write_all(&header)
            .and_then(|()| self.output.write_all(&self.payload))
            .map_err(stream("write", self.purpose))?;
        Ok(true)
    }

    /// Ends the sequence, so that a truncated one is noticed.
    pub(super) fn finish(mut self) -> Result<(), TreeError> {
        let digest = *self.hasher.finalize().as_bytes();
        self.frame(FINISH, |payload| payload.extend(digest))?;
        let flushed = match self.output {
            Output::Plain(mut output) => output.flush(),
            Output::Zstd(output) => output.finish().and_then(|mut output| output.flush()),
        };
        flushed.map_err(stream("write", self.purpose))
    }
}

enum Input<R: Read> {
    Plain(BufReader<R>),
    Zstd(zstd::Decoder<'static, BufReader<R>>),
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(bytes),
            Self::Zstd(input) => input.read(bytes),
        }
    }
}

/// Reads frames. It holds at most one payload and the decoder's window, whatever the peer sends.
pub(super) struct FrameReader<R: Read> {
    input: Input<R>,
    purpose: Purpose,
    hasher: blake3::Hasher,
    payload: Vec<u8>,
    finished: bool,
}

impl<R: Read> FrameReader<R> {
    pub(super) fn new(mut input: R, purpose: Purpose) -> Result<Self, TreeError> {
        let mut start = [0; 9];
        input
            .read_exact(&mut start)
            .map_err(|error| cut_or_failed(error, purpose, &TreePath::root()))?;
        if start[..8] != *purpose.magic() {
            return Err(malformed(Defect::Magic, &TreePath::root()));
        }
        let input = match start[8] {
            0 => Input::Plain(BufReader::new(input)),
            1 => {
                let mut decoder = zstd::Decoder::new(input).map_err(stream("read", purpose))?;
                decoder
                    .window_log_max(MAX_WINDOW_LOG)
                    .map_err(stream("read", purpose))?;
                Input::Zstd(decoder)
            }
            _ => return Err(malformed(Defect::Magic, &TreePath::root())),
        };
        Ok(Self {
            input,
            purpose,
            hasher: blake3::Hasher::new(),
            payload: Vec::new(),
            finished: false,
        })
    }

    /// Returns the next frame; `None` after the last one. `after` is for the message.
    pub(super) fn next(&mut self, after: &TreePath) -> Result<Option<(u8, &[u8])>, TreeError> {
        if self.finished {
            return Ok(None);
        }
        let mut header = [0; HEADER_BYTES];
        self.input
            .read_exact(&mut header)
            .map_err(|error| cut_or_failed(error, self.purpose, after))?;
        let [kind, length @ ..] = header;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_PAYLOAD_BYTES {
            return Err(malformed(Defect::FrameLength, after));
        }
        self.payload.clear();
        // The buffer grows with the bytes that arrive, not with the announced length.
        let read_bytes = (&mut self.input)
            .take(length as u64)
            .read_to_end(&mut self.payload)
            .map_err(|error| cut_or_failed(error, self.purpose, after))?;
        if read_bytes < length {
            return Err(malformed(Defect::Truncated, after));
        }
        if kind == FINISH {
            if self.payload[..] != self.hasher.finalize().as_bytes()[..DIGEST_BYTES] {
                return Err(malformed(Defect::Digest, after));
            }
            self.finished = true;
            return Ok(None);
        }
        self.hasher.update(&header);
        self.hasher.update(&self.payload);
        Ok(Some((kind, &self.payload)))
    }
}

pub(super) fn malformed(defect: Defect, after: &TreePath) -> TreeError {
    TreeError::Malformed {
        after: after.clone(),
        defect,
    }
}

fn stream(action: &'static str, purpose: Purpose) -> impl FnOnce(io::Error) -> TreeError {
    let what = purpose.name();
    move |source| TreeError::Stream {
        action,
        what,
        source,
    }
}

fn cut_or_failed(error: io::Error, purpose: Purpose, after: &TreePath) -> TreeError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => malformed(Defect::Truncated, after),
        _ => stream("read", purpose)(error),
    }
}

/// Appends fields to a payload.
pub(super) trait Put {
    /// Appends a number, seven bits per byte, the lowest first.
    fn put_number(&mut self, number: u64);
    /// Appends bytes after their length.
    fn put_bytes(&mut self, bytes: &[u8]);
    /// Appends a signed number. The sign goes into the lowest bit, so that small numbers stay
    /// short.
    fn put_signed(&mut self, number: i64) {
        self.put_number(((number << 1) ^ (number >> 63)) as u64);
    }
}

impl Put for Vec<u8> {
    fn put_number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.push(number as u8);
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        self.put_number(bytes.len() as u64);
        self.extend(bytes);
    }
}

/// Takes fields off a payload.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload }
    }

    pub(super) fn byte(&mut self) -> Result<u8, Defect> {
        let (byte, rest) = self.rest.split_first().ok_or(Defect::Field)?;
        self.rest = rest;
        Ok(*byte)
    }

    pub(super) fn number(&mut self) -> Result<u64, Defect> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if (bits << shift) >> shift != bits {
                return Err(Defect::Field);
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Defect::Field)
    }

    /// Takes a number below `limit`.
    pub(super) fn below(&mut self, limit: u64) -> Result<u64, Defect> {
        match self.number()? {
            number if number < limit => Ok(number),
            _ => Err(Defect::Field),
        }
    }

    pub(super) fn signed(&mut self) -> Result<i64, Defect> {
        let number = self.number()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Defect> {
        let length = self.number()?;
        if length > self.rest.len() as u64 {
            return Err(Defect::Field);
        }
        let (bytes, rest) = self.rest.split_at(length as usize);
        self.rest = rest;
        Ok(bytes)
    }

    /// Takes all remaining bytes.
    pub(super) fn remainder(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Fails if bytes are left.
    pub(super) fn end(self) -> Result<(), Defect> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Defect::Field)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        let mut payload = Vec::new();
        let numbers = [
            0,
            1,
            127,
            128,
            300,
            u64::from(u32::MAX),
            u64::MAX - 1,
            u64::MAX,
        ];
        let signed = [0, -1, 1, i64::MIN, i64::MAX];
        numbers
            .iter()
            .for_each(|number| payload.put_number(*number));
        signed.iter().for_each(|number| payload.put_signed(*number));
        let mut fields = Fields::new(&payload);
        assert_eq!(numbers.map(|_| fields.number().unwrap()), numbers);
        assert_eq!(signed.map(|_| fields.signed().unwrap()), signed);
        fields.end().unwrap();
        assert_eq!(Fields::new(&[0xff; 11]).number(), Err(Defect::Field));
        let over = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        assert_eq!(Fields::new(&over).number(), Err(Defect::Field));
        assert_eq!(Fields::new(&[5, 1, 2]).bytes(), Err(Defect::Field));
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_found() {
        for compression in [Compression::None, Compression::Zstd] {
            let mut bytes = Vec::new();
            let mut writer = FrameWriter::new(&mut bytes, Purpose::Changes, compression).unwrap();
            for kind in 1..4 {
                assert!(
                    writer
                        .frame(kind, |payload| payload.extend([kind; 20]))
                        .unwrap()
                );
            }
            writer.finish().unwrap();
            let read = |bytes: &[u8]| -> Result<usize, TreeError> {
                let root = TreePath::root();
                let mut reader = FrameReader::new(bytes, Purpose::Changes)?;
                let mut frames = 0;
                while reader.next(&root)?.is_some() {
                    frames += 1;
                }
                Ok(frames)
            };
            assert_eq!(read(&bytes).unwrap(), 3);
            for length in 0..bytes.len() - 4 {
                assert!(
                    read(&bytes[..length]).is_err(),
                    "{compression:?} cut at {length}"
                );
            }
            if compression == Compression::None {
                for bit in 0..bytes.len() * 8 {
                    let mut bytes = bytes.clone();
                    bytes[bit / 8] ^= 1 << (bit % 8);
                    assert!(read(&bytes).is_err(), "bit {bit}");
                }
            }
        }
    }
}
