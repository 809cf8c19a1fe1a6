//! What the figures stand on: transfers of a made-up chain, that chain as a [`Source`], the plugin, a router that
//! runs over them, and a receiver of webhooks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, Bytes, U256, b256};
use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};

use crate::config::Config;
use crate::model::{Block, BlockRef, ChainId, Header, Log, Wanted};
use crate::router;
use crate::source::{Range, ReadError, Source, Tag};

/// `tests/guests/filter`, built.
pub const FILTER: &[u8] = include_bytes!("filter.wasm");
/// Recorded on a chain of our own: some 300 blocks, with reorgs.
pub const RECORDING: &[u8] = include_bytes!("../../../examples/quickstart/chain.ndjson.gz");
pub const CHAIN: ChainId = ChainId(31_337);
/// `keccak256("Transfer(address,address,uint256)")`
pub const TRANSFER: B256 = b256!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");
/// Topic 2 of the logs that the filter passes.
pub const WANTED: B256 = B256::repeat_byte(0xdd);
/// For the real work to come: more than any of it takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Lab {
    pub smoke: bool,
    pub plugin: Option<PathBuf>,
    pub blocks: Option<PathBuf>,
    folder: tempfile::TempDir,
}

impl Lab {
    pub fn new(within: &Path, smoke: bool, plugin: Option<PathBuf>, blocks: Option<PathBuf>) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir_in(within).with_context(|| format!("cannot write into {}", within.display()))?;
        Ok(Self { smoke, plugin, blocks, folder })
    }

    /// `full`, or of a smoke run a little.
    pub fn either<T>(&self, full: T, smoke: T) -> T {
        if self.smoke { smoke } else { full }
    }

    /// A new folder.
    pub fn dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.folder.path().join(name);
        std::fs::create_dir_all(dir.join("plugins"))?;
        Ok(dir)
    }

    /// Each one's best round, ns an event. Rounds take turns, so that a neighbour's hour is everybody's. What is called
    /// says how long the part that counts took.
    pub fn best<const N: usize>(&self, events: usize, mut acts: [&mut dyn FnMut() -> Duration; N]) -> [f64; N] {
        let (rounds, round) = self.either((20, Duration::from_millis(50)), (1, Duration::ZERO));
        let mut best = [f64::MAX; N];
        for _ in 0..rounds {
            for (act, best) in acts.iter_mut().zip(&mut best) {
                let (began, mut counted, mut calls) = (Instant::now(), Duration::ZERO, 0u32);
                while calls == 0 || began.elapsed() < round {
                    counted += act();
                    calls += 1;
                }
                *best = best.min(counted.as_nanos() as f64 / f64::from(calls) / events as f64);
            }
        }
        best
    }
}

pub fn timed<T>(act: impl FnOnce() -> T) -> Duration {
    let began = Instant::now();
    std::hint::black_box(act());
    began.elapsed()
}

pub fn median(mut values: Vec<f64>) -> f64 {
    percentile(&mut values, 50)
}

pub fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() * percent / 100).min(values.len() - 1)]
}

/// An ERC-20 transfer. One that is wanted goes to [`WANTED`], and is of more than fifty tokens of 18 decimals.
pub fn transfer(index: u32, token: Address, wanted: bool) -> Log {
    let value = U256::from(if wanted { 60_000_000_000_000_000_000_u128 } else { 1 });
    Log {
        index,
        transaction_index: index,
        transaction_hash: B256::left_padding_from(&index.to_be_bytes()),
        address: token,
        topics: vec![TRANSFER, B256::repeat_byte(0x11), if wanted { WANTED } else { B256::repeat_byte(0x22) }],
        data: Bytes::from(value.to_be_bytes_vec()),
    }
}

/// `logs` transfers, of which one in `one_in` is wanted.
pub fn transfers(logs: u32, one_in: u32) -> Vec<Log> {
    (0..logs).map(|n| transfer(n, Address::repeat_byte(8), n % one_in == 0)).collect()
}

pub fn block_ref(number: u64) -> BlockRef {
    // The height is in the hash, spread over it as a real one's bits are.
    let hash = |n: u64| {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        hash[24..].copy_from_slice(&n.to_be_bytes());
        B256::from(hash)
    };
    let parent = if number == 0 { B256::ZERO } else { hash(number - 1) };
    BlockRef { chain: CHAIN, number, hash: hash(number), parent, time: 1_700_000_000 + 12 * number }
}

pub fn block(number: u64, logs: Vec<Log>) -> Block {
    let header = Header {
        at: block_ref(number),
        gas_used: 0,
        gas_limit: 30_000_000,
        base_fee: Some(1),
        beneficiary: Address::ZERO,
        transaction_count: None,
    };
    Block { header, transactions: vec![], transfers: vec![], logs }
}

/// A chain in memory, decoded already: what a source costs is not in the figures.
pub struct Memory {
    state: Mutex<State>,
    changed: Notify,
    /// Blocks on top of a final one.
    depth: u64,
    /// Blocks in one answer to `range`.
    blocks_at_once: u64,
}

#[derive(Default)]
struct State {
    blocks: Vec<Block>,
    /// When the first range was asked for.
    asked: Option<Instant>,
    cpu_then: Duration,
}

