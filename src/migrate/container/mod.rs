//! The traits of both ends for real containers: only here do CRIU, cgroups and the ends meet.

pub mod engine_bundle;
pub mod fence;
pub mod incoming;
pub mod outgoing;
pub mod restore_request;
