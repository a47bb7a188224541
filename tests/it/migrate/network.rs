//! A network that cuts the connection at an exact point.
//!
//! It sees TLS records and cannot read them. But each end sends the same messages in the same
//! order, and each message begins a record.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rcm::migrate::wire::protocol::Kind;

/// The header of a TLS record: type, version, length (RFC 8446, 5.1).
const HEADER_BYTES: usize = 5;
/// The type of protected records.
const PROTECTED: u8 = 23;
/// A full record: 2^14 bytes, their type and the tag. The message continues in the next record.
const FULL_BYTES: usize = (1 << 14) + 17;
/// Messages of the source after its part of the handshake and its opening, without pre-copy
/// ([`WITHOUT_ROUNDS`]).
const BY_SOURCE: [Kind; 5] = [
    Kind::Proof,
    Kind::Preamble,
    Kind::Shipped,
    Kind::Commit,
    Kind::Settled,
];
/// Messages of the destination after its part of the handshake, and its opening with the challenge.
const BY_DESTINATION: [Kind; 4] = [Kind::Welcome, Kind::Findings, Kind::Ready, Kind::Running];
/// Flags for the source. Rounds of pre-copy are messages too, and their number depends on the
/// kernel.
pub const WITHOUT_ROUNDS: [&str; 2] = ["--mode", "stop-and-copy"];
/// The protected records before those.
const INTRODUCTION: usize = 2;

/// Fault of the first connection. Later ones pass only if `open` is set.
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
            for (from, to, kinds) in [
                (&near, &far, &BY_SOURCE[..]),
                (&far, &near, &BY_DESTINATION[..]),
            ] {
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                std::thread::spawn(move || forward(from, to, kinds, cut));
            }
            cut = None;
        }
    });
    address
}

fn forward(mut from: TcpStream, mut to: TcpStream, kinds: &[Kind], cut: Option<Cut>) {
    let mut copy = || -> std::io::Result<()> {
        let mut messages = 0;
        loop {
            let mut record = vec![0; HEADER_BYTES];
            from.read_exact(&mut record)?;
            let length_bytes = usize::from(u16::from_be_bytes([record[3], record[4]]));
            record.resize(HEADER_BYTES + length_bytes, 0);
            from.read_exact(&mut record[HEADER_BYTES..])?;
            let ends = record[0] == PROTECTED && length_bytes < FULL_BYTES;
            let kind = usize::checked_sub(messages, INTRODUCTION).and_then(|at| kinds.get(at));
            messages += usize::from(ends);
            if kind.is_some_and(|&kind| cut == Some(Cut::Before(kind))) {
                return Ok(());
            }
            to.write_all(&record)?;
            if ends && kind.is_some_and(|&kind| cut == Some(Cut::After(kind))) {
                return Ok(());
            }
        }
    };
    let _ = copy();
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
