//! Checkpoint and restore of real containers with the real CRIU.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::common::{Bundle, Cmd, ConsoleSocket, Host, wait_until};
use nix::sys::signal::Signal;

/// Counts in the file `/number` of its root file system, which is replaced atomically.
const COUNTER: &str =
    "i=0; while :; do i=$((i+1)); echo $i > /number.new; mv /number.new /number; sleep 0.02; done";

fn number(bundle: &Bundle) -> u64 {
    fs::read_to_string(bundle.rootfs().join("number"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

#[track_caller]
fn assert_counts(bundle: &Bundle) {
    let before = number(bundle);
    wait_until("it counts on", || number(bundle) > before);
}

#[track_caller]
fn assert_stands_still(bundle: &Bundle) {
    let before = number(bundle);
    sleep(Duration::from_millis(200));
    assert_eq!(number(bundle), before, "it counts although it must not");
}

fn images(host: &Host, name: &str) -> PathBuf {
    host.dir().join(name)
}

fn checkpoint(host: &Host, bundle: &Bundle, images: &Path) -> Cmd {
    host.cmd("checkpoint")
        .arg("--image-path")
        .arg(images)
        .arg(bundle.id())
}

fn restore(host: &Host, bundle: &Bundle, images: &Path) -> Cmd {
    host.cmd("restore")
        .arg("--image-path")
        .arg(images)
        .bundle(bundle)
}

fn restore_detached(host: &Host, bundle: &Bundle, images: &Path) -> Cmd {
    restore(host, bundle, images).arg("--detach")
}

/// A container that counts.
fn counter(host: &Host, change: impl FnOnce(Bundle) -> Bundle) -> Bundle {
    let bundle = change(host.bundle("web").script(COUNTER));
    host.run_detached(&bundle);
    assert_counts(&bundle);
    bundle
}

#[test]
fn a_restored_container_is_a_full_citizen() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| {
        bundle
            .resource("memory", serde_json::json!({"limit": 64 << 20}))
            .resource("pids", serde_json::json!({"limit": 33}))
    });
    for round in 1..=2 {
        let images = images(&host, &format!("images-{round}"));
        let before = number(&bundle);
        checkpoint(&host, &bundle, &images).run().ok();
        assert_eq!(host.status("web"), "gone");
        assert_stands_still(&bundle);
        assert!(number(&bundle) >= before);

        let last = number(&bundle);
        let pid_file = host.dir().join("pid");
        restore_detached(&host, &bundle, &images)
            .arg("--pid-file")
            .arg(&pid_file)
            .run()
            .ok();
        assert_counts(&bundle);
        assert!(number(&bundle) > last, "it began anew");
        assert_eq!(host.status("web"), "running");
        assert_eq!(
            fs::read_to_string(&pid_file).unwrap(),
            host.pid("web").to_string()
        );
    }
    let limit = host.cgroup_file("web", "memory.limit_in_bytes", "memory.max");
    assert_eq!(limit, (64 << 20).to_string());
    assert_eq!(host.cgroup_file("web", "pids.max", "pids.max"), "33");
    let inside = host.exec("web", ["cat", "/proc/1/comm"]).ok();
    assert_eq!(inside.stdout(), "sh\n");
    let processes = host.cmd("ps").args(["--format", "json", "web"]).run().ok();
    let pids = processes.json();
    assert!(
        pids.as_array().unwrap().contains(&host.pid("web").into()),
        "{pids}"
    );
    let stats = host
        .cmd("events")
        .args(["--stats", "web"])
        .run()
        .ok()
        .json();
    assert!(
        stats["data"]["pids"]["current"].as_u64() > Some(0),
        "{stats}"
    );
    host.cmd("update")
        .args(["--pids-limit", "44", "web"])
        .run()
        .ok();
    assert_eq!(host.cgroup_file("web", "pids.max", "pids.max"), "44");
    host.cmd("pause").arg("web").run().ok();
    assert_eq!(host.status("web"), "paused");
    assert_stands_still(&bundle);
    host.cmd("resume").arg("web").run().ok();
    assert_counts(&bundle);
    host.cmd("kill").arg("web").arg("KILL").run().ok();
    host.wait_for_status("web", "stopped");
    host.cmd("delete").arg("web").run().ok();
    assert_eq!(host.status("web"), "gone");
}

#[test]
fn a_paused_container_stays_paused_and_runs_when_restored() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| bundle);
    host.cmd("pause").arg("web").run().ok();
    let first = images(&host, "first");
    checkpoint(&host, &bundle, &first)
        .arg("--leave-running")
        .run()
        .ok();
    assert_eq!(host.status("web"), "paused");
    assert_stands_still(&bundle);
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    // As with runc; containerd pauses before it asks for a checkpoint, and does not resume what it restores.
    restore_detached(&host, &bundle, &images).run().ok();
    assert_eq!(host.status("web"), "running");
    assert_counts(&bundle);
}

