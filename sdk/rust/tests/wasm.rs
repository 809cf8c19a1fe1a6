//! What a plugin's module is on the outside: a component in the making that asks for nothing but what a plugin may have.

use std::path::{Path, PathBuf};
use std::process::Command;

use wasmparser::{Payload, Validator, WasmFeatures};
use wit_component::ComponentEncoder;

/// What a pure Rust plugin may weigh; they are near 0.4 MB.
const MOST_BYTES: usize = 1_000_000;

fn repository() -> Option<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.join("plugins/erc20-transfers").is_dir().then_some(root)
}

fn build(root: &Path) -> Vec<(String, Vec<u8>)> {
    let plugins =
        ["erc20-transfers", "native-transfers", "confirmations", "decoded-events", "pending-transactions", "whale"];
    let target = "wasm32-unknown-unknown";
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--release", "--target", target]).current_dir(root);
    for plugin in plugins {
        cargo.args(["-p", plugin]);
    }
    let status = cargo.status().expect("cargo starts");
    assert!(status.success(), "the plugins do not build; is the target there? rustup target add {target}");
    let folder = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let read = |plugin: &str| {
        let path = folder.join(target).join("release").join(format!("{}.wasm", plugin.replace('-', "_")));
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    plugins.iter().map(|plugin| ((*plugin).to_owned(), read(plugin))).collect()
}

fn imports(module: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for payload in wasmparser::Parser::new(0).parse_all(module) {
        if let Payload::ImportSection(section) = payload.expect("valid") {
            names.extend(section.into_imports().map(|import| import.expect("valid").module.to_owned()));
        }
    }
    names.sort();
    names.dedup();
    names
}

#[test]
fn the_modules_become_components_that_ask_for_nothing_but_what_a_plugin_may_have() {
    let Some(root) = repository() else {
        eprintln!("SKIPPED: the ready-made plugins are not beside the SDK");
        return;
    };
    for (plugin, module) in build(&root) {
        assert!(module.len() < MOST_BYTES, "{plugin} weighs {} bytes", module.len());
        let allowed = ["config", "log", "state", "tracking"].map(|name| format!("chainweir:plugin/{name}@0.1.0"));
        for import in imports(&module) {
            assert!(allowed.contains(&import), "{plugin} imports {import}");
        }
        let encoder = ComponentEncoder::default().module(&module).expect("it carries its component type");
        let component = encoder.validate(true).encode().expect("it can be made a component");
        Validator::new_with_features(WasmFeatures::default()).validate_all(&component).expect("the component is valid");
    }
}
