use super::*;
use crate::migrate::wire::id::MigrationId;
use crate::migrate::wire::payload::{Abort, Answer, Commit, Ready};
use crate::migrate::wire::protocol::VERSIONS;
use crate::migrate::wire::state::Verdict;

fn abort(reason: &str) -> Message {
    Message::Abort(Abort {
        reason: reason.into(),
    })
}

/// Feeds `bytes` as a peer would send them, `step` at a time, never more than wanted.
fn decode_all(bytes: &[u8], step: usize, expected: &[Kind]) -> Result<Vec<Message>> {
    let mut decoder = Decoder::default();
    let mut messages = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let wanted_bytes = decoder.wanted_bytes(expected)?.min(step).min(rest.len());
        let (now, later) = rest.split_at(wanted_bytes);
        decoder.push(now);
        rest = later;
        messages.extend(decoder.take(expected)?);
    }
    if decoder.is_between_frames() {
        Ok(messages)
    } else {
        Err(CodecError::Truncated)
    }
}

#[test]
fn messages_come_back_whatever_the_packets() {
    let migration = MigrationId::new([3; 16]);
    let messages = [
        abort("disk full"),
        Message::Commit(Commit { migration }),
        Message::Ready(Ready {
            verify_us: 1,
            restore_us: u64::MAX,
        }),
        Message::Answer(Answer {
            migration,
            verdict: Verdict::RolledBack,
        }),
    ];
    let bytes: Vec<u8> = messages.iter().flat_map(|m| encode(m).unwrap()).collect();
    for step in [1, 2, 3, 7, 4096] {
        assert_eq!(decode_all(&bytes, step, &Kind::ALL).unwrap(), messages);
    }
}

#[test]
fn newest_common_version_wins() {
    assert_eq!(choose_version(&[1, 2, 3], &[2, 1, 7]).unwrap(), 2);
    assert_eq!(choose_version(&[3, 1], &[1, 3]).unwrap(), 3);
    let bytes = encode_opening(&[2, 9]);
    assert_eq!(decode_opening(&bytes).unwrap(), Some((vec![2, 9], 13)));
    for end in 0..bytes.len() {
        assert_eq!(decode_opening(&bytes[..end]).unwrap(), None);
    }
}

#[test]
fn no_common_version() {
    assert!(matches!(
        choose_version(VERSIONS, &[0xffff]),
        Err(CodecError::NoCommonVersion { .. })
    ));
}

#[test]
fn bad_magic() {
    assert!(matches!(
        decode_opening(b"GET / HTTP/1.1\r\n"),
        Err(CodecError::BadMagic)
    ));
    // An error with the first wrong byte: rcm does not wait for more from a stranger.
    assert!(matches!(decode_opening(b"S"), Err(CodecError::BadMagic)));
}

#[test]
fn version_count_out_of_range() {
    for count in [0, 17, 255] {
        let mut bytes = MAGIC.to_vec();
        bytes.push(count);
        assert!(matches!(
            decode_opening(&bytes),
            Err(CodecError::VersionCount { count: found }) if found == count
        ));
    }
}

#[test]
fn unknown_kind() {
    let mut bytes = encode(&abort("x")).unwrap();
    bytes[0] = 0x7f;
    assert!(matches!(
        decode_all(&bytes, 64, &Kind::ALL),
        Err(CodecError::UnknownKind { number: 0x7f0b })
    ));
}

#[test]
fn kind_out_of_phase() {
    let bytes = encode(&abort("x")).unwrap();
    assert!(matches!(
        decode_all(&bytes, 64, &[Kind::Proof]),
        Err(CodecError::UnexpectedKind {
            kind: Kind::Abort,
            ..
        })
    ));
}

