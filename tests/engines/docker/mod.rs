//! Docker with rcm as its runtime.

mod daemon;
mod services;

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::common::{Output, skip, wait_until};
use crate::dockerd::{Docker, PROGRAMS};
use crate::engine::missing;

const MISSING: &str = "is not installed; `make deps` installs docker.io and docker-compose";

/// Counts on its standard output.
const COUNTER: &str =
    "number=0; while :; do number=$((number + 1)); echo $number; usleep 20000; done";

#[test]
fn containers_run_to_their_end() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} {MISSING}");
    }
    let docker = Docker::shared();
    let run = |flags: &[&str], command: &[&str]| {
        let flags = [&["--rm", "--network", "none"], flags].concat();
        docker.run(&flags, command)
    };
    assert_eq!(run(&[], &["echo", "hello"]).ok().stdout(), "hello\n");

    // Exit statuses, with Docker's own for programs that cannot be executed: it recognizes these by
    // the runtime's sentence.
    run(&[], &["false"]).exits_with(1);
    run(&[], &["sh", "-c", "exit 42"]).exits_with(42);
    run(&[], &["no-such-program"]).exits_with(127);
    run(&[], &["/no/such/program"]).exits_with(127);
    run(&[], &["/etc/passwd"]).exits_with(126);

    let output = docker
        .run_command(&["--rm", "--interactive", "--network", "none"], &["cat"])
        .stdin("through\n")
        .run();
    assert_eq!(output.ok().stdout(), "through\n");

    // More memory than the limit: the kernel kills it.
    let limits = ["--memory", "16m", "--memory-swap", "16m"];
    let greedy = "dd if=/dev/zero of=/dev/null bs=64M count=1";
    run(&limits, &["sh", "-c", &format!("exec {greedy}")]).exits_with(137);
    // Docker gets the event. With runc, too, it may get it too late if the container ends at that
    // moment; so this one does not.
    let flags = [&limits[..], &["--detach", "--name", "greedy"]].concat();
    let script = format!("{greedy}; exec sleep 1000");
    docker.run(&flags, &["sh", "-c", &script]).ok();
    wait_until("the event", || {
        let events = docker.client(["events", "--since", "10m", "--until", "0s"]);
        let events = events.args(["--filter", "container=greedy", "--filter", "event=oom"]);
        events.run().ok().stdout().contains("oom")
    });
    docker.client(["kill", "greedy"]).run().ok();
    docker.client(["wait", "greedy"]).run().ok();
    assert_eq!(docker.inspect("greedy", ".State.OOMKilled"), "true");
    docker.remove("greedy");
}

#[test]
fn what_docker_restricts_is_restricted() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} {MISSING}");
    }
    let docker = Docker::shared();
    let run = |flags: &[&str], command: &[&str]| -> Output {
        let flags = [&["--rm", "--network", "none"], flags].concat();
        docker.run(&flags, command)
    };
    let words = |output: Output| -> Vec<String> {
        let text = output.ok().stdout();
        text.split_whitespace().map(str::to_owned).collect()
    };
    let look = "id -u; touch /x 2>/dev/null || echo read-only; grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status";
    let found = words(run(
        &[
            "--cap-drop",
            "ALL",
            "--read-only",
            "--user",
            "1000:1000",
            "--security-opt",
            "no-new-privileges",
        ],
        &["sh", "-c", look],
    ));
    assert_eq!(
        found,
        [
            "1000",
            "read-only",
            "CapEff:",
            "0000000000000000",
            "NoNewPrivs:",
            "1",
            "Seccomp:",
            "2"
        ]
    );
    // The default seccomp profile forbids this without CAP_SYS_ADMIN; unconfined it works.
    let unshare: &[&str] = &["unshare", "-U", "echo", "made"];
    assert_ne!(run(&[], unshare).code(), 0);
    let free = ["--security-opt", "seccomp=unconfined"];
    assert_eq!(run(&free, unshare).ok().stdout(), "made\n");
    // Masked by default; a container that is privileged sees it.
    let masked: &[&str] = &["sh", "-c", "wc -c </proc/keys"];
    assert_eq!(run(&[], masked).ok().stdout().trim(), "0");
    let device: &[&str] = &[
        "sh",
        "-c",
        "[ -e /dev/loop-control ] && echo seen || echo hidden",
    ];
    assert_eq!(run(&[], device).ok().stdout(), "hidden\n");

    let found = words(run(
        &[
            "--sysctl",
            "kernel.msgmax=9999",
            "--ulimit",
            "nofile=77:88",
            "--hostname",
            "called",
            "--env",
            "NAME=value",
            "--workdir",
            "/home",
            "--shm-size",
            "3m",
            "--init",
        ],
        &[
            "sh",
            "-c",
            "cat /proc/sys/kernel/msgmax; ulimit -Sn; ulimit -Hn; hostname; echo $NAME; pwd; df -k /dev/shm | awk 'END { print $2 }'; cat /proc/1/comm",
        ],
    ));
    assert_eq!(
        found,
        [
            "9999",
            "77",
            "88",
            "called",
            "value",
            "/home",
            "3072",
            "docker-init"
        ]
    );
}

