//! What becomes of transactions that somebody waits for, as a consumer of the chain beside the plugins.
//! `source -> [tracking] -> journal`.
//!
//! One task a chain. What is said ([`crate::track`]) and what is known are one write to the journal, with a cursor, as a plugin's step
//! is; its stream is never retracted, since it says itself that a block was taken away. While nothing is watched, nothing is
//! fetched. A failed read changes nothing: it is asked again.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};

use super::blocks::{Blocks, Plan};
use super::follow::News;
use crate::chain::Follower;
use crate::journal::{ConsumerId, Journal, JournalError, NewEntry, Step, TrackId, Write};
use crate::model::{
    BlockRef, ChainId, ContentType, EmissionId, EventPosition, PluginName, StreamId, StreamSpec, Wanted,
};
use crate::source::{ReadError, Source, Until, Whereabouts};
use crate::telemetry;
use crate::track::{Item, Key, Look, MOST, Tracker, Wish};

/// The name that no plugin may have, and its stream.
pub const NAME: &str = "chainweir";
const STREAM: &str = "transactions";
const TICK: Duration = Duration::from_millis(500);
/// Asked of the node in one tick, at most.
const LOOKS: usize = 16;
/// Between two looks at one: a young one, and one that is looked for in vain.
const LOOK_SOON: Duration = Duration::from_secs(2);
const LOOK_LATE: Duration = Duration::from_secs(30);
/// Canonical blocks that are remembered, to know where a branch left them.
const PASSED: usize = 512;
/// Final blocks of which more than so many are missing are read in ranges.
const FAR: u64 = 64;
const PAGE: u32 = 10_000;
/// Blocks after which the cursor is written down though nothing was said.
const MARK_EVERY: u64 = 256;

#[derive(Debug)]
pub enum Ask {
    /// Durable before the answer: how many are new.
    Watch(Vec<Wish>, oneshot::Sender<Result<usize, String>>),
    Show(Key, oneshot::Sender<Option<Value>>),
    Forget(Key, oneshot::Sender<Result<bool, String>>),
    /// After a key, so many.
    List(Option<Key>, usize, oneshot::Sender<Vec<(Key, Value)>>),
}

/// What the router tells of the chain.
#[derive(Clone)]
pub struct View {
    pub path: Follower,
    pub safe: u64,
    pub plan: Arc<Plan>,
}

/// A chain's own, as the router holds it.
pub struct Handle {
    pub asks: mpsc::Sender<Ask>,
    pub view: watch::Sender<Option<View>>,
    /// How many, for the picture.
    pub watched: Arc<AtomicU64>,
}

pub struct Tracking {
    pub name: String,
    pub chain: ChainId,
    pub source: Arc<dyn Source>,
    pub blocks: Arc<Blocks>,
    pub journal: Arc<dyn Journal>,
    pub news: mpsc::Sender<(String, News)>,
    /// Seconds.
    pub dropped_after: u64,
    pub watched: Arc<AtomicU64>,
}

/// The consumer and track in the journal: made when something is watched for the first time.
#[derive(Clone, Copy)]
struct Row {
    consumer: ConsumerId,
    track: TrackId,
    cursor: Option<BlockRef>,
}

struct Running {
    own: Tracking,
    row: Option<Row>,
    tracker: Tracker,
    /// Up to here the blocks were shown, and before it these.
    at: Option<BlockRef>,
    passed: VecDeque<BlockRef>,
    /// Counts what was said: part of its id.
    said: u64,
    looks: HashMap<Key, (Instant, u32)>,
    wanted: bool,
}

enum Failed {
    /// Asked again.
    Read(ReadError),
    /// What is in memory may be ahead of the journal: it is read anew.
    Journal(JournalError),
}

impl From<ReadError> for Failed {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}
impl From<JournalError> for Failed {
    fn from(error: JournalError) -> Self {
        Self::Journal(error)
    }
}

fn stream() -> StreamId {
    format!("{NAME}.{STREAM}").parse().expect("it is a name")
}

fn plugin() -> PluginName {
    PluginName::new(NAME).expect("it is a name")
}

