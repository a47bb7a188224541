//! Network namespaces, each held by a mount on a file.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// A namespace with its loopback interface up.
pub struct Namespace {
    path: PathBuf,
}

impl Namespace {
    /// `path` is the file that will hold the namespace; it does not exist yet.
    pub fn new(path: PathBuf) -> Self {
        File::create(&path).unwrap();
        let made = Command::new("unshare")
            .arg(format!("--net={}", path.display()))
            .arg("true")
            .status();
        assert!(made.unwrap().success());
        let namespace = Self { path };
        namespace.ip("link set lo up");
        namespace
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `ip ARGUMENTS` and returns its output.
    pub fn ip(&self, arguments: &str) -> String {
        let output = Command::new("nsenter")
            .arg(format!("--net={}", self.path.display()))
            .arg("ip")
            .args(arguments.split(' '))
            .output()
            .unwrap();
        assert!(output.status.success(), "ip {arguments}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A virtual cable: `name` here, `other_name` in `other`, both up.
    pub fn connect(&self, name: &str, other: &Self, other_name: &str) {
        let file = File::open(&other.path).unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        self.ip(&format!(
            "link add {name} type veth peer name {other_name} netns {path}"
        ));
        self.ip(&format!("link set {name} up"));
        other.ip(&format!("link set {other_name} up"));
    }

    /// A thread of its own enters the namespace. Sockets that it opens stay in the namespace.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(File::open(&self.path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    /// Names of the tables of nf_tables. There are some while rcm, CRIU or CRIU's iptables locks
    /// the network.
    pub fn tables(&self) -> Vec<String> {
        /// `NFT_MSG_GETTABLE` of `NFNL_SUBSYS_NFTABLES`, and `NFTA_TABLE_NAME`.
        const GET_TABLES: u16 = 10 << 8 | 1;
        const NAME: u16 = 1;
        self.within(|| {
            let socket = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkNetFilter,
            )
            .unwrap();
            // A nlmsghdr that asks for a dump, and a nfgenmsg for all families.
            let mut request = Vec::from(20_u32.to_ne_bytes());
            request.extend(GET_TABLES.to_ne_bytes());
            request.extend(0x301_u16.to_ne_bytes());
            request.extend([0; 12]);
            send(socket.as_raw_fd(), &request, MsgFlags::empty()).unwrap();
            let mut names = Vec::new();
            let mut buffer = vec![0; 64 << 10];
            loop {
                let count = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
                let mut answer = &buffer[..count];
                while answer.len() >= 16 {
                    let length = u32::from_ne_bytes(answer[..4].try_into().unwrap()) as usize;
                    // NLMSG_DONE
                    if answer[4..6] == 3_u16.to_ne_bytes() {
                        return names;
                    }
                    // The name is the first attribute.
                    assert_eq!(answer[22..24], NAME.to_ne_bytes());
                    let size = u16::from_ne_bytes(answer[20..22].try_into().unwrap()) as usize;
                    names.push(String::from_utf8(answer[24..20 + size - 1].to_vec()).unwrap());
                    answer = &answer[length.next_multiple_of(4).min(answer.len())..];
                }
            }
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}
