//! Compares rcm with runc, crun and youki: the time and memory of the verbs that an engine calls
//! for every container.
//!
//! All runtimes use the same bundle with busybox's `true`. They take turns in every round, so that
//! a temporary load of the machine affects all of them. `make bench` provides the others: runc and
//! crun are those of the distribution, youki is the path in `RCM_BENCH_YOUKI`. `RCM_BENCH_ROUNDS`
//! is the number of rounds (100).
//!
//! # How memory is measured
//!
//! Memory is measured in rounds of its own. A small child of this program starts every command and
//! then asks getrusage(2) for `RUSAGE_CHILDREN`. `ru_maxrss` is the largest resident set that the
//! command, or one of its descendants that was waited for, has had at any time. It includes shared
//! pages of the program and its libraries. It is the largest of them, not their sum. The
//! container's first process keeps running, so it is not included. execve(2) keeps the peak of the
//! process before, so no number is below the need of the small child itself. That need is measured
//! with `true` and printed.

#[path = "../tests/it/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use common::{Bundle, Cmd, Host};
use nix::sys::resource::{UsageWho, getrusage};

const DEFAULT_ROUNDS: usize = 100;
/// Memory differs little between rounds.
const MOST_PEAK_ROUNDS: usize = 20;
/// Makes this program the small child. The file for the peak and the command follow.
const PEAK: &str = "--peak";
/// Limit for one command. A command that takes longer hangs, as youki 0.7's foreground run
/// sometimes does. It is counted, not measured.
const HANG_DUR: Duration = Duration::from_secs(5);

/// The measured operations. `run` is the whole life of a container that ends at once, in the
/// foreground. The next four are the life of another container. The last is their sum without
/// `exec`.
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

/// One runtime and its measurements, by operation.
struct Runtime {
    name: &'static str,
    version: String,
    host: Host,
    short: Bundle,
    long: Bundle,
    samples: Vec<Vec<Duration>>,
    hangs: Vec<usize>,
    /// File to which the small child writes the peak, in the rounds for memory.
    peak_path: Option<PathBuf>,
    /// Peaks in KiB.
    peaks: Vec<Vec<u64>>,
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
        // The newest version that all accept: crun of Debian 12 knows no newer one.
        let bundle = |id| host.bundle(id).set("/ociVersion", "1.0.2".into());
        Self {
            name,
            version,
            short: bundle("short").args(["/bin/true"]),
            long: bundle("long").args(["/bin/sleep", "1000"]),
            host,
            samples: vec![Vec::new(); OPERATIONS.len()],
            hangs: vec![0; OPERATIONS.len()],
            peak_path: None,
            peaks: vec![Vec::new(); OPERATIONS.len()],
        }
    }

    /// Whether it runs a container here. Prints a line if it does not.
    fn runs_here(&self) -> bool {
        let output = self.host.cmd("run").bundle(&self.short).run();
        let works = !self.version.is_empty() && output.code() == 0;
        if !works {
            eprintln!("{} does not run here: left out\n{output:?}", self.name);
            self.host.delete(self.short.id());
        }
        works
    }

    /// Measures memory instead of time from now on.
    fn measuring_peaks(self, bench: &Path) -> Self {
        let path = self.host.dir().join("peak");
        let limit = HANG_DUR.as_secs().to_string();
        let words = [bench.as_os_str(), PEAK.as_ref(), path.as_os_str()].map(ToOwned::to_owned);
        // Killing the small child alone would leave the hanging command behind.
        let within = ["timeout", "--signal=KILL", &limit].map(Into::into);
        Self {
            host: self.host.with_prefix(words.into_iter().chain(within)),
            peak_path: Some(path),
            ..self
        }
    }

    /// Measures one command. Returns its duration; `None` if it hung.
    fn measure(&mut self, operation: usize, command: Cmd) -> Option<Duration> {
        let begin = Instant::now();
        let mut running = command.spawn();
        let ended = running.ends_within(HANG_DUR);
        let took_dur = begin.elapsed();
        if let Some(path) = &self.peak_path {
            let _ = running.wait();
            self.peaks[operation].push(peak(path)?);
            return Some(took_dur);
        }
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
        if self.peak_path.is_none() {
            self.samples[WHOLE].push(whole_dur);
        }
    }
}

