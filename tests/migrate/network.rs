//! A network that cuts the connection exactly where a test wants it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rcm::migrate::codec::HEADER_BYTES;
use rcm::migrate::protocol::Kind;

/// What the network does to the first connection. Later ones pass unless `open` says no.
#[derive(Clone, Copy, PartialEq)]
pub enum Cut {
    Before(Kind),
    After(Kind),
}

pub fn network(target: SocketAddr, cut: Cut, open: &Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let open = Arc::clone(open);
    std::thread::spawn(move || {
        let mut cut = Some(cut);
        for near in listener.incoming() {
            let Ok(near) = near else { return };
            if cut.is_none() && !open.load(Ordering::Relaxed) {
                continue;
            }
            let Ok(far) = TcpStream::connect(target) else {
                continue;
            };
            for (from, to) in [(&near, &far), (&far, &near)] {
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                std::thread::spawn(move || forward(from, to, cut));
            }
            cut = None;
        }
    });
    address
}

fn forward(mut from: TcpStream, mut to: TcpStream, cut: Option<Cut>) {
    let mut copy = || -> std::io::Result<()> {
        let mut opening = [0; 11];
        from.read_exact(&mut opening)?;
        to.write_all(&opening)?;
        loop {
            let mut header = [0; HEADER_BYTES];
            from.read_exact(&mut header)?;
            let kind = Kind::from_number(u16::from_be_bytes([header[0], header[1]])).unwrap();
            let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            let mut payload = vec![0; length as usize];
            from.read_exact(&mut payload)?;
            if cut == Some(Cut::Before(kind)) {
                return Ok(());
            }
            to.write_all(&header)?;
            to.write_all(&payload)?;
            if cut == Some(Cut::After(kind)) {
                return Ok(());
            }
        }
    };
    let _ = copy();
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
