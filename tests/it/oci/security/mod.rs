//! Attacks that container runtimes have fallen for, from within a container or by its image.

mod dev;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::{Cmd, Host, make_rootfs, wait_until};
use nix::fcntl::{RenameFlags, renameat2};
use serde_json::json;

/// CVE-2019-5736. A process that enters the container is rcm until it executes the container's
/// program, and until then the container may open its binary.
#[test]
fn the_binary_cannot_be_overwritten_from_the_container() {
    let host = Host::new();
    // If the attack succeeds, other tests must not suffer.
    let binary = host.dir().join("rcm");
    fs::copy(env!("CARGO_BIN_EXE_rcm"), &binary).unwrap();
    let host = host.with_program(&binary);
    let before = fs::read(&binary).unwrap();
    // Not the shell's own binary nor that of its children.
    let script = "while true; do for exe in /proc/[0-9]*/exe; do
        if [ -e $exe ] && ! [ $exe -ef /proc/1/exe ] && ! [ $exe -ef /usr/bin/sleep ]; then
            (exec 7<$exe; readlink /proc/self/fd/7 >>/opened; sleep 0.02; echo overwritten >/proc/self/fd/7 && echo >>/written) 2>/dev/null
            (echo overwritten >$exe && echo >>/written) 2>/dev/null
        fi
    done; done";
    // The loader that rcm needs is there, as an attacker would provide it.
    let bundle = host.bundle("web").host_programs().script(script);
    let trap = bundle.rootfs().join("trap");
    fs::write(&trap, "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(&trap, fs::Permissions::from_mode(0o755)).unwrap();
    host.run_detached(&bundle);
    let opened = bundle.rootfs().join("opened");
    wait_until("the container has opened rcm", || {
        host.exec("web", ["/trap"]);
        // The file from which rcm executes itself.
        fs::read_to_string(&opened)
            .is_ok_and(|names| names.contains("sealed") || names.contains("rcm"))
    });
    for _ in 0..10 {
        host.exec("web", ["/trap"]);
    }
    assert!(!bundle.rootfs().join("written").exists());
    assert!(fs::read(&binary).unwrap() == before);
}

/// CVE-2024-21626. A directory of the host's that stays open is a way out.
#[test]
fn no_descriptor_leads_out_of_the_container() {
    let host = Host::new();
    let running = host.bundle("running").args(["sleep", "1000"]);
    host.run_detached(&running);
    let holding = |arguments: &[&str]| {
        let script = r#"exec 3</ 6</etc 9</proc 12</; exec "$@""#;
        Cmd::new("bash")
            .args(["-c", script, "bash", env!("CARGO_BIN_EXE_rcm"), "--root"])
            .arg(host.root())
            .args(arguments)
    };
    // The list itself is open, too.
    let list = ["sh", "-c", "ls /proc/self/fd | tr '\\n' ' '"];
    let bundle = host.bundle("lists").args(list);
    let output = holding(&["run"]).bundle(&bundle).run().ok();
    assert_eq!(output.stdout().trim(), "0 1 2 3");
    let output = holding(&["exec", "running"]).args(list).run().ok();
    assert_eq!(output.stdout().trim(), "0 1 2 3");
    for number in 3..20 {
        let path = format!("/proc/self/fd/{number}");
        let bundle = host.bundle("moves").set("/process/cwd", json!(path));
        let output = holding(&["run"]).bundle(&bundle.args(["ls"])).run();
        assert!(
            output.code() != 0 && output.stdout().is_empty(),
            "{path}: {output:?}"
        );
        let output = holding(&["exec", "--cwd", &path, "running", "ls"]).run();
        assert!(
            output.code() != 0 && output.stdout().is_empty(),
            "{path}: {output:?}"
        );
    }
}

/// CVE-2024-21626, too. The program itself is reached by a descriptor that only execve(2) closes:
/// it would be one of the host's.
#[test]
fn no_descriptor_leads_to_a_program_of_the_host() {
    let host = Host::new();
    let running = host.bundle("running").args(["sleep", "1000"]);
    host.run_detached(&running);
    let own = host.dir().join("tools");
    make_rootfs(&own);
    let script = r#"exec 3<"$1" 9<"$1" 12<"$1"; shift; exec "$@""#;
    let holding = |verb: &str| {
        let cmd = Cmd::new("bash").args(["-c", script, "bash"]).arg(&own);
        cmd.arg(env!("CARGO_BIN_EXE_rcm"))
            .arg("--root")
            .arg(host.root())
            .arg(verb)
    };
    for number in 3..16 {
        let program = format!("/proc/self/fd/{number}/bin/busybox");
        let command = [program.as_str(), "echo", "of the host"];
        let bundle = host.bundle("web").args(command);
        let output = holding("run").bundle(&bundle).run();
        assert!(
            output.code() != 0 && output.stdout().is_empty(),
            "{output:?}"
        );
        let output = holding("exec").arg("running").args(command).run();
        assert!(
            output.code() != 0 && output.stdout().is_empty(),
            "{output:?}"
        );
    }
}

/// Open descriptors of a container's first process, as the host sees them: numbers, and whether
/// execve(2) closes each.
fn descriptors(host: &Host, id: &str) -> Vec<(u32, bool)> {
    let dir = format!("/proc/{}/fdinfo", host.pid(id));
    let mut found: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let info = fs::read_to_string(entry.path()).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = i32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name.parse().unwrap(), flags & libc::O_CLOEXEC != 0)
        })
        .collect();
    found.sort_unstable();
    found
}

