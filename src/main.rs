//! `rcm`: seal the executable, parse, set up logging, dispatch, exit.

fn main() -> std::process::ExitCode {
    rcm::cli::main()
}
