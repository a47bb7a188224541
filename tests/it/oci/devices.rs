//! `/dev` of a container: its contents, and the devices that may be used.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::common::{Bundle, Host};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::json;

#[track_caller]
fn prints(host: &Host, bundle: Bundle, script: &str) -> String {
    let output = host.run(&bundle.script(script)).ok();
    output.stdout()
}

#[test]
fn the_usual_devices_are_there() {
    const LOOK: &str = "cd /dev; for name in null zero full random urandom tty; do stat -c '%n %F %t:%T %a' $name; done;
        for name in fd stdin stdout stderr ptmx; do echo $name $(readlink $name); done; ls -d core kcore 2>/dev/null; true";
    let host = Host::new();
    for bundle in [
        host.bundle("web"),
        host.bundle("mapped").user_namespace(100_000),
    ] {
        let printed = prints(&host, bundle, LOOK);
        let expected = "null character special file 1:3 666\nzero character special file 1:5 666\n\
            full character special file 1:7 666\nrandom character special file 1:8 666\n\
            urandom character special file 1:9 666\ntty character special file 5:0 666\n\
            fd /proc/self/fd\nstdin /proc/self/fd/0\nstdout /proc/self/fd/1\nstderr /proc/self/fd/2\nptmx pts/ptmx\n";
        assert!(printed.starts_with(expected), "{printed}");
    }
}

