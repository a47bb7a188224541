//! Pre-copy: after any fault in a round the container runs on at the source and the rounds are
//! removed.

use super::*;

#[test]
fn it_moves_in_rounds() {
    let outcome = migrate_in_rounds(Fault::None, Fault::None, Cut::None);
    outcome.assert_moved();
    let Some(Ok(report)) = &outcome.source else {
        unreachable!("it has moved")
    };
    assert_eq!(report.rounds.len(), 2);
    // The simulated container writes a digit in each round, and "core".
    let round_bytes: Vec<_> = report
        .rounds
        .iter()
        .map(|round| round.images_bytes)
        .collect();
    assert_eq!((round_bytes, report.images_bytes), (vec![1, 1], Some(4)));
    assert!(report.predicted_dur.is_some());
}

#[test]
fn a_round_that_fails_leaves_it_running() {
    for fault in [Fault::PreDump(0), Fault::PreDump(1)] {
        let outcome = migrate_in_rounds(fault, Fault::None, Cut::None);
        outcome.assert_rolled_back();
        assert_eq!(outcome.source_phase, Some(Phase::RolledBack));
        assert_eq!(outcome.destination_phase, Some(Phase::RolledBack));
    }
}

#[test]
fn a_source_that_dies_in_a_round_leaves_it_running() {
    for round in [0, 1] {
        migrate_in_rounds(Fault::DieInPreDump(round), Fault::None, Cut::None).assert_rolled_back();
    }
}

#[test]
fn a_dump_that_fails_after_the_rounds_leaves_it_running() {
    for fault in [Fault::Dump, Fault::DieInDump, Fault::Fence] {
        migrate_in_rounds(fault, Fault::None, Cut::None).assert_rolled_back();
    }
}

/// CRIU silently makes such a round complete, or a later one incomplete.
#[test]
fn a_round_without_its_parent_is_not_built_on() {
    let outcome = migrate_in_rounds(Fault::Orphan(1), Fault::None, Cut::None);
    outcome.assert_rolled_back();
    assert!(
        matches!(
            &outcome.source,
            Some(Err(Failure::RunsOn { source, .. })) if matches!(**source, SourceError::Chain { .. })
        ),
        "{:?}",
        outcome.source
    );
}

#[test]
fn a_link_that_is_cut_in_a_round_leaves_it_running() {
    for kind in [Kind::Round, Kind::RoundVerified] {
        for cut in [Cut::Before(kind), Cut::After(kind)] {
            migrate_in_rounds(Fault::None, Fault::None, cut).assert_rolled_back();
        }
    }
}

#[test]
fn a_restore_that_fails_after_the_rounds_leaves_it_running() {
    for fault in [Fault::Restore, Fault::DieInRestore] {
        migrate_in_rounds(Fault::None, fault, Cut::None).assert_rolled_back();
    }
}

#[test]
fn after_the_commit_a_failed_resume_is_tried_again_from_the_chain() {
    migrate_in_rounds(Fault::None, Fault::Resume(2), Cut::None).assert_moved();
}
