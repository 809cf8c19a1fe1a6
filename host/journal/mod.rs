//! Fifth stage: one durable transaction per step. `plugin -> journal -> lane`.
//!
//! The journal holds, per consumer (a plugin on a chain): its cursor, its state with the undo of every block
//! that is not final, and the entries that it emitted or took back. The entries are the queue: lanes and
//! feeds read them by offset. It knows nothing of wasm, of providers or of destinations.
//!
//! ```text
//! consumer  (plugin, chain)                cursor, marks, state, undo
//! track     (plugin, stream, chain)        entries in offset order: apply, retract
//! lane      (output, track)                position: all up to it is settled
//!             parked (.., lane key)        a key that failed and waits alone
//! ```
//!
//! What every output has settled goes when the window that feeds can look back has passed; an entry that
//! somebody may still need stays, alone (`forget`).
//!
//! Every write goes through [`Journal::commit`] and is durable when that returns; writes that wait together
//! share one transaction. Reads see committed data only.

mod forget;
mod readers;
mod replay;
mod schema;
pub mod sqlite;
#[cfg(test)]
mod tests;
mod write;

use std::time::Duration;

use alloy_primitives::B256;
use tokio::sync::watch;

use crate::model::{
    BlockRef, ChainId, ContentType, DeliveryId, Edit, EditId, EmissionId, EventPosition, Op, OutputName, PluginName,
    SetName, StreamId, StreamSpec,
};

/// Why the journal did not do it, named by what to do about it. Nothing of the write was kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// No room left on the disk: take nothing in, keep serving, try again.
    #[error("the journal's disk takes no more: {why}")]
    Full { why: String },
    /// The write does not fit what is there: somebody else moved the cursor. Read again, then decide.
    #[error("the journal has moved on: {why}")]
    Moved { why: String },
    /// Damaged or unreadable: stop, and tell the operator.
    #[error("the journal cannot be used: {why}")]
    Halt { why: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConsumerId(pub i64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrackId(pub i64);

/// How far a consumer has come, all durable. What is due on a route is decided by these alone, so that
/// the same decision falls after a crash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Height of the cursor; 0 before the first step.
    pub cursor: u64,
    /// Highest safe and finalized heights that this consumer was told of, with its cursor on that chain.
    pub safe: u64,
    pub finalized: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    pub id: ConsumerId,
    pub plugin: PluginName,
    pub chain: ChainId,
    /// `None` until the first step is committed.
    pub cursor: Option<BlockRef>,
    pub marks: Marks,
    pub state_version: u32,
}

/// A track: one stream of one chain.
#[derive(Clone, Debug, PartialEq)]
pub struct TrackInfo {
    pub id: TrackId,
    pub consumer: ConsumerId,
    pub stream: StreamId,
    pub chain: ChainId,
    pub spec: StreamSpec,
    /// Offset of its last entry; 0 where there is none.
    pub last_offset: u64,
}

/// An emission on its way into the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    pub track: TrackId,
    pub emission: EmissionId,
    pub block: BlockRef,
    pub position: EventPosition,
    pub ordinal: u32,
    pub lane_key: String,
    pub content_type: ContentType,
    pub payload: Vec<u8>,
}

/// One consumer's step: all of it, or nothing.
#[derive(Clone, Debug)]
pub struct Step {
    pub consumer: ConsumerId,
    /// The cursor that the step began at. Another one in the journal refuses the step.
    pub from: Option<BlockRef>,
    /// The last block of the step.
    pub cursor: BlockRef,
    /// The block may be orphaned: keep what undoes it. Such a step is of one block.
    pub undo: bool,
    /// The step is of final blocks below the cursor, which stays: its state is undone with the cursor's block, and its
    /// entries never.
    pub aside: bool,
    /// Of such a step: what the edit reaches back to has been said below this block.
    pub said: Option<(EditId, u64)>,
    /// As the follower has them on the branch of `cursor`. Undo at or below `finalized` is dropped.
    pub safe: u64,
    pub finalized: u64,
    pub state_version: u32,
    pub state: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    pub entries: Vec<NewEntry>,
    pub poison: Vec<PoisonEvent>,
    /// What is asked for of the chain, beside the step's own work; kept though its block is orphaned.
    pub asks: Vec<Vec<u8>>,
    /// What was asked for of the chain up to here has been taken in by this step.
    pub taken: Option<i64>,
}

/// An event that a plugin could not process and was allowed to pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoisonEvent {
    pub block: BlockRef,
    pub position: EventPosition,
    pub why: String,
}