#[test]
fn devices_of_the_spec() {
    let host = Host::new();
    let devices = json!([
        {"path": "/dev/own-null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 7, "gid": 8},
        {"path": "/dev/deep/disk", "type": "b", "major": 7, "minor": 200, "fileMode": 0o600},
        {"path": "/dev/queue", "type": "p", "fileMode": 0o622},
        // Two that are there anyway.
        {"path": "/dev/tty", "type": "c", "major": 5, "minor": 0, "fileMode": 0o600},
        {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2}
    ]);
    let bundle = host.bundle("web").set("/linux/devices", devices);
    let script =
        "cd /dev; stat -c '%n %F %t:%T %a %u:%g' own-null deep/disk queue tty; readlink ptmx";
    assert_eq!(
        prints(&host, bundle, script),
        "own-null character special file 1:3 640 7:8\ndeep/disk block special file 7:c8 600 0:0\n\
         queue fifo 0:0 622 0:0\ntty character special file 5:0 600 0:0\npts/ptmx\n"
    );
}

#[test]
fn rules_say_who_may_use_a_device() {
    const USE: &str = "head -c 1 /dev/own-zero >/dev/null 2>&1 && echo read; echo x 2>/dev/null >/dev/own-zero && echo written;
        mknod /dev/other c 1 5 2>/dev/null && echo made; echo x >/dev/null && echo usual";
    let host = Host::new();
    let bundle = |rules: serde_json::Value| {
        host.bundle("web")
            .set(
                "/linux/devices",
                json!([{"path": "/dev/own-zero", "type": "c", "major": 1, "minor": 11}]),
            )
            .set("/linux/resources/devices", rules)
    };
    let none = json!({"allow": false, "access": "rwm"});
    let rule = |access: &str| json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": access});
    // /dev/kmsg, 1:11: root may read and write it, and it is not one of the default devices.
    for (rules, expected) in [
        (json!([none]), "made\nusual\n"),
        (json!([none, rule("r")]), "read\nmade\nusual\n"),
        (json!([none, rule("rw")]), "read\nwritten\nmade\nusual\n"),
        (
            json!([{"allow": true, "access": "rwm"}, {"allow": false, "type": "c", "major": 1, "minor": 11, "access": "w"}]),
            "read\nmade\nusual\n",
        ),
    ] {
        let bundle = bundle(rules.clone()).edit(|config| {
            let all = json!(["CAP_SYSLOG", "CAP_SYS_ADMIN", "CAP_MKNOD"]);
            config["process"]["capabilities"] =
                json!({"bounding": all, "effective": all, "permitted": all});
        });
        assert_eq!(prints(&host, bundle, USE), expected, "{rules}");
    }
}

/// An image with a `/dev` of its own, without file systems on it: used once and again.
#[test]
fn the_image_s_own_directory() {
    let host = Host::new();
    for _ in 0..2 {
        let bundle = host.bundle("web").edit(|config| {
            config["mounts"] = json!([{"destination": "/proc", "type": "proc", "source": "proc"}]);
        });
        assert_eq!(
            prints(&host, bundle, "echo x >/dev/null && readlink /dev/fd"),
            "/proc/self/fd\n"
        );
    }
}

/// A mount on the host for as long as this lives.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(target: PathBuf) -> Self {
        fs::create_dir(&target).unwrap();
        mount(
            Some("none"),
            &target,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        Self(target)
    }

    fn bind(source: &Path, target: PathBuf) -> Self {
        mount(
            Some(source),
            &target,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .unwrap();
        Self(target)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// With the host's `/dev` in the container (Docker's `--volume /dev:/dev`), nothing is made or
/// removed there.
#[test]
fn the_host_s_directory() {
    let host = Host::new();
    let mounted = Mounted::tmpfs(host.dir().join("dev"));
    let dir = mounted.0.clone();
    let all = Mode::from_bits_truncate(0o666);
    for (name, minor) in [("null", 3), ("zero", 5), ("own", 7)] {
        mknod(&dir.join(name), SFlag::S_IFCHR, all, makedev(1, minor)).unwrap();
    }
    mknod(&dir.join("ptmx"), SFlag::S_IFCHR, all, makedev(5, 2)).unwrap();
    let bundle = |id: &str| {
        host.bundle(id)
            .edit(|config| {
                let mounts = config["mounts"].as_array_mut().unwrap();
                mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
                config["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
            })
            .bind(&dir, "/dev", "rw")
    };
    assert_eq!(
        prints(&host, bundle("web"), "ls /dev; echo x >/dev/null"),
        "null\nown\nptmx\nzero\n"
    );
    // The other mounts of the spec are there, and a terminal.
    fs::create_dir(dir.join("shm")).unwrap();
    fs::create_dir(dir.join("pts")).unwrap();
    let pts = Mounted::bind(Path::new("/dev/pts"), dir.join("pts"));
    let more = bundle("more")
        .mount("tmpfs", "tmpfs".as_ref(), "/dev/shm", &["size=1m"])
        .terminal();
    let script = "ls /dev /dev/shm; stat -c %t /dev/console; tty >/dev/shm/tty && test -c $(cat /dev/shm/tty) && echo found";
    let (code, text) = host
        .cmd("run")
        .bundle(&more.script(script))
        .on_terminal()
        .wait();
    assert_eq!(code, 0, "{text}");
    let words: Vec<_> = text.split_whitespace().collect();
    assert_eq!(
        words,
        [
            "/dev:",
            "console",
            "null",
            "own",
            "ptmx",
            "pts",
            "shm",
            "zero",
            "/dev/shm:",
            "88",
            "found"
        ]
    );
    drop(pts);
    let read_only = bundle("read-only").edit(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.last_mut().unwrap()["options"] = json!(["rbind", "ro", "rprivate"]);
    });
    assert_eq!(
        prints(
            &host,
            read_only,
            "touch /dev/new 2>/dev/null || echo closed"
        ),
        "closed\n"
    );
    let moves = bundle("moves").args(["sleep", "1000"]);
    host.run_detached(&moves);
    let images = host.dir().join("images");
    let checkpoint = host.cmd("checkpoint").arg("--image-path").arg(&images);
    checkpoint.arg("moves").run().ok();
    let restore = host.cmd("restore").arg("--detach").arg("--image-path");
    restore.arg(&images).bundle(&moves).run().ok();
    host.exec("moves", ["test", "-c", "/dev/own"]).ok();
    let mapped = bundle("mapped").user_namespace(100_000);
    assert_eq!(
        prints(&host, mapped, "ls /dev/null; echo x >/dev/null; id -u"),
        "/dev/null\n0\n"
    );

    let mut names: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["console", "null", "own", "ptmx", "pts", "shm", "zero"]
    );
    let ptmx = fs::symlink_metadata(dir.join("ptmx")).unwrap();
    assert!(ptmx.file_type().is_char_device());
    assert_eq!(ptmx.rdev(), makedev(5, 2));
}
