//! The fault matrix: at every point of a migration, everything that can happen to either end.
//!
//! One end is stopped exactly at the point ([`stop_when`]), something happens to one of the ends, and it goes on. Afterwards there is one copy,
//! nothing is left over, and the next attempt succeeds.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcm::criu::Criu;
use rcm::migrate::wire::id::Side::{self, Destination, Source};

use crate::bench::Store::{self, Shared, Streamed};
use crate::bench::{Bench, Place};
use crate::common::{COMMAND_LIMIT_DUR, Output, Running, skip, stop_when, wait_until};
use crate::link;
use crate::network::WITHOUT_ROUNDS;
use crate::pair::{Receiver, runs_on};

/// Where in the migration.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
enum Point {
    /// Both ends agreed.
    Negotiate,
    /// Memory is copied while the container runs.
    PreCopy,
    /// The source is about to freeze the container.
    Freeze,
    /// CRIU has the tasks in its hands.
    Dump,
    /// The images are written.
    Ship,
    /// The destination looks at them.
    Verify,
    /// CRIU makes the processes.
    Restore,
    /// The container is restored, and the source does not know it yet.
    PeerReady,
    /// The source's cgroup is frozen, and its journal does not say "committing".
    Fence,
    /// It does, and the commit has not left.
    Commit,
    /// The commit is in the destination's journal, and nothing has executed.
    Committed,
    /// The container runs, and the source does not know it yet.
    Resume,
    /// The source knows it, and its copy is still there.
    CleanUp,
}

use Point::{
    CleanUp, Commit, Committed, Dump, Fence, Freeze, Negotiate, PeerReady, PreCopy, Restore,
    Resume, Ship, Verify,
};

/// Without rounds of pre-copy.
const POINTS: [Point; 12] = [
    Negotiate, Freeze, Dump, Ship, Verify, Restore, PeerReady, Fence, Commit, Committed, Resume,
    CleanUp,
];

impl Point {
    /// The end that is stopped there.
    fn end(self) -> Side {
        match self {
            Negotiate | PreCopy | Freeze | Dump | Ship | Fence | Commit | CleanUp => Source,
            Verify | Restore | PeerReady | Committed | Resume => Destination,
        }
    }

    fn is_reached(self, bench: &Bench, receiver: &Receiver, sender: &Running) -> bool {
        let phase = |record: Option<serde_json::Value>, name| {
            record.is_some_and(|record| record["phase"] == name)
        };
        let source = |name| phase(bench.record(), name);
        let destination = |name| phase(bench.kept(Destination), name);
        match self {
            Negotiate => {
                let agreed = bench
                    .record()
                    .is_some_and(|record| record["secret"].is_string());
                agreed && destination("negotiated")
            }
            PreCopy => source("pre-copying"),
            Freeze => source("frozen"),
            Dump => bench.log_has(Source, "dump.log", "Seized task "),
            Ship => sender.stderr().contains(": dump "),
            Verify => match bench.store(Source) == bench.store(Destination) {
                true => has_image_open(receiver.running.pid()),
                false => sender.stderr().contains(": dump "),
            },
            Restore => bench.log_has(
                Destination,
                "restore.log",
                "Running post-setup-namespaces scripts",
            ),
            PeerReady => destination("peer-ready"),
            Fence => {
                let file = |v1, v2| bench.pair.source.cgroup_file(bench.pair.id(), v1, v2);
                source("fenced")
                    && ["FROZEN", "1"].contains(&&*file("freezer.state", "cgroup.freeze"))
            }
            Commit => source("committing"),
            Committed => destination("committed"),
            Resume => {
                let text = "Restore finished successfully. Tasks resumed.";
                destination("committed") && bench.log_has(Destination, "restore.log", text)
            }
            CleanUp => phase(bench.kept(Source), "committed"),
        }
    }
}

fn has_image_open(pid: i32) -> bool {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| {
            fs::read_link(entry.path())
                .is_ok_and(|path| path.extension().is_some_and(|end| end == "img"))
        })
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
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

