use super::*;

fn pair() -> (Channel, Channel) {
    let (one, two) = std::os::unix::net::UnixStream::pair().unwrap();
    one.set_nonblocking(true).unwrap();
    two.set_nonblocking(true).unwrap();
    (
        Channel::new(Box::new(one), "one".into()),
        Channel::new(Box::new(two), "two".into()),
    )
}

#[test]
fn an_abort_arrives_as_an_error_on_one_line() {
    let (mut one, mut two) = pair();
    one.abort("disk full\x1b[2J\nreally");
    let error = two
        .receive(&[Kind::Ready], Patience::within(Duration::from_secs(5)))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "two ended the migration: disk full [2J really"
    );
}

#[test]
fn a_silent_peer_is_late() {
    let (_one, mut two) = pair();
    let began = Instant::now();
    let error = two
        .receive(&[Kind::Ready], Patience::within(Duration::from_millis(30)))
        .unwrap_err();
    assert!(matches!(error, TransportError::Late { .. }), "{error:?}");
    assert!(began.elapsed() >= Duration::from_millis(30));
}

#[test]
fn a_closed_connection_is_told_from_a_broken_message() {
    let (one, mut two) = pair();
    drop(one);
    let error = two
        .receive(&[Kind::Ready], Patience::default())
        .unwrap_err();
    assert!(matches!(error, TransportError::Closed { .. }), "{error:?}");

    let (mut one, mut two) = pair();
    one.write_all(&[0, 7, 0], Patience::default()).unwrap();
    drop(one);
    let error = two
        .receive(&[Kind::Ready], Patience::default())
        .unwrap_err();
    assert!(
        matches!(
            error,
            TransportError::Invalid {
                source: CodecError::Truncated,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn a_message_larger_than_the_socket_buffer_waits_for_the_reader() {
    let (mut one, mut two) = pair();
    let reason = "x".repeat(Kind::Abort.cap_bytes() as usize - 100);
    let message = Message::Abort(Abort { reason });
    let copies = 20;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..copies {
                one.send(&message, Patience::within(Duration::from_secs(10)))
                    .unwrap();
            }
        });
        for _ in 0..copies {
            let received = two.receive(&[Kind::Abort], Patience::within(Duration::from_secs(10)));
            assert_eq!(received.unwrap(), message);
        }
    });
}
