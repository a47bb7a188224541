//! Tests of the conversation, in which the tests play CRIU.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use nix::sys::socket::recv;

use super::rpc::fake;
use super::*;
use crate::criu::{External, PausedDump, PausedRestore, Reply};

fn job(answer_limit_dur: Option<Duration>) -> Job {
    Job {
        action: Action::Dump,
        subject: "container \"web\"".into(),
        log: None,
        answer_limit_dur,
        foreground: false,
    }
}

/// Makes a session, and a thread that plays CRIU's part.
fn with_peer<T: Send + 'static>(
    play: impl FnOnce(Peer) -> T + Send + 'static,
) -> (CriuSession, JoinHandle<T>) {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .unwrap();
    let session = CriuSession {
        job: job(Some(Duration::from_secs(10))),
        socket: Some(ours),
        worker: None,
        restored: None,
        pre_resume: false,
    };
    (session, thread::spawn(move || play(Peer(theirs))))
}

struct Peer(OwnedFd);

impl Peer {
    fn say(&self, packet: &[u8]) {
        send(self.0.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL).unwrap();
    }

    /// Returns the next packet; empty once the session has closed the connection.
    fn hear(&self) -> Vec<u8> {
        let mut packet = vec![0; PACKET_BYTES];
        let length = recv(self.0.as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap_or(0);
        packet.truncate(length);
        packet
    }

    fn ask(&self, stage: &str) -> (bool, Vec<String>) {
        self.say(&fake::notification(stage, None));
        fake::parse_answer(&self.hear())
    }
}

/// Keeps the names of the stages; refuses one of them.
struct Script {
    seen: mpsc::Sender<String>,
    refuse: Option<&'static str>,
}

impl Notify for Script {
    fn on(&mut self, notification: Notification) -> Result<Reply, CallbackError> {
        let name = format!("{notification:?}");
        self.seen.send(name.clone()).unwrap();
        if self.refuse == Some(name.as_str()) {
            return Err("no room".into());
        }
        let external = match notification {
            Notification::QueryExternalFiles => vec![External::File {
                mount_id: 1,
                inode: 2,
            }],
            _ => Vec::new(),
        };
        Ok(Reply { external })
    }
}

fn script(refuse: Option<&'static str>) -> (Script, mpsc::Receiver<String>) {
    let (seen, names) = mpsc::channel();
    (Script { seen, refuse }, names)
}

#[test]
fn notifications_are_answered_and_the_dump_is_held() {
    let (mut session, peer) = with_peer(|peer| {
        assert_eq!(peer.ask("pre-dump"), (true, vec![]));
        assert_eq!(
            peer.ask("query-ext-files"),
            (true, vec!["file[1:2]".into()])
        );
        let answer = peer.ask("post-dump");
        peer.say(&fake::finished(true, None));
        answer
    });
    let (mut notify, names) = script(None);
    let pause = session.talk(&mut notify, Some("post-dump")).unwrap();
    assert!(matches!(pause, Pause::Held { pid: None }));
    session.send(&rpc::answer(true, &[])).unwrap();
    let pause = session.talk(&mut notify, None).unwrap();
    assert!(matches!(pause, Pause::Finished));
    assert_eq!(peer.join().unwrap(), (true, vec![]));
    drop(notify);
    assert_eq!(
        names.iter().collect::<Vec<_>>(),
        ["PreDump", "QueryExternalFiles"]
    );
}

#[test]
fn a_held_dump_that_is_dropped_is_hung_up_on() {
    let (mut session, peer) = with_peer(|peer| {
        peer.say(&fake::notification("post-dump", None));
        peer.hear()
    });
    session.talk(&mut (), Some("post-dump")).unwrap();
    drop(PausedDump {
        session,
        notify: (),
    });
    assert!(peer.join().unwrap().is_empty(), "no answer is a no");
}

#[test]
fn a_refusal_waits_until_criu_has_rolled_back() {
    let (mut session, peer) = with_peer(|peer| {
        let refused = peer.ask("post-dump");
        let unlocked = peer.ask("network-unlock");
        peer.say(&fake::finished(false, None));
        (refused.0, unlocked.0)
    });
    session.talk(&mut (), Some("post-dump")).unwrap();
    PausedDump {
        session,
        notify: (),
    }
    .refuse();
    assert_eq!(peer.join().unwrap(), (false, true));
}

#[test]
fn a_failing_callback_is_a_no_and_comes_out() {
    let (mut session, peer) = with_peer(|peer| {
        let answer = peer.ask("pre-dump");
        peer.say(&fake::finished(false, None));
        answer.0
    });
    let (mut notify, _names) = script(Some("PreDump"));
    let error = session.talk(&mut notify, Some("post-dump")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "dump of container \"web\" stopped at pre-dump"
    );
    assert!(matches!(error, Error::Refused { source, .. } if source.to_string() == "no room"));
    assert!(!peer.join().unwrap());
}

#[test]
fn criu_s_first_error_comes_out() {
    let (mut session, peer) = with_peer(|peer| {
        peer.say(&fake::finished(false, Some("Connected TCP socket")));
    });
    let error = session.talk(&mut (), Some("post-dump")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "criu dump of container \"web\" failed: Connected TCP socket; \
         there are established TCP connections: use --tcp-established"
    );
    peer.join().unwrap();
}

#[test]
fn an_end_in_the_middle_is_an_error() {
    let (mut session, peer) = with_peer(|peer| drop(peer.ask("pre-dump")));
    assert!(session.talk(&mut (), Some("post-dump")).is_err());
    peer.join().unwrap();
}

#[test]
fn garbage_is_an_error() {
    let (mut session, peer) = with_peer(|peer| peer.say(b"\xff\xff"));
    let error = session.talk(&mut (), None).unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    peer.join().unwrap();
}

#[test]
fn silence_ends_at_the_deadline() {
    let (silent, hold) = mpsc::channel::<()>();
    let (mut session, peer) = with_peer(move |peer| {
        let _ = hold.recv();
        peer.hear()
    });
    session.job = job(Some(Duration::from_millis(50)));
    let error = session.talk(&mut (), None).unwrap_err();
    assert!(
        matches!(error, Error::Timeout { waited_dur, .. } if waited_dur >= Duration::from_millis(50)),
        "{error}"
    );
    drop(silent);
    assert!(peer.join().unwrap().is_empty(), "it is hung up on");
}

#[test]
fn a_restore_without_a_process_is_no_restore() {
    let (mut session, peer) = with_peer(|peer| {
        peer.say(&fake::notification("setup-namespaces", None));
        fake::parse_answer(&peer.hear()).0
    });
    let error = session.talk(&mut (), Some("post-restore")).unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    assert!(!peer.join().unwrap());
}

/// Answers yes to a held restore whose CRIU then does this. Returns whether the tasks may have
/// executed.
fn may_have_run(play: impl FnOnce(&Peer) + Send + 'static) -> bool {
    let (mut session, peer) = with_peer(move |peer| {
        assert_eq!(peer.ask("post-restore"), (true, vec![]));
        play(&peer);
    });
    session.talk(&mut (), Some("post-restore")).unwrap();
    let restore = PausedRestore {
        session,
        notify: (),
        pid: 1,
    };
    let may_have_run = restore.resume().unwrap_err().may_have_run;
    peer.join().unwrap();
    may_have_run
}

#[test]
fn a_restore_that_criu_gives_up_before_it_releases_the_tasks_has_not_run() {
    assert!(!may_have_run(|peer| peer.say(&fake::finished(false, None))));
}

#[test]
fn a_restore_whose_criu_may_have_released_the_tasks_may_have_run() {
    // It dies: the kernel releases what it has traced.
    assert!(may_have_run(|_| {}));
    assert!(may_have_run(|peer| {
        assert_eq!(peer.ask("pre-resume"), (true, vec![]));
    }));
    // It cannot detach from a task that has ended, because the container has.
    assert!(may_have_run(|peer| {
        assert_eq!(peer.ask("pre-resume"), (true, vec![]));
        peer.say(&fake::finished(false, None));
    }));
}
