//! The fault matrix: every fault of either end at every point of a migration.
//!
//! One end is stopped exactly at the point ([`stop_when`]), a fault is injected at one of the ends,
//! and the stopped end continues. Afterwards there is one copy, nothing is left over, and the next
//! attempt succeeds.

mod bench;
mod case;
mod point;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use nix::sched::{CloneFlags, setns};
use rcm::criu::Criu;
use rcm::migrate::wire::id::Side::{Destination, Source};

use super::link;
use crate::common::pair::runs_on;
use crate::common::skip;
use bench::Store::{Shared, Streamed};
use bench::{Bench, Place};
use case::{Case, Fault, case};
use point::{POINTS, Point};

use Point::{
    Commit, Committed, Dump, Fence, Freeze, Negotiate, PeerReady, PreCopy, Restore, Resuming, Ship,
    Verify,
};

use Fault::{CriuFails, CriuKilled, Cut, Flip, Full, Kill, Terminate};

/// Plays the cases, a few at a time, and reports all failures.
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

/// These points and each end, with the one store or the other.
fn everywhere(points: &[Point], fault: Fault) -> Vec<Case> {
    let stores = [Shared, Streamed];
    let first = usize::from(fault == Terminate);
    (points.iter())
        .flat_map(|&point| {
            let index = POINTS.iter().position(|&other| other == point).unwrap();
            [Source, Destination].map(|end| {
                let store = stores[(index + first + usize::from(end == Destination)) % 2];
                case(point, end, fault, store)
            })
        })
        .collect()
}

/// The tests of one fault at every point: four of them, so that they run side by side.
macro_rules! at_every_point {
    ($fault:ident, $play:expr) => {
        const _: () = assert!(POINTS.len() == 12, "four times three points");

        #[test]
        fn until_the_dump() {
            $play(&POINTS[..3], $fault);
        }

        #[test]
        fn while_images_cross() {
            $play(&POINTS[3..6], $fault);
        }

        #[test]
        fn until_the_commit() {
            $play(&POINTS[6..9], $fault);
        }

        #[test]
        fn after_the_commit() {
            $play(&POINTS[9..], $fault);
        }
    };
}

mod either_end_is_killed {
    use super::*;
    at_every_point!(Kill, |points, fault| play(&everywhere(points, fault), 2));
}

mod either_end_is_asked_to_stop {
    use super::*;
    at_every_point!(Terminate, |points, fault| play(
        &everywhere(points, fault),
        2
    ));
}

/// It takes some idle seconds until the cut is noticed.
mod the_link_is_cut {
    use super::*;
    at_every_point!(Cut, |points, fault| {
        let mut cases = everywhere(points, fault);
        cases.retain(|case| case.end == case.point.end());
        play(&cases, 3);
    });
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

/// The journal says that the container may run, and nobody knows yet whether it does.
#[test]
fn something_happens_while_it_resumes() {
    let cases = [
        case(Resuming, Destination, Kill, Shared),
        case(Resuming, Destination, Kill, Streamed),
        case(Resuming, Source, Kill, Streamed),
        case(Resuming, Destination, Terminate, Shared),
        case(Resuming, Source, Terminate, Streamed),
        case(Resuming, Destination, Cut, Streamed),
        case(Resuming, Destination, Full(Place::State), Shared),
        case(Resuming, Destination, CriuKilled, Streamed),
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

/// A network that changes one byte from the source on a connection for images.
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
            // The first connection is for messages.
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
