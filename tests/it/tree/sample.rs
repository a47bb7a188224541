//! A tree like that of a Debian system, with all attributes that are easily lost.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use rcm::sys::beneath::Dir;
use rcm::sys::xattr;

use crate::common::random::Random;

pub fn set_attribute(path: &Path, name: &str, value: &[u8]) {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    let name = CString::new(name).expect("no NUL");
    xattr::set(&path, &name, value).unwrap_or_else(|error| panic!("{name:?} {path:?}: {error}"));
}

pub fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = TimeSpec::new(seconds, nanoseconds);
    utimensat(None, path, &time, &time, UtimensatFlags::NoFollowSymlink).expect("times can be set");
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("the mode can be set");
}

/// An access control list as acl(5) and linux/posix_acl_xattr.h have it: tag, permissions,
/// identifier.
pub fn acl(user: u32) -> Vec<u8> {
    let entries = [
        (1, 7, u32::MAX),
        (2, 5, user),
        (4, 5, u32::MAX),
        (0x10, 5, u32::MAX),
        (0x20, 0, u32::MAX),
    ];
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(u16::to_le_bytes(tag));
        value.extend(u16::to_le_bytes(permissions));
        value.extend(u32::to_le_bytes(id));
    }
    value
}

/// `CAP_NET_RAW` permitted and effective (capabilities(7), version 2).
pub fn capability() -> Vec<u8> {
    let mut value = 0x0200_0001_u32.to_le_bytes().to_vec();
    value.extend((1_u32 << 13).to_le_bytes());
    value.resize(20, 0);
    value
}

/// Builds it in the empty directory `root`, with `packages` packages of twenty files.
pub fn build(root: &Path, packages: usize) {
    let mut random = Random::new(1);
    let path = |name: &str| root.join(name);
    let directories = "bin dev etc/init.d etc/empty home/user lib root run/lock tmp usr/share/doc var/cache var/lib/dpkg/info var/lib/nested/d";
    for name in directories.split(' ') {
        fs::create_dir_all(path(name)).expect("a directory");
    }
    for package in 0..packages {
        let doc = path(&format!("usr/share/doc/package-{package}"));
        fs::create_dir(&doc).expect("a directory");
        for file in 0..20 {
            let size = match random.below(10) {
                0 => 0,
                1 => random.below(60_000),
                _ => random.below(3000),
            };
            let file = doc.join(format!("file-{file}.gz"));
            fs::write(&file, random.bytes(size)).expect("a file");
            set_time(
                &file,
                1_600_000_000 + random.below(100_000_000) as i64,
                random.below(1_000_000_000) as i64,
            );
        }
        fs::hard_link(
            doc.join("file-0.gz"),
            path(&format!("var/lib/dpkg/info/package-{package}.list")),
        )
        .expect("a link");
        symlink(
            format!("../package-{}/file-1.gz", package / 2),
            doc.join("README"),
        )
        .expect("a link");
    }
    fs::write(path("bin/su"), random.bytes(30_000)).expect("a file");
    chown(path("bin/su"), Some(0), Some(42)).expect("an owner");
    set_mode(&path("bin/su"), 0o6755);
    fs::write(path("bin/ping"), random.bytes(30_000)).expect("a file");
    chown(path("bin/ping"), Some(1000), Some(1000)).expect("an owner");
    set_attribute(&path("bin/ping"), "security.capability", &capability());
    fs::write(path("etc/shadow"), "root:*:1::::::\n").expect("a file");
    set_mode(&path("etc/shadow"), 0o000);
    chown(path("etc/shadow"), Some(4_000_000_000), Some(4_000_000_001)).expect("an owner");
    for (name, format, major, minor) in [
        ("dev/null", SFlag::S_IFCHR, 1, 3),
        ("dev/whiteout-like", SFlag::S_IFCHR, 0, 0),
        ("dev/large", SFlag::S_IFBLK, 4000, 1_000_000),
        ("run/initctl", SFlag::S_IFIFO, 0, 0),
    ] {
        let mode = Mode::from_bits_truncate(0o640);
        mknod(&path(name), format, mode, makedev(major, minor)).expect("a node");
        set_mode(&path(name), 0o666);
    }
    fs::hard_link(path("run/initctl"), path("dev/initctl")).expect("a link");
    set_time(&path("dev/null"), -5, 999_999_999);
    drop(UnixListener::bind(path("run/socket")).expect("a socket"));
    set_mode(&path("tmp"), 0o1777);
    set_mode(&path("root"), 0o000);
    set_mode(&path("home/user"), 0o2750);
    chown(path("home/user"), Some(1000), Some(1000)).expect("an owner");
    // New files in it inherit the default list.
    set_attribute(&path("home/user"), "system.posix_acl_default", &acl(1001));
    fs::write(path("home/user/inherits"), "x").expect("a file");
    fs::write(path("home/user/listed"), "x").expect("a file");
    set_attribute(
        &path("home/user/listed"),
        "system.posix_acl_access",
        &acl(77),
    );
    set_attribute(&path("home/user/listed"), "user.comment", b"\0\xff binary");
    set_attribute(&path("home/user/listed"), "user.large", &random.bytes(3000));
    set_attribute(&path("home/user/listed"), "trusted.note", b"");
    set_attribute(&path("var/lib/nested/d"), "trusted.overlay.opaque", b"y");

    symlink("/nowhere/at/all", path("etc/dangling")).expect("a link");
    symlink("..", path("etc/up")).expect("a link");
    symlink("x/".repeat(2047), path("etc/long")).expect("a link");
    fs::hard_link(path("etc/dangling"), path("etc/dangling-too")).expect("a link");
    lchown(path("etc/dangling"), Some(12), Some(34)).expect("an owner");
    set_time(&path("etc/dangling"), 4_000_000_000, 1);
    for name in [
        &b"new\nline"[..],
        b"\xff\xfe not UTF-8",
        b"-rf",
        b" ",
        b"\\",
        b"a*?[]",
        b"...",
        b".\x01",
        &[b'n'; 255],
    ] {
        fs::write(path("tmp").join(OsStr::from_bytes(name)), name).expect("a file");
    }
    sparse(&path("var"), &mut random);
    fs::write(path("var/cache/random"), random.bytes(3 << 20)).expect("a file");
    deep(&path("var/cache"));
    // The times of directories, deepest first.
    for (index, name) in directories.split(' ').enumerate() {
        set_time(&path(name), 1_500_000_000 + index as i64, 123_456_789);
    }
    set_time(root, 1_400_000_000, 7);
    set_mode(root, 0o711);
}

