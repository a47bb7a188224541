//! Files that a crash, a full disk or somebody else has changed, and JSON that a peer has made.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rcm::image::manifest::{ImageFile, Manifest, ManifestError};
use rcm::migrate::record::journal::{Journal, Start};
use rcm::migrate::record::ledger;
use rcm::migrate::record::verdict;
use rcm::migrate::trust::Trust;
use rcm::migrate::trust::rendezvous::{self, Acquaintance, Rendezvous};
use rcm::migrate::wire::codec::{Decoder, decode_opening, encode, encode_opening};
use rcm::migrate::wire::id::{Bytes32, MigrationId, Side};
use rcm::migrate::wire::preamble::Preamble;
use rcm::migrate::wire::protocol::{Kind, Message};
use rcm::migrate::wire::state::Verdict;
use rcm::sys::file::Failed;
use serde_json::json;

use crate::{Scene, cases, damage};

fn preamble() -> Vec<u8> {
    let preamble = json!({
        "migration": "01".repeat(16), "container": "web",
        "facts": {
            "rcmVersion": "0.1.0", "architecture": "x86_64", "cpuFeatures": ["avx2"], "kernelRelease": "6.12.8",
            "criuVersion": 40201, "criuFeatures": [], "cgroupMode": "legacy", "cgroupControllers": ["memory"]
        },
        "spec": {"ociVersion": "1.2.0", "linux": {"resources": {"memory": {"limit": 1}}}},
        "bundle": "/b", "rootfs": "/b/rootfs", "bindMounts": [{"source": "/a", "destination": "/b"}], "imagePath": "/pool",
        "criu": {"tcpEstablished": true, "emptyNs": ["network"]}, "clockMs": 1, "streams": 3
    });
    let text = serde_json::to_vec(&preamble).unwrap();
    let parsed: Preamble = serde_json::from_slice(&text).unwrap();
    encode(&Message::Preamble(Box::new(parsed))).unwrap()
}

/// Frames that carry more than numbers; unit tests beside the codec try the others.
#[test]
fn frames_with_preambles() {
    let valid = preamble();
    cases(6000, |random| {
        let mut bytes = valid.repeat(1 + random.below(2));
        damage(random, &mut bytes);
        let mut opening = encode_opening(&[1, 2]);
        damage(random, &mut opening);
        let _ = decode_opening(&opening);
        let expected = [Kind::Preamble];
        let cap_bytes = Kind::Preamble.cap_bytes() as usize + 64;
        let mut decoder = Decoder::default();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let Ok(wanted_bytes) = decoder.wanted_bytes(&expected) else {
                return;
            };
            assert!(wanted_bytes <= cap_bytes && decoder.held_bytes() <= cap_bytes);
            let (now, later) = rest.split_at(wanted_bytes.min(rest.len()));
            decoder.push(now);
            rest = later;
            if decoder.take(&expected).is_err() {
                return;
            }
        }
    });
}

#[test]
fn journals() {
    cases(2000, |random| {
        let scene = Scene::new();
        let root = scene.images();
        let start = Start {
            migration: MigrationId::new([5; 16]),
            container: "web".into(),
            side: Side::Destination,
            peer: "192.0.2.1:7260".into(),
            images: "/pool/05".into(),
            owns_images: true,
            receiver: None,
            tls: None,
            acquaintance: Some(Acquaintance {
                knows_secret: true,
                secret: Bytes32([9; 32]),
                receiver: MigrationId::new([6; 16]),
                fingerprint: Bytes32([4; 32]),
            }),
            restore_spec: None,
        };
        Journal::begin(&root, start).unwrap();
        let path = root.join("@migrations/web.json");
        let mut text = fs::read(&path).unwrap();
        damage(random, &mut text);
        fs::write(&path, text).unwrap();
        if let Ok(Some(record)) = ledger::latest(&root, "web") {
            let _ = record.is_driven();
        }
        scene.assert_nothing_outside();
    });
}

#[test]
fn secrets_and_verdicts_in_the_store() {
    let trust = Trust::fresh().unwrap();
    cases(2000, |random| {
        let scene = Scene::new();
        let store = scene.images();
        let left = Rendezvous::create(&store, "web", &trust).unwrap();
        let mut text = fs::read(left.path()).unwrap();
        let whole = text.clone();
        damage(random, &mut text);
        fs::write(left.path(), &text).unwrap();
        fs::set_permissions(left.path(), fs::Permissions::from_mode(0o600)).unwrap();
        let receiver = left.acquaintance().receiver;
        let owner = fs::metadata(&store).unwrap().uid();
        if let Ok(found) = rendezvous::read(&store, "web", &receiver, owner) {
            let same = found.secret == left.acquaintance().secret;
            assert_eq!(same, text[..65] == whole[..65]);
        }
        drop(left);

        let migration = MigrationId::new([7; 16]);
        verdict::write(&store, migration, Verdict::Running).unwrap();
        let path = store.join("verdict");
        let mut text = fs::read(&path).unwrap();
        damage(random, &mut text);
        fs::write(&path, &text).unwrap();
        let _ = verdict::read(&store, migration);
        scene.assert_nothing_outside();
    });
}

/// Only files of that directory are opened, for any name in a manifest.
#[test]
fn names_in_manifests() {
    const PARTS: [&str; 11] = [
        "..", ".", "/", "a", "precious", "\0", ".img", "\n", "~", "é", "images",
    ];
    cases(5000, |random| {
        let scene = Scene::new();
        let dir = scene.images();
        let name: String = (0..random.below(6))
            .map(|_| PARTS[random.below(PARTS.len())])
            .collect();
        let manifest = Manifest {
            files: vec![ImageFile::of_pieces(name.clone(), 8, &[1])],
        };
        for result in [manifest.verify(&dir)] {
            match result {
                Err(ManifestError::Name { .. }) => {}
                Err(ManifestError::File(Failed { path, .. })) => {
                    assert_eq!(path.parent(), Some(&*dir), "{name:?}");
                    assert_eq!(Path::new(&name).components().count(), 1, "{name:?}");
                }
                other => panic!("{name:?}: {other:?}"),
            }
        }
    });
}
