//! Judgement of the source's preamble by the destination's observations of its own host.

use super::local::Local;
use super::space::lacking;
use super::{observed, rootfs};
use crate::migrate::limits::MAX_STREAMS;
use crate::migrate::wire::facts::{CgroupMode, Facts};
use crate::migrate::wire::finding::Finding;
use crate::migrate::wire::id::Side;
use crate::migrate::wire::preamble::Preamble;

/// Processor features that programs use after asking for them once. A container that has found one
/// at the source dies of SIGILL at a destination without it, long after the restore "succeeded".
///
/// Names as in `/proc/cpuinfo` (`arch/x86/include/asm/cpufeatures.h` and
/// `arch/arm64/kernel/cpuinfo.c`, Linux 6.18). Only instructions count: the line also names
/// hardware facts and mitigations that no program can execute.
const INSTRUCTION_FEATURES: &[&str] = &[
    // x86
    "cx16",
    "sse3",
    "pni",
    "ssse3",
    "sse4_1",
    "sse4_2",
    "sse4a",
    "popcnt",
    "movbe",
    "aes",
    "pclmulqdq",
    "xsave",
    "xsaveopt",
    "xsavec",
    "avx",
    "avx2",
    "avx_vnni",
    "f16c",
    "fma",
    "fma4",
    "bmi1",
    "bmi2",
    "abm",
    "adx",
    "rdrand",
    "rdseed",
    "sha_ni",
    "vaes",
    "vpclmulqdq",
    "gfni",
    "fsgsbase",
    "rdtscp",
    "rdpid",
    "lahf_lm",
    "clflushopt",
    "clwb",
    "movdiri",
    "movdir64b",
    "serialize",
    "waitpkg",
    "rtm",
    "pku",
    "ospke",
    "avx512f",
    "avx512dq",
    "avx512ifma",
    "avx512cd",
    "avx512bw",
    "avx512vl",
    "avx512vbmi",
    "avx512_vbmi2",
    "avx512_vnni",
    "avx512_bitalg",
    "avx512_vpopcntdq",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_vp2intersect",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    // arm64; "aes" and "f16c" are above
    "asimd",
    "pmull",
    "sha1",
    "sha2",
    "crc32",
    "atomics",
    "fphp",
    "asimdhp",
    "asimdrdm",
    "jscvt",
    "fcma",
    "lrcpc",
    "dcpop",
    "sha3",
    "sm3",
    "sm4",
    "asimddp",
    "sha512",
    "sve",
    "asimdfhm",
    "ilrcpc",
    "flagm",
    "sb",
    "paca",
    "pacg",
    "dcpodp",
    "sve2",
    "sveaes",
    "svepmull",
    "svebitperm",
    "svesha3",
    "svesm4",
    "flagm2",
    "frint",
    "svei8mm",
    "svebf16",
    "i8mm",
    "bf16",
    "bti",
    "mte",
    "sme",
];

/// Compares the two hosts and the needs of the container. The migration may begin if there is no
/// finding of [`Severity::Error`](crate::migrate::wire::finding::Severity::Error).
#[must_use]
pub fn judge(preamble: &Preamble, here: &Facts, local: &Local) -> Vec<Finding> {
    let mut findings = Vec::new();
    judge_container(preamble, local, &mut findings);
    judge_hosts(&preamble.facts, here, &mut findings);
    judge_processor(&preamble.facts, here, local, &mut findings);
    if preamble.streams > 0 {
        let (side, path) = (Side::Destination, &local.image_path);
        findings.extend(lacking(side, &preamble.observed, true, local.space, path));
    }
    observed::judge(preamble, here, local, &mut findings);
    rootfs::judge(&preamble.rootfs_offer, local, &mut findings);
    findings
}

