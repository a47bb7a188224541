//! ssh helper, the destination's end of a connection through ssh: it sends the contents of the
//! receiver's file, then carries bytes.
//!
//! A user who may start this as root may read the receiver's file anyway, so sending its contents
//! reveals nothing.

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::path::Path;

use super::ssh::GREETING;
use crate::migrate::limits::CONNECT_LIMIT_DUR;
use crate::migrate::record::doorbell;
use crate::migrate::record::paths;
use crate::migrate::wire::protocol::ANY;
use crate::sys::file::Failed;

/// The ssh helper cannot reach a receiver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SshHelperError {
    /// No receiver has written its address.
    #[error(
        "no receiver for container \"{container}\" is waiting on this host: start `rcm live-migrate {container} --image-path=DIR` here"
    )]
    NoReceiver {
        /// Name of the container.
        container: String,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] Failed),
    /// The receiver does not answer.
    #[error("the receiver for container \"{container}\" does not answer at {address}")]
    Connect {
        /// Name of the container.
        container: String,
        /// Address on which it listens.
        address: SocketAddr,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The standard output is closed.
    #[error("cannot write to the standard output")]
    Output {
        /// Cause.
        #[source]
        source: io::Error,
    },
}

type Result<T, E = SshHelperError> = std::result::Result<T, E>;

/// Carries bytes between the standard streams and the receiver for `container`, until either end
/// closes.
///
/// # Errors
/// [`SshHelperError`], before the first byte was carried.
pub fn run(root: &Path, container: &str) -> Result<()> {
    let no_receiver = || SshHelperError::NoReceiver {
        container: container.to_owned(),
    };
    let path = [container, ANY]
        .map(|name| paths::doorbell_path(root, name))
        .into_iter()
        .find(|path| path.exists())
        .ok_or_else(no_receiver)?;
    let place = match doorbell::read(&path) {
        Ok(place) => place.ok_or_else(no_receiver)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(no_receiver()),
        Err(error) => return Err(Failed::to("read", &path)(error).into()),
    };
    let address = near(place.address);
    let socket = TcpStream::connect_timeout(&address, CONNECT_LIMIT_DUR).map_err(|source| {
        SshHelperError::Connect {
            container: container.to_owned(),
            address,
            source,
        }
    })?;
    // The delay of small messages adds to the downtime.
    let _ = socket.set_nodelay(true);
    let left =
        fs::read_to_string(&place.rendezvous).map_err(Failed::to("read", &place.rendezvous))?;
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(format!("{GREETING}{left}").as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|source| SshHelperError::Output { source })?;
    carry(&socket, stdout);
    Ok(())
}

/// Returns an address at which this host can reach a receiver that listens on `address`.
fn near(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn carry(socket: &TcpStream, mut stdout: impl Write) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut socket = socket;
            let _ = io::copy(&mut io::stdin().lock(), &mut socket);
            let _ = socket.shutdown(Shutdown::Write);
        });
        let mut buffer = vec![0; 256 << 10];
        let mut reader = socket;
        // Each piece is sent at once: the last bytes of a message must not wait in a buffer.
        while let Ok(read_bytes @ 1..) = io::Read::read(&mut reader, &mut buffer) {
            let written = stdout
                .write_all(&buffer[..read_bytes])
                .and_then(|()| stdout.flush());
            if written.is_err() {
                break;
            }
        }
        // The receiver has closed the connection. A peer that still writes gets an error. The
        // thread that reads the standard input may wait for ever, so the process ends here.
        let _ = socket.shutdown(Shutdown::Both);
        std::process::exit(0)
    });
}
