//! Limits that `update` can change, and their storage in a spec.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// The part of `linux.resources` that can change while a container executes. Absent means
/// unchanged. Other members (devices, huge pages, network, RDMA) are ignored, as with runc.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// Memory.
    #[serde(deserialize_with = "null_is_empty")]
    pub memory: Memory,
    /// Processors.
    #[serde(deserialize_with = "null_is_empty")]
    pub cpu: Cpu,
    /// Block devices.
    #[serde(rename = "blockIO", deserialize_with = "null_is_empty")]
    pub block_io: BlockIo,
    /// Tasks.
    #[serde(deserialize_with = "null_is_empty")]
    pub pids: Pids,
    /// Files of cgroup v2, by name.
    #[serde(deserialize_with = "null_is_empty")]
    pub unified: BTreeMap<String, String>,
}

/// Memory, in bytes; -1 for no limit.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    /// The limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
    /// Memory that reclaim should leave to the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reservation: Option<i64>,
    /// The limit on memory and swap together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<i64>,
    /// Obsolete: ignored, with a warning.
    #[serde(skip_serializing)]
    pub kernel: Option<i64>,
    /// Obsolete: ignored, with a warning.
    #[serde(rename = "kernelTCP", skip_serializing)]
    pub kernel_tcp: Option<i64>,
    /// Whether to refuse a limit below the current use, instead of reclaiming and killing. cgroup
    /// v1 always refuses if it cannot reclaim enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_before_update: Option<bool>,
}

/// Processors. Times are in microseconds.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cpu {
    /// Weight against other groups, on the scale of cgroup v1: 2 to 262,144.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<u64>,
    /// Time in each period; negative for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<i64>,
    /// Unused time that may be saved up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
    /// The period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period: Option<u64>,
    /// Time of realtime tasks in each period; cgroup v1 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realtime_runtime: Option<i64>,
    /// The period of realtime tasks; cgroup v1 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realtime_period: Option<u64>,
    /// List of the allowed processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<String>,
    /// List of the allowed memory nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mems: Option<String>,
    /// Whether (1) the group executes only if no other does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<i64>,
}

/// Block devices.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BlockIo {
    /// Weight against other groups, 10 to 1,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Weight of the group's own tasks against groups below it; cgroup v1 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaf_weight: Option<u16>,
    /// Weights by device.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_empty"
    )]
    pub weight_device: Vec<WeightDevice>,
    /// Bytes read per second, by device.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_empty"
    )]
    pub throttle_read_bps_device: Vec<ThrottleDevice>,
    /// Bytes written per second, by device.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_empty"
    )]
    pub throttle_write_bps_device: Vec<ThrottleDevice>,
    /// Read operations per second, by device.
    #[serde(
        rename = "throttleReadIOPSDevice",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_empty"
    )]
    pub throttle_read_iops_device: Vec<ThrottleDevice>,
    /// Write operations per second, by device.
    #[serde(
        rename = "throttleWriteIOPSDevice",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_empty"
    )]
    pub throttle_write_iops_device: Vec<ThrottleDevice>,
}

/// Weight for one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct WeightDevice {
    pub major: i64,
    pub minor: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaf_weight: Option<u16>,
}

/// Limit for one device; 0 removes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ThrottleDevice {
    pub major: i64,
    pub minor: i64,
    pub rate: u64,
}

/// Tasks.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pids {
    /// The limit; negative for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
}

/// Reads null as the empty value, as Go does.
fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Resources {
    /// Drops values without a meaning: runc takes zero for "unchanged" if zero makes no sense.
    #[must_use]
    pub(super) fn normalized(mut self) -> Self {
        let Self {
            memory,
            cpu,
            block_io,
            ..
        } = &mut self;
        for bytes in [&mut memory.limit, &mut memory.reservation, &mut memory.swap] {
            bytes.take_if(|bytes| *bytes == 0);
        }
        for number in [&mut cpu.shares, &mut cpu.period, &mut cpu.realtime_period] {
            number.take_if(|number| *number == 0);
        }
        for number in [&mut cpu.quota, &mut cpu.realtime_runtime] {
            number.take_if(|number| *number == 0);
        }
        for list in [&mut cpu.cpus, &mut cpu.mems] {
            list.take_if(|list| list.is_empty());
        }
        for weight in [&mut block_io.weight, &mut block_io.leaf_weight] {
            weight.take_if(|weight| *weight == 0);
        }
        if memory.limit == Some(-1) && memory.swap.is_none() {
            // No limit on memory, but one on memory and swap together, makes no sense.
            memory.swap = Some(-1);
        }
        self
    }

    /// Stores these resources in `target`, the `linux.resources` of a spec.
    pub(super) fn merge_into(&self, target: &mut Value) -> serde_json::Result<()> {
        merge(target, serde_json::to_value(self)?);
        Ok(())
    }
}

