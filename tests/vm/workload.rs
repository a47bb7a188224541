//! Memory that changes at a set rate and can be checked, for the scenarios.
//!
//!     workload MEMORY_MIB HOT_MIB RATE_KIB_PER_SECOND
//!
//! Every page holds words that follow from its number and its version. The hot pages are written in
//! turn, each write making the next version. In `/dev/shm`:
//!
//! * `ticks`: how often the loop went round, so that a reader sees that the program runs
//! * `gap`: the longest time between two rounds of the loop so far, in milliseconds of the hosts'
//!   clocks: the downtime that a program sees, as far as the clocks of two hosts agree
//! * `check`: as soon as it exists, all the memory is compared with the expected contents, and the
//!   file is replaced by `verdict`, which is `intact` or names the wrong page

use std::fs;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const PAGE_WORDS: usize = 512;
const PAGES_PER_MIB: usize = 256;
const KIB_PER_PAGE: usize = 4;
const TICK: Duration = Duration::from_millis(10);
const CHECK: &str = "/dev/shm/check";
const VERDICT: &str = "/dev/shm/verdict";

/// Pages in turn have other contents, and no two versions of a page are the same.
fn word(page: usize, version: u64) -> u64 {
    ((page as u64) << 32 | version).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis())
}

fn verdict(memory: &[u64], versions: &[u64]) -> String {
    let wrong = memory
        .chunks_exact(PAGE_WORDS)
        .zip(versions)
        .enumerate()
        .find(|(page, (words, version))| words.iter().any(|&found| found != word(*page, **version)));
    match wrong {
        None => "intact\n".into(),
        Some((page, (words, version))) => format!("page {page}: version {version}, but {:x}\n", words[0]),
    }
}

fn main() {
    let numbers: Vec<usize> = std::env::args()
        .skip(1)
        .map(|argument| argument.parse().expect("a number"))
        .collect();
    let [memory_mib, hot_mib, rate_kib] = numbers[..] else {
        panic!("usage: workload MEMORY_MIB HOT_MIB RATE_KIB_PER_SECOND");
    };
    let pages = memory_mib * PAGES_PER_MIB;
    let hot = (hot_mib * PAGES_PER_MIB).clamp(1, pages);
    let mut versions = vec![0_u64; pages];
    let mut memory = vec![0_u64; pages * PAGE_WORDS];
    for page in 0..pages {
        memory[page * PAGE_WORDS..][..PAGE_WORDS].fill(word(page, 0));
    }

    let (mut next, mut ticks, mut gap_ms) = (0, 0_u64, 0);
    let mut due = 0.0;
    let mut last_ms = now_ms();
    loop {
        let tick_ms = now_ms();
        let passed_ms = tick_ms.saturating_sub(last_ms);
        last_ms = tick_ms;
        // Writes that were missed while the program was frozen are not made up for.
        due += (passed_ms.min(50) as f64 / 1e3) * (rate_kib / KIB_PER_PAGE) as f64;
        while due >= 1.0 {
            versions[next] += 1;
            memory[next * PAGE_WORDS..][..PAGE_WORDS].fill(word(next, versions[next]));
            next = (next + 1) % hot;
            due -= 1.0;
        }
        if passed_ms > gap_ms && ticks > 0 {
            gap_ms = passed_ms;
            fs::write("/dev/shm/gap", format!("{gap_ms}\n")).expect("gap");
        }
        ticks += 1;
        if ticks % 10 == 0 {
            fs::write("/dev/shm/ticks", format!("{ticks}\n")).expect("ticks");
            if fs::remove_file(CHECK).is_ok() {
                fs::write(VERDICT, verdict(&memory, &versions)).expect("verdict");
                last_ms = now_ms();
            }
        }
        sleep(TICK);
    }
}
