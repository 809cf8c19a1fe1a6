//! Runs of final blocks from a live node: logs by filter, in ranges that the node can bear. Part of [`rpc`](super::rpc).
//!
//! "Too large" shrinks a range, a rate limit never does; an answer of a suspiciously round count is split. Every
//! block's header is looked at: a block of which nothing was told, and whose bloom does not exclude what was asked for,
//! is asked for whole. Of a block of which something was told, a filter's answer is believed to be all.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alloy_primitives::U64;
use futures::{StreamExt, TryStreamExt};
use serde_json::json;

use super::Range;
use super::classify::{Hint, looks_cut};
use super::rpc::{AT_ONCE, Inner, Place, number, trouble};
use super::transport::{Endpoint, Fail, jitter};
use super::wire::{self, Parts, WireBlock};
use crate::model::{Block, BlockRef, Log, Wanted};
use crate::proof;

/// Headers in one request, and such requests at a time for one range.
const HEADERS_AT_ONCE: usize = 64;
const BATCHES_AT_ONCE: usize = 8;
/// One of many questions is asked so often before all that was asked beside it is thrown away.
const TRIES: u32 = 5;
/// Blocks in one answer where each one's header is looked at first.
const PROVEN_AT_ONCE: u64 = 512;
/// Blocks in one answer where each is asked for by itself.
const BLOCKS_AT_ONCE: u64 = 64;
/// Of a hundred blocks: where more than these hold something, looking at their headers first saves nothing.
const DENSE: u64 = 50;

/// Addresses or topics in one filter: geth allows 1,000.
const FILTER_MOST: usize = 1000;

impl Inner {
    pub(super) async fn range(&self, ep: &Endpoint, from: u64, to: u64, wanted: &Wanted) -> Result<Range, Fail> {
        if wanted.every_block() || !wanted.logs || self.proves_logs() {
            return match self.by_number(ep, from, to, wanted).await {
                // Asked for by number, a block beyond the node's head is an error: there the range ends.
                Err(Fail::Unknown(what)) => match self.head_of(ep).await? {
                    head if head >= from && head < to => self.by_number(ep, from, head, wanted).await,
                    _ => Err(Fail::Unknown(what)),
                },
                other => other,
            };
        }
        // Beyond its own head a node answers a filter in part and says nothing of it.
        let head = self.head_of(ep).await?;
        if head < from {
            return Err(Fail::Unknown(format!("block {from}: it is at {head}")));
        }
        let to = to.min(head);
        let mut span = self.span.load(Ordering::Relaxed).clamp(1, self.max_range);
        loop {
            let last = to.min(from.saturating_add(span - 1));
            match self.logs_between(ep, from, last, wanted).await {
                Ok(range) => {
                    if last < to {
                        self.span.store((span + span / 8 + 1).min(self.max_range), Ordering::Relaxed);
                    }
                    return Ok(range);
                }
                Err(Fail::TooLarge { why, hint }) => {
                    if last == from {
                        return self.each(ep, from, from, wanted).await;
                    }
                    let now = last - from + 1;
                    let hinted = match hint {
                        Some(Hint::Range(a, b)) if a == from => b - a + 1,
                        Some(Hint::Span(n)) => n,
                        _ => 0,
                    };
                    // A hint that does not shrink is an echo of the question.
                    span = if hinted >= 1 && hinted < now { hinted } else { now / 2 };
                    self.span.store(span, Ordering::Relaxed);
                    tracing::debug!(chain = %self.name, %why, span, "asking for fewer blocks");
                }
                Err(other) => return Err(other),
            }
        }
    }

    async fn head_of(&self, ep: &Endpoint) -> Result<u64, Fail> {
        let head = ep.call("eth_blockNumber", json!([])).await?;
        number(&head).ok_or_else(|| Fail::False("eth_blockNumber is not a number".into()))
    }

    /// Every block's header at least, each by its number.
    async fn by_number(&self, ep: &Endpoint, from: u64, to: u64, wanted: &Wanted) -> Result<Range, Fail> {
        if wanted.every_block() || (wanted.logs && self.dense.load(Ordering::Relaxed) > DENSE) {
            return self.each(ep, from, to.min(from + BLOCKS_AT_ONCE - 1), wanted).await;
        }
        if !wanted.logs {
            return Ok(Range { blocks: Vec::new(), to: self.header(ep, Place::Number(to)).await?.at(self.chain) });
        }
        self.by_blooms(ep, from, to.min(from + PROVEN_AT_ONCE - 1), wanted).await
    }

    async fn each(&self, ep: &Endpoint, from: u64, to: u64, wanted: &Wanted) -> Result<Range, Fail> {
        let asked = futures::stream::iter(from..=to).map(|n| self.at_once(ep, n, wanted));
        let mut blocks: Vec<Block> = asked.buffered(AT_ONCE).try_collect().await?;
        linked(blocks.iter().map(Block::at))?;
        let last = blocks.last().map(Block::at).ok_or_else(|| Fail::Other("an empty range was asked for".into()))?;
        if wanted.logs && !wanted.every_block() {
            let all = blocks.len();
            blocks.retain(|block| !block.logs.is_empty());
            self.learn_density(blocks.len(), all);
        }
        Ok(Range { blocks, to: last })
    }