use Fault::{CriuFails, CriuKilled, Cut, Flip, Full, Kill, Terminate};

/// One case: what happens to which end at which point.
#[derive(Debug, Clone, Copy)]
struct Case {
    point: Point,
    end: Side,
    fault: Fault,
    store: Store,
}

const fn case(point: Point, end: Side, fault: Fault, store: Store) -> Case {
    Case {
        point,
        end,
        fault,
        store,
    }
}

impl Case {
    /// Whose the container is in the end.
    fn outcome(self) -> Side {
        let moves = match (self.point, self.fault, self.end) {
            // A signal to the source comes too late.
            (Commit, Terminate, Source) => true,
            // The fence holds without CRIU.
            (Commit, CriuKilled, Source) => true,
            // The restored tasks are gone, the images are not.
            (PeerReady, CriuKilled, Destination) => true,
            (point, ..) => point >= Committed,
        };
        if moves { Destination } else { Source }
    }

    fn play(self) {
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
            // What a failed try leaves may be the room that the next one needs.
            let runs = |receiver: &Receiver| receiver.running.stderr().contains("runs here");
            wait_until("it has tried again", || {
                tries(&receiver) == 2 || runs(&receiver)
            });
            if !runs(&receiver) {
                // It would say for a while that it has the container. What makes it start is room, and `--resolve`.
                receiver.running.signal(Signal::SIGKILL);
                killed = Some(Destination);
            }
            bench.recover();
        }
        if killed == Some(Source) {
            assert!(sender.ends_within(COMMAND_LIMIT_DUR));
            // As long as the destination is at work, or a guard of the dead one, it says so.
            wait_until("it is settled", || {
                bench.resolve(Source).run();
                bench.is_settled_at(Source)
            });
        } else if killed == Some(Destination) {
            assert!(receiver.running.ends_within(COMMAND_LIMIT_DUR));
            resolving = Some(bench.resolve(Destination).spawn());
        }
        let sent = sender.wait();
        // A destination that the source's last word has not reached waits for questions, and so does `--resolve` in its place.
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
            // Where not even that could be written.
            let full = matches!(self.fault, Full(Place::State));
            assert!(full, "{sent:?}\n{received:?}");
            dismiss(bench.resolve(Destination).spawn());
            bench.resolve(Source).run();
        }
        bench.assert_at(self.outcome());
        bench.assert_moves_from(self.outcome());
    }

    fn happen(self, bench: &Bench, victim: i32) {
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

    /// The link is there again when what is lost by then comes too late: one end has noticed that it was cut, and decided.
    fn mend(self, bench: &Bench, sender: &Running) {
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

/// Who needs to stay no longer.
fn dismiss(mut running: Running) -> Output {
    if !running.ends_within(Duration::from_secs(2)) {
        running.signal(Signal::SIGTERM);
    }
    running.wait()
}

/// Plays them, a few at a time, and says all that fail.
fn play(cases: &[Case], at_once: usize) {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let began = Instant::now();
            if catch_unwind(|| case.play()).is_err() {
                failed.lock().unwrap().push(*case);
            }
            println!("{:?} {case:?}", began.elapsed());
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Every point and each end, with the one store or the other.
fn everywhere(fault: Fault, first: usize) -> Vec<Case> {
    let stores = [Shared, Streamed];
    (POINTS.into_iter().enumerate())
        .flat_map(|(index, point)| {
            [Source, Destination].map(|end| {
                let store = stores[(index + first + usize::from(end == Destination)) % 2];
                case(point, end, fault, store)
            })
        })
        .collect()
}

#[test]
fn either_end_is_killed() {
    play(&everywhere(Kill, 0), 2);
}

#[test]
fn either_end_is_asked_to_stop() {
    play(&everywhere(Terminate, 1), 2);
}

/// It takes some seconds until it is noticed, in which there is nothing to do.
#[test]
fn the_link_is_cut() {
    let cases: Vec<Case> = everywhere(Cut, 0)
        .into_iter()
        .filter(|case| case.end == case.point.end())
        .collect();
    play(&cases, 6);
}

#[test]
fn a_disk_is_full() {
    let cases = [
        case(Freeze, Source, Full(Place::Store), Shared),
        case(Freeze, Source, Full(Place::Store), Streamed),
        case(Negotiate, Destination, Full(Place::Store), Streamed),
        case(Dump, Destination, Full(Place::Store), Streamed),
        case(Freeze, Source, Full(Place::State), Shared),
        case(Ship, Source, Full(Place::State), Streamed),
        case(PeerReady, Source, Full(Place::State), Shared),
        case(Fence, Source, Full(Place::State), Streamed),
        case(Verify, Destination, Full(Place::State), Shared),
        case(Restore, Destination, Full(Place::State), Streamed),
        case(PeerReady, Destination, Full(Place::State), Shared),
        case(Committed, Destination, Full(Place::State), Streamed),
    ];
    play(&cases, 2);
}

#[test]
fn an_image_is_damaged() {
    let cases = [
        case(Verify, Destination, Flip("pages-1.img"), Shared),
        case(Verify, Destination, Flip("inventory.img"), Shared),
    ];
    play(&cases, 1);
}

#[test]
fn criu_fails_or_is_killed() {
    let cases = [
        case(Negotiate, Source, CriuFails, Shared),
        case(Ship, Destination, CriuFails, Streamed),
        case(Dump, Source, CriuKilled, Streamed),
        case(Ship, Source, CriuKilled, Shared),
        case(Restore, Source, CriuKilled, Streamed),
        case(Fence, Source, CriuKilled, Shared),
        case(Commit, Source, CriuKilled, Streamed),
        case(Restore, Destination, CriuKilled, Shared),
        case(PeerReady, Destination, CriuKilled, Streamed),
        case(Committed, Destination, CriuKilled, Shared),
    ];
    play(&cases, 2);
}

#[test]
fn a_round_of_pre_copy_is_interrupted() {
    let features = Criu::find(None).unwrap().features().unwrap();
    if !features.memory_tracking {
        skip!("this kernel does not track changed memory (CONFIG_MEM_SOFT_DIRTY)");
    }
    let cases = [
        case(PreCopy, Source, Kill, Shared),
        case(PreCopy, Destination, Kill, Streamed),
        case(PreCopy, Source, Terminate, Streamed),
        case(PreCopy, Destination, Terminate, Shared),
        case(PreCopy, Source, Cut, Streamed),
        case(PreCopy, Source, Full(Place::Store), Shared),
    ];
    play(&cases, 2);
}

/// A network that changes one byte of what the source sends on a connection for images.
#[test]
fn a_byte_is_changed_on_the_way() {
    let bench = Bench::new("wire", Streamed, None);
    let receiver = bench.receive(Destination);
    let namespace = fs::File::open(bench.link.source.path()).unwrap();
    let target = receiver.address;
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let listener = TcpListener::bind((link::SOURCE, 0)).unwrap();
        tell.send(listener.local_addr().unwrap()).unwrap();
        for (index, near) in listener.incoming().enumerate() {
            let (near, far) = (near.unwrap(), TcpStream::connect(target).unwrap());
            let (from, to) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            // The first is for messages.
            std::thread::spawn(move || forward(from, to, (index > 0).then_some(20_000)));
            std::thread::spawn(move || forward(far, near, None));
        }
    });
    let proxy = told.recv().unwrap().to_string();
    let flags = ["--streams", "1", "--compress", "none"];
    let output = bench.send(Source, Some(&proxy), &flags).wait();
    runs_on(output, "");
    receiver.running.wait().exits_with(1);
    bench.assert_at(Source);
    bench.assert_moves_from(Source);
}

/// Changes the byte at that place, if there is one.
fn forward(mut from: TcpStream, mut to: TcpStream, change: Option<usize>) {
    let mut buffer = vec![0; 1 << 16];
    let mut passed = 0;
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if let Some(place) = change.and_then(|change| change.checked_sub(passed))
            && place < count
        {
            buffer[place] ^= 1;
        }
        passed += count;
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
