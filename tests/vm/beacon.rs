//! A container that reports the host that it runs on, for the scenarios.
//!
//!     beacon LOG_ADDRESS:PORT LISTEN_PORT
//!
//! Every 20 ms it writes the next number, with the name of the host in front: as a symbolic link in
//! `/lab/log`, which is the host's own, and as a datagram to LOG_ADDRESS. The host's name is the
//! target of the link `/lab/host`, which is the host's own, too. It uses links because no file of
//! the host may be open when the container is frozen: the other host has another one. Data that
//! arrive on a connection to LISTEN_PORT are sent back.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::symlink;
use std::thread::{sleep, spawn};
use std::time::Duration;

const TICK: Duration = Duration::from_millis(20);

fn echo(mut stream: TcpStream) {
    let mut bytes = [0; 1 << 14];
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [log, port] = &arguments[..] else {
        panic!("usage: beacon LOG_ADDRESS:PORT LISTEN_PORT");
    };
    let listener = TcpListener::bind(format!("0.0.0.0:{port}")).expect("a port");
    spawn(move || {
        for stream in listener.incoming().flatten() {
            spawn(move || echo(stream));
        }
    });
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    for number in 1_u64.. {
        let host = fs::read_link("/lab/host").expect("the host's name");
        let line = format!("{} {number}\n", host.display());
        symlink(line.trim(), format!("/lab/log/{number}")).expect("a number that is new here");
        // There may be no listener.
        let _ = socket.send_to(line.as_bytes(), log);
        sleep(TICK);
    }
}
