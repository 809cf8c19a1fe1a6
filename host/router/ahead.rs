//! Final blocks for plugins that catch up: read ahead, several ranges at a time, matched once, and shared.
//!
//! ```text
//! asked for 5000:  [4096..4607] held  [4608..5119] held  [5120..5631] being read  [5632..6143] being read
//!                                      ^ answered from here             ... while the plugin steps
//! ```
//!
//! Ranges begin at round numbers, so that plugins that are near each other find the same ones; one that is far behind has
//! its own. How many blocks a range has follows from how much is in them. What is held is bounded by bytes.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, Shared};
use futures::{FutureExt, StreamExt, TryStreamExt};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::blocks::Plan;
use crate::index::Matched;
use crate::model::{Block, BlockRef, Transfer, Wanted};
use crate::source::{Range, ReadError, Source};

/// Ranges that are being read at a time; and before anything is known of how much is in them.
const AT_ONCE: usize = 32;
const AT_ONCE_BLINDLY: usize = 4;
/// What a range should come to; of one chain, what is read and being read ahead of whoever needs it, and what is kept behind
/// them for others.
const RANGE_BYTES: usize = 1 << 20;
const AHEAD_BYTES: usize = 16 << 20;
const KEPT_BYTES: usize = 8 << 20;
const BLOCKS_LEAST: u64 = 16;
/// Before anything is known of what is in them: a guess that is too large fills memory, one too small is doubled soon.
const BLOCKS_FIRST: u64 = 32;
const BLOCKS_MOST: u64 = 512;
/// No source is asked for more at once.
const RANGE_BLOCKS: u64 = 2_000;
/// Blocks of one range whose traces are asked for: a node executes them anew.
const TRACED_AT_ONCE: usize = 8;
/// Nobody was near it for so long: it is not held. A slow plugin takes its time between two ranges.
const IDLE: Duration = Duration::from_secs(60);

/// A range's blocks, at most up to its end.
struct Piece {
    wanted: Wanted,
    end: u64,
    read: Reading,
    /// Somebody came by, on the way to what is needed next.
    used: Instant,
    /// Somebody was given it. Until then it makes no room for others: it would be read twice.
    taken: bool,
}

type Reading = Shared<BoxFuture<'static, Result<Arc<Read>, ReadError>>>;

struct Read {
    blocks: Vec<Block>,
    to: BlockRef,
    bytes: usize,
    /// What moved in each of them, once somebody asked.
    transfers: OnceCell<Arc<Vec<Vec<Transfer>>>>,
    /// By the plan that matched them last; and with what moved in them.
    matched: [Mutex<Option<(u64, Arc<Vec<Arc<Matched>>>)>>; 2],
}

impl Piece {
    fn is_being_read(&self) -> bool {
        self.read.peek().is_none()
    }

    fn done(&self) -> Option<&Arc<Read>> {
        self.read.peek().and_then(|read| read.as_ref().ok())
    }

    /// How far it speaks for the chain; what is being read yet is hoped to reach its end.
    fn reaches(&self) -> u64 {
        self.done().map_or(self.end, |read| read.to.number)
    }
}

pub struct Ahead {
    source: Arc<dyn Source>,
    pieces: Mutex<Pieces>,
}

struct Pieces {
    by_first: BTreeMap<u64, Piece>,
    /// How many blocks the next one is to have.
    blocks: u64,
    /// How many bytes lately were in one of them; 0 where that is not known yet.
    block_bytes: usize,
}

impl Pieces {
    /// Bytes of what was read, and was given to somebody, or not yet.
    fn held(&self, taken: bool) -> usize {
        let held = self.by_first.values().filter(|piece| piece.taken == taken);
        held.filter_map(Piece::done).map(|read| read.bytes).sum()
    }
}

fn bytes(block: &Block) -> usize {
    let logs = block.logs.iter().map(|log| size_of_val(log) + 32 * log.topics.len() + log.data.len());
    let transactions = block.transactions.iter().map(|tx| size_of_val(tx) + tx.input.len());
    size_of_val(block) + logs.chain(transactions).sum::<usize>() + size_of_val(&*block.transfers)
}

