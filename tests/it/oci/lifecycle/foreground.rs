//! Runs in the foreground: the exit status and the signals are those of the process.

use crate::common::{Host, wait_until};
use nix::sys::signal::Signal;

#[test]
fn a_foreground_run_ends_as_its_process() {
    let host = Host::new();
    for code in [0, 1, 42, 255] {
        let bundle = host.bundle("web").script(&format!("exit {code}"));
        let output = host.run(&bundle).exits_with(code);
        assert_eq!(output.stderr(), "");
        assert_eq!(host.status("web"), "gone");
        assert_eq!(host.remains(), Vec::<String>::new());
    }
}

#[test]
fn death_by_a_signal_is_128_and_its_number() {
    let host = Host::new();
    for (signal, code) in [("KILL", 137), ("TERM", 143), ("34", 162)] {
        // Without a pid namespace nothing shields the first process.
        let bundle = host
            .bundle("web")
            .without_namespace("pid")
            .script(&format!("kill -{signal} $$; sleep 1000"));
        host.run(&bundle).exits_with(code);
        assert_eq!(host.status("web"), "gone");
    }
}

#[test]
fn signals_are_forwarded_to_the_process() {
    let host = Host::new();
    let bundle = host.bundle("web").script(
        "trap 'echo usr1' USR1; trap 'echo hup' HUP; trap 'echo term; exit 9' TERM; echo ready; \
         while :; do sleep 0.01; done",
    );
    let running = host.cmd("run").bundle(&bundle).spawn();
    wait_until("the handlers are set", || {
        running.stdout().contains("ready")
    });
    for (signal, word) in [(Signal::SIGUSR1, "usr1"), (Signal::SIGHUP, "hup")] {
        running.signal(signal);
        wait_until(word, || running.stdout().contains(word));
    }
    running.signal(Signal::SIGTERM);
    let output = running.wait().exits_with(9);
    assert_eq!(output.stdout(), "ready\nusr1\nhup\nterm\n");
    assert_eq!(host.remains(), Vec::<String>::new());
}

#[test]
fn a_foreground_run_ends_with_its_process_and_takes_the_rest_along() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .without_namespace("pid")
        .script("sleep 1000 & exit 5");
    host.run(&bundle).exits_with(5);
    assert_eq!(host.remains(), Vec::<String>::new());
}
