//! Records that survive a crash, and nothing else.

pub mod boot_stamp;
pub mod doorbell;
pub mod error;
pub mod journal;
pub mod ledger;
pub mod lock;
pub mod paths;
pub mod receiver;
pub mod restore_spec;
pub mod socket_name;
pub mod verdict;
pub mod watch;
