//! Connections between the two ends: transport, encryption, and the receiver's port.

pub mod address;
pub mod channel;
pub mod connect;
pub mod listener;
mod ssh;
pub mod ssh_helper;
pub mod tls;
