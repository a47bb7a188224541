//! Lazy dumps: the memory stays with the dumping CRIU, which serves it to the restored container.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};

use crate::common::{Bundle, Cmd, Host, Running, wait_until};

/// Keeps some megabytes in its memory and writes their digest when asked.
const KEEPER: &str = "data=$(seq 1 900000); echo >/ready
while :; do if [ -e /ask ]; then rm /ask; echo \"$data\" | md5sum >/answer.new; mv /answer.new /answer; fi; sleep 0.02; done";
/// The system's limit for pipes, and the size that CRIU needs with pages of 4 KiB.
const LIMIT_FILE: &str = "/proc/sys/fs/pipe-max-size";
const ENOUGH_BYTES: usize = 4 << 20;

/// The limit is the machine's: one test at a time sets it, also of those in other processes.
struct PipeLimit {
    file: Flock<File>,
    former: String,
}

impl PipeLimit {
    fn set(bytes: usize) -> Self {
        let file = File::options().write(true).open(LIMIT_FILE).unwrap();
        let file = Flock::lock(file, FlockArg::LockExclusive).unwrap();
        let former = fs::read_to_string(LIMIT_FILE).unwrap();
        file.write_all_at(bytes.to_string().as_bytes(), 0).unwrap();
        Self { file, former }
    }
}

impl Drop for PipeLimit {
    fn drop(&mut self) {
        self.file.write_all_at(self.former.as_bytes(), 0).unwrap();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn keeper(host: &Host) -> Bundle {
    let bundle = host.bundle("web").script(KEEPER);
    host.run_detached(&bundle);
    wait_until("it has its data", || bundle.rootfs().join("ready").exists());
    bundle
}

/// The digest of its memory, as the container reports it.
#[track_caller]
fn digest(bundle: &Bundle) -> String {
    let answer = bundle.rootfs().join("answer");
    fs::write(bundle.rootfs().join("ask"), "").unwrap();
    wait_until("it answers", || answer.exists());
    let digest = fs::read_to_string(&answer).unwrap();
    fs::remove_file(&answer).unwrap();
    digest
}

fn dump(command: Cmd, bundle: &Bundle, images: &Path, port: u16) -> Cmd {
    command
        .arg("--lazy-pages")
        .args(["--page-server", &format!("127.0.0.1:{port}")])
        .arg("--image-path")
        .arg(images)
        .arg(bundle.id())
}

/// As an engine does it: the dump serves, `criu lazy-pages` fetches, and the container resumes on
/// another "host".
#[test]
fn memory_that_was_left_behind_is_fetched_whole() {
    let _limit = PipeLimit::set(ENOUGH_BYTES);
    let (source, destination) = (Host::new(), Host::new());
    let bundle = keeper(&source);
    let before = digest(&bundle);
    let (images, port) = (source.dir().join("images"), free_port());

    let (status, for_rcm) = nix::unistd::pipe().unwrap();
    let dumping = inheriting(for_rcm, |number| {
        dump(source.cmd("checkpoint"), &bundle, &images, port)
            .args(["--status-fd", &number])
            .spawn()
    });
    let mut byte = [1];
    assert_eq!(
        nix::unistd::read(status.as_raw_fd(), &mut byte),
        Ok(1),
        "{}",
        dumping.stderr()
    );
    assert_eq!(byte, [0]);
    let pages_bytes: u64 = fs::read_dir(&images)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("pages-"))
        .map(|entry| entry.metadata().unwrap().len())
        .sum();
    assert!(
        pages_bytes < 1 << 20,
        "{pages_bytes} bytes were not left behind"
    );

    let mut fetching = Command::new("criu")
        .args(["lazy-pages", "--page-server", "--address", "127.0.0.1"])
        .args(["--port", &port.to_string(), "-o", "lazy-pages.log", "-D"])
        .arg(&images)
        .spawn()
        .unwrap();
    wait_until("the fetching CRIU listens", || {
        images.join("lazy-pages.socket").exists()
    });
    let restore = |bundle: &Bundle| {
        destination
            .cmd("restore")
            .args(["--detach", "--lazy-pages", "--image-path"])
            .arg(&images)
            .bundle(bundle)
            .run()
    };
    // Its cgroup is in use until the last page has been fetched.
    restore(&bundle).fails_with(1, "container's cgroup is not empty");
    let arrived = destination.bundle("web").script(KEEPER);
    restore(&arrived).ok();
    assert_eq!(digest(&arrived), before);
    assert!(fetching.wait().unwrap().success());
    dumping.wait().ok();
    assert_eq!(source.status("web"), "gone");
    assert_eq!(destination.status("web"), "running");
    assert_eq!(digest(&arrived), before);
}

/// Starts a program that finds `fd` under the number that it has here.
fn inheriting(fd: OwnedFd, start: impl FnOnce(String) -> Running) -> Running {
    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    start(fd.as_fd().as_raw_fd().to_string())
}

/// CRIU would stop the container, write the images and fail in the middle of its memory.
#[test]
fn without_its_pipe_a_lazy_dump_is_refused_before_anything_stops() {
    let _limit = PipeLimit::set(1 << 20);
    let host = Host::new();
    let bundle = keeper(&host);
    let images = host.dir().join("images");
    // Root with this capability has no limit.
    let command = Cmd::new("setpriv")
        .args([
            "--bounding-set",
            "-sys_resource",
            "--inh-caps",
            "-sys_resource",
        ])
        .arg(env!("CARGO_BIN_EXE_rcm"))
        .arg("--root")
        .arg(host.root())
        .arg("checkpoint");
    let output = dump(command, &bundle, &images, free_port()).run();
    output.fails_with(1, "sysctl -w fs.pipe-max-size=4194304");
    assert!(!images.exists());
    assert_eq!(host.status("web"), "running");
    digest(&bundle);
}

/// A lazy dump is committed when its page server listens, and can fail after that: here because the
/// peer resets the connection.
#[test]
fn a_lazy_dump_whose_peer_fails_does_not_leave_the_container_frozen() {
    let _limit = PipeLimit::set(ENOUGH_BYTES);
    let host = Host::new();
    let bundle = keeper(&host);
    let images = host.dir().join("images");
    let port = free_port();
    let mut running = dump(host.cmd("checkpoint"), &bundle, &images, port).spawn();
    wait_until("the page server was reached or the dump has ended", || {
        let reached = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok_and(|mut peer| {
            // No request of CRIU's page protocol.
            std::io::Write::write_all(&mut peer, &[0xff; 64]).is_ok()
        });
        reached || !running.is_running()
    });
    let output = running.wait();
    assert_ne!(output.code(), 0, "{output:?}");
    assert_eq!(host.status("web"), "running", "{output:?}");
    digest(&bundle);
}
