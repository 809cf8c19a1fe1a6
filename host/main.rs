//! Parse, run, exit code.

#[cfg(unix)]
mod heap;

fn main() -> std::process::ExitCode {
    chainweir::cli::main()
}
