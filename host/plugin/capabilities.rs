//! What a plugin may reach from inside its sandbox, and how much of it: the data behind every host call, the
//! ceilings on memory, and a WASI with nothing in it. Knows nothing of batches and steps.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use wasmtime::component::{Linker, Resource, ResourceTable};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{DynPollable, OutputStream, Pollable, StreamResult, subscribe};
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxView, WasiView};

use super::engine::{CORE_INSTANCES, MEMORIES, TABLE_ELEMENTS, TABLES};
use super::overlay::{Denied, Overlay};

/// Of one log line; the rest is cut.
const LINE_BYTES: usize = 2048;
/// Of what a plugin said in one call, kept for the message if the call fails.
const SAID_BYTES: usize = 2048;
const RANDOM_BYTES: u64 = 1 << 20;
const RESOURCES: usize = 10_000;
const MIB: usize = 1 << 20;

/// An import that a plugin can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Capability {
    Config,
    State,
    Log,
    Tracking,
}

impl Capability {
    pub const ALL: [Self; 4] = [Self::Config, Self::State, Self::Log, Self::Tracking];

    /// As in the configuration, and as the import is called.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::State => "state",
            Self::Log => "log",
            Self::Tracking => "tracking",
        }
    }
}

/// What a plugin is given. A call of anything else stops it with a message that names the import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Grants(pub BTreeSet<Capability>);

impl Default for Grants {
    fn default() -> Self {
        Self(Capability::ALL.into())
    }
}

impl Grants {
    pub fn allows(&self, capability: Capability) -> bool {
        self.0.contains(&capability)
    }
}

impl std::fmt::Display for Grants {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|c| c.as_str()).collect();
        f.write_str(&if names.is_empty() { "nothing".into() } else { names.join(", ") })
    }
}

/// Why the host ended a call. Travels as the cause of the trap.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Stopped {
    #[error("the journal could not be read: {0}")]
    Journal(String),
    /// A ceiling of the whole step, reached after earlier batches had used a part of it.
    #[error("{0}")]
    StepCeiling(String),
    #[error("{0}")]
    Ceiling(String),
}

/// One plugin's way to the log, shared by all its instances so that a new instance brings no new allowance.
#[derive(Debug)]
pub(super) struct LogGate {
    who: String,
    per_second: u32,
    since: Instant,
    written: u32,
    dropped: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

impl LogGate {
    pub(super) fn new(who: String, per_second: u32) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { who, per_second, since: Instant::now(), written: 0, dropped: 0 }))
    }

    /// Whether the line was written.
    pub(super) fn write(&mut self, level: Level, message: &str) -> bool {
        if self.since.elapsed() >= Duration::from_secs(1) {
            if self.dropped > 0 {
                tracing::warn!(target: "plugin", plugin = self.who, lines = self.dropped, "log lines over the limit were dropped");
            }
            (self.since, self.written, self.dropped) = (Instant::now(), 0, 0);
        }
        if self.written >= self.per_second {
            self.dropped += 1;
            return false;
        }
        self.written += 1;
        let line = one_line(message, LINE_BYTES);
        match level {
            Level::Error => tracing::error!(target: "plugin", plugin = self.who, "{line}"),
            Level::Warn => tracing::warn!(target: "plugin", plugin = self.who, "{line}"),
            Level::Info => tracing::info!(target: "plugin", plugin = self.who, "{line}"),
            Level::Debug => tracing::debug!(target: "plugin", plugin = self.who, "{line}"),
        }
        true
    }
}

/// A plugin must not write lines that look like the host's, nor move the cursor of a terminal.
pub(super) fn one_line(text: &str, max_bytes: usize) -> String {
    let mut line = String::with_capacity(text.len().min(max_bytes));
    for c in text.chars() {
        if line.len() >= max_bytes {
            line.push_str(" ...");
            break;
        }
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// The end of what a plugin wrote to standard output and error, and its log lines of level error, in one call.
#[derive(Clone, Default)]
pub(super) struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    fn add(&self, bytes: &[u8]) {
        let mut said = self.0.lock().unwrap_or_else(|e| e.into_inner());
        said.extend_from_slice(&bytes[bytes.len().saturating_sub(SAID_BYTES)..]);
        let excess = said.len().saturating_sub(SAID_BYTES);
        said.drain(..excess);
    }
    pub(super) fn take(&self) -> String {
        let said = std::mem::take(&mut *self.0.lock().unwrap_or_else(|e| e.into_inner()));
        String::from_utf8_lossy(&said).trim().to_string()
    }
}

impl IsTerminal for Said {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Said {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        // The synchronous WASI takes `p2_stream`; nothing is ever written here.
        Box::new(tokio::io::sink())
    }
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Said {
    async fn ready(&mut self) {}
}

impl OutputStream for Said {
    fn write(&mut self, bytes: bytes::Bytes) -> StreamResult<()> {
        self.add(&bytes);
        Ok(())
    }
    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }
    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(64 << 10)
    }
}

