//! Turns a dropped file into code that can be called, or into a sentence that says why not. Knows the
//! sandbox's walls (memory, stack, time, determinism) and which interface a plugin must export; knows
//! nothing of events, state or configuration. `bytes -> load -> Compiled -> abi_v1`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use sha2::Digest as _;
use wasmtime::component::Component;
use wasmtime::{Config, InstanceAllocationStrategy, PoolingAllocationConfig, WasmBacktraceDetails};

use super::Digest;
use super::cache::Cache;

/// Live instances at one time, plugins and chains multiplied, candidates and bisecting included.
const INSTANCES: u32 = 256;
/// Python has 38 core instances in one component; the store's own ceiling says the same.
pub(super) const CORE_INSTANCES: usize = 64;
pub(super) const MEMORIES: usize = 16;
pub(super) const TABLES: usize = 32;
/// 800 KB of address space a table; a guest of 12 MB (StarlingMonkey) has some 10,000 functions in its table.
pub(super) const TABLE_ELEMENTS: usize = 100_000;
/// A worker thread has 2 MiB; the other half is for the host's frames below a host call.
const WASM_STACK_BYTES: usize = 1 << 20;
const TICK: Duration = Duration::from_millis(1);
const FRAMES: usize = 12;

const PROCESSOR: &str = "chainweir:plugin/processor@";
/// The one version that this host speaks; any 0.1.x is compatible with it.
const PROCESSOR_VERSION: &str = "0.1.0";

/// Why a file is not loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The file is at fault and will be the next time too: keep what serves now, tell the user.
    #[error("{why}")]
    Refused { why: String },
    /// This host is at fault, or full: the same file may load later.
    #[error("{why}")]
    Again { why: String },
}

impl LoadError {
    pub(super) fn refused(why: impl Into<String>) -> Self {
        Self::Refused { why: why.into() }
    }
}

/// The compiler and the walls. Clones share everything.
#[derive(Clone)]
pub struct Engine {
    pub(super) wasm: wasmtime::Engine,
    pub(super) ticker: Arc<Ticker>,
    cache: Option<Cache>,
}

/// A file that is WebAssembly, exports what this host calls, and is compiled. Not yet asked anything.
#[derive(Clone)]
pub struct Compiled {
    pub(super) engine: Engine,
    pub(super) component: Component,
    digest: Digest,
    from_cache: bool,
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiled").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl Compiled {
    pub fn digest(&self) -> Digest {
        self.digest
    }
    /// It was not compiled by this call: a compiled form of it was found.
    pub fn from_cache(&self) -> bool {
        self.from_cache
    }
}

impl Engine {
    /// `cache_dir` is made where it is missing, and must belong to this user alone; `None` compiles every time.
    pub fn new(cache_dir: Option<PathBuf>) -> Result<Self, LoadError> {
        let again = |why: String| LoadError::Again { why };
        let wasm = match wasmtime::Engine::new(&settings(true)) {
            Ok(engine) => engine,
            // The pool reserves address space (not memory), which `ulimit -v` and some containers bound.
            Err(e) => {
                tracing::warn!(why = %e, "no room for a pool of instances; making each one singly, which is slower");
                wasmtime::Engine::new(&settings(false))
                    .map_err(|e| again(format!("the WebAssembly engine does not start here: {e:#}")))?
            }
        };
        let cache = cache_dir.map(|dir| Cache::open(dir, &wasm)).transpose().map_err(again)?;
        let ticker = Ticker::start(wasm.weak()).map_err(|e| again(format!("no thread for the plugins' clock: {e}")))?;
        Ok(Self { wasm, ticker, cache })
    }

