//! The plugins that tests run, built for wasm once per test run. Shared with the unit tests of `host/plugin`, which
//! include this file by path.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, OnceLock};

/// The .wasm of a crate of this workspace, by its package name.
pub fn wasm(package: &str) -> PathBuf {
    static BUILT: OnceLock<Mutex<Vec<String>>> = OnceLock::new();
    let mut built = BUILT.get_or_init(Mutex::default).lock().unwrap_or_else(|e| e.into_inner());
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    if !built.iter().any(|p| p == package) {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--quiet", "--release", "--target", "wasm32-unknown-unknown", "-p", package])
            .current_dir(&root)
            .status()
            .expect("cargo runs");
        assert!(status.success(), "cannot build {package}: 'rustup target add wasm32-unknown-unknown' may be missing");
        built.push(package.to_owned());
    }
    let target = std::env::var("CARGO_TARGET_DIR").map_or_else(|_| root.join("target"), PathBuf::from);
    target.join("wasm32-unknown-unknown/release").join(format!("{}.wasm", package.replace('-', "_")))
}

/// The guest that misbehaves as it is told.
pub fn hostile() -> PathBuf {
    wasm("hostile")
}