#[test]
fn unknown_critical_flag() {
    let mut bytes = encode(&abort("x")).unwrap();
    bytes[3] = 1;
    assert!(matches!(
        decode_all(&bytes, 64, &Kind::ALL),
        Err(CodecError::UnknownFlags { .. })
    ));
    bytes[3] = 0;
    bytes[2] = 1;
    assert_eq!(decode_all(&bytes, 64, &Kind::ALL).unwrap(), [abort("x")]);
}

#[test]
fn over_cap() {
    let header = Header {
        kind: Kind::Proof,
        flags: 0,
        length_bytes: Kind::Proof.cap_bytes() + 1,
    };
    assert!(matches!(
        decode_all(&header.encode(), 64, &Kind::ALL),
        Err(CodecError::OverCap {
            kind: Kind::Proof,
            ..
        })
    ));
    let long = abort(&"x".repeat(Kind::Abort.cap_bytes() as usize));
    assert!(matches!(encode(&long), Err(CodecError::TooLong { .. })));
}

#[test]
fn truncated() {
    let bytes = encode(&abort("link cut")).unwrap();
    for end in 1..bytes.len() {
        assert!(
            matches!(
                decode_all(&bytes[..end], 5, &Kind::ALL),
                Err(CodecError::Truncated)
            ),
            "{end}"
        );
    }
}

#[test]
fn trailing_garbage() {
    let mut bytes = encode(&abort("x")).unwrap();
    bytes.push(b' ');
    bytes.push(b'}');
    bytes[7] += 2;
    assert!(matches!(
        decode_all(&bytes, 64, &Kind::ALL),
        Err(CodecError::Payload {
            kind: Kind::Abort,
            ..
        })
    ));
}

/// xorshift64*: the same inputs in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Random bytes and damaged frames: never a panic, never more in memory than the caps allow.
#[test]
fn ten_thousand_hostile_inputs() {
    let mut random = Random(0x5eed);
    let valid: Vec<Vec<u8>> = [
        abort("some reason"),
        Message::Commit(Commit {
            migration: MigrationId::new([9; 16]),
        }),
        Message::Ready(Ready {
            verify_us: 5,
            restore_us: 6,
        }),
    ]
    .iter()
    .map(|message| encode(message).unwrap())
    .collect();
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..10_000 {
        let expected = match random.below(3) {
            0 => &Kind::ALL[..],
            1 => &Kind::ALL[..3],
            _ => &Kind::ALL[8..],
        };
        let cap_bytes = expected.iter().map(|kind| kind.cap_bytes()).max().unwrap() as usize;
        let mut bytes = match random.below(2) {
            0 => (0..random.below(200))
                .map(|_| random.next() as u8)
                .collect(),
            _ => valid[random.below(valid.len())].repeat(1 + random.below(3)),
        };
        for _ in 0..random.below(4) {
            if !bytes.is_empty() {
                let place = random.below(bytes.len());
                bytes[place] = random.next() as u8;
            }
        }
        bytes.truncate(random.below(bytes.len() + 1).max(bytes.len() / 2));
        let _ = decode_opening(&bytes);
        let mut decoder = Decoder::default();
        let mut rest = &bytes[..];
        let outcome = loop {
            match decoder.wanted_bytes(expected) {
                Err(error) => break Err(error),
                Ok(_) if rest.is_empty() => break Ok(()),
                Ok(wanted_bytes) => {
                    assert!(wanted_bytes <= HEADER_BYTES + cap_bytes);
                    let step = wanted_bytes.min(rest.len()).min(1 + random.below(64));
                    decoder.push(&rest[..step]);
                    rest = &rest[step..];
                }
            }
            assert!(decoder.held_bytes() <= HEADER_BYTES + cap_bytes);
            if let Err(error) = decoder.take(expected) {
                break Err(error);
            }
        };
        match outcome {
            Ok(()) => accepted += 1,
            Err(_) => refused += 1,
        }
    }
    // Both outcomes occurred, or the inputs test nothing.
    assert!(accepted > 500, "{accepted}");
    assert!(refused > 500, "{refused}");
}