    /// Compiles a component, or a core module that carries its component type. Takes from some
    /// milliseconds to some seconds: call it on a blocking thread.
    pub fn load(&self, wasm: &[u8]) -> Result<Compiled, LoadError> {
        let digest = Digest(sha2::Sha256::digest(wasm).into());
        if let Some(cache) = &self.cache
            && let Some(component) = cache.get(&self.wasm, digest)
        {
            // What is in the cache passed the gate; it is cheap enough to pass it again.
            gate(&component, &self.wasm)?;
            return Ok(Compiled { engine: self.clone(), component, digest, from_cache: true });
        }
        let component = match layer(wasm)? {
            Layer::Component => Component::from_binary(&self.wasm, wasm),
            Layer::Module => {
                // Before anything else reads it: `wit-component` trusts the lengths of its sections.
                wasmtime::Module::validate(&self.wasm, wasm)
                    .map_err(|e| LoadError::refused(format!("a broken or truncated core module: {e:#}")))?;
                let made = std::panic::catch_unwind(|| componentize(wasm));
                let made = made.map_err(|_| LoadError::refused("a core module whose component type cannot be read"))?;
                Component::from_binary(&self.wasm, &made?)
            }
        }
        .map_err(|e| LoadError::refused(format!("it does not compile: {e:#}")))?;
        gate(&component, &self.wasm)?;
        if let Some(cache) = &self.cache {
            cache.put(digest, &component);
        }
        Ok(Compiled { engine: self.clone(), component, digest, from_cache: false })
    }
}

fn settings(pooled: bool) -> Config {
    let mut config = Config::new();
    // The world is synchronous; without the machinery for concurrent calls a call costs half.
    config.concurrency_support(false);
    config.epoch_interruption(true);
    config.max_wasm_stack(WASM_STACK_BYTES);
    // The same blocks give the same output, on every machine.
    config.cranelift_nan_canonicalization(true);
    config.relaxed_simd_deterministic(true);
    // Names and lines for whoever has to mend the plugin.
    config.wasm_backtrace_details(WasmBacktraceDetails::Enable);
    config.wasm_backtrace_max_frames(std::num::NonZeroUsize::new(FRAMES));
    // One compilation must not take the machine from the chains.
    config.parallel_compilation(std::thread::available_parallelism().is_ok_and(|n| n.get() > 2));
    if pooled {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(INSTANCES)
            .total_core_instances(INSTANCES * 8)
            // 4 GiB of address space each, so that no access needs a check: 2 TiB of the 128 there are.
            .total_memories(INSTANCES * 2)
            .total_tables(INSTANCES * 4)
            .total_stacks(1)
            .max_core_instances_per_component(CORE_INSTANCES as u32)
            .max_memories_per_component(MEMORIES as u32)
            .max_tables_per_component(TABLES as u32)
            .max_tables_per_module(TABLES as u32)
            .max_memories_per_module(MEMORIES as u32)
            .table_elements(TABLE_ELEMENTS)
            // An empty slot keeps no page, and a plugin that went takes nothing with it.
            .linear_memory_keep_resident(0)
            .table_keep_resident(0)
            .max_unused_warm_slots(16);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    } else {
        config.memory_reservation(0).memory_guard_size(0).memory_reservation_for_growth(1 << 20);
    }
    config
}

#[derive(Debug, PartialEq)]
enum Layer {
    Component,
    Module,
}

