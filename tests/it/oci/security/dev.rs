//! Attacks by way of the image's `/dev`, or of the terminal that is mounted there.

use std::fs;
use std::os::unix::fs::symlink;

use crate::common::{Bundle, Host};
use serde_json::json;

/// A bundle without the usual file systems on `/dev`: the image's own is the container's.
pub fn without_dev(host: &Host, id: &str) -> Bundle {
    host.bundle(id).edit(|config| {
        config["mounts"] = json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]}
        ]);
    })
}

/// CVE-2026-41579. Links and devices are made in the image's `/dev`, which may be a link, while the
/// host's root is still mounted.
#[test]
fn nothing_is_made_where_an_image_s_dev_leads() {
    let host = Host::new();
    let outside = host.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("ptmx"), "of the host").unwrap();
    let up = format!("{}{}", "../".repeat(20), outside.display());
    let mut number = 0;
    for target in [outside.to_str().unwrap(), &up] {
        for covers in [true, false] {
            for is_inside in [true, false] {
                number += 1;
                let id = format!("dev{number}");
                let bundle = match covers {
                    true => host.bundle(&id),
                    false => without_dev(&host, &id),
                };
                let dev = bundle.rootfs().join("dev");
                fs::remove_dir(&dev).unwrap();
                symlink(target, &dev).unwrap();
                if is_inside {
                    let same = outside.strip_prefix("/").unwrap();
                    fs::create_dir_all(bundle.rootfs().join(same)).unwrap();
                }
                let output = host.run(&bundle);
                let names: Vec<_> = fs::read_dir(&outside).unwrap().flatten().collect();
                assert_eq!(names.len(), 1, "{names:?}, {output:?}");
                let text = fs::read_to_string(outside.join("ptmx")).unwrap();
                assert_eq!(text, "of the host", "{output:?}");
            }
        }
    }
}

/// CVE-2025-52565. The terminal is mounted on `/dev/console`, and never on the target of a link
/// that the image has there.
#[test]
fn a_terminal_is_mounted_on_no_other_file() {
    const LOOK: &str = "grep devpts /proc/mounts | cut -d' ' -f2; stat -c %t /dev/console";
    let host = Host::new();
    let mut made = 0;
    for (id, target) in [
        ("pattern", Some("/proc/sys/kernel/core_pattern")),
        ("file", Some("/etc/passwd")),
        ("nothing", Some("/nowhere")),
        ("regular", None),
    ] {
        let bundle = without_dev(&host, id).terminal().script(LOOK);
        let console = bundle.rootfs().join("dev/console");
        match target {
            Some(target) => symlink(target, &console).unwrap(),
            None => fs::write(&console, "of the image").unwrap(),
        }
        let (code, text) = host.cmd("run").bundle(&bundle).on_terminal().wait();
        if code == 0 {
            made += 1;
            // 88 is the number of UNIX98 terminals, 136.
            let lines: Vec<_> = text.lines().map(str::trim).collect();
            assert_eq!(lines, ["/dev/pts", "/dev/console", "88"], "{id}");
        }
        let nowhere = bundle.rootfs().join("nowhere");
        assert!(!nowhere.exists(), "{id}");
    }
    assert!(made > 0, "a file may be there");
}

/// CVE-2025-52565. `/dev/ptmx` must be the real one, even if a container has put something else
/// there.
#[test]
fn a_terminal_comes_from_no_other_device() {
    let host = Host::new();
    let targets = ["/dev/null", "/dev/tty", "/etc/passwd", "/nowhere"];
    for (number, target) in targets.into_iter().enumerate() {
        let bundle = without_dev(&host, &format!("image{number}")).terminal();
        let pts = bundle.rootfs().join("dev/ptmx");
        symlink(target, &pts).unwrap();
        let bundle = bundle.script("readlink /dev/ptmx; tty");
        let (code, text) = host.cmd("run").bundle(&bundle).on_terminal().wait();
        // It is replaced.
        assert_eq!(
            (code, &*text),
            (0, "pts/ptmx\r\n/dev/pts/0\r\n"),
            "{target}"
        );
    }
    let bundle = host.bundle("web").args(["sleep", "1000"]);
    host.run_detached(&bundle);
    for target in targets {
        let script = format!("ln -sf {target} /dev/ptmx");
        host.exec_sh("web", &script).ok();
        let exec = host.cmd("exec").args(["--tty", "web", "echo", "here"]);
        let (code, text) = exec.on_terminal().wait();
        assert!(
            code != 0 && !text.contains("here"),
            "{target}: {code} {text}"
        );
    }
    host.exec("web", ["ln", "-sf", "pts/ptmx", "/dev/ptmx"])
        .ok();
    let exec = host.cmd("exec").args(["--tty", "web", "echo", "here"]);
    assert_eq!(exec.on_terminal().wait(), (0, "here\r\n".to_owned()));
}
