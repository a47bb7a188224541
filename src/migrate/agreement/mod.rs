//! Judgement of the destination on a migration that a source proposes, before anything is stopped.
//!
//! No input or output here: [`super::preflight`] gathers, [`judge`] compares. All findings are
//! reported at once, each with its remedy, so that an operator can repair them together.

mod judge;
mod local;
mod observed;
mod rootfs;
mod space;

pub use judge::{criu_version, judge};
pub use local::{Local, RootfsFound};
pub use rootfs::plan;
pub use space::{Space, lacking};

#[cfg(test)]
mod tests;