fn layer(wasm: &[u8]) -> Result<Layer, LoadError> {
    let shown = |bytes: &[u8]| bytes.escape_ascii().to_string();
    match wasm {
        [] => Err(LoadError::refused("the file is empty")),
        [b'\0', b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => Ok(Layer::Component),
        [b'\0', b'a', b's', b'm', 1, 0, 0, 0, ..] => Ok(Layer::Module),
        [b'\0', b'a', b's', b'm', rest @ ..] => Err(LoadError::refused(format!(
            "it is WebAssembly of an unknown version (bytes {}), or cut short after {} bytes",
            alloy_primitives::hex::encode(&rest[..rest.len().min(4)]),
            wasm.len()
        ))),
        other => Err(LoadError::refused(format!(
            "not WebAssembly: it begins with \"{}\"; expected the .wasm file of a plugin, as `chainweir plugin build` makes it",
            shown(&other[..other.len().min(8)])
        ))),
    }
}

/// What `wasm32-unknown-unknown` builds is a core module; its custom section says which component it is.
fn componentize(module: &[u8]) -> Result<Vec<u8>, LoadError> {
    let (stripped, _) = wit_component::metadata::decode(module)
        .map_err(|e| LoadError::refused(format!("a broken or truncated core module: {e:#}")))?;
    if stripped.is_none() {
        return Err(LoadError::refused(
            "a core module without a component type: build it with the Chainweir SDK (`chainweir plugin build`), or make it \
             a component of world chainweir:plugin/plugin@0.1.0",
        ));
    }
    wit_component::ComponentEncoder::default()
        .module(module)
        .and_then(|encoder| encoder.validate(true).encode())
        .map_err(|e| LoadError::refused(format!("a core module that does not fit its component type: {e:#}")))
}

/// A file cut to 8 bytes compiles as a valid, empty component: what counts is what it exports.
fn gate(component: &Component, engine: &wasmtime::Engine) -> Result<(), LoadError> {
    let ty = component.component_type();
    let exports: Vec<&str> = ty.exports(engine).map(|(name, _)| name).collect();
    let spoken = |name: &&str| {
        name.strip_prefix(PROCESSOR)
            .is_some_and(|v| v.strip_prefix("0.1.").is_some_and(|patch| patch.parse::<u32>().is_ok()))
    };
    if exports.iter().any(spoken) {
        return Ok(());
    }
    let found = if exports.is_empty() { "nothing".into() } else { exports.join(", ") };
    let later = match exports.iter().find(|name| name.starts_with(PROCESSOR)) {
        Some(_) => "build it with the SDK of this host's version, or update the host",
        None => "build it with the Chainweir SDK",
    };
    Err(LoadError::refused(format!(
        "a component that exports none of {PROCESSOR}0.1.x; this host speaks {PROCESSOR_VERSION}; it exports: {found}; {later}"
    )))
}

/// Moves the epoch on by one each millisecond while any call is under way, and sleeps while none is.
pub(super) struct Ticker {
    calls: Arc<AtomicUsize>,
    thread: Thread,
}

impl Ticker {
    fn start(engine: wasmtime::EngineWeak) -> std::io::Result<Arc<Self>> {
        let calls = Arc::new(AtomicUsize::new(0));
        let seen = calls.clone();
        let handle = std::thread::Builder::new().name("plugin-clock".into()).spawn(move || {
            let mut last = Instant::now();
            loop {
                if seen.load(Ordering::SeqCst) == 0 {
                    std::thread::park_timeout(Duration::from_secs(1));
                    last = Instant::now();
                } else {
                    std::thread::sleep(TICK);
                }
                let Some(engine) = engine.upgrade() else { return };
                // On a busy machine a sleep is longer than asked: the ticks that were missed are made up for,
                // but never so many at once that a call which just began would be cut off.
                let due = (last.elapsed().as_micros() / TICK.as_micros()).min(5);
                for _ in 0..due {
                    engine.increment_epoch();
                }
                if due > 0 {
                    last = Instant::now();
                }
            }
        })?;
        Ok(Arc::new(Self { calls, thread: handle.thread().clone() }))
    }

    /// Time passes while what this returns lives.
    pub(super) fn run(&self) -> Running<'_> {
        if self.calls.fetch_add(1, Ordering::SeqCst) == 0 {
            self.thread.unpark();
        }
        Running(&self.calls)
    }
}

