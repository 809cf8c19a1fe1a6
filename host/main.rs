//! Parse, run, exit code.

fn main() -> std::process::ExitCode {
    chainweir::cli::main()
}
