//! The real binary with real containers and CRIU, as root, on this host: one program, a folder for
//! each subject.
//!
//! `cargo test --test it oci::exec` runs the tests of one file. Each folder has a table of its
//! files in its `README.md`.

mod common;
mod criu;
mod migrate;
mod oci;
mod support;
mod tree;
