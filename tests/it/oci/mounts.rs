//! Mounts of containers: ids, attributes, propagation and contents are what runc's would be.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use crate::common::{Bundle, Host, Output};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

/// The first id on the host of containers with a user namespace.
const BASE: u32 = 100_000;

/// What an id that has no name in a user namespace looks like there (`/proc/sys/kernel/overflowuid`).
const NOBODY: &str = "65534:65534";

/// A directory with a file that belongs to `owner`, user and group.
fn source(host: &Host, name: &str, owner: u32) -> PathBuf {
    let dir = host.dir().join(name);
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(dir.join("file"), "here").unwrap();
    chown(dir.join("file"), Some(owner), Some(owner)).unwrap();
    dir
}

fn ids(inside: u32, outside: u32, count: u32) -> Value {
    json!([{"containerID": inside, "hostID": outside, "size": count}])
}

/// One more mount, with anything of a spec.
fn with_mount(bundle: Bundle, mount: Value) -> Bundle {
    bundle.edit(|config| config["mounts"].as_array_mut().unwrap().push(mount))
}

/// One more bind mount, idmapped by the same ranges for users and groups.
fn with_mapped(bundle: Bundle, source: &Path, to: &str, options: &[&str], map: &Value) -> Bundle {
    with_mount(
        bundle,
        json!({"source": source, "destination": to, "options": options, "uidMappings": map, "gidMappings": map}),
    )
}

#[track_caller]
fn run(host: &Host, bundle: &Bundle) -> Output {
    host.cmd("run").bundle(bundle).run()
}

/// What a script prints in the container.
#[track_caller]
fn prints(host: &Host, bundle: Bundle, script: &str) -> String {
    let bundle = bundle.script(script);
    run(host, &bundle).ok().stdout()
}

/// A mount of the host for as long as this lives.
struct HostMount(PathBuf);

impl HostMount {
    fn bind(source: &Path, target: &Path) -> Self {
        let none = None::<&str>;
        mount(Some(source), target, none, MsFlags::MS_BIND, none).unwrap();
        Self(target.to_path_buf())
    }

    fn tmpfs(target: &Path, flags: MsFlags) -> Self {
        fs::create_dir_all(target).unwrap();
        mount(
            Some("tmpfs"),
            target,
            Some("tmpfs"),
            flags,
            Some("mode=777"),
        )
        .unwrap();
        Self(target.to_path_buf())
    }

