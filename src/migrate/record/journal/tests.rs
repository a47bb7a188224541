use super::*;
use crate::migrate::record::ledger::latest;
use crate::migrate::record::lock::Lock;
use crate::migrate::record::paths::*;
use crate::migrate::wire::id::Bytes32;

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
        restore_spec: (side == Side::Destination).then(|| RestoreSpec {
            bundle: "/bundles/web".into(),
            ..RestoreSpec::default()
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
        let stored = latest(root.path(), "web").unwrap().unwrap();
        assert_eq!(&stored, journal.record());
        assert!(stored.is_driven());
    }
    journal.move_to_kept(root.path()).unwrap();
    fs::remove_dir_all(root.path().join("web")).unwrap();
    // If rcm is killed now, the images remain to be removed.
    let kept = latest(root.path(), "web").unwrap().unwrap();
    assert_eq!((kept.phase, kept.side), (Phase::Committed, Side::Source));
    journal.enter(Phase::Done).unwrap();
    let kept = latest(root.path(), "web").unwrap().unwrap();
    assert_eq!(
        (kept.phase, kept.side, kept.acquaintance),
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
    let mut record = latest(root.path(), "web").unwrap().unwrap();
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
    assert_eq!(latest(root.path(), "web").unwrap(), None);
    make_dir(root.path()).unwrap();
    fs::write(kept_path(root.path(), "web"), "{").unwrap();
    assert!(matches!(
        latest(root.path(), "web"),
        Err(JournalError::Damaged { .. })
    ));
}

/// Text of a record as the release before versions wrote it, with `changes` to it.
fn old_record(changes: &str) -> String {
    format!(
        r#"{{
  "migration": "05050505050505050505050505050505",
  "container": "web",
  "side": "destination",
  "phase": "done",
  "peer": "192.0.2.1:7260",
  "images": "/pool/05050505050505050505050505050505",
  {changes}
  "ownsImages": false,
  "unanswered": null,
  "confirmed": false,
  "tls": null,
  "writer": {{"pid": 7, "startTime": 99}},
  "started": "2025-01-02T03:04:05.678Z",
  "updated": "2025-01-02T03:04:06.789Z",
  "reason": null,
  "restore_spec": null
}}"#
    )
}

#[test]
fn records_of_earlier_releases_are_understood() {
    let path = Path::new("/record");
    let parse = |changes: &str| parse(path, old_record(changes).as_bytes()).unwrap();
    let digits = |digit: &str, count| digit.repeat(count);
    let met = format!(
        r#""secret": "{}", "receiver": "{}", "fingerprint": "{}", "#,
        digits("09", 32),
        digits("06", 16),
        digits("04", 32)
    );
    let expected = start(Side::Destination).acquaintance;
    let record = parse(&met);
    assert_eq!((record.version, record.acquaintance), (0, expected));
    assert_eq!(record.phase, Phase::Done);
    let by_flags = parse(&format!(r#"{met} "knowsSecret": false, "#));
    assert!(!by_flags.acquaintance.unwrap().knows_secret);
    let not_met = r#""secret": null, "receiver": null, "fingerprint": null, "knowsSecret": true, "#;
    assert_eq!(parse(not_met).acquaintance, None);
    let no_secret = met.replacen(&format!(r#""{}""#, digits("09", 32)), "null", 1);
    assert_eq!(parse(&no_secret).acquaintance, None);
}

#[test]
fn what_the_ends_recognize_each_other_by_is_where_it_was() {
    let root = tempfile::tempdir().unwrap();
    let journal = Journal::begin(root.path(), start(Side::Destination)).unwrap();
    let text = fs::read_to_string(kept_path(root.path(), "web")).unwrap();
    let stored: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(stored["secret"], "09".repeat(32));
    assert_eq!(stored["receiver"], "06".repeat(16));
    assert_eq!(stored["fingerprint"], "04".repeat(32));
    assert_eq!(
        (&stored["knowsSecret"], &stored["version"]),
        (&true.into(), &1.into())
    );
    assert_eq!(
        latest(root.path(), "web").unwrap().as_ref(),
        Some(journal.record())
    );
}

#[test]
fn a_record_of_a_newer_release_is_refused() {
    let text = r#"{"version": 2, "shape": "another"}"#;
    let error = parse(Path::new("/record"), text.as_bytes()).unwrap_err();
    assert!(
        matches!(error, JournalError::Newer { version: 2, .. }),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains("settle the migration with that release"),
        "{error}"
    );
}
