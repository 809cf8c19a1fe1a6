//! Many builds of few plugins, cheaply: files whose digests differ, without a compiler.

use std::path::Path;

/// The same plugin as another build: a custom section that nobody reads is added to its module.
pub fn variant(wasm: &[u8], mark: u32) -> Vec<u8> {
    let content = [&[4], b"mark".as_slice(), &mark.to_le_bytes()].concat();
    [wasm, &[0, content.len() as u8], &content].concat()
}

/// The guest `hostile` with its configuration built in: see tests/guests/hostile.
pub fn hostile(settings: &str) -> Vec<u8> {
    let mark = b"hostile slot:";
    let mut wasm = std::fs::read(super::guests::hostile()).expect("the guest was just built");
    let found: Vec<usize> = wasm.windows(mark.len()).enumerate().filter(|(_, w)| w == mark).map(|(i, _)| i).collect();
    let [slot] = found[..] else { panic!("the guest has {} slots", found.len()) };
    let slot = slot + mark.len();
    assert!(settings.len() <= 512 - mark.len(), "{settings} does not fit");
    wasm[slot..slot + settings.len()].copy_from_slice(settings.as_bytes());
    wasm
}

/// Another version of the interface: every name of it is changed, so that the file is sound.
pub fn other_world(wasm: &[u8]) -> Vec<u8> {
    let (from, to) = (b"chainweir:plugin/processor@0.1.0", b"chainweir:plugin/processor@0.9.0");
    let mut wasm = wasm.to_vec();
    let places: Vec<usize> = wasm.windows(from.len()).enumerate().filter(|(_, w)| w == from).map(|(i, _)| i).collect();
    assert!(!places.is_empty(), "it exports no processor");
    places.into_iter().for_each(|i| wasm[i..i + to.len()].copy_from_slice(to));
    wasm
}

/// Beside the file, then renamed: whoever looks sees the old one or the new one.
pub fn put(dir: &Path, name: &str, wasm: &[u8]) {
    let temporary = dir.join(format!(".{name}.new"));
    std::fs::write(&temporary, wasm).expect("a file in the test's folder");
    std::fs::rename(&temporary, dir.join(name)).expect("a rename in one folder");
}

/// As `status` shows it.
pub fn digest(bytes: &[u8]) -> String {
    use sha2::Digest;
    alloy_primitives::hex::encode(sha2::Sha256::digest(bytes))
}