impl Memory {
    pub fn new(blocks: Vec<Block>, depth: u64, blocks_at_once: u64) -> Arc<Self> {
        let state = Mutex::new(State { blocks, ..State::default() });
        Arc::new(Self { state, changed: Notify::new(), depth, blocks_at_once })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The next block is there; returns the moment at which the source said so.
    pub fn push(&self, logs: Vec<Log>) -> Instant {
        {
            let blocks = &mut self.state().blocks;
            blocks.push(block(blocks.len() as u64, logs));
        }
        let now = Instant::now();
        self.changed.notify_one();
        now
    }

    pub fn tip(&self) -> u64 {
        self.state().blocks.len() as u64 - 1
    }

    /// When the first range was asked for, and the processor time of this process then.
    pub fn asked(&self) -> Option<(Instant, Duration)> {
        let state = self.state();
        state.asked.map(|at| (at, state.cpu_then))
    }

    fn at(&self, number: u64) -> Result<BlockRef, ReadError> {
        let known = number < self.state().blocks.len() as u64;
        known.then(|| block_ref(number)).ok_or_else(|| ReadError::Unknown { what: format!("block {number}") })
    }
}

#[async_trait::async_trait]
impl Source for Memory {
    fn chain(&self) -> ChainId {
        CHAIN
    }
    async fn head(&self) -> Result<BlockRef, ReadError> {
        self.at(self.tip())
    }
    async fn tagged(&self, _: Tag) -> Result<Option<BlockRef>, ReadError> {
        self.at(self.tip().saturating_sub(self.depth)).map(Some)
    }
    async fn by_hash(&self, hash: B256) -> Result<BlockRef, ReadError> {
        let mut number = [0; 8];
        number.copy_from_slice(&hash[24..]);
        self.at(u64::from_be_bytes(number))
    }
    async fn by_number(&self, number: u64) -> Result<BlockRef, ReadError> {
        self.at(number)
    }
    async fn block(&self, at: &BlockRef, _: &Wanted) -> Result<Block, ReadError> {
        self.at(at.number)?;
        Ok(self.state().blocks[at.number as usize].clone())
    }
    /// Each block's logs are handed out once, so that copying them is not in the figures either.
    async fn range(&self, from: u64, to: u64, _: &Wanted) -> Result<Range, ReadError> {
        let to = to.min(from + self.blocks_at_once - 1);
        let at = self.at(to)?;
        let mut state = self.state();
        if state.asked.is_none() {
            (state.asked, state.cpu_then) = (Some(Instant::now()), processor_time());
        }
        let blocks = state.blocks[from as usize..=to as usize].iter_mut();
        let blocks = blocks.map(|b| Block {
            header: b.header.clone(),
            transactions: vec![],
            transfers: vec![],
            logs: std::mem::take(&mut b.logs),
        });
        Ok(Range { blocks: blocks.collect(), to: at })
    }
    async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// User and system time of this process so far. Zero where the system does not say (only Linux is asked).
pub fn processor_time() -> Duration {
    // proc(5): fields 14 and 15, counted behind the name, in ticks of 10 ms.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
}

/// A configuration for the chain in memory, with the filter set to [`WANTED`].
pub fn config(dir: &Path, more: &str) -> anyhow::Result<Config> {
    config_at(dir, "http://127.0.0.1:1", more)
}

/// The same, for a node.
pub fn config_at(dir: &Path, rpc: &str, more: &str) -> anyhow::Result<Config> {
    let text = format!(
        "[http]\nlisten = \"off\"\n[chain.bench]\nrpc = \"{rpc}\"\nstart = 0\n\
         [plugin.filter]\nconfig = {{ to = \"{WANTED}\" }}\n{more}"
    );
    Config::parse(&text, dir, "chainweir.toml").map_err(|mistakes| anyhow::anyhow!("{mistakes:?}"))
}

/// The real router, with the source in memory.
pub async fn router(config: Config, chain: &Arc<Memory>) -> anyhow::Result<router::Running> {
    let given = BTreeMap::from([("bench".to_owned(), chain.clone() as Arc<dyn Source>)]);
    router::start_with(config, given).await.map_err(anyhow::Error::msg)
}

pub async fn stop(running: router::Running) -> anyhow::Result<()> {
    running.stop().await.map_err(anyhow::Error::msg)
}

/// Something that differs in its bytes, and so in its digest, and does the same.
pub fn variant(wasm: &[u8], number: u32) -> Vec<u8> {
    // A custom section: id 0, its length, a name's length, the name.
    let mut bytes = wasm.to_vec();
    bytes.extend_from_slice(&[0, 5, 4]);
    bytes.extend_from_slice(format!("{number:04}").as_bytes());
    bytes
}

/// Writes beside and renames, so that the watch sees a whole file.
pub fn drop_plugin(dir: &Path, name: &str, wasm: &[u8]) -> std::io::Result<()> {
    let (part, file) = (dir.join("part"), dir.join("plugins").join(name));
    std::fs::write(&part, wasm)?;
    std::fs::rename(part, file)
}

/// Accepts every POST on loopback, and tells when it began to arrive.
pub struct Receiver {
    pub address: SocketAddr,
    pub arrived: mpsc::UnboundedReceiver<Instant>,
    server: tokio::task::JoinHandle<()>,
}

impl Receiver {
    pub async fn start() -> anyhow::Result<Self> {
        let (tell, arrived) = mpsc::unbounded_channel();
        let handler = move |body: axum::body::Bytes| {
            // The measurement may have ended.
            tell.send(Instant::now()).ok();
            drop(body);
            std::future::ready(axum::http::StatusCode::NO_CONTENT)
        };
        let app = axum::Router::new().route("/", axum::routing::post(handler));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(async move { drop(axum::serve(listener, app).await) });
        Ok(Self { address, arrived, server })
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub async fn next(&mut self) -> anyhow::Result<Instant> {
        let next = tokio::time::timeout(PATIENCE, self.arrived.recv()).await;
        next.context("no webhook came")?.context("the receiver ended")
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}
