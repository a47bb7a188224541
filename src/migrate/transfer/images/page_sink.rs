//! Memory on its way from CRIU to the connections for images.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Instant;

use super::queue::Queue;
use crate::criu::page_server::PageSink;
use crate::image::manifest::PIECE_BYTES;

/// Cuts the memory that a page server receives into pieces.
pub(super) struct Memory {
    queue: Arc<Queue>,
    name: String,
    /// The piece that is being filled: empty, or of a piece's full size.
    piece: Vec<u8>,
    /// Number of bytes of the piece that are filled.
    filled_bytes: usize,
}

impl Memory {
    pub fn new(queue: Arc<Queue>) -> Self {
        Self {
            queue,
            name: String::new(),
            piece: Vec::new(),
            filled_bytes: 0,
        }
    }

    /// Waits for space in the queue, then adds the piece. CRIU's dump waits meanwhile: this is the
    /// back-pressure that bounds the memory of rcm.
    fn push(&mut self) -> io::Result<()> {
        if self.filled_bytes == 0 {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.piece);
        let length_bytes = std::mem::take(&mut self.filled_bytes);
        let mut feed = self.queue.lock();
        loop {
            let stopping = feed.stopping;
            let Some(directory) = feed.current.as_mut().filter(|_| !stopping) else {
                return Err(io::Error::other("the connections to the destination ended"));
            };
            if directory.has_space() {
                let pushed = directory.push(&self.name, bytes, length_bytes);
                self.piece = directory.take_spare();
                self.queue.changed.notify_all();
                if !pushed {
                    return Err(io::Error::other(
                        "CRIU returned to an image that it had left before",
                    ));
                }
                return Ok(());
            }
            let began = Instant::now();
            feed = self.queue.wait(feed, None);
            feed.waited_dur += began.elapsed();
        }
    }
}

impl PageSink for Memory {
    fn append(&mut self, name: &str, input: &mut dyn Read, count_bytes: u64) -> io::Result<()> {
        if self.name != name {
            self.push()?;
            name.clone_into(&mut self.name);
        }
        let mut left_bytes = count_bytes;
        while left_bytes > 0 {
            self.piece.resize(PIECE_BYTES as usize, 0);
            let free = &mut self.piece[self.filled_bytes..];
            let take_bytes = left_bytes.min(free.len() as u64) as usize;
            input.read_exact(&mut free[..take_bytes])?;
            self.filled_bytes += take_bytes;
            left_bytes -= take_bytes as u64;
            if self.filled_bytes == self.piece.len() {
                self.push()?;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.push()
    }
}
