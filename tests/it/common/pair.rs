//! Two hosts and a container that counts.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Bundle, COMMAND_LIMIT_DUR, Host, Output, Running, wait_until, wait_within};

/// Counts in its memory. The file stays open; the file `stop` ends the program with status 7.
pub const COUNTER: &str = "exec </dev/null >/dev/null 2>&1 3>>/numbers
number=0
while [ ! -e /stop ]; do number=$((number + 1)); echo $number >&3; usleep 5000; done
exit 7";

/// Two hosts, the directory that they share, and a container that counts at the first.
pub struct Pair {
    pub source: Host,
    pub destination: Host,
    pub bundle: Bundle,
}

impl Pair {
    pub fn new(id: &str) -> Self {
        Self::with(id, |bundle, _| bundle)
    }

    /// `change` gets the bundle and a directory that both hosts share.
    pub fn with(id: &str, change: impl FnOnce(Bundle, &Path) -> Bundle) -> Self {
        Self::between(Host::new(), Host::new(), id, change)
    }

    pub fn between(
        source: Host,
        destination: Host,
        id: &str,
        change: impl FnOnce(Bundle, &Path) -> Bundle,
    ) -> Self {
        let store = source.dir().join("store");
        fs::create_dir(&store).unwrap();
        let bundle = change(source.bundle(id).script(COUNTER), source.dir());
        let pair = Self {
            source,
            destination,
            bundle,
        };
        pair.source.run_detached(&pair.bundle);
        wait_until("it counts", || pair.last() > 3);
        pair
    }

    pub fn id(&self) -> &str {
        self.bundle.id()
    }

    pub fn store(&self) -> PathBuf {
        self.source.dir().join("store")
    }

    pub fn numbers(&self) -> Vec<u64> {
        let text = fs::read_to_string(self.bundle.rootfs().join("numbers")).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| line.parse().unwrap()).collect()
    }

    pub fn last(&self) -> u64 {
        self.numbers().last().copied().unwrap_or(0)
    }

    /// Every number is there once, in order.
    #[track_caller]
    pub fn assert_gapless(&self) {
        let numbers = self.numbers();
        let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
        assert_eq!(numbers, expected);
    }

    #[track_caller]
    pub fn assert_counts(&self) {
        let now = self.last();
        wait_until("it counts", || self.last() > now + 3);
        self.assert_gapless();
    }

    /// Asserts that the container is as before: one copy, at the source, and nothing left over.
    #[track_caller]
    pub fn assert_at_source(&self) {
        wait_until("it runs at the source", || {
            self.source.status(self.id()) == "running"
        });
        self.assert_counts();
        assert_eq!(self.destination.status(self.id()), "gone");
        wait_until_empty("left at the destination", || self.destination.remains());
        wait_until_empty("left in the store", || self.left_in_store());
    }

    #[track_caller]
    pub fn assert_at_destination(&self) {
        assert_eq!(self.destination.status(self.id()), "running");
        self.assert_counts();
        assert_eq!(self.source.status(self.id()), "gone");
        assert_eq!(
            self.source.cgroup_dirs(self.id()),
            [""; 0].map(PathBuf::from)
        );
        wait_until_empty("left in the store", || self.left_in_store());
    }

    /// Moves the container to the destination.
    #[track_caller]
    pub fn move_there(&self) {
        let receiver = self.receiver(&["--detach"]);
        self.send_to(receiver.address).wait().ok();
        receiver.running.wait().ok();
        self.assert_at_destination();
    }

    /// Moves the container back to the source.
    #[track_caller]
    pub fn move_back(&self) {
        let receiver = Receiver::start(&self.source, self.id(), &self.store(), &["--detach"]);
        let sender = send(
            &self.destination,
            self.id(),
            &self.store(),
            receiver.address,
            &[],
        );
        sender.wait().ok();
        receiver.running.wait().ok();
        assert_eq!(self.destination.status(self.id()), "gone");
        assert_eq!(self.source.status(self.id()), "running");
        self.assert_counts();
    }

    pub fn left_in_store(&self) -> Vec<String> {
        fs::read_dir(self.store())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// `--resolve` at the destination.
    pub fn resolve_destination(&self) -> Output {
        self.destination.resolve(self.id())
    }

    /// As [`Self::resolve_destination`], by an operator who knows that a container that may have
    /// run has not. (It is known here: a copy that has run runs on.)
    #[track_caller]
    pub fn settle_destination(&self) -> Output {
        let resolved = self.resolve_destination();
        if resolved.code() != 3 || !resolved.stdout().contains("may have run") {
            return resolved;
        }
        restore_by_hand(&self.destination, self.id(), &resolved.stdout());
        self.resolve_destination()
    }

    pub fn receiver(&self, flags: &[&str]) -> Receiver {
        Receiver::start(&self.destination, self.id(), &self.store(), flags)
    }

    pub fn send_to(&self, address: SocketAddr) -> Running {
        self.send_with(address, &[])
    }

    pub fn send_with(&self, address: SocketAddr, flags: &[&str]) -> Running {
        send(&self.source, self.id(), &self.store(), address, flags)
    }
}

