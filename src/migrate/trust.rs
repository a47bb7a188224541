//! Credentials of this end, and the checks on the other end.
//!
//! rcm can demand three proofs from a peer. Each flag adds one, and none removes one:
//!
//! | demand | the peer proves that | how |
//! | --- | --- | --- |
//! | always, unless the ends share no store | it can read the image store as root | the secret of the receiver's rendezvous file is in the key of the proofs |
//! | `--token-file` | it knows the token | the token is in the key of the proofs, too |
//! | `--tls-ca`, `--tls-cert`, `--tls-key` | the authority vouches for it | its certificate is verified in the TLS handshake |
//!
//! If the ends share no store, one of the flags is needed.
//!
//! The session is always TLS 1.3 with a certificate on each side: a fresh self-signed one for each
//! process unless the flags name files. A self-signed certificate proves nothing by itself.
//! [`super::trust::rendezvous`] makes it trustworthy: the receiver's file pins the receiver's
//! certificate, and the proofs cover both certificates.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hmac::{Hmac, Mac};
use nix::unistd::geteuid;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{CipherSuite, ClientConfig, RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::wire::id::{Bytes32, hex, unhex_all};
use crate::migrate::limits::{MAX_TRUST_FILE_BYTES, MIN_TOKEN_BYTES};
use crate::sys::file::Failed;

mod pinned;
pub mod rendezvous;

use pinned::Unverified;

/// Application protocol (RFC 7301). It keeps a TLS service of another kind from taking a migration
/// for its own, and the other way round.
const APPLICATION: &[u8] = b"rcm-migration";

/// The trust that the flags demand cannot be established.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] Failed),
    /// Other users may read or write the file.
    #[error(
        "{path} is not private (owner {owner}, mode {mode:04o}): make it a file of this user with mode 0600"
    )]
    NotPrivate {
        /// Path of the file.
        path: PathBuf,
        /// User id of the owner.
        owner: u32,
        /// Permission bits of the file.
        mode: u32,
    },
    /// A token that is short enough to be guessed.
    #[error(
        "the token in {path} has {length_bytes} bytes, at least {MIN_TOKEN_BYTES} are needed: `openssl rand -base64 48` makes a good one"
    )]
    ShortToken {
        /// Path of the file.
        path: PathBuf,
        /// Length without the white space around it.
        length_bytes: usize,
    },
    /// The file is not PEM, or lacks the needed item.
    #[error("{path} does not hold {what} in PEM format")]
    Pem {
        /// Name of the missing item: "a certificate", ...
        what: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Error of the parser.
        #[source]
        source: pem::Error,
    },
    /// The certificate, its key or the authority cannot be used.
    #[error("the certificates cannot be used")]
    Tls {
        /// Cause.
        #[source]
        source: rustls::Error,
    },
    /// The authorities cannot be used to verify a source.
    #[error("the authorities in {path} cannot be used")]
    Authorities {
        /// Path of the file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: rustls::server::VerifierBuilderError,
    },
    /// The migration record lacks the certificate that it should have.
    #[error("the migration record holds no usable certificate of the receiver")]
    Damaged,
    /// No certificate can be made.
    #[error("cannot make a certificate")]
    Certificate {
        /// Cause.
        #[source]
        source: rcgen::Error,
    },
}

type Result<T, E = TrustError> = std::result::Result<T, E>;

/// Files of mutual TLS, in PEM format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsFiles {
    /// Certificates of the authorities that vouch for the other end.
    pub authorities: PathBuf,
    /// Certificate of this end, followed by those between it and the authority.
    pub certificate: PathBuf,
    /// Private key of that certificate.
    pub key: PathBuf,
}

/// Trust that the flags demand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustSettings {
    /// Path of a file with a secret that both ends know.
    pub token_file: Option<PathBuf>,
    /// Files of mutual TLS, instead of a fresh certificate.
    pub tls: Option<TlsFiles>,
}

/// Certificate of this end, and its demands on the other one.
#[derive(Debug, Clone)]
pub struct Trust {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
    fingerprint: Bytes32,
    token: Option<Token>,
    files: Option<TlsFiles>,
    /// `None` if it is in files.
    identity: Option<StoredIdentity>,
}

/// A certificate that this process has made, with its key; both in DER, as hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredIdentity {
    certificate: String,
    key: String,
}

impl std::fmt::Debug for StoredIdentity {
    /// Prints neither, because the key is a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoredIdentity(..)")
    }
}

