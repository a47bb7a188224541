//! Compares a streamed migration with a plain copy of as many bytes over the same link.
//!
//! Two hosts are network namespaces joined by a veth pair. On a link shaped to 1 Gbit/s the
//! yardstick is a plain TCP copy. On an unshaped one, where only the processors limit, it is a copy
//! over one TLS 1.3 connection. The copies read from memory; the migration dumps a container of
//! random memory. Both write to a file on a tmpfs, so that no disk counts. The migration's time is
//! that of `dump` and `ship` in its report: from the freeze to the last byte.
//!
//! They take turns. `RCM_BENCH_MIB` is the memory of the container (1024), `RCM_BENCH_ROUNDS` the
//! number of rounds (3).

#[path = "../tests/it/common/mod.rs"]
mod common;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, ServerConfig, ServerConnection,
    SignatureScheme, StreamOwned,
};

use common::{Bundle, Host, wait_until};

const SOURCE: &str = "198.18.7.1";
const DESTINATION: &str = "198.18.7.2";
const PORT: u16 = 7261;
/// Role of a child of this program.
const ROLE: &str = "RCM_BENCH_ROLE";
const CHUNK_BYTES: usize = 256 << 10;

/// Two namespaces and the link between them.
struct Link {
    dir: tempfile::TempDir,
}

fn in_namespace(namespace: &Path, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", namespace.display()))
        .arg(program);
    command
}

fn run(namespace: &Path, line: &str) {
    let mut words = line.split(' ');
    let mut command = in_namespace(namespace, words.next().unwrap());
    assert!(command.args(words).status().unwrap().success(), "{line}");
}

impl Link {
    fn new(shape: Option<&str>) -> Self {
        let link = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for end in [link.source(), link.destination()] {
            File::create(&end).unwrap();
            let made = Command::new("unshare")
                .arg(format!("--net={}", end.display()))
                .arg("true")
                .status();
            assert!(made.unwrap().success());
            run(&end, "ip link set lo up");
        }
        run(
            &link.source(),
            "ip link add veth-a type veth peer name veth-b",
        );
        // The path is valid only as long as the file is open.
        let far = File::open(link.destination()).unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), far.as_raw_fd());
        run(&link.source(), &format!("ip link set veth-b netns {path}"));
        for (end, device, address) in [
            (link.source(), "veth-a", SOURCE),
            (link.destination(), "veth-b", DESTINATION),
        ] {
            run(&end, &format!("ip addr add {address}/30 dev {device}"));
            run(&end, &format!("ip link set {device} up"));
        }
        if let Some(shape) = shape {
            run(
                &link.source(),
                &format!("tc qdisc add dev veth-a root tbf {shape}"),
            );
        }
        link
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn destination(&self) -> PathBuf {
        self.dir.path().join("destination")
    }

    /// Copies `count_bytes` by two processes of this program. Returns the duration.
    fn copy(&self, kind: &str, count_bytes: u64) -> Duration {
        let this = std::env::current_exe().unwrap();
        let this = this.to_str().unwrap();
        let store = self.dir.path().join("store");
        fs::create_dir_all(&store).unwrap();
        let (tmpfs, none) = (Some("tmpfs"), None::<&str>);
        mount(tmpfs, &store, tmpfs, MsFlags::empty(), none).unwrap();
        let mut sink = in_namespace(&self.destination(), this)
            .env(ROLE, format!("sink {kind} {}", store.display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The process listens now.
        let mut ready = String::new();
        BufReader::new(sink.stdout.take().unwrap())
            .read_line(&mut ready)
            .unwrap();
        let output = in_namespace(&self.source(), this)
            .env(ROLE, format!("copy {kind} {count_bytes}"))
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success() && sink.wait().unwrap().success());
        umount2(&store, MntFlags::MNT_DETACH).unwrap();
        let micros = String::from_utf8(output.stdout).unwrap();
        Duration::from_micros(micros.trim().parse().unwrap())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for end in [self.source(), self.destination()] {
            let _ = umount2(&end, MntFlags::MNT_DETACH);
        }
    }
}

/// Plays the role of a child. Returns false for the benchmark itself.
fn play() -> bool {
    let Ok(role) = std::env::var(ROLE) else {
        return false;
    };
    let words: Vec<&str> = role.split(' ').collect();
    match words[..] {
        ["sink", kind, store] => sink(kind == "tls", Path::new(store)),
        ["copy", kind, count] => send(kind == "tls", count.parse().unwrap()),
        _ => panic!("{role}"),
    }
    true
}

