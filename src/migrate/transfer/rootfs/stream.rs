//! Streams one after the other on one connection. A stream consists of pieces, each with a header
//! of 5 bytes (kind and length), and ends with an empty piece.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Result, RootfsError};
use crate::migrate::limits::STALL_LIMIT_DUR;
use crate::migrate::link::channel::{Channel, Patience, TransportError};
use crate::migrate::transfer::images::RateLimit;

const PIECE_BYTES: usize = 256 << 10;
const HEADER_BYTES: usize = 5;
const DATA: u8 = 1;
const END: u8 = 2;
const LAST: u8 = 3;
/// Limit for the bytes of a stream after the end that its reader has seen.
const MAX_REST_BYTES: u64 = PIECE_BYTES as u64;

/// Writes a stream.
pub struct Outgoing<'a> {
    channel: &'a mut Channel,
    rate_limit: Option<&'a RateLimit>,
    sent: &'a AtomicU64,
    /// The header and the data of the next piece.
    piece: Vec<u8>,
}

impl<'a> Outgoing<'a> {
    pub fn new(
        channel: &'a mut Channel,
        rate_limit: Option<&'a RateLimit>,
        sent: &'a AtomicU64,
    ) -> Self {
        Self {
            channel,
            rate_limit,
            sent,
            piece: vec![0; HEADER_BYTES],
        }
    }

    /// Ends the stream. After the last one no other follows.
    pub fn end(mut self, is_last: bool) -> Result<()> {
        if self.piece.len() > HEADER_BYTES {
            self.send(DATA)?;
        }
        self.send(if is_last { LAST } else { END })?;
        Ok(())
    }

    fn send(&mut self, kind: u8) -> Result<(), TransportError> {
        let length_bytes = (self.piece.len() - HEADER_BYTES) as u32;
        self.piece[0] = kind;
        self.piece[1..HEADER_BYTES].copy_from_slice(&length_bytes.to_be_bytes());
        if let Some(rate_limit) = self.rate_limit {
            std::thread::sleep(rate_limit.wait_for(self.piece.len(), Instant::now()));
        }
        // A destination that gives up sends its reason while this end could still send gigabytes,
        // so the reason is looked for before each piece.
        match self.channel.receive(&[], Patience::within(Duration::ZERO)) {
            Err(aborted @ TransportError::Aborted { .. }) => return Err(aborted),
            Err(closed @ TransportError::Closed { .. }) => return Err(closed),
            _ => {}
        }
        self.channel
            .write_all(&self.piece, Patience::within(STALL_LIMIT_DUR))?;
        self.sent
            .fetch_add(self.piece.len() as u64, Ordering::Relaxed);
        self.piece.truncate(HEADER_BYTES);
        Ok(())
    }
}

impl Write for Outgoing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let free_bytes = HEADER_BYTES + PIECE_BYTES - self.piece.len();
        let taken_bytes = bytes.len().min(free_bytes);
        self.piece.extend(&bytes[..taken_bytes]);
        if taken_bytes == free_bytes {
            self.send(DATA).map_err(io::Error::other)?;
        }
        Ok(taken_bytes)
    }

    /// Does nothing: the peer answers only after the end, so small pieces would gain nothing.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a stream. There is no time limit: the other end may have to look for changes. TCP finds
/// out if it has died.
pub struct Incoming<'a> {
    channel: &'a mut Channel,
    left_bytes: usize,
    /// Whether it was the last stream, if it has ended.
    ended: Option<bool>,
}

impl<'a> Incoming<'a> {
    pub fn new(channel: &'a mut Channel) -> Self {
        Self {
            channel,
            left_bytes: 0,
            ended: None,
        }
    }

