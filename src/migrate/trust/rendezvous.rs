//! Mutual recognition of the two ends through a shared image store.
//!
//! A receiver restores process images as root, so it must not accept strangers. It writes a fresh
//! secret and the fingerprint of its certificate to the image store, in a file that only root can
//! read. A source that can read it belongs to the same pool. In a TLS 1.3 session with a
//! certificate on each side, each end proves to the other that it knows the secret, before anything
//! else is sent. Neither sends the secret itself:
//!
//! ```text
//!  source                                                     destination
//!    |                                                             | writes (receiver, secret, fingerprint)
//!    |                                                             | to the store
//!    | <============= TLS 1.3, a certificate on each side =======> |
//!    | <------------- opening, opening --------------------------> |
//!    | <------------- challenge: receiver ------------------------ |
//!  reads the file of that receiver;                                |
//!  the session's certificate must be the one in it                 |
//!    | -------------- proof: HMAC(key, "source", session) -------> |  or it closes the connection
//!    | <------------- welcome: HMAC(key, "destination", session) - |
//!
//!  session = receiver, exported keying material,
//!            fingerprint of the source's certificate, of the destination's
//!  key     = the secret; with --token-file HMAC(secret, token)
//! ```
//!
//! Only the two ends of one session know the keying material (RFC 8446, 7.5). So a proof is worth
//! nothing on another connection: not later, and not if somebody relays it who holds one session
//! with each end. The fingerprints pin the certificates both ways. The roles are included, so that
//! a proof cannot be sent back. After the proofs every byte is protected by the session to which
//! they are bound.
//!
//! In this way the ends also find out that they share the path, without configuration: a source
//! that does not find the file looks at another directory. Then only the flags can establish trust,
//! see [`Trust::key_without_store`], and the source accepts the certificate that it sees, because a
//! proof made with the token binds it. `docs/security.md` has the threat model.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::Trust;
use crate::migrate::wire::id::{Bytes32, MigrationId, Side, hex, unhex};
use crate::migrate::wire::protocol::ANY;
use crate::sys::file::Failed;
use crate::sys::file::write_atomic;

/// The ends cannot recognize each other through the pool.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RendezvousError {
    /// The store does not have the receiver's file.
    #[error(
        "the receiver's file {path} is not in this image store: the destination uses another directory (give both ends the same shared --image-path, or the same --token-file, or --tls-ca, --tls-cert and --tls-key: then the images cross the network)"
    )]
    NotShared {
        /// Expected path of the file.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] Failed),
    /// Another user could have written or read the file.
    #[error(
        "{path} is not a private file of this user (owner {owner}, mode {mode:04o}): it proves nothing"
    )]
    NotPrivate {
        /// Path of the file.
        path: PathBuf,
        /// User id of the owner.
        owner: u32,
        /// Permission bits of the file.
        mode: u32,
    },
    /// The file does not hold a secret.
    #[error("{path} does not hold a rendezvous secret")]
    Damaged {
        /// Path of the file.
        path: PathBuf,
    },
    /// The other end does not know the secret.
    #[error(
        "the peer has not proved that it knows the secret in the image store (with --token-file: and the same token)"
    )]
    WrongProof,
    /// The other end is not the receiver that wrote the file.
    #[error(
        "the peer's certificate is not the one that the receiver has announced in the image store: somebody else answers at this address"
    )]
    WrongCertificate,
    /// The kernel gives no random bytes.
    #[error("cannot get random bytes")]
    Random {
        /// Cause.
        #[source]
        source: getrandom::Error,
    },
}

type Result<T, E = RendezvousError> = std::result::Result<T, E>;

/// Returns random bytes of the kernel.
///
/// # Errors
/// [`RendezvousError::Random`].
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|source| RendezvousError::Random { source })?;
    Ok(bytes)
}

/// Identity of a TLS session: no two sessions have the same, and only its two ends know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// Exported keying material.
    pub exported: Bytes32,
    /// Fingerprint of the source's certificate.
    pub source: Bytes32,
    /// Fingerprint of the destination's certificate.
    pub destination: Bytes32,
}

