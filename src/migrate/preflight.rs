//! Probes before the first byte of an image is written: at the source of the container
//! ([`survey`]), at the destination of the things that the container will need
//! ([`differing_files`], [`network::judge`]). CRIU finds most problems too, but late: when the
//! container is frozen.

use nix::unistd::Pid;
use oci_spec::runtime::Spec;

use super::unix_sockets::{SocketNames, Unkept};
use super::wire::finding::Finding;
use super::wire::id::{MigrationId, Side};
use super::wire::observed::Observed;
use crate::criu::CriuChoices;
use crate::runtime::container::Container;

mod descriptors;
pub mod facts;
mod host;
pub mod network;
mod processes;
mod rootfs;
mod sockets;
mod space;

pub use space::free_space;

pub use host::{clock_ms, differing_files};
pub use rootfs::{has_entries, offer, rootfs_found};

/// Result of the probes of a running container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Findings about the container.
    pub findings: Vec<Finding>,
    /// Observations that the destination compares with its host.
    pub observed: Observed,
    /// Limit for deleted files that the dump needs, in bytes; `None` if CRIU's own suffices.
    pub ghost_limit_bytes: Option<u32>,
}

/// Probes the container without disturbing it.
///
/// Processes start and end meanwhile. An unreadable one is skipped, and CRIU has the final say.
#[must_use]
pub fn survey(container: &Container, spec: &Spec, choices: &CriuChoices) -> Survey {
    let (Some(init), Ok(pids)) = (container.init_pid(), container.cgroup().pids()) else {
        return Survey::default();
    };
    let (moving, left): (Vec<Pid>, Vec<Pid>) = pids
        .into_iter()
        .partition(|pid| processes::moves(init, *pid));
    let terminal = spec
        .process()
        .as_ref()
        .and_then(|process| process.terminal())
        .unwrap_or(false);
    let open = descriptors::look(init, &moving, choices, terminal);
    let connections = sockets::look(init, &open.sockets, choices);
    let mut findings = processes::brought_in(&left);
    findings.extend(processes::nested(init, &moving));
    findings.extend(open.findings);
    findings.extend(connections.findings);
    // Nothing is moved aside here, so any migration id will do.
    let (_, unkept) = SocketNames::find(container, spec, MigrationId::new([0; 16]));
    findings.extend(unkept.iter().map(Unkept::finding));
    Survey {
        findings,
        observed: Observed {
            files: processes::mapped_files(&moving, spec),
            tcp_addresses: connections.addresses,
            memory_bytes: space::memory_bytes(&moving),
            processes: moving.len() as u64,
        },
        ghost_limit_bytes: open.ghost_limit_bytes,
    }
}

fn error(what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding::error(Side::Source, what, remedy)
}
