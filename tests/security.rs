//! Attacks that container runtimes have fallen for, from within a container or by its image.

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use common::{Cmd, Host, wait_until};
use serde_json::json;

/// CVE-2019-5736. What enters the container is rcm until it executes the container's program, and the container may open it then.
#[test]
fn the_binary_cannot_be_overwritten_from_the_container() {
    let host = Host::new();
    // Should it be possible, other tests must not suffer.
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
        // What rcm executes itself from.
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

/// CVE-2019-16884, CVE-2021-30465, CVE-2023-27561. The image says where its links lead, and the host has something there.
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
        let output = host.cmd("run").bundle(&bundle).run();
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
        let output = host.cmd("run").bundle(&bundle.args(["ls", "/tmp"])).run();
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
        let output = host.cmd("run").bundle(&bundle.script(script)).run();
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