/// Data by which both ends recognize each other again once they have proved themselves. The journal
/// keeps it for a source that asks again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Acquaintance {
    /// Id of the receiver.
    pub receiver: MigrationId,
    /// Key of the proofs: the secret of the receiver's rendezvous file, combined with the token if
    /// there is one.
    pub secret: Bytes32,
    /// Fingerprint of the receiver's certificate.
    pub fingerprint: Bytes32,
    /// Whether the key contains the secret of the receiver's file. If not, the trust comes from the
    /// flags alone.
    #[serde(default = "yes")]
    pub knows_secret: bool,
}

const fn yes() -> bool {
    true
}

impl Acquaintance {
    /// Compares the destination's certificate in a session with the one that it has announced in
    /// the store.
    ///
    /// # Errors
    /// [`RendezvousError::WrongCertificate`].
    pub fn recognize(&self, binding: &Binding) -> Result<()> {
        if binding.destination == self.fingerprint {
            Ok(())
        } else {
            Err(RendezvousError::WrongCertificate)
        }
    }

    /// Returns the proof that `side` sends in the session `binding`, which shows that it knows the
    /// key.
    #[must_use]
    pub fn proof(&self, side: Side, binding: &Binding) -> Bytes32 {
        Bytes32(self.mac(side, binding).finalize().into_bytes().into())
    }

    /// Checks the proof of `side`, in constant time.
    ///
    /// # Errors
    /// [`RendezvousError::WrongProof`].
    pub fn check(&self, side: Side, binding: &Binding, proof: &Bytes32) -> Result<()> {
        self.mac(side, binding)
            .verify_slice(&proof.0)
            .map_err(|_| RendezvousError::WrongProof)
    }

    fn mac(&self, side: Side, binding: &Binding) -> Hmac<Sha256> {
        #[expect(
            clippy::expect_used,
            reason = "HMAC takes keys of any length (RFC 2104)"
        )]
        let mut mac =
            <Hmac<Sha256> as Mac>::new_from_slice(&self.secret.0).expect("any key length");
        mac.update(match side {
            Side::Source => b"rcm migration: source\0",
            Side::Destination => b"rcm migration: destination\0",
        });
        // All parts have fixed lengths, so no two sessions give the same bytes.
        mac.update(self.receiver.bits());
        mac.update(&binding.exported.0);
        mac.update(&binding.source.0);
        mac.update(&binding.destination.0);
        mac
    }
}

/// Contents of a receiver's file: two lines of hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiverFile {
    /// Secret, fresh for each receiver.
    pub secret: Bytes32,
    /// Fingerprint of the receiver's certificate.
    pub fingerprint: Bytes32,
}

impl ReceiverFile {
    /// Returns the data by which the ends recognize each other, with the demands of `trust`.
    #[must_use]
    pub fn acquaintance(&self, receiver: MigrationId, trust: &Trust) -> Acquaintance {
        Acquaintance {
            receiver,
            secret: trust.key(self.secret),
            fingerprint: self.fingerprint,
            knows_secret: true,
        }
    }

    fn encode(&self) -> String {
        format!("{}\n{}\n", hex(&self.secret.0), hex(&self.fingerprint.0))
    }

    pub(crate) fn decode(text: &str) -> Option<Self> {
        let (secret, fingerprint) = text.strip_suffix('\n')?.split_once('\n')?;
        Some(Self {
            secret: Bytes32(unhex(secret).ok()?),
            fingerprint: Bytes32(unhex(fingerprint).ok()?),
        })
    }
}

/// A receiver's file in the image store; removed when dropped.
#[derive(Debug)]
pub struct Rendezvous {
    path: PathBuf,
    /// Path of the note by which the file is removed if this process is killed.
    note: Option<PathBuf>,
    acquaintance: Acquaintance,
}