#[derive(Clone)]
struct Token(Vec<u8>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Trust {
    /// Trust with a fresh certificate that relies on the image store alone.
    ///
    /// # Errors
    /// [`TrustError::Certificate`], [`TrustError::Tls`].
    pub fn fresh() -> Result<Self> {
        Self::of(&TrustSettings::default())
    }

    /// Trust according to `settings`.
    ///
    /// # Errors
    /// All of [`TrustError`].
    pub fn of(settings: &TrustSettings) -> Result<Self> {
        let token = settings.token_file.as_deref().map(read_token).transpose()?;
        let identity = match &settings.tls {
            Some(files) => Identity::read(files)?,
            None => Identity::fresh()?,
        };
        Self::with(identity, token, settings.tls.clone())
    }

    /// Trust of a receiver that has died: with the certificate in `files`, else `identity`. Its
    /// token is no longer known.
    ///
    /// # Errors
    /// All of [`TrustError`].
    pub fn stored(identity: Option<&StoredIdentity>, files: Option<&TlsFiles>) -> Result<Self> {
        let identity = match (files, identity) {
            (Some(files), _) => Identity::read(files)?,
            (None, Some(stored)) => Identity::stored(stored)?,
            (None, None) => Identity::fresh()?,
        };
        Self::with(identity, None, files.cloned())
    }

    fn with(identity: Identity, token: Option<Token>, files: Option<TlsFiles>) -> Result<Self> {
        let stored = files.is_none().then(|| StoredIdentity {
            certificate: hex(&identity.chain[0]),
            key: hex(identity.key.secret_der()),
        });
        let fingerprint = fingerprint(&identity.chain[0]);
        let (server, client) = identity.configs()?;
        Ok(Self {
            server,
            client,
            fingerprint,
            token,
            files,
            identity: stored,
        })
    }

    /// Returns the certificate if it is not in files.
    #[must_use]
    pub fn identity(&self) -> Option<&StoredIdentity> {
        self.identity.as_ref()
    }

    /// Returns the fingerprint of this end's certificate.
    #[must_use]
    pub fn fingerprint(&self) -> Bytes32 {
        self.fingerprint
    }

    /// Returns the files of mutual TLS if it is used.
    #[must_use]
    pub fn files(&self) -> Option<&TlsFiles> {
        self.files.as_ref()
    }

    /// Returns the key of the proofs: the store's secret, combined with the token if there is one.
    /// HMAC with the secret as its key combines them, so that neither reveals anything without the
    /// other.
    #[must_use]
    pub fn key(&self, secret: Bytes32) -> Bytes32 {
        match &self.token {
            None => secret,
            Some(token) => derive(secret, b"rcm migration: token\0", token),
        }
    }

    /// Returns the key of the proofs if the ends share no store: the token. With the certificates
    /// of an authority and no token, a proof adds nothing to the verification in the TLS handshake,
    /// and the key is no secret. `None` if the flags name neither: then nothing distinguishes the
    /// other end from a stranger.
    #[must_use]
    pub fn key_without_store(&self) -> Option<Bytes32> {
        const LABEL: &[u8] = b"rcm migration: no store\0";
        let nothing = Bytes32([0; 32]);
        match (&self.token, &self.files) {
            (Some(token), _) => Some(derive(nothing, LABEL, token)),
            (None, Some(_)) => Some(derive(nothing, LABEL, &Token(Vec::new()))),
            (None, None) => None,
        }
    }
}

fn derive(secret: Bytes32, label: &[u8], token: &Token) -> Bytes32 {
    #[expect(
        clippy::expect_used,
        reason = "HMAC takes keys of any length (RFC 2104)"
    )]
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(&secret.0).expect("any key length");
    mac.update(label);
    mac.update(&token.0);
    Bytes32(mac.finalize().into_bytes().into())
}

/// Returns the SHA-256 of a certificate in DER.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer) -> Bytes32 {
    Bytes32(Sha256::digest(certificate).into())
}

/// A certificate with its key.
struct Identity {
    /// The certificate itself comes first.
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    /// Authorities that vouch for the peer. If `None`, the peer's certificate only identifies it.
    authorities: Option<(PathBuf, Arc<RootCertStore>)>,
}

impl Identity {
    fn fresh() -> Result<Self> {
        // The name has no meaning: the fingerprint identifies the certificate.
        let made = rcgen::generate_simple_self_signed(["rcm.invalid".to_owned()])
            .map_err(|source| TrustError::Certificate { source })?;
        Ok(Self {
            chain: vec![made.cert.der().clone()],
            key: PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into(),
            authorities: None,
        })
    }

