//! Streams that an enemy made: thousands of them, and nothing happens outside the directory, no
//! panic, no memory without bound.

mod scene;
mod stream;

use std::fs;

use crate::common::random::Random;
use crate::{alone, peak_kib};
use rcm::image::tree::{
    Base, Compression, Defect, Inventory, Limits, MAX_DEPTH, TreeError, apply, pack, take_inventory,
};
use scene::Scene;
use stream::{DATA, ENTRY, HOLE, Kind, Stream, number};

const LIMITS: Limits = Limits {
    entries: 200,
    content_bytes: 1 << 20,
};

#[track_caller]
fn assert_defect(result: Result<(), TreeError>, expected: Defect) {
    match result {
        Err(TreeError::Malformed { defect, .. }) => assert_eq!(defect, expected),
        other => panic!("{expected:?} expected: {other:?}"),
    }
}

#[test]
fn no_way_leads_out() {
    let _alone = alone();
    let scene = Scene::new();
    let dir = Kind::Directory;
    for name in [
        &b".."[..],
        b".",
        b"",
        b"/",
        b"../x",
        b"a/x",
        b"/etc",
        b"x\0y",
        &[b'x'; 256],
    ] {
        for kind in [
            dir,
            Kind::File(0),
            Kind::Symlink(b"x"),
            Kind::Fifo,
            Kind::Link(b"f"),
        ] {
            assert_defect(
                scene.apply(&Stream::new().entry(0, 1, name, kind).finish()),
                Defect::Name,
            );
        }
        assert_defect(
            scene.apply(&Stream::new().delete(1, name).finish()),
            Defect::Name,
        );
    }
    // Through a link that is made first, or that is there.
    let through = |first: Kind| {
        Stream::new()
            .entry(0, 1, b"a", first)
            .entry(0, 2, b"x", Kind::File(0))
            .end(0)
            .finish()
    };
    assert_defect(
        scene.apply(&through(Kind::Symlink(b"../outside"))),
        Defect::Parent,
    );
    assert_defect(scene.apply(&through(Kind::Link(b"b"))), Defect::Order);
    // A directory in its place replaces the link itself.
    scene.apply(&through(dir)).unwrap();
    assert!(scene.tree().join("a/x").is_file());
    scene.fill();
    let again = Stream::new()
        .entry(0, 1, b"a", dir)
        .entry(0, 1, b"a", Kind::Symlink(b".."))
        .finish();
    assert_defect(scene.apply(&again), Defect::Order);
    // Links to files outside.
    for to in [
        &b"../outside/precious"[..],
        b"/etc/passwd",
        b"..",
        b"a/../f",
    ] {
        assert_defect(
            scene.apply(&Stream::new().entry(0, 1, b"z", Kind::Link(to)).finish()),
            Defect::Name,
        );
    }
    for to in [&b"a/precious"[..], b"b/d/precious", b"nothing", b"f/x"] {
        let result = scene.apply(&Stream::new().entry(0, 1, b"z", Kind::Link(to)).finish());
        assert!(
            matches!(result, Err(TreeError::OtherBase { .. })),
            "{result:?}"
        );
    }
    // A link, a FIFO or a device is not written to; a file with a name outside is replaced.
    let patch = |depth, name: &[u8]| {
        let mut stream = Stream::new();
        if depth == 2 {
            stream.entry(0, 1, b"b", dir);
        }
        stream
            .entry(1, depth, name, Kind::File(4))
            .data(0, b"evil")
            .end(4)
            .finish()
    };
    for result in [
        scene.apply(&patch(1, b"a")),
        scene.apply(&patch(1, b"none")),
        scene.apply(&patch(2, b"d")),
    ] {
        assert!(
            matches!(result, Err(TreeError::OtherBase { .. })),
            "{result:?}"
        );
    }
    scene.apply(&patch(2, b"e")).unwrap();
    assert_eq!(fs::read(scene.tree().join("b/e")).unwrap(), b"evil");
    // Deleting and emptying stops at links.
    scene
        .apply(&Stream::new().delete(1, b"a").delete(1, b"b").finish())
        .unwrap();
    scene.fill();
    scene
        .apply(&Stream::new().entry(2, 1, b"b", dir).finish())
        .unwrap();
    assert_eq!(fs::read_dir(scene.tree().join("b")).unwrap().count(), 0);
}