    /// Reads the rest of the stream up to its end. Returns whether it was the last one.
    pub fn end(mut self) -> Result<bool> {
        let rest_bytes =
            io::copy(&mut (&mut self).take(MAX_REST_BYTES), &mut io::sink()).map_err(|source| {
                match source.downcast::<TransportError>() {
                    Ok(error) => error.into(),
                    Err(_) => RootfsError::Incomplete,
                }
            })?;
        match self.ended {
            Some(is_last) if rest_bytes < MAX_REST_BYTES => Ok(is_last),
            _ => Err(RootfsError::Invalid {
                reason: "a stream that continues after its end",
            }),
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let mut done_bytes = 0;
        // The other end may be silent for long before a piece, and not within one.
        let mut patience = Patience::default();
        while done_bytes < buffer.len() {
            done_bytes += self
                .channel
                .read(&mut buffer[done_bytes..], patience)
                .map_err(io::Error::other)?;
            patience = Patience::within(STALL_LIMIT_DUR);
        }
        Ok(())
    }
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left_bytes == 0 && self.ended.is_none() {
            let mut header = [0; HEADER_BYTES];
            self.fill(&mut header)?;
            let [kind, length @ ..] = header;
            let length_bytes = u32::from_be_bytes(length) as usize;
            match (kind, length_bytes) {
                (DATA, 1..=PIECE_BYTES) => self.left_bytes = length_bytes,
                (END, 0) => self.ended = Some(false),
                (LAST, 0) => self.ended = Some(true),
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        let wanted_bytes = self.left_bytes.min(buffer.len());
        if wanted_bytes == 0 {
            return Ok(0);
        }
        let read_bytes = self
            .channel
            .read(
                &mut buffer[..wanted_bytes],
                Patience::within(STALL_LIMIT_DUR),
            )
            .map_err(io::Error::other)?;
        self.left_bytes -= read_bytes;
        Ok(read_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn ends() -> (Channel, Channel) {
        let (near, far) = UnixStream::pair().unwrap();
        for end in [&near, &far] {
            end.set_nonblocking(true).unwrap();
        }
        let channel = |end| Channel::new(Box::new(end), "peer".into());
        (channel(near), channel(far))
    }

    #[test]
    fn streams_follow_one_another_whole() {
        let (mut near, mut far) = ends();
        let texts = [
            vec![7; 3 * PIECE_BYTES / 2],
            Vec::new(),
            vec![9; PIECE_BYTES],
        ];
        let sent = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for (index, text) in texts.iter().enumerate() {
                    let mut stream = Outgoing::new(&mut near, None, &sent);
                    stream.write_all(text).unwrap();
                    stream.end(index == 2).unwrap();
                }
            });
            for (index, text) in texts.iter().enumerate() {
                let mut stream = Incoming::new(&mut far);
                let mut found = vec![0; text.len()];
                stream.read_exact(&mut found).unwrap();
                assert_eq!(found, *text);
                assert_eq!(stream.end().unwrap(), index == 2);
            }
        });
        assert!(sent.into_inner() > 5 * PIECE_BYTES as u64 / 2);
    }

    #[test]
    fn a_destination_that_gives_up_is_heard_and_a_cut_is_noticed() {
        let (mut near, mut far) = ends();
        far.abort("no space");
        let sent = AtomicU64::new(0);
        let error = Outgoing::new(&mut near, None, &sent)
            .end(false)
            .unwrap_err();
        assert!(
            matches!(&error, RootfsError::Transport(TransportError::Aborted { reason, .. }) if reason == "no space"),
            "{error:?}"
        );
        drop(near);
        let error = Incoming::new(&mut far).end().unwrap_err();
        assert!(matches!(error, RootfsError::Transport(_)), "{error:?}");
    }

    #[test]
    fn a_stream_that_does_not_end_is_no_stream() {
        let (mut near, mut far) = ends();
        let sent = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut stream = Outgoing::new(&mut near, None, &sent);
                let _ = stream.write_all(&vec![1; 4 * PIECE_BYTES]);
            });
            let error = Incoming::new(&mut far).end().unwrap_err();
            drop(far);
            assert!(matches!(error, RootfsError::Invalid { .. }), "{error:?}");
        });
    }
}
