//! Live migration: a running container moves to another host and goes on from the instruction at which it was stopped.
//!
//! **At most one copy executes at any moment.** Before the commit, any failure leaves the container running at the source as if nothing had
//! happened. After it, the container is the destination's, and both sides keep the images until the destination has confirmed.
//!
//! # Sequence
//!
//! Through an image store that both hosts see, with any number of rounds of pre-copy, or none (stop-and-copy):
//!
//! ```text
//!  source                                                     destination
//!    |                                                             |  leaves its secret in the image store, listens
//!    | <============= TLS 1.3, a certificate on each side =======> |
//!    | <------------- opening, opening, challenge ---------------> |
//!    | -------------- proof -------------------------------------> |  knows the secret: [rendezvous]
//!    | <------------- welcome ------------------------------------ |  knows it too
//!    | -------------- preamble ----------------------------------> |
//!    | <------------- findings ----------------------------------- |  an error among them: refused, both wait as before
//!    |                                                             |
//!  pre-dump: the memory, or what has changed since the last round  |   the container runs on
//!    | -------------- round (manifest) --------------------------> |
//!  sync the images                                     check link and digests
//!    | <------------- round verified ----------------------------- |
//!  again, or enough: see [precopy]                                 |
//!    |                                                             |
//!  freeze, dump; CRIU holds the tasks at post-dump                 |
//!  digest the images                                               |
//!    | -------------- shipped (manifest) ------------------------> |
//!  sync the images                         check the digests, restore; CRIU holds the tasks at post-restore
//!    | <------------- ready -------------------------------------- |
//!  fence: the cgroup's freezer                                     |
//!  journal: committing                                             |
//!    | ============== commit ====================================> |
//!    |                                                       journal: committed
//!    |                                                       let the tasks run
//!    | <------------- running ------------------------------------ |
//!  kill the fenced tasks, remove the container and its images      |
//!    | -------------- settled -----------------------------------> |
//! ```
//!
//! Up to the commit each side may send `abort` with a reason instead, and a lost connection means the same. A rehearsal ends with the source's `abort` in
//! the place of the commit, and the destination waits for the next source.
//!
//! # States
//!
//! Each is a type; a transition consumes it. What can be rolled back is a type that has `roll_back`.
//!
//! ```text
//!  source        Negotiated -> PreCopying -> Frozen -> Shipped -> PeerReady -> Fenced -> Committing -> HandedOff
//!                    |             |            |          |           |          |           |
//!                    v             v            v          v           v          v           | the destination's word that
//!                  ---------------- roll back: it runs on, its images are removed -------  <--' it never will run the container
//!
//!  destination   Prepared -> Receiving -> Verified -> Restored -> Committed -> Arrived
//!                    ^           |            |           |           |
//!                    | refused   v            v           v           v
//!                    '---     ---- give up: destroyed, journal ----   restored again from the images
//! ```
//!
//! # What holds the container where
//!
//! | at the source | the container stands still because | it goes on when |
//! | --- | --- | --- |
//! | Frozen to PeerReady | CRIU traces its tasks at `post-dump` | CRIU gets a "no", or nobody is there to answer it |
//! | Fenced, Committing | its cgroup is frozen too | somebody thaws it |
//!
//! | at the destination | the container stands still because | it is destroyed when |
//! | --- | --- | --- |
//! | Restored | CRIU holds its tasks at `post-restore` | CRIU gets a "no", or nobody is there to answer it |
//!
//! So the death of either process rolls back before the commit, and lets nothing run after it ([`container::fence`]).
//!
//! # The commit in doubt
//!
//! A commit that was sent may have arrived or not. The source then asks, on a new connection, with the id of the migration and the same secret, until the
//! destination answers: "running", and it removes its copy; "rolled back", which the destination has written to its journal before it said so, and the
//! container runs on at the source. Without an answer it stands still, and `--resolve` asks again later. It never runs on a guess.
//!
//! A destination that is killed after "committed" is in its journal may have let the container run or not. Its `--resolve` waits for CRIU's end, by which
//! that is decided ([`crate::runtime::process::criu_process`]), and restores the container again if nothing of it has executed.
//!
//! # Modules, from the bottom up
//!
//! * [`wire`]: messages and their encoding; no input or output.
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
//! * [`ops`]: operations that a command or an agent asks for. [`fate`]: where the container is after
//!   one has failed.

pub mod agreement;
pub mod container;
pub mod destination;
pub mod fate;
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
