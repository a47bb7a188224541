use super::*;
use crate::migrate::link::address::Destination;
use crate::migrate::link::connect::connect;
use crate::migrate::trust::fingerprint;
use crate::migrate::trust::rendezvous::Binding;
use crate::migrate::wire::id::{Bytes32, MigrationId};
use crate::migrate::wire::payload::Proof;
use rustls::pki_types::CertificateDer;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);

/// A receiver for a thread, and the contents of its file as a source finds it in its store.
struct Receiver {
    listener: Listener,
    destination: Destination,
    acquaintance: Acquaintance,
}

fn receiver() -> Receiver {
    let trust = Trust::fresh().unwrap();
    let acquaintance = Acquaintance {
        knows_secret: true,
        receiver: MigrationId::new([7; 16]),
        secret: Bytes32([8; 32]),
        fingerprint: trust.fingerprint(),
    };
    let listener = Listener::new(
        listen(Some((Ipv4Addr::LOCALHOST, 0).into())).unwrap(),
        acquaintance,
        trust,
    );
    let destination = listener.address().unwrap().to_string().parse().unwrap();
    Receiver {
        listener,
        destination,
        acquaintance,
    }
}

fn come(destination: &Destination, found: Acquaintance) -> Result<Channel, TransportError> {
    let trust = Trust::fresh().unwrap();
    connect(
        destination,
        "web",
        &trust,
        |met| {
            assert_eq!(met.receiver, found.receiver);
            Ok(found)
        },
        Patience::within(SOON),
    )
    .map(|(channel, _)| channel)
}

fn dial(destination: &Destination) -> TcpStream {
    TcpStream::connect(destination.to_string()).unwrap()
}

impl Receiver {
    /// Admits a real source, beside any other connection.
    fn admits_a_source(&mut self) {
        std::thread::scope(|scope| {
            let source = scope.spawn(|| come(&self.destination, self.acquaintance));
            self.listener.admit(Patience::within(SOON)).unwrap();
            source.join().unwrap().unwrap();
        });
    }

    /// Refuses all connections for a while; `address` is where the source connects. Returns the
    /// source's error.
    fn turns_away(&mut self, address: &Destination, found: Acquaintance) -> TransportError {
        std::thread::scope(|scope| {
            let stranger = scope.spawn(|| come(address, found));
            let error = self
                .listener
                .admit(Patience::within(Duration::from_millis(500)))
                .unwrap_err();
            assert!(matches!(error, TransportError::Late { .. }), "{error:?}");
            stranger.join().unwrap().unwrap_err()
        })
    }
}

#[test]
fn who_knows_the_secret_comes_in() {
    receiver().admits_a_source();
}

#[test]
fn who_does_not_stays_out_and_disturbs_nobody() {
    let mut receiver = receiver();
    let address = receiver.destination.clone();
    let found = Acquaintance {
        knows_secret: true,
        secret: Bytes32([9; 32]),
        ..receiver.acquaintance
    };
    let error = receiver.turns_away(&address, found);
    assert!(matches!(error, TransportError::Closed { .. }), "{error:?}");
    receiver.admits_a_source();
}

#[test]
fn a_receiver_that_does_not_know_the_secret_gets_no_source() {
    let mut receiver = receiver();
    receiver.listener.acquaintance.secret = Bytes32([0; 32]);
    let (address, found) = (receiver.destination.clone(), receiver.acquaintance);
    receiver.turns_away(&address, found);
}

#[test]
fn a_receiver_with_another_certificate_is_told_nothing() {
    let mut receiver = receiver();
    let address = receiver.destination.clone();
    let found = Acquaintance {
        knows_secret: true,
        fingerprint: Trust::fresh().unwrap().fingerprint(),
        ..receiver.acquaintance
    };
    let error = receiver.turns_away(&address, found);
    let TransportError::Stranger { source, .. } = error else {
        panic!("{error:?}")
    };
    assert!(matches!(source, RendezvousError::WrongCertificate));
}

