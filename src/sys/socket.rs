//! Passes descriptors over Unix sockets.
#![allow(unsafe_code)]

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    recvmsg, sendmsg, socketpair,
};

/// Makes a connected pair of close-on-exec stream sockets.
///
/// # Errors
/// As socketpair(2).
pub fn pair() -> nix::Result<(OwnedFd, OwnedFd)> {
    socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
}

/// Connects to the Unix stream socket at `path`.
///
/// A path longer than an address holds (108 bytes, unix(7)) is reached through `/proc/self/fd`.
///
/// # Errors
/// As open(2) and connect(2).
pub fn connect(path: &Path) -> std::io::Result<UnixStream> {
    match UnixStream::connect(path) {
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
            let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(error);
            };
            let dir = std::fs::File::open(dir)?;
            UnixStream::connect(
                Path::new("/proc/self/fd")
                    .join(dir.as_raw_fd().to_string())
                    .join(name),
            )
        }
        connected => connected,
    }
}

/// Sends `data`, at least one byte, with a descriptor.
///
/// # Errors
/// As sendmsg(2).
pub fn send_fd(socket: BorrowedFd, data: &[u8], fd: impl AsRawFd) -> nix::Result<()> {
    let fds = [fd.as_raw_fd()];
    sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &[IoSlice::new(data)],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .map(drop)
}

/// Receives a message of up to `capacity` bytes and the descriptor that came with it, if one did.
///
/// # Errors
/// As recvmsg(2).
pub fn recv_fd(socket: BorrowedFd, capacity: usize) -> nix::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut data = vec![0; capacity];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut iov = [IoSliceMut::new(&mut data)];
    let message = recvmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &mut iov,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let received_bytes = message.bytes;
    let mut received = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel has just installed this descriptor for us; nobody else owns
                // it. A descriptor that a later one replaces is closed here.
                received = Some(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    data.truncate(received_bytes);
    Ok((data, received))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    #[test]
    fn a_descriptor_crosses() {
        let (a, b) = pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send_fd(a.as_fd(), b"pipe", writer.as_fd()).unwrap();
        drop(writer);
        let (data, fd) = recv_fd(b.as_fd(), 16).unwrap();
        assert_eq!(data, b"pipe");
        std::fs::File::from(fd.unwrap()).write_all(b"x").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn a_long_path_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let handle = std::fs::File::open(&deep).unwrap();
        let short = format!("/proc/self/fd/{}/s", handle.as_raw_fd());
        let _listener = std::os::unix::net::UnixListener::bind(short).unwrap();
        connect(&deep.join("s")).unwrap();
    }
}
