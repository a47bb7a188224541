//! The commands of runc, one module for each.

pub mod checkpoint;
pub mod create;
pub mod delete;
pub mod events;
pub mod exec;
pub mod features;
pub mod kill;
pub mod pause;
pub mod restore;
pub mod start;
pub mod update;