impl Rendezvous {
    /// Writes a fresh secret for container `container` and the fingerprint of this end's
    /// certificate to the store.
    ///
    /// # Errors
    /// [`RendezvousError::File`], [`RendezvousError::Random`].
    pub fn create(store: &Path, container: &str, trust: &Trust) -> Result<Self> {
        let receiver = MigrationId::new(random()?);
        let secret = Bytes32(random()?);
        let path = path_of(store, container, &receiver);
        let left = ReceiverFile {
            secret,
            fingerprint: trust.fingerprint(),
        };
        write_atomic(&path, left.encode().as_bytes(), 0o600).map_err(Failed::to("write", &path))?;
        Ok(Self {
            path,
            note: None,
            acquaintance: left.acquaintance(receiver, trust),
        })
    }

    /// Writes the file of a receiver that has died again, for a receiver that takes its place.
    ///
    /// # Errors
    /// [`RendezvousError::File`].
    pub fn recreate(store: &Path, container: &str, acquaintance: Acquaintance) -> Result<Self> {
        let path = path_of(store, container, &acquaintance.receiver);
        // The key, not the first secret: a source that asks again knows the key. With a token they
        // differ.
        let left = ReceiverFile {
            secret: acquaintance.secret,
            fingerprint: acquaintance.fingerprint,
        };
        write_atomic(&path, left.encode().as_bytes(), 0o600).map_err(Failed::to("write", &path))?;
        Ok(Self {
            path,
            note: None,
            acquaintance,
        })
    }

    /// Also removes `note`, which names the file, after the file.
    pub fn remove_with(&mut self, note: PathBuf) {
        self.note = Some(note);
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the data by which the ends recognize each other.
    #[must_use]
    pub fn acquaintance(&self) -> Acquaintance {
        self.acquaintance
    }
}

impl Drop for Rendezvous {
    fn drop(&mut self) {
        // If the file stays, it proves nothing any more: its secret ends with this receiver.
        let _ = fs::remove_file(&self.path);
        if let Some(note) = &self.note {
            let _ = fs::remove_file(note);
        }
    }
}

/// Reads the file of `receiver`.
///
/// `owner` is the user id of files that this process itself writes to the store: its own user,
/// unless a network file system maps it.
///
/// # Errors
/// [`RendezvousError::NotShared`] if the file is missing, [`RendezvousError::NotPrivate`] if others
/// could have read or planted it.
pub fn read(
    store: &Path,
    container: &str,
    receiver: &MigrationId,
    owner: u32,
) -> Result<ReceiverFile> {
    let open = |path: &Path| {
        fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
    };
    let (mut path, of_any) = (
        path_of(store, container, receiver),
        path_of(store, ANY, receiver),
    );
    let mut opened = open(&path);
    if matches!(&opened, Err(error) if error.kind() == io::ErrorKind::NotFound) && of_any.exists() {
        opened = open(&of_any);
        path = of_any;
    }
    let mut opened = match opened {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(RendezvousError::NotShared { path });
        }
        Err(error) => return Err(Failed::to("read", &path)(error).into()),
    };
    let metadata = opened.metadata().map_err(Failed::to("read", &path))?;
    if !metadata.is_file() || metadata.uid() != owner || metadata.mode() & 0o077 != 0 {
        return Err(RendezvousError::NotPrivate {
            path,
            owner: metadata.uid(),
            mode: metadata.mode() & 0o7777,
        });
    }
    let mut text = String::new();
    let read = Read::by_ref(&mut opened)
        .take(256)
        .read_to_string(&mut text);
    match (read, ReceiverFile::decode(&text)) {
        (Ok(_), Some(left)) => Ok(left),
        _ => Err(RendezvousError::Damaged { path }),
    }
}

/// Removes the file of a receiver that has died, and whose secret proves nothing any more.
pub fn remove(store: &Path, container: &str, receiver: &MigrationId) {
    for name in [container, ANY] {
        let _ = fs::remove_file(path_of(store, name, receiver));
    }
}

fn path_of(store: &Path, container: &str, receiver: &MigrationId) -> PathBuf {
    store.join(format!("{container}.{receiver}.rendezvous"))
}

#[cfg(test)]
mod tests;
