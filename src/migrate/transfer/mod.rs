//! Transfer of images and trees over the network.

pub mod images;
pub mod rootfs;
