//! Test guests, built once per run of a test binary. Shared by the integration tests and by the unit tests
//! of `host/plugin` (which include this file by path).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The path of tests/guests/hostile, built for wasm32-unknown-unknown.
pub fn hostile() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("hostile"))
}

fn build(package: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let done = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--target", "wasm32-unknown-unknown", "-p", package])
        .current_dir(root)
        .output()
        .expect("cargo runs: it started this test");
    assert!(done.status.success(), "guest {package} does not build: {}", String::from_utf8_lossy(&done.stderr));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    target.join("wasm32-unknown-unknown/release").join(format!("{package}.wasm"))
}
