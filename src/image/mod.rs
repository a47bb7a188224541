//! What lies in an image store.

pub mod manifest;
