//! Migrations through `migrate::ops`, as an agent drives them: without the command line.
//!
//! The source's operation runs in the test program. The receiver's runs in a process of its own, a
//! second copy of this test program: a receiver becomes the reaper of orphans, and must not reap
//! those of other tests.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcm::migrate::fate::{Fate, Fated};
use rcm::migrate::method::precopy::Limits;
use rcm::migrate::ops::{
    self, Aim, CriuSettings, Method, Port, ReceiveRequest, SendError, SendRequest, Sent,
};
use rcm::migrate::progress::report::Report;
use rcm::migrate::progress::{Event, Observer, Progress};
use rcm::migrate::transfer::images;
use rcm::migrate::trust::TrustSettings;
use rcm::migrate::wire::id::Side;
use rcm::migrate::wire::rootfs::RootfsWish;
use rcm::migrate::wire::state::Phase;
use rcm::sys::interrupt::Interrupt;
use serde_json::{Value, json};

use crate::common::pair::{Gate, Pair};
use crate::common::{Cmd, Running, wait_until};

/// Variable that makes a copy of this program a receiver: JSON with its root, container, store,
/// cgroup parent and the file for its answers.
const RECEIVER: &str = "RCM_TEST_RECEIVER";
const LIMIT_DUR: Duration = Duration::from_secs(60);

/// Notes every event.
#[derive(Debug, Default, Clone)]
struct Seen(Arc<Mutex<Vec<Value>>>);

impl Observer for Seen {
    fn on(&mut self, _container: &str, event: &Event) {
        let event = serde_json::to_value(event).unwrap();
        self.0.lock().unwrap().push(event);
    }
}

/// Leaves the address in a file.
#[derive(Debug)]
struct Announced(PathBuf);

impl Observer for Announced {
    fn on(&mut self, _container: &str, event: &Event) {
        if let Event::Listening { address } = event {
            let whole = self.0.with_extension("new");
            fs::write(&whole, address.to_string()).unwrap();
            fs::rename(whole, &self.0).unwrap();
        }
    }
}

/// Not a test of its own: the receiver of the others.
#[test]
fn a_receiver_in_a_process_of_its_own() {
    let Ok(order) = env::var(RECEIVER) else {
        return;
    };
    let order: Value = serde_json::from_str(&order).unwrap();
    let text = |name: &str| order[name].as_str().unwrap().to_owned();
    let answers = PathBuf::from(text("answers"));
    let request = ReceiveRequest {
        root: text("root").into(),
        container: text("container"),
        image_path: text("store").into(),
        trust: TrustSettings::default(),
        criu: CriuSettings::default(),
        bundle: None,
        systemd_cgroup: false,
        cgroup_parent: Some(text("cgroupParent").into()),
        network_namespace: None,
        console_socket: None,
        pid_file: None,
        detach: true,
        limit_dur: LIMIT_DUR,
    };
    let observer = Announced(answers.join("address"));
    let mut progress = Progress::new(Box::new(observer), Report::of(&request.container));
    let port = Port::At(Some(([127, 0, 0, 1], 0).into()));
    let fate = match ops::receive(&request, port, &mut progress, None) {
        Ok(arrival) => {
            arrival.leave(LIMIT_DUR, None);
            json!("runs-here")
        }
        Err(error) => {
            eprintln!("{error:?}");
            json!(error.fate())
        }
    };
    fs::write(answers.join("fate"), fate.to_string()).unwrap();
}

struct Receiver {
    running: Running,
    answers: PathBuf,
    address: SocketAddr,
}

impl Receiver {
    fn start(pair: &Pair) -> Self {
        let answers = pair.destination.dir().join("answers");
        fs::create_dir(&answers).unwrap();
        let order = json!({
            "root": pair.destination.root(),
            "container": pair.id(),
            "store": pair.store(),
            "cgroupParent": pair.destination.cgroup_parent(),
            "answers": answers,
        });
        let name = [
            module_path!().split_once("::").unwrap().1,
            "a_receiver_in_a_process_of_its_own",
        ];
        let mut running = Cmd::new(env::current_exe().unwrap())
            .args(["--exact", &name.join("::"), "--nocapture"])
            .env(RECEIVER, order.to_string())
            .limit(2 * LIMIT_DUR)
            .spawn();
        let path = answers.join("address");
        wait_until("the receiver listens", || {
            assert!(running.is_running(), "{}", running.stderr());
            path.exists()
        });
        let address = fs::read_to_string(path).unwrap().parse().unwrap();
        Self {
            running,
            answers,
            address,
        }
    }

