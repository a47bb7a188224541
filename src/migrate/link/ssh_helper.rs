//! The destination's end of a connection through ssh: tells what the receiver has left, then carries bytes.
//!
//! Who may start this as root may read the receiver's file anyway, so saying what is in it gives nothing away.

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use super::ssh::GREETING;
use crate::migrate::record::doorbell;
use crate::migrate::record::paths;
use crate::migrate::wire::protocol::ANY;
use crate::sys::file::Failed;

/// How long the receiver's port may take.
const CONNECT_LIMIT_DUR: Duration = Duration::from_secs(5);

/// A relay has nobody to relay to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// No receiver has left where it is.
    #[error(
        "no receiver for container \"{container}\" is waiting on this host: start `rcm live-migrate {container} --image-path=DIR` here"
    )]
    NoReceiver {
        /// Which container.
        container: String,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] Failed),
    /// The receiver does not answer.
    #[error("the receiver for container \"{container}\" does not answer at {address}")]
    Connect {
        /// Which container.
        container: String,
        /// Where it listens.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The standard output is closed.
    #[error("cannot write to the standard output")]
    Output {
        /// Why.
        #[source]
        source: io::Error,
    },
}

type Result<T, E = RelayError> = std::result::Result<T, E>;

/// Relays between the standard streams and the receiver for `container`, until either end is done.
///
/// # Errors
/// [`RelayError`], before anything was relayed.
pub fn run(root: &Path, container: &str) -> Result<()> {
    let no_receiver = || RelayError::NoReceiver {
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
        RelayError::Connect {
            container: container.to_owned(),
            address,
            source,
        }
    })?;
    // Small messages decide about the downtime.
    let _ = socket.set_nodelay(true);
    let left =
        fs::read_to_string(&place.rendezvous).map_err(Failed::to("read", &place.rendezvous))?;
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(format!("{GREETING}{left}").as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|source| RelayError::Output { source })?;
    carry(&socket, stdout);
    Ok(())
}

/// An address on which a receiver that listens at `address` hears this host.
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
        // Each piece at once: the last bytes of a message must not wait in a buffer.
        while let Ok(read_bytes @ 1..) = io::Read::read(&mut reader, &mut buffer) {
            let written = stdout
                .write_all(&buffer[..read_bytes])
                .and_then(|()| stdout.flush());
            if written.is_err() {
                break;
            }
        }
        // The receiver has said all it had to. Whoever still writes to it finds that out; the thread that waits for the standard input
        // does not, so the process ends here.
        let _ = socket.shutdown(Shutdown::Both);
        std::process::exit(0)
    });
}