fn merge(target: &mut Value, update: Value) {
    match update {
        Value::Object(update) => {
            if !target.is_object() {
                if update.is_empty() {
                    return;
                }
                *target = Value::Object(Map::new());
            }
            if let Value::Object(target) = target {
                for (name, value) in update {
                    if !target.contains_key(&name) && is_empty(&value) {
                        continue;
                    }
                    merge(target.entry(name).or_insert(Value::Null), value);
                }
            }
        }
        // Lists of devices are merged device by device.
        Value::Array(devices) => {
            if !target.is_array() {
                *target = Value::Array(Vec::new());
            }
            if let Value::Array(target) = target {
                for device in devices {
                    // Of two entries for one device, the last one applies.
                    let same = target.iter_mut().rfind(|one| {
                        one.get("major") == device.get("major")
                            && one.get("minor") == device.get("minor")
                    });
                    match same {
                        Some(one) => merge(one, device),
                        None => target.push(device),
                    }
                }
            }
        }
        value => *target = value,
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Resources {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn partial_documents() {
        assert_eq!(read(json!({})), Resources::default());
        assert_eq!(
            read(
                json!({"memory": null, "cpu": {"quota": null}, "blockIO": {"weightDevice": null}, "pids": {}, "devices": []})
            ),
            Resources::default()
        );
        let some = read(json!({"cpu": {"idle": 1}, "pids": {"limit": 0}}));
        assert_eq!((some.cpu.idle, some.pids.limit), (Some(1), Some(0)));
        assert!(serde_json::from_value::<Resources>(json!({"memory": {"limit": "1"}})).is_err());
    }

    #[test]
    fn zero_is_unchanged_where_it_makes_no_sense() {
        let zeros = read(json!({
            "memory": {"limit": 0, "swap": 0, "reservation": 0},
            "cpu": {"shares": 0, "quota": 0, "period": 0, "burst": 0, "cpus": "", "idle": 0},
            "blockIO": {"weight": 0}, "pids": {"limit": 0}
        }))
        .normalized();
        let kept = read(json!({"cpu": {"burst": 0, "idle": 0}, "pids": {"limit": 0}}));
        assert_eq!(zeros, kept);
    }

    #[test]
    fn unlimited_memory_means_unlimited_swap() {
        let unlimited = read(json!({"memory": {"limit": -1}})).normalized();
        assert_eq!(unlimited.memory.swap, Some(-1));
        let limited = read(json!({"memory": {"limit": -1, "swap": 5}})).normalized();
        assert_eq!(limited.memory.swap, Some(5));
    }

    #[test]
    fn only_what_changes_is_entered() {
        let mut spec = json!({
            "devices": [{"allow": false}],
            "memory": {"limit": 1, "swap": 2},
            "blockIO": {"throttleReadBpsDevice": [
                {"major": 8, "minor": 0, "rate": 1}, {"major": 8, "minor": 16, "rate": 2}
            ]}
        });
        let update = json!({
            "memory": {"limit": 7},
            "cpu": {"cpus": "0"},
            "blockIO": {"throttleReadBpsDevice": [
                {"major": 8, "minor": 16, "rate": 9}, {"major": 8, "minor": 32, "rate": 3}
            ]}
        });
        read(update).merge_into(&mut spec).unwrap();
        assert_eq!(
            spec,
            json!({
                "devices": [{"allow": false}],
                "memory": {"limit": 7, "swap": 2},
                "cpu": {"cpus": "0"},
                "blockIO": {"throttleReadBpsDevice": [
                    {"major": 8, "minor": 0, "rate": 1}, {"major": 8, "minor": 16, "rate": 9}, {"major": 8, "minor": 32, "rate": 3}
                ]}
            })
        );
        let mut absent = Value::Null;
        read(json!({"pids": {"limit": 3}}))
            .merge_into(&mut absent)
            .unwrap();
        assert_eq!(absent, json!({"pids": {"limit": 3}}));
    }
}
