use std::fs::File;
use std::io::{self, Read};
use std::str::FromStr;

use anyhow::{Context, anyhow};

use crate::runtime::verbs::update::{self, Request, Resources};

use super::Globals;

/// Update container resource constraints
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name of the container
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    /// File with the resources to update, or '-' for standard input; all other options but those of
    /// Intel RDT are then ignored
    ///
    /// The file has the format of linux.resources in config.json. Resources that it does not name
    /// do not change.
    #[arg(long, short, value_name = "FILE")]
    resources: Option<String>,
    /// Per cgroup weight, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// CPU CFS period to be used for hardcapping, in microseconds
    #[arg(long, value_name = "PERIOD")]
    cpu_period: Option<String>,
    /// CPU CFS hardcap limit: allowed cpu time in a given period, in microseconds, -1 for no limit
    #[arg(long, value_name = "QUOTA", allow_negative_numbers = true)]
    cpu_quota: Option<String>,
    /// CPU CFS hardcap burst limit: unused cpu time that may be saved up, in microseconds
    #[arg(long, value_name = "BURST")]
    cpu_burst: Option<String>,
    /// CPU shares (relative weight vs. other containers)
    #[arg(long, value_name = "SHARES")]
    cpu_share: Option<String>,
    /// CPU realtime period to be used for hardcapping, in microseconds
    #[arg(long, value_name = "PERIOD")]
    cpu_rt_period: Option<String>,
    /// CPU realtime hardcap limit: allowed cpu time in a given period, in microseconds
    #[arg(long, value_name = "RUNTIME", allow_negative_numbers = true)]
    cpu_rt_runtime: Option<String>,
    /// Set cgroup SCHED_IDLE or not: 0 for the default, 1 to execute only when the CPU is otherwise
    /// idle
    #[arg(long, value_name = "IDLE", allow_negative_numbers = true)]
    cpu_idle: Option<String>,
    /// CPU(s) to use
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory node(s) to use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Obsolete
    #[arg(long, hide = true, allow_negative_numbers = true)]
    kernel_memory: Option<String>,
    /// Obsolete
    #[arg(long, hide = true, allow_negative_numbers = true)]
    kernel_memory_tcp: Option<String>,
    /// Memory limit in bytes, or with a unit such as 100M; -1 for no limit
    #[arg(long, value_name = "LIMIT", allow_negative_numbers = true)]
    memory: Option<String>,
    /// Memory reservation or soft limit, in bytes or with a unit
    #[arg(long, value_name = "LIMIT", allow_negative_numbers = true)]
    memory_reservation: Option<String>,
    /// Total memory usage (memory + swap), in bytes or with a unit; -1 for unlimited swap
    #[arg(long, value_name = "LIMIT", allow_negative_numbers = true)]
    memory_swap: Option<String>,
    /// Maximum number of pids allowed in the container; -1 for no limit
    #[arg(long, value_name = "LIMIT", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// The string of Intel RDT/CAT L3 cache schema
    #[arg(long, value_name = "SCHEMA")]
    l3_cache_schema: Option<String>,
    /// The string of Intel RDT/MBA memory bandwidth schema
    #[arg(long, value_name = "SCHEMA")]
    mem_bw_schema: Option<String>,
}

pub fn run(globals: &Globals, args: Args) -> anyhow::Result<i32> {
    let container = globals.load(&args.id)?;
    let resources = match args.resources.as_deref().filter(|path| !path.is_empty()) {
        Some("-") => {
            read_resources(io::stdin().lock()).context("invalid resources on the standard input")?
        }
        Some(path) => {
            let file = File::open(path).with_context(|| format!("cannot open {path}"))?;
            read_resources(file).with_context(|| format!("invalid resources in {path}"))?
        }
        None => resources(&args)?,
    };
    let given = |schema: Option<String>| schema.filter(|schema| !schema.is_empty());
    let request = Request {
        resources,
        l3_cache_schema: given(args.l3_cache_schema),
        mem_bw_schema: given(args.mem_bw_schema),
    };
    update::update(&container, request)?;
    Ok(0)
}

fn read_resources(reader: impl Read) -> anyhow::Result<Resources> {
    // Only the first document counts: Go's decoder does not look further.
    let mut documents = serde_json::Deserializer::from_reader(reader).into_iter();
    documents
        .next()
        .ok_or_else(|| anyhow!("no JSON found"))?
        .map_err(Into::into)
}

