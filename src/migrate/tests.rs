//! Both ends against each other on the loopback device, with simulated containers: every state, and
//! every fault in it. In every case at most one container runs, and before the commit it is the
//! source's.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::destination::{self, DestinationError, Prepared, Setup};
use super::link::listener::{Listener, listen};
use super::method::precopy::Limits;
use super::preflight::facts;
use super::progress::Progress;
use super::progress::report::Report;
use super::record::ledger;
use super::source::offer::{Bundle, Offer};
use super::source::{self, Failure, Plan, SourceError};
use super::transfer::images;
use super::trust::Trust;
use super::trust::rendezvous::{Rendezvous, random};
use super::wire::id::MigrationId;
use super::wire::observed::Observed;
use super::wire::protocol::Kind;
use super::wire::rootfs::RootfsOffer;
use super::wire::state::Phase;
use crate::criu::CriuChoices;

mod network;
mod played;
mod rounds;

use network::{Cut, network};
use played::{Container, Fault, PlayedHost, Shared, State, World};

struct Outcome {
    world: Shared,
    /// `None` if it died.
    source: Option<Result<Report, Failure>>,
    /// `None` if it died.
    destination: Option<Result<bool, DestinationError>>,
    source_phase: Option<Phase>,
    destination_phase: Option<Phase>,
    /// Names of the files that are left in the image store.
    left: Vec<String>,
    /// How many times the container has begun to execute at the destination.
    executions: u32,
}

impl Outcome {
    /// Asserts that the source's copy stays frozen, with its images, because its commit has no
    /// answer.
    #[track_caller]
    fn assert_in_doubt(&self) {
        assert_eq!(self.states(), (State::Fenced, State::Absent));
        assert!(
            matches!(self.source, Some(Err(Failure::NotSettled { .. }))),
            "{:?}",
            self.source
        );
        assert_eq!(self.source_phase, Some(Phase::Committing));
        assert_eq!(self.left.len(), 1, "the images: {:?}", self.left);
    }

    fn states(&self) -> (State, State) {
        let world = self
            .world
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        (world.source, world.destination)
    }

    /// Asserts the state that every failure before the commit leaves.
    fn assert_rolled_back(&self) {
        assert_eq!(self.states(), (State::Running, State::Absent));
        if let Some(source) = &self.source {
            assert!(matches!(source, Err(Failure::RunsOn { .. })), "{source:?}");
        }
        if let Some(destination) = &self.destination {
            assert!(destination.is_err());
        }
        assert_eq!(self.left, [""; 0], "left in the store");
    }

    fn assert_moved(&self) {
        assert_eq!(self.states(), (State::Absent, State::Running));
        assert!(matches!(self.source, Some(Ok(_))), "{:?}", self.source);
        assert!(matches!(self.destination, Some(Ok(true))));
        assert_eq!(self.source_phase, Some(Phase::Done));
        assert_eq!(self.destination_phase, Some(Phase::Done));
        assert_eq!(self.left, [""; 0], "left in the store");
    }
}

fn migrate(at_source: Fault, at_destination: Fault, cut: Cut) -> Outcome {
    migrate_within(at_source, at_destination, cut, Duration::from_secs(20))
}

fn migrate_within(
    at_source: Fault,
    at_destination: Fault,
    cut: Cut,
    settle_limit_dur: Duration,
) -> Outcome {
    play(at_source, at_destination, cut, settle_limit_dur, None)
}

/// Two rounds, then the freeze: with this number nothing depends on their duration.
fn migrate_in_rounds(at_source: Fault, at_destination: Fault, cut: Cut) -> Outcome {
    let limits = Limits {
        downtime_limit_dur: Duration::ZERO,
        max_rounds: 2,
    };
    let settle_limit_dur = Duration::from_secs(20);
    play(
        at_source,
        at_destination,
        cut,
        settle_limit_dur,
        Some(limits),
    )
}

