//! One case: a fault at one end, and the state of both ends afterwards.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcm::migrate::wire::id::Side::{self, Destination, Source};

use super::super::network::WITHOUT_ROUNDS;
use super::bench::Store::{self};
use super::bench::{Bench, Place};
use super::point::Point;
use super::point::Point::{CleanUp, Commit, Committed, PeerReady, PreCopy, Resuming};
use crate::common::pair::Receiver;
use crate::common::{COMMAND_LIMIT_DUR, Output, Running, stop_when, wait_until};
use Fault::{CriuFails, CriuKilled, Cut, Flip, Full, Kill, Terminate};

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// SIGKILL for rcm.
    Kill,
    /// SIGTERM for rcm.
    Terminate,
    /// The link is down until the destination has given up, or its container runs.
    Cut,
    /// No room on the file system of the images or the state directory.
    Full(Place),
    /// A bit of this image.
    Flip(&'static str),
    /// CRIU fails when it is executed next.
    CriuFails,
    /// SIGKILL for the CRIU at work.
    CriuKilled,
}

/// One case: a fault at one end, at one point.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub point: Point,
    pub end: Side,
    pub fault: Fault,
    pub store: Store,
}

pub const fn case(point: Point, end: Side, fault: Fault, store: Store) -> Case {
    Case {
        point,
        end,
        fault,
        store,
    }
}

impl Case {
    /// Returns the owner of the container at the end.
    pub fn outcome(self) -> Side {
        let moves = match (self.point, self.fault, self.end) {
            // A signal to the source comes too late.
            (Commit, Terminate, Source) => true,
            // The fence holds without CRIU.
            (Commit, CriuKilled, Source) => true,
            // The restored tasks are gone, but the images are there.
            (PeerReady, CriuKilled, Destination) => true,
            (point, ..) => point >= Committed,
        };
        if moves { Destination } else { Source }
    }

    pub fn play(self) {
        let small = match self.fault {
            Full(place) => Some((self.end, place)),
            _ => None,
        };
        let id = format!("{:?}", self.point).to_lowercase();
        let bench = Bench::new(&id, self.store, small);
        let mut receiver = bench.receive(Destination);
        let mut sender = bench.send(
            Source,
            None,
            match self.point {
                PreCopy => &[],
                _ => &WITHOUT_ROUNDS,
            },
        );
        let stopped = match self.point.end() {
            Source => sender.pid(),
            Destination => receiver.running.pid(),
        };
        let reached = stop_when(stopped, || {
            self.point.is_reached(&bench, &receiver, &sender)
        });
        let Some(reached) = reached else {
            let (source, destination) = (sender.stderr(), receiver.running.stderr());
            panic!("not reached\nsource: {source}\ndestination: {destination}");
        };
        let victim = match self.end {
            Source => sender.pid(),
            Destination => receiver.running.pid(),
        };
        self.happen(&bench, victim);
        drop(reached);
        if self.fault == Cut {
            self.mend(&bench, &sender);
        }
        let mut resolving = None;
        let mut killed = (self.fault == Kill).then_some(self.end);
        if self.point == Committed && self.fault == Full(Place::State) {
            let tries = |receiver: &Receiver| {
                let stderr = receiver.running.stderr();
                stderr.matches("restoring again").count()
            };
            // A failed try may free the room that the next one needs.
            let runs = |receiver: &Receiver| receiver.running.stderr().contains("runs here");
            wait_until("it has tried again", || {
                tries(&receiver) == 2 || runs(&receiver)
            });
            if !runs(&receiver) {
                // Kill it, because it would answer for a while that it owns the container. With
                // more room, `--resolve` can start the container.
                receiver.running.signal(Signal::SIGKILL);
                killed = Some(Destination);
            }
            bench.recover();
        }
        if killed == Some(Source) {
            assert!(sender.ends_within(COMMAND_LIMIT_DUR));
            // `--resolve` refuses as long as the destination, or a guard of a dead one, is at work.
            wait_until("it is settled", || {
                bench.resolve(Source).run();
                bench.is_settled_at(Source)
            });
        } else if killed == Some(Destination) {
            assert!(receiver.running.ends_within(COMMAND_LIMIT_DUR));
            if self.point == Resuming {
                bench.restore_by_hand();
            }
            resolving = Some(bench.resolve(Destination).spawn());
        }
        let sent = sender.wait();
        // If the last message of the source was lost, the destination waits for questions, and so
        // does `--resolve` in its place.
        let received = dismiss(receiver.running);
        let resolved = resolving.map(dismiss);
        bench.recover();
        for (end, output) in [(Source, &sent), (Destination, &received)] {
            if killed != Some(end) {
                let expected = i32::from(self.outcome() == Source);
                assert_eq!(
                    output.code(),
                    expected,
                    "{end}\n{sent:?}\n{received:?}\n{resolved:?}"
                );
            }
        }
        if !bench.is_settled() {
            // There was not even room for the final record.
            let full = matches!(self.fault, Full(Place::State));
            assert!(full, "{sent:?}\n{received:?}");
            dismiss(bench.resolve(Destination).spawn());
            bench.resolve(Source).run();
        }
        bench.assert_at(self.outcome());
        bench.assert_moves_from(self.outcome());
    }

    pub fn happen(self, bench: &Bench, victim: i32) {
        let signal = |signal| kill(Pid::from_raw(victim), signal).unwrap();
        match self.fault {
            Kill => signal(Signal::SIGKILL),
            Terminate => signal(Signal::SIGTERM),
            Cut => bench.link.cut(),
            Full(_) => bench.fill(),
            Flip(image) => {
                let path = bench.images(Destination).join(image);
                let file = fs::OpenOptions::new().read(true).write(true).open(path);
                let file = file.unwrap();
                let place = file.metadata().unwrap().len() / 2;
                let mut byte = [0];
                file.read_exact_at(&mut byte, place).unwrap();
                file.write_all_at(&[byte[0] ^ 1], place).unwrap();
            }
            CriuFails => bench.break_criu(self.end),
            CriuKilled => bench.kill_criu(self.end),
        }
    }

    /// Mends the link after one end has noticed the cut and has decided, so that delayed packets
    /// arrive too late.
    pub fn mend(self, bench: &Bench, sender: &Running) {
        match self.outcome() {
            Source => wait_until("the destination has given up", || {
                let record = bench.kept(Destination);
                record.is_some_and(|record| record["phase"] == "rolled-back")
            }),
            Destination if self.point == CleanUp => {}
            Destination => wait_until("the source has no answer", || {
                sender.stderr().contains("asking again")
            }),
        }
        bench.link.mend();
    }
}

/// Ends a process that needs to stay no longer.
pub fn dismiss(mut running: Running) -> Output {
    if !running.ends_within(Duration::from_secs(2)) {
        running.signal(Signal::SIGTERM);
    }
    running.wait()
}
