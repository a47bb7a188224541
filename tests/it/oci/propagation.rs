//! Propagation of mounts: those below a bind mount, and those that are made later on either side.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{Bundle, Host};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

#[track_caller]
fn prints(host: &Host, bundle: Bundle, script: &str) -> String {
    let output = host.run(&bundle.script(script)).ok();
    output.stdout()
}

/// A tmpfs on the host for as long as this lives.
struct Volume(PathBuf);

impl Volume {
    fn new(path: PathBuf, flags: MsFlags) -> Self {
        fs::create_dir_all(&path).unwrap();
        mount(Some("none"), &path, Some("tmpfs"), flags, None::<&str>).unwrap();
        Self(path)
    }

    fn share(&self) {
        let none = None::<&str>;
        mount(none, &self.0, none, MsFlags::MS_SHARED, none).unwrap();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Options of the mounts at `/mnt` and `/mnt/below`.
const LOOK: &str =
    "for at in /mnt /mnt/below; do awk -v at=$at '$5 == at {print $6}' /proc/self/mountinfo; done";

#[test]
fn recursive_options_reach_the_mounts_below() {
    let host = Host::new();
    let top = Volume::new(host.dir().join("volume"), MsFlags::empty());
    let _below = Volume::new(top.0.join("below"), MsFlags::empty());
    for (options, expected) in [
        (vec!["ro"], ["ro,relatime", "rw,relatime"]),
        (vec!["rro"], ["ro,relatime", "ro,relatime"]),
        (vec!["ro", "rro"], ["ro,relatime", "ro,relatime"]),
        // Set and cleared is set, as with runc.
        (vec!["rro", "rrw"], ["ro,relatime", "ro,relatime"]),
        (vec!["rnosuid", "rnodev"], ["rw,nosuid,nodev,relatime"; 2]),
        (vec!["rnoexec"], ["rw,noexec,relatime"; 2]),
        (vec!["rexec"], ["rw,relatime"; 2]),
        (
            vec!["nosuid", "rnoexec"],
            ["rw,nosuid,noexec,relatime", "rw,noexec,relatime"],
        ),
        (vec!["rnodiratime"], ["rw,nodiratime,relatime"; 2]),
        (vec!["ratime"], ["rw,relatime"; 2]),
        (vec!["rnoatime"], ["rw,noatime"; 2]),
        (vec!["rstrictatime"], ["rw"; 2]),
        (vec!["rnostrictatime"], ["rw,relatime"; 2]),
        (vec!["rrelatime"], ["rw,relatime"; 2]),
        (vec!["rnorelatime"], ["rw,relatime"; 2]),
        (vec!["rnosymfollow"], ["rw,relatime,nosymfollow"; 2]),
    ] {
        let options = [vec!["rbind"], options].concat();
        let bundle = host.bundle("web").mount("bind", &top.0, "/mnt", &options);
        let sorted = |line: &str| {
            let mut words: Vec<_> = line.split(',').map(str::to_owned).collect();
            words.sort();
            words
        };
        let printed = prints(&host, bundle, LOOK);
        let printed: Vec<_> = printed.lines().map(sorted).collect();
        assert_eq!(printed, expected.map(sorted), "{options:?}");
    }
    // Not bound recursively there is nothing below.
    let bundle = host
        .bundle("web")
        .mount("bind", &top.0, "/mnt", &["bind", "rro"]);
    assert_eq!(prints(&host, bundle, LOOK), "ro,relatime\n");
}

#[test]
fn a_read_only_tree_cannot_be_written_to() {
    const WRITE: &str =
        "for at in /mnt /mnt/below; do touch $at/file 2>/dev/null && echo $at; done; true";
    let host = Host::new();
    let top = Volume::new(host.dir().join("volume"), MsFlags::empty());
    let below = Volume::new(top.0.join("below"), MsFlags::empty());
    for (option, expected) in [
        ("ro", "/mnt/below\n"),
        ("rro", ""),
        ("rw", "/mnt\n/mnt/below\n"),
    ] {
        let bundle = host
            .bundle("web")
            .mount("bind", &top.0, "/mnt", &["rbind", option]);
        assert_eq!(prints(&host, bundle, WRITE), expected);
        for volume in [&below, &top] {
            let _ = fs::remove_file(volume.0.join("file"));
        }
    }
}

/// Its propagation, and that of a mount of the host's which was shared: `/proc/self/mountinfo` from
/// the seventh field on.
fn root_propagation(host: &Host, propagation: Option<&str>) -> String {
    let bundle = host.bundle("web").edit(|config| {
        if let Some(propagation) = propagation {
            config["linux"]["rootfsPropagation"] = json!(propagation);
        }
    });
    prints(
        host,
        bundle,
        "awk '$5 == \"/\" {print $7}' /proc/self/mountinfo",
    )
}

#[test]
fn the_propagation_of_the_root() {
    let host = Host::new();
    for (propagation, expected) in [
        (None, "-"),
        (Some("private"), "-"),
        (Some("rprivate"), "-"),
        (Some("shared"), "shared:"),
        (Some("rshared"), "shared:"),
        (Some("slave"), "-"),
        (Some("unbindable"), "unbindable"),
    ] {
        let found = root_propagation(&host, propagation);
        assert!(found.starts_with(expected), "{propagation:?}: {found}");
    }
    let wrong = host
        .bundle("web")
        .set("/linux/rootfsPropagation", json!("weird"));
    host.run(&wrong).exits_with(1);
}

#[test]
fn mounts_of_the_host_arrive_where_the_root_is_a_slave() {
    let host = Host::new();
    let shared = Volume::new(host.dir().join("shared"), MsFlags::empty());
    shared.share();
    fs::create_dir(shared.0.join("below")).unwrap();
    let sees = |id: &str, propagation: &str, option: &str| {
        let bundle = host
            .bundle(id)
            .set("/linux/rootfsPropagation", json!(propagation))
            .mount("bind", &shared.0, "/mnt", &["rbind", option])
            .args(["sleep", "1000"]);
        host.run_detached(&bundle);
        let later = Volume::new(shared.0.join("below"), MsFlags::empty());
        fs::write(later.0.join("file"), "").unwrap();
        let seen = host.exec(id, ["ls", "/mnt/below"]).ok().stdout();
        drop(later);
        seen
    };
    assert_eq!(sees("slave", "slave", "rslave"), "file\n");
    assert_eq!(sees("shared", "shared", "rshared"), "file\n");
    assert_eq!(sees("private", "private", "rprivate"), "");
    // And nothing of the container's arrives on the host without being asked for.
    let own = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let dir = host.dir().to_str().unwrap();
    let count = own.lines().filter(|line| {
        line.split(' ')
            .nth(4)
            .is_some_and(|at| Path::new(at).starts_with(dir))
    });
    assert_eq!(count.count(), 1, "{own}");
}
