//! Stops a process at an exact point of a scenario, as the fault matrix of tests/it/migrate does.
//!
//!     stop_at PID FILE TEXT [FILE TEXT]...
//!
//! The process, which may be stopped by a signal, is traced from one system call to the next until
//! one of the files contains its text. At that point the process has not begun its next step. Then
//! `/tmp/stopped` is made, and the process continues when that is removed. Exit status 1 if the
//! process ended before.

use std::ffi::{c_int, c_long, c_void};
use std::fs;
use std::path::Path;
use std::process::exit;
use std::ptr::null_mut;
use std::thread::sleep;
use std::time::Duration;

const SYSCALL: c_int = 24;
const DETACH: c_int = 17;
const SEIZE: c_int = 0x4206;
const INTERRUPT: c_int = 0x4207;
const SYSGOOD: usize = 1;
const WALL: c_int = 0x4000_0000;
const SIGTRAP: c_int = 5;
const SIGCONT: c_int = 18;
const STOPPED: &str = "/tmp/stopped";

unsafe extern "C" {
    fn ptrace(request: c_int, pid: c_int, address: *mut c_void, data: *mut c_void) -> c_long;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
}

fn trace(request: c_int, pid: c_int, data: usize) -> bool {
    // SAFETY: none of these requests reads or writes this process's memory; the data is a number.
    unsafe { ptrace(request, pid, null_mut(), data as *mut c_void) == 0 }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (pid, conditions) = match arguments.split_first() {
        Some((pid, rest)) if !rest.is_empty() && rest.len() % 2 == 0 => (pid.parse().expect("a process id"), rest),
        _ => panic!("usage: stop_at PID FILE TEXT [FILE TEXT]..."),
    };
    let is_reached = || {
        let holds = |pair: &[String]| fs::read_to_string(&pair[0]).is_ok_and(|text| text.contains(&pair[1]));
        conditions.chunks(2).any(holds)
    };
    assert!(trace(SEIZE, pid, SYSGOOD), "cannot trace {pid}");
    // SAFETY: no memory is involved.
    unsafe { kill(pid, SIGCONT) };
    trace(INTERRUPT, pid, 0);
    loop {
        let mut status = 0;
        // SAFETY: the status is a place for one number.
        if unsafe { waitpid(pid, &mut status, WALL) } != pid || status & 0xff != 0x7f {
            exit(1);
        }
        let (signal, event) = (status >> 8 & 0xff, status >> 16);
        let is_own = signal == SIGTRAP | 0x80 || event != 0;
        if is_own && is_reached() {
            break;
        }
        trace(SYSCALL, pid, if is_own { 0 } else { signal as usize });
    }
    fs::write(STOPPED, "").expect("a file");
    while Path::new(STOPPED).exists() {
        sleep(Duration::from_millis(5));
    }
    trace(DETACH, pid, 0);
}
