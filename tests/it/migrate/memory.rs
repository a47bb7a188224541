//! A container with much memory: all of it arrives, and rcm holds next to nothing of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::common::pair::{Pair, Receiver};
use crate::common::{Running, wait_until};

const PAGES: u64 = 1 << 18;
/// Of resident memory, at either end.
const LIMIT_KIB: u64 = 64 << 10;

/// 1 GiB of random bytes, and a digest of each page. It counts like the other containers.
const PROGRAM: &str = r#"
import hashlib, mmap, os, time
PAGE, MIB, PAGES = 4096, 1 << 20, 1 << 18
memory = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
numbers = open("/numbers", "w", buffering=1)
digest = lambda page: hashlib.blake2b(memory[page * PAGE:(page + 1) * PAGE], digest_size=16).digest()
number, digests = 0, []
while True:
    number += 1
    numbers.write(f"{number}\n")
    if len(digests) < PAGES:
        filled = len(digests) * PAGE
        memory[filled:filled + MIB] = os.urandom(MIB)
        digests += [digest(page) for page in range(len(digests), len(digests) + MIB // PAGE)]
        if len(digests) == PAGES:
            open("/full", "w").close()
    else:
        time.sleep(0.005)
        if os.path.exists("/check"):
            os.remove("/check")
            right = sum(digest(page) == digests[page] for page in range(PAGES))
            with open("/checking", "w") as verdict:
                verdict.write(f"{right} pages are right")
            os.rename("/checking", "/verdict")
"#;

/// The most that a process has had in memory since its last `execve` (`VmHWM`,
/// `proc_pid_status(5)`), in KiB. `None` after its end.
fn peak_kib(running: &Running) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", running.pid())).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn arrives_whole(id: &str, streamed: bool) {
    let pair = Pair::with(id, |bundle, _| {
        bundle.host_programs().args(["python3", "-c", PROGRAM])
    });
    let inside = |name: &str| pair.bundle.rootfs().join(name);
    wait_until("half a minute for 1 GiB, or more", || {
        pair.last() > PAGES / 256 / 2
    });
    wait_until("it is full", || inside("full").exists());
    let token = pair.source.dir().join("token");
    fs::write(&token, "a secret of this test".repeat(3)).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let token = ["--token-file", token.to_str().unwrap()];
    let store = match streamed {
        true => pair.destination.dir().join("own-store"),
        false => pair.store(),
    };
    fs::create_dir_all(&store).unwrap();
    let flags = [&["--detach"][..], &token].concat();
    let mut receiver = Receiver::start(&pair.destination, id, &store, &flags);
    let mut sender = pair.send_with(receiver.address, &token);
    let mut peaks_kib = [0; 2];
    while !sender.ends_within(Duration::from_millis(5)) {
        for (peak, running) in peaks_kib.iter_mut().zip([&sender, &receiver.running]) {
            *peak = peak_kib(running).unwrap_or(0).max(*peak);
        }
    }
    sender.wait().ok();
    assert!(receiver.running.ends_within(Duration::from_secs(30)));
    receiver.running.wait().ok();
    pair.assert_at_destination();
    fs::write(inside("check"), "").unwrap();
    wait_until("it has looked", || inside("verdict").exists());
    let verdict = fs::read_to_string(inside("verdict")).unwrap();
    assert_eq!(verdict, format!("{PAGES} pages are right"));
    assert!(
        peaks_kib.iter().all(|peak| (1..LIMIT_KIB).contains(peak)),
        "{peaks_kib:?} KiB"
    );
    println!("{peaks_kib:?} KiB");
}

#[test]
fn a_gibibyte_arrives_through_a_shared_store() {
    arrives_whole("sharedgib", false);
}

#[test]
fn a_gibibyte_arrives_over_the_network() {
    arrives_whole("streamgib", true);
}