fn play(
    at_source: Fault,
    at_destination: Fault,
    cut: Cut,
    settle_limit_dur: Duration,
    pre_copy: Option<Limits>,
) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let (store, source_root, destination_root) = (
        dir.path().join("store"),
        dir.path().join("source"),
        dir.path().join("destination"),
    );
    for dir in [&store, &source_root.join("web"), &destination_root] {
        fs::create_dir_all(dir).unwrap();
    }
    let world = Arc::new(Mutex::new(World {
        source: State::Running,
        destination: State::Absent,
    }));

    let trust = Trust::fresh().unwrap();
    let rendezvous = Rendezvous::create(&store, "web", &trust).unwrap();
    let listener = Listener::new(
        listen(Some((Ipv4Addr::LOCALHOST, 0).into())).unwrap(),
        rendezvous.acquaintance(),
        trust,
    );
    let address = network(
        listener.address().unwrap(),
        cut,
        pre_copy.map_or(0, |limits| limits.max_rounds as usize),
    );
    let executions = Arc::default();
    let host = PlayedHost {
        world: Arc::clone(&world),
        fault: at_destination,
        id_in_use: false,
        failed_resumes: Arc::default(),
        executions: Arc::clone(&executions),
    };
    let setup = Setup {
        root: destination_root.clone(),
        image_path: store.clone(),
        limit_dur: Duration::from_secs(20),
        linger_dur: Duration::from_secs(3),
    };
    let store_of_destination = store.clone();
    let receiver = std::thread::spawn(move || {
        if at_destination == Fault::DamagedImage {
            damage_images(store_of_destination);
        }
        let mut progress = Progress::new(Box::new(()), Report::of("web"));
        let mut arrived = destination::receive(
            Prepared::new(setup, host, rendezvous, listener),
            &mut progress,
            None,
        )?;
        Ok(arrived.settlement.answer(Duration::from_secs(5), None))
    });

    let migration = MigrationId::new(random().unwrap());
    let plan = Plan {
        rootfs: PathBuf::new(),
        config: None,
        streams: 2,
        sending: images::ImageSettings::default(),
        root: source_root.clone(),
        destination: address.to_string().parse().unwrap(),
        trust: Trust::fresh().unwrap(),
        offer: Offer {
            migration,
            container: "web".into(),
            facts: facts::gather(40_201, BTreeSet::new()).unwrap(),
            bundle: Bundle {
                path: "/b".into(),
                rootfs: "/b/rootfs".into(),
                spec: serde_json::Value::Null,
                bind_mounts: Vec::new(),
                carried: Vec::new(),
            },
            image_path: store.clone(),
            criu: CriuChoices::default(),
            observed: Observed::default(),
            processor: Vec::new(),
            rootfs: RootfsOffer::default(),
            rehearses: false,
        },
        findings: Vec::new(),
        pre_copy,
        freeze_limit_dur: Duration::from_secs(20),
        settle_limit_dur,
    };
    let container = Container {
        world: Arc::clone(&world),
        fault: at_source,
        dir: source_root.join("web"),
        rounds: 0,
    };
    let sender = std::thread::spawn(move || {
        let mut progress = Progress::new(Box::new(()), Report::of("web"));
        source::migrate(&plan, container, &mut progress, None).map(|()| progress.report().clone())
    });
    let source = sender.join().ok();
    let destination = receiver.join().ok();
    let phase = |root: &Path| {
        ledger::latest(root, "web")
            .unwrap()
            .map(|record| record.phase)
    };
    let mut left: Vec<String> = fs::read_dir(&store)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    Outcome {
        world,
        source,
        destination,
        source_phase: phase(&source_root),
        destination_phase: phase(&destination_root),
        left,
        executions: executions.load(Ordering::Relaxed),
    }
}

/// Changes the image between the source's digest and the destination's.
fn damage_images(store: PathBuf) {
    std::thread::spawn(move || {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            for entry in fs::read_dir(&store).into_iter().flatten().flatten() {
                let image = entry.path().join("0/core-1.img");
                if image.exists() {
                    let _ = fs::write(image, b"rust");
                }
            }
        }
    });
}

#[test]
fn it_moves() {
    migrate(Fault::None, Fault::None, Cut::None).assert_moved();
}

#[test]
fn a_failed_dump_leaves_it_running() {
    let outcome = migrate(Fault::Dump, Fault::None, Cut::None);
    outcome.assert_rolled_back();
    assert_eq!(outcome.source_phase, Some(Phase::RolledBack));
    assert_eq!(outcome.destination_phase, Some(Phase::RolledBack));
}

#[test]
fn a_source_that_dies_in_the_dump_leaves_it_running() {
    migrate(Fault::DieInDump, Fault::None, Cut::None).assert_rolled_back();
}

#[test]
fn a_damaged_image_leaves_it_running() {
    let outcome = migrate(Fault::None, Fault::DamagedImage, Cut::None);
    // The damage may already be in the source's digest. Then the restore fails and the destination
    // dies.
    outcome.assert_rolled_back();
}

