//! Both ends' traits for real containers. Only here do CRIU, cgroups and the states meet.

pub mod engine_bundle;
pub mod fence;
pub mod incoming;
pub mod outgoing;
pub mod restore_request;