/// A key of a lane that failed: it waits alone, from `next` on, while the others pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    pub lane_key: String,
    /// Offset of the delivery that failed.
    pub next: u64,
    pub attempts: u32,
    /// Milliseconds since 1970; `None` where it waits for a person (stopped).
    pub retry_at_ms: Option<u64>,
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    pub id: i64,
    pub output: OutputName,
    pub stream: StreamId,
    pub chain: ChainId,
    pub offset: u64,
    pub lane_key: String,
    pub delivery: DeliveryId,
    pub op: Op,
    pub attempts: u32,
    pub why: String,
    /// Milliseconds since 1970.
    pub at_ms: u64,
}

/// What a lane has to remember. Every variant is idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaneWrite {
    /// All of the track up to here is settled or parked.
    Position {
        output: OutputName,
        track: TrackId,
        position: u64,
    },
    Park {
        output: OutputName,
        track: TrackId,
        parked: Parked,
    },
    Unpark {
        output: OutputName,
        track: TrackId,
        lane_key: String,
    },
    Dead {
        output: OutputName,
        track: TrackId,
        offset: u64,
        delivery: DeliveryId,
        attempts: u32,
        why: String,
    },
    /// A dead letter goes back to its lane (`again`) or away.
    Bury {
        id: i64,
        again: bool,
    },
    /// An offset that was sent again has been settled.
    Redone {
        output: OutputName,
        track: TrackId,
        offset: u64,
    },
}

#[derive(Clone, Debug)]
pub enum Write {
    /// Makes the consumer where it is not there yet.
    Consumer {
        plugin: PluginName,
        chain: ChainId,
        state_version: u32,
    },
    /// Makes the track, or replaces its spec.
    Track {
        stream: StreamId,
        chain: ChainId,
        spec: StreamSpec,
    },
    Step(Step),
    /// Walks a consumer back to `to`: restores its state, retracts what it emitted above.
    Undo {
        consumer: ConsumerId,
        from: BlockRef,
        to: BlockRef,
    },
    /// The chain's finalized block, which never goes back.
    Finalized(BlockRef),
    /// A person accepted that it went back all the same: the next one is taken as it comes.
    ForgetFinalized(ChainId),
    Lane(Vec<LaneWrite>),
    /// What an output has settled is to be sent once more. `id` is the number of entries.
    Replay(Replay),
    /// A second's part of every such order goes to its lane. `id` is the number of orders that are left.
    ReplayOn,
    /// Notes the time, and moves the window to what was last `keep_ms` ago. `id` is where it begins now.
    Window {
        now_ms: u64,
        keep_ms: u64,
    },
    /// Drops a piece of what lies before the window and is settled by all of `outputs`, in the track after the offset
    /// `after`. `id` is where to go on, or 0.
    Forget {
        track: TrackId,
        outputs: Vec<OutputName>,
        after: u64,
    },
    /// Gives a piece of the room that is not used any more back to the disk. `id` is not 0 where there is more.
    Shrink,
    /// A watch set is edited; these consumers have passed blocks (first and last) to which the edit reaches back.
    Watch {
        edit: Edit,
        catch_up: Vec<(ConsumerId, u64, u64)>,
    },
    /// A .wasm became the running one of a plugin, or stopped being it.
    Version(VersionWrite),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VersionWrite {
    Running {
        plugin: PluginName,
        digest: [u8; 32],
        version: String,
        file: String,
    },
    /// This digest is not to be loaded again by itself, and why.
    Banned {
        plugin: PluginName,
        digest: [u8; 32],
        why: String,
    },
}

/// A .wasm that has been the running one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub plugin: PluginName,
    pub digest: [u8; 32],
    pub version: String,
    pub file: String,
    pub since_ms: u64,
    pub running: bool,
    pub banned: Option<String>,
}

/// Blocks below a consumer's cursor that an edit of a watch set reaches back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatchUp {
    pub edit: EditId,
    pub set: SetName,
    pub first: u64,
    pub last: u64,
    /// What was said of blocks below this is not said again.
    pub said: u64,
}

/// An order to send again what a track has of these blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    pub output: OutputName,
    pub track: TrackId,
    pub blocks: std::ops::RangeInclusive<u64>,
    /// Most deliveries a second.
    pub pace: u32,
}

/// What a commit gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Of `Write::Consumer` and `Write::Track`, and as the others say.
    pub id: i64,
    /// The journal's last offset after it.
    pub last_offset: u64,
    /// Retractions written by `Undo`.
    pub retracted: u64,
}

/// One statement in the journal: what a delivery or a feed item is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub offset: u64,
    pub op: Op,
    pub emission: EmissionId,
    pub block: BlockRef,
    pub position: EventPosition,
    pub ordinal: u32,
    pub lane_key: String,
    pub content_type: ContentType,
    /// At `Retract` the payload that is taken back.
    pub payload: Vec<u8>,
    /// Set where the emission has been retracted by now: how far it had come when it was.
    pub retracted: Option<Retracted>,
}

