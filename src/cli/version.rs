use std::path::Path;

use crate::criu::Criu;
use crate::runtime::verbs::features;

/// Version of this build.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Commit of this build, if it is known.
pub(super) const COMMIT: Option<&str> = option_env!("RCM_COMMIT");

/// Prints the version under the name that the program was called by. Engines read these lines, so
/// they have runc's form.
pub(super) fn print(program: &str, criu: Option<&Path>) {
    println!("{program} version {VERSION}");
    if let Some(commit) = COMMIT {
        println!("commit: {commit}");
    }
    println!("spec: {}", oci_spec::runtime::VERSION);
    if let Some(version) = features::libseccomp_version() {
        println!("libseccomp: {version}");
    }
    // No error without CRIU: everything but checkpoint, restore and migration works.
    if let Ok(criu) = Criu::find(criu) {
        println!("criu: {}", criu.version());
    }
}
