//! `cargo bench [-- FIGURE... --json --smoke]`: what `chainweir bench` measures, by the program itself.

use std::process::Command;

fn main() {
    // Cargo says --bench to every benchmark.
    let words = std::env::args().skip(1).filter(|word| word != "--bench");
    let status = Command::new(env!("CARGO_BIN_EXE_chainweir")).arg("bench").args(words).status().expect("it starts");
    std::process::exit(status.code().unwrap_or(1));
}
