//! Releases of rcm that speak other versions of the protocol.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::spawn;

use rcm::migrate::link::tls::TlsStream;
use rcm::migrate::trust::Trust;
use rcm::migrate::wire::codec::encode_opening;
use rcm::migrate::wire::protocol::VERSIONS;

use crate::common::pair::{Pair, runs_on};

#[test]
fn without_a_common_version_both_are_named() {
    let pair = Pair::new("release");
    let later = VERSIONS[0] + 7;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let receiver = spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let mut session = TlsStream::server(Box::new(socket), &Trust::fresh().unwrap()).unwrap();
        session.handshake().unwrap();
        session.write_all(&encode_opening(&[later])).unwrap();
        session.flush().unwrap();
        // Until the source hangs up.
        let _ = session.read_to_end(&mut Vec::new());
    });
    let output = pair.send_to(address).wait();
    let why = format!("this side speaks {VERSIONS:?}, the peer [{later}]; use the same release");
    runs_on(output, &why);
    receiver.join().unwrap();
    pair.assert_at_source();
}