/// CVE-2024-21626, CVE-2016-9962. As above, for a first process that is rcm until the start, and
/// for one that is restored from images.
#[test]
fn no_descriptor_is_left_to_a_created_or_restored_container() {
    const STREAMS: [(u32, bool); 3] = [(0, false), (1, false), (2, false)];
    let host = Host::new();
    let bundle = host.bundle("web").args(["sleep", "1000"]);
    let holding = |verb: &str| {
        let script = r#"exec 3</ 6</etc 9</proc 12</; exec "$@""#;
        let cmd =
            Cmd::new("bash").args(["-c", script, "bash", env!("CARGO_BIN_EXE_rcm"), "--root"]);
        cmd.arg(host.root()).arg(verb)
    };
    holding("create").bundle(&bundle).run().ok();
    let open = descriptors(&host, "web");
    assert_eq!(open[..3], STREAMS);
    assert!(open[3..].iter().all(|(_, closes)| *closes), "{open:?}");
    // Root of the container cannot reach the descriptors that are open until then.
    let look = [
        "sh",
        "-c",
        "ls -d /proc/1/fd/*/ /proc/1/cwd/ /proc/1/root/; readlink /proc/1/fd/*; cat /proc/1/fd/*/passwd /proc/1/environ",
    ];
    assert_eq!(host.exec("web", look).stdout(), "");
    holding("start").arg("web").run().ok();
    wait_until("it executes its program", || {
        descriptors(&host, "web").len() == 3
    });
    assert_eq!(descriptors(&host, "web"), STREAMS);

    let images = host.dir().join("images");
    let checkpoint = holding("checkpoint").arg("--image-path").arg(&images);
    checkpoint.arg("web").run().ok();
    let restore = holding("restore").arg("--detach").arg("--image-path");
    restore.arg(&images).bundle(&bundle).run().ok();
    assert_eq!(descriptors(&host, "web"), STREAMS);
}