#[test]
fn the_container_may_be_left_running() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| bundle);
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images)
        .arg("--leave-running")
        .run()
        .ok();
    assert_eq!(host.status("web"), "running");
    assert_counts(&bundle);
    let output = restore_detached(&host, &bundle, &images).run();
    assert_eq!(output.code(), 1);
    assert!(
        output
            .stderr()
            .contains("container with given ID already exists"),
        "{}",
        output.stderr()
    );
    assert_counts(&bundle);
}

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

    // Without the flag it fails, says why, and goes on.
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

#[test]
fn a_container_with_a_terminal() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .terminal()
        .script("n=0; while read line; do n=$((n+1)); echo \"$n: $line on $(tty)\"; done");
    let socket = ConsoleSocket::listen(&host.dir().join("console-1"));
    host.cmd("run")
        .args(["--detach", "--console-socket"])
        .arg(socket.path())
        .bundle(&bundle)
        .run()
        .ok();
    let mut terminal = socket.terminal();
    terminal.send("before\n");
    terminal.expect("1: before on /dev/pts/0");
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();

    let output = restore_detached(&host, &bundle, &images).run();
    assert_eq!(output.code(), 1);
    assert!(
        output.stderr().contains("console socket"),
        "{}",
        output.stderr()
    );

    let socket = ConsoleSocket::listen(&host.dir().join("console-2"));
    restore_detached(&host, &bundle, &images)
        .arg("--console-socket")
        .arg(socket.path())
        .run()
        .ok();
    let mut terminal = socket.terminal();
    terminal.send("after\n");
    terminal.expect("2: after on /dev/pts/0");

    // And once more, in the foreground of a terminal.
    let again = host.dir().join("again");
    checkpoint(&host, &bundle, &again).run().ok();
    let mut session = restore(&host, &bundle, &again).on_terminal();
    session.terminal.send("third\n");
    session.terminal.expect("3: third on /dev/pts/0");
    session.terminal.send("\u{4}");
    assert_eq!(session.wait().0, 0);
    assert_eq!(host.status("web"), "gone");
}

#[test]
fn a_foreground_restore_gets_signals_and_the_exit_status() {
    let host = Host::new();
    let bundle = host.bundle("web").script(&format!(
        "trap 'echo trapped > /trapped; exit 7' TERM; {COUNTER}"
    ));
    host.run_detached(&bundle);
    assert_counts(&bundle);
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    let running = restore(&host, &bundle, &images).spawn();
    assert_counts(&bundle);
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait().code(), 7);
    assert!(bundle.rootfs().join("trapped").exists());
    assert_eq!(host.status("web"), "gone");
}

#[test]
fn bind_mounts_get_missing_mount_points_back() {
    let host = Host::new();
    let data = host.dir().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "from the host\n").unwrap();
    fs::write(host.dir().join("single"), "a single file\n").unwrap();
    let bundle = counter(&host, |bundle| {
        bundle
            .bind(&data, "/srv/data", "rw")
            .bind(&host.dir().join("single"), "/srv/single", "ro")
            .mount("tmpfs", Path::new("tmpfs"), "/srv/data/scratch", &[])
            .script(&format!(
                "echo kept > /srv/data/scratch/file; exec 5< /srv/data/file; {COUNTER}"
            ))
    });
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    fs::remove_dir_all(bundle.rootfs().join("srv")).unwrap();
    fs::remove_dir(data.join("scratch")).unwrap();
    restore_detached(&host, &bundle, &images).run().ok();
    assert_counts(&bundle);
    let all = host
        .exec(
            "web",
            [
                "cat",
                "/srv/data/file",
                "/srv/single",
                "/srv/data/scratch/file",
            ],
        )
        .ok();
    assert_eq!(all.stdout(), "from the host\na single file\nkept\n");
}

