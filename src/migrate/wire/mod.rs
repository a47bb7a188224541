//! Messages of the two ends and their encoding. No input or output.

pub mod codec;
pub mod facts;
pub mod finding;
pub mod id;
pub mod observed;
pub mod payload;
pub mod preamble;
pub mod protocol;
pub mod rootfs;
pub mod state;
