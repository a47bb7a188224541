//! Records that survive a crash, and nothing else.
//!
//! `ROOT` is the state directory, by default `/run/rcm`, which a reboot empties. `STORE` is the
//! image store, which survives a reboot if it is on a disk. `DIR` is `ROOT/@migrations`.
//!
//! | file | writer | readers | after a crash of rcm | after a reboot |
//! | --- | --- | --- | --- | --- |
//! | `DIR/ID.lock` ([`lock`]) | everyone who migrates or settles | the same, before all else | free again: the kernel drops the `flock` | gone |
//! | `ROOT/ID/migration.json` ([`journal`]) | the source | [`ledger`], `--status`, `--cancel` | stays, until the container is removed | gone, with the container |
//! | `DIR/ID.json` ([`journal`]) | the destination; the source, before it removes the container | the same | stays | gone; the boot stamp replaces it |
//! | `DIR/ID.placement` ([`paths`]) | the destination, before it changes a file system | the next receiver, `--resolve` | stays, and the change is undone or finished | gone; the boot stamp has a copy |
//! | `DIR/ID.litter` ([`paths`]) | a receiver, with the path of its rendezvous file | the next receiver, `--resolve` | stays, and the file is removed | gone |
//! | `DIR/ID.door` ([`doorbell`]) | a waiting receiver | ssh helpers, `--cancel` | stays, without effect | gone |
//! | `DIR/ID.criu/` ([`paths`]) | CRIU: its logs | people; [`journal`] records without a version | stays until the next migration | gone |
//! | `STORE/MIGRATION/destination` ([`boot_stamp`]) | the destination, before it says *ready* | a receiver or `--resolve` of the same machine in a later boot | stays | stays |
//! | `STORE/MIGRATION/verdict` ([`verdict`]) | the destination, at the end | the source, if the destination does not answer | stays, until the source has removed the images | stays |
//!
//! The order of reading: the lock first, then [`ledger::Known::open`] reads both journals once. The
//! source's record counts as long as the container is there, unless it was rolled back; otherwise
//! the record that was updated last. A destination that answers counts more than its verdict in the
//! store.

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
