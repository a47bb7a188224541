//! Writes to a file through memory, as programs do. For tests of code that must notice such writes.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The first bytes of a file, shared with every process that has it open.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<libc::c_void>,
    length: NonZeroUsize,
}

impl Mapping {
    /// Maps the first `length` bytes.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn new(file: &File, length: NonZeroUsize) -> io::Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses a free place for the mapping, so that no other memory is
        // replaced.
        let start = unsafe {
            mmap(
                None,
                length,
                protection,
                MapFlags::MAP_SHARED,
                file.as_fd(),
                0,
            )
        }?;
        Ok(Self { start, length })
    }

    /// Writes a byte.
    pub fn write(&mut self, offset: usize, byte: u8) {
        assert!(offset < self.length.get());
        // SAFETY: `offset` lies within the mapping, which lives as long as `self`. Other writers of
        // the file do not make a write of one byte invalid.
        unsafe { self.start.cast::<u8>().add(offset).write_volatile(byte) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: start and length are those of the mapping, to which nobody else has a pointer.
        let _ = unsafe { munmap(self.start, self.length.get()) };
    }
}
