//! A live node over JSON-RPC: WebSocket or IPC (woken by `newHeads`) or HTTP (polling). `node -> [rpc] -> follower`.
//!
//! Who is asked is decided in [`pool`](super::pool); who tells of heads is listened to in `rpc_watch`; runs of blocks are in
//! `rpc_range`. What is true is proven by headers before it leaves: a subscription's header too, which then needs no question.
//! Round trips from a head to its events are one: the header came with the notification (or with the poll), and what is
//! wanted of the block is asked for side by side, by its hash.
//! Knows nothing of which block is canonical: two answers may be of two branches.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, U64};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::{Notify, mpsc};

use super::headers::Headers;
use super::health::Kind as Question;
use super::limits::Importance;
use super::pool::Pool;
use super::record::Line;
use super::transport::{Endpoint, Fail, Provider, Setting};
use super::wire::{self, Parts, Trouble, WireBlock};
use super::{Kind, Open, Range, ReadError, Source, Tag, Until, Whereabouts};
use crate::model::{Block, BlockRef, ChainId, ProviderStatus, Transaction, Transfer, Wanted};
use crate::proof::Quirks;

pub const KIND: Kind = Kind {
    name: "rpc",
    options: &[
        (
            "rpc",
            "a node, or a list in order of preference; each a URL (`wss`, `ws`, `https`, `http`, `ipc`, or a socket's path), or \
             `{ url, requests_per_second, concurrency, headers }`",
        ),
        ("agree", "so many providers must name the same hash before a head counts; 1"),
        (
            "verify",
            "`receipts`: logs are proven by the block's receipts; `bloom`: by its bloom and their order alone, which is cheaper, \
             and believes a log's data and transaction; \"receipts\"",
        ),
        ("poll_ms", "longest time between two looks at the head; 1000 over HTTP, 5000 beside a subscription"),
        ("timeout_ms", "longest wait for one answer, where nobody else can be asked; 20000"),
        ("max_range", "most blocks in one eth_getLogs; 2000, less where the node refuses it"),
        ("headers", "HTTP headers for every request to every provider, and for the opening of a WebSocket, as a table"),
        ("quirks", "departures of this chain from Ethereum's rules, by name; known ones are set by chain id"),
    ],
    open: |open| Box::pin(async move { Ok(Arc::new(Rpc::open(open).await?) as Arc<dyn Source>) }),
};

/// Questions under way to one node at a time, within one operation.
pub(super) const AT_ONCE: usize = 32;
/// So long providers may differ about a head before it is told as trouble: a slow one hears of a block within a second or two.
const AGREE_WITHIN: Duration = Duration::from_secs(30);
/// Looks again so soon when a head is not agreed upon yet.
const AGREE_AGAIN: Duration = Duration::from_millis(100);

#[derive(Clone, Copy)]
pub(super) enum Place {
    Hash(B256),
    Number(u64),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hash(hash) => write!(f, "block {hash}"),
            Self::Number(number) => write!(f, "block {number}"),
        }
    }
}

/// How logs are proven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Verify {
    #[default]
    Receipts,
    Bloom,
}

