//! Authentication beyond the secret in the shared directory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::common::Host;
use crate::common::pair::{Pair, runs_on};

fn write(path: PathBuf, contents: &str) -> String {
    fs::write(&path, contents).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_token_is_asked_of_both_ends() {
    let pair = Pair::new("token");
    let token = write(pair.source.dir().join("token"), &"right".repeat(10));
    let wrong = write(pair.source.dir().join("wrong"), &"wrong".repeat(10));
    let mut receiver = pair.receiver(&["--detach", "--token-file", &token]);
    for flags in [&[][..], &["--token-file", &wrong]] {
        let output = pair.send_with(receiver.address, flags).wait();
        runs_on(output, "closed the connection");
        assert!(receiver.running.is_running());
    }
    pair.assert_counts();
    pair.send_with(receiver.address, &["--token-file", &token])
        .wait()
        .ok();
    receiver.running.wait().ok();
    pair.assert_at_destination();
}

/// The files of an end, and the flags that name them.
fn flags(dir: &Path, name: &str, host: &str, issuer: &CertifiedIssuer<'_, KeyPair>) -> Vec<String> {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([host.to_owned()])
        .unwrap()
        .signed_by(&key, issuer)
        .unwrap();
    let file = |what: &str, contents: &str| write(dir.join(format!("{name}.{what}")), contents);
    vec![
        "--tls-ca".into(),
        file("ca", &issuer.as_ref().pem()),
        "--tls-cert".into(),
        file("cert", &certificate.pem()),
        "--tls-key".into(),
        file("key", &key.serialize_pem()),
    ]
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

#[test]
fn an_authority_vouches_for_both_ends() {
    let pair = Pair::new("mtls");
    let dir = pair.source.dir();
    let (ours, other) = (authority(), authority());
    let destination = flags(dir, "destination", "127.0.0.1", &ours);
    let source = flags(dir, "source", "source.example", &ours);
    let stranger = flags(dir, "stranger", "source.example", &other);
    let mut receiver_flags = vec!["--detach"];
    receiver_flags.extend(destination.iter().map(String::as_str));
    let mut receiver = pair.receiver(&receiver_flags);
    for flags in [&[][..], &stranger] {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let output = pair.send_with(receiver.address, &flags).wait();
        runs_on(output, "");
        assert!(receiver.running.is_running());
    }
    pair.assert_counts();
    let flags: Vec<&str> = source.iter().map(String::as_str).collect();
    pair.send_with(receiver.address, &flags).wait().ok();
    receiver.running.wait().ok();
    pair.assert_at_destination();
}

#[test]
fn half_of_mutual_tls_is_wrong_usage() {
    for flags in [
        ["--tls-ca", "/ca"],
        ["--tls-cert", "/c"],
        ["--tls-key", "/k"],
    ] {
        Host::new()
            .cmd("live-migrate")
            .args(["x", "--image-path", "/tmp"])
            .args(flags)
            .run()
            .exits_with(2);
    }
}
