//! A TLS 1.3 session as a [`Stream`].
//!
//! rustls does no input or output of its own, so a session on a nonblocking socket is nonblocking
//! too: every wait stays with [`super::channel::Patience`].

use std::io::{self, BufReader, ErrorKind, IoSlice, Read, Write};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustls::pki_types::{InvalidDnsNameError, ServerName};
use rustls::{ClientConnection, Connection, ServerConnection};

use super::channel::Stream;
use crate::migrate::trust::rendezvous::Binding;
use crate::migrate::trust::{Trust, fingerprint};
use crate::migrate::wire::id::Bytes32;

/// Label of the exported keying material to which the proofs are bound (RFC 8446, 7.5).
const EXPORTER_LABEL: &[u8] = b"EXPORTER-rcm-migration-proof";
/// Number of bytes that are read from the network at once. rustls by itself asks for 4 KiB each
/// time (`READ_SIZE` in its deframer).
const READ_BYTES: usize = 256 << 10;
/// Limit for the encrypted bytes that a session holds. With rustls' own limit, 64 KiB, a chunk of
/// an image takes five system calls.
const HELD_BYTES: usize = 512 << 10;

/// One end of a session.
#[derive(Debug)]
pub struct TlsStream {
    session: Connection,
    socket: BufReader<Box<dyn Stream>>,
    ours: Bytes32,
    /// Number of bytes that the peer may still send, as they come from the network; `None` for any
    /// number.
    left_bytes: Option<usize>,
    /// Whether the peer does not speak TLS, so that nothing is sent to it.
    mute: bool,
}

impl TlsStream {
    /// Makes the source's end of a session with `host`: a name or an address, as the operator gave
    /// it.
    ///
    /// # Errors
    /// `InvalidInput` for a name that no certificate can have.
    pub fn client(socket: Box<dyn Stream>, trust: &Trust, host: &str) -> io::Result<Self> {
        let name =
            server_name(host).map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))?;
        let session = ClientConnection::new(Arc::clone(&trust.client), name).map_err(failed)?;
        Ok(Self::over(session.into(), socket, trust))
    }

    /// Makes the destination's end of a session.
    ///
    /// # Errors
    /// `InvalidData` if the certificates cannot be used.
    pub fn server(socket: Box<dyn Stream>, trust: &Trust) -> io::Result<Self> {
        let session = ServerConnection::new(Arc::clone(&trust.server)).map_err(failed)?;
        Ok(Self::over(session.into(), socket, trust))
    }

    fn over(mut session: Connection, socket: Box<dyn Stream>, trust: &Trust) -> Self {
        session.set_buffer_limit(Some(HELD_BYTES));
        Self {
            session,
            socket: BufReader::with_capacity(READ_BYTES, socket),
            ours: trust.fingerprint(),
            left_bytes: None,
            mute: false,
        }
    }

    /// Continues the handshake as far as possible without waiting.
    ///
    /// # Errors
    /// `WouldBlock` if the peer must send or read first; `InvalidData` if it sent something wrong;
    /// those of the socket.
    pub fn handshake(&mut self) -> io::Result<()> {
        while self.session.is_handshaking() {
            self.send()?;
            if self.session.is_handshaking() && self.receive()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        self.send()
    }

    /// Whether bytes wait for space in the socket's buffer.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        self.session.wants_write()
    }

    /// Limits the bytes that the peer may send from now on, as they come from the network, the
    /// handshake's included; any number with `None`.
    pub fn limit(&mut self, limit_bytes: Option<usize>) {
        self.left_bytes = limit_bytes;
    }

    /// Returns the identity of this session, once the handshake is over.
    ///
    /// # Errors
    /// `InvalidData` before the end of the handshake.
    pub fn binding(&self) -> io::Result<Binding> {
        let peer = self.session.peer_certificates().and_then(<[_]>::first);
        let Some(peer) = peer else {
            return Err(failed(rustls::Error::NoCertificatesPresented));
        };
        let exported = self
            .session
            .export_keying_material([0; 32], EXPORTER_LABEL, None)
            .map_err(failed)?;
        let (ours, theirs) = (self.ours, fingerprint(peer));
        let (source, destination) = match self.session {
            Connection::Client(_) => (ours, theirs),
            Connection::Server(_) => (theirs, ours),
        };
        Ok(Binding {
            exported: Bytes32(exported),
            source,
            destination,
        })
    }

    /// Sends the bytes that the session has for the peer.
    fn send(&mut self) -> io::Result<()> {
        while !self.mute && self.session.wants_write() {
            if self.session.write_tls(self.socket.get_mut())? == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
        }
        self.socket.get_mut().flush()
    }

    /// Like [`Self::send`], but bytes that cannot be sent now are sent with the next operation.
    fn send_nonblocking(&mut self) -> io::Result<()> {
        match self.send() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            sent => sent,
        }
    }

    /// Reads from the network once. Returns 0 at its end.
    fn receive(&mut self) -> io::Result<usize> {
        let read_bytes = self.session.read_tls(&mut self.socket)?;
        if let Some(left_bytes) = &mut self.left_bytes {
            *left_bytes = left_bytes
                .checked_sub(read_bytes)
                .ok_or(ErrorKind::FileTooLarge)?;
        }
        if let Err(error) = self.session.process_new_packets() {
            self.mute |= matches!(error, rustls::Error::InvalidMessage(_));
            // The alert tells the peer its mistake. An error here does not matter, because the
            // connection ends anyway.
            let _ = self.send_nonblocking();
            return Err(failed(error));
        }
        Ok(read_bytes)
    }
}

fn server_name(host: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
    // A zone (`fe80::1%eth0`) has a meaning on this host only. No certificate has one.
    let address = host.split('%').next().unwrap_or(host);
    match address.parse::<IpAddr>() {
        Ok(address) => Ok(ServerName::IpAddress(address.into())),
        Err(_) => ServerName::try_from(host.to_owned()),
    }
}

fn failed(error: rustls::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

impl Read for TlsStream {
    /// The end of the connection is the end of the stream, even if the peer has not announced it.
    /// An attacker who can cut the connection can also cut the announcement, and frames show
    /// whether they are complete.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            self.send_nonblocking()?;
            self.receive()?;
        }
    }
}

impl Write for TlsStream {
    /// Accepts no new bytes while others wait, so that the buffer stays bounded.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send()?;
        let written_bytes = self.session.writer().write(bytes)?;
        self.send_nonblocking()?;
        Ok(written_bytes)
    }

    /// Like [`Self::write`].
    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send()?;
        let written_bytes = self.session.writer().write_vectored(parts)?;
        self.send_nonblocking()?;
        Ok(written_bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

impl Stream for TlsStream {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().fd()
    }
}

impl Drop for TlsStream {
    fn drop(&mut self) {
        // Without a complete handshake there is nothing to close.
        if !self.session.is_handshaking() {
            self.session.send_close_notify();
            // If this cannot be sent, the end of the connection has the same meaning.
            let _ = self.send_nonblocking();
        }
    }
}

#[cfg(test)]
mod tests;
