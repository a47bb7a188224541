//! Live migration: a running container moves to another host and resumes there at the instruction
//! at which it was stopped.
//!
//! **At most one copy executes at any moment.** Before the commit, any failure leaves the container
//! running at the source as if nothing had happened. After the commit, the destination owns the
//! container, and both ends keep the images until the destination has confirmed that the container
//! runs.
//!
//! # Sequence
//!
//! Through an image store that both hosts share, with any number of rounds of pre-copy, or none
//! (stop-and-copy):
//!
//! ```text
//!  source                                                     destination
//!    |                                                             |  writes its secret to the store, listens
//!    | <============= TLS 1.3, a certificate on each side =======> |
//!    | <------------- opening, opening, challenge ---------------> |
//!    | -------------- proof -------------------------------------> |  knows the secret: [rendezvous]
//!    | <------------- welcome ------------------------------------ |  knows it too
//!    | -------------- preamble ----------------------------------> |
//!    | <------------- findings ----------------------------------- |  if one is an error: refused
//!    |                                                             |
//!  pre-dump: all memory, then the changes                          |
//!    | -------------- round (manifest) --------------------------> |
//!  sync the images                                     check link and digests
//!    | <------------- round verified ----------------------------- |
//!  again, or enough: see [precopy]                                 |
//!    |                                                             |
//!  freeze, dump; CRIU holds the tasks at post-dump                 |
//!  digest the images                                               |
//!    | -------------- shipped (manifest) ------------------------> |
//!  sync the images                                      check the digests, restore;
//!    |                                             CRIU holds the tasks at post-restore
//!    | <------------- ready -------------------------------------- |
//!  fence: the cgroup's freezer                                     |
//!  journal: committing                                             |
//!    | ============== commit ====================================> |
//!    |                                                       journal: committed
//!    |                                                       journal: resuming, then let the tasks run
//!    | <------------- running ------------------------------------ |
//!  kill the fenced tasks, remove the container and its images      |
//!    | -------------- settled -----------------------------------> |
//! ```
//!
//! Up to the commit each side may send `abort` with a reason instead, and a lost connection means
//! the same. A rehearsal ends with the source's `abort` in the place of the commit. The destination
//! then waits for the next source.
//!
//! # States
//!
//! Each state is a type, and a transition consumes it. A state that can be rolled back has a method
//! `roll_back`.
//!
//! ```text
//!  source
//!  Negotiated -> PreCopying -> Frozen -> Shipped -> PeerReady -> Fenced -> Committing -> HandedOff
//!      |             |            |          |           |          |           |
//!      v             v            v          v           v          v           |
//!    ---------- roll back: it runs on, its images are removed -----------  <----'
//!                                                if the destination will never run it
//!
//!  destination
//!  Prepared -> Receiving -> Verified -> Restored -> Committed -> Arrived
//!      ^           |            |           |           |
//!      | refused   v            v           v           v
//!      '---     ---- give up: destroyed, journal ----   restored again from the images,
//!                                                       unless it may have run
//! ```
//!
//! # How the container is held
//!
//! | at the source | the container is stopped because | it resumes when |
//! | --- | --- | --- |
//! | Frozen to PeerReady | CRIU traces its tasks at `post-dump` | rcm answers "no" to CRIU, or dies before it answers |
//! | Fenced, Committing | its cgroup is frozen, too | rcm or an operator thaws the cgroup |
//!
//! | at the destination | the container is stopped because | it is destroyed when |
//! | --- | --- | --- |
//! | Restored | CRIU holds its tasks at `post-restore` | rcm answers "no" to CRIU, or dies before it answers |
//!
//! So if either process dies before the commit, the migration is rolled back. If it dies after the
//! commit, no copy runs by itself ([`container::fence`]).
//!
//! # The commit in doubt
//!
//! When the connection is lost after the commit was sent, the source does not know whether it
//! arrived. The source then asks on a new connection, with the id of the migration and the same
//! secret, until the destination answers. After "running" the source removes its copy. After
//! "rolled back", which the destination has written to its journal before it answers, the container
//! resumes at the source. Without an answer the container stays frozen, and `--resolve` asks again
//! later. It never runs on a guess.
//!
//! A destination that is killed after the commit may or may not have let the container run. Its
//! `--resolve` waits until CRIU has ended, because only then that is decided
//! ([`crate::runtime::process::criu_process`]). A container that runs then is settled. If it does
//! not run, the journal decides. With the phase `committed`, CRIU had no permission, so nothing has
//! executed, and the container is restored again. With `resuming`, the container may have run and
//! ended. It is not restored again by itself, because it would do the same work twice, and its
//! images are kept until an operator has decided.
//!
//! # Modules, from the bottom up
//!
//! * [`wire`]: messages and their encoding; no input or output. [`limits`]: limits of time and
//!   size.
//! * [`trust`]: authentication. [`progress`]: events, meters and the report.
//! * [`record`]: files that survive a crash.
//! * [`link`]: connections. [`unix_sockets`]: socket files that a restore on a shared file system
//!   takes from the container and may have to put back.
//! * [`transfer`]: images and trees that cross the network. [`preflight`]: probes, before anything
//!   is stopped.
//! * [`agreement`]: judgement on the findings; no input or output.
//! * [`source`], [`destination`]: the states, over traits for the container and the host; neither
//!   knows the other. [`method`]: when the rounds end.
//! * [`container`]: those traits for real containers.
//! * [`ops`]: operations that a command or an agent asks for. [`fate`]: where the container is
//!   after one has failed.

pub mod agreement;
pub mod container;
pub mod destination;
pub mod fate;
pub mod limits;
pub mod link;
pub mod method;
pub mod ops;
pub mod preflight;
pub mod progress;
pub mod record;
pub mod source;
pub mod transfer;
pub mod trust;
pub mod unix_sockets;
pub mod wire;

#[cfg(test)]
mod tests;