impl Ahead {
    pub fn new(source: Arc<dyn Source>) -> Self {
        let pieces = Pieces { by_first: BTreeMap::new(), blocks: BLOCKS_FIRST, block_bytes: 0 };
        Self { source, pieces: Mutex::new(pieces) }
    }

    fn pieces(&self) -> MutexGuard<'_, Pieces> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Matched blocks from `first` on, and the last block that this speaks for. All up to `last` are final.
    pub async fn matched(
        &self,
        first: u64,
        last: u64,
        plan: &Arc<Plan>,
        traced: bool,
    ) -> Result<(Vec<Arc<Matched>>, BlockRef), ReadError> {
        loop {
            let read = self.read(first, last, plan.index.wanted()).await?;
            if read.to.number < first {
                continue;
            }
            let transfers = if traced { Some(read.traced(&self.source).await?) } else { None };
            let (own, plan) = (read.clone(), plan.clone());
            let matched = tokio::task::spawn_blocking(move || own.matched(&plan, transfers));
            let matched =
                matched.await.map_err(|e| ReadError::Again { why: format!("matching panicked: {e}"), after: None })?;
            let ours = matched.iter().filter(|m| m.at.number >= first).cloned();
            return Ok((ours.collect(), read.to));
        }
    }

    async fn read(&self, first: u64, last: u64, wanted: &Wanted) -> Result<Arc<Read>, ReadError> {
        let (from, reading) = self.reading(first, last, wanted);
        let read = reading.await?;
        self.learn(from, &read);
        Ok(read)
    }

    /// The piece that holds a block, and others after it begun.
    fn reading(&self, first: u64, last: u64, wanted: &Wanted) -> (u64, Reading) {
        let mut pieces = self.pieces();
        let ahead = pieces.held(false);
        let mut under_way = pieces.by_first.values().filter(|piece| piece.is_being_read()).count();
        let (at_once, each) = match pieces.block_bytes {
            0 => (AT_ONCE_BLINDLY, RANGE_BYTES),
            bytes => (AT_ONCE, bytes.saturating_mul(pieces.blocks as usize)),
        };
        let (mut next, mut answer) = (first, None);
        while next <= last {
            // One that failed is asked for again, by whoever needs it next.
            let found = pieces.by_first.range_mut(..=next).next_back().filter(|(_, piece)| {
                piece.reaches() >= next && piece.wanted.covers(wanted) && !matches!(piece.read.peek(), Some(Err(_)))
            });
            let (from, reaches, read) = match found {
                Some((from, piece)) => {
                    piece.used = Instant::now();
                    piece.taken |= answer.is_none();
                    (*from, piece.reaches(), piece.read.clone())
                }
                None if answer.is_some() && (under_way >= at_once || ahead + under_way * each >= AHEAD_BYTES) => {
                    break;
                }
                None => {
                    let end = last.min((next / pieces.blocks + 1) * pieces.blocks - 1);
                    let reading = read(self.source.clone(), next, end, wanted.clone());
                    let broke = |_| Err(ReadError::Again { why: "reading a range broke down".into(), after: None });
                    let reading = AssertUnwindSafe(reading).catch_unwind().map(move |read| read.unwrap_or_else(broke));
                    let read = reading.boxed().shared();
                    // A task of its own: it is read, and known to be, whether or not somebody waits for it.
                    tokio::spawn(read.clone());
                    let (wanted, used, taken) = (wanted.clone(), Instant::now(), answer.is_none());
                    pieces.by_first.insert(next, Piece { wanted, end, read: read.clone(), used, taken });
                    under_way += 1;
                    (next, end, read)
                }
            };
            if answer.is_none() {
                answer = Some((from, read));
            }
            next = reaches + 1;
        }
        answer.expect("the first turn of the loop gives it, and `first` is not above `last`")
    }

