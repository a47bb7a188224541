use super::*;
use crate::migrate::wire::id::{Bytes32, MigrationId};
use crate::migrate::wire::state::Phase;

#[test]
fn kinds_have_distinct_numbers_that_come_back() {
    for kind in Kind::ALL {
        assert_eq!(Kind::from_number(kind.number()), Some(kind));
    }
    assert_eq!(Kind::from_number(0), None);
    assert_eq!(Kind::from_number(18), None);
}

#[test]
fn an_id_has_one_spelling_and_no_path_tricks() {
    let id = MigrationId::new([0xab; 16]);
    assert_eq!(id.to_string().parse::<MigrationId>().unwrap(), id);
    for bad in [
        "",
        "..",
        "../../../../../../../../etc/passwd",
        &"AB".repeat(16),
        &"ab".repeat(15),
        &"ab".repeat(17),
        &"é".repeat(16),
    ] {
        assert!(bad.parse::<MigrationId>().is_err(), "{bad}");
    }
}

#[test]
fn only_what_precedes_the_commit_rolls_back() {
    use Phase::*;
    for phase in [
        Negotiated, PreCopying, Frozen, Shipped, PeerReady, Fenced, RolledBack,
    ] {
        assert!(phase.may_roll_back(), "{phase}");
    }
    for phase in [Committing, Committed, Resuming, Done] {
        assert!(!phase.may_roll_back(), "{phase}");
    }
}

/// A journal of a destination goes through them in this order.
#[test]
fn resuming_comes_between_the_commit_and_the_end() {
    assert!(Phase::Committed < Phase::Resuming && Phase::Resuming < Phase::Done);
    assert!(!Phase::Resuming.is_final());
    assert_eq!(
        serde_json::to_string(&Phase::Resuming).unwrap(),
        r#""resuming""#
    );
}

#[test]
fn secrets_do_not_show() {
    assert!(!format!("{:?}", Bytes32([7; 32])).contains('7'));
}
