//! A container that moves through ssh, by an sshd of this test's own.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::common::pair::{Pair, Receiver, runs_on};
use crate::common::{Cmd, wait_until};

struct Sshd {
    child: Child,
    port: u16,
    dir: PathBuf,
}

fn key(path: &Path) {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(path)
        .status();
    assert!(made.unwrap().success());
}

impl Sshd {
    fn start(dir: &Path) -> Self {
        let dir = dir.join("ssh");
        fs::create_dir(&dir).unwrap();
        key(&dir.join("host"));
        key(&dir.join("user"));
        // Directory in which sshd locks its unprivileged half; normally the service makes it.
        fs::create_dir_all("/run/sshd").unwrap();
        // Not in /tmp: sshd and ssh insist on directories that only their user can write to.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        // Another test may take the port before sshd does.
        (0..10)
            .find_map(|_| Self::listen(&dir))
            .expect("a port for sshd")
    }

    /// Starts sshd on a port that was free. Returns `None` if sshd did not get the port.
    fn listen(dir: &Path) -> Option<Self> {
        // Closed at once: sshd wants it.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.unwrap().port();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {dir}/host\nAuthorizedKeysFile {dir}/user.pub\nStrictModes no\n\
             PidFile none\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\nMaxStartups 100\n",
            dir = dir.display()
        );
        fs::write(dir.join("config"), config).unwrap();
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(dir.join("config"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut sshd = Self {
            child,
            port,
            dir: dir.to_path_buf(),
        };
        let mut ended = false;
        wait_until("sshd listens", || {
            ended = sshd.child.try_wait().unwrap().is_some();
            ended || greets(port)
        });
        (!ended).then_some(sshd)
    }

    fn send(&self, pair: &Pair, remote: &str) -> Cmd {
        let ssh = format!(
            "ssh -F none -i {dir}/user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
            dir = self.dir.display()
        );
        let destination = format!("ssh://root@127.0.0.1:{}", self.port);
        let source = pair.source.cmd("live-migrate").arg(pair.id());
        source
            .arg("--image-path")
            .arg(pair.store())
            .args(["--destination", &destination])
            .env("RCM_SSH", ssh)
            .env("RCM_REMOTE", remote)
    }
}

/// Returns whether an sshd listens there.
fn greets(port: u16) -> bool {
    let mut greeting = [0; 4];
    TcpStream::connect(("127.0.0.1", port)).is_ok_and(|mut stream| {
        let limit_dur = Duration::from_secs(2);
        stream.set_read_timeout(Some(limit_dur)).unwrap();
        stream.read_exact(&mut greeting).is_ok() && &greeting == b"SSH-"
    })
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn remote(pair: &Pair) -> String {
    format!(
        "{} --root {}",
        env!("CARGO_BIN_EXE_rcm"),
        pair.destination.root().display()
    )
}

#[test]
fn it_moves_through_ssh_with_the_store_shared_or_not() {
    for (id, is_shared) in [("sshpool", true), ("sshapart", false)] {
        let pair = Pair::new(id);
        let sshd = Sshd::start(pair.source.dir());
        let store = match is_shared {
            true => pair.store(),
            false => pair.destination.dir().join("own-store"),
        };
        fs::create_dir_all(&store).unwrap();
        let receiver = Receiver::start(&pair.destination, id, &store, &["--detach"]);
        sshd.send(&pair, &remote(&pair)).run().ok();
        receiver.running.wait().ok();
        pair.assert_at_destination();
        assert_eq!(fs::read_dir(&store).unwrap().count(), 0);
    }
}

#[test]
fn a_way_that_leads_nowhere_is_named() {
    let pair = Pair::new("sshnowhere");
    let sshd = Sshd::start(pair.source.dir());
    let output = sshd.send(&pair, &remote(&pair)).run();
    let stderr = output.stderr();
    assert!(stderr.contains("no receiver for container"), "{stderr}");
    runs_on(output, "cannot reach a receiver at 127.0.0.1 over ssh");
    let output = sshd.send(&pair, "no-such-program").run();
    runs_on(output, "rcm is on the PATH there");
    pair.assert_at_source();
}