pub struct Rpc {
    inner: Arc<Inner>,
    watches: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Rpc {
    fn drop(&mut self) {
        self.watches.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

pub(super) struct Inner {
    pub(super) name: String,
    pub(super) chain: ChainId,
    pub(super) quirks: Quirks,
    pub(super) verify: Verify,
    pub(super) pool: Pool,
    pub(super) headers: Headers,
    agree: usize,
    poll: Option<Duration>,
    pub(super) max_range: u64,
    /// Blocks asked for in one eth_getLogs now: halved when refused, grows again slowly.
    pub(super) span: AtomicU64,
    /// Of a hundred final blocks, so many may hold what is wanted, as it was lately.
    pub(super) dense: AtomicU64,
    pub(super) wake: Notify,
    pub(super) heads: Mutex<Heads>,
    doubts: Mutex<HashSet<String>>,
}

#[derive(Default)]
pub(super) struct Heads {
    /// The newest that left here, or that all agree upon.
    pub last: Option<BlockRef>,
    /// Told by the leader's subscription, and not taken yet.
    pub told: Option<BlockRef>,
    /// Since when there is one that not enough agree upon.
    differ: Option<Instant>,
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<UrlOrTable>),
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum UrlOrTable {
    Url(String),
    Table(ProviderTable),
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderTable {
    url: String,
    requests_per_second: Option<toml::Value>,
    concurrency: Option<usize>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

fn option<T: serde::de::DeserializeOwned>(open: &Open, key: &str) -> Result<Option<T>, ReadError> {
    let Some(value) = open.table.get(key) else { return Ok(None) };
    // The value may be a URL with a key in it: not repeated.
    value
        .clone()
        .try_into()
        .map(Some)
        .map_err(|_| ReadError::Halt { why: format!("[chain.{}]: `{key}` has a value of the wrong type", open.name) })
}

fn header_map(headers: BTreeMap<String, String>) -> Result<reqwest::header::HeaderMap, String> {
    let mut map = reqwest::header::HeaderMap::new();
    for (name, value) in headers {
        let name = reqwest::header::HeaderName::try_from(name).map_err(|e| format!("`headers`: {e}"))?;
        let mut value = reqwest::header::HeaderValue::try_from(value)
            .map_err(|_| format!("`headers`: the value of {name} has characters that a header cannot hold"))?;
        value.set_sensitive(true);
        map.insert(name, value);
    }
    Ok(map)
}

fn setting(told: UrlOrTable, common: &reqwest::header::HeaderMap) -> Result<Setting, String> {
    let table = match told {
        UrlOrTable::Url(url) => {
            ProviderTable { url, requests_per_second: None, concurrency: None, headers: BTreeMap::new() }
        }
        UrlOrTable::Table(table) => table,
    };
    let per_second = match table.requests_per_second {
        None => None,
        Some(toml::Value::Integer(n)) if n > 0 => Some(n as f64),
        Some(toml::Value::Float(n)) if n > 0.0 => Some(n),
        Some(_) => return Err("`requests_per_second` is a number above 0".into()),
    };
    let mut headers = common.clone();
    headers.extend(header_map(table.headers)?);
    Ok(Setting { url: table.url, per_second, concurrency: table.concurrency, headers })
}

impl Rpc {
    /// Connects to the first provider that answers; learns the chain id from it where none is expected.
    pub async fn open(open: Open) -> Result<Self, ReadError> {
        // Fails where another part of the process was first: any provider that is set will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let halt = |why: String| ReadError::Halt { why: format!("[chain.{}]: {why}", open.name) };
        let told = match option::<OneOrMany>(&open, "rpc")? {
            Some(OneOrMany::One(url)) => vec![UrlOrTable::Url(url)],
            Some(OneOrMany::Many(urls)) if !urls.is_empty() => urls,
            _ => return Err(halt("`rpc` is missing: give the URL of a node".into())),
        };
        let timeout = Duration::from_millis(option(&open, "timeout_ms")?.unwrap_or(20_000).max(1));
        let max_range = option::<u64>(&open, "max_range")?.unwrap_or(2_000).max(1);
        let verify = match option::<String>(&open, "verify")?.as_deref() {
            None | Some("receipts") => Verify::Receipts,
            Some("bloom") => Verify::Bloom,
            Some(other) => return Err(halt(format!("`verify` is {other:?}: give \"receipts\" or \"bloom\""))),
        };
        let common = header_map(option(&open, "headers")?.unwrap_or_default()).map_err(halt)?;
        let mut providers = Vec::new();
        for (index, told) in told.into_iter().enumerate() {
            let setting = setting(told, &common).map_err(halt)?;
            providers.push(Arc::new(Provider::new(index, setting, timeout, open.expect).map_err(halt)?));
        }
        let agree = option::<usize>(&open, "agree")?.unwrap_or(1).max(1);
        if agree > providers.len() {
            return Err(halt(format!("`agree` is {agree}, but there are {} providers", providers.len())));
        }
        let chain = first_chain(&providers).await;
        let chain = match (chain, open.expect) {
            (Ok(chain), _) => chain,
            (Err(Fail::WrongChain(why)), _) => return Err(halt(why)),
            // The chain is known; its providers may come back.
            (Err(_), Some(expected)) => expected,
            (Err(fail), None) => return Err(to_read_error(fail)),
        };
        let mut quirks = Quirks::of(chain);
        for name in option::<Vec<String>>(&open, "quirks")?.unwrap_or_default() {
            if !quirks.enable(&name) {
                return Err(halt(format!("there is no quirk {name:?}; there are: {}", Quirks::names())));
            }
        }
        providers.iter().for_each(|p| p.expect(chain));
        let poll = option::<u64>(&open, "poll_ms")?.map(|ms| Duration::from_millis(ms.max(10)));
        let inner = Arc::new(Inner {
            pool: Pool::new(open.name.clone(), providers),
            name: open.name,
            chain,
            quirks,
            verify,
            headers: Headers::default(),
            agree,
            poll,
            max_range,
            span: AtomicU64::new(max_range),
            dense: AtomicU64::new(0),
            wake: Notify::new(),
            heads: Mutex::default(),
            doubts: Mutex::new(HashSet::new()),
        });
        let watches = (0..inner.pool.members.len()).map(|i| tokio::spawn(inner.clone().attend(i))).collect();
        Ok(Self { inner, watches })
    }

    /// A block as the node tells it, verified whole: what `chainweir record` writes.
    pub async fn record(&self, at: &BlockRef) -> Result<Line, ReadError> {
        let (hash, number) = (at.hash, at.number);
        self.inner
            .with(Question::Range, format!("block {number} ({hash})"), move |inner, ep| {
                async move {
                    let mut wanted = Wanted::all();
                    // State-sync logs are in no receipt at some nodes.
                    wanted.receipts = true;
                    let fetched = inner.fetch(&ep, Place::Hash(hash), &wanted).await?;
                    let line = fetched.line.clone();
                    inner.finish(fetched, &wanted)?;
                    Ok(line)
                }
                .boxed()
            })
            .await
    }
}

/// The chain of the first that answers; the next one is asked soon where one hangs.
async fn first_chain(providers: &[Arc<Provider>]) -> Result<ChainId, Fail> {
    let asked = providers.iter().enumerate().map(|(i, provider)| async move {
        tokio::time::sleep(Duration::from_millis(500) * u32::try_from(i).unwrap_or(u32::MAX)).await;
        provider.asked(Importance::Head, providers.len() == 1).chain().await
    });
    let mut answers = asked.collect::<futures::stream::FuturesUnordered<_>>();
    let mut failed = Fail::Dead("no provider".into());
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(chain) => return Ok(chain),
            // A mistake of the configuration is worth more than an outage.
            Err(fail) if !matches!(failed, Fail::WrongChain(_)) => failed = fail,
            Err(_) => {}
        }
    }
    Err(failed)
}

fn to_read_error(fail: Fail) -> ReadError {
    match fail {
        Fail::Dead(why) | Fail::Other(why) => ReadError::Again { why, after: Some(Duration::from_millis(200)) },
        Fail::Limited { why, after } => ReadError::Again { why, after: Some(after.unwrap_or(Duration::from_secs(2))) },
        Fail::TooLarge { why, .. } => ReadError::Again { why, after: Some(Duration::from_secs(1)) },
        Fail::NoMethod(why) => ReadError::Halt { why: format!("{why}: use a provider that has this method") },
        Fail::NoTag => ReadError::Again { why: "the node does not know this block tag".into(), after: None },
        Fail::Unknown(what) => ReadError::Unknown { what },
        Fail::False(why) => ReadError::False { why },
        Fail::WrongChain(why) => ReadError::Halt { why },
    }
}

/// What one block's questions brought.
pub(super) struct Fetched {
    line: Line,
    block: WireBlock,
}

impl Inner {
    /// Runs an operation against one provider; against the next ones where the provider itself is the trouble.
    pub(super) async fn with<T, F>(self: &Arc<Self>, question: Question, what: String, op: F) -> Result<T, ReadError>
    where
        T: Send + 'static,
        F: Fn(Arc<Inner>, Arc<Endpoint>) -> BoxFuture<'static, Result<T, Fail>> + Send + Sync,
    {
        let op = move |ep: Arc<Endpoint>| {
            let (what, shown) = (what.clone(), ep.shown.clone());
            let asking = op(self.clone(), ep);
            async move {
                asking.await.map_err(|fail| match fail {
                    Fail::False(why) => Fail::False(format!("{what}: {why} ({shown})")),
                    other => other,
                })
            }
            .boxed()
        };
        self.pool.ask(question, op).await.map_err(to_read_error)
    }

    /// How often the head is looked at.
    pub(super) fn poll(&self) -> Duration {
        let subscribes = self.pool.members[self.pool.leader()].provider.subscribes();
        self.poll.unwrap_or(Duration::from_millis(if subscribes { 5_000 } else { 1_000 }))
    }

    /// Receipts are asked for wherever logs are wanted: nothing else proves a log's data. Where the header's own hash
    /// cannot be proven, they would prove nothing.
    pub(super) fn proves_logs(&self) -> bool {
        self.verify == Verify::Receipts && !self.quirks.foreign_header
    }

    pub(super) fn doubt(&self, doubts: Vec<String>) {
        for why in doubts {
            if self.doubts.lock().expect("no panic while held").insert(why.clone()) {
                tracing::warn!(chain = %self.name, %why, "cannot be verified in full");
            }
        }
    }

    pub(super) async fn raw_block(&self, ep: &Endpoint, place: Place, full: bool) -> Result<Box<RawValue>, Fail> {
        let raw = match place {
            Place::Hash(hash) => ep.call("eth_getBlockByHash", json!([hash, full])).await?,
            Place::Number(number) => ep.call("eth_getBlockByNumber", json!([U64::from(number), full])).await?,
        };
        if raw.get() == "null" { Err(Fail::Unknown(place.to_string())) } else { Ok(raw) }
    }

    /// A verified header of the block that was asked for.
    pub(super) fn read_header(&self, raw: &RawValue, place: Option<Place>) -> Result<WireBlock, Fail> {
        let block = WireBlock::parse(raw.get()).map_err(trouble)?;
        let proven = self.prove_header(&block)?;
        let asked = match place {
            Some(Place::Hash(hash)) => hash == block.hash,
            Some(Place::Number(number)) => number == block.header.number,
            None => true,
        };
        if !asked {
            return Err(Fail::False(format!(
                "block {} ({}) is not the one asked for",
                block.header.number, block.hash
            )));
        }
        // Runs of old blocks would push out what is live.
        if proven && !matches!(place, Some(Place::Number(_))) {
            self.headers.keep(&block);
        }
        Ok(block)
    }

    /// True where nothing is left to belief.
    pub(super) fn prove_header(&self, block: &WireBlock) -> Result<bool, Fail> {
        let mut doubts = Vec::new();
        block.verify(self.chain, &self.quirks, &mut doubts).map_err(trouble)?;
        let proven = doubts.is_empty();
        self.doubt(doubts);
        Ok(proven)
    }

    pub(super) async fn header(&self, ep: &Endpoint, place: Place) -> Result<WireBlock, Fail> {
        self.read_header(&self.raw_block(ep, place, false).await?, Some(place))
    }

    pub(super) async fn tag(&self, ep: &Endpoint, tag: &'static str) -> Result<BlockRef, Fail> {
        let raw = ep.call("eth_getBlockByNumber", json!([tag, false])).await?;
        if raw.get() == "null" {
            return Err(Fail::Unknown(format!("its {tag} block")));
        }
        Ok(self.read_header(&raw, None)?.at(self.chain))
    }

    async fn raw_logs(&self, ep: &Endpoint, hash: B256) -> Result<Box<RawValue>, Fail> {
        let raw = ep.call("eth_getLogs", json!([{ "blockHash": hash }])).await?;
        if raw.get() == "null" { Err(Fail::Unknown(format!("the logs of block {hash}"))) } else { Ok(raw) }
    }

    /// Of a whole block, by one question; `None` where the node has no such method.
    pub(super) async fn raw_receipts_at(&self, ep: &Endpoint, place: Place) -> Result<Option<Box<RawValue>>, Fail> {
        if ep.no_block_receipts.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let question = match place {
            Place::Hash(hash) => json!([hash]),
            Place::Number(number) => json!([U64::from(number)]),
        };
        match ep.call("eth_getBlockReceipts", question).await {
            Ok(raw) if raw.get() == "null" => Err(Fail::Unknown(format!("the receipts of {place}"))),
            Ok(raw) => Ok(Some(raw)),
            Err(Fail::NoMethod(_)) => {
                ep.no_block_receipts.store(true, Ordering::Relaxed);
                Ok(None)
            }
            Err(fail) => Err(fail),
        }
    }

    async fn raw_receipts(&self, ep: &Endpoint, block: &WireBlock) -> Result<Box<RawValue>, Fail> {
        match self.raw_receipts_at(ep, Place::Hash(block.hash)).await? {
            Some(raw) => Ok(raw),
            None => self.receipts_one_by_one(ep, block).await,
        }
    }

    async fn receipts_one_by_one(&self, ep: &Endpoint, block: &WireBlock) -> Result<Box<RawValue>, Fail> {
        let hashes: Vec<B256> = (0..block.count()).filter_map(|i| block.hash_at(i)).collect();
        let each = futures::stream::iter(hashes).map(|hash| async move {
            match ep.call("eth_getTransactionReceipt", json!([hash])).await {
                Ok(raw) if raw.get() == "null" => Err(Fail::Unknown(format!("the receipt of {hash}"))),
                Err(Fail::NoMethod(why)) => Err(Fail::NoMethod(format!(
                    "{why}: without receipts the data of a log cannot be proven; `verify = \"bloom\"` believes it"
                ))),
                other => other,
            }
        });
        let all: Vec<Box<RawValue>> = each.buffered(AT_ONCE).try_collect().await?;
        serde_json::value::to_raw_value(&all).map_err(|e| Fail::Other(e.to_string()))
    }

    /// Asks for all that is wanted of one block: side by side where its hash is known, and nothing where its header
    /// is known and has nothing of it.
    pub(super) async fn fetch(&self, ep: &Endpoint, place: Place, wanted: &Wanted) -> Result<Fetched, Fail> {
        let listed = wanted.blocks || wanted.transactions || wanted.receipts;
        let hash = match place {
            Place::Hash(hash) => Some(hash),
            Place::Number(_) => None,
        };
        let known = hash.and_then(|hash| self.headers.get(hash));
        let excludes = |block: &WireBlock| !wanted.logs || block.excludes(wanted, &self.quirks);
        let synced = |block: &WireBlock| self.quirks.may_state_sync(block.header.number);
        if let Some(header) = &known
            && !listed
            && excludes(header)
        {
            return Ok(self.fetched(header.bare(), None, None, None));
        }
        let by_receipts = wanted.logs && self.proves_logs();
        // The number of transactions is proven by all of them.
        let full = wanted.transactions || wanted.receipts || (self.proves_logs() && (wanted.blocks || wanted.logs));
        // What is certain to be asked for is asked for at once.
        let no_logs = known.as_ref().is_some_and(|header| excludes(header));
        let receipts_early = hash.filter(|_| wanted.receipts || (by_receipts && !no_logs));
        let filtered = !wanted.addresses.is_empty() || !wanted.topic0.is_empty();
        let log_question = match &known {
            Some(header) => !no_logs && (!(by_receipts || wanted.receipts) || synced(header)),
            // It may turn out that its bloom excludes them.
            None => wanted.logs && !filtered && !by_receipts && !wanted.receipts,
        };
        let logs_early = hash.filter(|_| log_question);
        let block_question = listed || by_receipts || known.is_none();
        let (block, receipts, logs) = futures::join!(
            async {
                match &known {
                    Some(header) if !block_question => Ok((header.bare(), None)),
                    _ => {
                        let raw = self.raw_block(ep, place, full).await?;
                        Ok::<_, Fail>((self.read_header(&raw, Some(place))?, Some(raw)))
                    }
                }
            },
            async {
                match receipts_early {
                    Some(hash) => self.raw_receipts_at(ep, Place::Hash(hash)).await,
                    None => Ok(None),
                }
            },
            async {
                match logs_early {
                    Some(hash) => Some(self.raw_logs(ep, hash).await),
                    None => None,
                }
            }
        );
        let ((block, raw), mut receipts) = (block?, receipts?);
        let no_logs = excludes(&block);
        if receipts.is_none() && (wanted.receipts || (by_receipts && !no_logs)) {
            receipts = Some(self.raw_receipts(ep, &block).await?);
        }
        let by_logs = !no_logs && (!(by_receipts || wanted.receipts) || synced(&block));
        let logs = match logs {
            Some(early) if by_logs => Some(early),
            _ if by_logs => Some(self.raw_logs(ep, block.hash).await),
            _ => None,
        };
        let logs = match logs {
            Some(Ok(raw)) => Some(raw),
            // Too many logs for one answer: the receipts hold them too.
            Some(Err(Fail::TooLarge { .. })) if receipts.is_none() => {
                let listed = match raw {
                    Some(_) => None,
                    None => Some(self.read_header(&self.raw_block(ep, place, false).await?, Some(place))?),
                };
                receipts = Some(self.raw_receipts(ep, listed.as_ref().unwrap_or(&block)).await?);
                let block = listed.unwrap_or(block);
                return Ok(self.fetched(block, raw, receipts, None));
            }
            Some(Err(fail)) => return Err(fail),
            None => None,
        };
        Ok(self.fetched(block, raw, receipts, logs))
    }

    pub(super) fn fetched(
        &self,
        block: WireBlock,
        raw: Option<Box<RawValue>>,
        receipts: Option<Box<RawValue>>,
        logs: Option<Box<RawValue>>,
    ) -> Fetched {
        let (number, hash) = (block.header.number, block.hash);
        Fetched { line: Line { chain_id: self.chain.0, number, hash, block: raw, receipts, logs }, block }
    }

    pub(super) fn finish(&self, fetched: Fetched, wanted: &Wanted) -> Result<Block, Fail> {
        let Fetched { line, block } = fetched;
        let logs = line.logs.map(|l| wire::parse_logs(l.get())).transpose().map_err(trouble)?;
        let receipts = line.receipts.map(|r| wire::parse_receipts(r.get())).transpose().map_err(trouble)?;
        let mut doubts = Vec::new();
        let parts = Parts { block, logs, receipts };
        let mut block = wire::assemble(self.chain, parts, wanted, &self.quirks, &mut doubts).map_err(trouble)?;
        self.doubt(doubts);
        if !(self.proves_logs() || wanted.blocks || wanted.transactions || wanted.receipts) {
            // The same, whether or not the list of transactions happened to be read on the way to the logs.
            block.header.transaction_count = None;
        }
        Ok(block)
    }

    /// The head, where enough providers name it; the last one that they agreed upon where they do not yet.
    async fn agreed(self: &Arc<Self>, head: BlockRef) -> Result<BlockRef, ReadError> {
        if self.agree > 1 {
            let agreeing = self.pool.agreeing(head.number, head.hash);
            let others = (0..self.pool.members.len()).filter(|i| !agreeing.contains(i));
            if agreeing.len() < self.agree {
                let asked = others.map(|i| async move { self.confirm(i, head.number).await });
                futures::future::join_all(asked).await;
            }
            let agreeing = self.pool.agreeing(head.number, head.hash).len();
            if agreeing < self.agree {
                let mut heads = self.heads.lock().expect("no panic while held");
                let since = *heads.differ.get_or_insert_with(Instant::now);
                let again = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(AGREE_AGAIN).await;
                    again.wake.notify_one();
                });
                return match heads.last {
                    Some(last) if since.elapsed() < AGREE_WITHIN => Ok(last),
                    _ => {
                        let why = format!(
                            "{agreeing} of {} providers name block {} ({}), and {} must",
                            self.pool.members.len(),
                            head.number,
                            head.hash,
                            self.agree
                        );
                        Err(ReadError::Again { why, after: Some(AGREE_AGAIN) })
                    }
                };
            }
        }
        let mut heads = self.heads.lock().expect("no panic while held");
        (heads.last, heads.differ) = (Some(head), None);
        // It came while it was asked for.
        heads.told = heads.told.filter(|told| told.number > head.number);
        Ok(head)
    }

    /// Asks one provider what it has at a height.
    async fn confirm(&self, i: usize, number: u64) {
        let ep = self.pool.members[i].provider.asked(Importance::Head, false);
        let asked = self.header(&ep, Place::Number(number));
        match tokio::time::timeout(Duration::from_secs(2), asked).await {
            Ok(Ok(block)) => self.pool.noted(i, number, block.hash),
            Ok(Err(Fail::Unknown(_))) => {}
            Ok(Err(fail)) => self.pool.unheard(i, &fail),
            Err(_) => self.pool.unheard(i, &Fail::Dead(format!("{}: no answer in 2000 ms", ep.shown))),
        }
    }

    /// A fact of final blocks, or a tag: by as many providers as must agree.
    async fn known_to_enough(self: &Arc<Self>, block: &BlockRef) -> Result<(), ReadError> {
        if self.agree < 2 {
            return Ok(());
        }
        let asked = (0..self.pool.members.len()).map(|i| async move {
            let ep = self.pool.members[i].provider.asked(Importance::Live, false);
            let asked = self.header(&ep, Place::Number(block.number));
            matches!(tokio::time::timeout(Duration::from_secs(5), asked).await, Ok(Ok(found)) if found.hash == block.hash)
        });
        let agreeing = futures::future::join_all(asked).await.into_iter().filter(|yes| *yes).count();
        if agreeing >= self.agree {
            return Ok(());
        }
        let why = format!("{agreeing} providers have block {} ({}), and {} must", block.number, block.hash, self.agree);
        Err(ReadError::Again { why, after: Some(Duration::from_secs(1)) })
    }
}

pub(super) fn trouble(t: Trouble) -> Fail {
    match t {
        Trouble::False(why) => Fail::False(why),
        // All that is wanted was asked for: what lacks was left out by the node.
        Trouble::Lacks(what) => Fail::False(format!("{what} are missing in the answer")),
    }
}

pub(super) fn number(raw: &RawValue) -> Option<u64> {
    serde_json::from_str::<U64>(raw.get()).ok().map(|n| n.to())
}

#[async_trait::async_trait]
impl Source for Rpc {
    fn chain(&self) -> ChainId {
        self.inner.chain
    }

