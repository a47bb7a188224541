//! A network that cuts a connection exactly where a test wants it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};

use crate::migrate::codec::HEADER_BYTES;
use crate::migrate::protocol::Kind;

/// What the network does to a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    None,
    /// The connection ends instead of this message arriving.
    Before(Kind),
    /// The connection ends after it has arrived.
    After(Kind),
}

/// Forwards connections to `target` and cuts the first one as asked; those after it live.
pub(super) fn network(target: SocketAddr, cut: Cut) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut cut = cut;
        for near in listener.incoming() {
            let (Ok(near), Ok(far)) = (near, TcpStream::connect(target)) else {
                return;
            };
            for (from, to) in [(&near, &far), (&far, &near)] {
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                std::thread::spawn(move || forward(from, to, cut));
            }
            cut = Cut::None;
        }
    });
    address
}

fn forward(mut from: TcpStream, mut to: TcpStream, cut: Cut) {
    let mut copy = || -> std::io::Result<()> {
        let mut opening = [0; 11];
        from.read_exact(&mut opening)?;
        to.write_all(&opening)?;
        loop {
            let mut header = [0; HEADER_BYTES];
            from.read_exact(&mut header)?;
            let kind = Kind::from_number(u16::from_be_bytes([header[0], header[1]]));
            let length_bytes = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            let mut payload = vec![0; length_bytes as usize];
            from.read_exact(&mut payload)?;
            if kind.is_some_and(|kind| cut == Cut::Before(kind)) {
                return Ok(());
            }
            to.write_all(&header)?;
            to.write_all(&payload)?;
            if kind.is_some_and(|kind| cut == Cut::After(kind)) {
                return Ok(());
            }
        }
    };
    let _ = copy();
    // Both directions: a cut link carries nothing either way.
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
