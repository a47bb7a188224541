/// Prints the version in runc's form: engines read its lines.
pub fn print() {
    println!("rcm version {}", env!("CARGO_PKG_VERSION"));
    println!("spec: {}", oci_spec::runtime::VERSION);
}
