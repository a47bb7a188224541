//! Operations that a command or an agent asks for.

pub mod answer;
pub mod cancel;
pub mod local_test;
pub mod resolve;