fn sink(tls: bool, store: &Path) {
    let listener = TcpListener::bind((DESTINATION, PORT)).unwrap();
    println!("ready");
    let (socket, _) = listener.accept().unwrap();
    let mut stream: Box<dyn Stream> = if tls {
        let made = rcgen::generate_simple_self_signed(["bench.invalid".to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .unwrap();
        let session = ServerConnection::new(Arc::new(config)).unwrap();
        Box::new(StreamOwned::new(session, socket))
    } else {
        Box::new(socket)
    };
    let mut count = [0; 8];
    stream.read_exact(&mut count).unwrap();
    let mut left_bytes = u64::from_be_bytes(count);
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut file = File::create(store.join("copy")).unwrap();
    while left_bytes > 0 {
        let read_bytes = stream.read(&mut chunk).unwrap();
        assert!(read_bytes > 0, "the sender is gone");
        file.write_all(&chunk[..read_bytes]).unwrap();
        left_bytes -= read_bytes as u64;
    }
    stream.write_all(b".").unwrap();
    stream.flush().unwrap();
}

fn send(tls: bool, count_bytes: u64) {
    let mut memory = vec![0; 16 << 20];
    File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut memory)
        .unwrap();
    let socket = TcpStream::connect((DESTINATION, PORT)).unwrap();
    let mut stream: Box<dyn Stream> = if tls {
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_no_client_auth();
        let name = ServerName::try_from("bench.invalid").unwrap();
        let session = ClientConnection::new(Arc::new(config), name).unwrap();
        Box::new(StreamOwned::new(session, socket))
    } else {
        Box::new(socket)
    };
    let began = Instant::now();
    stream.write_all(&count_bytes.to_be_bytes()).unwrap();
    let mut left_bytes = count_bytes as usize;
    let mut chunks = memory.chunks(CHUNK_BYTES).cycle();
    while left_bytes > 0 {
        let chunk = chunks.next().unwrap();
        let chunk = &chunk[..chunk.len().min(left_bytes)];
        stream.write_all(chunk).unwrap();
        left_bytes -= chunk.len();
    }
    stream.flush().unwrap();
    stream.read_exact(&mut [0]).unwrap();
    println!("{}", began.elapsed().as_micros());
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// Accepts any certificate: both ends are this program.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A host with a store of its own, in memory.
struct Side {
    host: Host,
    store: PathBuf,
}

impl Side {
    fn new(namespace: &Path) -> Self {
        let net = format!("--net={}", namespace.display());
        let host = Host::new().with_prefix(["nsenter", &net]);
        let store = host.dir().join("store");
        fs::create_dir(&store).unwrap();
        let (tmpfs, none) = (Some("tmpfs"), None::<&str>);
        mount(tmpfs, &store, tmpfs, MsFlags::empty(), none).unwrap();
        Self { host, store }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = umount2(&self.store, MntFlags::MNT_DETACH);
    }
}

/// Migrates a container of `mib` MiB over `link`. Returns the bytes of its images and the duration.
fn migrate(link: &Link, mib: u64) -> (u64, Duration) {
    let source = Side::new(&link.source());
    let destination = Side::new(&link.destination());
    let token = source.host.dir().join("token");
    fs::write(&token, "no secret: it is a benchmark".repeat(2)).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let bundle = loaded(&source.host, mib);
    source.host.run_detached(&bundle);
    let ready = bundle.rootfs().join("tmp/ready");
    wait_until("the memory is filled", || ready.exists());
    let migrate = |side: &Side| {
        let command = side.host.cmd("live-migrate").arg(bundle.id());
        command
            .arg("--image-path")
            .arg(&side.store)
            .arg("--token-file")
            .arg(&token)
            .limit(Duration::from_secs(300))
    };
    let receiver = migrate(&destination)
        .args(["--detach", "--listen", &format!("{DESTINATION}:7260")])
        .args(["--cgroup-parent", destination.host.cgroup_parent()])
        .spawn();
    wait_until("the receiver listens", || {
        receiver.stderr().contains("waiting on")
    });
    let output = migrate(&source)
        .args(["--destination", DESTINATION, "--mode", "stop-and-copy"])
        .args(["--json", "--progress", "none"])
        .run()
        .ok();
    receiver.wait().ok();
    let report = output.json();
    let millis = |name: &str| report["freeze"][name].as_f64().unwrap();
    let took = millis("dumpMs") + millis("shipMs");
    destination.host.delete(bundle.id());
    (
        report["imagesBytes"].as_u64().unwrap(),
        Duration::from_secs_f64(took / 1e3),
    )
}

fn loaded(host: &Host, mib: u64) -> Bundle {
    let script = format!(
        "import os, time\nmemory = [os.urandom(1 << 20) for _ in range({mib})]\nopen('/tmp/ready', 'w')\ntime.sleep(1e6)"
    );
    host.bundle("loaded")
        .host_programs()
        .args(["python3", "-c", &script])
}

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|error| panic!("{name}={text}: {error}")),
        Err(_) => default,
    }
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

fn main() -> ExitCode {
    if play() {
        return ExitCode::SUCCESS;
    }
    let (mib, rounds) = (number("RCM_BENCH_MIB", 1024), number("RCM_BENCH_ROUNDS", 3));
    println!("\n{}", common::machine());
    println!(
        "\n{:<18} {:<26} {:>10} {:>12} {:>8} {:>8}",
        "link", "yardstick", "MB/s", "rcm MB/s", "rcm is", "target"
    );
    for (name, shape, kind, target) in [
        (
            "1 Gbit/s",
            Some("rate 1gbit burst 256kb latency 50ms"),
            "plain",
            0.95,
        ),
        ("unshaped", None, "tls", 0.60),
    ] {
        let link = Link::new(shape);
        let (mut copies, mut migrations, mut ratios) = (vec![], vec![], vec![]);
        for _ in 0..rounds {
            let (bytes, took_dur) = migrate(&link, mib);
            let rate = |dur: Duration| bytes as f64 / 1e6 / dur.as_secs_f64();
            let (own, other) = (rate(took_dur), rate(link.copy(kind, bytes)));
            copies.push(other);
            migrations.push(own);
            ratios.push(own / other);
        }
        println!(
            "{name:<18} {:<26} {:>10.0} {:>12.0} {:>7.0}% {:>7.0}%",
            match kind {
                "tls" => "one TLS 1.3 connection",
                _ => "plain TCP",
            },
            median(&mut copies),
            median(&mut migrations),
            median(&mut ratios) * 100.0,
            target * 100.0
        );
        // Shows each row of the table at once.
        let _ = io::stdout().flush();
    }
    ExitCode::SUCCESS
}
