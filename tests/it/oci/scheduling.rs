//! Scheduling of a container's processes: priorities, policies, processors, memory nodes, limits.
//! The settings of the spec apply to processes that join, too.

use std::fs;

use crate::common::{Bundle, Cmd, Host, Output, skip};
use serde_json::{Value, json};

fn sleeper(host: &Host) -> Bundle {
    host.bundle("web").args(["sleep", "1000"])
}

/// Executes a process from a file in the container: `args`, and other fields of the process.
fn exec_process(host: &Host, args: &[&str], mut process: Value) -> Cmd {
    process["args"] = json!(args);
    process["cwd"] = json!("/");
    process["env"] = json!(["PATH=/bin"]);
    let path = host.dir().join("process.json");
    fs::write(&path, process.to_string()).unwrap();
    host.cmd("exec").arg("--process").arg(path).arg("web")
}

/// A field of `/proc/PID/stat` by its number in proc_pid_stat(5).
fn stat_field(pid: i32, number: usize) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = text.rsplit_once(") ").unwrap();
    rest.split(' ').nth(number - 3).unwrap().to_owned()
}

/// The nice value and the scheduling policy (sched(7)) of a process.
fn nice_and_policy(pid: i32) -> (String, String) {
    (stat_field(pid, 19), stat_field(pid, 41))
}

const BATCH: &str = "3";
const DEADLINE: &str = "6";

#[test]
fn the_priority_of_input_and_output() {
    let host = Host::new();
    let priority = json!({"class": "IOPRIO_CLASS_BE", "priority": 4});
    host.run_detached(&sleeper(&host).set("/process/ioPriority", priority));
    let shown = |output: Output| output.ok().stdout();
    assert_eq!(
        shown(host.exec("web", ["ionice", "-p", "1"])),
        "best-effort: prio 4\n"
    );
    let own = ["sh", "-c", "ionice -p $$"];
    assert_eq!(shown(host.exec("web", own)), "best-effort: prio 4\n");
    let idle = json!({"ioPriority": {"class": "IOPRIO_CLASS_IDLE"}});
    let output = exec_process(&host, &own, idle).run();
    assert!(shown(output).starts_with("idle"));
}

#[test]
fn the_scheduling_policy() {
    let host = Host::new();
    let batch = json!({"policy": "SCHED_BATCH", "nice": 7, "priority": 0});
    host.run_detached(&sleeper(&host).set("/process/scheduler", batch));
    let expected = ("7".to_owned(), BATCH.to_owned());
    assert_eq!(nice_and_policy(host.pid("web")), expected);

    let pid_file = host.dir().join("pid");
    let pid_of = |cmd: Cmd| -> i32 {
        cmd.run().ok();
        fs::read_to_string(&pid_file).unwrap().parse().unwrap()
    };
    let detached = host
        .cmd("exec")
        .arg("--detach")
        .arg("--pid-file")
        .arg(&pid_file);
    let joined = pid_of(detached.args(["web", "sleep", "1000"]));
    assert_eq!(nice_and_policy(joined), expected);

    let deadline = json!({"scheduler": {
        "policy": "SCHED_DEADLINE", "flags": ["SCHED_FLAG_RESET_ON_FORK"],
        "runtime": 42_000, "deadline": 100_000, "period": 1_000_000
    }});
    let other = exec_process(&host, &["sleep", "1000"], deadline);
    let other = pid_of(other.arg("--detach").arg("--pid-file").arg(&pid_file));
    assert_eq!(nice_and_policy(other).1, DEADLINE);
}

#[test]
fn a_deadline_needs_all_processors() {
    if !has_two_processors() {
        skip!("there is one processor only");
    }
    let host = Host::new();
    let deadline = json!({"policy": "SCHED_DEADLINE", "runtime": 42_000, "deadline": 1_000_000, "period": 1_000_000});
    let bundle = sleeper(&host)
        .resource("cpu", json!({"cpus": "0"}))
        .set("/process/scheduler", deadline);
    host.run(&bundle).fails_with(
        1,
        "process scheduler can't be used together with AllowedCPUs",
    );
    let unknown = json!({"policy": "SCHED_WEIRD"});
    host.run(&sleeper(&host).set("/process/scheduler", unknown))
        .exits_with(1);
}

fn has_two_processors() -> bool {
    std::thread::available_parallelism().unwrap().get() > 1
}

/// The processors that a process may use, from its status.
fn allowed(status: &str) -> &str {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.unwrap_or_default().trim()
}

