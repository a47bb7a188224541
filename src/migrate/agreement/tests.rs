use std::collections::BTreeSet;

use super::judge::release_series;
use super::*;
use crate::criu::CriuChoices;
use crate::migrate::wire::facts::{CgroupMode, Facts};
use crate::migrate::wire::finding::Severity;
use crate::migrate::wire::id::MigrationId;
use crate::migrate::wire::observed::Observed;
use crate::migrate::wire::preamble::Preamble;
use crate::migrate::wire::rootfs::RootfsOffer;

fn facts() -> Facts {
    Facts {
        rcm_version: "0.1.0".into(),
        architecture: "x86_64".into(),
        cpu_features: ["sse4_2", "avx2", "pti"].map(String::from).into(),
        kernel_release: "6.12.8-amd64".into(),
        criu_version: 40_201,
        criu_features: BTreeSet::new(),
        cgroup_mode: CgroupMode::Legacy,
        cgroup_controllers: ["memory", "pids"].map(String::from).into(),
    }
}

fn preamble() -> Preamble {
    Preamble {
        streams: 0,
        migration: MigrationId::new([1; 16]),
        container: "web".into(),
        facts: facts(),
        spec: serde_json::json!({"ociVersion": "1.2.0"}),
        bundle: "/b".into(),
        rootfs: "/b/rootfs".into(),
        bind_mounts: Vec::new(),
        image_path: "/pool".into(),
        criu: CriuChoices::default(),
        observed: Observed::default(),
        processor: Vec::new(),
        clock_ms: Some(1_000_000),
        rootfs_offer: RootfsOffer::default(),
        carried: Vec::new(),
        asks_only: false,
        rehearses: false,
    }
}

fn local() -> Local {
    Local {
        container: "web".into(),
        id_in_use: false,
        bundle: "/b".into(),
        bundle_exists: true,
        rootfs: "/b/rootfs".into(),
        rootfs_exists: true,
        same_spec: true,
        terminal: None,
        missing_mount_sources: Vec::new(),
        images_visible: true,
        image_path: "/pool".into(),
        differing_files: Vec::new(),
        network: None,
        network_namespace: None,
        missing_addresses: Vec::new(),
        clock_ms: Some(1_000_100),
        ..Local::default()
    }
}

#[test]
fn equal_hosts_have_no_findings() {
    assert_eq!(judge(&preamble(), &facts(), &local()), []);
}

#[test]
fn everything_wrong_is_found_at_once_with_its_remedy() {
    let here = Facts {
        architecture: "aarch64".into(),
        kernel_release: "6.1.0-13".into(),
        criu_version: 31_700,
        cgroup_mode: CgroupMode::Unified,
        rcm_version: "0.2.0".into(),
        ..facts()
    };
    let local = Local {
        container: "db".into(),
        id_in_use: true,
        bundle_exists: false,
        terminal: Some(("the container has a terminal", "take it")),
        network: Some(("it is not a namespace".into(), "make one".into())),
        missing_mount_sources: vec!["/srv/data".into()],
        images_visible: false,
        ..local()
    };
    let findings = judge(&preamble(), &here, &local);
    let count = |severity| {
        findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .count()
    };
    assert_eq!(
        (count(Severity::Error), count(Severity::Warning)),
        (10, 2),
        "{findings:#?}"
    );
    assert!(findings.iter().all(|finding| !finding.remedy.is_empty()));
}

#[test]
fn only_missing_instructions_count() {
    let mut here = facts();
    here.cpu_features = ["sse4_2"].map(String::from).into();
    let findings = judge(&preamble(), &here, &local());
    assert_eq!(findings.len(), 1);
    assert!(findings[0].what.contains("avx2"), "{}", findings[0]);
    assert!(!findings[0].what.contains("pti"), "{}", findings[0]);

    // More features than the source has do no harm.
    let mut here = facts();
    here.cpu_features.insert("avx512f".into());
    assert_eq!(judge(&preamble(), &here, &local()), []);
}

#[test]
fn an_older_kernel_is_a_warning() {
    let here = Facts {
        kernel_release: "6.6.99-generic".into(),
        ..facts()
    };
    let findings = judge(&preamble(), &here, &local());
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].severity, Severity::Warning);
}

#[test]
fn choices_of_both_ends_count() {
    let source = CriuChoices {
        tcp_established: true,
        empty_ns: vec!["network".into()],
        ..CriuChoices::default()
    };
    let destination = CriuChoices {
        file_locks: true,
        manage_cgroups_mode: "soft".into(),
        empty_ns: vec!["network".into()],
        ..CriuChoices::default()
    };
    let both = source.or(&destination);
    assert!(both.tcp_established && both.file_locks && !both.shell_job);
    assert_eq!(both.manage_cgroups_mode, "soft");
    assert_eq!(both.empty_ns, ["network"]);
}

#[test]
fn versions_read_as_written() {
    assert_eq!(criu_version(40_201), "4.2.1");
    assert_eq!(criu_version(31_700), "3.17");
    assert_eq!(release_series("6.18.0"), (6, 18));
    assert_eq!(release_series("rolling"), (0, 0));
}

#[test]
fn another_spec_is_a_warning() {
    let local = Local {
        same_spec: false,
        ..local()
    };
    let findings = judge(&preamble(), &facts(), &local);
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].severity, Severity::Warning);
}

#[test]
fn observations_are_judged() {
    let mut preamble = preamble();
    preamble.spec = serde_json::json!({
        "linux": {"resources": {"memory": {"limit": 1 << 20}, "cpu": {"shares": null}}}
    });
    let here = Facts {
        cgroup_controllers: ["pids"].map(String::from).into(),
        ..facts()
    };
    let local = Local {
        differing_files: (0..7)
            .map(|number| format!("/lib/{number}").into())
            .collect(),
        missing_addresses: vec!["192.0.2.1".parse().unwrap()],
        clock_ms: Some(990_000),
        ..local()
    };
    let findings = judge(&preamble, &here, &local);
    let texts: Vec<&str> = findings.iter().map(|finding| &*finding.what).collect();
    assert_eq!(
        texts,
        [
            "not the source's files in /b/rootfs: /lib/0, /lib/1, /lib/2, /lib/3, /lib/4 and 2 more",
            "no interface has the address 192.0.2.1 of the container's connections",
            "no control group controller memory, which the container's limits need",
            "the clock is 10.0 s behind the source's",
        ]
    );
    assert_eq!(findings[3].severity, Severity::Warning);
}

#[test]
fn the_processor_is_one_finding() {
    let find = |lacks: bool, says: Option<&str>| {
        let (mut preamble, mut local) = (preamble(), local());
        if lacks {
            preamble.facts.cpu_features.insert("avx512f".into());
        }
        local.processor = says.map(String::from);
        judge(&preamble, &facts(), &local)
            .into_iter()
            .map(|finding| finding.what)
            .collect::<Vec<_>>()
    };
    assert_eq!(find(false, None), [""; 0]);
    let named = "the processor lacks avx512f, which the source has";
    assert_eq!(find(true, None), [named]);
    assert_eq!(find(true, Some("xsave size")), [named]);
    let said = "the processor cannot do what the source's does: xsave size";
    assert_eq!(find(false, Some("xsave size")), [said]);
}