/// Prints the state of both hosts if the wait fails.
#[track_caller]
pub fn wait_until_empty(what: &str, mut list: impl FnMut() -> Vec<String>) {
    let mut left = Vec::new();
    let is_empty = wait_within(COMMAND_LIMIT_DUR, || {
        left = list();
        left.is_empty()
    });
    assert!(is_empty, "{what}: {left:#?}");
}

pub fn send(host: &Host, id: &str, store: &Path, address: SocketAddr, flags: &[&str]) -> Running {
    host.cmd("live-migrate")
        .arg(id)
        .arg("--image-path")
        .arg(store)
        .arg("--destination")
        .arg(address.to_string())
        .args(flags)
        .limit(Duration::from_secs(90))
        .spawn()
}

/// Follows the advice of a `--resolve` that does not restore what may have run.
#[track_caller]
pub fn restore_by_hand(host: &Host, id: &str, advice: &str) {
    let line = advice.lines().find(|line| line.starts_with("to run it"));
    let (_, command) = line.unwrap().split_once("; ").unwrap();
    let words: Vec<&str> = command.split(' ').collect();
    let root = host.root();
    assert_eq!(words[..3], ["rcm", "--root", root.to_str().unwrap()]);
    // Where the receiver was told to put it, and `restore` is not.
    let bundle = words.iter().position(|word| *word == "--bundle").unwrap() + 1;
    let config = Path::new(words[bundle]).join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    spec["linux"]["cgroupsPath"] = format!("{}/{id}", host.cgroup_parent()).into();
    fs::write(&config, spec.to_string()).unwrap();
    host.cmd("delete").args(["--force", id]).run().ok();
    host.cmd(words[3]).args(&words[4..]).run().ok();
}

pub struct Receiver {
    pub running: Running,
    pub address: SocketAddr,
}

impl Receiver {
    pub fn start(host: &Host, id: &str, store: &Path, flags: &[&str]) -> Self {
        Self::with(host, id, store, &[], flags)
    }

    /// With flags before the command.
    pub fn with(host: &Host, id: &str, store: &Path, global: &[&str], flags: &[&str]) -> Self {
        let mut running = host
            .global(global)
            .arg("live-migrate")
            .arg(id)
            .arg("--image-path")
            .arg(store)
            .args(["--cgroup-parent", host.cgroup_parent()])
            .args(if flags.contains(&"--listen") {
                &[][..]
            } else {
                &["--listen", "127.0.0.1:0"]
            })
            .args(flags)
            .limit(Duration::from_secs(90))
            .spawn();
        let mut address = None;
        wait_until("the receiver listens", || {
            assert!(running.is_running(), "{}", running.stderr());
            let stderr = running.stderr();
            address = stderr
                .lines()
                .find_map(|line| line.split_once("waiting on "))
                .map(|(_, address)| address.parse().unwrap());
            address.is_some()
        });
        Self {
            running,
            address: address.unwrap(),
        }
    }
}

/// Stops the restore at the destination until the test opens the gate: a hook that runs on every
/// creation and restore, and waits while `hold` exists.
pub struct Gate {
    pub hold: PathBuf,
    pub reached: PathBuf,
}

impl Gate {
    pub fn hook(bundle: Bundle, dir: &Path) -> Bundle {
        let gate = Self::of(dir);
        let script = format!(
            "[ ! -e {hold} ] || {{ touch {reached}; for i in $(seq 400); do [ -e {hold} ] || exit 0; sleep 0.05; done; }}",
            hold = gate.hold.display(),
            reached = gate.reached.display()
        );
        bundle.hook("createRuntime", &script)
    }

    pub fn of(dir: &Path) -> Self {
        Self {
            hold: dir.join("hold"),
            reached: dir.join("reached"),
        }
    }

    pub fn close(dir: &Path) -> Self {
        let gate = Self::of(dir);
        fs::write(&gate.hold, "").unwrap();
        gate
    }

    pub fn wait(&self) {
        wait_until("the restore is under way", || self.reached.exists());
    }

    pub fn open(&self) {
        fs::remove_file(&self.hold).unwrap();
    }
}

/// Returns a pair with a waiting restore, the receiver, and the source in the middle of the
/// migration.
pub fn in_the_middle(id: &str, flags: &[&str]) -> (Pair, Gate, Receiver, Running) {
    let pair = Pair::with(id, Gate::hook);
    let gate = Gate::close(pair.source.dir());
    let receiver = pair.receiver(&["--detach"]);
    let sender = pair.send_with(receiver.address, flags);
    gate.wait();
    (pair, gate, receiver, sender)
}

/// Asserts that the source has failed, with the reason, and that the container runs on.
#[track_caller]
pub fn runs_on(output: Output, why: &str) {
    let output = output.exits_with(1);
    let stderr = output.stderr();
    assert!(
        stderr.contains("was not moved and runs on here"),
        "{stderr}"
    );
    assert!(stderr.contains(why), "{why:?} not in {stderr}");
}
