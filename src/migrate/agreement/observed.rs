//! Judgement of the source's observations of the running container.

use serde_json::Value;

use super::local::Local;
use crate::migrate::wire::facts::{CgroupMode, Facts};
use crate::migrate::wire::finding::Finding;
use crate::migrate::wire::id::Side;
use crate::migrate::wire::preamble::Preamble;

/// Difference of the clocks that is worth a warning, in milliseconds. The travel time of the
/// message is far below it.
const CLOCK_TOLERANCE_MS: u64 = 5_000;
/// Number of files that a finding names.
const NAMED_FILES: usize = 5;

/// Adds the findings about the observations and the destination's answers to them.
pub(crate) fn judge(preamble: &Preamble, here: &Facts, local: &Local, findings: &mut Vec<Finding>) {
    let mut error = |what: String, remedy: &str| {
        findings.push(Finding::error(Side::Destination, what, remedy));
    };
    if let [first, rest @ ..] = &local.differing_files[..] {
        let mut names = first.display().to_string();
        for path in rest.iter().take(NAMED_FILES - 1) {
            names += &format!(", {}", path.display());
        }
        if rest.len() >= NAMED_FILES {
            names += &format!(" and {} more", rest.len() + 1 - NAMED_FILES);
        }
        error(
            format!(
                "not the source's files in {}: {names}",
                local.rootfs.display()
            ),
            "provide the same tree as at the source",
        );
    }
    for address in &local.missing_addresses {
        match &local.network_namespace {
            Some(path) => error(
                format!(
                    "no interface in the network namespace {} has the address {address} of the container's connections",
                    path.display()
                ),
                "add the address there (`nsenter --net=PATH ip address add ADDRESS dev INTERFACE`), or close the connections",
            ),
            None => error(
                format!("no interface has the address {address} of the container's connections"),
                "move the address here first, or close the connections",
            ),
        }
    }
    // Different versions are a finding of their own.
    if preamble.facts.cgroup_mode == here.cgroup_mode {
        let missing: Vec<&str> = controllers(&preamble.spec, here.cgroup_mode)
            .into_iter()
            .filter(|&name| {
                preamble.facts.cgroup_controllers.contains(name)
                    && !here.cgroup_controllers.contains(name)
            })
            .collect();
        if !missing.is_empty() {
            error(
                format!(
                    "no control group controller {}, which the container's limits need",
                    missing.join(", ")
                ),
                "enable it in the kernel (cgroup_disable= of the boot parameters)",
            );
        }
    }
    if let (Some(there_ms), Some(here_ms)) = (preamble.clock_ms, local.clock_ms)
        && there_ms.abs_diff(here_ms) > CLOCK_TOLERANCE_MS
    {
        let seconds = there_ms.abs_diff(here_ms) as f64 / 1e3;
        let way = if here_ms > there_ms {
            "ahead of"
        } else {
            "behind"
        };
        findings.push(Finding::warning(
            Side::Destination,
            format!("the clock is {seconds:.1} s {way} the source's"),
            "set both by NTP: the container sees its wall clock jump",
        ));
    }
}

/// Returns the controllers that the limits of a spec need (OCI runtime specification,
/// config-linux.md, "Control groups").
fn controllers(spec: &Value, mode: CgroupMode) -> Vec<&'static str> {
    let limits = |pointer: &str| {
        spec.pointer(pointer)
            .and_then(Value::as_object)
            .is_some_and(|limits| limits.values().any(|limit| !limit.is_null()))
    };
    let has_cpu = |names: &[&str]| {
        names.iter().any(|name| {
            spec.pointer("/linux/resources/cpu")
                .and_then(|cpu| cpu.get(name))
                .is_some_and(|limit| !limit.is_null())
        })
    };
    let block = match mode {
        CgroupMode::Unified => "io",
        CgroupMode::Legacy => "blkio",
    };
    let hugepages = spec
        .pointer("/linux/resources/hugepageLimits")
        .and_then(Value::as_array)
        .is_some_and(|limits| !limits.is_empty());
    [
        ("memory", limits("/linux/resources/memory")),
        (
            "cpu",
            has_cpu(&["shares", "quota", "period", "burst", "idle"]),
        ),
        ("cpuset", has_cpu(&["cpus", "mems"])),
        ("pids", limits("/linux/resources/pids")),
        (block, limits("/linux/resources/blockIO")),
        ("hugetlb", hugepages),
    ]
    .into_iter()
    .filter(|(_, needed)| *needed)
    .map(|(name, _)| name)
    .collect()
}
