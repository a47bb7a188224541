//! A thousand foreground runs in a row, half of them on a terminal: none hangs, and every exit
//! status is right.
//!
//! A runtime that waits for SIGCHLD loses now and then the one of a process that ends before it
//! listens, and then waits for ever. One that stops reading the terminal when the process ends
//! loses output. Both need many runs to show.

use std::time::Duration;

use crate::common::{Bundle, Host};

const RUNS: usize = 500;
/// How long a single run may take; a trivial container takes some hundredths of that even on a
/// loaded machine.
const RUN_LIMIT_DUR: Duration = Duration::from_secs(20);

/// The ways to end, with the exit status that stands for each.
fn endings(host: &Host, terminal: bool) -> Vec<(Bundle, i32)> {
    let make = |id: &str| {
        let bundle = host.bundle(id);
        if terminal { bundle.terminal() } else { bundle }
    };
    vec![
        (make("true").args(["/bin/true"]), 0),
        (make("false").args(["/bin/false"]), 1),
        (make("true-again").args(["/bin/true"]), 0),
        (make("status").script("exit 42"), 42),
        (make("echo").script("echo output"), 0),
        // Outside of a pid namespace of its own a process can kill itself.
        (
            make("signal")
                .without_namespace("pid")
                .script("kill -KILL $$"),
            137,
        ),
    ]
}

#[test]
fn five_hundred_runs_without_a_terminal() {
    let host = Host::new();
    let endings = endings(&host, false);
    for round in 0..RUNS {
        let (bundle, code) = &endings[round % endings.len()];
        let output = host
            .cmd("run")
            .bundle(bundle)
            .limit(RUN_LIMIT_DUR)
            .run()
            .exits_with(*code);
        let expected = if bundle.id() == "echo" {
            "output\n"
        } else {
            ""
        };
        assert_eq!(output.stdout(), expected, "run {round}: {output:?}");
        assert_eq!(output.stderr(), "", "run {round}: {output:?}");
    }
    assert_eq!(host.remains(), Vec::<String>::new());
}

#[test]
fn five_hundred_runs_on_a_terminal() {
    let host = Host::new();
    let endings = endings(&host, true);
    for round in 0..RUNS {
        let (bundle, code) = &endings[round % endings.len()];
        let (ended, text) = host
            .cmd("run")
            .bundle(bundle)
            .limit(RUN_LIMIT_DUR)
            .on_terminal()
            .wait();
        assert_eq!(ended, *code, "run {round} of {}: {text:?}", bundle.id());
        let expected = if bundle.id() == "echo" {
            "output\r\n"
        } else {
            ""
        };
        assert_eq!(text, expected, "run {round} of {}", bundle.id());
    }
    assert_eq!(host.remains(), Vec::<String>::new());
}