#[test]
fn terminals_come_from_the_client() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} {MISSING}");
    }
    let docker = Docker::shared();
    let flags = ["--interactive", "--tty", "--name", "typed"];
    let mut first = docker.run_command(&flags, &["sh"]).on_terminal();
    first.terminal.expect("/ # ");
    first
        .terminal
        .send("tty; until stty size; do sleep 0.1; done; exit_with() { exit $1; }\n");
    first.terminal.expect("/dev/pts/0");
    // The size of the client's terminal. The client sends it only after the container has started.
    first.terminal.expect("24 80");

    let mut second = docker
        .client(["exec", "--interactive", "--tty", "typed", "sh"])
        .on_terminal();
    second.terminal.expect("/ # ");
    second.terminal.send("tty\n");
    second.terminal.expect("/dev/pts/1");
    second.terminal.send("exit 5\n");
    let (code, transcript) = second.wait();
    assert_eq!(code, 5, "{transcript}");

    first.terminal.forget();
    first.terminal.send("exit_with 6\n");
    let (code, transcript) = first.wait();
    assert_eq!(code, 6, "{transcript}");
    docker.remove("typed");
}

#[test]
fn a_container_is_managed() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} {MISSING}");
    }
    let docker = Docker::shared();
    let script = "trap 'echo ended; exit 3' TERM; echo begun; while :; do sleep 0.1; done";
    let flags = [
        "--detach",
        "--name",
        "web",
        "--memory",
        "32m",
        "--pids-limit",
        "20",
        "--health-cmd",
        "test -e /healthy",
        "--health-interval",
        "500ms",
    ];
    docker.run(&flags, &["sh", "-c", script]).ok();
    wait_until("its output is in the log", || {
        docker.logs("web") == "begun\n"
    });

    let output = docker.exec("web", &["sh", "-c", "echo inside; touch /healthy; exit 5"]);
    assert_eq!(output.exits_with(5).stdout(), "inside\n");
    wait_until("Docker finds it healthy", || {
        docker.inspect("web", ".State.Health.Status") == "healthy"
    });
    let limit = || {
        let read = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true";
        let output = docker.exec("web", &["sh", "-c", read]);
        output.ok().stdout().trim().to_owned()
    };
    assert_eq!(limit(), (32 << 20).to_string());
    docker
        .client(["update", "--memory", "48m", "--memory-swap", "48m", "web"])
        .run()
        .ok();
    assert_eq!(limit(), (48 << 20).to_string());

    let top = docker.client(["top", "web"]).run().ok().stdout();
    assert!(top.contains("while :; do sleep 0.1; done"), "{top}");
    let format = "{{.Name}} {{.PIDs}} {{.MemUsage}}";
    let output = docker.client(["stats", "--no-stream", "--format", format, "web"]);
    let stats = output.run().ok().stdout();
    let words: Vec<&str> = stats.split_whitespace().collect();
    assert_eq!((words[0], words[4]), ("web", "48MiB"), "{stats}");
    assert!(words[1].parse::<u32>().unwrap() > 0, "{stats}");
    assert!(!words[2].starts_with("0B"), "{stats}");

    docker.client(["pause", "web"]).run().ok();
    assert_eq!(docker.inspect("web", ".State.Status"), "paused");
    docker.client(["unpause", "web"]).run().ok();
    assert_eq!(docker.inspect("web", ".State.Status"), "running");

    docker.client(["stop", "web"]).run().ok();
    assert_eq!(docker.inspect("web", ".State.ExitCode"), "3");
    assert_eq!(docker.logs("web"), "begun\nended\n");
    docker.client(["start", "web"]).run().ok();
    wait_until("it runs again", || {
        docker.logs("web") == "begun\nended\nbegun\n"
    });
    docker.client(["restart", "web"]).run().ok();
    wait_until("it was restarted", || {
        docker.logs("web") == "begun\nended\nbegun\nended\nbegun\n"
    });
    docker.client(["kill", "web"]).run().ok();
    let code = docker.client(["wait", "web"]).run().ok().stdout();
    assert_eq!(code, "137\n");
    docker.remove("web");

    // A signal of the user's choice.
    let script = "trap 'exit 9' USR1; echo begun; while :; do sleep 0.1; done";
    docker
        .run(&["--detach", "--name", "web"], &["sh", "-c", script])
        .ok();
    wait_until("it waits for the signal", || {
        docker.logs("web") == "begun\n"
    });
    docker
        .client(["kill", "--signal", "USR1", "web"])
        .run()
        .ok();
    let code = docker.client(["wait", "web"]).run().ok().stdout();
    assert_eq!(code, "9\n");
    docker.remove("web");
}

