use std::path::Path;

use crate::criu::Criu;
use crate::runtime::verbs::features;

/// The version of this build.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit of this build, where it is known.
pub(super) const COMMIT: Option<&str> = option_env!("RCM_COMMIT");

/// Prints the version in runc's form, whose lines engines read, under the name that the program was called by.
pub(super) fn print(program: &str, criu: Option<&Path>) {
    println!("{program} version {VERSION}");
    if let Some(commit) = COMMIT {
        println!("commit: {commit}");
    }
    println!("spec: {}", oci_spec::runtime::VERSION);
    if let Some(version) = features::libseccomp_version() {
        println!("libseccomp: {version}");
    }
    // Without CRIU everything but checkpoints works: its absence is no news here.
    if let Ok(criu) = Criu::find(criu) {
        println!("criu: {}", criu.version());
    }
}