#[test]
fn a_failed_restore_leaves_it_running_and_the_source_says_why() {
    let outcome = migrate(Fault::None, Fault::Restore, Cut::None);
    outcome.assert_rolled_back();
    let Some(Err(failure)) = &outcome.source else {
        panic!("{:?}", outcome.source)
    };
    assert!(
        crate::error::chain(failure).contains("Error (criu): cannot restore"),
        "{failure:?}"
    );
}

#[test]
fn a_destination_that_dies_in_the_restore_leaves_it_running() {
    let outcome = migrate(Fault::None, Fault::DieInRestore, Cut::None);
    outcome.assert_rolled_back();
    assert!(outcome.destination.is_none());
}

#[test]
fn without_a_fence_there_is_no_commit() {
    for fault in [Fault::Fence, Fault::Seal] {
        let outcome = migrate(fault, Fault::None, Cut::None);
        outcome.assert_rolled_back();
        assert_eq!(outcome.source_phase, Some(Phase::RolledBack));
        assert_eq!(outcome.destination_phase, Some(Phase::RolledBack));
    }
}

#[test]
fn a_source_that_dies_before_the_commit_leaves_it_running() {
    migrate(Fault::DieInFence, Fault::None, Cut::None).assert_rolled_back();
}

#[test]
fn a_link_that_is_cut_before_the_commit_leaves_it_running() {
    for kind in [
        Kind::Proof,
        Kind::Preamble,
        Kind::Findings,
        Kind::Shipped,
        Kind::Ready,
    ] {
        for cut in [Cut::Before(kind), Cut::After(kind)] {
            // A receiver without a migration keeps waiting, and would do so here for ever.
            let begun =
                !matches!(kind, Kind::Proof | Kind::Preamble) && cut != Cut::Before(Kind::Findings);
            if begun {
                migrate(Fault::None, Fault::None, cut).assert_rolled_back();
            }
        }
    }
}

/// The source cannot know whether its commit arrived. It learns that it did not, and only then
/// resumes the container.
#[test]
fn a_commit_that_never_arrived_is_rolled_back() {
    let outcome = migrate(Fault::None, Fault::None, Cut::Before(Kind::Commit));
    outcome.assert_rolled_back();
    assert_eq!(outcome.source_phase, Some(Phase::RolledBack));
    assert_eq!(outcome.destination_phase, Some(Phase::RolledBack));
}

/// The source cannot know whether its commit arrived. It learns that it did.
#[test]
fn a_commit_whose_answer_is_lost_is_asked_about() {
    migrate(Fault::None, Fault::None, Cut::Before(Kind::Running)).assert_moved();
    migrate(Fault::None, Fault::None, Cut::After(Kind::Commit)).assert_moved();
}

/// No answer comes any more: the container stays frozen at the source, with its images, and the
/// record says so.
#[test]
fn an_unsettled_commit_never_runs_by_itself() {
    // The destination dies with the commit: it panics in its last attempt to resume the container.
    let outcome = migrate_within(
        Fault::None,
        Fault::Resume(u32::MAX),
        Cut::None,
        Duration::from_secs(1),
    );
    outcome.assert_in_doubt();
    assert!(matches!(
        outcome.destination,
        Some(Err(DestinationError::NotStarted { .. }))
    ));
    assert_eq!(outcome.destination_phase, Some(Phase::Committed));
}

#[test]
fn after_the_commit_a_failed_resume_is_tried_again_from_the_images() {
    migrate(Fault::None, Fault::Resume(2), Cut::None).assert_moved();
}

#[test]
fn a_rest_that_cannot_be_removed_is_reported_and_does_not_run() {
    let outcome = migrate(Fault::Finish, Fault::None, Cut::None);
    assert_eq!(outcome.states(), (State::Absent, State::Running));
    assert!(matches!(outcome.source, Some(Err(Failure::Remains { .. }))));
}

/// What has executed may not be restored again: it would do the same work twice.
#[test]
fn a_container_that_may_have_run_is_not_restored_again() {
    let outcome = migrate_within(
        Fault::None,
        Fault::DieInResume,
        Cut::None,
        Duration::from_secs(1),
    );
    assert_eq!(outcome.executions, 1);
    outcome.assert_in_doubt();
    assert!(matches!(
        outcome.destination,
        Some(Err(DestinationError::MayHaveRun { .. }))
    ));
    assert_eq!(outcome.destination_phase, Some(Phase::Resuming));
}