/// The time of the block, in seconds since 1970. It stands still within a call.
#[derive(Clone, Default)]
struct BlockClock(Arc<AtomicU64>);

impl HostWallClock for BlockClock {
    fn resolution(&self) -> Duration {
        Duration::from_secs(1)
    }
    fn now(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

impl HostMonotonicClock for BlockClock {
    fn resolution(&self) -> u64 {
        1_000_000_000
    }
    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed).saturating_mul(1_000_000_000)
    }
}

/// A stream of bytes that follows from the block's hash: SHA-256 of hash and counter.
#[derive(Default)]
struct BlockRandom {
    seed: [u8; 32],
    drawn: u64,
}

impl BlockRandom {
    fn bytes(&mut self, len: u64) -> wasmtime::Result<Vec<u8>> {
        if len > RANDOM_BYTES {
            return Err(Stopped::Ceiling(format!("more than {RANDOM_BYTES} random bytes at a time")).into());
        }
        let len = len as usize;
        let mut bytes = Vec::with_capacity(len + 32);
        while bytes.len() < len {
            let mut hash = sha2::Sha256::new();
            hash.update(self.seed);
            hash.update(self.drawn.to_le_bytes());
            bytes.extend_from_slice(&hash.finalize());
            self.drawn += 1;
        }
        bytes.truncate(len);
        Ok(bytes)
    }
    fn u64(&mut self) -> wasmtime::Result<u64> {
        let bytes = self.bytes(8)?;
        Ok(bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
    }
}

/// The data of one instance's store.
pub(super) struct Host {
    wasi: WasiCtx,
    resources: ResourceTable,
    clock: BlockClock,
    random: BlockRandom,
    memory: Memory,
    said: Said,
    log: Arc<Mutex<LogGate>>,
    config: Arc<str>,
    /// There while a step is under way.
    pub(super) state: Option<Overlay>,
}

impl Host {
    pub(super) fn new(memory_mib: u32, config: Arc<str>, log: Arc<Mutex<LogGate>>) -> Self {
        let (clock, said) = (BlockClock::default(), Said::default());
        let mut wasi = WasiCtx::builder();
        // Nothing else is set: no folder, no variable, no argument, no network.
        wasi.stdout(said.clone()).stderr(said.clone());
        wasi.wall_clock(clock.clone()).monotonic_clock(clock.clone());
        wasi.allow_tcp(false).allow_udp(false).allow_ip_name_lookup(false);
        let mut resources = ResourceTable::new();
        resources.set_max_capacity(RESOURCES);
        Self {
            wasi: wasi.build(),
            resources,
            clock,
            random: BlockRandom::default(),
            memory: Memory { limit_mib: memory_mib, used: 0, last: 0, refused: None },
            said,
            log,
            config,
            state: None,
        }
    }

    /// Before a call: the world as the block `hash` of `time` has it.
    pub(super) fn begin(&mut self, time: u64, hash: [u8; 32]) {
        self.clock.0.store(time, Ordering::Relaxed);
        self.random = BlockRandom { seed: hash, drawn: 0 };
        self.memory.refused = None;
        self.said.take();
    }

    pub(super) fn limiter(&mut self) -> &mut dyn wasmtime::ResourceLimiter {
        &mut self.memory
    }
    /// Bytes of linear memory, all memories together.
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory.used
    }
    /// The ceiling that a growth of this call was refused by.
    pub(super) fn refused(&self) -> Option<&str> {
        self.memory.refused.as_deref()
    }
    pub(super) fn said(&self) -> String {
        self.said.take()
    }
    /// What was printed in a call that went well is worth a look to whoever writes the plugin.
    pub(super) fn print_said(&self) {
        let said = self.said.take();
        if !said.is_empty() {
            self.gate(|log| said.lines().all(|line| log.write(Level::Debug, line)));
        }
    }
    fn gate<R>(&self, act: impl FnOnce(&mut LogGate) -> R) -> R {
        // A counter and a clock: whoever panicked while holding it left nothing half done.
        act(&mut self.log.lock().unwrap_or_else(|e| e.into_inner()))
    }

    pub(super) fn config(&self) -> String {
        self.config.to_string()
    }
    pub(super) fn log(&self, level: Level, message: &str) {
        if level == Level::Error {
            self.said.add(message.as_bytes());
            self.said.add(b"\n");
        }
        self.gate(|log| log.write(level, message));
    }
    pub(super) fn with_state<R>(&mut self, act: impl FnOnce(&mut Overlay) -> Result<R, Denied>) -> wasmtime::Result<R> {
        let Some(state) = &mut self.state else {
            return Err(
                Stopped::Ceiling("state is only there while events are processed, not in `describe`".into()).into()
            );
        };
        let done = act(state);
        done.map_err(|denied| {
            match denied {
                Denied::Journal(why) => Stopped::Journal(why),
                Denied::TooMuch(why) if state.holds_earlier_batches() => Stopped::StepCeiling(why),
                Denied::TooMuch(why) => Stopped::Ceiling(why),
            }
            .into()
        })
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.resources }
    }
}

