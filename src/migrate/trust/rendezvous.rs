//! How the two ends recognize each other through a shared image store.
//!
//! A receiver restores process images as root, so it must not listen to strangers. It leaves a fresh secret and the fingerprint of its
//! certificate in the image store, in a file that only root reads; a source that can read it belongs to the same pool. In a TLS 1.3 session,
//! each end with a certificate, both prove to the other that they know the secret, before anything else is said, and neither says it:
//!
//! ```text
//!  source                                                     destination
//!    |                                                             |  leaves (receiver, secret, fingerprint) in the store
//!    | <============= TLS 1.3, a certificate on each side =======> |
//!    | <------------- opening, opening --------------------------> |
//!    | <------------- challenge: receiver ------------------------ |
//!  reads the file of that receiver;                                |
//!  the session's certificate must be the one in it                 |
//!    | -------------- proof: HMAC(key, "source", session) -------> |  or the door
//!    | <------------- welcome: HMAC(key, "destination", session) - |
//!
//!  session = receiver, exported keying material, fingerprint of the source's certificate, of the destination's
//!  key     = the secret; with --token-file HMAC(secret, token)
//! ```
//!
//! The keying material (RFC 8446, 7.5) is known to the two ends of one session alone. So a proof is worth nothing on another connection: not later, and
//! not relayed by somebody who holds one session with each end. The fingerprints pin the certificates both ways. The roles are in it, so that a
//! proof cannot be sent back. After the proofs every byte is protected by the session they are bound to.
//!
//! It is also how the ends find out that the path is shared, with nothing to configure: a source that does not find the file
//! looks at another directory. Then only the flags can make trust, see [`Trust::key_without_store`], and the source takes the certificate that it sees:
//! a proof made with the token binds it. `docs/security.md` says against whom all this stands.

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

/// The pool cannot be used to recognize the other end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RendezvousError {
    /// The store does not have the receiver's file.
    #[error(
        "the receiver's file {path} is not in this image store: the destination uses another directory (give both ends the same shared --image-path, or the same --token-file, or --tls-ca, --tls-cert and --tls-key: then the images cross the network)"
    )]
    NotShared {
        /// Where it was expected.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] Failed),
    /// Somebody else could have written or read the file.
    #[error(
        "{path} is not a private file of this user (owner {owner}, mode {mode:04o}): it proves nothing"
    )]
    NotPrivate {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// The file does not hold a secret.
    #[error("{path} does not hold a rendezvous secret")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The other end does not know the secret.
    #[error(
        "the peer does not prove that it knows the secret in the image store (with --token-file: nor the same token)"
    )]
    WrongProof,
    /// The other end is not who left the file.
    #[error(
        "the peer's certificate is not the one that the receiver has announced in the image store: somebody else answers at this address"
    )]
    WrongCertificate,
    /// The kernel gives no random bytes.
    #[error("cannot get random bytes")]
    Random {
        /// Why.
        #[source]
        source: getrandom::Error,
    },
}

type Result<T, E = RendezvousError> = std::result::Result<T, E>;

/// Random bytes.
///
/// # Errors
/// [`RendezvousError::Random`].
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|source| RendezvousError::Random { source })?;
    Ok(bytes)
}

/// What identifies a TLS session: no two sessions have the same, and only its two ends know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// Exported keying material.
    pub exported: Bytes32,
    /// The fingerprint of the source's certificate.
    pub source: Bytes32,
    /// The fingerprint of the destination's certificate.
    pub destination: Bytes32,
}

/// What both ends remember of each other once they have proved themselves. The journal keeps it for a source that asks again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Acquaintance {
    /// Which receiver it is.
    pub receiver: MigrationId,
    /// The key of the proofs: the secret of its rendezvous file, with the token if there is one.
    pub secret: Bytes32,
    /// The fingerprint of its certificate.
    pub fingerprint: Bytes32,
    /// Whether the secret of the receiver's file is in it. Without, the trust is that of the flags alone.
    #[serde(default = "yes")]
    pub knows_secret: bool,
}

const fn yes() -> bool {
    true
}

impl Acquaintance {
    /// Compares the destination's certificate in a session with the one that it has announced in the store.
    ///
    /// # Errors
    /// [`RendezvousError::WrongCertificate`].
    pub fn recognize(&self, binding: &Binding) -> Result<()> {
        match binding.destination == self.fingerprint {
            true => Ok(()),
            false => Err(RendezvousError::WrongCertificate),
        }
    }

    /// What `side` sends in the session `binding` to prove that it knows the key.
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
        // Fixed lengths: no two sessions have the same bytes.
        mac.update(self.receiver.bits());
        mac.update(&binding.exported.0);
        mac.update(&binding.source.0);
        mac.update(&binding.destination.0);
        mac
    }
}

/// What a receiver's file holds: two lines of hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Fresh for each receiver.
    pub secret: Bytes32,
    /// Of the receiver's certificate.
    pub fingerprint: Bytes32,
}

impl Left {
    /// What the ends recognize each other by, as `trust` asks.
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

/// A receiver's secret in the image store; removed when dropped.
#[derive(Debug)]
pub struct Rendezvous {
    path: PathBuf,
    /// What says, in case this process is killed, that the file must go.
    note: Option<PathBuf>,
    acquaintance: Acquaintance,
}

impl Rendezvous {
    /// Leaves a fresh secret for container `container` and the fingerprint of this end's certificate in the store.
    ///
    /// # Errors
    /// [`RendezvousError::File`], [`RendezvousError::Random`].
    pub fn leave(store: &Path, container: &str, trust: &Trust) -> Result<Self> {
        let receiver = MigrationId::new(random()?);
        let secret = Bytes32(random()?);
        let path = path_of(store, container, &receiver);
        let left = Left {
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

    /// Leaves the file of a receiver that has died for one that takes its place.
    ///
    /// # Errors
    /// [`RendezvousError::File`].
    pub fn leave_again(store: &Path, container: &str, acquaintance: Acquaintance) -> Result<Self> {
        let path = path_of(store, container, &acquaintance.receiver);
        // Whoever asks knows the secret; with a token it is not what was in the file.
        let left = Left {
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

    /// `note` names the file, and goes after it.
    pub fn go_with(&mut self, note: PathBuf) {
        self.note = Some(note);
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the ends recognize each other by.
    #[must_use]
    pub fn acquaintance(&self) -> Acquaintance {
        self.acquaintance
    }
}

impl Drop for Rendezvous {
    fn drop(&mut self) {
        // A file that stays proves nothing any more: the secret in it dies with this receiver.
        let _ = fs::remove_file(&self.path);
        if let Some(note) = &self.note {
            let _ = fs::remove_file(note);
        }
    }
}

/// Reads what the receiver says it has left.
///
/// `owner` is the user that owns what this process itself writes in the store: the same as its own, unless a network file system maps it.
///
/// # Errors
/// [`RendezvousError::NotShared`] where the file is not there, [`RendezvousError::NotPrivate`] where others could have read or planted it.
pub fn find(store: &Path, container: &str, receiver: &MigrationId, owner: u32) -> Result<Left> {
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
    match (read, Left::decode(&text)) {
        (Ok(_), Some(left)) => Ok(left),
        _ => Err(RendezvousError::Damaged { path }),
    }
}

/// Removes the file of a receiver that has died. It proves nothing any more.
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
