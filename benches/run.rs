//! rcm beside runc and youki: how long the verbs take that an engine calls for every container.
//!
//! One container with busybox's `true`, the same bundle for all; the runtimes take turns in every round, so that a
//! machine that is busy for a while is busy for all of them. `make bench` provides the others: runc is that of the distribution, youki the
//! path in `RCM_BENCH_YOUKI`. `RCM_BENCH_ROUNDS` says how many rounds there are (100).

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use common::{Bundle, Cmd, Host};

const DEFAULT_ROUNDS: usize = 100;
/// What takes longer hangs; youki 0.7's foreground run does now and then. It is counted, not measured.
const HANG_DUR: Duration = Duration::from_secs(5);

/// What is measured. `run` is the whole life of a container that ends at once, in the foreground; the next four are the life of another, whose
/// sum without `exec` is the last.
const OPERATIONS: [&str; 6] = [
    "run",
    "create",
    "start",
    "exec",
    "delete --force",
    "create+start+delete",
];
const RUN: usize = 0;
const CREATE: usize = 1;
const EXEC: usize = 3;
const WHOLE: usize = 5;

/// One runtime and what was measured of it, by operation.
struct Runtime {
    name: &'static str,
    version: String,
    host: Host,
    short: Bundle,
    long: Bundle,
    samples: Vec<Vec<Duration>>,
    hangs: Vec<usize>,
}

impl Runtime {
    fn new(name: &'static str, program: &Path) -> Self {
        let host = Host::new().with_program(program);
        let output = Command::new(program).arg("--version").output();
        let version = output
            .ok()
            .and_then(|output| String::from_utf8(output.stdout).ok())
            .and_then(|text| text.lines().next().map(str::to_owned))
            .unwrap_or_default();
        Self {
            name,
            version,
            short: host.bundle("short").args(["/bin/true"]),
            long: host.bundle("long").args(["/bin/sleep", "1000"]),
            host,
            samples: vec![Vec::new(); OPERATIONS.len()],
            hangs: vec![0; OPERATIONS.len()],
        }
    }

    /// Measures one command. Returns how long it took, or none if it hung.
    fn measure(&mut self, operation: usize, command: Cmd) -> Option<Duration> {
        let begin = Instant::now();
        let mut running = command.spawn();
        let ended = running.ends_within(HANG_DUR);
        let took_dur = begin.elapsed();
        if !ended {
            self.hangs[operation] += 1;
            return None;
        }
        running.wait().ok();
        self.samples[operation].push(took_dur);
        Some(took_dur)
    }

    fn round(&mut self) {
        let run = self.host.cmd("run").bundle(&self.short);
        if self.measure(RUN, run).is_none() {
            self.host.delete(self.short.id());
        }
        let id = self.long.id();
        let commands = [
            self.host.cmd("create").bundle(&self.long),
            self.host.cmd("start").arg(id),
            self.host.cmd("exec").args([id, "/bin/true"]),
            self.host.cmd("delete").args(["--force", id]),
        ];
        let mut whole_dur = Duration::ZERO;
        for (operation, command) in (CREATE..).zip(commands) {
            let Some(took_dur) = self.measure(operation, command) else {
                self.host.delete(self.long.id());
                return;
            };
            if operation != EXEC {
                whole_dur += took_dur;
            }
        }
        self.samples[WHOLE].push(whole_dur);
    }
}

/// The value below which `part` of a hundred samples lie, in milliseconds.
fn percentile(samples: &[Duration], part: usize) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort();
    let index = (sorted.len() * part / 100).min(sorted.len().checked_sub(1)?);
    Some(sorted[index].as_secs_f64() * 1e3)
}

fn print_table(runtimes: &[Runtime]) {
    println!("\n{}", common::machine());
    for runtime in runtimes {
        println!("  {:<6} {}", runtime.name, runtime.version);
    }
    println!(
        "\n{:<20} {:<6} {:>10} {:>10} {:>8} {:>8} {:>6}",
        "", "", "median ms", "90 % ms", "rcm is", "samples", "hangs"
    );
    for (operation, name) in OPERATIONS.iter().enumerate() {
        let own = percentile(&runtimes[0].samples[operation], 50);
        for (index, runtime) in runtimes.iter().enumerate() {
            let samples = &runtime.samples[operation];
            let number = |part| {
                percentile(samples, part).map_or("-".to_owned(), |millis| format!("{millis:.1}"))
            };
            let ratio = match own.zip(percentile(samples, 50)) {
                Some((own, other)) if index > 0 => format!("{:.2} x", own / other),
                _ => String::new(),
            };
            println!(
                "{:<20} {:<6} {:>10} {:>10} {:>8} {:>8} {:>6}",
                if index == 0 { name } else { "" },
                runtime.name,
                number(50),
                number(90),
                ratio,
                samples.len(),
                runtime.hangs[operation]
            );
        }
    }
    println!("\n\"rcm is\": rcm's median as a multiple of the other's; below 1 rcm is faster.");
}

/// The program `name` on the PATH.
fn find(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

fn main() -> ExitCode {
    let rounds = match std::env::var("RCM_BENCH_ROUNDS").map(|text| text.parse()) {
        Ok(Ok(rounds)) => rounds,
        Err(_) => DEFAULT_ROUNDS,
        Ok(Err(error)) => {
            eprintln!("RCM_BENCH_ROUNDS: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut runtimes = vec![Runtime::new("rcm", env!("CARGO_BIN_EXE_rcm").as_ref())];
    match find("runc") {
        Some(path) => runtimes.push(Runtime::new("runc", &path)),
        None => eprintln!("runc is not on the PATH: left out (`make deps` installs it)"),
    }
    match std::env::var_os("RCM_BENCH_YOUKI").filter(|path| !path.is_empty()) {
        Some(path) => runtimes.push(Runtime::new("youki", path.as_ref())),
        None => eprintln!("RCM_BENCH_YOUKI is not set: youki left out (`make bench` sets it)"),
    }
    // The first round fills caches and does not count.
    for runtime in &mut runtimes {
        runtime.round();
        runtime.samples.iter_mut().for_each(Vec::clear);
        runtime.hangs.fill(0);
    }
    for _ in 0..rounds {
        for runtime in &mut runtimes {
            runtime.round();
        }
    }
    print_table(&runtimes);
    ExitCode::SUCCESS
}
