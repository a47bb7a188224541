//! Rewriting of spec properties that the types of `oci-spec` do not accept: absent members, flags
//! with another name, and values for which runc has sentences of its own. It works on the JSON,
//! before it is converted to types.

use serde::de::Error as _;
use serde_json::{Error, Map, Value, json};

const MEMORY_MODES: [&str; 7] = [
    "MPOL_DEFAULT",
    "MPOL_BIND",
    "MPOL_INTERLEAVE",
    "MPOL_WEIGHTED_INTERLEAVE",
    "MPOL_PREFERRED",
    "MPOL_PREFERRED_MANY",
    "MPOL_LOCAL",
];
const MEMORY_FLAGS: [&str; 3] = [
    "MPOL_F_NUMA_BALANCING",
    "MPOL_F_RELATIVE_NODES",
    "MPOL_F_STATIC_NODES",
];
/// Limit on NUMA nodes; no kernel is built for more (`CONFIG_NODES_SHIFT`).
const MOST_NODES: u64 = 1 << 10;

/// Scheduler flags of the OCI specification that `oci-spec` spells differently.
const SCHEDULER_FLAGS: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

/// Counts the numbers in a list of the kernel ("0-3,7"); `None` if the text is no list.
pub(crate) fn count_of_list(list: &str) -> Option<u64> {
    list.trim()
        .split(',')
        .filter(|range| !range.is_empty())
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            last.checked_sub(first)?.checked_add(1)
        })
        .sum()
}

/// Rewrites the `process` of a spec.
pub(crate) fn adapt_process(process: &mut Value) {
    let Value::Object(process) = process else {
        return;
    };
    // Go's decoder gives absent members these defaults. An empty working directory is refused
    // later, with its name.
    process.entry("user").or_insert_with(|| json!({}));
    process.entry("cwd").or_insert_with(|| json!(""));
    let flags = process
        .get_mut("scheduler")
        .and_then(|scheduler| scheduler.get_mut("flags"))
        .and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        if let Some((_, known)) = SCHEDULER_FLAGS.iter().find(|(name, _)| flag == name) {
            *flag = json!(known);
        }
    }
}

/// Checks `linux.memoryPolicy` of a spec, with runc's sentences.
///
/// # Errors
/// runc's sentence.
pub(crate) fn check_memory_policy(spec: &Value) -> Result<(), Error> {
    let Some(Value::Object(policy)) = spec.pointer("/linux/memoryPolicy") else {
        return Ok(());
    };
    memory_policy(policy).map_err(Error::custom)
}

fn memory_policy(policy: &Map<String, Value>) -> Result<(), String> {
    let text = |name: &str| policy.get(name).and_then(Value::as_str).unwrap_or_default();
    let (mode, list) = (text("mode"), text("nodes"));
    if !MEMORY_MODES.contains(&mode) {
        return Err(format!("invalid memory policy mode {mode:?}"));
    }
    let nodes = count_of_list(list)
        .filter(|nodes| *nodes <= MOST_NODES)
        .ok_or_else(|| format!("invalid memory policy nodes {list:?}"))?;
    let flags = policy.get("flags").and_then(Value::as_array);
    for flag in flags.into_iter().flatten() {
        let flag = flag.as_str().unwrap_or_default();
        if !MEMORY_FLAGS.contains(&flag) {
            return Err(format!("invalid memory policy flag {flag:?}"));
        }
    }
    match mode {
        "MPOL_DEFAULT" | "MPOL_LOCAL" if nodes > 0 => Err(format!(
            "memory policy mode requires 0 nodes but got {nodes}"
        )),
        "MPOL_DEFAULT" | "MPOL_LOCAL" | "MPOL_PREFERRED" => Ok(()),
        _ if nodes == 0 => Err("memory policy mode requires at least one node but got 0".into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_are_left_out() {
        let mut process = json!({
            "args": ["true"],
            "scheduler": {"policy": "SCHED_DEADLINE", "flags": ["SCHED_FLAG_RESET_ON_FORK"]}
        });
        adapt_process(&mut process);
        let process: oci_spec::runtime::Process = serde_json::from_value(process).unwrap();
        assert_eq!(process.user().uid(), 0);
        assert!(process.cwd().as_os_str().is_empty());
    }

    #[test]
    fn memory_policies() {
        let check = |policy: Value| {
            check_memory_policy(&json!({"linux": {"memoryPolicy": policy}}))
                .map_err(|error| error.to_string())
        };
        for (policy, sentence) in [
            (json!({}), r#"invalid memory policy mode """#),
            (
                json!({"mode": "INTERLEAVE", "nodes": "0"}),
                r#"invalid memory policy mode "INTERLEAVE""#,
            ),
            (
                json!({"mode": "MPOL_PREFERRED", "flags": ["badflag"]}),
                r#"invalid memory policy flag "badflag""#,
            ),
            (
                json!({"mode": "MPOL_DEFAULT", "nodes": "0-7"}),
                "memory policy mode requires 0 nodes but got 8",
            ),
            (
                json!({"mode": "MPOL_BIND", "nodes": "0-9876543210"}),
                r#"invalid memory policy nodes "0-9876543210""#,
            ),
            (
                json!({"mode": "MPOL_BIND"}),
                "memory policy mode requires at least one node but got 0",
            ),
        ] {
            assert_eq!(check(policy).unwrap_err(), sentence);
        }
        check(
            json!({"mode": "MPOL_PREFERRED", "nodes": "0,2-3", "flags": ["MPOL_F_STATIC_NODES"]}),
        )
        .unwrap();
        check(json!({"mode": "MPOL_DEFAULT"})).unwrap();
    }
}
