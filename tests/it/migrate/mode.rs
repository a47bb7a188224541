//! How memory is copied, on kernels with and without tracking of changed memory. The lab
//! (docs/lab.md) has one with it.

use rcm::criu::Criu;

use crate::common::pair::Pair;

fn kernel_tracks_memory() -> bool {
    let criu = Criu::find(None).unwrap();
    criu.features().unwrap().memory_tracking
}

#[test]
fn auto_uses_pre_copy_or_says_why_not() {
    let pair = Pair::new("auto");
    let receiver = pair.receiver(&["--detach"]);
    let output = pair.send_to(receiver.address).wait().ok();
    receiver.running.wait().ok();
    pair.assert_at_destination();
    let stderr = output.stderr();
    let tracks = kernel_tracks_memory();
    assert_eq!(stderr.contains("round 0"), tracks, "{stderr}");
    assert_eq!(
        stderr.contains("this kernel does not track changed memory"),
        !tracks,
        "{stderr}"
    );
}

#[test]
fn stop_and_copy_has_no_rounds_and_nothing_to_explain() {
    let pair = Pair::new("stop-and-copy");
    let receiver = pair.receiver(&["--detach"]);
    let sender = pair.send_with(receiver.address, &["--mode", "stop-and-copy"]);
    let output = sender.wait().ok();
    receiver.running.wait().ok();
    pair.assert_at_destination();
    let stderr = output.stderr();
    assert!(!stderr.contains("round "), "{stderr}");
    assert!(!stderr.contains("track changed memory"), "{stderr}");
}

#[test]
fn pre_copy_where_it_is_not_possible_is_refused_before_anything_is_done() {
    let pair = Pair::new("pre-copy");
    let receiver = pair.receiver(&["--detach"]);
    let output = pair
        .send_with(
            receiver.address,
            &["--mode", "pre-copy", "--max-rounds", "2"],
        )
        .wait();
    if kernel_tracks_memory() {
        let stderr = output.ok().stderr();
        assert!(stderr.contains("freezing after"), "{stderr}");
        receiver.running.wait().ok();
        pair.assert_at_destination();
    } else {
        let stderr = output.exits_with(1).stderr();
        assert!(stderr.contains("CONFIG_MEM_SOFT_DIRTY"), "{stderr}");
        // No source has reached the receiver, so it accepts the next one.
        pair.send_to(receiver.address).wait().ok();
        receiver.running.wait().ok();
        pair.assert_at_destination();
    }
}
