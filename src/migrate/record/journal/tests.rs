use super::*;
use crate::migrate::record::paths::*;

fn start(side: Side) -> Start {
    Start {
        migration: MigrationId::new([5; 16]),
        container: "web".into(),
        side,
        peer: "192.0.2.1:7260".into(),
        images: "/pool/05".into(),
        owns_images: false,
        receiver: None,
        tls: None,
        acquaintance: Some(Acquaintance {
            knows_secret: true,
            secret: Bytes32([9; 32]),
            receiver: MigrationId::new([6; 16]),
            fingerprint: Bytes32([4; 32]),
        }),
        recipe: (side == Side::Destination).then(|| Recipe {
            bundle: "/bundles/web".into(),
            ..Recipe::default()
        }),
    }
}

#[test]
fn every_phase_is_on_the_disk() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("web")).unwrap();
    let mut journal = Journal::begin(root.path(), start(Side::Source)).unwrap();
    for phase in [
        Phase::Frozen,
        Phase::Shipped,
        Phase::PeerReady,
        Phase::Fenced,
        Phase::Committing,
    ] {
        journal.enter(phase).unwrap();
        let stored = read(root.path(), "web").unwrap().unwrap();
        assert_eq!(&stored, journal.record());
        assert!(stored.is_driven());
    }
    journal.keep(root.path()).unwrap();
    fs::remove_dir_all(root.path().join("web")).unwrap();
    // Who is killed now has the images to remove.
    let kept = read(root.path(), "web").unwrap().unwrap();
    assert_eq!((kept.phase, kept.side), (Phase::Committed, Side::Source));
    journal.enter(Phase::Done).unwrap();
    let kept = read(root.path(), "web").unwrap().unwrap();
    assert_eq!(
        (kept.phase, kept.side, kept.secret),
        (Phase::Done, Side::Source, None)
    );
}

#[test]
fn a_phase_that_cannot_be_stored_is_not_entered() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("web")).unwrap();
    let mut journal = Journal::begin(root.path(), start(Side::Source)).unwrap();
    fs::remove_dir_all(root.path().join("web")).unwrap();
    assert!(journal.enter(Phase::Committing).is_err());
    assert_eq!(journal.record().phase, Phase::Negotiated);
}

#[test]
fn secrets_are_for_root_alone() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().unwrap();
    Journal::begin(root.path(), start(Side::Destination)).unwrap();
    let mode = fs::metadata(kept_path(root.path(), "web"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_dead_writer_is_told_from_a_living_one() {
    let root = tempfile::tempdir().unwrap();
    let journal = Journal::begin(root.path(), start(Side::Destination)).unwrap();
    let mut record = read(root.path(), "web").unwrap().unwrap();
    assert_eq!(&record, journal.record());
    assert!(record.is_driven());
    record.writer.start_time += 1;
    assert!(!record.is_driven());
    assert!(
        Journal::adopt(root.path(), record)
            .unwrap()
            .record()
            .is_driven()
    );
}

#[test]
fn one_migration_of_a_container_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let lock = Lock::take(root.path(), "web").unwrap();
    assert!(matches!(
        Lock::take(root.path(), "web"),
        Err(JournalError::Busy { .. })
    ));
    Lock::take(root.path(), "db").unwrap();
    drop(lock);
    Lock::take(root.path(), "web").unwrap();
}

#[test]
fn litter_of_a_killed_process_is_removed() {
    let root = tempfile::tempdir().unwrap();
    remove_litter(root.path(), "web").unwrap();
    make_dir(root.path()).unwrap();
    let litter = root.path().join("secret");
    fs::write(&litter, "").unwrap();
    remember_litter(root.path(), "web", &litter).unwrap();
    remove_litter(root.path(), "web").unwrap();
    assert!(!litter.exists());
    remove_litter(root.path(), "web").unwrap();
}

#[test]
fn damage_is_reported_with_the_file() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(read(root.path(), "web").unwrap(), None);
    make_dir(root.path()).unwrap();
    fs::write(kept_path(root.path(), "web"), "{").unwrap();
    assert!(matches!(
        read(root.path(), "web"),
        Err(JournalError::Damaged { .. })
    ));
}
