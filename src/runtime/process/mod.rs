//! Processes of a container: how they are started, accompanied and told apart.

pub mod criu_process;
pub(crate) mod delivery;
pub mod executor;
pub mod foreground;
pub(crate) mod launch;
pub mod libcontainer;
pub mod notify;
pub(crate) mod stdio;
pub mod terminal;
