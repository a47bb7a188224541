//! The connections that carry images, into a real receiver. The format is written down a second
//! time, as an enemy would.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use rcm::image::manifest::{ImageFile, Manifest};
use rcm::migrate::link::channel::{Channel, Patience};
use rcm::migrate::transfer::images::{BulkError, ImageReceiver};
use xxhash_rust::xxh3::xxh3_64;

use crate::common::random::Random;
use crate::{Scene, cases, damage, peak_kib};

const NAMES: [&str; 6] = [
    "pages-1.img",
    "core-1.img",
    "a",
    "mm-1.img",
    "inventory.img",
    "pagemap-7.img",
];
/// Names that no image has.
const WAYS_OUT: [&str; 8] = ["..", "../precious", "/tmp/x", ".", "a/b", ".x", "x.log", ""];

fn piece(number: u32, name: &str, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = vec![1, name.len() as u8];
    bytes.extend(number.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(name.as_bytes());
    bytes
}

fn chunk(encoding: u8, raw_bytes: usize, wire: &[u8]) -> Vec<u8> {
    let mut bytes = vec![encoding];
    bytes.extend((raw_bytes as u32).to_be_bytes());
    bytes.extend((wire.len() as u32).to_be_bytes());
    bytes.extend(wire);
    bytes
}

fn end(number: u32) -> Vec<u8> {
    let mut bytes = vec![2, 0];
    bytes.extend(number.to_be_bytes());
    bytes.extend([0; 12]);
    bytes
}

fn encoded(random: &mut Random, contents: &[u8]) -> Vec<u8> {
    let half = contents.len() / 2;
    let mut bytes = Vec::new();
    for part in [&contents[..half], &contents[half..]] {
        let packed = zstd::bulk::compress(part, 1).unwrap();
        bytes.extend(match random.below(2) {
            _ if part.is_empty() => continue,
            _ if part.iter().all(|byte| *byte == 0) => chunk(1, part.len(), &[]),
            0 if packed.len() < part.len() => chunk(2, part.len(), &packed),
            _ => chunk(0, part.len(), part),
        });
    }
    bytes
}

fn contents(random: &mut Random) -> Vec<u8> {
    let length = random.below(3000);
    match random.below(3) {
        0 => vec![0; length],
        1 => vec![random.next() as u8; length],
        _ => random.bytes(length),
    }
}

/// The receiver either refuses the images or stores them as the manifest describes, and always
/// ends.
#[test]
fn streams_into_a_receiver() {
    let (mut taken, mut refused) = (0, 0);
    peak_kib();
    let before = peak_kib();
    cases(4000, |random| {
        let scene = Scene::new();
        let mut streams = vec![Vec::new(); 1 + random.below(3)];
        let mut files = BTreeMap::new();
        for name in &NAMES[..random.below(NAMES.len())] {
            let contents = contents(random);
            let stream = random.below(streams.len());
            streams[stream].extend(piece(0, name, 0, contents.len() as u32));
            streams[stream].extend(encoded(random, &contents));
            files.insert(*name, contents);
        }
        if random.below(8) == 0 {
            let name = WAYS_OUT[random.below(WAYS_OUT.len())];
            streams[0].extend(piece(0, name, 0, 4));
            streams[0].extend(chunk(0, 4, b"evil"));
        }
        for stream in &mut streams {
            stream.extend(end(0));
            match random.below(4) {
                0 => damage(random, stream),
                1 if random.below(4) == 0 => {
                    let length = random.below(400);
                    *stream = random.bytes(length);
                }
                _ => {}
            }
        }
        let entry = |(name, contents): (&&str, &Vec<u8>)| {
            let digests: Vec<u64> = match contents.is_empty() {
                true => Vec::new(),
                false => vec![xxh3_64(contents)],
            };
            ImageFile::of_pieces((*name).to_owned(), contents.len() as u64, &digests)
        };
        let manifest = Manifest {
            files: files.iter().map(entry).collect(),
        };
        let channels = streams.iter().map(|stream| {
            let (mut theirs, ours) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            theirs.write_all(stream).unwrap();
            Channel::new(Box::new(ours), "enemy".into())
        });
        let receiver = ImageReceiver::start(channels.collect(), &scene.images()).unwrap();
        // No peer sends anything more, so the receiver ends at once.
        let verified = receiver.verify(0, &manifest, Patience::within(Duration::from_secs(60)));
        drop(receiver);
        scene.assert_nothing_outside();
        let dir = scene.images().join("0");
        for entry in fs::read_dir(&dir).unwrap().flatten() {
            assert!(entry.file_type().unwrap().is_file());
        }
        match verified {
            Ok(()) => {
                taken += 1;
                assert_eq!(fs::read_dir(&dir).unwrap().count(), files.len());
                for (name, contents) in files {
                    let mut found = fs::read(dir.join(name)).unwrap();
                    // Zeros at the end are a hole that is not there.
                    found.resize(contents.len(), 0);
                    assert!(found == contents, "{name}");
                }
            }
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
    });
    eprintln!("{taken} taken, {refused} refused");
    if std::env::var_os("RCM_TEST_SEED").is_none() {
        assert!(
            taken > 300 && refused > 300,
            "{taken} taken, {refused} refused"
        );
    }
    let grown_kib = peak_kib().saturating_sub(before);
    assert!(grown_kib < 32 << 10, "{grown_kib} KiB");
}

/// Each piece costs memory at the receiver, and nothing at the sender.
#[test]
fn pieces_without_end() {
    cases(1, |_| {
        let scene = Scene::new();
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let channel = Channel::new(Box::new(ours), "enemy".into());
        peak_kib();
        let before = peak_kib();
        let receiver = ImageReceiver::start(vec![channel], &scene.images()).unwrap();
        // After the receiver has stopped reading, only the socket fills.
        theirs.set_nonblocking(true).unwrap();
        let mut sent = 0;
        let failure = loop {
            if let Some(failure) = receiver.failure() {
                break failure;
            }
            assert!(sent < 1 << 20, "all of them are taken");
            let mut bytes = piece(0, &"x".repeat(250), sent << 22, 1);
            bytes.extend(chunk(1, 1, &[]));
            match theirs.write(&bytes) {
                Ok(written) if written == bytes.len() => sent += 1,
                // The socket is full and took only a part, so the stream is damaged from here on.
                Ok(_) => {}
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        };
        assert!(matches!(failure, BulkError::Invalid { .. }), "{failure}");
        drop(receiver);
        scene.assert_nothing_outside();
        let grown_kib = peak_kib().saturating_sub(before);
        assert!(grown_kib < 64 << 10, "{grown_kib} KiB");
    });
}