    /// What a range held says how large the next ones should be; what was not used for longest makes room.
    fn learn(&self, from: u64, read: &Read) {
        let mut pieces = self.pieces();
        let count = (read.to.number - from + 1) as usize;
        pieces.block_bytes = (read.bytes / count).max(1);
        let fits = (RANGE_BYTES / pieces.block_bytes) as u64;
        // Powers of two: ranges of different size begin at the same places.
        let fits = (fits.clamp(BLOCKS_LEAST, BLOCKS_MOST) + 1).next_power_of_two() / 2;
        pieces.blocks = if fits > pieces.blocks { pieces.blocks * 2 } else { fits };
        let mut kept = pieces.held(true);
        while kept > KEPT_BYTES {
            let done =
                pieces.by_first.iter().filter(|(at, piece)| **at != from && piece.taken && piece.done().is_some());
            let Some(oldest) = done.min_by_key(|(_, piece)| piece.used).map(|(at, _)| *at) else { break };
            kept -= pieces.by_first.remove(&oldest).as_ref().and_then(Piece::done).map_or(0, |read| read.bytes);
        }
    }

    /// Gives back what nobody has asked for in a while. Whoever waits for a slow node comes by when it has answered.
    pub fn rest(&self) {
        let mut pieces = self.pieces();
        if !pieces.by_first.values().any(|piece| piece.taken && piece.is_being_read()) {
            pieces.by_first.retain(|_, piece| piece.used.elapsed() < IDLE);
        }
    }
}

impl Read {
    async fn traced(&self, source: &Arc<dyn Source>) -> Result<Arc<Vec<Vec<Transfer>>>, ReadError> {
        let all = || async { Ok(Arc::new(traces(source, &self.blocks).await?)) };
        self.transfers.get_or_try_init(all).await.cloned()
    }

    fn matched(&self, plan: &Plan, transfers: Option<Arc<Vec<Vec<Transfer>>>>) -> Arc<Vec<Arc<Matched>>> {
        let slot = &self.matched[usize::from(transfers.is_some())];
        let mut matched = slot.lock().unwrap_or_else(PoisonError::into_inner);
        match &*matched {
            Some((generation, blocks)) if *generation == plan.generation => blocks.clone(),
            _ => {
                let one = |(i, block): (usize, &Block)| match &transfers {
                    None => Arc::new(plan.match_block(block)),
                    Some(transfers) => {
                        let transfers = transfers[i].clone();
                        Arc::new(plan.match_block(&Block { transfers, ..block.clone() }))
                    }
                };
                let blocks = Arc::new(self.blocks.iter().enumerate().map(one).collect());
                *matched = Some((plan.generation, Arc::clone(&blocks)));
                blocks
            }
        }
    }
}

/// What moved in each of some blocks, some of them asked for at a time.
pub async fn traces(source: &Arc<dyn Source>, blocks: &[Block]) -> Result<Vec<Vec<Transfer>>, ReadError> {
    let asked = blocks.iter().map(|block| source.transfers(Arc::new(block.clone())));
    futures::stream::iter(asked.collect::<Vec<_>>()).buffered(TRACED_AT_ONCE).try_collect().await
}

/// One answer of a source for final blocks: from the first on, and of nothing that was not asked for.
pub async fn range(source: &dyn Source, from: u64, to: u64, wanted: &Wanted) -> Result<Range, ReadError> {
    let to = to.min(from.saturating_add(RANGE_BLOCKS - 1));
    let range = source.range(from, to, wanted).await?;
    let outside = |at: BlockRef| at.number < from || at.number > to;
    if outside(range.to) || range.blocks.iter().any(|b| outside(b.at())) {
        let why = format!("asked for blocks {from} to {to}, got an answer up to {}", range.to);
        return Err(ReadError::Again { why, after: None });
    }
    Ok(range)
}