/// Forwards between two nonblocking streams until one of them ends.
fn pump(one: &mut TlsStream, two: &mut TlsStream, seen: &AtomicUsize) {
    let mut buffer = [0; 4096];
    let until = Instant::now() + SOON;
    while Instant::now() < until {
        for back in [false, true] {
            let (from, to) = match back {
                false => (&mut *one, &mut *two),
                true => (&mut *two, &mut *one),
            };
            match from.read(&mut buffer) {
                Ok(0) => return,
                Ok(read_bytes) => {
                    seen.fetch_add(read_bytes, Ordering::Relaxed);
                    if to.write_all(&buffer[..read_bytes]).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn finish_handshake(stream: &mut TlsStream) {
    let until = Instant::now() + SOON;
    while let Err(error) = stream.handshake() {
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
        assert!(Instant::now() < until, "the handshake does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// An attacker between the ends, with a session to each, who relays their messages.
fn man_in_the_middle(trust: Trust, target: SocketAddr) -> (Destination, &'static AtomicUsize) {
    let seen: &AtomicUsize = Box::leak(Box::default());
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap().to_string().parse().unwrap();
    std::thread::spawn(move || {
        let (near, _) = socket.accept().unwrap();
        prepare(&near).unwrap();
        let mut near = TlsStream::server(Box::new(near), &trust).unwrap();
        finish_handshake(&mut near);
        let far = TcpStream::connect(target).unwrap();
        prepare(&far).unwrap();
        let mut far = TlsStream::client(Box::new(far), &trust, "relay").unwrap();
        finish_handshake(&mut far);
        pump(&mut near, &mut far, seen);
    });
    (address, seen)
}

#[test]
fn a_relay_between_two_sessions_is_noticed_before_the_proof() {
    let mut receiver = receiver();
    let target = receiver.listener.address().unwrap();
    let (address, seen) = man_in_the_middle(Trust::fresh().unwrap(), target);
    let found = receiver.acquaintance;
    let error = receiver.turns_away(&address, found);
    let TransportError::Stranger { source, .. } = error else {
        panic!("{error:?}")
    };
    assert!(matches!(source, RendezvousError::WrongCertificate));
    // Both openings and the challenge were relayed, so the certificate exposed the attacker.
    assert!(seen.load(Ordering::Relaxed) > 2 * codec::encode_opening(VERSIONS).len());
    receiver.admits_a_source();
}

/// As if the certificate's key had been stolen, too: the sessions still differ.
#[test]
fn a_relay_with_the_right_certificate_gets_a_proof_that_is_worth_nothing() {
    let mut receiver = receiver();
    let target = receiver.listener.address().unwrap();
    let (address, seen) = man_in_the_middle(receiver.listener.trust.clone(), target);
    let found = receiver.acquaintance;
    let error = receiver.turns_away(&address, found);
    assert!(matches!(error, TransportError::Closed { .. }), "{error:?}");
    assert!(seen.load(Ordering::Relaxed) > 100, "the proof was relayed");
    receiver.admits_a_source();
}

#[test]
fn both_ends_must_know_the_same_token() {
    let dir = tempfile::tempdir().unwrap();
    let with_token = |token: &str| {
        let path = dir.path().join(token);
        crate::sys::file::write_atomic(&path, token.repeat(40).as_bytes(), 0o600).unwrap();
        Trust::of(&crate::migrate::trust::TrustSettings {
            token_file: Some(path),
            tls: None,
        })
        .unwrap()
    };
    let secret = Bytes32([8; 32]);
    let key = with_token("a").key(secret);
    assert_eq!(key, with_token("a").key(secret));
    let mut receiver = receiver();
    receiver.listener.acquaintance.secret = key;
    let address = receiver.destination.clone();
    for wrong in [secret, with_token("b").key(secret)] {
        let found = Acquaintance {
            knows_secret: true,
            secret: wrong,
            ..receiver.acquaintance
        };
        receiver.turns_away(&address, found);
    }
    receiver.acquaintance.secret = with_token("a").key(secret);
    receiver.admits_a_source();
}

#[test]
fn silent_and_talkative_strangers_delay_nobody() {
    let mut receiver = receiver();
    let silent: Vec<TcpStream> = (0..10).map(|_| dial(&receiver.destination)).collect();
    let mut talkative = dial(&receiver.destination);
    talkative
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let half = dial(&receiver.destination);
    (&half)
        .write_all(&codec::encode_opening(VERSIONS)[..5])
        .unwrap();
    let gone = dial(&receiver.destination);
    gone.shutdown(Shutdown::Both).unwrap();
    receiver.admits_a_source();
    drop((silent, half));
}

#[test]
fn a_full_listener_lets_the_oldest_go() {
    let mut receiver = receiver();
    let _crowd: Vec<TcpStream> = (0..MAX_PENDING + 10)
        .map(|_| dial(&receiver.destination))
        .collect();
    assert!(
        receiver
            .listener
            .admit(Patience::within(Duration::from_millis(100)))
            .is_err()
    );
    assert_eq!(receiver.listener.pending.len(), MAX_PENDING);
    receiver.admits_a_source();
}

#[test]
fn time_runs_out_for_a_guest() {
    let mut receiver = receiver();
    let mut stranger = dial(&receiver.destination);
    assert!(
        receiver
            .listener
            .admit(Patience::within(Duration::from_millis(50)))
            .is_err()
    );
    receiver.listener.pending[0].until = Instant::now();
    assert!(
        receiver
            .listener
            .admit(Patience::within(Duration::from_millis(50)))
            .is_err()
    );
    assert!(receiver.listener.pending.is_empty());
    let mut nothing = [0];
    assert_eq!(stranger.read(&mut nothing).unwrap(), 0);
}

/// A recorded proof, with everything around it, from a session that has ended.
#[test]
fn a_proof_is_worth_nothing_on_another_connection() {
    let mut receiver = receiver();
    let trust = Trust::fresh().unwrap();
    let former = Binding {
        exported: Bytes32([1; 32]),
        source: trust.fingerprint(),
        destination: receiver.acquaintance.fingerprint,
    };
    let recorded = Message::Proof(Proof {
        knows_secret: true,
        mac: receiver.acquaintance.proof(Side::Source, &former),
    });
    let replay = dial(&receiver.destination);
    prepare(&replay).unwrap();
    let mut replay = TlsStream::client(Box::new(replay), &trust, "127.0.0.1").unwrap();
    let sender = std::thread::spawn(move || {
        finish_handshake(&mut replay);
        replay.write_all(&codec::encode_opening(VERSIONS)).unwrap();
        replay
            .write_all(&codec::encode(&recorded).unwrap())
            .unwrap();
        replay
    });
    assert!(
        receiver
            .listener
            .admit(Patience::within(Duration::from_millis(300)))
            .is_err()
    );
    drop(sender.join().unwrap());
    assert!(receiver.listener.pending.is_empty());
    receiver.admits_a_source();
}

/// A ClientHello without the extension that offers TLS 1.3 (RFC 5246, 7.4.1.2).
fn tls12_hello() -> Vec<u8> {
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.push(0);
    // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, no compression.
    hello.extend([0, 2, 0xc0, 0x2b, 1, 0]);
    // supported_groups: secp256r1; signature_algorithms: ecdsa_secp256r1_sha256.
    let extensions = [0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3];
    hello.extend([0, extensions.len() as u8]);
    hello.extend(extensions);
    let mut record = vec![
        22,
        3,
        1,
        0,
        hello.len() as u8 + 4,
        1,
        0,
        0,
        hello.len() as u8,
    ];
    record.extend(hello);
    record
}

#[test]
fn tls_1_2_is_refused_and_plain_text_is_not_answered() {
    let mut receiver = receiver();
    let mut plain = codec::encode_opening(VERSIONS);
    plain.extend([0, 2, 0, 0, 0, 0, 0, 2]);
    plain.extend(b"{}");
    // A fatal alert (2): protocol_version (70).
    for (said, heard) in [(tls12_hello(), &[21, 3, 3, 0, 2, 2, 70][..]), (plain, &[])] {
        let mut client = dial(&receiver.destination);
        client.write_all(&said).unwrap();
        assert!(
            receiver
                .listener
                .admit(Patience::within(Duration::from_millis(100)))
                .is_err()
        );
        assert!(receiver.listener.pending.is_empty());
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, heard);
    }
    receiver.admits_a_source();
}

#[test]
fn a_guest_cannot_talk_for_ever() {
    let mut receiver = receiver();
    let chatter = dial(&receiver.destination);
    chatter.set_write_timeout(Some(SOON)).unwrap();
    let talking = std::thread::spawn(move || {
        // The first record of a handshake message that announces 16 MB, again and again.
        let mut record = vec![22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff];
        record.resize(5 + (1 << 14), 0);
        (0..1000).any(|_| (&chatter).write_all(&record).is_err())
    });
    assert!(
        receiver
            .listener
            .admit(Patience::within(Duration::from_millis(300)))
            .is_err()
    );
    assert!(receiver.listener.pending.is_empty());
    assert!(talking.join().unwrap(), "it was cut off");
    receiver.admits_a_source();
}

#[test]
fn a_fingerprint_is_the_sha256_of_the_certificate() {
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let found = fingerprint(&CertificateDer::from(Vec::new()));
    assert_eq!(crate::migrate::wire::id::hex(&found.0), empty);
}