/// rcm's records of containers may contain passwords in environments. Only root can read them, even
/// with an open umask.
#[test]
fn state_is_closed_to_others() {
    let host = Host::new();
    let bundle = host.bundle("web").args(["sleep", "1000"]);
    let open_rcm = |verb: &str| {
        let cmd = Cmd::new("sh").args(["-c", r#"umask 0; exec "$@""#, "sh"]);
        cmd.arg(env!("CARGO_BIN_EXE_rcm"))
            .arg("--root")
            .arg(host.root())
            .arg(verb)
    };
    let check = || {
        for entry in walkdir::WalkDir::new(host.root()) {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            // For sockets only the mode of the directory counts.
            if !entry.file_type().is_file() && !entry.file_type().is_dir() {
                continue;
            }
            assert_eq!(mode & 0o077, 0, "{}: {mode:o}", entry.path().display());
        }
    };
    open_rcm("create").bundle(&bundle).run().ok();
    check();
    open_rcm("start").arg("web").run().ok();
    open_rcm("update")
        .args(["--pids-limit", "20", "web"])
        .run()
        .ok();
    let images = host.dir().join("images");
    let checkpoint = open_rcm("checkpoint").arg("--leave-running");
    checkpoint
        .arg("--image-path")
        .arg(&images)
        .arg("web")
        .run()
        .ok();
    check();
    let mode = images.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700, "the memory of the container: {mode:o}");
}

/// CVE-2019-16884, CVE-2021-30465, CVE-2023-27561. Links of the image lead to a place that exists
/// on the host.
#[test]
fn links_of_the_image_do_not_lead_mounts_out() {
    let host = Host::new();
    let outside = host.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "of the host").unwrap();
    let up = format!("{}{}", "../".repeat(20), outside.display());
    for (number, target) in [outside.to_str().unwrap(), &up].into_iter().enumerate() {
        let bundle = host.bundle(&format!("links{number}"));
        symlink(target, bundle.rootfs().join("link")).unwrap();
        let bundle = bundle
            .mount("tmpfs", "tmpfs".as_ref(), "/link/made", &[])
            .mount("bind", "/etc".as_ref(), "/link/secret", &["bind"])
            .set("/linux/maskedPaths", json!(["/link/secret"]))
            .set("/linux/readonlyPaths", json!(["/link"]))
            .args(["cat", "/link/secret"]);
        let output = host.run(&bundle);
        assert!(!output.stdout().contains("of the host"), "{output:?}");
        let names: Vec<_> = fs::read_dir(&outside).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        assert_eq!(
            fs::read_to_string(outside.join("secret")).unwrap(),
            "of the host"
        );
    }
    for name in ["proc", "sys"] {
        let bundle = host.bundle(&format!("{name}-link"));
        let place = bundle.rootfs().join(name);
        fs::remove_dir(&place).unwrap();
        symlink("/tmp", &place).unwrap();
        let output = host.run(&bundle.args(["ls", "/tmp"]));
        assert!(
            output.code() != 0 && output.stdout().is_empty(),
            "{output:?}"
        );
    }
}

/// CVE-2025-31133. Files are masked by binding `/dev/null` over them, so that must be the device.
#[test]
fn a_mask_is_the_null_device_whatever_the_image_calls_so() {
    let host = Host::new();
    let without_dev = |id: &str| {
        host.bundle(id).edit(|config| {
            config["mounts"] = json!([{"destination": "/proc", "type": "proc", "source": "proc"}]);
        })
    };
    for (id, target) in [
        ("pattern", "/proc/sys/kernel/core_pattern"),
        ("file", "/etc/passwd"),
        ("nothing", "/nowhere"),
    ] {
        let bundle = without_dev(id);
        symlink(target, bundle.rootfs().join("dev/null")).unwrap();
        let script = "stat -L -c %t:%T /proc/kcore; echo overwritten >/proc/kcore";
        let output = host.run(&bundle.script(script));
        let masked = output.stdout() == "1:3\n";
        assert!(
            masked || (output.code() != 0 && output.stdout().is_empty()),
            "{id}: {output:?}"
        );
        let passwd = fs::read_to_string(bundle_passwd(&host, id)).unwrap();
        assert!(!passwd.contains("overwritten"));
    }
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    assert!(!pattern.contains("overwritten"));
}

fn bundle_passwd(host: &Host, id: &str) -> std::path::PathBuf {
    host.bundle(id).rootfs().join("etc/passwd")
}

