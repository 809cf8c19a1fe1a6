//! Drives a chain's follower with its source: asks for heads, fetches the headers that the follower needs, and
//! tells the router what became of it. One task per chain; the first of the flow's two hand-offs.
//!
//! A read that fails changes nothing: the round is tried again, later and later. A chain that halts waits for
//! a person.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use tokio::sync::{Notify, mpsc};

use crate::chain::{Follower, Halt, Offer};
use crate::config::Finality;
use crate::model::{BlockRef, BlockUpdate, Transaction};
use crate::source::{ReadError, Source, Tag};
use crate::telemetry::{self, SourceErrorKind};

/// A head further than this above our tip begins a new path instead of being walked back to block by block.
const LONGEST_WALK: u64 = 512;
/// Headers asked for at the same time when a path begins.
const HEADERS_AT_ONCE: usize = 16;
/// Final and safe blocks may move while the head stands still (a rollup's batches are final later): asked at least so often.
const SETTLE_EVERY: Duration = Duration::from_secs(10);
const RETRY_MS: [u64; 6] = [100, 500, 1_000, 2_000, 5_000, 10_000];

/// What a chain's task says.
#[derive(Debug)]
pub enum News {
    /// A path begins here: all from the finalized block to the tip. Cursors on earlier blocks are to be checked.
    Anchored {
        path: Follower,
        safe: u64,
    },
    /// The path changed; `path` is what it is now.
    Changed {
        path: Follower,
        updates: Vec<BlockUpdate>,
        safe: u64,
    },
    /// The journal has a track that it had not before.
    NewTrack,
    /// Transactions are watched, or none any more: blocks are to be fetched with all of theirs.
    Tracking(bool),
    /// Transactions that are in no block yet.
    Pending(Vec<Transaction>),
    /// The provider answers again.
    Well,
    Trouble {
        why: String,
    },
    /// Waits for `Command::AcceptReorg`, or for another configuration.
    Halted {
        why: String,
    },
    /// A recording was played to its end.
    Ended,
}

enum Stop {
    Read(ReadError),
    Halt(String),
    /// The router is gone.
    Gone,
}

impl From<ReadError> for Stop {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Halt { why } => Self::Halt(why),
            other => Self::Read(other),
        }
    }
}

impl From<Halt> for Stop {
    fn from(halt: Halt) -> Self {
        Self::Halt(halt.to_string())
    }
}

pub struct Follow {
    pub name: String,
    pub source: Arc<dyn Source>,
    pub finality: Finality,
    /// As the journal has it. A provider that contradicts it halts the chain.
    pub finalized: Option<BlockRef>,
    pub news: mpsc::Sender<(String, News)>,
    /// A person accepts the provider's chain as it is.
    pub accept: Arc<Notify>,
}

impl Follow {
    pub async fn run(mut self) {
        let mut path: Option<Follower> = None;
        let mut safe = 0;
        let mut failures = 0;
        // When finality is to be asked for; `None` at once.
        let mut settled = None;
        loop {
            match self.round(&mut path, &mut safe, &mut settled).await {
                Ok(()) => {
                    if failures > 0 {
                        failures = 0;
                        if self.tell(News::Well).await.is_err() {
                            return;
                        }
                    }
                    if self.source.ended() {
                        if self.tell(News::Ended).await.is_ok() {
                            self.news.closed().await;
                        }
                        return;
                    }
                    tokio::select! {
                        () = self.source.changed() => {}
                        () = self.news.closed() => return,
                    }
                }
                Err(Stop::Gone) => return,
                Err(Stop::Halt(why)) => {
                    if self.tell(News::Halted { why }).await.is_err() {
                        return;
                    }
                    tokio::select! {
                        () = self.accept.notified() => {}
                        () = self.news.closed() => return,
                    }
                    self.finalized = None;
                    path = None;
                }
                Err(Stop::Read(error)) => {
                    let wish = if let ReadError::Again { after, .. } = &error { *after } else { None };
                    let kind = match &error {
                        ReadError::Again { .. } => SourceErrorKind::Again,
                        ReadError::Unknown { .. } => SourceErrorKind::Unknown,
                        ReadError::False { .. } => SourceErrorKind::False,
                        ReadError::Halt { .. } => SourceErrorKind::Halt,
                    };
                    telemetry::source_errors(self.source.chain(), kind).increment(1);
                    let gap = Duration::from_millis(RETRY_MS[failures.min(RETRY_MS.len() - 1)]);
                    failures += 1;
                    // A block that was there a moment ago and is not now is a reorg under way, not an outage.
                    let worth_telling = failures > 1 || !matches!(error, ReadError::Unknown { .. });
                    if worth_telling && self.tell(News::Trouble { why: error.to_string() }).await.is_err() {
                        return;
                    }
                    tokio::select! {
                        () = tokio::time::sleep(gap.max(wish.unwrap_or_default())) => {}
                        () = self.news.closed() => return,
                    }
                }
            }
        }
    }

    async fn tell(&self, news: News) -> Result<(), Stop> {
        self.news.send((self.name.clone(), news)).await.map_err(|_| Stop::Gone)
    }

