use super::*;
use std::os::unix::fs::PermissionsExt;

fn owner(dir: &Path) -> u32 {
    fs::metadata(dir).unwrap().uid()
}

#[test]
fn who_reads_the_store_finds_the_secret() {
    let store = tempfile::tempdir().unwrap();
    let trust = Trust::fresh().unwrap();
    let one = Rendezvous::create(store.path(), "web", &trust).unwrap();
    let two = Rendezvous::create(store.path(), "web", &trust).unwrap();
    let receiver = one.acquaintance().receiver;
    let found = read(store.path(), "web", &receiver, owner(store.path())).unwrap();
    assert_eq!(found.secret, one.acquaintance().secret);
    assert_eq!(found.fingerprint, trust.fingerprint());
    assert_ne!(found.secret, two.acquaintance().secret);
    drop(one);
    assert!(matches!(
        read(store.path(), "web", &receiver, owner(store.path())),
        Err(RendezvousError::NotShared { .. })
    ));
}

#[test]
fn a_file_that_others_could_read_or_plant_proves_nothing() {
    let store = tempfile::tempdir().unwrap();
    let trust = Trust::fresh().unwrap();
    let left = Rendezvous::create(store.path(), "web", &trust).unwrap();
    let me = owner(store.path());
    assert!(matches!(
        read(store.path(), "web", &left.acquaintance().receiver, me + 1),
        Err(RendezvousError::NotPrivate { .. })
    ));
    fs::set_permissions(&left.path, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(
        read(store.path(), "web", &left.acquaintance().receiver, me),
        Err(RendezvousError::NotPrivate { mode: 0o640, .. })
    ));
}

#[test]
fn links_and_nonsense_prove_nothing() {
    let store = tempfile::tempdir().unwrap();
    let trust = Trust::fresh().unwrap();
    let left = Rendezvous::create(store.path(), "web", &trust).unwrap();
    let me = owner(store.path());
    fs::write(&left.path, "x".repeat(5000)).unwrap();
    assert!(matches!(
        read(store.path(), "web", &left.acquaintance().receiver, me),
        Err(RendezvousError::Damaged { .. })
    ));
    let elsewhere = store.path().join("elsewhere");
    fs::rename(&left.path, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &left.path).unwrap();
    assert!(matches!(
        read(store.path(), "web", &left.acquaintance().receiver, me),
        Err(RendezvousError::File(_))
    ));
}

#[test]
fn only_both_lines_are_a_rendezvous() {
    let left = ReceiverFile {
        secret: Bytes32([1; 32]),
        fingerprint: Bytes32([2; 32]),
    };
    let text = left.encode();
    assert_eq!(ReceiverFile::decode(&text), Some(left));
    for bad in [
        "",
        "\n",
        &text[..65],
        &text[65..],
        &text[..129],
        &format!("{text}\n"),
    ] {
        assert_eq!(ReceiverFile::decode(bad), None, "{bad:?}");
    }
}

#[test]
fn proofs_bind_role_key_receiver_and_session() {
    let acquaintance = Acquaintance {
        knows_secret: true,
        receiver: MigrationId::new([1; 16]),
        secret: Bytes32([4; 32]),
        fingerprint: Bytes32([6; 32]),
    };
    let binding = Binding {
        exported: Bytes32([2; 32]),
        source: Bytes32([3; 32]),
        destination: Bytes32([6; 32]),
    };
    let proof = acquaintance.proof(Side::Source, &binding);
    let check = |who: Acquaintance, side, binding: Binding| who.check(side, &binding, &proof);
    check(acquaintance, Side::Source, binding).unwrap();
    check(acquaintance, Side::Destination, binding).unwrap_err();
    let other = Bytes32([9; 32]);
    for who in [
        Acquaintance {
            knows_secret: true,
            secret: other,
            ..acquaintance
        },
        Acquaintance {
            knows_secret: true,
            receiver: MigrationId::new([9; 16]),
            ..acquaintance
        },
    ] {
        check(who, Side::Source, binding).unwrap_err();
    }
    for session in [
        Binding {
            exported: other,
            ..binding
        },
        Binding {
            source: other,
            ..binding
        },
        Binding {
            destination: other,
            ..binding
        },
    ] {
        check(acquaintance, Side::Source, session).unwrap_err();
    }
    acquaintance.recognize(&binding).unwrap();
    let elsewhere = Binding {
        destination: other,
        ..binding
    };
    assert!(matches!(
        acquaintance.recognize(&elsewhere),
        Err(RendezvousError::WrongCertificate)
    ));
}