    fn stored(stored: &StoredIdentity) -> Result<Self> {
        let damaged = |_| TrustError::Damaged;
        let certificate = unhex_all(&stored.certificate).map_err(damaged)?;
        let key = unhex_all(&stored.key).map_err(damaged)?;
        Ok(Self {
            chain: vec![CertificateDer::from(certificate)],
            key: PrivatePkcs8KeyDer::from(key).into(),
            authorities: None,
        })
    }

    fn read(files: &TlsFiles) -> Result<Self> {
        let chain = read_certificates(&files.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&read_file(&files.key, true)?)
            .map_err(pem_of("a private key", &files.key))?;
        let mut authorities = RootCertStore::empty();
        for authority in read_certificates(&files.authorities)? {
            authorities
                .add(authority)
                .map_err(|source| TrustError::Tls { source })?;
        }
        Ok(Self {
            chain,
            key,
            authorities: Some((files.authorities.clone(), Arc::new(authorities))),
        })
    }

    /// Makes the TLS configurations: TLS 1.3 only, and no session is ever resumed, so each
    /// connection proves everything anew.
    fn configs(self) -> Result<(Arc<ServerConfig>, Arc<ClientConfig>)> {
        let tls = |source| TrustError::Tls { source };
        let mut provider = default_provider();
        // AES-128 is as safe as AES-256 for the life of a session, and a quarter faster if the
        // processor is the limit.
        provider
            .cipher_suites
            .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
        let provider = Arc::new(provider);
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(tls)?;
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(tls)?;
        let unverified = || Arc::new(Unverified::new(&provider));
        let (server, client) = match &self.authorities {
            Some((path, authorities)) => (
                server.with_client_cert_verifier(verifier(path, authorities, &provider)?),
                client.with_root_certificates(Arc::clone(authorities)),
            ),
            None => (
                server.with_client_cert_verifier(unverified()),
                client
                    .dangerous()
                    .with_custom_certificate_verifier(unverified()),
            ),
        };
        let mut server = server
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(tls)?;
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.alpn_protocols = vec![APPLICATION.to_vec()];
        let mut client = client
            .with_client_auth_cert(self.chain, self.key)
            .map_err(tls)?;
        client.resumption = Resumption::disabled();
        client.alpn_protocols = vec![APPLICATION.to_vec()];
        Ok((Arc::new(server), Arc::new(client)))
    }
}

fn verifier(
    path: &Path,
    authorities: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>> {
    WebPkiClientVerifier::builder_with_provider(Arc::clone(authorities), Arc::clone(provider))
        .build()
        .map_err(|source| TrustError::Authorities {
            path: path.to_path_buf(),
            source,
        })
}

fn read_token(path: &Path) -> Result<Token> {
    let contents = read_file(path, true)?;
    let token = contents.trim_ascii();
    if token.len() >= MIN_TOKEN_BYTES {
        Ok(Token(token.to_vec()))
    } else {
        Err(TrustError::ShortToken {
            path: path.to_path_buf(),
            length_bytes: token.len(),
        })
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let contents = read_file(path, false)?;
    let certificates = CertificateDer::pem_slice_iter(&contents)
        .collect::<Result<Vec<_>, _>>()
        .map_err(pem_of("a certificate", path))?;
    if certificates.is_empty() {
        Err(pem_of("a certificate", path)(pem::Error::NoItemsFound))
    } else {
        Ok(certificates)
    }
}

fn pem_of(what: &'static str, path: &Path) -> impl FnOnce(pem::Error) -> TrustError {
    let path = path.to_path_buf();
    move |source| TrustError::Pem { what, path, source }
}

/// Reads a file, through symbolic links, because tools that install secrets make such links. The
/// checks apply to the opened file, not to the path, which could change meanwhile.
fn read_file(path: &Path, private: bool) -> Result<Vec<u8>> {
    let error = |source| {
        TrustError::File(Failed {
            action: "read",
            path: path.to_path_buf(),
            source,
        })
    };
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(error)?;
    let metadata = file.metadata().map_err(error)?;
    if private && (metadata.uid() != geteuid().as_raw() || metadata.mode() & 0o077 != 0) {
        return Err(TrustError::NotPrivate {
            path: path.to_path_buf(),
            owner: metadata.uid(),
            mode: metadata.mode() & 0o7777,
        });
    }
    let mut contents = Vec::new();
    file.take(MAX_TRUST_FILE_BYTES)
        .read_to_end(&mut contents)
        .map_err(error)?;
    Ok(contents)
}

#[cfg(test)]
mod tests;