pub(super) struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Limits;
    use super::super::testing::{engine, hostile, hostile_wasm, patient};
    use super::*;

    fn refused(bytes: &[u8]) -> String {
        match engine().load(bytes) {
            Err(LoadError::Refused { why }) => why,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn what_is_no_plugin_is_refused_by_what_it_is() {
        let hostile = hostile_wasm();
        for (bytes, word) in [
            (b"".as_slice(), "empty"),
            (b"#!/bin/sh\n", "not WebAssembly"),
            (b"\0asm\x0d\0\x01\0", "it exports: nothing"),
            (b"\0asm\x01\0\0\0", "without a component type"),
            (b"\0asm\x01\0", "cut short"),
            (&hostile[..hostile.len() / 2], "truncated"),
        ] {
            let why = refused(bytes);
            assert!(why.contains(word), "{:?}: {why}", &bytes[..bytes.len().min(8)]);
        }
    }

    #[test]
    fn a_component_cut_short_is_refused_wherever_it_is_cut() {
        let whole = componentize(&hostile_wasm()).unwrap();
        for part in 1..40 {
            refused(&whole[..whole.len() * part / 40]);
        }
        assert!(engine().load(&whole).is_ok());
    }

    #[test]
    fn another_version_of_the_interface_is_named() {
        let mut other = componentize(&hostile_wasm()).unwrap();
        let (from, to) = (b"chainweir:plugin/processor@0.1.0", b"chainweir:plugin/processor@0.9.0");
        let places: Vec<usize> =
            other.windows(from.len()).enumerate().filter(|(_, w)| w == from).map(|(i, _)| i).collect();
        places.into_iter().for_each(|i| other[i..i + to.len()].copy_from_slice(to));
        let why = refused(&other);
        assert!(why.contains("processor@0.9.0") && why.contains("speaks 0.1.0"), "{why}");
    }

    #[test]
    fn a_manifest_is_checked_word_by_word() {
        assert_eq!(hostile().describe("{}", &patient()).unwrap().name.as_str(), "hostile");
        for (evil, word) in [
            ("bad-name", "is not a name"),
            ("bad-layout", "batch layout 2"),
            ("bad-schema", "schema is not JSON"),
            ("two-alike", "two streams are called 'one'"),
            ("bad-address", "19 bytes"),
            ("bad-topic", "31 bytes"),
            ("five-topics", "5 lists of topics"),
            ("bad-abi", "not an event in human-readable ABI"),
            ("bad-set", "is not a name"),
            ("wrong-kind", "conditions on logs"),
            ("many-streams", "60000 streams; at most 256"),
            ("many-subscriptions", "60000 subscriptions; at most 1024"),
            ("many-addresses", "combinations of addresses and topics; at most"),
            ("long-schema", "its schema is longer than 65536 bytes"),
            ("describe-trap", "unreachable"),
            ("describe-state", "not in `describe`"),
            ("describe-loop", "deadline_ms = 2000"),
        ] {
            match hostile().describe(&format!(r#"{{"evil":"{evil}"}}"#), &Limits::default()) {
                Err(LoadError::Refused { why }) => assert!(why.contains(word), "{evil}: {why}"),
                other => panic!("{evil}: {other:?}"),
            }
        }
    }

    #[test]
    fn compiled_code_is_found_again_and_a_bad_entry_is_a_miss() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("code");
        let wasm = hostile_wasm();
        let load = || Engine::new(Some(cache.clone())).unwrap().load(&wasm).unwrap();
        assert!(!load().from_cache());
        assert!(load().from_cache());
        let entry = std::fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
        let good = std::fs::read(&entry).unwrap();
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        for bad in [&good[..good.len() - 1], &good[..20], b"", &flipped] {
            std::fs::write(&entry, bad).unwrap();
            let again = load();
            assert!(!again.from_cache());
            again.describe("{}", &patient()).unwrap();
            assert!(load().from_cache(), "a good entry took its place");
        }
        std::fs::set_permissions(&cache, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(Engine::new(Some(cache)), Err(LoadError::Again { why }) if why.contains("chmod 700")));
    }
}
