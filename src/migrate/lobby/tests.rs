use super::*;
use crate::migrate::address::Destination;
use crate::migrate::handshake::connect;
use crate::migrate::protocol::{MigrationId, Proof};
use std::io::Write;
use std::net::{Shutdown, TcpStream};

const SOON: Duration = Duration::from_secs(5);

fn acquaintance() -> Acquaintance {
    Acquaintance {
        receiver: MigrationId::new([7; 16]),
        secret: Bytes32([8; 32]),
    }
}

fn lobby() -> (Lobby, Destination) {
    let lobby = Lobby::open(Some((Ipv4Addr::LOCALHOST, 0).into()), acquaintance()).unwrap();
    let destination = lobby.address().unwrap().to_string().parse().unwrap();
    (lobby, destination)
}

fn dial(destination: &Destination) -> TcpStream {
    TcpStream::connect((destination.host.as_str(), destination.port)).unwrap()
}

/// Lets a true source in while `others` are there.
fn admits_a_source(lobby: &mut Lobby, destination: &Destination) {
    std::thread::scope(|scope| {
        let source = scope.spawn(|| {
            connect(
                destination,
                |receiver| {
                    assert_eq!(*receiver, acquaintance().receiver);
                    Ok(acquaintance().secret)
                },
                Patience::within(SOON),
            )
        });
        lobby.admit(Patience::within(SOON)).unwrap();
        source.join().unwrap().unwrap();
    });
}

#[test]
fn who_knows_the_secret_comes_in() {
    let (mut lobby, destination) = lobby();
    admits_a_source(&mut lobby, &destination);
}

#[test]
fn who_does_not_stays_out_and_disturbs_nobody() {
    let (mut lobby, destination) = lobby();
    std::thread::scope(|scope| {
        let stranger = scope.spawn(|| {
            connect(
                &destination,
                |_| Ok(Bytes32([9; 32])),
                Patience::within(SOON),
            )
        });
        let error = lobby
            .admit(Patience::within(Duration::from_millis(300)))
            .unwrap_err();
        assert!(matches!(error, TransportError::Late { .. }), "{error:?}");
        let refused = stranger.join().unwrap();
        assert!(refused.is_err(), "{refused:?}");
    });
    admits_a_source(&mut lobby, &destination);
}

#[test]
fn a_receiver_that_does_not_know_the_secret_gets_no_source() {
    let (lobby, destination) = lobby();
    let mut liar = Lobby {
        acquaintance: Acquaintance {
            secret: Bytes32([0; 32]),
            ..acquaintance()
        },
        ..lobby
    };
    std::thread::scope(|scope| {
        let source = scope.spawn(|| {
            connect(
                &destination,
                |_| Ok(acquaintance().secret),
                Patience::within(SOON),
            )
        });
        assert!(
            liar.admit(Patience::within(Duration::from_millis(300)))
                .is_err()
        );
        assert!(source.join().unwrap().is_err());
    });
}

#[test]
fn silent_and_talkative_strangers_delay_nobody() {
    let (mut lobby, destination) = lobby();
    let silent: Vec<TcpStream> = (0..10).map(|_| dial(&destination)).collect();
    let mut talkative = dial(&destination);
    talkative
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let half = dial(&destination);
    (&half)
        .write_all(&codec::encode_opening(VERSIONS)[..5])
        .unwrap();
    let gone = dial(&destination);
    gone.shutdown(Shutdown::Both).unwrap();
    admits_a_source(&mut lobby, &destination);
    drop((silent, half));
}

#[test]
fn a_full_lobby_lets_the_oldest_go() {
    let (mut lobby, destination) = lobby();
    let _crowd: Vec<TcpStream> = (0..MAX_GUESTS + 10).map(|_| dial(&destination)).collect();
    assert!(
        lobby
            .admit(Patience::within(Duration::from_millis(100)))
            .is_err()
    );
    assert_eq!(lobby.guests.len(), MAX_GUESTS);
    admits_a_source(&mut lobby, &destination);
}

#[test]
fn time_runs_out_for_a_guest() {
    let (mut lobby, destination) = lobby();
    let mut stranger = dial(&destination);
    assert!(
        lobby
            .admit(Patience::within(Duration::from_millis(50)))
            .is_err()
    );
    lobby.guests[0].until = Instant::now();
    assert!(
        lobby
            .admit(Patience::within(Duration::from_millis(50)))
            .is_err()
    );
    assert!(lobby.guests.is_empty());
    let mut nothing = [0];
    assert_eq!(stranger.read(&mut nothing).unwrap(), 0);
}

#[test]
fn a_proof_is_worth_nothing_on_another_connection() {
    let (mut lobby, destination) = lobby();
    let opening = codec::encode_opening(VERSIONS);
    let transcript = Transcript {
        source_opening: opening.clone(),
        destination_opening: opening.clone(),
        receiver: acquaintance().receiver,
        destination_nonce: Bytes32([1; 32]),
        source_nonce: Bytes32([2; 32]),
    };
    let recorded = Message::Proof(Proof {
        nonce: transcript.source_nonce,
        mac: transcript.proof(&acquaintance().secret, Side::Source),
    });
    let mut replay = dial(&destination);
    replay.write_all(&opening).unwrap();
    replay
        .write_all(&codec::encode(&recorded).unwrap())
        .unwrap();
    assert!(
        lobby
            .admit(Patience::within(Duration::from_millis(200)))
            .is_err()
    );
    admits_a_source(&mut lobby, &destination);
}