fn judge_container(preamble: &Preamble, local: &Local, findings: &mut Vec<Finding>) {
    let mut error = |side, what: String, remedy: String| {
        findings.push(Finding::error(side, what, remedy));
    };
    if preamble.container != local.container {
        error(
            Side::Source,
            format!(
                "the receiver waits for container \"{}\", not for \"{}\"",
                local.container, preamble.container
            ),
            "use the same id on both hosts".into(),
        );
    }
    if local.id_in_use {
        error(
            Side::Destination,
            format!("a container \"{}\" exists", local.container),
            format!(
                "remove it with `rcm delete {}`, or use another --root",
                local.container
            ),
        );
    }
    if let Some(what) = &local.no_criu {
        error(
            Side::Destination,
            what.clone(),
            "correct this and start the receiver again".into(),
        );
    }
    if local.rootfs_plan.way.copies() {
        // Both are copied, unless they exist.
    } else if !local.bundle_exists {
        error(
            Side::Destination,
            format!("no bundle at {}", local.bundle.display()),
            "provide it there, or start the receiver with --bundle DIR".into(),
        );
    } else if !local.rootfs_exists {
        error(
            Side::Destination,
            format!("no root file system at {}", local.rootfs.display()),
            "provide the same tree as at the source".into(),
        );
    }
    if local.bundle_exists && !local.same_spec {
        findings.push(Finding::warning(
            Side::Destination,
            format!(
                "{} is not the spec that the container was created with",
                local.bundle.join("config.json").display()
            ),
            "differences other than resource limits may make the restore fail",
        ));
    }
    let mut error = |side, what: String, remedy: String| {
        findings.push(Finding::error(side, what, remedy));
    };
    if let Some((what, remedy)) = local.terminal {
        error(Side::Destination, what.into(), remedy.into());
    }
    if let Some((what, remedy)) = &local.network {
        error(Side::Destination, what.clone(), remedy.clone());
    }
    for path in &local.missing_mount_sources {
        error(
            Side::Destination,
            format!(
                "{} does not exist, and the container mounts it",
                path.display()
            ),
            "provide it with the same contents as at the source".into(),
        );
    }
    if preamble.streams > MAX_STREAMS {
        error(
            Side::Source,
            format!("{} connections for the images", preamble.streams),
            format!("at most {MAX_STREAMS} are allowed (--streams)"),
        );
    }
    if preamble.streams == 0 && !local.images_visible {
        error(
            Side::Destination,
            format!(
                "the image store {} of the source is not the one at {}",
                preamble.image_path.display(),
                local.image_path.display()
            ),
            "give both ends an --image-path in the same shared directory".into(),
        );
    }
}

fn judge_hosts(there: &Facts, here: &Facts, findings: &mut Vec<Finding>) {
    if there.architecture != here.architecture {
        findings.push(Finding::error(
            Side::Destination,
            format!(
                "architecture {}, and {} at the source",
                here.architecture, there.architecture
            ),
            "choose a destination of the source's architecture".to_owned(),
        ));
    }
    if there.cgroup_mode != here.cgroup_mode {
        findings.push(Finding::error(
            Side::Destination,
            format!(
                "control groups are {}, and {} at the source",
                cgroup_version(here.cgroup_mode),
                cgroup_version(there.cgroup_mode)
            ),
            "boot both hosts with the same version of control groups",
        ));
    }
    // CRIU guarantees only that it reads images of its own or an older version. If there is no CRIU
    // here, that is a finding of its own.
    if (1..there.criu_version).contains(&here.criu_version) {
        findings.push(Finding::error(
            Side::Destination,
            format!(
                "CRIU {} is older than the source's {}",
                criu_version(here.criu_version),
                criu_version(there.criu_version)
            ),
            "install the same CRIU on both hosts",
        ));
    }
    if release_series(&here.kernel_release) < release_series(&there.kernel_release) {
        findings.push(Finding::warning(
            Side::Destination,
            format!(
                "kernel {} is older than the source's {}",
                here.kernel_release, there.kernel_release
            ),
            "a container that uses newer system calls may fail there",
        ));
    }
    if here.rcm_version != there.rcm_version {
        findings.push(Finding::warning(
            Side::Destination,
            format!(
                "rcm {}, and {} at the source",
                here.rcm_version, there.rcm_version
            ),
            "use the same release on both hosts",
        ));
    }
}

fn judge_processor(there: &Facts, here: &Facts, local: &Local, findings: &mut Vec<Finding>) {
    if there.architecture != here.architecture {
        return;
    }
    let missing: Vec<&str> = INSTRUCTION_FEATURES
        .iter()
        .copied()
        .filter(|&name| there.cpu_features.contains(name) && !here.cpu_features.contains(name))
        .collect();
    // CRIU's objection would repeat these features.
    let (what, remedy) = match (&missing[..], &local.processor) {
        ([], None) => return,
        ([], Some(what)) => (
            format!("the processor cannot do what the source's does: {what}"),
            "choose a destination with the source's processor",
        ),
        (missing, _) => (
            format!(
                "the processor lacks {}, which the source has",
                missing.join(", ")
            ),
            "choose a destination whose processor has them, or mask them at the source",
        ),
    };
    findings.push(Finding::error(Side::Destination, what, remedy));
}

const fn cgroup_version(mode: CgroupMode) -> &'static str {
    match mode {
        CgroupMode::Unified => "version 2",
        CgroupMode::Legacy => "version 1",
    }
}

/// Returns the version of CRIU's number: "4.2.1" for 40201.
#[must_use]
pub fn criu_version(number: u32) -> String {
    let (major, minor, sublevel) = (number / 10_000, number / 100 % 100, number % 100);
    if sublevel == 0 {
        format!("{major}.{minor}")
    } else {
        format!("{major}.{minor}.{sublevel}")
    }
}

/// Returns version and patch level of a kernel release: (6, 12) for "6.12.8-amd64".
pub(crate) fn release_series(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