#[test]
fn masked_and_read_only_paths_stay_so() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| {
        bundle
            .set(
                "/linux/maskedPaths",
                serde_json::json!(["/proc/kcore", "/proc/keys", "/proc/bus", "/sys/firmware"]),
            )
            .set(
                "/linux/readonlyPaths",
                serde_json::json!(["/proc/sys", "/etc"]),
            )
    });
    // A second time, because a restored mask is another kind of mount.
    for name in ["first", "second"] {
        let images = images(&host, name);
        checkpoint(&host, &bundle, &images).run().ok();
        restore_detached(&host, &bundle, &images).run().ok();
        assert_counts(&bundle);
    }
    let masked = host
        .exec(
            "web",
            [
                "sh",
                "-c",
                "cat /proc/kcore /proc/keys; ls /proc/bus /sys/firmware",
            ],
        )
        .ok();
    assert_eq!(
        masked
            .stdout()
            .replace("/proc/bus:\n\n/sys/firmware:\n", ""),
        ""
    );
    for path in [
        "/etc/x",
        "/proc/sys/kernel/domainname",
        "/proc/bus/x",
        "/sys/firmware/x",
    ] {
        let written = host.exec("web", ["sh", "-c", &format!("echo x > {path}")]);
        assert_ne!(written.code(), 0, "{path}");
        assert!(
            written.stderr().contains("Read-only"),
            "{}",
            written.stderr()
        );
    }
}

#[test]
fn a_redirected_output_goes_on_in_its_file() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .script("i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done");
    let log = host.dir().join("out.log");
    let run = format!(
        "exec {} --root {} run --detach --bundle {} web < /dev/null > {} 2>&1",
        env!("CARGO_BIN_EXE_rcm"),
        host.root().display(),
        bundle.dir().display(),
        log.display()
    );
    Cmd::new("sh").args(["-c", &run]).run().ok();
    let lines = || fs::read_to_string(&log).unwrap_or_default().lines().count();
    wait_until("it writes", || lines() > 3);
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    let before = lines();
    restore_detached(&host, &bundle, &images).run().ok();
    wait_until("it writes on", || lines() > before + 3);
    let text = fs::read_to_string(&log).unwrap();
    for (index, line) in text.lines().enumerate() {
        assert_eq!(
            line,
            (index + 1).to_string(),
            "a number is missing or twice"
        );
    }

    // On another host the file is not there: it is made.
    let again = host.dir().join("again");
    checkpoint(&host, &bundle, &again).run().ok();
    fs::remove_file(&log).unwrap();
    restore_detached(&host, &bundle, &again).run().ok();
    wait_until("it writes into a new file", || {
        log.exists() && fs::metadata(&log).unwrap().blocks() > 0
    });
}

#[test]
fn pipes_lead_to_the_one_who_restores() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .script("i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done");
    let start = |verb: &str, images: Option<&Path>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rcm"));
        command.arg("--root").arg(host.root()).arg(verb);
        if let Some(images) = images {
            command.arg("--image-path").arg(images);
        }
        command
            .arg("--bundle")
            .arg(bundle.dir())
            .arg("web")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let numbers = |child: &mut std::process::Child, count: usize| -> Vec<u64> {
        let stdout = child.stdout.as_mut().unwrap();
        let (mut text, mut byte) = (String::new(), [0]);
        while text.matches('\n').count() < count {
            stdout.read_exact(&mut byte).unwrap();
            text.push(byte[0] as char);
        }
        text.lines().map(|line| line.parse().unwrap()).collect()
    };
    let mut run = start("run", None);
    let first = numbers(&mut run, 5);
    assert_eq!(first, [1, 2, 3, 4, 5]);
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    let mut rest = String::new();
    run.stdout
        .take()
        .unwrap()
        .read_to_string(&mut rest)
        .unwrap();
    run.wait().unwrap();
    let last: u64 = rest.lines().last().map_or(5, |line| line.parse().unwrap());

    let mut restored = start("restore", Some(&images));
    let next = numbers(&mut restored, 3);
    assert_eq!(next, [last + 1, last + 2, last + 3]);
    host.cmd("kill").arg("web").arg("KILL").run().ok();
    assert_eq!(restored.wait().unwrap().code(), Some(137));
}

