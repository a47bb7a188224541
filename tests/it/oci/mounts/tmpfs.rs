//! File systems in memory that begin with the files that they cover.

use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::Path;

use super::{BASE, prints, run, source};
use crate::common::{Bundle, Host};

/// Something of every kind at `/seed` of the root file system, belonging to user and group `owner`.
pub fn seed(bundle: &Bundle, owner: u32) {
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
        // A missing directory cannot be copied.
        .mount("tmpfs", Path::new("tmpfs"), "/mnt/new", &["tmpcopyup"]);
    let printed = prints(&host, bundle, "cat /mnt/below/file; ls /mnt/new");
    assert_eq!(printed, "below");
}
