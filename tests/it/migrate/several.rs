//! Several migrations at once.

use std::fs;

use crate::common::pair::{COUNTER, Receiver, send};
use crate::common::{Bundle, Host, wait_until};

fn numbers(bundle: &Bundle) -> Vec<u64> {
    let text = fs::read_to_string(bundle.rootfs().join("numbers")).unwrap_or_default();
    // The last line may be half written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| line.parse().unwrap()).collect()
}

fn counts(bundle: &Bundle) {
    let before = numbers(bundle).len();
    wait_until("it counts", || numbers(bundle).len() > before + 3);
    let numbers = numbers(bundle);
    let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
    assert_eq!(numbers, expected, "{}", bundle.id());
}

/// Between the same two hosts, through one store, in both directions.
#[test]
fn migrations_in_both_directions_do_not_disturb_each_other() {
    let (one, other) = (Host::new(), Host::new());
    let store = one.dir().join("store");
    fs::create_dir(&store).unwrap();
    let ways = [
        ("there1", &one, &other),
        ("there2", &one, &other),
        ("back1", &other, &one),
        ("back2", &other, &one),
    ];
    let bundles = ways.map(|(id, from, _)| {
        let bundle = from.bundle(id).script(COUNTER);
        from.run_detached(&bundle);
        bundle
    });
    bundles.iter().for_each(counts);
    let receivers = ways.map(|(id, _, to)| Receiver::start(to, id, &store, &["--detach"]));
    let mut senders = Vec::new();
    for ((id, from, _), receiver) in ways.into_iter().zip(&receivers) {
        senders.push(send(from, id, &store, receiver.address, &[]));
    }
    for sender in senders {
        sender.wait().ok();
    }
    for receiver in receivers {
        receiver.running.wait().ok();
    }
    for (id, from, to) in ways {
        assert_eq!(from.status(id), "gone");
        assert_eq!(to.status(id), "running");
    }
    bundles.iter().for_each(counts);
    assert_eq!(fs::read_dir(&store).unwrap().count(), 0, "in the store");
}