#[test]
fn files_of_the_host_and_volumes_are_mounted() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} {MISSING}");
    }
    let docker = Docker::shared();
    let shared = docker.dir().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("from-host"), "host\n").unwrap();
    let bind = format!("{}:/shared", shared.display());
    let read_only = format!("{}:/fixed:ro", shared.display());
    let flags = ["--rm", "--volume", &bind, "--volume", &read_only];
    let flags = [
        &flags[..],
        &["--volume", "kept:/kept", "--tmpfs", "/scratch:size=1m"],
    ]
    .concat();
    let script = "cat /shared/from-host; echo container >/shared/from-container; touch /fixed/x 2>/dev/null || echo fixed; \
                  echo kept >/kept/file; awk '$2 == \"/scratch\" { print $3 }' /proc/mounts";
    let output = docker.run(&flags, &["sh", "-c", script]);
    assert_eq!(output.ok().stdout(), "host\nfixed\ntmpfs\n");
    let written = fs::read_to_string(shared.join("from-container")).unwrap();
    assert_eq!(written, "container\n");
    // A volume outlives the container.
    let output = docker.run(
        &["--rm", "--volume", "kept:/again:ro"],
        &["cat", "/again/file"],
    );
    assert_eq!(output.ok().stdout(), "kept\n");
    docker.client(["volume", "rm", "kept"]).run().ok();
    // All devices of the host, which stay as they are.
    let ptmx = || {
        fs::symlink_metadata("/dev/ptmx")
            .map(|found| found.ino())
            .ok()
    };
    let before = ptmx();
    let devices = ["--rm", "--volume", "/dev:/dev"];
    let script = "echo x >/dev/null && test -c /dev/kmsg && echo found";
    let output = docker.run(&devices, &["sh", "-c", script]);
    assert_eq!(output.ok().stdout(), "found\n");
    assert_eq!(ptmx(), before);

    // Copies in and out, without a process in the container.
    docker
        .run(&["--name", "copied"], &["sh", "-c", "echo made >/made"])
        .ok();
    let path = docker.dir().join("made");
    docker.client(["cp", "copied:/made"]).arg(&path).run().ok();
    assert_eq!(fs::read_to_string(&path).unwrap(), "made\n");
    docker.remove("copied");
}

#[test]
fn checkpoints_are_made_and_started() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} {MISSING}");
    }
    let docker = Docker::shared();
    let numbers = || -> Vec<u64> {
        let text = docker.logs("counter");
        text.lines().map(|line| line.parse().unwrap()).collect()
    };
    let gapless = |numbers: &[u64]| numbers.iter().copied().eq(1..=numbers.len() as u64);
    let counts_on = || {
        let before = numbers().len();
        wait_until("it counts", || numbers().len() > before + 3);
        assert!(gapless(&numbers()), "{:?}", numbers());
    };
    let flags = [
        "--detach",
        "--name",
        "counter",
        "--publish",
        "127.0.0.1:18081:80",
    ];
    docker.run(&flags, &["sh", "-c", COUNTER]).ok();
    counts_on();
    docker
        .client(["checkpoint", "create", "counter", "first"])
        .run()
        .ok();
    wait_until("Docker has seen its end", || {
        docker.inspect("counter", ".State.Status") == "exited"
    });
    let list = docker.client(["checkpoint", "ls", "counter"]).run().ok();
    assert!(list.stdout().contains("first"), "{list:?}");
    // The counter continues, with its output and its port.
    wait_until("containerd has dropped its own copy", || {
        let start = docker.client(["start", "--checkpoint", "first", "counter"]);
        let output = start.run();
        // containerd removes the copy only a moment after Docker has released it, and until then
        // refuses to import it again.
        let too_early = output.stderr().contains("already exists");
        !too_early && output.ok().code() == 0
    });
    counts_on();
    docker.exec("counter", &["true"]).ok();

    docker
        .client([
            "checkpoint",
            "create",
            "--leave-running",
            "counter",
            "second",
        ])
        .run()
        .ok();
    counts_on();
    assert_eq!(docker.inspect("counter", ".State.Status"), "running");
    docker.remove("counter");
}