fn resources(args: &Args) -> anyhow::Result<Resources> {
    let mut resources = Resources::default();
    let cpu = &mut resources.cpu;
    cpu.period = number("cpu-period", &args.cpu_period)?;
    cpu.quota = number("cpu-quota", &args.cpu_quota)?;
    cpu.burst = number("cpu-burst", &args.cpu_burst)?;
    cpu.shares = number("cpu-share", &args.cpu_share)?;
    cpu.realtime_period = number("cpu-rt-period", &args.cpu_rt_period)?;
    cpu.realtime_runtime = number("cpu-rt-runtime", &args.cpu_rt_runtime)?;
    cpu.idle = number("cpu-idle", &args.cpu_idle)?;
    cpu.cpus.clone_from(&args.cpuset_cpus);
    cpu.mems.clone_from(&args.cpuset_mems);
    let memory = &mut resources.memory;
    memory.limit = bytes("memory", &args.memory)?;
    memory.swap = bytes("memory-swap", &args.memory_swap)?;
    memory.reservation = bytes("memory-reservation", &args.memory_reservation)?;
    memory.kernel = bytes("kernel-memory", &args.kernel_memory)?;
    memory.kernel_tcp = bytes("kernel-memory-tcp", &args.kernel_memory_tcp)?;
    resources.block_io.weight = args.blkio_weight;
    resources.pids.limit = args.pids_limit;
    Ok(resources)
}

/// Reads a number. As with runc, an empty value is the same as no value.
fn number<T>(name: &str, value: &Option<String>) -> anyhow::Result<Option<T>>
where
    T: FromStr<Err = std::num::ParseIntError>,
{
    match value.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => {
            let number = text
                .parse()
                .with_context(|| format!("invalid value for {name}: {text:?}"))?;
            Ok(Some(number))
        }
    }
}

fn bytes(name: &str, value: &Option<String>) -> anyhow::Result<Option<i64>> {
    match value.as_deref() {
        None | Some("") => Ok(None),
        Some("-1") => Ok(Some(-1)),
        Some(text) => size(text)
            .map(Some)
            .ok_or_else(|| anyhow!("invalid value for {name}: invalid size: '{text}'")),
    }
}

/// Reads a size as Docker's tools do: a number, perhaps with a fraction, then a unit `b`, `k`, `m`,
/// `g`, `t` or `p` in any case, perhaps with `b` or `ib` after it. Each unit is 1,024 of the one
/// before.
fn size(text: &str) -> Option<i64> {
    const UNITS: &str = "bkmgtp";
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let number: f64 = number.parse().ok()?;
    let mut letters = unit.chars();
    let power = match letters.next() {
        None => 0,
        Some(letter) => UNITS.find(letter)?,
    };
    let rest = letters.as_str();
    let proper = rest.is_empty() || (power > 0 && matches!(rest, "b" | "ib"));
    let bytes = number * 1024_f64.powi(i32::try_from(power).ok()?);
    // 2^63 and more do not fit into an `i64`.
    (proper && bytes < 9_223_372_036_854_775_808.0).then_some(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_units() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("32b", 32),
            ("32k", 32 << 10),
            ("32K", 32 << 10),
            ("32kb", 32 << 10),
            ("32KiB", 32 << 10),
            ("100M", 100 << 20),
            ("1.5g", 3 << 29),
            ("32 MB", 32 << 20),
            ("2t", 2 << 40),
            ("1P", 1 << 50),
        ] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in [
            "", "M", "1x", "-1", "-5M", "1kk", "1bb", "1mib3", "1..5", "1  k", "1e5", "9999999p",
        ] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn wrong_values_are_named() {
        let error = bytes("memory", &Some("1x".into())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid value for memory: invalid size: '1x'"
        );
        let error = number::<u64>("cpu-share", &Some("-3".into())).unwrap_err();
        assert_eq!(error.to_string(), "invalid value for cpu-share: \"-3\"");
        assert_eq!(
            number::<i64>("cpu-quota", &Some(String::new())).unwrap(),
            None
        );
        assert_eq!(bytes("memory", &Some("-1".into())).unwrap(), Some(-1));
    }

    #[test]
    fn resources_from_json() {
        let read = read_resources(&br#"{"pids": {"limit": 7}} trailing"#[..]).unwrap();
        assert_eq!(read.pids.limit, Some(7));
        assert!(read_resources(&b""[..]).is_err());
        assert!(read_resources(&br#"{"memory": {"limit": "a"}}"#[..]).is_err());
    }
}