fn spec() -> StreamSpec {
    let hash = json!({ "type": ["string", "null"], "pattern": "^0x[0-9a-f]{64}$" });
    let statuses = ["unknown", "pending", "dropped", "included", "replaced", "confirmed", "finalized", "orphaned"];
    let schema = json!({
        "type": "object",
        "required": ["status", "hash", "sender", "nonce", "proven"],
        "properties": {
            "status": { "enum": statuses },
            "hash": hash, "sender": { "type": ["string", "null"] }, "nonce": { "type": ["string", "null"] },
            "proven": { "type": "boolean" }, "block": { "type": "integer" }, "blockhash": hash,
            "transaction_index": { "type": "integer" }, "success": { "type": ["boolean", "null"] },
            "replaced_by": hash, "confirmations": { "type": "integer" }, "label": { "type": "string" },
        },
    });
    StreamSpec {
        name: stream().stream,
        description: "What becomes of the transactions that are watched".into(),
        schema: Some(schema),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

const SAID: &[u8] = b"said";

fn state_key(key: &Key) -> Vec<u8> {
    format!("item/{key}").into_bytes()
}

impl Tracking {
    pub async fn run(self, mut asks: mpsc::Receiver<Ask>, mut view: watch::Receiver<Option<View>>) {
        let mut running = Running {
            own: self,
            row: None,
            tracker: Tracker::default(),
            at: None,
            passed: VecDeque::new(),
            said: 0,
            looks: HashMap::new(),
            wanted: false,
        };
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut loaded, mut troubled) = (false, false);
        loop {
            let done = if loaded { Ok(()) } else { running.load() };
            loaded |= done.is_ok();
            let seen = view.borrow_and_update().clone();
            let done = match (&done, seen) {
                (Ok(()), Some(view)) => running.advance(&view).await,
                _ => done.map_err(Failed::from),
            };
            match done {
                Ok(()) => troubled = false,
                Err(failed) => {
                    let why = match &failed {
                        Failed::Read(error) => error.to_string(),
                        Failed::Journal(error) => error.to_string(),
                    };
                    if !std::mem::replace(&mut troubled, true) {
                        tracing::warn!(chain = running.own.name, why, "watched transactions wait");
                    }
                    loaded &= matches!(failed, Failed::Read(_));
                    tokio::time::sleep(TICK).await;
                }
            }
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                ask = asks.recv() => match ask {
                    Some(ask) => {
                        let seen = view.borrow().clone();
                        match seen.filter(|_| loaded) {
                            Some(view) => loaded &= running.answer(ask, &view).await,
                            // Dropped unanswered: whoever asked is told that it did not work.
                            None => drop(ask),
                        }
                    }
                    None => return,
                },
                _ = tick.tick() => {
                    let seen = view.borrow().clone();
                    if let (true, Some(view)) = (loaded, seen) {
                        loaded &= running.look(&view).await;
                    }
                }
            }
        }
    }
}