    async fn round(
        &mut self,
        path: &mut Option<Follower>,
        safe: &mut u64,
        settled: &mut Option<Instant>,
    ) -> Result<(), Stop> {
        let head = self.source.head().await?;
        let near = path.as_mut().filter(|p| head.number <= p.tip().number.saturating_add(LONGEST_WALK));
        let Some(path) = near else {
            let (begun, begun_safe) = self.anchor(&head, path.as_ref().map(Follower::finalized)).await?;
            *safe = begun_safe;
            *path = Some(begun.clone());
            *settled = Some(Instant::now());
            return self.tell(News::Anchored { path: begun, safe: *safe }).await;
        };
        let mut branch = vec![head];
        loop {
            match path.offer(&branch) {
                Offer::Nothing => break,
                Offer::Need { hash, number } => {
                    let block = self.source.by_hash(hash).await?;
                    if block.number != number || block.hash != hash {
                        let why = format!("asked for block {number} ({hash}), got {block}");
                        return Err(Stop::Read(ReadError::False { why }));
                    }
                    branch.push(block);
                }
                Offer::Changed(updates) => {
                    // Before anything else is asked: every round trip here is added latency.
                    self.tell(News::Changed { path: path.clone(), updates, safe: *safe }).await?;
                    *settled = None;
                    break;
                }
                Offer::Halt(halt) => return Err(halt.into()),
            }
        }
        let waits = matches!(self.finality, Finality::Tags) && path.finalized() != path.tip();
        if settled.is_none_or(|at| waits && at.elapsed() >= SETTLE_EVERY) {
            self.settle(path, safe).await?;
            *settled = Some(Instant::now());
        }
        Ok(())
    }

    /// Moves finalized and safe forward, as the node or the depth has them.
    async fn settle(&self, path: &mut Follower, safe: &mut u64) -> Result<(), Stop> {
        let before = (*safe, path.finalized().number);
        let mut updates = Vec::new();
        match self.finality {
            Finality::Tags => {
                let (finalized, safe_block) = futures::try_join!(self.tag(Tag::Finalized), self.tag(Tag::Safe))?;
                updates.extend(path.finalize(&finalized)?);
                if path.is_canonical(&safe_block) {
                    *safe = (*safe).max(safe_block.number);
                }
            }
            Finality::Depth(depth) => {
                let target = path.tip().number.saturating_sub(depth);
                if let Some(block) = path.at(target).copied() {
                    updates.extend(path.finalize(&block)?);
                }
            }
        }
        *safe = (*safe).max(path.finalized().number);
        if before != (*safe, path.finalized().number) {
            self.tell(News::Changed { path: path.clone(), updates, safe: *safe }).await?;
        }
        Ok(())
    }

    async fn tag(&self, tag: Tag) -> Result<BlockRef, Stop> {
        let set = || {
            format!(
                "set 'finality = {{ depth = N }}' in [chain.{}], with the depth at which this chain does not reorganise \
                 any more",
                self.name
            )
        };
        match self.source.tagged(tag).await {
            Ok(Some(block)) => Ok(block),
            Ok(None) => Err(Stop::Halt(format!("the node knows no {tag:?} tag: {}", set()))),
            // A young chain has none yet; some nodes never say more than null.
            Err(ReadError::Unknown { .. }) => {
                let why = format!("the node names no {tag:?} block; if it never does, {}", set());
                Err(Stop::Read(ReadError::Again { why, after: None }))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Begins a path at the finalized block.
    async fn anchor(&self, head: &BlockRef, ours: Option<BlockRef>) -> Result<(Follower, u64), Stop> {
        let (mut finalized, mut safe) = match self.finality {
            Finality::Tags => {
                let (finalized, safe) = futures::try_join!(self.tag(Tag::Finalized), self.tag(Tag::Safe))?;
                (finalized, safe.number)
            }
            Finality::Depth(depth) => {
                let number = head.number.saturating_sub(depth).max(self.source.first().unwrap_or(0));
                let block = self.source.by_number(number).await?;
                (block, block.number)
            }
        };
        // What was final before must be so still.
        if let Some(before) = ours.or(self.finalized) {
            let there = self.source.by_number(before.number).await?;
            if there.hash != before.hash {
                return Err(Halt::OtherFinalized { claimed: there, finalized: before }.into());
            }
            if finalized.number < before.number {
                finalized = before;
            }
        }
        safe = safe.max(finalized.number);
        let mut path = Follower::new(finalized);
        let numbers = finalized.number + 1..head.number;
        let mut branch: Vec<BlockRef> = futures::stream::iter(numbers)
            .map(|number| self.source.by_number(number))
            .buffered(HEADERS_AT_ONCE)
            .try_collect()
            .await?;
        if head.number > finalized.number {
            branch.push(*head);
        }
        branch.reverse();
        let linked = branch.windows(2).all(|w| w[0].parent == w[1].hash);
        if branch.is_empty() {
            return Ok((path, safe));
        }
        if !linked {
            // A reorg while we asked.
            let why = format!("the blocks up to {head} are not linked");
            return Err(Stop::Read(ReadError::Again { why, after: None }));
        }
        match path.offer(&branch) {
            Offer::Changed(_) => Ok((path, safe)),
            Offer::Halt(halt) => Err(halt.into()),
            Offer::Nothing | Offer::Need { .. } => {
                let why = format!("the blocks up to {head} do not reach the finalized {finalized}");
                Err(Stop::Read(ReadError::Again { why, after: None }))
            }
        }
    }
}
