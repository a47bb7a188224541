use super::*;
use crate::migrate::link::tls::TlsStream;
use crate::sys::file::write_atomic;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;

fn write(dir: &Path, name: &str, contents: &str, mode: u32) -> PathBuf {
    let path = dir.join(name);
    write_atomic(&path, contents.as_bytes(), mode).unwrap();
    path
}

/// An authority, and the files of an end for which it vouches.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn files(&self, host: &str) -> TlsFiles {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([host.to_owned()])
            .unwrap()
            .signed_by(&key, &self.issuer)
            .unwrap();
        let dir = self.dir.path();
        TlsFiles {
            authorities: write(dir, "ca.pem", &self.issuer.pem(), 0o644),
            certificate: write(dir, &format!("{host}.pem"), &certificate.pem(), 0o644),
            key: write(dir, &format!("{host}.key"), &key.serialize_pem(), 0o600),
        }
    }

    fn trust(&self, host: &str) -> Trust {
        trust(&self.files(host)).unwrap()
    }
}

fn trust(files: &TlsFiles) -> Result<Trust> {
    Trust::of(&TrustSettings {
        token_file: None,
        tls: Some(files.clone()),
    })
}

/// Returns whether each end accepts the other: the source, which connects to 192.0.2.1, and the
/// destination.
fn meet(source: &Trust, destination: &Trust) -> (bool, bool) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    let mut one = TlsStream::client(Box::new(near), source, "192.0.2.1").unwrap();
    let mut two = TlsStream::server(Box::new(far), destination).unwrap();
    let step = |stream: &mut TlsStream| match stream.handshake() {
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        done => Some(done.is_ok()),
    };
    let (mut near, mut far) = (None, None);
    while near.is_none() || far.is_none() {
        near = near.or_else(|| step(&mut one));
        far = far.or_else(|| step(&mut two));
        if near == Some(false) || far == Some(false) {
            break;
        }
    }
    let _ = one.flush();
    (near == Some(true), far == Some(true))
}

#[test]
fn an_authority_vouches_for_both_ends() {
    let authority = Authority::new();
    let (source, destination) = (authority.trust("source"), authority.trust("192.0.2.1"));
    assert_eq!(meet(&source, &destination), (true, true));
}

#[test]
fn without_the_authority_nobody_is_taken() {
    let (authority, other) = (Authority::new(), Authority::new());
    let destination = authority.trust("192.0.2.1");
    assert!(!meet(&other.trust("source"), &destination).0);
    assert!(!meet(&Trust::fresh().unwrap(), &destination).1);
    assert!(!meet(&authority.trust("source"), &Trust::fresh().unwrap()).0);
    assert!(!meet(&authority.trust("source"), &other.trust("192.0.2.1")).0);
}

#[test]
fn a_certificate_for_another_host_is_not_the_destination_s() {
    let authority = Authority::new();
    assert!(!meet(&authority.trust("source"), &authority.trust("192.0.2.2")).0);
}

#[test]
fn files_that_are_not_what_they_should_be() {
    let authority = Authority::new();
    let right = authority.files("node");
    trust(&right).unwrap();
    let dir = authority.dir.path();
    let missing = TlsFiles {
        key: dir.join("missing"),
        ..right.clone()
    };
    assert!(matches!(trust(&missing), Err(TrustError::File(_))));
    let open = fs::read_to_string(&right.key).unwrap();
    let open = TlsFiles {
        key: write(dir, "open.key", &open, 0o640),
        ..right.clone()
    };
    assert!(matches!(
        trust(&open),
        Err(TrustError::NotPrivate { mode: 0o640, .. })
    ));
    let empty = TlsFiles {
        certificate: write(dir, "empty", "", 0o644),
        ..right.clone()
    };
    assert!(matches!(trust(&empty), Err(TrustError::Pem { .. })));
    let no_key = TlsFiles {
        key: write(dir, "no.key", "nonsense", 0o600),
        ..right.clone()
    };
    assert!(matches!(trust(&no_key), Err(TrustError::Pem { .. })));
    let other_key = TlsFiles {
        key: authority.files("other").key,
        ..right
    };
    assert!(matches!(trust(&other_key), Err(TrustError::Tls { .. })));
}

#[test]
fn tokens() {
    let dir = tempfile::tempdir().unwrap();
    let token = |contents: &str, mode| {
        Trust::of(&TrustSettings {
            token_file: Some(write(dir.path(), "token", contents, mode)),
            tls: None,
        })
    };
    let secret = Bytes32([1; 32]);
    let long = "x".repeat(MIN_TOKEN_BYTES);
    let key = token(&long, 0o600).unwrap().key(secret);
    assert_ne!(key, secret);
    // The line end that an editor adds does not belong to the token.
    let with_line_end = token(&format!("{long}\n"), 0o600).unwrap();
    assert_eq!(with_line_end.key(secret), key);
    assert_ne!(with_line_end.key(Bytes32([2; 32])), key);
    assert!(!format!("{with_line_end:?}").contains("xxx"));
    assert_eq!(Trust::fresh().unwrap().key(secret), secret);
    assert!(matches!(
        token(&format!("{}\n\n", "x".repeat(MIN_TOKEN_BYTES - 1)), 0o600),
        Err(TrustError::ShortToken {
            length_bytes: 31,
            ..
        })
    ));
    assert!(matches!(
        token(&long, 0o644),
        Err(TrustError::NotPrivate { mode: 0o644, .. })
    ));
}
