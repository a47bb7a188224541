//! A network that cuts a connection at a given message.
//!
//! It sees TLS records but not their contents. But each end sends the same messages in the same
//! order, and a message begins a record.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};

use crate::migrate::wire::protocol::Kind;

/// Length of the header of a TLS record: type, version, length (RFC 8446, 5.1).
const HEADER_BYTES: usize = 5;
/// Type of protected records.
const PROTECTED: u8 = 23;
/// Length of a full record: 2^14 bytes, their type and the tag. A longer message continues in the
/// next record.
const FULL_BYTES: usize = (1 << 14) + 17;
/// Messages of the source after its part of the handshake and its opening, in a migration with this
/// number of rounds.
fn by_source(rounds: usize) -> Vec<Kind> {
    let mut kinds = vec![Kind::Proof, Kind::Preamble];
    kinds.resize(kinds.len() + rounds, Kind::Round);
    kinds.extend([Kind::Shipped, Kind::Commit, Kind::Settled]);
    kinds
}

/// Messages of the destination after its part of the handshake and its opening with the challenge.
fn by_destination(rounds: usize) -> Vec<Kind> {
    let mut kinds = vec![Kind::Welcome, Kind::Findings];
    kinds.resize(kinds.len() + rounds, Kind::RoundVerified);
    kinds.extend([Kind::Ready, Kind::Running]);
    kinds
}

/// Number of the protected records before these messages.
const INTRODUCTION: usize = 2;

/// Fault of the network in a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    None,
    /// The connection ends instead of this message arriving.
    Before(Kind),
    /// The connection ends after this message has arrived.
    After(Kind),
}

/// Forwards connections to `target` and cuts the first one as asked. Later ones are not cut.
pub(super) fn network(target: SocketAddr, cut: Cut, rounds: usize) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut cut = cut;
        for near in listener.incoming() {
            let (Ok(near), Ok(far)) = (near, TcpStream::connect(target)) else {
                return;
            };
            for (from, to, kinds) in [
                (&near, &far, by_source(rounds)),
                (&far, &near, by_destination(rounds)),
            ] {
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                std::thread::spawn(move || forward(from, to, &kinds, cut));
            }
            cut = Cut::None;
        }
    });
    address
}

fn forward(mut from: TcpStream, mut to: TcpStream, kinds: &[Kind], cut: Cut) {
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
            if kind.is_some_and(|&kind| cut == Cut::Before(kind)) {
                return Ok(());
            }
            to.write_all(&record)?;
            if ends && kind.is_some_and(|&kind| cut == Cut::After(kind)) {
                return Ok(());
            }
        }
    };
    let _ = copy();
    // Both directions are cut, as on a broken link.
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
