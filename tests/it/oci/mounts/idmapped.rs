//! Idmapped mounts: owners of files inside and outside of the container.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{BASE, HostMount, NOBODY, ids, prints, run, source, with_mapped, with_mount};
use crate::common::Host;
use nix::mount::MsFlags;
use serde_json::json;

#[test]
fn files_of_an_idmapped_mount_have_other_owners() {
    let host = Host::new();
    let (one, two) = (source(&host, "one", 0), source(&host, "two", 7));
    symlink(&two, host.dir().join("link")).unwrap();
    let bundle = with_mapped(
        host.bundle("web"),
        &one,
        "/one",
        &["bind"],
        &ids(0, BASE, 10),
    );
    // Other ids for users and for groups, from another source, through a symbolic link and without
    // a slash.
    let bundle = with_mount(
        bundle,
        json!({
            "source": host.dir().join("link"), "destination": "two", "options": ["bind"],
            "uidMappings": ids(5, 1000, 5), "gidMappings": ids(0, 3000, 10)
        }),
    );
    // The same source once more, as it is.
    let bundle = bundle.bind(&two, "/plain", "rw");
    let owners = prints(
        &host,
        bundle,
        "stat -c %u:%g /one/file /two/file /plain/file",
    );
    assert_eq!(owners, format!("{BASE}:{BASE}\n1002:3007\n7:7\n"));
    assert_eq!(host.remains(), Vec::<String>::new());
}

#[test]
fn a_user_namespace_s_root_owns_what_the_host_s_root_owns() {
    let host = Host::new();
    let dir = source(&host, "dir", 0);
    let bundle = host.bundle("web").user_namespace(BASE);
    let bundle = with_mapped(bundle, &dir, "/mapped", &["bind"], &ids(0, BASE, 65536));
    let bundle = bundle.bind(&dir, "/plain", "rw");
    let script = "stat -c %u:%g /mapped/file /plain/file; touch /mapped/new && stat -c %u:%g /mapped/new; cat /proc/self/uid_map";
    let printed = prints(&host, bundle, script);
    let mut lines = printed.lines();
    assert_eq!(lines.next(), Some("0:0"));
    assert_eq!(lines.next(), Some(NOBODY));
    assert_eq!(lines.next(), Some("0:0"));
    let map: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(map, ["0", "100000", "65536"]);
    let made = fs::metadata(dir.join("new")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 0);
}

#[test]
fn a_file_without_a_mapped_owner_cannot_be_made() {
    let host = Host::new();
    let dir = source(&host, "dir", 0);
    // Root is nobody's id in this mapping.
    let bundle = with_mapped(
        host.bundle("web"),
        &dir,
        "/mapped",
        &["bind"],
        &ids(0, BASE, 10),
    );
    let bundle = bundle.script("touch /mapped/new");
    let output = run(&host, &bundle).exits_with(1);
    assert!(output.stderr().contains("Value too large"), "{output:?}");
    assert!(!dir.join("new").exists());
}

#[test]
fn mounts_below_are_idmapped_only_by_ridmap() {
    let host = Host::new();
    let (top, below) = (source(&host, "top", 1), source(&host, "below", 2));
    fs::create_dir(top.join("below")).unwrap();
    let _mount = HostMount::bind(&below, &top.join("below"));
    let map = ids(0, 1000, 10);
    for (options, owners) in [
        (vec!["rbind"], "1001:1001\n2:2\n"),
        (vec!["rbind", "idmap"], "1001:1001\n2:2\n"),
        (vec!["rbind", "ridmap"], "1001:1001\n1002:1002\n"),
    ] {
        let bundle = with_mapped(host.bundle("web"), &top, "/top", &options, &map);
        let printed = prints(&host, bundle, "stat -c %u:%g /top/file /top/below/file");
        assert_eq!(printed, owners, "{options:?}");
    }
    // Not bound recursively: nothing is there.
    let bundle = with_mapped(host.bundle("web"), &top, "/top", &["bind", "ridmap"], &map);
    assert_eq!(prints(&host, bundle, "ls /top/below"), "");
}