/// CVE-2021-30465. A container that shares a volume exchanges a directory and a link there while
/// others with mounts below it are made.
#[test]
fn a_race_in_a_volume_leads_no_mount_out() {
    const CREATIONS: u32 = 50;
    let host = Host::new();
    let outside = host.dir().join("outside");
    let volume = host.dir().join("volume");
    for (dir, text) in [
        (&outside, "of the host"),
        (&volume.join("dir"), "of the volume"),
    ] {
        fs::create_dir_all(dir.join("below")).unwrap();
        fs::write(dir.join("below/file"), format!("{text}\n")).unwrap();
    }
    let (dir, link) = (volume.join("dir"), volume.join("link"));
    symlink(&outside, &link).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swaps = 0_u64;
            while !is_over.load(Ordering::Relaxed) {
                renameat2(None, &dir, None, &link, RenameFlags::RENAME_EXCHANGE).unwrap();
                swaps += 1;
            }
            swaps
        });
        let made = std::panic::catch_unwind(|| {
            (0..CREATIONS)
                .filter(|number| race(&host, &volume, &outside, *number))
                .count()
        });
        is_over.store(true, Ordering::Relaxed);
        let swaps = swapper.join().unwrap();
        let made = made.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(made > 0, "no container could be made");
        assert!(swaps > u64::from(CREATIONS), "{swaps}");
    });
}

/// Runs a container with mounts below the directory that is exchanged. Returns whether the
/// container could be made.
fn race(host: &Host, volume: &Path, outside: &Path, number: u32) -> bool {
    let copied: &[&str] = if number.is_multiple_of(2) {
        &[]
    } else {
        &["tmpcopyup"]
    };
    let bundle = host
        .bundle("web")
        .bind(volume, "/volume", "rw")
        .mount("tmpfs", "tmpfs".as_ref(), "/volume/dir/below", copied)
        .mount("tmpfs", "tmpfs".as_ref(), "/volume/dir/new", &[])
        .mount("bind", "/dev/null".as_ref(), "/volume/dir/file", &["bind"])
        // A mount that went astray would hide these files.
        .bind(outside, "/outside", "ro")
        .script("cat /outside/below/file; cat /volume/*/below/file /volume/link/below/file 2>/dev/null; true");
    let output = host.run(&bundle);
    let names: Vec<_> = walkdir::WalkDir::new(outside)
        .into_iter()
        .map(|entry| entry.unwrap().file_name().to_owned())
        .collect();
    assert_eq!(names, ["outside", "below", "file"], "{output:?}");
    if output.code() != 0 {
        return false;
    }
    let text = output.stdout();
    assert!(text.starts_with("of the host\n"), "{output:?}");
    assert_eq!(text.matches("of the host").count(), 1, "{output:?}");
    true
}

/// CVE-2025-52881, CVE-2019-19921. rcm writes only to the kernel's own files of `/proc`: nothing
/// else may be mounted there.
#[test]
fn nothing_is_mounted_in_proc() {
    let host = Host::new();
    let file = host.dir().join("file");
    fs::write(&file, "").unwrap();
    for destination in [
        "/proc/self/attr",
        "/proc/sys/kernel",
        "/proc/sys",
        "/proc/self/attr/exec",
        "/proc",
    ] {
        for kind in ["tmpfs", "bind"] {
            let (source, options): (&Path, &[&str]) = match kind {
                "bind" => (&file, &["bind"]),
                _ => ("tmpfs".as_ref(), &[]),
            };
            let bundle = host.bundle("web").mount(kind, source, destination, options);
            let output = host.run(&bundle.args(["echo", "here"]));
            assert!(output.code() != 0, "{destination}: {output:?}");
            assert_eq!(output.stdout(), "");
        }
    }
    // The same if the container's own root has mounted something there.
    let bundle = host.bundle("web").edit(|config| {
        let all = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
        config["process"]["capabilities"] =
            json!({"bounding": all, "effective": all, "permitted": all});
        config["process"]["apparmorProfile"] = json!("");
    });
    let script = "mount -t tmpfs none /proc && mkdir -p /proc/self/fd /proc/self/attr /proc/thread-self/attr; exec sleep 1000";
    host.run_detached(&bundle.script(script));
    let processes = || {
        let output = host.exec("web", ["ls", "/proc/self"]);
        (output.code() == 0).then(|| output.stdout())
    };
    wait_until("it has a /proc of its own", || {
        processes().is_some_and(|names| names == "attr\nfd\n")
    });
    let seen: BTreeSet<_> = (0..3)
        .map(|_| host.exec("web", ["id", "-u"]).ok().stdout())
        .collect();
    assert_eq!(seen, BTreeSet::from(["0\n".to_owned()]));
}
