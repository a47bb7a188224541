//! The tmpfs mounts of a container move with it, with all files in them.

use std::path::Path;

use serde_json::json;

use crate::common::pair::{COUNTER, Pair, Receiver, send};
use crate::common::{Host, wait_until};

/// All kinds of files in `/cache`; in `/dev/shm` one that is deleted and open, and a mapped one in
/// which it counts.
const KEEPER: &str = "
import mmap, os, stat, struct, time
os.umask(0)
os.makedirs('/cache/deep/er')
with open('/cache/file', 'w') as file:
    file.write('text')
os.link('/cache/file', '/cache/deep/other-name')
os.chown('/cache/file', 3, 4)
os.chmod('/cache/file', 0o4751)
os.chmod('/cache', 0o2751)
os.symlink('nowhere', '/cache/link')
os.mkfifo('/cache/fifo', 0o640)
os.mknod('/cache/null', stat.S_IFCHR | 0o660, os.makedev(1, 3))
with open('/cache/holes', 'wb') as file:
    file.truncate(1 << 30)
    file.seek(1 << 20)
    file.write(b'in between')
os.utime('/cache/deep/er', ns=(1, 1234567890123456789))
gone = open('/dev/shm/gone', 'w+')
gone.write('still here')
gone.flush()
os.unlink('/dev/shm/gone')
mapped = open('/dev/shm/mapped', 'w+b')
mapped.truncate(4096)
memory = mmap.mmap(mapped.fileno(), 4096)
number = 0
while True:
    number += 1
    memory[:8] = struct.pack('<q', number)
    time.sleep(0.005)
";

/// The mounts without their numbers, and the files. In `/dev` CRIU makes and removes names for
/// files without one.
const LIST: &str = "
sed -n 's/^[0-9]* [0-9]* [0-9:]* \\(.* - tmpfs .*\\)/\\1/p' /proc/self/mountinfo | grep -v ' /proc/acpi' | sort
find /cache -xdev -printf '%p %y %M %U %G %s %b %n %T@ %l\\n' | sort
find /dev -xdev -printf '%p %y %M %U %G %l\\n' | sort
cat /cache/file /proc/$(pgrep -f keeper.py)/fd/3";

fn list(host: &Host, id: &str) -> String {
    host.exec_sh(id, LIST).stdout()
}

fn counted(host: &Host, id: &str) -> u64 {
    let script =
        "import struct; print(struct.unpack('<q', open('/dev/shm/mapped', 'rb').read(8))[0])";
    let output = host.exec(id, ["python3", "-c", script]);
    output.stdout().trim().parse().unwrap()
}

#[test]
fn what_is_in_a_tmpfs_goes_along() {
    let pair = Pair::with("tmpfs", |bundle, _| {
        std::fs::write(bundle.rootfs().join("keeper.py"), KEEPER).unwrap();
        let options = ["nosuid", "noexec", "size=2m", "nr_inodes=100", "mode=700"];
        bundle
            .host_programs()
            .mount("tmpfs", Path::new("cache-of-it"), "/cache", &options)
            .set("/linux/maskedPaths", json!(["/proc/keys", "/proc/acpi"]))
            .mount("cgroup", Path::new("cgroup"), "/sys/fs/cgroup", &["ro"])
            .script(&format!(
                "/usr/bin/python3 /keeper.py </dev/null >/log 2>&1 & {COUNTER}"
            ))
    });
    let (source, destination) = (&pair.source, &pair.destination);
    wait_until("it keeps", || {
        let ready = ["test", "-s", "/dev/shm/mapped"];
        source.cmd("exec").arg("tmpfs").args(ready).run().code() == 0
    });
    let before = list(source, "tmpfs");
    let count = counted(source, "tmpfs");
    let move_to = |from: &Host, to: &Host| {
        let receiver = Receiver::start(to, "tmpfs", &pair.store(), &["--detach"]);
        let sender = send(from, "tmpfs", &pair.store(), receiver.address, &[]);
        sender.wait().ok();
        receiver.running.wait().ok();
    };
    // A container that was restored once moves again, too.
    for (from, to) in [(source, destination), (destination, source)] {
        move_to(from, to);
        assert_eq!(list(to, "tmpfs"), before);
        // The mapping still shares the memory of the file.
        let then = counted(to, "tmpfs");
        assert!(then >= count);
        wait_until("it counts in the file", || counted(to, "tmpfs") > then);
        // CRIU has packed none.
        let log = from.root().join("@migrations/tmpfs.criu/dump.log");
        let log = String::from_utf8_lossy(&std::fs::read(log).unwrap()).into_owned();
        assert!(!log.contains("tar"), "{log}");
    }
    pair.assert_counts();
}
