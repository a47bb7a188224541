use super::*;
use std::os::unix::net::UnixStream;

fn pair(client: &Trust, server: &Trust) -> (TlsStream, TlsStream) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    (
        TlsStream::client(Box::new(near), client, "192.0.2.1").unwrap(),
        TlsStream::server(Box::new(far), server).unwrap(),
    )
}

fn shake(one: &mut TlsStream, two: &mut TlsStream) -> io::Result<()> {
    loop {
        let blocks = |done: io::Result<()>| match done {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
            done => done.map(|()| false),
        };
        if !(blocks(one.handshake())? | blocks(two.handshake())?) {
            return Ok(());
        }
    }
}

#[test]
fn both_ends_export_the_same_and_no_other_session_does() {
    let (source, destination) = (Trust::fresh().unwrap(), Trust::fresh().unwrap());
    let (mut one, mut two) = pair(&source, &destination);
    assert!(one.binding().is_err(), "nothing is known yet");
    shake(&mut one, &mut two).unwrap();
    let binding = one.binding().unwrap();
    assert_eq!(binding, two.binding().unwrap());
    assert_eq!(binding.source, source.fingerprint());
    assert_eq!(binding.destination, destination.fingerprint());

    let (mut one, mut two) = pair(&source, &destination);
    shake(&mut one, &mut two).unwrap();
    assert_ne!(one.binding().unwrap().exported, binding.exported);
}

#[test]
fn nothing_is_readable_on_the_wire_and_a_changed_byte_ends_the_session() {
    let (near, near_wire) = UnixStream::pair().unwrap();
    let (far, far_wire) = UnixStream::pair().unwrap();
    for socket in [&near, &near_wire, &far, &far_wire] {
        socket.set_nonblocking(true).unwrap();
    }
    let carry = |mut from: &UnixStream, mut to: &UnixStream, change: bool| {
        let mut bytes = vec![0; 64 << 10];
        let Ok(read_bytes) = from.read(&mut bytes) else {
            return Vec::new();
        };
        bytes.truncate(read_bytes);
        if change && let Some(last) = bytes.last_mut() {
            *last ^= 1;
        }
        to.write_all(&bytes).unwrap();
        bytes
    };
    let trust = Trust::fresh().unwrap();
    let mut one = TlsStream::client(Box::new(near), &trust, "host").unwrap();
    let mut two = TlsStream::server(Box::new(far), &trust).unwrap();
    while one.handshake().is_err() | two.handshake().is_err() {
        carry(&near_wire, &far_wire, false);
        carry(&far_wire, &near_wire, false);
    }
    let commit = b"the container is yours";
    one.write_all(commit).unwrap();
    let seen = carry(&near_wire, &far_wire, false);
    assert!(!seen.windows(commit.len()).any(|window| window == commit));
    let mut read = [0; 64];
    assert_eq!(two.read(&mut read).unwrap(), commit.len());
    assert_eq!(&read[..commit.len()], commit);

    one.write_all(commit).unwrap();
    carry(&near_wire, &far_wire, true);
    let error = two.read(&mut read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
}

#[test]
fn a_full_socket_blocks_the_writer_and_loses_nothing() {
    let trust = Trust::fresh().unwrap();
    let (mut one, mut two) = pair(&trust, &trust);
    shake(&mut one, &mut two).unwrap();
    let sent: Vec<u8> = (0..4_000_000_u32).map(|i| (i % 251) as u8).collect();
    let (mut written_bytes, mut received) = (0, Vec::new());
    let mut blocked = 0;
    while received.len() < sent.len() {
        match one.write(&sent[written_bytes..]) {
            Ok(more_bytes) => written_bytes += more_bytes,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                blocked += 1;
                let mut chunk = [0; 10_000];
                while let Ok(read_bytes) = two.read(&mut chunk) {
                    received.extend_from_slice(&chunk[..read_bytes]);
                }
            }
        }
        if written_bytes == sent.len() {
            let _ = one.flush();
            let mut chunk = [0; 10_000];
            while let Ok(read_bytes) = two.read(&mut chunk) {
                received.extend_from_slice(&chunk[..read_bytes]);
            }
        }
    }
    assert!(blocked > 0);
    assert!(received == sent);
}

#[test]
fn the_end_of_the_connection_is_the_end_of_the_stream() {
    let trust = Trust::fresh().unwrap();
    let (mut one, mut two) = pair(&trust, &trust);
    shake(&mut one, &mut two).unwrap();
    drop(one);
    assert_eq!(two.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn names_and_addresses_of_hosts() {
    for good in [
        "node2",
        "node2.example",
        "192.0.2.1",
        "2001:db8::1",
        "fe80::1%eth0",
    ] {
        assert!(server_name(good).is_ok(), "{good}");
    }
    assert!(server_name("no name").is_err());
}