    /// Each block's header; and whole, with its receipts, each block whose bloom does not exclude what is wanted. What a
    /// filter would answer adds nothing to that.
    async fn by_blooms(&self, ep: &Endpoint, from: u64, to: u64, wanted: &Wanted) -> Result<Range, Fail> {
        let headers = self.headers_between(ep, from, to).await?;
        let last = headers.last().map(|h| h.at(self.chain)).ok_or_else(|| Fail::Other("no header".into()))?;
        let open: Vec<u64> =
            headers.iter().filter(|h| !h.excludes(wanted, &self.quirks)).map(|h| h.header.number).collect();
        self.learn_density(open.len(), headers.len());
        let asked = futures::stream::iter(open).map(|n| self.at_once(ep, n, wanted));
        let mut blocks: Vec<Block> = asked.buffered(AT_ONCE).try_collect().await?;
        for block in &blocks {
            let at = block.at();
            if headers.get((at.number - from) as usize).is_none_or(|h| h.hash != at.hash) {
                return Err(Fail::False(format!("{at} is not the block whose header it told before")));
            }
        }
        blocks.retain(|block| !block.logs.is_empty());
        Ok(Range { blocks, to: last })
    }

    fn learn_density(&self, open: usize, all: usize) {
        let now = (100 * open / all.max(1)) as u64;
        let before = self.dense.load(Ordering::Relaxed);
        self.dense.store(if all < 8 { before } else { (before + now) / 2 }, Ordering::Relaxed);
    }

    /// Proven and linked.
    async fn headers_between(&self, ep: &Endpoint, from: u64, to: u64) -> Result<Vec<WireBlock>, Fail> {
        let numbers: Vec<u64> = (from..=to).collect();
        let asked = numbers.chunks(HEADERS_AT_ONCE).map(|chunk| self.headers_of(ep, chunk));
        // The iterator's items borrow: collected, so that the future stays `Send`.
        let asked: Vec<_> = asked.collect();
        let headers: Vec<Vec<WireBlock>> = futures::stream::iter(asked).buffered(BATCHES_AT_ONCE).try_collect().await?;
        let headers: Vec<WireBlock> = headers.into_iter().flatten().collect();
        linked(headers.iter().map(|h| h.at(self.chain)))?;
        Ok(headers)
    }

    /// In one request; what it did not bring is asked for by itself.
    async fn headers_of(&self, ep: &Endpoint, numbers: &[u64]) -> Result<Vec<WireBlock>, Fail> {
        let questions = numbers.iter().map(|n| json!([U64::from(*n), false])).collect();
        let answers = ep.call_many("eth_getBlockByNumber", questions).await;
        let mut headers = Vec::with_capacity(numbers.len());
        for (i, number) in numbers.iter().enumerate() {
            let told = answers.as_ref().ok().and_then(|all| all.get(i)).filter(|raw| raw.get() != "null");
            let read = told.map(|raw| self.read_header(raw, Some(Place::Number(*number))));
            headers.push(match read {
                Some(Ok(header)) => header,
                _ => patiently(|| self.header(ep, Place::Number(*number))).await?,
            });
        }
        Ok(headers)
    }

    /// A block by number, with its receipts in the same round trip where they will be needed.
    async fn at_once(&self, ep: &Endpoint, number: u64, wanted: &Wanted) -> Result<Block, Fail> {
        let place = Place::Number(number);
        let receipts = wanted.receipts || (wanted.logs && self.proves_logs());
        if !receipts || self.quirks.may_state_sync(number) {
            return self.whole(ep, place, wanted).await;
        }
        let both = patiently(|| async {
            match futures::join!(self.raw_block(ep, place, true), self.raw_receipts_at(ep, place)) {
                // No such method, or not by number.
                (Ok(_), Ok(None) | Err(Fail::Unknown(_))) => Ok(None),
                (Ok(raw), Ok(receipts)) => {
                    let block = self.read_header(&raw, Some(place))?;
                    self.finish(self.fetched(block, Some(raw), receipts, None), wanted).map(Some)
                }
                (Err(fail), _) | (_, Err(fail)) => Err(fail),
            }
        });
        match both.await? {
            Some(block) => Ok(block),
            None => self.whole(ep, place, wanted).await,
        }
    }

    /// One block with all that is wanted of it.
    async fn whole(&self, ep: &Endpoint, place: Place, wanted: &Wanted) -> Result<Block, Fail> {
        patiently(|| async { self.finish(self.fetch(ep, place, wanted).await?, wanted) }).await
    }