    #[track_caller]
    fn ends_with(self, fate: &str) {
        let output = self.running.wait().ok();
        let found = fs::read_to_string(self.answers.join("fate")).unwrap();
        assert_eq!(found, json!(fate).to_string(), "{output:?}");
    }
}

fn request(pair: &Pair, address: SocketAddr, aim: Aim) -> SendRequest {
    SendRequest {
        root: pair.source.root(),
        container: pair.id().to_owned(),
        destination: address.to_string().parse().unwrap(),
        image_path: pair.store(),
        trust: TrustSettings::default(),
        criu: CriuSettings::default(),
        aim,
        method: Method::Auto(Limits {
            downtime_limit_dur: Duration::from_millis(300),
            max_rounds: 3,
        }),
        auto_dedup: false,
        rootfs: RootfsWish::Auto,
        streams: 1,
        sending: images::ImageSettings::default(),
        freeze_limit_dur: LIMIT_DUR,
        settle_limit_dur: LIMIT_DUR,
    }
}

fn send(
    request: &SendRequest,
    seen: &Seen,
    interrupt: Option<&Interrupt>,
) -> (Result<Sent, SendError>, Report) {
    let report = Report::of(&request.container);
    let mut progress = Progress::new(Box::new(seen.clone()), report);
    let sent = ops::send(request, &mut progress, interrupt);
    (sent, progress.report().clone())
}

#[test]
fn an_agent_moves_a_container() {
    let pair = Pair::new("opsmove");
    let receiver = Receiver::start(&pair);
    let (asked, report) = send(
        &request(&pair, receiver.address, Aim::Ask),
        &Seen::default(),
        None,
    );
    assert_eq!(asked.unwrap(), Sent::Asked(report.findings));
    let (rehearsed, report) = send(
        &request(&pair, receiver.address, Aim::Rehearse),
        &Seen::default(),
        None,
    );
    assert_eq!(rehearsed.unwrap(), Sent::Rehearsed);
    assert!(report.predicted_dur.is_some(), "{report:?}");
    pair.assert_counts();

    let seen = Seen::default();
    let moves = request(&pair, receiver.address, Aim::Move);
    let (sent, report) = send(&moves, &seen, None);
    assert_eq!(sent.unwrap(), Sent::Moved);
    assert!(report.downtime_dur.is_some(), "{report:?}");
    let phases: Vec<String> = (seen.0.lock().unwrap().iter())
        .filter(|event| event["event"] == "ended")
        .map(|event| event["phase"].as_str().unwrap().to_owned())
        .collect();
    for phase in ["negotiate", "dump", "ship", "restore", "fence", "commit"] {
        assert!(phases.iter().any(|ended| ended == phase), "{phases:?}");
    }
    receiver.ends_with("runs-here");
    pair.assert_at_destination();

    let status = |root: &Path| ops::status(root, pair.id()).unwrap();
    let left = status(&pair.source.root());
    assert_eq!((left.side, left.phase), (Side::Source, Phase::Done));
    assert!(left.settled && left.status.is_none(), "{left:?}");
    let came = status(&pair.destination.root());
    assert_eq!((came.side, came.phase), (Side::Destination, Phase::Done));
    assert!(came.status.is_some(), "{came:?}");
    let (again, _) = send(&moves, &Seen::default(), None);
    assert_eq!(again.unwrap_err().fate(), Fate::AsBefore);
}

#[test]
fn an_agent_ends_a_migration() {
    let pair = Pair::with("opsend", Gate::hook);
    let gate = Gate::close(pair.source.dir());
    let receiver = Receiver::start(&pair);
    let request = request(&pair, receiver.address, Aim::Move);
    let (interrupt, trigger) = Interrupt::manual().unwrap();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send(&request, &Seen::default(), Some(&interrupt)));
        gate.wait();
        trigger.pull();
        let (sent, report) = sending.join().unwrap();
        let error = sent.unwrap_err();
        assert_eq!(error.fate(), Fate::RunsHere, "{error:?}");
        assert!(report.downtime_dur.is_none(), "{report:?}");
        gate.open();
    });
    receiver.ends_with("runs-there");
    pair.assert_at_source();
}