    async fn head(&self) -> Result<BlockRef, ReadError> {
        let told = self.inner.heads.lock().expect("no panic while held").told.take();
        let head = match told {
            Some(told) => told,
            None => {
                let ask = |inner: Arc<Inner>, ep: Arc<Endpoint>| {
                    async move {
                        let head = inner.tag(&ep, "latest").await?;
                        inner.pool.heard(ep.index, &head);
                        Ok(head)
                    }
                    .boxed()
                };
                self.inner.with(Question::Head, "the latest block".into(), ask).await?
            }
        };
        self.inner.agreed(head).await
    }

    async fn tagged(&self, tag: Tag) -> Result<Option<BlockRef>, ReadError> {
        let tag = match tag {
            Tag::Safe => "safe",
            Tag::Finalized => "finalized",
        };
        let found = self
            .inner
            .with(Question::Header, format!("the {tag} block"), move |inner, ep| {
                async move {
                    match inner.tag(&ep, tag).await {
                        Err(Fail::NoTag) => Ok(None),
                        other => other.map(Some),
                    }
                }
                .boxed()
            })
            .await?;
        if let Some(found) = &found {
            self.inner.known_to_enough(found).await?;
        }
        Ok(found)
    }

    async fn transfers(&self, block: Arc<Block>) -> Result<Vec<Transfer>, ReadError> {
        let ask = {
            let block = block.clone();
            move |inner: Arc<Inner>, ep: Arc<Endpoint>| {
                let block = block.clone();
                async move { inner.transfers(&ep, &block).await }.boxed()
            }
        };
        self.inner.with(Question::Trace, format!("the traces of {}", block.at()), ask).await
    }

