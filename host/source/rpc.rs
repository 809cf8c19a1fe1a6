//! A live node over JSON-RPC: WebSocket (woken by `newHeads`) or HTTP (polling). `node -> [rpc] -> follower`.
//!
//! A subscription only wakes; what is true is asked for, and checked against headers before it leaves. Several
//! providers are tried in order, and the first is returned to when it is well again. One operation speaks to one
//! provider from its beginning to its end, so that a head and a range are of the same node.
//! Knows nothing of which block is canonical: two answers may be of two branches.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alloy_primitives::{B256, U64};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::Notify;

use super::record::Line;
use super::transport::{Endpoint, Fail, jitter};
use super::wire::{self, Parts, Trouble, WireBlock};
use super::{Kind, Open, Range, ReadError, Source, Tag};
use crate::model::{Block, BlockRef, ChainId, Wanted};
use crate::proof::Quirks;

pub const KIND: Kind = Kind {
    name: "rpc",
    options: &[
        ("rpc", "URL of a node, or a list of them in order of preference: ws://, wss://, http:// or https://"),
        ("poll_ms", "longest time between two looks at the head; 1000 over HTTP, 5000 beside a subscription"),
        ("timeout_ms", "longest wait for one answer; 20000"),
        ("max_range", "most blocks in one eth_getLogs; 2000, less where the node refuses it"),
        ("headers", "HTTP headers for every request, as a table; not for WebSocket"),
        ("quirks", "departures of this chain from Ethereum's rules, by name; known ones are set by chain id"),
    ],
    open: |open| Box::pin(async move { Ok(Arc::new(Rpc::open(open).await?) as Arc<dyn Source>) }),
};

/// Questions under way to one node at a time, within one operation.
pub(super) const AT_ONCE: usize = 8;
/// A false answer is asked for again so often before it is told.
const FALSE_TRIES: u32 = 3;
/// After a failover the preferred provider is looked at again this often.
const RETURN_EVERY: Duration = Duration::from_secs(15);

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

pub struct Rpc {
    inner: Arc<Inner>,
    watch: tokio::task::JoinHandle<()>,
}