#[test]
fn sizes_and_counts_are_bounded() {
    let _alone = alone();
    let scene = Scene::new();
    let mut many = Stream::new();
    for name in 0..300_u64 {
        many.entry(0, 1, format!("{name:04}").as_bytes(), Kind::Fifo);
    }
    let result = scene.apply(&many.finish());
    assert!(
        matches!(
            result,
            Err(TreeError::Limit {
                what: "entries",
                limit: 200,
                ..
            })
        ),
        "{result:?}"
    );
    let mut large = Stream::new();
    large.entry(0, 1, b"large", Kind::File(1 << 40));
    for chunk in 0..5 {
        large.data(chunk << 18, &[1; 1 << 18]);
    }
    let result = scene.apply(&large.finish());
    assert!(
        matches!(result, Err(TreeError::Limit { what: "bytes", .. })),
        "{result:?}"
    );
    let mut deep = Stream::new();
    for depth in 1..=MAX_DEPTH as u64 + 1 {
        deep.entry(0, depth, b"d", Kind::Directory);
    }
    let limits = Limits {
        entries: 10_000,
        ..LIMITS
    };
    let result = apply(&scene.tree(), &deep.finish()[..], limits).map(drop);
    assert_defect(result, Defect::Depth);
    let outside = |bytes: &[u8], offset| {
        Stream::new()
            .entry(0, 1, b"x", Kind::File(10))
            .data(offset, bytes)
            .finish()
    };
    for stream in [
        outside(b"12345678901", 0),
        outside(b"1", 10),
        outside(b"1", u64::MAX),
        outside(b"", 0),
    ] {
        assert_defect(scene.apply(&stream), Defect::Content);
    }
    let hole = [number(5), number(u64::MAX)].concat();
    assert_defect(
        scene.apply(
            &Stream::new()
                .entry(0, 1, b"x", Kind::File(10))
                .frame(HOLE, &hole)
                .finish(),
        ),
        Defect::Content,
    );
    assert_defect(
        scene.apply(
            &Stream::new()
                .entry(0, 1, b"x", Kind::File(10))
                .end(11)
                .finish(),
        ),
        Defect::Content,
    );
    assert_defect(
        scene.apply(
            &Stream::new()
                .entry(0, 1, b"x", Kind::File(u64::MAX))
                .finish(),
        ),
        Defect::Field,
    );
    // Data without a file, a file without an end.
    assert_defect(
        scene.apply(&Stream::new().data(0, b"x").finish()),
        Defect::Frame { kind: DATA },
    );
    let unfinished = Stream::new()
        .entry(0, 1, b"x", Kind::File(10))
        .entry(0, 1, b"y", Kind::Fifo)
        .finish();
    assert_defect(scene.apply(&unfinished), Defect::Frame { kind: ENTRY });

    // An announced length costs no memory, and data that expand without end stop at the limits.
    let mut announced = Stream::new().bytes.clone();
    announced.extend([ENTRY, 0xff, 0xff, 0xff, 0xff]);
    assert_defect(scene.apply(&announced), Defect::FrameLength);
    let mut attributes = vec![0, 6, 0, 1, 1, b'x', 0, 0, 0, 0, 0];
    attributes.extend(number(u64::MAX));
    assert_defect(
        scene.apply(&Stream::new().frame(ENTRY, &attributes).finish()),
        Defect::Field,
    );
    let mut bomb = b"rcmtree\x01\x01".to_vec();
    let mut plain = Stream::new();
    plain.entry(0, 1, b"bomb", Kind::File(1 << 40));
    let mut encoder = zstd::Encoder::new(&mut bomb, 19).unwrap();
    std::io::Write::write_all(&mut encoder, &plain.bytes[9..]).unwrap();
    let mut chunk = Stream { bytes: Vec::new() };
    for index in 0..400 {
        chunk.bytes.clear();
        chunk.data(index << 19, &[0; 512 << 10]);
        std::io::Write::write_all(&mut encoder, &chunk.bytes).unwrap();
    }
    encoder.finish().unwrap();
    drop((plain, chunk));
    // 200 MB in a few KB; the compressor of the test does not count.
    assert!(bomb.len() < 64 << 10, "{}", bomb.len());
    peak_kib();
    let before = peak_kib();
    let result = scene.apply(&bomb);
    assert!(
        matches!(result, Err(TreeError::Limit { what: "bytes", .. })),
        "{result:?}"
    );
    let grown_kib = peak_kib().saturating_sub(before);
    assert!(grown_kib < 16 << 10, "{grown_kib} KiB");
}

