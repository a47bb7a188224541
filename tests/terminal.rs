//! Terminals: a foreground run on one, and consoles that go to a socket.

mod common;

use common::Host;

#[test]
fn a_foreground_run_on_a_terminal() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .terminal()
        .script("tty; echo hello; exit 3");
    let (code, text) = host.cmd("run").bundle(&bundle).on_terminal().wait();
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("/dev/pts/0\r\nhello\r\n"), "{text:?}");
}