#[test]
fn processors_of_a_process_that_joins() {
    let own = fs::read_to_string("/proc/self/status").unwrap();
    if !has_two_processors() {
        skip!("there is one processor only");
    }
    let host = Host::new();
    let affinity = json!({"initial": "0", "final": "1"});
    host.run_detached(&sleeper(&host).set("/process/execCPUAffinity", affinity));
    // The setting is only for processes that join.
    let first = fs::read_to_string(format!("/proc/{}/status", host.pid("web"))).unwrap();
    assert_eq!(allowed(&first), allowed(&own));
    let status = ["cat", "/proc/self/status"];
    let joined = host.exec("web", status).ok().stdout();
    assert_eq!(allowed(&joined), "1");
    let other = json!({"execCPUAffinity": {"initial": "1", "final": "0"}});
    let joined = exec_process(&host, &status, other).run().ok().stdout();
    assert_eq!(allowed(&joined), "0");
    for wrong in ["x", "1-0", "70000"] {
        let wrong = json!({"execCPUAffinity": {"initial": wrong}});
        let output = exec_process(&host, &status, wrong).run();
        assert!(
            output.code() != 0 && output.stdout().is_empty(),
            "{output:?}"
        );
    }
}

#[test]
fn processors_are_those_of_the_cgroup() {
    let host = Host::new().with_prefix(["taskset", "-c", "0"]);
    if !has_two_processors() {
        skip!("there is one processor only");
    }
    let bundle = sleeper(&host).resource("cpu", json!({"cpus": "1", "mems": "0"}));
    host.run_detached(&bundle);
    for output in [
        host.exec("web", ["cat", "/proc/1/status"]),
        host.exec("web", ["cat", "/proc/self/status"]),
    ] {
        assert_eq!(allowed(&output.ok().stdout()), "1");
    }
}

#[test]
fn memory_comes_from_the_nodes_of_the_policy() {
    const LOOK: &str = "head -n 1 /proc/self/numa_maps | cut -d' ' -f2";
    if fs::metadata("/proc/self/numa_maps").is_err() {
        skip!("the kernel has no memory policies");
    }
    let host = Host::new();
    for (policy, expected) in [
        (
            json!({"mode": "MPOL_INTERLEAVE", "nodes": "0"}),
            "interleave:0",
        ),
        (
            json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}),
            "bind=static:0",
        ),
        (
            json!({"mode": "MPOL_PREFERRED", "nodes": "0", "flags": ["MPOL_F_RELATIVE_NODES"]}),
            "prefer=relative:0",
        ),
        (json!({"mode": "MPOL_LOCAL"}), "local"),
    ] {
        let bundle = sleeper(&host).set("/linux/memoryPolicy", policy);
        host.run_detached(&bundle);
        let first = host.exec_sh("web", "head -n 1 /proc/1/numa_maps | cut -d' ' -f2");
        let joined = host.exec_sh("web", LOOK);
        assert_eq!(joined.ok().stdout().trim(), expected);
        // Without the right to look into others' memory it shows nothing.
        let first = first.stdout();
        assert!(first.trim() == expected || first.is_empty(), "{first}");
        host.delete("web");
    }
}

#[test]
fn resource_limits() {
    const LOOK: &str = "grep -E '^Max (open files|core file size|stack size|processes) ' /proc/self/limits | tr -s ' '";
    let host = Host::new();
    let limit =
        |kind: &str, soft: u64, hard: u64| json!({"type": kind, "soft": soft, "hard": hard});
    let limits = json!([
        limit("RLIMIT_NOFILE", 100, 200),
        limit("RLIMIT_CORE", 0, 0),
        limit("RLIMIT_STACK", 1 << 20, 2 << 20),
        limit("RLIMIT_NPROC", 300, 400)
    ]);
    host.run_detached(&sleeper(&host).set("/process/rlimits", limits));
    let expected = "Max stack size 1048576 2097152 bytes \nMax core file size 0 0 bytes \n\
        Max processes 300 400 processes \nMax open files 100 200 files \n";
    let joined = host.exec_sh("web", LOOK).ok();
    assert_eq!(joined.stdout(), expected);
    let first = fs::read_to_string(format!("/proc/{}/limits", host.pid("web"))).unwrap();
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let first: Vec<_> = first.lines().map(words).collect();
    for line in expected.lines() {
        assert!(
            first.iter().any(|one| one == line.trim()),
            "{line}: {first:?}"
        );
    }
    let own = json!({"rlimits": [limit("RLIMIT_NOFILE", 50, 60)]});
    let output = exec_process(&host, &["sh", "-c", "ulimit -n; ulimit -H -n"], own).run();
    assert_eq!(output.ok().stdout(), "50\n60\n");

    let twice = json!([limit("RLIMIT_NOFILE", 1, 1), limit("RLIMIT_NOFILE", 2, 2)]);
    let above = json!([limit("RLIMIT_NOFILE", 300, 200)]);
    let unknown = json!([limit("RLIMIT_WEIRD", 1, 1)]);
    for wrong in [twice, above, unknown] {
        let bundle = host.bundle("other").set("/process/rlimits", wrong.clone());
        let output = host.run(&bundle);
        assert_eq!(output.code(), 1, "{wrong}");
    }
}

#[test]
fn who_is_killed_when_memory_runs_out() {
    let host = Host::new();
    host.run_detached(&sleeper(&host).set("/process/oomScoreAdj", json!(321)));
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", host.pid("web")));
    assert_eq!(score.unwrap(), "321\n");
    let joined = host.exec("web", ["cat", "/proc/self/oom_score_adj"]).ok();
    assert_eq!(joined.stdout(), "321\n");
}