    /// Logs of a range by filter, with the headers that they belong to.
    async fn logs_between(&self, ep: &Endpoint, from: u64, to: u64, wanted: &Wanted) -> Result<Range, Fail> {
        let mut by_block: BTreeMap<u64, Vec<wire::WireLog>> = BTreeMap::new();
        for addresses in chunks(&wanted.addresses) {
            for topics in chunks(&wanted.topic0) {
                let mut filter = json!({ "fromBlock": U64::from(from), "toBlock": U64::from(to) });
                if !addresses.is_empty() {
                    filter["address"] = json!(addresses);
                }
                if !topics.is_empty() {
                    filter["topics"] = json!([topics]);
                }
                let raw = ep.call("eth_getLogs", json!([filter])).await?;
                let logs = wire::parse_logs(raw.get()).map_err(trouble)?;
                if looks_cut(logs.len()) {
                    let why = format!("exactly {} logs: taken for cut off", logs.len());
                    return Err(Fail::TooLarge { why, hint: None });
                }
                for log in logs {
                    let n = log.block_number.to::<u64>();
                    if n < from || n > to {
                        return Err(Fail::False(format!("a log of block {n} in the answer for {from} to {to}")));
                    }
                    by_block.entry(n).or_default().push(log);
                }
            }
        }
        let unfiltered = wanted.addresses.is_empty() && wanted.topic0.is_empty();
        let headers = self.headers_between(ep, from, to).await?;
        let last = headers.last().map(|h| h.at(self.chain)).ok_or_else(|| Fail::Other("no header".into()))?;
        // A bloom may allow what is not there; a provider may leave out what is. The whole block tells.
        let untold = headers.iter().filter(|h| {
            let believed = unfiltered || self.quirks.bloom_unreliable || by_block.contains_key(&h.header.number);
            !believed && !h.excludes(wanted, &self.quirks)
        });
        let asked: Vec<_> = untold.map(|h| self.whole(ep, Place::Hash(h.hash), wanted)).collect();
        let asked = futures::stream::iter(asked).buffered(AT_ONCE).map_ok(|block| (block.at().number, block));
        let mut whole: BTreeMap<u64, Block> = asked.try_collect().await?;
        let mut blocks = Vec::new();
        for header in headers {
            let told = by_block.remove(&header.header.number).unwrap_or_default();
            if let Some(block) = whole.remove(&header.header.number) {
                if !block.logs.is_empty() {
                    tracing::warn!(chain = %self.name, provider = %ep.shown, block = header.header.number,
                        logs = block.logs.len(), "the provider left out logs of a range; they were asked for by block");
                    blocks.push(block);
                }
                continue;
            }
            let logs = self.checked(&header, told, wanted, unfiltered)?;
            if logs.is_empty() {
                continue;
            }
            let none = Wanted::default();
            let mut doubts = Vec::new();
            let parts = Parts { block: header, logs: None, receipts: None };
            let mut block = wire::assemble(self.chain, parts, &none, &self.quirks, &mut doubts).map_err(trouble)?;
            block.logs = logs;
            blocks.push(block);
        }
        Ok(Range { blocks, to: last })
    }

    fn checked(
        &self,
        header: &WireBlock,
        told: Vec<wire::WireLog>,
        wanted: &Wanted,
        complete: bool,
    ) -> Result<Vec<Log>, Fail> {
        let mut logs = wire::logs_of(header, told).map_err(trouble)?;
        if wanted.addresses.len() > FILTER_MOST || wanted.topic0.len() > FILTER_MOST {
            // Several answers side by side: each was in order, together they are not.
            logs.sort_by_key(|l| l.index);
        }
        let (at, bloom) = ((header.header.number, header.hash), &header.header.logs_bloom);
        let contradiction = |c: proof::Contradiction| Fail::False(c.0);
        if complete {
            proof::all_logs(at, bloom, &logs, None, &self.quirks).map_err(contradiction)?;
            return Ok(logs);
        }
        proof::in_order(&logs).map_err(contradiction)?;
        if let Some(other) = logs.iter().find(|l| !wire::is_wanted(l, wanted)) {
            return Err(Fail::False(format!("log {} of block {} was not asked for", other.index, at.0)));
        }
        proof::in_bloom(at, bloom, &logs, &self.quirks).map_err(contradiction)?;
        Ok(logs)
    }
}

/// Asks one question of many, again where what failed may pass.
async fn patiently<T, F: Future<Output = Result<T, Fail>>>(ask: impl Fn() -> F) -> Result<T, Fail> {
    let mut tries = 1;
    loop {
        match ask().await {
            // Rate limits have been waited for already.
            Err(Fail::Dead(_) | Fail::Other(_) | Fail::Unknown(_)) if tries < TRIES => {
                tokio::time::sleep(jitter(Duration::from_millis(100 << tries))).await;
                tries += 1;
            }
            answer => return answer,
        }
    }
}

fn chunks<T>(all: &[T]) -> Vec<&[T]> {
    if all.is_empty() { vec![&[]] } else { all.chunks(FILTER_MOST).collect() }
}

/// Neighbours in height are parent and child.
fn linked(blocks: impl Iterator<Item = BlockRef>) -> Result<(), Fail> {
    let mut before: Option<BlockRef> = None;
    for block in blocks {
        if let Some(b) = before
            && b.number + 1 == block.number
            && b.hash != block.parent
        {
            return Err(Fail::False(format!("block {} is not the parent of {}", b.number, block.number)));
        }
        before = Some(block);
    }
    Ok(())
}