struct Memory {
    limit_mib: u32,
    used: usize,
    last: usize,
    refused: Option<String>,
}

impl wasmtime::ResourceLimiter for Memory {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        if self.used.saturating_add(more) > self.limit_mib as usize * MIB {
            self.refused = Some(format!("it needed more than memory_mib = {}", self.limit_mib));
            return Ok(false);
        }
        self.used += more;
        self.last = more;
        Ok(true)
    }
    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.used -= std::mem::take(&mut self.last);
        Ok(())
    }
    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let fits = desired <= TABLE_ELEMENTS;
        if !fits {
            self.refused = Some(format!("it needed a table of more than {TABLE_ELEMENTS} elements"));
        }
        Ok(fits)
    }
    fn table_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        Ok(())
    }
    fn instances(&self) -> usize {
        CORE_INSTANCES
    }
    fn tables(&self) -> usize {
        TABLES
    }
    fn memories(&self) -> usize {
        MEMORIES
    }
}

struct AtOnce;

#[wasmtime_wasi::async_trait]
impl Pollable for AtOnce {
    async fn ready(&mut self) {}
}

/// WASI as guests of other languages need it to start, with nothing behind it. What would wait or differ from
/// run to run is replaced: a sleep ends at once (the epoch deadline bounds wasm, not a host that sleeps for
/// it), and randomness follows from the block.
pub(super) fn link_wasi(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_sync(linker)?;
    linker.allow_shadowing(true);
    let mut clock = linker.instance("wasi:clocks/monotonic-clock@0.2.12")?;
    for name in ["subscribe-duration", "subscribe-instant"] {
        clock.func_wrap(name, |mut store, (_,): (u64,)| -> wasmtime::Result<(Resource<DynPollable>,)> {
            let host: &mut Host = store.data_mut();
            let now = host.resources.push(AtOnce)?;
            Ok((subscribe(&mut host.resources, now)?,))
        })?;
    }
    let mut random = linker.instance("wasi:random/random@0.2.12")?;
    random.func_wrap("get-random-bytes", |mut store, (len,): (u64,)| Ok((store.data_mut().random.bytes(len)?,)))?;
    random.func_wrap("get-random-u64", |mut store, (): ()| Ok((store.data_mut().random.u64()?,)))?;
    let mut insecure = linker.instance("wasi:random/insecure@0.2.12")?;
    insecure.func_wrap("get-insecure-random-bytes", |mut store, (len,): (u64,)| {
        Ok((store.data_mut().random.bytes(len)?,))
    })?;
    insecure.func_wrap("get-insecure-random-u64", |mut store, (): ()| Ok((store.data_mut().random.u64()?,)))?;
    let mut seed = linker.instance("wasi:random/insecure-seed@0.2.12")?;
    seed.func_wrap("insecure-seed", |mut store, (): ()| {
        let random = &mut store.data_mut().random;
        Ok(((random.u64()?, random.u64()?),))
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_a_line() {
        assert_eq!(one_line("a\nb\x1b[2J\u{9b}é", 100), "a\\nb\\u{1b}[2J\\u{9b}é");
        assert_eq!(one_line(&"x".repeat(100), 10), "xxxxxxxxxx ...");
    }

    #[test]
    fn lines_over_the_limit_are_counted_and_dropped() {
        let gate = LogGate::new("p".into(), 3);
        let mut gate = gate.lock().unwrap();
        // The window is held open, however slow the machine is.
        gate.since = Instant::now() + Duration::from_secs(60);
        assert_eq!((0..10).filter(|_| gate.write(Level::Info, "x")).count(), 3);
        assert_eq!(gate.dropped, 7);
    }

    #[test]
    fn randomness_follows_from_the_block() {
        let mut a = BlockRandom { seed: [1; 32], drawn: 0 };
        let mut b = BlockRandom { seed: [1; 32], drawn: 0 };
        let mut c = BlockRandom { seed: [2; 32], drawn: 0 };
        let first = a.bytes(70).unwrap();
        assert_eq!(first, b.bytes(70).unwrap());
        assert_ne!(first, c.bytes(70).unwrap());
        assert_ne!(first, a.bytes(70).unwrap());
        assert!(a.bytes(RANDOM_BYTES + 1).is_err());
    }

    #[test]
    fn what_was_said_is_bounded_and_keeps_its_end() {
        let said = Said::default();
        said.add(&[b'a'; 10_000]);
        said.add(b"the end");
        let text = said.take();
        assert!(text.len() <= SAID_BYTES && text.ends_with("the end"));
        assert_eq!(said.take(), "");
    }
}