/// Copies the files of this machine's essential packages, its time zones and apt into the new
/// directory `root`: thousands of files of a Debian tree.
pub fn debian(root: &Path) {
    // A path that is listed below /bin and its like may really be below /usr. Status 1 of tar means
    // that files changed meanwhile, such as /tmp when other tests run.
    let script = r#"
        essential=$(dpkg-query -W -f '${Essential} ${binary:Package} ${db:Status-Status}\n' | awk '$1 == "yes" && $3 == "installed" { print $2 }')
        mkdir "$1"
        dpkg-query -L $essential tzdata apt | sed -E '/^\/(s?bin|lib[^/]*|\.)(\/|$)/d; s/^\///' | sort -u \
            | { tar --create --directory / --no-recursion --ignore-failed-read --acls --xattrs --files-from - 2>/dev/null || [ $? -eq 1 ]; } \
            | tar --extract --directory "$1" --acls --xattrs --numeric-owner"#;
    let done = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script, "debian"])
        .arg(root)
        .status();
    assert!(done.expect("bash").success());
}

fn sparse(dir: &Path, random: &mut Random) {
    let make = |name: &str, size: u64, data: &[(u64, usize)], random: &mut Random| {
        let file = File::create(dir.join(name)).expect("a file");
        file.set_len(size).expect("a size");
        for (offset, count) in data {
            file.write_all_at(&random.bytes(*count), *offset)
                .expect("data");
        }
    };
    make("only-hole", 5 << 40, &[], random);
    make(
        "hole-first",
        100 << 20,
        &[((100 << 20) - 5000, 5000)],
        random,
    );
    make("hole-last", 100_000_001, &[(0, 4096)], random);
    make(
        "holes",
        1 << 30,
        &[(4096, 4096), (1 << 20, 700_000), (777 << 20, 12_288)],
        random,
    );
}

