//! Limits of time and size, each with its value and its reason.
//!
//! They stand here and nowhere else, so that both ends have the same one, and `--debug` prints them
//! ([`log`]). The suffix of a name is the unit. Lengths that a format fixes, or that CRIU or the
//! kernel limit, stand beside the format. The operator's own limits are flags: `--timeout`,
//! `--downtime-limit`, `--max-rounds`, `--streams`, `--bandwidth`.

use std::time::Duration;

use super::wire::id::Side;
use crate::text::bytes;

// Both ends.

/// How long a connection for images or the tree may move no byte.
///
/// 30 s is longer than a disk or a network that works needs for a piece of 256 KiB, and shorter
/// than the patience of an operator. A sync to the disk does not count, however long it takes,
/// because nobody is in the middle of a piece meanwhile: the destination syncs images when it has
/// all of them, and the tree between two passes, while the source waits for `synced` without this
/// limit. A source that looks for changes, or waits for CRIU, is silent between two pieces, where
/// the destination waits without this limit, too. A peer that is gone is found out by TCP
/// ([`DEAD_PEER_LIMIT_DUR`]).
pub const STALL_LIMIT_DUR: Duration = Duration::from_secs(30);
/// How long a message that needs no work at the other end may take. A busy host needs seconds.
pub const ANSWER_LIMIT_DUR: Duration = Duration::from_secs(30);
/// How long TCP waits for an acknowledgement (`TCP_USER_TIMEOUT`). The container is frozen
/// meanwhile, so it is short; it is long enough for some retransmissions.
pub const DEAD_PEER_LIMIT_DUR: Duration = Duration::from_secs(6);
/// How long one attempt to connect to one address may take. TCP sends its first packet again after
/// 1 s and 3 s.
pub const CONNECT_LIMIT_DUR: Duration = Duration::from_secs(5);
/// How long an end that gives up tries to send its reason. The peer may be the reason.
pub const ABORT_LIMIT_DUR: Duration = Duration::from_secs(1);
/// How long a commit without an answer is asked about, and how long a receiver stays to answer. A
/// link that is down for longer needs `--resolve`.
pub const SETTLE_LIMIT_DUR: Duration = Duration::from_secs(60);
/// How long a migration that is cancelled may take to clean up: to remove images, or a restored
/// copy.
pub const CANCEL_LIMIT_DUR: Duration = Duration::from_secs(30);
/// How often a journal is read if the kernel cannot tell that it changes.
pub const RECORD_LOOK_DUR: Duration = Duration::from_millis(50);
/// How long ssh may take to end by itself before its error is reported without its last words.
pub const SSH_END_LIMIT_DUR: Duration = Duration::from_millis(500);
/// How much of a login script's output is skipped before rcm's greeting. More is no login script.
pub const MAX_NOISE_BYTES: usize = 64 << 10;
/// The most connections for images. More do not make one network card faster.
pub const MAX_STREAMS: u32 = 16;
/// The shortest token. A peer without the other end's certificate could try shorter ones out.
pub const MIN_TOKEN_BYTES: usize = 32;
/// The largest file with a token, a key or certificates that is read.
pub const MAX_TRUST_FILE_BYTES: u64 = 1 << 20;
/// The largest file with a verdict that is read. One has about 100 bytes.
pub const MAX_VERDICT_BYTES: u64 = 1 << 10;
/// The largest boot stamp that is read. It has a journal in it.
pub const MAX_STAMP_BYTES: u64 = 1 << 20;

// The source.

/// The pause between two questions about a commit without an answer.
pub const ASK_AGAIN_DUR: Duration = Duration::from_millis(500);
/// How long `--resolve` tries to tell the destination that it knows the outcome. The destination
/// stops waiting by itself.
pub const SETTLED_LIMIT_DUR: Duration = Duration::from_secs(5);
/// How long the source waits for the reason of a destination that has closed the connections for
/// the images.
pub const FAREWELL_LIMIT_DUR: Duration = Duration::from_secs(5);
/// How long a destination may take to destroy a restored copy, while the names of Unix sockets are
/// put back. It finishes its restore first.
pub const DISCARD_LIMIT_DUR: Duration = Duration::from_secs(60);
/// How long a restore whose rcm has died may go on to take names of Unix sockets. CRIU ends at its
/// next report.
pub const ORPHAN_LIMIT_DUR: Duration = Duration::from_secs(5);
/// How often it is checked whether a restore on another host has taken a name.
pub const SOCKET_NAME_PAUSE_DUR: Duration = Duration::from_millis(50);
/// The shortest pause between two passes over the tree while the container runs.
pub const TREE_PAUSE_DUR: Duration = Duration::from_secs(2);
/// The pause between two checks whether a program accepts the connections in its backlog.
pub const BACKLOG_PAUSE_DUR: Duration = Duration::from_millis(20);
/// How much time's worth of `--bandwidth` may be sent at once after a pause.
pub const BURST_DUR: Duration = Duration::from_millis(50);
/// The most pieces (of 4 MiB) of the container's memory that wait for a connection or are on one.
/// With the one that CRIU fills, they are all of the memory that rcm holds.
pub const MAX_HELD_PIECES: usize = 4;
/// The largest file of an engine that is carried with its container. Engines write small ones:
/// hosts, resolv.conf.
pub const MAX_ENGINE_FILE_BYTES: u64 = 64 << 10;
/// The most files of an engine that are carried. All of them fit into a preamble.
pub const MAX_ENGINE_FILES: usize = 16;

