//! Programs that are hard to dump: threads, sockets, much memory, new processes all the time.

use std::fs;
use std::time::Duration;

use super::{assert_counts, checkpoint, counter, images, restore_detached};
use crate::common::{Host, wait_until};

#[test]
fn a_python_process_with_threads() {
    let host = Host::new();
    let script = "\
import os, threading, time
numbers = [0] * 4
def count(index):
    while True:
        numbers[index] += 1
        time.sleep(0.005)
for index in range(4):
    threading.Thread(target=count, args=(index,), daemon=True).start()
while True:
    with open('/tmp/numbers.new', 'w') as file:
        print(*numbers, file=file)
    os.rename('/tmp/numbers.new', '/tmp/numbers')
    time.sleep(0.01)
";
    let bundle = host
        .bundle("web")
        .host_programs()
        .args(["python3", "-c", script]);
    let numbers = || -> Vec<u64> {
        fs::read_to_string(bundle.rootfs().join("tmp/numbers"))
            .unwrap_or_default()
            .split_whitespace()
            .map(|number| number.parse().unwrap())
            .collect()
    };
    let all_beyond = |before: &[u64]| {
        let now = numbers();
        now.len() == 4
            && now
                .iter()
                .enumerate()
                .all(|(index, number)| *number > before.get(index).copied().unwrap_or(0))
    };
    host.run_detached(&bundle);
    wait_until("all threads count", || all_beyond(&[]));
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    let before = numbers();
    restore_detached(&host, &bundle, &images).run().ok();
    wait_until("all threads count on", || all_beyond(&before));
}

#[test]
fn redis_with_data_and_a_connected_client() {
    let host = Host::new();
    // One connection for ever: a reconnect would show as an id other than the first.
    let client = "\
import os, socket, time
redis = None
while redis is None:
    try:
        redis = socket.create_connection(('127.0.0.1', 6379))
    except OSError:
        time.sleep(0.02)
replies = redis.makefile('rb')
def ask(*words):
    redis.sendall(b'*%d\\r\\n' % len(words) + b''.join(b'$%d\\r\\n%s\\r\\n' % (len(w), w) for w in words))
    line = replies.readline()
    if line.startswith(b'$'):
        line = replies.read(int(line[1:]) + 2)
    return line.strip().lstrip(b':+').decode()
for index in range(1000):
    ask(b'SET', b'key%d' % index, b'value%d' % index)
while True:
    with open('/tmp/seen.new', 'w') as file:
        print(ask(b'INCR', b'count'), ask(b'GET', b'key999'), ask(b'CLIENT', b'ID'), file=file)
    os.rename('/tmp/seen.new', '/tmp/seen')
    time.sleep(0.01)
";
    let bundle = host.bundle("web").host_programs();
    fs::write(bundle.rootfs().join("client.py"), client).unwrap();
    let bundle = bundle.script(
        "redis-server --save '' --appendonly no --bind 127.0.0.1 --io-threads 1 > /tmp/redis.log & exec python3 /client.py",
    );
    let seen = || -> Option<(u64, String)> {
        let text = fs::read_to_string(bundle.rootfs().join("tmp/seen")).ok()?;
        let (count, rest) = text.trim().split_once(' ')?;
        Some((count.parse().ok()?, rest.to_owned()))
    };
    host.run_detached(&bundle);
    wait_until("the client is served", || {
        seen().is_some_and(|(count, _)| count > 5)
    });
    let images = images(&host, "images");

    // Without the flag the checkpoint fails with a reason, and the container runs on.
    let output = checkpoint(&host, &bundle, &images).run();
    assert_eq!(output.code(), 1);
    let message = output.stderr();
    assert!(
        message.contains("criu dump of container \\\"web\\\" failed: Error (criu/")
            && message.contains("use --tcp-established"),
        "{message}"
    );
    assert_eq!(message.lines().count(), 1, "{message}");
    let (before, _) = seen().unwrap();
    wait_until("the client is still served", || {
        seen().is_some_and(|(count, _)| count > before)
    });
    assert_eq!(host.status("web"), "running");

    checkpoint(&host, &bundle, &images)
        .arg("--tcp-established")
        .run()
        .ok();
    let (before, data) = seen().unwrap();
    restore_detached(&host, &bundle, &images)
        .arg("--tcp-established")
        .run()
        .ok();
    wait_until("the client is served on", || {
        seen().is_some_and(|(count, _)| count > before)
    });
    let (_, now) = seen().unwrap();
    assert_eq!(now, data, "other data or another connection");
    assert!(data.starts_with("value999 "), "{data}");
}

#[test]
fn half_a_gigabyte() {
    let host = Host::new();
    // Written once, then summed again and again.
    let script = "\
import hashlib, os, time
block = os.urandom(1 << 20)
memory = [bytearray(block) for _ in range(512)]
for index, one in enumerate(memory):
    one[:8] = index.to_bytes(8, 'little')
def digest():
    sum = hashlib.blake2b()
    for one in memory:
        sum.update(one)
    return sum.hexdigest()
first, rounds = digest(), 0
while True:
    rounds += 1
    with open('/tmp/rounds.new', 'w') as file:
        print(rounds, digest() == first, file=file)
    os.rename('/tmp/rounds.new', '/tmp/rounds')
    time.sleep(0.1)
";
    let bundle = host
        .bundle("web")
        .host_programs()
        .args(["python3", "-c", script]);
    let rounds = || -> Option<(u64, bool)> {
        let text = fs::read_to_string(bundle.rootfs().join("tmp/rounds")).ok()?;
        let (rounds, same) = text.trim().split_once(' ')?;
        Some((rounds.parse().ok()?, same == "True"))
    };
    host.run_detached(&bundle);
    wait_until("memory is filled", || rounds().is_some());
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images)
        .limit(Duration::from_secs(120))
        .run()
        .ok();
    let pages_bytes: u64 = fs::read_dir(&images)
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("pages-"))
        .map(|entry| entry.metadata().unwrap().len())
        .sum();
    assert!(pages_bytes > 512 << 20, "{pages_bytes}");
    let (before, _) = rounds().unwrap();
    restore_detached(&host, &bundle, &images)
        .limit(Duration::from_secs(120))
        .run()
        .ok();
    wait_until("it goes on", || {
        rounds().is_some_and(|(rounds, _)| rounds > before + 1)
    });
    assert!(rounds().unwrap().1, "its memory has changed");
}

/// A shell that calls vfork for every command is at any moment likely to wait for a child that has
/// not executed its program yet.
#[test]
fn a_container_that_starts_programs_all_the_time() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| {
        bundle
            .host_programs()
            .script("i=0; while :; do i=$((i+1)); /bin/echo $i >/number; done")
    });
    for round in 0..25 {
        let images = images(&host, &format!("images-{round}"));
        checkpoint(&host, &bundle, &images)
            .arg("--leave-running")
            .run()
            .ok();
    }
    assert_counts(&bundle);
}