#[test]
fn an_existing_network_namespace_is_entered_again() {
    let host = Host::new();
    let mut holder = Command::new("unshare")
        .args(["--net", "sleep", "1000"])
        .spawn()
        .unwrap();
    let path = PathBuf::from(format!("/proc/{}/ns/net", holder.id()));
    let own = fs::metadata("/proc/self/ns/net").unwrap().ino();
    wait_until("the namespace is there", || {
        fs::metadata(&path).unwrap().ino() != own
    });
    let bundle = counter(&host, |bundle| bundle.namespace("network", Some(&path)));
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    restore_detached(&host, &bundle, &images).run().ok();
    assert_counts(&bundle);
    let inside = fs::metadata(format!("/proc/{}/ns/net", host.pid("web")))
        .unwrap()
        .ino();
    assert_eq!(inside, fs::metadata(&path).unwrap().ino());
    host.delete("web");
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn the_host_s_network_namespace() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| bundle.without_namespace("network"));
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    restore_detached(&host, &bundle, &images).run().ok();
    assert_counts(&bundle);
    let inside = fs::metadata(format!("/proc/{}/ns/net", host.pid("web")))
        .unwrap()
        .ino();
    assert_eq!(inside, fs::metadata("/proc/self/ns/net").unwrap().ino());
}

#[test]
fn an_existing_pid_namespace_is_entered_again() {
    let host = Host::new();
    // An init that leaves no zombies, not even those of before it was ready: they would keep the pids of the restored processes taken.
    let init = r"
import os, time
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.01)
";
    let mut holder = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "python3", "-c", init])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let children = format!("/proc/{0}/task/{0}/children", holder.id());
    let child = || {
        fs::read_to_string(&children)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    wait_until("the namespace is there", || !child().is_empty());
    let path = PathBuf::from(format!("/proc/{}/ns/pid", child()));
    let bundle = counter(&host, |bundle| bundle.namespace("pid", Some(&path)));
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    // Their pids are taken as long as nobody has reaped them.
    let namespace = fs::metadata(&path).unwrap().ino();
    let is_in = |process: &fs::DirEntry| {
        let found = fs::metadata(process.path().join("ns/pid"));
        found.is_ok_and(|found| found.ino() == namespace)
    };
    wait_until("the former processes are reaped", || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes.filter(is_in).count() == 1
    });
    restore_detached(&host, &bundle, &images).run().ok();
    assert_counts(&bundle);
    let inside = fs::metadata(format!("/proc/{}/ns/pid", host.pid("web")));
    assert_eq!(inside.unwrap().ino(), namespace);
    host.delete("web");
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn cgroup_mounts() {
    for own_namespace in [false, true] {
        let host = Host::new();
        let bundle = counter(&host, |bundle| {
            let bundle = bundle.mount(
                "cgroup",
                Path::new("cgroup"),
                "/sys/fs/cgroup",
                &["nosuid", "noexec", "nodev", "relatime", "ro"],
            );
            match own_namespace {
                true => bundle.namespace("cgroup", None),
                false => bundle,
            }
        });
        let list = |host: &Host| {
            host.exec(
                "web",
                [
                    "sh",
                    "-c",
                    "ls /sys/fs/cgroup; cat /sys/fs/cgroup/pids/pids.max",
                ],
            )
            .stdout()
        };
        let before = list(&host);
        let images = images(&host, "images");
        checkpoint(&host, &bundle, &images).run().ok();
        restore_detached(&host, &bundle, &images).run().ok();
        assert_counts(&bundle);
        assert_eq!(list(&host), before);
    }
}

