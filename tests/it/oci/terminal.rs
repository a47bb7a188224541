//! Terminals: a foreground run on one, and consoles that go to a socket.

use crate::common::{ConsoleSocket, Host};
use nix::sys::signal::Signal;
use serde_json::json;

#[test]
fn a_foreground_run_on_a_terminal() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .terminal()
        .script("tty; test -t 0 && test -t 1 && test -t 2 && echo all; exit 3");
    let (code, text) = host.cmd("run").bundle(&bundle).on_terminal().wait();
    assert_eq!(code, 3, "{text}");
    assert_eq!(text, "/dev/pts/0\r\nall\r\n");
    assert_eq!(host.remains(), Vec::<String>::new());
}

#[test]
fn what_is_typed_arrives_raw_and_the_terminal_recovers() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .terminal()
        .script("stty -echo; echo ready; read line; echo \"<$line>\"; read line || echo end");
    let mut session = host.cmd("run").bundle(&bundle).on_terminal();
    let before = session.terminal.settings();
    session.terminal.expect("ready\r\n");
    assert_ne!(session.terminal.settings(), before, "it is in raw mode");
    session.terminal.send("a line\r");
    session.terminal.expect("<a line>\r\n");
    session.terminal.send("\u{4}");
    session.terminal.expect("end\r\n");
    let (code, terminal) = session.finish();
    assert_eq!(code, 0);
    assert_eq!(terminal.settings(), before, "it is as it was");
    assert_eq!(
        terminal.transcript().matches("a line").count(),
        1,
        "no echo"
    );
}

#[test]
fn control_c_is_the_containers() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .terminal()
        .script("trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.01; done");
    let mut session = host.cmd("run").bundle(&bundle).on_terminal();
    session.terminal.expect("ready");
    session.terminal.send("\u{3}");
    let (code, text) = session.wait();
    assert_eq!(code, 5, "{text:?}");
    assert!(text.contains("interrupted"), "{text:?}");
}

#[test]
fn the_size_is_passed_on_and_followed() {
    let host = Host::new();
    let bundle = host.bundle("web").terminal().script(
        "trap 'echo now $(stty size)' WINCH; echo first $(stty size); while :; do sleep 0.01; done",
    );
    let mut session = host.cmd("run").bundle(&bundle).on_terminal();
    session.terminal.expect("first 24 80\r\n");
    session.terminal.resize(50, 132);
    session.terminal.expect("now 50 132\r\n");
    session.signal(Signal::SIGKILL);
    assert_eq!(session.wait().0, 137);
    host.delete("web");
}

#[test]
fn a_hang_up_ends_the_container() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .terminal()
        .script("trap 'exit 4' HUP; echo ready; while :; do sleep 0.01; done");
    let mut session = host.cmd("run").bundle(&bundle).on_terminal();
    session.terminal.expect("ready");
    session.signal(Signal::SIGHUP);
    assert_eq!(session.wait().0, 4);
    assert_eq!(host.remains(), Vec::<String>::new());
}

#[test]
fn much_output_is_complete() {
    let host = Host::new();
    let bundle = host.bundle("web").terminal().script("seq 1 20000");
    let (code, text) = host.cmd("run").bundle(&bundle).on_terminal().wait();
    assert_eq!(code, 0);
    assert_eq!(text.lines().count(), 20_000);
    for (number, line) in (1..).zip(text.lines()) {
        assert_eq!(line, number.to_string());
    }
}

#[test]
fn a_container_with_a_terminal_and_rcm_without() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .terminal()
        .script("stty -echo; echo ready; cat; exit 2");
    // The end of input reaches the container as the end-of-file character.
    let output = host
        .cmd("run")
        .bundle(&bundle)
        .stdin("through a pipe\n")
        .run()
        .exits_with(2);
    assert!(output.stdout().contains("ready\n"), "{output:?}");
    assert!(output.stdout().contains("through a pipe\n"), "{output:?}");
    // Without a terminal at the other end nothing would undo the translation of newlines.
    assert!(!output.stdout().contains('\r'), "{output:?}");
}

#[test]
fn the_console_goes_to_the_socket() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .terminal()
        .set("/process/consoleSize", json!({"height": 33, "width": 99}))
        .script("stty size; read line; echo \"got $line\"; exec sleep 1000");
    let socket = ConsoleSocket::listen(&host.dir().join("console.sock"));
    host.cmd("create")
        .arg("--console-socket")
        .arg(socket.path())
        .bundle(&bundle)
        .run()
        .ok();
    let mut terminal = socket.terminal();
    host.start("web");
    terminal.expect("33 99\r\n");
    terminal.send("it\n");
    terminal.expect("got it\r\n");

    let bundle = host
        .bundle("other")
        .terminal()
        .script("echo detached; exec sleep 1000");
    host.cmd("run")
        .arg("--detach")
        .arg("--console-socket")
        .arg(socket.path())
        .bundle(&bundle)
        .run()
        .ok();
    socket.terminal().expect("detached\r\n");
}

#[test]
fn the_terminal_belongs_to_the_user_of_the_process() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .terminal()
        .user(1000, 1000)
        .script("stat -c %u $(tty); ls -l /dev/console | cut -c1; echo x > $(tty)");
    let (code, text) = host.cmd("run").bundle(&bundle).on_terminal().wait();
    assert_eq!(code, 0, "{text:?}");
    assert_eq!(text, "1000\r\nc\r\nx\r\n");
}

#[test]
fn a_terminal_in_a_user_namespace() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .terminal()
        .user_namespace(200_000)
        .script("tty; id -u");
    let (code, text) = host.cmd("run").bundle(&bundle).on_terminal().wait();
    assert_eq!(code, 0, "{text:?}");
    assert_eq!(text, "/dev/pts/0\r\n0\r\n");
}
