//! Mounts, namespaces and cgroups that the restored container finds again.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{COUNTER, assert_counts, checkpoint, counter, images, restore_detached};
use crate::common::{Host, wait_until};

#[test]
fn bind_mounts_get_missing_mount_points_back() {
    let host = Host::new();
    let data = host.dir().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "from the host\n").unwrap();
    fs::write(host.dir().join("single"), "a single file\n").unwrap();
    let bundle = counter(&host, |bundle| {
        bundle
            .bind(&data, "/srv/data", "rw")
            .bind(&host.dir().join("single"), "/srv/single", "ro")
            .mount("tmpfs", Path::new("tmpfs"), "/srv/data/scratch", &[])
            .script(&format!(
                "echo kept > /srv/data/scratch/file; exec 5< /srv/data/file; {COUNTER}"
            ))
    });
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    fs::remove_dir_all(bundle.rootfs().join("srv")).unwrap();
    fs::remove_dir(data.join("scratch")).unwrap();
    restore_detached(&host, &bundle, &images).run().ok();
    assert_counts(&bundle);
    let all = host
        .exec(
            "web",
            [
                "cat",
                "/srv/data/file",
                "/srv/single",
                "/srv/data/scratch/file",
            ],
        )
        .ok();
    assert_eq!(all.stdout(), "from the host\na single file\nkept\n");
}

#[test]
fn masked_and_read_only_paths_stay_so() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| {
        bundle
            .set(
                "/linux/maskedPaths",
                serde_json::json!(["/proc/kcore", "/proc/keys", "/proc/bus", "/sys/firmware"]),
            )
            .set(
                "/linux/readonlyPaths",
                serde_json::json!(["/proc/sys", "/etc"]),
            )
    });
    // A second time, because a restored mask is another kind of mount.
    for name in ["first", "second"] {
        let images = images(&host, name);
        checkpoint(&host, &bundle, &images).run().ok();
        restore_detached(&host, &bundle, &images).run().ok();
        assert_counts(&bundle);
    }
    let masked = host
        .exec_sh(
            "web",
            "cat /proc/kcore /proc/keys; ls /proc/bus /sys/firmware",
        )
        .ok();
    assert_eq!(
        masked
            .stdout()
            .replace("/proc/bus:\n\n/sys/firmware:\n", ""),
        ""
    );
    for path in [
        "/etc/x",
        "/proc/sys/kernel/domainname",
        "/proc/bus/x",
        "/sys/firmware/x",
    ] {
        let written = host.exec_sh("web", &format!("echo x > {path}"));
        assert_ne!(written.code(), 0, "{path}");
        assert!(
            written.stderr().contains("Read-only"),
            "{}",
            written.stderr()
        );
    }
}

#[test]
fn an_existing_network_namespace_is_entered_again() {
    let host = Host::new();
    let mut holder = Command::new("unshare")
        .args(["--net", "sleep", "1000"])
        .spawn()
        .unwrap();
    let path = PathBuf::from(format!("/proc/{}/ns/net", holder.id()));
    let own = fs::metadata("/proc/self/ns/net").unwrap().ino();
    wait_until("the namespace is there", || {
        fs::metadata(&path).unwrap().ino() != own
    });
    let bundle = counter(&host, |bundle| bundle.namespace("network", Some(&path)));
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    restore_detached(&host, &bundle, &images).run().ok();
    assert_counts(&bundle);
    let inside = fs::metadata(format!("/proc/{}/ns/net", host.pid("web")))
        .unwrap()
        .ino();
    assert_eq!(inside, fs::metadata(&path).unwrap().ino());
    host.delete("web");
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn the_host_s_network_namespace() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| bundle.without_namespace("network"));
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    restore_detached(&host, &bundle, &images).run().ok();
    assert_counts(&bundle);
    let inside = fs::metadata(format!("/proc/{}/ns/net", host.pid("web")))
        .unwrap()
        .ino();
    assert_eq!(inside, fs::metadata("/proc/self/ns/net").unwrap().ino());
}

#[test]
fn an_existing_pid_namespace_is_entered_again() {
    let host = Host::new();
    // An init that leaves no zombies, not even those of before it was ready: they would keep the
    // pids of the restored processes taken.
    let init = r"
import os, time
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.01)
";
    let mut holder = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "python3", "-c", init])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let children = format!("/proc/{0}/task/{0}/children", holder.id());
    let child = || {
        fs::read_to_string(&children)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    wait_until("the namespace is there", || !child().is_empty());
    let path = PathBuf::from(format!("/proc/{}/ns/pid", child()));
    let bundle = counter(&host, |bundle| bundle.namespace("pid", Some(&path)));
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    // Their pids are taken as long as nobody has reaped them.
    let namespace = fs::metadata(&path).unwrap().ino();
    let is_in = |process: &fs::DirEntry| {
        let found = fs::metadata(process.path().join("ns/pid"));
        found.is_ok_and(|found| found.ino() == namespace)
    };
    wait_until("the former processes are reaped", || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes.filter(is_in).count() == 1
    });
    restore_detached(&host, &bundle, &images).run().ok();
    assert_counts(&bundle);
    let inside = fs::metadata(format!("/proc/{}/ns/pid", host.pid("web")));
    assert_eq!(inside.unwrap().ino(), namespace);
    host.delete("web");
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn cgroup_mounts() {
    for own_namespace in [false, true] {
        let host = Host::new();
        let bundle = counter(&host, |bundle| {
            let bundle = bundle.mount(
                "cgroup",
                Path::new("cgroup"),
                "/sys/fs/cgroup",
                &["nosuid", "noexec", "nodev", "relatime", "ro"],
            );
            match own_namespace {
                true => bundle.namespace("cgroup", None),
                false => bundle,
            }
        });
        let list = |host: &Host| {
            host.exec_sh("web", "ls /sys/fs/cgroup; cat /sys/fs/cgroup/pids/pids.max")
                .stdout()
        };
        let before = list(&host);
        let images = images(&host, "images");
        checkpoint(&host, &bundle, &images).run().ok();
        restore_detached(&host, &bundle, &images).run().ok();
        assert_counts(&bundle);
        assert_eq!(list(&host), before);
    }
}

#[test]
fn a_user_namespace() {
    let host = Host::new();
    let bundle = counter(&host, |bundle| bundle.user_namespace(200_000));
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    restore_detached(&host, &bundle, &images).run().ok();
    assert_counts(&bundle);
    let owner = fs::metadata(format!("/proc/{}", host.pid("web")))
        .unwrap()
        .uid();
    assert_eq!(owner, 200_000);
}