#[test]
fn thousands_of_damaged_streams_do_no_harm() {
    let _alone = alone();
    let scene = Scene::new();
    let mut random = Random::new(5);
    peak_kib();
    let (mut applied, mut refused) = (0, 0);
    let before = peak_kib();
    for case in 0..6000 {
        if case % 20 == 0 {
            scene.fill();
        }
        let stream = match case % 3 {
            0 => any_stream(&mut random),
            // The digest is right, so the checks behind it have to refuse the stream.
            1 => damaged_frames(&mut random),
            _ => {
                let mut stream = any_stream(&mut random);
                for _ in 0..=random.below(4) {
                    let at = random.below(stream.len());
                    stream[at] = random.next() as u8;
                }
                stream.truncate(stream.len() - random.below(3).min(random.below(stream.len())));
                stream
            }
        };
        match scene.apply(&stream) {
            Ok(()) => applied += 1,
            Err(error) => {
                refused += 1;
                // One line, even with strange names.
                assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
    }
    eprintln!("{applied} applied, {refused} refused");
    assert!(
        applied > 300 && refused > 2000,
        "{applied} applied, {refused} refused"
    );
    let grown_kib = peak_kib().saturating_sub(before);
    assert!(grown_kib < 16 << 10, "{grown_kib} KiB");
}

const NAMES: [&[u8]; 9] = [b"a", b"b", b"c", b"d", b"e", b"f", b"..", b"\n", b"a/b"];

fn any_frames(random: &mut Random) -> Stream {
    let mut stream = Stream::new();
    let mut depth = 1;
    let mut names = [0; 8];
    for _ in 0..random.below(12) {
        // Mostly in order, mostly possible.
        let wild = random.below(15) == 0;
        let name = if wild { random.below(9) } else { names[depth] };
        names[depth] = (names[depth] + 1 + random.below(2)).min(5);
        let (how, place) = (if wild { random.below(4) as u8 } else { 0 }, NAMES[name]);
        match random.below(8) {
            0 | 1 => {
                stream.entry(
                    [0, 2][random.below(2)],
                    depth as u64,
                    place,
                    Kind::Directory,
                );
                depth = (depth + 1).min(6);
                names[depth] = 0;
            }
            2 => {
                stream.entry(how, depth as u64, place, Kind::Symlink(b"../../outside"));
            }
            3 => {
                stream.entry(how, depth as u64, place, Kind::Character(0x103));
            }
            4 => {
                let to = [&b"a"[..], b"b/e", b"b/d/precious", b"f", b"a/precious"][random.below(5)];
                stream.entry(how, depth as u64, place, Kind::Link(to));
            }
            5 => {
                stream.delete(depth as u64, place);
            }
            6 => depth = 1 + random.below(depth),
            _ => {
                let patch = u8::from(random.below(3) == 0);
                stream.entry(patch, depth as u64, place, Kind::File(100));
                stream
                    .data(random.below(60) as u64, b"evil")
                    .end(random.below(100).max(64) as u64);
            }
        }
    }
    stream
}

fn any_stream(random: &mut Random) -> Vec<u8> {
    any_frames(random).finish()
}

fn damaged_frames(random: &mut Random) -> Vec<u8> {
    let mut stream = any_frames(random);
    for _ in 0..random.below(3) {
        let at = 9 + random.below(stream.bytes.len() - 9);
        stream.bytes[at] ^= 1 << random.below(8);
    }
    stream.finish()
}

#[test]
fn damaged_inventories_do_no_harm() {
    let _alone = alone();
    let scene = Scene::new();
    let mut listed = Vec::new();
    fs::write(scene.tree().join("large"), Random::new(7).bytes(3 << 20)).unwrap();
    take_inventory(&scene.tree(), &mut listed, Compression::None).unwrap();
    let mut random = Random::new(6);
    for _ in 0..1500 {
        let mut damaged = listed[..listed.len() - 37].to_vec();
        for _ in 0..=random.below(3) {
            let at = 9 + random.below(damaged.len() - 9);
            damaged[at] ^= 1 << random.below(8);
        }
        let mut stream = Stream { bytes: damaged };
        stream.bytes = stream.finish();
        let base = match Inventory::open(&stream.bytes[..]) {
            Ok(inventory) => Base::Peer(inventory),
            Err(_) => continue,
        };
        // It may send too much or give up.
        let _ = pack(
            &scene.outside(),
            base,
            std::io::sink(),
            None::<std::io::Sink>,
            Compression::None,
        );
    }
}
