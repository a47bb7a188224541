//! Methods of a migration: when memory is sent, and when the container is frozen.

pub mod precopy;