/// How far an emission had come when its block was orphaned; never less than what a lane may have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retracted {
    pub confirmations: u64,
    pub safe: bool,
}

/// Which dead letters. Empty fields ask for nothing.
#[derive(Clone, Debug, Default)]
pub struct DeadFilter {
    pub id: Option<i64>,
    pub output: Option<OutputName>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalSize {
    pub bytes: u64,
    pub entries: u64,
}

#[async_trait::async_trait]
pub trait Journal: Send + Sync + 'static {
    /// A random text, made with the journal: what a destination remembers of another journal does not count.
    fn id(&self) -> &str;

    /// Durable when it returns. Order of calls from one task is kept.
    async fn commit(&self, write: Write) -> Result<Committed, JournalError>;

    /// The last offset that is committed; changes with every commit that writes entries or moves marks.
    fn tail(&self) -> watch::Receiver<u64>;
    /// Counts those commits of one consumer, since the journal was opened: whoever follows few of many need not read for all.
    fn moves(&self, consumer: ConsumerId) -> u64;

    fn finalized(&self, chain: ChainId) -> Result<Option<BlockRef>, JournalError>;
    fn consumers(&self) -> Result<Vec<Consumer>, JournalError>;
    /// Unfinalized blocks that this consumer stepped over with something to undo, highest first.
    fn steps(&self, consumer: ConsumerId) -> Result<Vec<BlockRef>, JournalError>;
    /// How often this consumer had this block taken away.
    fn incarnation(&self, consumer: ConsumerId, block: &B256) -> Result<u32, JournalError>;
    fn state_get(&self, consumer: ConsumerId, key: &[u8]) -> Result<Option<Vec<u8>>, JournalError>;
    fn state_scan(
        &self,
        consumer: ConsumerId,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: u32,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, JournalError>;

    fn tracks(&self) -> Result<Vec<TrackInfo>, JournalError>;
    /// Entries of a track after an offset, and the marks of its consumer, of one and the same moment.
    fn entries(
        &self,
        track: TrackId,
        after: u64,
        limit: usize,
        lane_key: Option<&str>,
    ) -> Result<(Marks, Vec<Entry>), JournalError>;

    fn position(&self, output: &OutputName, track: TrackId) -> Result<Option<u64>, JournalError>;
    fn parked(&self, output: &OutputName, track: TrackId) -> Result<Vec<Parked>, JournalError>;
    /// Offsets to send again, of dead letters that were put back.
    fn redo(&self, output: &OutputName, track: TrackId) -> Result<Vec<u64>, JournalError>;
    fn dead(&self, filter: &DeadFilter, after: i64, limit: usize) -> Result<Vec<DeadLetter>, JournalError>;
    fn dead_count(&self, output: &OutputName) -> Result<u64, JournalError>;
    /// Entries of a track after an offset.
    fn backlog(&self, track: TrackId, after: u64) -> Result<u64, JournalError>;
    /// Mean bytes of their payloads, of the first and the last of them.
    fn weight(&self, track: TrackId, after: u64) -> Result<u64, JournalError>;
    /// When an entry was there, or would have been: milliseconds since 1970, some seconds late at most. `None` where it
    /// came a moment ago.
    fn written_ms(&self, offset: u64) -> Result<Option<u64>, JournalError>;
    /// Entries that wait for being sent again to an output.
    fn replaying(&self, output: &OutputName) -> Result<u64, JournalError>;
    /// The offset up to which entries may have gone. It rises before they go.
    fn window(&self) -> u64;
    /// The last entry of a track that has gone; 0 where none has.
    fn forgotten(&self, track: TrackId) -> Result<u64, JournalError>;

    /// Every edit of a watch set, in order.
    fn edits(&self, each: &mut dyn FnMut(Edit)) -> Result<(), JournalError>;
    fn catch_ups(&self, consumer: ConsumerId) -> Result<Vec<CatchUp>, JournalError>;
    /// What was asked for of a chain and is not taken in yet, oldest first, each with its number.
    fn asks(&self, chain: ChainId, limit: usize) -> Result<Vec<(i64, Vec<u8>)>, JournalError>;

    /// Newest first.
    fn versions(&self, plugin: &PluginName) -> Result<Vec<Version>, JournalError>;
    fn size(&self) -> Result<JournalSize, JournalError>;
    /// Waits for the writer, flushes, and releases the lock.
    fn close(&self, within: Duration) -> Result<(), JournalError>;
}