/// A range, from as many answers as the source needs; less of it where it is much.
async fn read(source: Arc<dyn Source>, first: u64, end: u64, wanted: Wanted) -> Result<Arc<Read>, ReadError> {
    let (mut blocks, mut size, mut before): (Vec<Block>, usize, Option<BlockRef>) = (Vec::new(), 0, None);
    let mut next = first;
    let to = loop {
        let range = range(&*source, next, end, &wanted).await?;
        if let (Some(before), Some(block)) = (before, range.blocks.first().map(Block::at))
            && block.number == before.number + 1
            && block.parent != before.hash
        {
            let why = format!("{block} does not follow {before}");
            return Err(ReadError::Again { why, after: None });
        }
        size += range.blocks.iter().map(bytes).sum::<usize>();
        blocks.extend(range.blocks);
        (next, before) = (range.to.number + 1, Some(range.to));
        if next > end || size > RANGE_BYTES {
            break range.to;
        }
    };
    Ok(Arc::new(Read { blocks, to, bytes: size, transfers: OnceCell::new(), matched: Default::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ChainId, Header, Log};
    use crate::source::Tag;
    use alloy_primitives::{Address, B256};

    /// Every block holds so many bytes, and every range takes its time.
    struct Slow {
        bytes: usize,
        takes: Duration,
        asked: Mutex<BTreeMap<u64, u32>>,
    }

    fn at(number: u64) -> BlockRef {
        let hash = |n: u64| B256::from(alloy_primitives::U256::from(n.wrapping_add(1)));
        BlockRef { chain: ChainId(1), number, hash: hash(number), parent: hash(number.wrapping_sub(1)), time: number }
    }

    #[async_trait::async_trait]
    impl Source for Slow {
        fn chain(&self) -> ChainId {
            ChainId(1)
        }
        async fn head(&self) -> Result<BlockRef, ReadError> {
            unreachable!()
        }
        async fn tagged(&self, _: Tag) -> Result<Option<BlockRef>, ReadError> {
            unreachable!()
        }
        async fn by_hash(&self, _: B256) -> Result<BlockRef, ReadError> {
            unreachable!()
        }
        async fn by_number(&self, _: u64) -> Result<BlockRef, ReadError> {
            unreachable!()
        }
        async fn block(&self, _: &BlockRef, _: &Wanted) -> Result<Block, ReadError> {
            unreachable!()
        }
        async fn changed(&self) {}
        async fn range(&self, from: u64, to: u64, _: &Wanted) -> Result<Range, ReadError> {
            for number in from..=to {
                *self.asked.lock().unwrap().entry(number).or_default() += 1;
            }
            tokio::time::sleep(self.takes).await;
            let log = Log {
                index: 0,
                transaction_index: 0,
                transaction_hash: B256::ZERO,
                address: Address::ZERO,
                topics: vec![],
                data: vec![0; self.bytes].into(),
            };
            let block = |number| Block {
                header: Header::of(at(number)),
                transactions: vec![],
                transfers: vec![],
                logs: vec![log.clone()],
            };
            Ok(Range { blocks: (from..=to).map(block).collect(), to: at(to) })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_node_and_a_slow_plugin_read_nothing_twice_and_hold_no_more_than_they_may() {
        for (bytes, takes, step) in
            [(100_000, 20, 0), (100_000, 200, 0), (100_000, 0, 20), (100_000, 20, 20), (1_000, 20, 20), (10, 1, 0)]
        {
            let takes = Duration::from_secs(takes);
            let source = Arc::new(Slow { bytes, takes, asked: Mutex::default() });
            let ahead = Arc::new(Ahead::new(source.clone()));
            let resting = ahead.clone();
            // As the router does.
            let resting = tokio::spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_secs(2)).await;
                    resting.rest();
                }
            });
            let (mut next, last, mut most) = (0, 999, 0);
            while next <= last {
                let read = ahead.read(next, last, &Wanted::default()).await.unwrap();
                next = read.to.number + 1;
                let held = |pieces: &Pieces| pieces.held(true) + pieces.held(false);
                most = most.max(held(&ahead.pieces()));
                tokio::time::sleep(Duration::from_secs(step)).await;
            }
            resting.abort();
            let asked = source.asked.lock().unwrap().clone();
            assert_eq!(asked.len(), 1_000);
            assert!(asked.values().all(|times| *times == 1), "{bytes} {takes:?} {step}: {asked:?}");
            // The first few are of a size that was a guess.
            let guessed = AT_ONCE_BLINDLY * BLOCKS_FIRST as usize * (bytes + 1_000);
            assert!(
                most <= KEPT_BYTES + AHEAD_BYTES.max(guessed) + 4 * RANGE_BYTES,
                "{bytes} {takes:?} {step}: {most}"
            );
        }
    }
}