/// Reads the peak that the small child has written; `None` if the command failed.
fn peak(path: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let _ = std::fs::remove_file(path);
    text.parse().ok()
}

/// The small child: executes a command and, if that succeeds, writes the peak of its memory.
fn be_small_child(mut args: impl Iterator<Item = std::ffi::OsString>) -> Option<()> {
    let path = args.next()?;
    let status = Command::new(args.next()?).args(args).status().ok()?;
    let kib = getrusage(UsageWho::RUSAGE_CHILDREN).ok()?.max_rss();
    status.success().then_some(())?;
    std::fs::write(path, kib.to_string()).ok()
}

/// Returns the peak of a command that needs next to nothing, in KiB.
fn least_peak(bench: &Path, dir: &Path) -> Option<u64> {
    let path = dir.join("least-peak");
    let mut command = Command::new(bench);
    command.arg(PEAK).arg(&path).args(["timeout", "5", "true"]);
    command.status().ok()?;
    peak(&path)
}

/// Returns the value below which `part` of a hundred samples lie, in milliseconds.
fn percentile(samples: &[Duration], part: usize) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort();
    let index = (sorted.len() * part / 100).min(sorted.len().checked_sub(1)?);
    Some(sorted[index].as_secs_f64() * 1e3)
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

fn print_table(runtimes: &[Runtime], least_peak: Option<u64>) {
    println!("\n{}", common::machine());
    for runtime in runtimes {
        println!("  {:<6} {}", runtime.name, runtime.version);
    }
    println!(
        "\n{:<20} {:<6} {:>10} {:>10} {:>8} {:>8} {:>6} {:>9}",
        "", "", "median ms", "90 % ms", "rcm is", "samples", "hangs", "peak MiB"
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
            let mut peaks = runtime.peaks[operation].clone();
            peaks.sort_unstable();
            let peak = peaks
                .get(peaks.len() / 2)
                .map_or("-".to_owned(), |kib| format!("{:.1}", mib(*kib)));
            println!(
                "{:<20} {:<6} {:>10} {:>10} {:>8} {:>8} {:>6} {peak:>9}",
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
    if let Some(kib) = least_peak {
        println!(
            "\"peak\": median of the largest resident set of a process of the command; not below {:.1} MiB, which measuring needs.",
            mib(kib)
        );
    }
}

/// Finds the program `name` on the PATH.
fn find(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|word| word == PEAK) {
        return match be_small_child(args) {
            Some(()) => ExitCode::SUCCESS,
            None => ExitCode::FAILURE,
        };
    }
    let rounds = match std::env::var("RCM_BENCH_ROUNDS").map(|text| text.parse()) {
        Ok(Ok(rounds)) => rounds,
        Err(_) => DEFAULT_ROUNDS,
        Ok(Err(error)) => {
            eprintln!("RCM_BENCH_ROUNDS: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut runtimes = vec![Runtime::new("rcm", env!("CARGO_BIN_EXE_rcm").as_ref())];
    let mut add = |name: &'static str, program: Option<PathBuf>, hint: &str| match program {
        Some(path) => runtimes.extend(Some(Runtime::new(name, &path)).filter(Runtime::runs_here)),
        None => eprintln!("{name} left out: {hint}"),
    };
    add(
        "runc",
        find("runc"),
        "not on the PATH, `make deps` installs it",
    );
    add(
        "crun",
        find("crun"),
        "not on the PATH, `make bench` installs it",
    );
    let youki = std::env::var_os("RCM_BENCH_YOUKI").filter(|path| !path.is_empty());
    let hint = "RCM_BENCH_YOUKI is not set, `make bench` sets it";
    add("youki", youki.map(PathBuf::from), hint);
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
    let Ok(bench) = std::env::current_exe() else {
        eprintln!("cannot find this program, which measures memory, too");
        return ExitCode::FAILURE;
    };
    let mut runtimes: Vec<_> = runtimes
        .into_iter()
        .map(|runtime| runtime.measuring_peaks(&bench))
        .collect();
    for _ in 0..rounds.min(MOST_PEAK_ROUNDS) {
        for runtime in &mut runtimes {
            runtime.round();
        }
    }
    let least_peak = least_peak(&bench, runtimes[0].host.dir());
    print_table(&runtimes, least_peak);
    ExitCode::SUCCESS
}