impl Drop for Rpc {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

pub(super) struct Inner {
    pub(super) name: String,
    pub(super) chain: ChainId,
    pub(super) quirks: Quirks,
    endpoints: Vec<Arc<Endpoint>>,
    current: AtomicUsize,
    poll: Duration,
    pub(super) max_range: u64,
    /// Blocks asked for in one eth_getLogs now: halved when refused, grows again slowly.
    pub(super) span: AtomicU64,
    wake: Notify,
    /// When a head was first seen that no subscription had told of: shows a subscription that stalls.
    seen: Mutex<(B256, Instant)>,
    doubts: Mutex<HashSet<String>>,
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
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

impl Rpc {
    /// Connects to the first provider that answers; learns the chain id from it where none is expected.
    pub async fn open(open: Open) -> Result<Self, ReadError> {
        // Fails where another part of the process was first: any provider that is set will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let halt = |why: String| ReadError::Halt { why: format!("[chain.{}]: {why}", open.name) };
        let urls = match option::<OneOrMany>(&open, "rpc")? {
            Some(OneOrMany::One(url)) => vec![url],
            Some(OneOrMany::Many(urls)) if !urls.is_empty() => urls,
            _ => return Err(halt("`rpc` is missing: give the URL of a node".into())),
        };
        let timeout = Duration::from_millis(option(&open, "timeout_ms")?.unwrap_or(20_000).max(1));
        let max_range = option::<u64>(&open, "max_range")?.unwrap_or(2_000).max(1);
        let mut headers = reqwest::header::HeaderMap::new();
        for (name, value) in option::<BTreeMap<String, String>>(&open, "headers")?.unwrap_or_default() {
            let name = reqwest::header::HeaderName::try_from(name).map_err(|e| halt(format!("`headers`: {e}")))?;
            let mut value = reqwest::header::HeaderValue::try_from(value).map_err(|_| {
                halt(format!("`headers`: the value of {name} has characters that a header cannot hold"))
            })?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let mut endpoints = Vec::new();
        for url in &urls {
            let one = Endpoint::new(url, timeout, headers.clone(), open.expect).map_err(&halt)?;
            endpoints.push(Arc::new(one));
        }
        let mut chain = Err(Fail::Dead("no provider".into()));
        let mut current = 0;
        for (i, endpoint) in endpoints.iter().enumerate() {
            chain = endpoint.chain().await;
            current = i;
            match &chain {
                Ok(_) | Err(Fail::WrongChain(_)) => break,
                Err(_) => {}
            }
        }
        let chain = match (chain, open.expect) {
            (Ok(chain), _) => chain,
            (Err(Fail::WrongChain(why)), _) => return Err(halt(why)),
            // The chain is known; its providers may come back.
            (Err(_), Some(expected)) => {
                current = 0;
                expected
            }
            (Err(fail), None) => return Err(to_read_error(fail)),
        };
        let mut quirks = Quirks::of(chain);
        for name in option::<Vec<String>>(&open, "quirks")?.unwrap_or_default() {
            if !quirks.enable(&name) {
                return Err(halt(format!("there is no quirk {name:?}; there are: {}", Quirks::names())));
            }
        }
        endpoints.iter().for_each(|e| e.expect(chain));
        let subscribes = endpoints[0].is_websocket();
        let poll = option(&open, "poll_ms")?.unwrap_or(if subscribes { 5_000 } else { 1_000 }).max(10);
        let inner = Arc::new(Inner {
            name: open.name,
            chain,
            quirks,
            endpoints,
            current: AtomicUsize::new(current),
            poll: Duration::from_millis(poll),
            max_range,
            span: AtomicU64::new(max_range),
            wake: Notify::new(),
            seen: Mutex::new((B256::ZERO, Instant::now())),
            doubts: Mutex::new(HashSet::new()),
        });
        let watch = tokio::spawn(inner.clone().watch());
        Ok(Self { inner, watch })
    }

    /// A block as the node tells it, verified whole: what `chainweir record` writes.
    pub async fn record(&self, at: &BlockRef) -> Result<Line, ReadError> {
        let (hash, number) = (at.hash, at.number);
        self.inner
            .with(format!("block {number} ({hash})"), move |inner, ep| {
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
    async fn with<T, F>(self: &Arc<Self>, what: String, op: F) -> Result<T, ReadError>
    where
        F: Fn(Arc<Inner>, Arc<Endpoint>) -> BoxFuture<'static, Result<T, Fail>> + Send,
    {
        let first = self.current.load(Ordering::Relaxed);
        let mut last = Fail::Dead("no provider".into());
        for turn in 0..self.endpoints.len() {
            let index = (first + turn) % self.endpoints.len();
            let ep = self.endpoints[index].clone();
            let mut tries = 0;
            let fail = loop {
                match op(self.clone(), ep.clone()).await {
                    Ok(value) => {
                        if turn > 0 {
                            self.current.store(index, Ordering::Relaxed);
                            tracing::warn!(chain = %self.name, provider = %ep.shown, "changed to another provider");
                        }
                        return Ok(value);
                    }
                    Err(Fail::False(why)) if tries + 1 < FALSE_TRIES => {
                        tries += 1;
                        tracing::debug!(chain = %self.name, %why, "asked again");
                        tokio::time::sleep(jitter(Duration::from_millis(50 << tries))).await;
                    }
                    Err(fail) => break fail,
                }
            };
            let elsewhere = matches!(
                fail,
                Fail::Dead(_) | Fail::Limited { .. } | Fail::False(_) | Fail::Other(_) | Fail::NoMethod(_)
            );
            last = match fail {
                Fail::False(why) => Fail::False(format!("{what}: {why} ({})", ep.shown)),
                other => other,
            };
            if !elsewhere {
                break;
            }
        }
        Err(to_read_error(last))
    }

    /// Wakes the consumer at new heads, and looks after the way back to the preferred provider.
    async fn watch(self: Arc<Self>) {
        let mut looked = Instant::now();
        loop {
            let current = self.current.load(Ordering::Relaxed);
            if current != 0 && looked.elapsed() >= RETURN_EVERY {
                looked = Instant::now();
                let behind = self.endpoints[current].call("eth_blockNumber", json!([])).await.ok();
                let first = self.endpoints[0].call("eth_blockNumber", json!([])).await.ok();
                // Well means: it answers, and is not far behind the one in use.
                if let (Some(first), Some(other)) = (first.and_then(|n| number(&n)), behind.and_then(|n| number(&n)))
                    && first + 2 >= other
                {
                    tracing::info!(chain = %self.name, provider = %self.endpoints[0].shown, "returned to the first provider");
                    self.current.store(0, Ordering::Relaxed);
                    self.wake.notify_one();
                }
            }
            let ep = self.endpoints[self.current.load(Ordering::Relaxed)].clone();
            if ep.is_websocket() {
                match ep.subscribe().await {
                    Ok(subscription) => {
                        // What came between the last look and the subscription.
                        self.wake.notify_one();
                        self.follow(&ep, subscription).await;
                    }
                    Err(fail) => tracing::debug!(chain = %self.name, ?fail, "no subscription; polling"),
                }
            }
            tokio::time::sleep(self.poll.min(RETURN_EVERY)).await;
        }
    }

    /// Until the subscription ends, stalls, or another provider is in use.
    async fn follow(&self, ep: &Arc<Endpoint>, mut subscription: alloy_pubsub::RawSubscription) {
        let mut told = Instant::now();
        loop {
            match tokio::time::timeout(self.poll, subscription.recv()).await {
                Ok(Ok(_)) | Ok(Err(tokio::sync::broadcast::error::RecvError::Lagged(_))) => {
                    told = Instant::now();
                    self.wake.notify_one();
                }
                Ok(Err(tokio::sync::broadcast::error::RecvError::Closed)) => return,
                Err(_) => {}
            }
            if !Arc::ptr_eq(ep, &self.endpoints[self.current.load(Ordering::Relaxed)]) {
                return;
            }
            let moved = self.seen.lock().expect("no panic while held").1;
            if moved > told + self.poll {
                tracing::warn!(chain = %self.name, provider = %ep.shown, "the subscription is silent while the head moves: opened again");
                ep.reset().await;
                return;
            }
        }
    }

    pub(super) fn doubt(&self, doubts: Vec<String>) {
        for why in doubts {
            if self.doubts.lock().expect("no panic while held").insert(why.clone()) {
                tracing::warn!(chain = %self.name, %why, "cannot be verified in full");
            }
        }
    }

    async fn raw_block(&self, ep: &Endpoint, place: Place, full: bool) -> Result<Box<RawValue>, Fail> {
        let raw = match place {
            Place::Hash(hash) => ep.call("eth_getBlockByHash", json!([hash, full])).await?,
            Place::Number(number) => ep.call("eth_getBlockByNumber", json!([U64::from(number), full])).await?,
        };
        if raw.get() == "null" { Err(Fail::Unknown(place.to_string())) } else { Ok(raw) }
    }

    /// A verified header of the block that was asked for.
    fn read_header(&self, raw: &RawValue, place: Option<Place>) -> Result<WireBlock, Fail> {
        let block = WireBlock::parse(raw.get()).map_err(trouble)?;
        let mut doubts = Vec::new();
        block.verify(self.chain, &self.quirks, &mut doubts).map_err(trouble)?;
        self.doubt(doubts);
        let asked = match place {
            Some(Place::Hash(hash)) => hash == block.hash,
            Some(Place::Number(number)) => number == block.header.number,
            None => true,
        };
        if asked {
            Ok(block)
        } else {
            Err(Fail::False(format!("block {} ({}) is not the one asked for", block.header.number, block.hash)))
        }
    }

    pub(super) async fn header(&self, ep: &Endpoint, place: Place) -> Result<WireBlock, Fail> {
        self.read_header(&self.raw_block(ep, place, false).await?, Some(place))
    }

    async fn tag(&self, ep: &Endpoint, tag: &'static str) -> Result<BlockRef, Fail> {
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

    async fn raw_receipts(&self, ep: &Endpoint, block: &WireBlock) -> Result<Box<RawValue>, Fail> {
        if !ep.no_block_receipts.load(Ordering::Relaxed) {
            match ep.call("eth_getBlockReceipts", json!([block.hash])).await {
                Ok(raw) if raw.get() == "null" => {
                    return Err(Fail::Unknown(format!("the receipts of block {}", block.hash)));
                }
                Err(Fail::NoMethod(_)) => ep.no_block_receipts.store(true, Ordering::Relaxed),
                other => return other,
            }
        }
        let hashes: Vec<B256> = (0..block.count()).filter_map(|i| block.hash_at(i)).collect();
        let each = futures::stream::iter(hashes).map(|hash| async move {
            let raw = ep.call("eth_getTransactionReceipt", json!([hash])).await?;
            if raw.get() == "null" { Err(Fail::Unknown(format!("the receipt of {hash}"))) } else { Ok(raw) }
        });
        let all: Vec<Box<RawValue>> = each.buffered(AT_ONCE).try_collect().await?;
        serde_json::value::to_raw_value(&all).map_err(|e| Fail::Other(e.to_string()))
    }

    /// Asks for all that is wanted of one block, by its hash.
    pub(super) async fn fetch(&self, ep: &Endpoint, place: Place, wanted: &Wanted) -> Result<Fetched, Fail> {
        let full = wanted.transactions || wanted.receipts;
        let unfiltered = wanted.addresses.is_empty() && wanted.topic0.is_empty();
        let early = match place {
            Place::Hash(hash) if wanted.logs && unfiltered && !wanted.receipts => Some(hash),
            _ => None,
        };
        let logs_early = async {
            match early {
                Some(hash) => Some(self.raw_logs(ep, hash).await),
                None => None,
            }
        };
        let (raw, logs) = futures::join!(self.raw_block(ep, place, full), logs_early);
        let raw = raw?;
        let block = self.read_header(&raw, Some(place))?;
        let synced = self.quirks.may_state_sync(block.header.number);
        let mut receipts = None;
        if wanted.receipts {
            receipts = Some(self.raw_receipts(ep, &block).await?);
        }
        let by_logs = wanted.logs && (!wanted.receipts || synced) && !block.excludes(wanted, &self.quirks);
        let logs = match logs {
            Some(early) if by_logs => Some(early),
            _ if by_logs => Some(self.raw_logs(ep, block.hash).await),
            _ => None,
        };
        let logs = match logs {
            Some(Ok(raw)) => Some(raw),
            // Too many logs for one answer: the receipts hold them too.
            Some(Err(Fail::TooLarge { .. })) if receipts.is_none() => {
                receipts = Some(self.raw_receipts(ep, &block).await?);
                None
            }
            Some(Err(fail)) => return Err(fail),
            None => None,
        };
        let line = Line {
            chain_id: self.chain.0,
            number: block.header.number,
            hash: block.hash,
            block: Some(raw),
            receipts,
            logs,
        };
        Ok(Fetched { line, block })
    }

    pub(super) fn finish(&self, fetched: Fetched, wanted: &Wanted) -> Result<Block, Fail> {
        let Fetched { line, block } = fetched;
        let logs = line.logs.map(|l| wire::parse_logs(l.get())).transpose().map_err(trouble)?;
        let receipts = line.receipts.map(|r| wire::parse_receipts(r.get())).transpose().map_err(trouble)?;
        let mut doubts = Vec::new();
        let parts = Parts { block, logs, receipts };
        let block = wire::assemble(self.chain, parts, wanted, &self.quirks, &mut doubts).map_err(trouble)?;
        self.doubt(doubts);
        Ok(block)
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
        let head = self
            .inner
            .with("the latest block".into(), |inner, ep| async move { inner.tag(&ep, "latest").await }.boxed())
            .await?;
        let mut seen = self.inner.seen.lock().expect("no panic while held");
        if seen.0 != head.hash {
            *seen = (head.hash, Instant::now());
        }
        Ok(head)
    }

    async fn tagged(&self, tag: Tag) -> Result<Option<BlockRef>, ReadError> {
        let tag = match tag {
            Tag::Safe => "safe",
            Tag::Finalized => "finalized",
        };
        self.inner
            .with(format!("the {tag} block"), move |inner, ep| {
                async move {
                    match inner.tag(&ep, tag).await {
                        Err(Fail::NoTag) => Ok(None),
                        other => other.map(Some),
                    }
                }
                .boxed()
            })
            .await
    }

    async fn by_hash(&self, hash: B256) -> Result<BlockRef, ReadError> {
        let ask = move |inner: Arc<Inner>, ep: Arc<Endpoint>| {
            async move { Ok(inner.header(&ep, Place::Hash(hash)).await?.at(inner.chain)) }.boxed()
        };
        self.inner.with(format!("block {hash}"), ask).await
    }

    async fn by_number(&self, number: u64) -> Result<BlockRef, ReadError> {
        let ask = move |inner: Arc<Inner>, ep: Arc<Endpoint>| {
            async move { Ok(inner.header(&ep, Place::Number(number)).await?.at(inner.chain)) }.boxed()
        };
        self.inner.with(format!("block {number}"), ask).await
    }

    async fn block(&self, at: &BlockRef, wanted: &Wanted) -> Result<Block, ReadError> {
        let (at, wanted) = (*at, wanted.clone());
        self.inner
            .with(format!("block {} ({})", at.number, at.hash), move |inner, ep| {
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
        self.inner
            .with(format!("blocks {from} to {to}"), move |inner, ep| {
                let wanted = wanted.clone();
                async move { inner.range(&ep, from, to, &wanted).await }.boxed()
            })
            .await
    }

    async fn changed(&self) {
        // Polling goes on beside every subscription: a silent one delays, and loses nothing.
        let _ = tokio::time::timeout(self.inner.poll, self.inner.wake.notified()).await;
    }
}
