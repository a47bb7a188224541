//! Live migration with the real binary, real containers and CRIU: containers move, and every
//! failure leaves exactly one copy.
//!
//! Two state directories with two parent cgroups are the hosts, the loopback device is their
//! network. A container counts. Each number goes to a file that both "hosts" see. So a second copy,
//! a restart or a lost step shows as a repetition or a gap.

mod any;
mod cancel;
mod ci_script;
mod connections;
mod faults;
mod fence;
mod hang;
mod link;
mod memory;
mod mode;
mod moves;
mod names;
mod network;
mod once;
mod operator;
mod ops;
mod preflight;
mod previous_release;
mod release;
mod rootfs;
mod settle;
mod several;
mod ssh;
mod streaming;
mod tmpfs;
mod trainer;
mod trust;
mod two_workers;
