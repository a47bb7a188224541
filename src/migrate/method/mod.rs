//! Methods of a migration: when memory is sent, and when enough of it has been.

pub mod precopy;