impl Running {
    /// As the journal has it.
    fn load(&mut self) -> Result<(), JournalError> {
        let own = &self.own;
        let row = own.journal.consumers()?.into_iter().find(|c| c.plugin.as_str() == NAME && c.chain == own.chain);
        let track = own.journal.tracks()?.into_iter().find(|t| t.stream == stream() && t.chain == own.chain);
        (self.row, self.tracker, self.at, self.said) = (None, Tracker::default(), None, 0);
        self.passed.clear();
        let (Some(row), Some(track)) = (row, track) else { return Ok(()) };
        let mut items: Vec<(Key, Item)> = Vec::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = own.journal.state_scan(row.id, b"item/", after.as_deref(), PAGE)?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            for (key, value) in &page {
                let key = std::str::from_utf8(&key[5..]).ok().and_then(|text| text.parse().ok());
                let broken = || JournalError::Halt { why: format!("the state of {NAME} cannot be read") };
                let item = serde_json::from_slice(value).map_err(|_| broken())?;
                items.push((key.ok_or_else(broken)?, item));
            }
        }
        if let Some(said) = own.journal.state_get(row.id, SAID)? {
            self.said = said.try_into().map_or(0, u64::from_be_bytes);
        }
        self.own.watched.store(items.len() as u64, Ordering::Relaxed);
        self.tracker = Tracker::load(items);
        self.at = row.cursor;
        self.passed.extend(row.cursor);
        self.row = Some(Row { consumer: row.id, track: track.id, cursor: row.cursor });
        Ok(())
    }

    async fn row(&mut self) -> Result<Row, JournalError> {
        if let Some(row) = self.row {
            return Ok(row);
        }
        let (journal, chain) = (self.own.journal.clone(), self.own.chain);
        let made = Write::Consumer { plugin: plugin(), chain, state_version: 1 };
        let consumer = ConsumerId(journal.commit(made).await?.id);
        let track = journal.commit(Write::Track { stream: stream(), chain, spec: spec() }).await?;
        let row = Row { consumer, track: TrackId(track.id), cursor: None };
        self.row = Some(row);
        // Lanes and feeds learn of the stream.
        self.own.news.send((self.own.name.clone(), News::NewTrack)).await.ok();
        Ok(row)
    }

    /// Blocks are fetched with transactions and receipts while something waits for them.
    async fn wish(&mut self) {
        let wanted = self.tracker.is_waiting();
        if wanted != self.wanted {
            self.wanted = wanted;
            self.own.news.send((self.own.name.clone(), News::Tracking(wanted))).await.ok();
        }
    }

    /// Follows the chain to its tip.
    async fn advance(&mut self, view: &View) -> Result<(), Failed> {
        self.wish().await;
        let path = &view.path;
        if !self.tracker.is_waiting() {
            // Nothing to see: the next one begins at the tip of its day.
            self.at = Some(path.tip());
            self.passed.clear();
            self.passed.push_back(path.tip());
            self.tracker.forget_old(now());
            return Ok(self.commit(view, None).await?);
        }
        // Back to what is canonical still.
        let finalized = path.finalized();
        let above = |at: &BlockRef| at.number > finalized.number;
        if self.at.is_some_and(|at| at.number > path.tip().number) {
            // A provider that is behind says nothing of higher blocks.
            return Ok(());
        }
        while self.passed.back().is_some_and(|last| above(last) && !path.is_canonical(last)) {
            self.passed.pop_back();
        }
        let back = self.passed.back().copied().unwrap_or(finalized);
        self.at = Some(back);
        self.tracker.orphan(|place| match path.at(place.number) {
            Some(block) => block.hash == place.hash,
            None => place.number <= finalized.number,
        });
        let wanted = Wanted { transactions: true, receipts: true, ..Wanted::default() };
        let mut next = back.number + 1;
        while next <= finalized.number && finalized.number - next >= FAR {
            let range = self.own.source.range(next, finalized.number, &wanted).await?;
            for block in &range.blocks {
                self.tracker.block(&block.at(), &block.transactions);
            }
            next = range.to.number + 1;
            self.pass(range.to);
            self.stand(view).await?;
        }
        while next <= path.tip().number {
            let at = match path.at(next) {
                Some(at) => *at,
                None => self.own.source.by_number(next).await?,
            };
            let block = self.own.blocks.whole(&at, &wanted, &view.plan).await?;
            self.tracker.block(&at, &block.transactions);
            self.pass(at);
            next += 1;
        }
        self.stand(view).await
    }

    fn pass(&mut self, at: BlockRef) {
        self.at = Some(at);
        self.passed.push_back(at);
        if self.passed.len() > PASSED {
            self.passed.pop_front();
        }
    }

    async fn stand(&mut self, view: &View) -> Result<(), Failed> {
        let Some(at) = self.at else { return Ok(()) };
        self.tracker.stands(at.number, view.path.finalized().number, now());
        self.tracker.forget_old(now());
        Ok(self.commit(view, None).await?)
    }

    /// What was said and what has changed, with the cursor, or nothing of it.
    async fn commit(&mut self, view: &View, taken: Option<i64>) -> Result<(), JournalError> {
        let (said, changed) = self.tracker.take();
        self.own.watched.store(self.tracker.len() as u64, Ordering::Relaxed);
        let at = self.at.unwrap_or(view.path.tip());
        // Now and then where nothing happens: a restart reads from here.
        let moved = self.row.and_then(|row| row.cursor).is_some_and(|cursor| at.number >= cursor.number + MARK_EVERY);
        if said.is_empty() && changed.is_empty() && !moved && taken.is_none() {
            return Ok(());
        }
        let mut row = self.row().await?;
        let (journal, chain) = (self.own.journal.clone(), self.own.chain);
        if let Some(from) =
            row.cursor.filter(|from| from.number > at.number || (from.number == at.number && *from != at))
        {
            journal.commit(Write::Undo { consumer: row.consumer, from, to: at }).await?;
            row.cursor = Some(at);
            self.row = Some(row);
        }
        let mut entries = Vec::with_capacity(said.len());
        let mut statuses = Vec::with_capacity(said.len());
        for statement in said {
            self.said += 1;
            statuses.push(statement.payload["status"].as_str().unwrap_or_default().to_owned());
            let place = statement.block.map(|place| place.block(chain));
            entries.push(NewEntry {
                track: row.track,
                emission: EmissionId::of(
                    chain,
                    &alloy_primitives::keccak256(statement.key.to_string()),
                    EventPosition::Block,
                    &stream(),
                    self.said as u32,
                    (self.said >> 32) as u32,
                ),
                block: place.filter(|place| place.number <= at.number).unwrap_or(at),
                position: EventPosition::Block,
                ordinal: 0,
                lane_key: statement.key.to_string(),
                content_type: ContentType::Json,
                payload: statement.payload.to_string().into_bytes(),
            });
        }
        let changed = changed.into_iter().map(|(key, item)| {
            let value = item.map(|item| serde_json::to_vec(&item).expect("an item is JSON"));
            (state_key(&key), value)
        });
        let mut state: Vec<_> = changed.collect();
        state.push((SAID.to_vec(), Some(self.said.to_be_bytes().to_vec())));
        let finalized = view.path.finalized().number.min(at.number);
        let step = Step {
            consumer: row.consumer,
            from: row.cursor,
            cursor: at,
            undo: false,
            // The cursor stays where no block came.
            aside: row.cursor == Some(at),
            said: None,
            safe: view.safe.min(at.number),
            finalized,
            state_version: 1,
            state,
            entries,
            poison: vec![],
            asks: vec![],
            taken,
        };
        journal.commit(Write::Step(step)).await?;
        statuses.iter().for_each(|status| telemetry::transactions_told(chain, status).increment(1));
        self.row = Some(Row { cursor: Some(at), ..row });
        Ok(())
    }

    /// What plugins asked for, as far as there is room: up to which number it has been taken in, once that is written down.
    fn take_in(&mut self) -> Option<i64> {
        let room = MOST.saturating_sub(self.tracker.len());
        let asks = self.own.journal.asks(self.own.chain, room.min(PAGE as usize)).unwrap_or_else(|error| {
            tracing::warn!(chain = self.own.name, %error, "what plugins ask to be watched waits");
            vec![]
        });
        let taken = asks.last().map(|(id, _)| *id);
        for (_, body) in asks {
            match serde_json::from_slice(&body) {
                Ok(Wish { key, confirmations, label }) => {
                    self.tracker.watch(key, confirmations, label);
                }
                Err(error) => tracing::error!(chain = self.own.name, %error, "a plugin's wish cannot be read; passed"),
            }
        }
        taken
    }

    /// False where memory and journal may differ.
    async fn answer(&mut self, ask: Ask, view: &View) -> bool {
        match ask {
            Ask::Show(key, reply) => drop(reply.send(self.tracker.get(&key).map(|item| item.told(None)))),
            Ask::List(after, limit, reply) => {
                let page = self.tracker.list(after).take(limit);
                drop(reply.send(page.map(|(key, item)| (*key, item.told(None))).collect()));
            }
            Ask::Watch(wishes, reply) => {
                let new = wishes.iter().filter(|wish| self.tracker.get(&wish.key).is_none()).count();
                if self.tracker.len() + new > MOST {
                    let why = format!("{} are watched on this chain, and at most {MOST} can be", self.tracker.len());
                    drop(reply.send(Err(why)));
                    return true;
                }
                let watched = wishes.into_iter().map(|Wish { key, confirmations, label }| {
                    usize::from(self.tracker.watch(key, confirmations, label))
                });
                let added = watched.sum();
                let done = self.commit(view, None).await;
                let well = done.is_ok();
                drop(reply.send(done.map(|()| added).map_err(|e| e.to_string())));
                return well;
            }
            Ask::Forget(key, reply) => {
                let known = self.tracker.forget(&key);
                let done = self.commit(view, None).await;
                let well = done.is_ok();
                drop(reply.send(done.map(|()| known).map_err(|e| e.to_string())));
                return well;
            }
        }
        true
    }

    /// Takes in what plugins ask for, and asks the node for some of those that are in no block. False where memory and
    /// journal may differ.
    async fn look(&mut self, view: &View) -> bool {
        let taken = self.take_in();
        let started = Instant::now();
        let due = |key: &Key| self.looks.get(key).is_none_or(|(at, _)| *at <= started);
        let keys: Vec<Key> = self.tracker.open().map(|(key, _)| *key).filter(|key| due(key)).take(LOOKS).collect();
        self.looks.retain(|key, _| self.tracker.get(key).is_some_and(|item| item.fate.is_open()));
        for key in keys {
            let (_, times) = self.looks.get(&key).copied().unwrap_or((started, 0));
            match self.look_at(key, view).await {
                Ok(()) => {}
                // Its source has no mempool, as an archive has none: blocks alone tell.
                Err(ReadError::Halt { .. }) => {}
                Err(error) => {
                    tracing::debug!(chain = self.own.name, %key, %error, "a watched transaction is asked for again");
                }
            }
            let wait = (LOOK_SOON * (1 << times.min(4))).min(LOOK_LATE);
            self.looks.insert(key, (Instant::now() + wait, times + 1));
        }
        let done = self.commit(view, taken).await;
        if let Err(error) = &done {
            tracing::warn!(chain = self.own.name, %error, "watched transactions wait");
        }
        done.is_ok()
    }

    async fn look_at(&mut self, key: Key, view: &View) -> Result<(), ReadError> {
        let source = self.own.source.clone();
        let look = match key {
            Key::Hash(hash) => match source.transaction(hash).await? {
                Whereabouts::Unknown => Look::Unknown,
                Whereabouts::Pending(tx) => Look::Pending(Some((tx.from, tx.nonce))),
                Whereabouts::Mined(number) => return self.find_in(key, number, view).await,
            },
            Key::Nonce(sender, nonce) => {
                let tip = self.at.map_or(view.path.tip().number, |at| at.number);
                if source.sent(sender, Until::Block(tip)).await? > nonce {
                    let number = self.first_above(sender, nonce, tip).await?;
                    return self.find_in(key, number, view).await;
                }
                match source.sent(sender, Until::Pending).await? > nonce {
                    true => Look::Pending(None),
                    false => Look::Unknown,
                }
            }
        };
        self.tracker.looked(key, look, now(), self.own.dropped_after);
        Ok(())
    }

    /// The block in which a nonce was used, by bisection: of a node that has the state of those blocks.
    async fn first_above(&self, sender: alloy_primitives::Address, nonce: u64, tip: u64) -> Result<u64, ReadError> {
        let (mut low, mut high) = (0, tip);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.own.source.sent(sender, Until::Block(middle)).await? > nonce {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(low)
    }

    /// A node names a block that was passed before this one was watched: the block itself proves it.
    async fn find_in(&mut self, key: Key, number: u64, view: &View) -> Result<(), ReadError> {
        let Some(tip) = self.at.filter(|at| number <= at.number) else { return Ok(()) };
        let at = match view.path.at(number) {
            Some(at) => *at,
            None => self.own.source.by_number(number).await?,
        };
        let wanted = Wanted { transactions: true, receipts: true, ..Wanted::default() };
        let block = self.own.blocks.whole(&at, &wanted, &view.plan).await?;
        let it = block.transactions.iter().filter(|tx| match key {
            Key::Hash(hash) => tx.hash == hash,
            Key::Nonce(sender, nonce) => (tx.from, tx.nonce) == (sender, nonce),
        });
        let it: Vec<_> = it.cloned().collect();
        self.tracker.block(&at, &it);
        self.tracker.stands(tip.number, view.path.finalized().number, now());
        Ok(())
    }
}