    async fn transaction(&self, hash: B256) -> Result<Whereabouts, ReadError> {
        let ask = move |inner: Arc<Inner>, ep: Arc<Endpoint>| {
            async move {
                let told = ep.call("eth_getTransactionByHash", json!([hash])).await?;
                wire::whereabouts(told.get(), inner.chain).map_err(trouble)
            }
            .boxed()
        };
        self.inner.with(Question::Range, format!("transaction {hash}"), ask).await
    }

    async fn sent(&self, who: Address, until: Until) -> Result<u64, ReadError> {
        let at = match until {
            Until::Pending => json!("pending"),
            Until::Block(number) => json!(U64::from(number)),
        };
        let ask = move |_: Arc<Inner>, ep: Arc<Endpoint>| {
            let question = json!([who, at]);
            async move {
                let told = ep.call("eth_getTransactionCount", question).await?;
                number(&told).ok_or_else(|| Fail::False("eth_getTransactionCount is not a number".into()))
            }
            .boxed()
        };
        self.inner.with(Question::Range, format!("the transactions of {who}"), ask).await
    }

    fn pending(&self) -> Option<mpsc::Receiver<Transaction>> {
        Some(self.inner.listen())
    }

    fn providers(&self) -> Vec<ProviderStatus> {
        self.inner.pool.status()
    }

