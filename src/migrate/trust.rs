//! What this end shows the other one, and whom it takes.
//!
//! Three things can be asked of a peer. Each flag adds one; none takes one away:
//!
//! | asked for | proves | how |
//! | --- | --- | --- |
//! | always, unless the ends share no store | it reads the image store as root | the secret of the receiver's rendezvous file is in the proofs' key |
//! | `--token-file` | it knows the token | the token is in the proofs' key too |
//! | `--tls-ca`, `--tls-cert`, `--tls-key` | the authority vouches for it | its certificate is verified in the TLS handshake |
//!
//! Where the ends share no store, one of the flags is needed.
//!
//! The session is always TLS 1.3 with a certificate on each side: a fresh self-signed one for each process unless the files say otherwise. What a
//! self-signed certificate is worth is settled by [`super::trust::rendezvous`]: the receiver's is pinned by its file, and both are in the proofs.

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
use crate::sys::file::Failed;

mod pinned;
pub mod rendezvous;

use pinned::Unverified;

/// The application protocol (RFC 7301): a TLS service of another kind never takes a migration for its own, nor the other way round.
const APPLICATION: &[u8] = b"rcm-migration";
/// The fewest bytes of a token: who talks to one end without the other's certificate could try short ones out.
pub const MIN_TOKEN_BYTES: usize = 32;
/// The greatest size of a token, key or certificate file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The trust that the flags ask for cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] Failed),
    /// Others may know what is in a file.
    #[error(
        "{path} is not private (owner {owner}, mode {mode:04o}): make it a file of this user with mode 0600"
    )]
    NotPrivate {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// A token that can be guessed.
    #[error(
        "the token in {path} has {length_bytes} bytes, at least {MIN_TOKEN_BYTES} are needed: `openssl rand -base64 48` makes a good one"
    )]
    ShortToken {
        /// The file.
        path: PathBuf,
        /// Without the white space around it.
        length_bytes: usize,
    },
    /// Not PEM, or not with what is needed.
    #[error("{path} does not hold {what} in PEM format")]
    Pem {
        /// "a certificate", ...
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the parser found.
        #[source]
        source: pem::Error,
    },
    /// The certificate, its key or the authority cannot be used.
    #[error("the certificates cannot be used")]
    Tls {
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The authorities cannot be used to verify a source.
    #[error("the authorities in {path} cannot be used")]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::server::VerifierBuilderError,
    },
    /// The migration record does not hold the certificate that it should.
    #[error("the migration record holds no usable certificate of the receiver")]
    Damaged,
    /// No certificate can be made.
    #[error("cannot make a certificate")]
    Certificate {
        /// Why.
        #[source]
        source: rcgen::Error,
    },
}

type Result<T, E = TrustError> = std::result::Result<T, E>;

/// The files of mutual TLS, in PEM format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsFiles {
    /// The authorities that vouch for the other end.
    pub authorities: PathBuf,
    /// This end's certificate, followed by those between it and the authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What the flags ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustSettings {
    /// A file with a secret that both ends know.
    pub token_file: Option<PathBuf>,
    /// Certificates of an authority instead of fresh ones.
    pub tls: Option<TlsFiles>,
}

/// This end's certificate, and what it asks of the other one.
#[derive(Debug, Clone)]
pub struct Trust {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
    fingerprint: Bytes32,
    token: Option<Token>,
    files: Option<TlsFiles>,
    /// None where it is in files.
    identity: Option<StoredIdentity>,
}

/// A certificate of this process's own making, with its key; both in DER, as hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredIdentity {
    certificate: String,
    key: String,
}

impl std::fmt::Debug for StoredIdentity {
    /// The key is a secret.
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
    /// With a fresh certificate, in the image store alone.
    ///
    /// # Errors
    /// [`TrustError::Certificate`], [`TrustError::Tls`].
    pub fn fresh() -> Result<Self> {
        Self::of(&TrustSettings::default())
    }

    /// As `settings` say.
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

    /// That of a receiver that has died: the certificate in `files`, else `identity`. A token is not known any more.
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

    /// The certificate, where it is not in files.
    #[must_use]
    pub fn identity(&self) -> Option<&StoredIdentity> {
        self.identity.as_ref()
    }

    /// The fingerprint of this end's certificate.
    #[must_use]
    pub fn fingerprint(&self) -> Bytes32 {
        self.fingerprint
    }

    /// The files of mutual TLS, where it is asked for.
    #[must_use]
    pub fn files(&self) -> Option<&TlsFiles> {
        self.files.as_ref()
    }

    /// The key of the proofs: the store's secret, and the token where one is asked for. HMAC with the secret as its key, so that
    /// neither tells anything without the other.
    #[must_use]
    pub fn key(&self, secret: Bytes32) -> Bytes32 {
        match &self.token {
            None => secret,
            Some(token) => derive(secret, b"rcm migration: token\0", token),
        }
    }

    /// The key of the proofs where the ends share no store: the token. With the certificates of an authority and no token a proof adds nothing to what
    /// the TLS handshake has verified, and the key is no secret. `None` where the flags ask for neither: then nothing tells the other end from a stranger.
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

/// SHA-256 of a certificate in DER.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer) -> Bytes32 {
    Bytes32(Sha256::digest(certificate).into())
}

/// A certificate with its key.
struct Identity {
    /// Its own comes first.
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    /// Who vouches for the peer; without, its certificate is only identified.
    authorities: Option<(PathBuf, Arc<RootCertStore>)>,
}

impl Identity {
    fn fresh() -> Result<Self> {
        // The name means nothing: the certificate is known by its fingerprint.
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

    /// TLS 1.3 only, no session is ever resumed: each connection proves everything anew.
    fn configs(self) -> Result<(Arc<ServerConfig>, Arc<ClientConfig>)> {
        let tls = |source| TrustError::Tls { source };
        let mut provider = default_provider();
        // As safe as 256 bits for what a session lives, and a quarter faster where only the processors limit.
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
    match token.len() >= MIN_TOKEN_BYTES {
        true => Ok(Token(token.to_vec())),
        false => Err(TrustError::ShortToken {
            path: path.to_path_buf(),
            length_bytes: token.len(),
        }),
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let contents = read_file(path, false)?;
    let certificates = CertificateDer::pem_slice_iter(&contents)
        .collect::<Result<Vec<_>, _>>()
        .map_err(pem_of("a certificate", path))?;
    match certificates.is_empty() {
        true => Err(pem_of("a certificate", path)(pem::Error::NoItemsFound)),
        false => Ok(certificates),
    }
}

fn pem_of(what: &'static str, path: &Path) -> impl FnOnce(pem::Error) -> TrustError {
    let path = path.to_path_buf();
    move |source| TrustError::Pem { what, path, source }
}

/// Links are followed, as the tools that install secrets make them; what counts is the file that is opened.
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
    file.take(MAX_FILE_BYTES)
        .read_to_end(&mut contents)
        .map_err(error)?;
    Ok(contents)
}

#[cfg(test)]
mod tests;