#[test]
fn a_user_namespace() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| bundle.user_namespace(200_000));
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    restore_detached(&host, &bundle, &images).run().ok();
    assert_counts(&bundle);
    let owner = fs::metadata(format!("/proc/{}", host.pid("web")))
        .unwrap()
        .uid();
    assert_eq!(owner, 200_000);
}

#[test]
fn hooks_run_as_with_runc() {
    let host = Host::new();
    let log = host.dir().join("hooks");
    let note = |kind: &str| {
        format!(
            "state=$(cat); pid=${{state#*\\\"pid\\\":}}; pid=${{pid%%[,\\}}]*}}; echo {kind} ${{pid:+with pid}} >> {}",
            log.display()
        )
    };
    let bundle = counter(&host, |bundle| {
        [
            "prestart",
            "createRuntime",
            "createContainer",
            "poststart",
            "poststop",
        ]
        .iter()
        .filter(|kind| **kind != "createContainer")
        .fold(bundle, |bundle, kind| bundle.hook(kind, &note(kind)))
    });
    let lines = || -> Vec<String> {
        fs::read_to_string(&log)
            .unwrap_or_default()
            .lines()
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(lines(), ["prestart", "createRuntime", "poststart"]);
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    assert_eq!(lines()[3..], ["poststop"]);
    restore_detached(&host, &bundle, &images).run().ok();
    assert_eq!(lines()[4..], ["prestart", "createRuntime"]);
    host.delete("web");
    assert_eq!(lines()[6..], ["poststop"]);
}

#[test]
fn a_failing_hook_takes_the_restore_back() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| bundle);
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    let bundle = bundle.hook("createRuntime", "cat > /dev/null; exit 9");
    let output = restore_detached(&host, &bundle, &images).run();
    assert_eq!(output.code(), 1);
    assert!(
        output.stderr().contains("createRuntime"),
        "{}",
        output.stderr()
    );
    assert_eq!(host.status("web"), "gone");
    assert_stands_still(&bundle);
}

#[test]
fn a_failing_dump_says_why_and_leaves_the_container_running() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| {
        bundle
            .host_programs()
            .script(&format!("exec 9> /lock; flock 9; {COUNTER}"))
    });
    let images = images(&host, "images");
    let output = checkpoint(&host, &bundle, &images).run();
    assert_eq!(output.code(), 1);
    let message = output.stderr();
    assert!(
        message.contains("Some file locks are hold by dumping tasks"),
        "{message}"
    );
    assert!(message.contains("use --file-locks"), "{message}");
    assert!(message.contains("dump.log"), "{message}");
    assert_eq!(host.status("web"), "running");
    assert_counts(&bundle);
    checkpoint(&host, &bundle, &images)
        .arg("--file-locks")
        .run()
        .ok();
    restore_detached(&host, &bundle, &images)
        .arg("--file-locks")
        .run()
        .ok();
    assert_counts(&bundle);
}

/// A shell that calls vfork for every command is at any moment likely to wait for a child that has not executed its program yet.
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

#[test]
fn the_container_runs_on_whenever_rcm_is_killed() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| bundle);
    let mut interrupted = 0;
    for delay_ms in (0..60).step_by(4) {
        let images = images(&host, &format!("images-{delay_ms}"));
        let mut running = checkpoint(&host, &bundle, &images)
            .arg("--leave-running")
            .spawn();
        sleep(Duration::from_millis(delay_ms));
        if running.is_running() {
            interrupted += 1;
            running.signal(Signal::SIGKILL);
        }
        let _ = running.wait();
        assert_counts(&bundle);
        assert_eq!(host.status("web"), "running", "killed after {delay_ms} ms");
    }
    assert!(interrupted > 5, "only {interrupted} were killed in time");
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    restore_detached(&host, &bundle, &images).run().ok();
    assert_counts(&bundle);
}