#[test]
fn the_mapping_of_the_user_namespace_is_the_default() {
    let host = Host::new();
    let dir = source(&host, "dir", 9);
    let mapped = json!({"source": dir, "destination": "/mapped", "options": ["rbind", "idmap"]});
    let bundle = with_mount(host.bundle("web").user_namespace(BASE), mapped.clone());
    assert_eq!(prints(&host, bundle, "stat -c %u:%g /mapped/file"), "9:9\n");

    // A user namespace that is joined has mappings that are not in the spec.
    let first = host.bundle("first").user_namespace(BASE);
    let first = first.args(["sleep", "1000"]);
    host.run_detached(&first);
    let user = PathBuf::from(format!("/proc/{}/ns/user", host.pid("first")));
    let second = host.bundle("second").user_namespace(BASE);
    let second = second.namespace("user", Some(&user)).edit(|config| {
        let linux = config["linux"].as_object_mut().unwrap();
        linux.remove("uidMappings");
        linux.remove("gidMappings");
    });
    let second = with_mount(second, mapped);
    let printed = prints(&host, second, "stat -c %u:%g /mapped/file");
    assert_eq!(printed, "9:9\n");
}

#[test]
fn wrong_idmapped_mounts_are_refused() {
    let host = Host::new();
    let dir = source(&host, "dir", 0);
    let map = ids(0, BASE, 10);
    let incomplete = "must have both uid and gid mappings specified";
    let cases = [
        (json!({"options": ["bind", "idmap"]}), incomplete),
        (json!({"options": ["bind", "ridmap"]}), incomplete),
        (json!({"options": ["bind"], "uidMappings": map}), incomplete),
        (json!({"options": ["bind"], "gidMappings": map}), incomplete),
        (
            json!({"options": ["bind"], "gidMappings": [], "uidMappings": []}),
            incomplete,
        ),
        (
            json!({"type": "tmpfs", "options": [], "uidMappings": map, "gidMappings": map}),
            "id-mapped mounts are only supported for bind-mounts",
        ),
        (
            json!({"options": ["bind", "size=1k"]}),
            "bind mounts cannot have any filesystem-specific options applied",
        ),
        (
            json!({"options": ["bind"], "uidMappings": ids(0, 1, 0), "gidMappings": map}),
            "id-mapping: cannot map the user ids",
        ),
        (
            json!({"source": "/proc", "options": ["bind"], "uidMappings": map, "gidMappings": map}),
            "failed to set MOUNT_ATTR_IDMAP on /proc",
        ),
        (
            json!({"source": "/no/such", "options": ["bind"], "uidMappings": map, "gidMappings": map}),
            "error mounting /no/such to rootfs at /mapped",
        ),
    ];
    for (mut mount, sentence) in cases {
        mount["destination"] = "/mapped".into();
        if mount.get("source").is_none() {
            mount["source"] = json!(dir);
        }
        let bundle = with_mount(host.bundle("web"), mount);
        run(&host, &bundle).fails_with(1, sentence);
        assert_eq!(host.remains(), Vec::<String>::new());
    }
    let bundle = host.bundle("web").without_namespace("mount");
    let bundle = with_mapped(bundle, &dir, "/mapped", &["bind"], &map);
    run(&host, &bundle).fails_with(1, "need a mount namespace of the container");
}

#[test]
fn what_an_idmapped_mount_of_the_container_gets_is_not_seen_on_the_host() {
    let host = Host::new();
    let shared = HostMount::tmpfs(&host.dir().join("shared"), MsFlags::empty());
    shared.change(MsFlags::MS_SHARED);
    fs::create_dir(shared.0.join("below")).unwrap();
    let bundle = host.bundle("web").args(["sleep", "1000"]);
    let bundle = with_mapped(bundle, &shared.0, "/mnt", &["rbind"], &ids(0, 0, 10));
    host.run_detached(&bundle);
    // The other way round it is.
    let below = HostMount::tmpfs(&shared.0.join("below"), MsFlags::empty());
    fs::write(below.0.join("file"), "").unwrap();
    host.exec("web", ["ls", "/mnt/below/file"]).ok();
    let root = format!("/proc/{}/root/mnt", host.pid("web"));
    let own = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(Path::new(&root).exists());
    assert!(!own.contains("/run/rcm-mounts"), "{own}");
    drop(below);
}