// The destination.

/// How long a peer may take to prove itself, with the handshake.
pub const HANDSHAKE_LIMIT_DUR: Duration = Duration::from_secs(10);
/// How much a peer may send before it has proved itself, handshake and certificates included.
pub const PENDING_LIMIT_BYTES: usize = 64 << 10;
/// The most peers at a time that have not proved themselves. A further one takes the place of the
/// one that has waited longest.
pub const MAX_PENDING: usize = 64;
/// The pause after a connection that could not be accepted. The cause is a lack of descriptors or
/// memory.
pub const ACCEPT_PAUSE_DUR: Duration = Duration::from_millis(10);
/// How often the restore is tried after the commit, as long as nothing has executed.
pub const RESUME_ATTEMPTS: u32 = 3;
/// How long a receiver that has given up, or cannot start the container, stays to say so to a
/// source whose commit may be on its way.
pub const LINGER_DUR: Duration = Duration::from_secs(20);
/// How long a receiver in the foreground waits for the source's confirmation before it becomes the
/// container's parent. It goes on to wait beside that.
pub const PROMPT_DUR: Duration = Duration::from_secs(2);
/// How long `--resolve` waits for the source to ask. Somebody has to type a command there.
pub const TELL_LIMIT_DUR: Duration = Duration::from_secs(60);
/// The pause of a receiver for any container after one that did not come. The cause may be over
/// then.
pub const RETRY_PAUSE_DUR: Duration = Duration::from_millis(500);
/// How long a source that was told to stop may go on to send a tree. A connection that is closed
/// with unread data is reset, and the reason would be lost.
pub const DRAIN_LIMIT_DUR: Duration = Duration::from_secs(10);
/// The largest `config.json` that is taken.
pub const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// The most image files of one round. No dump has so many.
pub const MAX_FILES: usize = 1 << 16;
/// The most pieces of one round. 4 TiB have so many.
pub const MAX_PIECES: usize = 1 << 20;
/// The most entries of a tree. No file system has so many.
pub const MAX_ENTRIES: u64 = 1 << 32;

/// A limit as a person reads it.
trait Shown {
    fn shown(self, name: &str) -> String;
}

impl Shown for Duration {
    fn shown(self, _: &str) -> String {
        format!("{self:?}")
    }
}

impl Shown for u64 {
    fn shown(self, name: &str) -> String {
        if name.ends_with("_BYTES") {
            bytes(self)
        } else {
            self.to_string()
        }
    }
}

impl Shown for u32 {
    fn shown(self, name: &str) -> String {
        u64::from(self).shown(name)
    }
}

impl Shown for usize {
    fn shown(self, name: &str) -> String {
        (self as u64).shown(name)
    }
}

macro_rules! listed {
    ($($name:ident),* $(,)?) => {
        vec![$((stringify!($name), $name.shown(stringify!($name)))),*]
    };
}

/// Returns the names and values of the limits of one end: first those that it shares with the
/// other.
#[must_use]
pub fn listed(side: Side) -> Vec<(&'static str, String)> {
    let mut limits = listed![
        STALL_LIMIT_DUR,
        ANSWER_LIMIT_DUR,
        DEAD_PEER_LIMIT_DUR,
        CONNECT_LIMIT_DUR,
        ABORT_LIMIT_DUR,
        SETTLE_LIMIT_DUR,
        CANCEL_LIMIT_DUR,
        RECORD_LOOK_DUR,
        SSH_END_LIMIT_DUR,
        MAX_NOISE_BYTES,
        MAX_STREAMS,
        MIN_TOKEN_BYTES,
        MAX_TRUST_FILE_BYTES,
        MAX_VERDICT_BYTES,
        MAX_STAMP_BYTES,
    ];
    limits.extend(match side {
        Side::Source => listed![
            ASK_AGAIN_DUR,
            SETTLED_LIMIT_DUR,
            FAREWELL_LIMIT_DUR,
            DISCARD_LIMIT_DUR,
            ORPHAN_LIMIT_DUR,
            SOCKET_NAME_PAUSE_DUR,
            TREE_PAUSE_DUR,
            BACKLOG_PAUSE_DUR,
            BURST_DUR,
            MAX_HELD_PIECES,
            MAX_ENGINE_FILE_BYTES,
            MAX_ENGINE_FILES,
        ],
        Side::Destination => listed![
            HANDSHAKE_LIMIT_DUR,
            PENDING_LIMIT_BYTES,
            MAX_PENDING,
            ACCEPT_PAUSE_DUR,
            RESUME_ATTEMPTS,
            LINGER_DUR,
            PROMPT_DUR,
            TELL_LIMIT_DUR,
            RETRY_PAUSE_DUR,
            DRAIN_LIMIT_DUR,
            MAX_CONFIG_BYTES,
            MAX_FILES,
            MAX_PIECES,
            MAX_ENTRIES,
        ],
    });
    limits
}

/// Writes the limits of this end to the log, for `--debug`: `NAME=VALUE`. `timeout_dur` is
/// `--timeout`.
pub fn log(side: Side, timeout_dur: Duration) {
    let mut text = format!("limits of the {side}: --timeout={timeout_dur:?}");
    for (name, value) in listed(side) {
        // A value of two words would look like two limits.
        text.push_str(&format!(" {name}={}", value.replace(' ', "")));
    }
    tracing::debug!("{text}");
}