#[test]
fn nothing_is_left_whenever_a_restore_is_killed() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| bundle);
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    for delay_ms in (0..60).step_by(6) {
        let mut running = restore(&host, &bundle, &images).spawn();
        sleep(Duration::from_millis(delay_ms));
        if running.is_running() {
            running.signal(Signal::SIGKILL);
        }
        let _ = running.wait();
        // It either never ran, or rcm knows it.
        wait_until("CRIU has finished", || {
            matches!(host.status("web").as_str(), "gone" | "stopped" | "running")
        });
        sleep(Duration::from_millis(150));
        if host.status("web") != "running" {
            assert_stands_still(&bundle);
        }
        host.delete("web");
        assert_stands_still(&bundle);
    }
    restore_detached(&host, &bundle, &images).run().ok();
    assert_counts(&bundle);
}

#[test]
fn wrong_requests_are_one_line_each() {
    let host = Host::new();
    let bundle = host.bundle("web").script(COUNTER);
    let empty = images(&host, "empty");
    fs::create_dir(&empty).unwrap();
    let missing = images(&host, "missing");
    let output = |cmd: Cmd| {
        let output = cmd.run();
        assert_eq!(output.code(), 1, "{output:?}");
        assert_eq!(output.stderr().lines().count(), 1, "{output:?}");
        output.stderr()
    };
    assert!(output(checkpoint(&host, &bundle, &empty)).contains("container does not exist"));
    assert!(output(restore_detached(&host, &bundle, &missing)).contains("missing"));
    assert!(output(restore_detached(&host, &bundle, &empty)).contains("no complete dump"));
    assert_eq!(host.status("web"), "gone");
    host.create(&bundle);
    assert!(
        output(checkpoint(&host, &bundle, &empty))
            .contains("cannot be checkpointed in created state")
    );
    host.start("web");
    let absolute = checkpoint(&host, &bundle, &empty).args(["--parent-path", "/abs"]);
    assert!(output(absolute).contains("--parent-path must be relative"));
    let nowhere = host
        .global(["--criu", "/nonexistent/criu"])
        .args(["checkpoint", "--image-path"])
        .arg(&empty)
        .arg("web");
    assert!(output(nowhere).contains("--criu names /nonexistent/criu"));
    assert_eq!(host.status("web"), "running");
}

#[test]
fn a_pre_dump_needs_memory_tracking() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| bundle);
    let first = images(&host, "1");
    let output = checkpoint(&host, &bundle, &first).arg("--pre-dump").run();
    let tracked = rcm::criu::Criu::find(None)
        .unwrap()
        .features()
        .unwrap()
        .memory_tracking;
    if !tracked {
        assert_eq!(output.code(), 1);
        assert!(
            output.stderr().contains("CONFIG_MEM_SOFT_DIRTY"),
            "{}",
            output.stderr()
        );
        assert_counts(&bundle);
        return;
    }
    output.ok();
    assert_counts(&bundle);
    let second = images(&host, "2");
    checkpoint(&host, &bundle, &second)
        .args(["--parent-path", "../1"])
        .run()
        .ok();
    restore_detached(&host, &bundle, &second).run().ok();
    assert_counts(&bundle);
}

#[test]
fn images_of_runc_are_restored() {
    let host = Host::new();
    let runc = |verb: &str| {
        Cmd::new("runc")
            .arg("--root")
            .arg(host.dir().join("runc"))
            .arg(verb)
    };
    let bundle = host.bundle("web").script(COUNTER).mount(
        "cgroup",
        Path::new("cgroup"),
        "/sys/fs/cgroup",
        &["ro"],
    );
    // runc cannot dump a container whose output is a file of the host.
    let run = format!(
        "exec runc --root {} run --detach --bundle {} web > /dev/null 2>&1",
        host.dir().join("runc").display(),
        bundle.dir().display()
    );
    Cmd::new("sh").args(["-c", &run]).run().ok();
    assert_counts(&bundle);
    let images = images(&host, "images");
    // It may find the dead process unreaped and then fails to delete the container, but the images are complete.
    runc("checkpoint")
        .arg("--image-path")
        .arg(&images)
        .arg("web")
        .run();
    assert!(images.join("inventory.img").exists());
    runc("delete").args(["--force", "web"]).run().ok();
    assert_stands_still(&bundle);
    restore_detached(&host, &bundle, &images).run().ok();
    assert_counts(&bundle);
}