/// Directories with paths longer than the kernel's limit for one call.
fn deep(top: &Path) {
    let name = "d".repeat(100);
    let mut dir = Dir::open(top).expect("a directory");
    for _ in 0..100 {
        dir.make_dir(OsStr::new(&name)).expect("a directory");
        dir = dir.open_dir(OsStr::new(&name)).expect("a directory");
    }
    let file = dir.make_file(OsStr::new("bottom")).expect("a file");
    file.write_all_at(b"deep", 0).expect("data");
}

/// Changes it in every way; returns how many bytes of contents are new.
pub fn change(root: &Path) -> u64 {
    let path = |name: &str| -> PathBuf { root.join(name) };
    let mut random = Random::new(2);
    let mut new_bytes = 0;
    let doc = |package: usize, file: usize| {
        path(&format!("usr/share/doc/package-{package}/file-{file}.gz"))
    };
    // One byte in a large file: one chunk.
    let open = |name: &str| {
        File::options()
            .write(true)
            .open(path(name))
            .expect("a file")
    };
    open("var/cache/random")
        .write_all_at(b"!", 1 << 20)
        .expect("data");
    new_bytes += 256 << 10;
    open("var/holes")
        .write_all_at(&random.bytes(4096), 500 << 20)
        .expect("data");
    new_bytes += 4096;
    let punch = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
        | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let holes = open("var/holes");
    nix::fcntl::fallocate(
        std::os::fd::AsRawFd::as_raw_fd(&holes),
        punch,
        1 << 20,
        512 << 10,
    )
    .expect("a hole");
    open("var/hole-last").set_len(5000).expect("a size");
    // The chunk in which the file ends now.
    new_bytes += 4096;
    open("var/only-hole").set_len(6 << 40).expect("a size");
    // Only attributes.
    set_mode(&path("bin/su"), 0o755);
    chown(path("bin/ping"), Some(0), Some(0)).expect("an owner");
    set_attribute(&path("home/user/listed"), "user.comment", b"other");
    set_time(&doc(3, 3), 1, 2);
    set_time(&path("etc/empty"), 3, 4);
    set_attribute(&path("var/lib"), "system.posix_acl_access", &acl(5));
    // The contents of a file that loses its first name below are sent under the second.
    for package in [5, 7, 8] {
        let list = path(&format!("var/lib/dpkg/info/package-{package}.list"));
        new_bytes += fs::metadata(list).expect("a file").len();
    }
    // Gone.
    fs::remove_file(doc(4, 4)).expect("removed");
    fs::remove_dir_all(path("usr/share/doc/package-5")).expect("removed");
    fs::remove_file(path("dev/large")).expect("removed");
    // Another kind.
    fs::remove_file(doc(6, 6)).expect("removed");
    fs::create_dir(doc(6, 6)).expect("a directory");
    fs::write(doc(6, 6).join("inside"), b"12345").expect("a file");
    fs::remove_dir_all(path("usr/share/doc/package-7")).expect("removed");
    symlink("package-8", path("usr/share/doc/package-7")).expect("a link");
    new_bytes += 5;
    fs::remove_file(path("etc/up")).expect("removed");
    symlink("../..", path("etc/up")).expect("a link");
    // Links that part, and new ones.
    fs::remove_file(doc(8, 0)).expect("removed");
    fs::write(doc(8, 0), b"parted").expect("a file");
    new_bytes += 6;
    fs::write(doc(9, 0), b"changed through one name").expect("a file");
    new_bytes += 24;
    fs::hard_link(doc(1, 1), path("zzz-new-link")).expect("a link");
    fs::hard_link(doc(1, 2), path("aaa-new-link")).expect("a link");
    // The first name is new: its contents are sent once more.
    new_bytes += fs::metadata(doc(1, 2)).expect("a file").len();
    fs::rename(path("home/user/listed"), path("home/user/renamed")).expect("renamed");
    new_bytes += 1;
    new_bytes
}