    async fn by_hash(&self, hash: B256) -> Result<BlockRef, ReadError> {
        if let Some(known) = self.inner.headers.get(hash) {
            return Ok(known.at(self.inner.chain));
        }
        let ask = move |inner: Arc<Inner>, ep: Arc<Endpoint>| {
            async move { Ok(inner.header(&ep, Place::Hash(hash)).await?.at(inner.chain)) }.boxed()
        };
        self.inner.with(Question::Header, format!("block {hash}"), ask).await
    }

    async fn by_number(&self, number: u64) -> Result<BlockRef, ReadError> {
        let ask = move |inner: Arc<Inner>, ep: Arc<Endpoint>| {
            async move {
                let block = inner.header(&ep, Place::Number(number)).await?;
                // One at a time: the beginning of a path, mostly.
                if inner.prove_header(&block)? {
                    inner.headers.keep(&block);
                }
                Ok(block.at(inner.chain))
            }
            .boxed()
        };
        self.inner.with(Question::Header, format!("block {number}"), ask).await
    }

    async fn block(&self, at: &BlockRef, wanted: &Wanted) -> Result<Block, ReadError> {
        let (at, wanted) = (*at, wanted.clone());
        self.inner
            .with(Question::Block, format!("block {} ({})", at.number, at.hash), move |inner, ep| {
                let wanted = wanted.clone();
                async move {
                    let fetched = inner.fetch(&ep, Place::Hash(at.hash), &wanted).await?;
                    let block = inner.finish(fetched, &wanted)?;
                    if block.at() == at { Ok(block) } else { Err(Fail::False(format!("{} is not {at}", block.at()))) }
                }
                .boxed()
            })
            .await
    }

    async fn range(&self, from: u64, to: u64, wanted: &Wanted) -> Result<Range, ReadError> {
        if from > to {
            return Err(ReadError::Halt { why: format!("a range from {from} to {to} was asked for: this is a bug") });
        }
        let wanted = wanted.clone();
        let range = self
            .inner
            .with(Question::Range, format!("blocks {from} to {to}"), move |inner, ep| {
                let wanted = wanted.clone();
                async move { inner.range(&ep, from, to, &wanted).await }.boxed()
            })
            .await?;
        // All of its blocks are linked to the last one.
        self.inner.known_to_enough(&range.to).await?;
        Ok(range)
    }

    async fn changed(&self) {
        // Polling goes on beside every subscription: a silent one delays, and loses nothing.
        let _ = tokio::time::timeout(self.inner.poll(), self.inner.wake.notified()).await;
    }
}
