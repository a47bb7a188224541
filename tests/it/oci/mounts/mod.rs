//! Mounts of containers: ids, attributes, propagation and contents are as with runc.

mod idmapped;
mod tmpfs;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::common::{Bundle, Host, Output};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tmpfs::seed;

/// The first id on the host of containers with a user namespace.
const BASE: u32 = 100_000;

/// The id that a user namespace shows for ids without a mapping (`/proc/sys/kernel/overflowuid`).
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
    host.run(bundle)
}

/// Returns the output of a script in the container.
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

/// The options of a mount as `/proc/self/mountinfo` has them: of the mount, its propagation and of
/// the file system.
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
        let look = || host.exec_sh(bundle.id(), LOOK).ok().stdout();
        crate::common::wait_until("it has written", || look().contains("herenew"));
        let before = look();
        assert!(before.contains("/mapped/file 1001:1001"), "{before}");
        assert!(before.contains("/mapped/below/file 1002:1002"), "{before}");
        // The policy for access times comes from the host's mount.
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