    fn change(&self, flags: MsFlags) {
        mount(None::<&str>, &self.0, None::<&str>, flags, None::<&str>).unwrap();
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

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
    // Other ids for users and for groups, from another source, through a symbolic link and without a slash.
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

    // Joined, it has mappings that the spec does not tell.
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

/// The options of a mount as `/proc/self/mountinfo` has them: of the mount, its propagation and of the file system.
fn mountinfo(text: &str, point: &str) -> (String, String, String) {
    let line = text
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some(point))
        .unwrap_or_else(|| panic!("{point} is not mounted:\n{text}"));
    let (mount, file_system) = line.split_once(" - ").unwrap();
    let fields: Vec<_> = mount.split(' ').collect();
    let super_options = file_system.split(' ').nth(2).unwrap().to_owned();
    (fields[5].to_owned(), fields[6..].join(" "), super_options)
}

#[test]
fn attributes_of_a_bind_mount_are_those_of_its_options() {
    let host = Host::new();
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let tmpfs = HostMount::tmpfs(&host.dir().join("tmpfs"), strict);
    for (options, expected) in [
        (vec!["bind"], "rw,nosuid,nodev,noexec,relatime"),
        (vec!["bind", "exec"], "rw,relatime"),
        (vec!["bind", "ro"], "ro,relatime"),
        (vec!["bind", "ro", "rw", "nosuid"], "rw,nosuid,relatime"),
        (vec!["bind", "nosymfollow"], "rw,relatime,nosymfollow"),
        (vec!["bind", "nosymfollow", "symfollow"], "rw,relatime"),
        (
            vec!["rbind", "noatime", "nodiratime"],
            "rw,noatime,nodiratime",
        ),
        (vec!["rbind", "strictatime", "nodev"], "rw,nodev"),
        (
            vec!["rbind", "rro", "rnosymfollow"],
            "ro,nosuid,nodev,noexec,relatime,nosymfollow",
        ),
        (vec!["rbind", "rexec", "rsuid", "rdev"], "rw,relatime"),
        (
            vec!["bind", "sync", "lazytime", "silent", "iversion"],
            "rw,nosuid,nodev,noexec,relatime",
        ),
    ] {
        let bundle = host.bundle("web").mount("bind", &tmpfs.0, "/mnt", &options);
        let text = prints(&host, bundle, "cat /proc/self/mountinfo");
        assert_eq!(mountinfo(&text, "/mnt").0, expected, "{options:?}");
    }
}

#[test]
fn a_user_namespace_does_not_unlock_attributes() {
    let host = Host::new();
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let tmpfs = HostMount::tmpfs(&host.dir().join("tmpfs"), strict);
    let bundle = |options: &[&str]| {
        let bundle = host.bundle("web").user_namespace(BASE);
        bundle.mount("bind", &tmpfs.0, "/mnt", options)
    };
    let text = prints(&host, bundle(&["bind", "ro"]), "cat /proc/self/mountinfo");
    assert_eq!(mountinfo(&text, "/mnt").0, "ro,nosuid,nodev,relatime");
    run(&host, &bundle(&["bind", "suid"]).script("true"))
        .fails_with(1, "cannot clear locked flags MsFlags(MS_NOSUID)");
    // The host's side of an idmapped mount has the right.
    let map = ids(0, BASE, 65536);
    let mapped = host.bundle("web").user_namespace(BASE);
    let mapped = with_mapped(mapped, &tmpfs.0, "/mnt", &["bind", "suid"], &map);
    let text = prints(&host, mapped, "cat /proc/self/mountinfo");
    assert_eq!(mountinfo(&text, "/mnt").0, "rw,relatime,idmapped");
}

#[test]
fn propagation_is_what_the_options_say() {
    let host = Host::new();
    let shared = HostMount::tmpfs(&host.dir().join("shared"), MsFlags::empty());
    shared.change(MsFlags::MS_SHARED);
    let map = ids(0, BASE, 10);
    for (options, expected) in [
        (vec!["rbind"], "master:"),
        (vec!["rbind", "rslave"], "master:"),
        (vec!["rbind", "rprivate"], ""),
        (vec!["rbind", "private", "ro"], ""),
        (vec!["rbind", "rshared"], "shared:"),
        (vec!["rbind", "unbindable"], "unbindable"),
    ] {
        let plain = host
            .bundle("web")
            .mount("bind", &shared.0, "/mnt", &options);
        let mapped = with_mapped(host.bundle("web"), &shared.0, "/mnt", &options, &map);
        for bundle in [plain, mapped] {
            let text = prints(&host, bundle, "cat /proc/self/mountinfo");
            let found = mountinfo(&text, "/mnt").1;
            assert!(
                found.starts_with(expected) && (found.is_empty() == expected.is_empty()),
                "{options:?}: {found}"
            );
        }
    }
    let none = host
        .bundle("web")
        .mount("tmpfs", Path::new("tmpfs"), "/mnt", &["shared"]);
    let text = prints(&host, none, "cat /proc/self/mountinfo");
    assert!(mountinfo(&text, "/mnt").1.starts_with("shared:"));
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

#[test]
fn options_of_file_systems_reach_them() {
    let host = Host::new();
    for (options, of_mount, of_file_system) in [
        (
            vec!["sync", "dirsync", "lazytime"],
            "rw,relatime",
            "rw,sync,dirsync,lazytime",
        ),
        (
            vec!["sync", "async", "lazytime", "nolazytime"],
            "rw,relatime",
            "rw",
        ),
        (
            vec!["silent", "loud", "iversion", "noiversion"],
            "rw,relatime",
            "rw",
        ),
        (
            vec!["nosymfollow", "mand", "nomand"],
            "rw,relatime,nosymfollow",
            "rw",
        ),
        (
            vec!["nosymfollow", "symfollow", "noexec"],
            "rw,noexec,relatime",
            "rw",
        ),
        (vec!["size=4k", "defaults"], "rw,relatime", "rw,size=4k"),
    ] {
        let bundle = host
            .bundle("web")
            .mount("tmpfs", Path::new("tmpfs"), "/mnt", &options);
        let text = prints(&host, bundle, "cat /proc/self/mountinfo");
        let (mount, _, file_system) = mountinfo(&text, "/mnt");
        assert_eq!(mount, of_mount, "{options:?}");
        let file_system: Vec<_> = file_system
            .split(',')
            .filter(|option| !["inode64", "mode=755"].contains(option))
            .collect();
        assert_eq!(file_system.join(","), of_file_system, "{options:?}");
    }
}

/// Something of every kind at `/seed` of the root file system, belonging to user and group `owner`.
fn seed(bundle: &Bundle, owner: u32) {
    let dir = bundle.rootfs().join("seed");
    fs::create_dir_all(dir.join("dir")).unwrap();
    fs::write(dir.join("dir/file"), "here").unwrap();
    symlink("dir/file", dir.join("link")).unwrap();
    for name in ["dir/file", "dir", "link", ""] {
        lchown(dir.join(name), Some(owner), Some(owner)).unwrap();
    }
    fs::set_permissions(dir.join("dir/file"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o751)).unwrap();
}

#[test]
fn a_tmpfs_begins_with_what_it_covers() {
    const LOOK: &str = "stat -c '%n %a %u:%g' /seed /seed/dir/file; readlink /seed/link; cat /seed/link; echo; \
        echo new > /seed/new; grep ' /seed ' /proc/self/mountinfo | cut -d' ' -f5,6";
    let host = Host::new();
    let tmpfs = |bundle: Bundle, options: &[&str]| {
        bundle.mount("tmpfs", Path::new("tmpfs"), "/seed", options)
    };
    let bundle = tmpfs(host.bundle("web"), &["tmpcopyup", "nosuid"]);
    seed(&bundle, 5);
    let printed = prints(&host, bundle, LOOK);
    assert_eq!(
        printed,
        "/seed 751 0:0\n/seed/dir/file 640 5:5\ndir/file\nhere\n/seed rw,nosuid,relatime\n"
    );
    assert!(!host.bundle("web").rootfs().join("seed/new").exists());

    // A mode of its own wins, and a read-only one is filled all the same.
    let bundle = tmpfs(host.bundle("web"), &["ro", "mode=700", "tmpcopyup"]);
    let printed = prints(
        &host,
        bundle,
        "stat -c %a /seed; cat /seed/link; touch /seed/new || echo no",
    );
    assert_eq!(printed, "700\nhereno\n");

    // Seen as the container's own in its user namespace.
    let bundle = host.bundle("mapped").user_namespace(BASE);
    seed(&bundle, BASE + 5);
    let printed = prints(&host, tmpfs(bundle, &["tmpcopyup"]), LOOK);
    assert_eq!(
        printed,
        "/seed 751 0:0\n/seed/dir/file 640 5:5\ndir/file\nhere\n/seed rw,relatime\n"
    );
}

#[test]
fn a_tmpfs_that_is_too_small_for_what_it_covers_is_an_error() {
    let host = Host::new();
    let bundle = host.bundle("web");
    seed(&bundle, 0);
    fs::write(bundle.rootfs().join("seed/large"), vec![1; 100_000]).unwrap();
    let options = ["tmpcopyup", "size=16k"];
    let bundle = bundle.mount("tmpfs", Path::new("tmpfs"), "/seed", &options);
    run(&host, &bundle).fails_with(1, "tmpcopyup: failed to copy");
    assert_eq!(host.remains(), Vec::<String>::new());
}

#[test]
fn a_tmpfs_begins_with_what_a_bind_brought() {
    let host = Host::new();
    let dir = source(&host, "dir", 0);
    fs::create_dir(dir.join("below")).unwrap();
    fs::write(dir.join("below/file"), "below").unwrap();
    let bundle = host
        .bundle("web")
        .bind(&dir, "/mnt", "rw")
        .mount("tmpfs", Path::new("tmpfs"), "/mnt/below", &["tmpcopyup"])
        // What is not there cannot be copied.
        .mount("tmpfs", Path::new("tmpfs"), "/mnt/new", &["tmpcopyup"]);
    let printed = prints(&host, bundle, "cat /mnt/below/file; ls /mnt/new");
    assert_eq!(printed, "below");
}

/// Dumps the container and restores it.
#[track_caller]
fn dump_and_restore(host: &Host, bundle: &Bundle) {
    let images = host.dir().join(format!("images-{}", bundle.id()));
    let checkpoint = host.cmd("checkpoint").arg("--image-path").arg(&images);
    checkpoint.arg(bundle.id()).run().ok();
    let restore = host.cmd("restore").arg("--image-path").arg(&images);
    restore.arg("--detach").bundle(bundle).run().ok();
}

#[test]
fn a_restored_container_has_its_mounts() {
    const LOOK: &str = "stat -c '%n %u:%g' /mapped/file /mapped/below/file /plain/file; cut -d' ' -f5,6 /proc/self/mountinfo | sort; \
        cat /seed/link /seed/new; ls -l /proc/1/fd | grep -o /mapped/.* || true";
    let host = Host::new();
    let (top, below) = (source(&host, "top", 1), source(&host, "below", 2));
    fs::create_dir(top.join("below")).unwrap();
    let _mount = HostMount::bind(&below, &top.join("below"));
    for user_namespace in [false, true] {
        let (bundle, base) = match user_namespace {
            false => (host.bundle("web"), 0),
            true => (host.bundle("mapped").user_namespace(BASE), BASE),
        };
        seed(&bundle, base);
        let options = ["rbind", "ridmap", "nosymfollow", "rprivate"];
        let map = ids(0, base + 1000, 10);
        let bundle = with_mapped(bundle, &top, "/mapped", &options, &map)
            .bind(&top, "/plain", "ro")
            .mount(
                "tmpfs",
                Path::new("tmpfs"),
                "/seed",
                &["tmpcopyup", "size=1m", "lazytime"],
            )
            .script("exec 5<>/mapped/file; echo new > /seed/new; sleep 1000");
        let bundle = match user_namespace {
            // Its root does not own the file.
            true => bundle.script("exec 5</mapped/file; echo new > /seed/new; sleep 1000"),
            false => bundle,
        };
        host.run_detached(&bundle);
        let look = || host.exec(bundle.id(), ["sh", "-c", LOOK]).ok().stdout();
        crate::common::wait_until("it has written", || look().contains("herenew"));
        let before = look();
        assert!(before.contains("/mapped/file 1001:1001"), "{before}");
        assert!(before.contains("/mapped/below/file 1002:1002"), "{before}");
        // How access times are kept comes from the host's mount.
        let mapped = before.lines().find(|line| line.starts_with("/mapped rw,"));
        assert!(
            mapped.is_some_and(|line| line.ends_with(",nosymfollow,idmapped")),
            "{before}"
        );
        for _ in 0..2 {
            dump_and_restore(&host, &bundle);
            assert_eq!(look(), before);
        }
    }
}

#[test]
fn where_nothing_can_be_prepared_only_idmapped_mounts_are_refused() {
    const READ_ONLY_RUN: &str = "mount -t tmpfs -o ro none /run && exec \"$@\"";
    let host = Host::new().with_prefix(["unshare", "--mount", "sh", "-c", READ_ONLY_RUN, "sh"]);
    let dir = source(&host, "dir", 0);
    let bundle = host.bundle("web").bind(&dir, "/mnt", "ro");
    let bundle = bundle.script("cat /mnt/file; touch /mnt/new || echo no");
    let output = run(&host, &bundle).ok();
    assert_eq!(output.stdout(), "hereno\n");
    assert!(
        output
            .stderr()
            .contains("cannot use the directory /run/rcm-mounts"),
        "{output:?}"
    );
    let map = ids(0, BASE, 10);
    let bundle = with_mapped(host.bundle("web"), &dir, "/mapped", &["bind"], &map);
    run(&host, &bundle).fails_with(1, "cannot use the directory /run/rcm-mounts");
}

#[test]
fn hooks_on_the_host_are_not_in_the_namespace_of_the_mounts() {
    let host = Host::new();
    let dir = source(&host, "dir", 0);
    let seen = host.dir().join("seen");
    let script = format!("readlink /proc/self/ns/mnt > {}", seen.display());
    let bundle = host.bundle("web").hook("createRuntime", &script);
    let bundle = with_mapped(bundle, &dir, "/mapped", &["bind"], &ids(0, BASE, 10));
    run(&host, &bundle).ok();
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    assert_eq!(
        fs::read_to_string(seen).unwrap().trim(),
        own.to_str().unwrap()
    );
}
