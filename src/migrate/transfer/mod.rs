//! Images and trees that cross the network.

pub mod images;
pub mod rootfs;
