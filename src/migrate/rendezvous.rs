//! How the two ends recognize each other through a shared image store.
//!
//! A receiver restores process images as root, so it must not listen to strangers. It leaves a fresh secret in the image store, in a file
//! that only root reads; a source that can read it belongs to the same pool. Both prove to the other that they know it, before
//! anything else is said, and neither says it:
//!
//! ```text
//! destination -> source   Challenge { receiver, nonce d }
//! source -> destination   Proof     { nonce s, HMAC(secret, "source" d s openings) }
//! destination -> source   Welcome   { HMAC(secret, "destination" d s openings) }
//! ```
//!
//! The openings of both sides are in the proof, so nobody in between can force an older protocol. The roles are in it, so that a proof cannot be
//! sent back. It is also how the ends find out that the path is shared, with nothing to configure: a source that does not find the file
//! looks at another directory.
//!
//! This authenticates the ends, not yet each byte between them: an attacker who can rewrite packets on the path between the hosts is
//! out of scope until the session runs in TLS, which takes this secret's place.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::protocol::{Bytes32, MigrationId, Side, hex, unhex};
use crate::sys::file::write_atomic;

/// The pool cannot be used to recognize the other end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RendezvousError {
    /// The store does not have the receiver's file.
    #[error(
        "the receiver's file {path} is not in this image store: the destination uses another directory (give both ends the same shared --image-path)"
    )]
    NotShared {
        /// Where it was expected.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    File {
        /// "read", "write", ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
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
    #[error("the peer does not know the secret in the image store")]
    WrongProof,
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

/// What both ends remember of each other once they have proved themselves.
#[derive(Debug, Clone, Copy)]
pub struct Acquaintance {
    /// Which receiver it is.
    pub receiver: MigrationId,
    /// The secret of its rendezvous file.
    pub secret: Bytes32,
}

/// A receiver's secret in the image store; removed when dropped.
#[derive(Debug)]
pub struct Rendezvous {
    path: PathBuf,
    receiver: MigrationId,
    secret: Bytes32,
}

impl Rendezvous {
    /// Leaves a fresh secret for container `container` in the store.
    ///
    /// # Errors
    /// [`RendezvousError::File`], [`RendezvousError::Random`].
    pub fn leave(store: &Path, container: &str) -> Result<Self> {
        let receiver = MigrationId::new(random()?);
        let secret = Bytes32(random()?);
        let path = path_of(store, container, &receiver);
        write_atomic(&path, hex(&secret.0).as_bytes(), 0o600).map_err(file("write", &path))?;
        Ok(Self {
            path,
            receiver,
            secret,
        })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the ends recognize each other by.
    #[must_use]
    pub fn acquaintance(&self) -> Acquaintance {
        Acquaintance {
            receiver: self.receiver,
            secret: self.secret,
        }
    }

    /// Which receiver this is.
    #[must_use]
    pub fn receiver(&self) -> MigrationId {
        self.receiver
    }

    /// The secret.
    #[must_use]
    pub fn secret(&self) -> Bytes32 {
        self.secret
    }
}

impl Drop for Rendezvous {
    fn drop(&mut self) {
        // A file that stays proves nothing any more: the secret in it dies with this receiver.
        let _ = fs::remove_file(&self.path);
    }
}

/// Reads the secret that the receiver says it has left.
///
/// `owner` is the user that owns what this process itself writes in the store: the same as its own, unless a network file system maps it.
///
/// # Errors
/// [`RendezvousError::NotShared`] where the file is not there, [`RendezvousError::NotPrivate`] where others could have read or planted it.
pub fn find(store: &Path, container: &str, receiver: &MigrationId, owner: u32) -> Result<Bytes32> {
    let path = path_of(store, container, receiver);
    let mut opened = match fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(&path)
    {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(RendezvousError::NotShared { path });
        }
        Err(error) => return Err(file("read", &path)(error)),
    };
    let metadata = opened.metadata().map_err(file("read", &path))?;
    if !metadata.is_file() || metadata.uid() != owner || metadata.mode() & 0o077 != 0 {
        return Err(RendezvousError::NotPrivate {
            path,
            owner: metadata.uid(),
            mode: metadata.mode() & 0o7777,
        });
    }
    let mut text = String::new();
    let read = Read::by_ref(&mut opened)
        .take(128)
        .read_to_string(&mut text);
    match (read, unhex(&text)) {
        (Ok(_), Ok(secret)) => Ok(Bytes32(secret)),
        _ => Err(RendezvousError::Damaged { path }),
    }
}

fn path_of(store: &Path, container: &str, receiver: &MigrationId) -> PathBuf {
    store.join(format!("{container}.{receiver}.rendezvous"))
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RendezvousError {
    let path = path.to_path_buf();
    move |source| RendezvousError::File {
        action,
        path,
        source,
    }
}

/// All that both ends have said before the proof.
#[derive(Debug, Clone)]
pub struct Transcript {
    /// The source's opening.
    pub source_opening: Vec<u8>,
    /// The destination's opening.
    pub destination_opening: Vec<u8>,
    /// Which receiver.
    pub receiver: MigrationId,
    /// The destination's nonce.
    pub destination_nonce: Bytes32,
    /// The source's nonce.
    pub source_nonce: Bytes32,
}

impl Transcript {
    /// What `side` sends to prove that it knows the secret.
    #[must_use]
    pub fn proof(&self, secret: &Bytes32, side: Side) -> Bytes32 {
        Bytes32(self.mac(secret, side).finalize().into_bytes().into())
    }

    /// Checks the proof of `side`, in constant time.
    ///
    /// # Errors
    /// [`RendezvousError::WrongProof`].
    pub fn check(&self, secret: &Bytes32, side: Side, proof: &Bytes32) -> Result<()> {
        self.mac(secret, side)
            .verify_slice(&proof.0)
            .map_err(|_| RendezvousError::WrongProof)
    }

    fn mac(&self, secret: &Bytes32, side: Side) -> Hmac<Sha256> {
        #[expect(
            clippy::expect_used,
            reason = "HMAC takes keys of any length (RFC 2104)"
        )]
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(&secret.0).expect("any key length");
        mac.update(match side {
            Side::Source => b"rcm migration: source\0",
            Side::Destination => b"rcm migration: destination\0",
        });
        // Fixed lengths, and openings that tell theirs: no two transcripts have the same bytes.
        mac.update(self.receiver.bits());
        mac.update(&self.destination_nonce.0);
        mac.update(&self.source_nonce.0);
        mac.update(&self.source_opening);
        mac.update(&self.destination_opening);
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn owner(dir: &Path) -> u32 {
        fs::metadata(dir).unwrap().uid()
    }

    #[test]
    fn who_reads_the_store_finds_the_secret() {
        let store = tempfile::tempdir().unwrap();
        let one = Rendezvous::leave(store.path(), "web").unwrap();
        let two = Rendezvous::leave(store.path(), "web").unwrap();
        let found = find(store.path(), "web", &one.receiver(), owner(store.path())).unwrap();
        assert_eq!(found, one.secret());
        assert_ne!(found, two.secret());
        let receiver = one.receiver();
        drop(one);
        assert!(matches!(
            find(store.path(), "web", &receiver, owner(store.path())),
            Err(RendezvousError::NotShared { .. })
        ));
    }

    #[test]
    fn a_file_that_others_could_read_or_plant_proves_nothing() {
        let store = tempfile::tempdir().unwrap();
        let left = Rendezvous::leave(store.path(), "web").unwrap();
        let me = owner(store.path());
        assert!(matches!(
            find(store.path(), "web", &left.receiver(), me + 1),
            Err(RendezvousError::NotPrivate { .. })
        ));
        fs::set_permissions(&left.path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            find(store.path(), "web", &left.receiver(), me),
            Err(RendezvousError::NotPrivate { mode: 0o640, .. })
        ));
    }

    #[test]
    fn links_and_nonsense_prove_nothing() {
        let store = tempfile::tempdir().unwrap();
        let left = Rendezvous::leave(store.path(), "web").unwrap();
        let me = owner(store.path());
        fs::write(&left.path, "x".repeat(5000)).unwrap();
        assert!(matches!(
            find(store.path(), "web", &left.receiver(), me),
            Err(RendezvousError::Damaged { .. })
        ));
        let elsewhere = store.path().join("elsewhere");
        fs::rename(&left.path, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &left.path).unwrap();
        assert!(matches!(
            find(store.path(), "web", &left.receiver(), me),
            Err(RendezvousError::File { .. })
        ));
    }

    #[test]
    fn proofs_bind_role_secret_nonces_and_openings() {
        let transcript = Transcript {
            source_opening: b"s".to_vec(),
            destination_opening: b"d".to_vec(),
            receiver: MigrationId::new([1; 16]),
            destination_nonce: Bytes32([2; 32]),
            source_nonce: Bytes32([3; 32]),
        };
        let secret = Bytes32([4; 32]);
        let proof = transcript.proof(&secret, Side::Source);
        transcript.check(&secret, Side::Source, &proof).unwrap();
        assert!(
            transcript
                .check(&secret, Side::Destination, &proof)
                .is_err()
        );
        assert!(
            transcript
                .check(&Bytes32([5; 32]), Side::Source, &proof)
                .is_err()
        );
        let mut other = transcript.clone();
        other.destination_nonce.0[31] ^= 1;
        assert!(other.check(&secret, Side::Source, &proof).is_err());
        let mut other = transcript;
        other.source_opening = b"older".to_vec();
        assert!(other.check(&secret, Side::Source, &proof).is_err());
    }
}
