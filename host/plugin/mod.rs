//! Fourth stage: a sandbox answers a batch of events with emissions. `index -> plugin -> journal`.
//!
//! A plugin is compiled ([`engine`]), its exports are probed and adapted to one trait ([`abi_v1`]), it is
//! described, and then stepped ([`step`]): the events of one or more blocks in, emissions and state changes
//! out. Nothing here knows of the journal, of routes, or of which block is canonical: state is read through
//! [`StateRead`], and what a step wrote is handed back, not stored.

mod abi_v1;
mod cache;
pub mod capabilities;
pub mod engine;
mod overlay;
pub mod reload;
pub mod step;
#[cfg(test)]
pub(crate) mod testing;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{BlockRef, ContentType, EventPosition};
use crate::track::Wish;

/// SHA-256 of a .wasm file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&alloy_primitives::hex::encode(self.0))
    }
}
impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// Ceilings of one plugin. What reaches one of them stops that plugin alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Linear memory, all memories of the instance together.
    pub memory_mib: u32,
    /// One call of `process`. A batch is what one call gets.
    pub deadline_ms: u64,
    /// Bytes of events in one call.
    pub batch_bytes: usize,
    /// Emissions of one step.
    pub emissions: usize,
    /// Bytes of one answer.
    pub answer_bytes: usize,
    /// Bytes of keys and values that one step may write.
    pub state_write_bytes: usize,
    /// Bytes of one state value.
    pub state_value_bytes: usize,
    /// Log lines a second; more are counted and dropped.
    pub log_lines_per_second: u32,
    /// An instance whose memory grew beyond this is replaced between two steps.
    pub recycle_memory_mib: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_mib: 64,
            deadline_ms: 500,
            batch_bytes: 1 << 20,
            emissions: 100_000,
            answer_bytes: 16 << 20,
            state_write_bytes: 16 << 20,
            state_value_bytes: 1 << 20,
            log_lines_per_second: 100,
            recycle_memory_mib: 48,
        }
    }
}

impl Limits {
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }
}

/// Keys of a plugin's state that begin with this are the host's: no plugin may write them, none sees them. They stand
/// behind all others: none may begin with these eight bytes 0xff.
pub const HOST_KEYS: &[u8] = b"\xff\xff\xff\xff\xff\xff\xff\xffchainweir:";

/// Reads the plugin's committed state. An error is the journal's, never "no such key".
pub trait StateRead: Send {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, String>;
    /// Entries whose key begins with `prefix`, after the key `after`, in key order, at most `limit`.
    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: u32) -> Result<Vec<(Vec<u8>, Vec<u8>)>, String>;
}

/// One block's matched events, encoded in the batch layout. Shared by all plugins that subscribed to any.
#[derive(Clone, Debug)]
pub struct BlockEvents<'a> {
    pub at: BlockRef,
    /// The block record, to stand before the events of the block.
    pub block_record: &'a [u8],
    /// The plugin subscribed to the block itself: the block record is an event even if `events` is empty.
    pub block_subscribed: bool,
    /// The events in chain order: position, and the encoded record.
    pub events: Vec<(EventPosition, &'a [u8])>,
}

/// What a plugin emitted, not yet named by an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawEmission {
    /// Index into the step's blocks.
    pub block: usize,
    pub position: EventPosition,
    /// Index into the manifest's streams.
    pub stream: u16,
    /// Counts the emissions of this event to this stream.
    pub ordinal: u32,
    /// As the plugin chose it; `None` for the host's default.
    pub lane_key: Option<String>,
    pub content_type: ContentType,
    /// `None`: the event passes as it is, the host writes the payload.
    pub payload: Option<Vec<u8>>,
}

/// An event that the plugin could not process and that its policy lets pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Poison {
    pub block: usize,
    pub position: EventPosition,
    pub why: String,
}

/// Everything that one step did. Commit all of it with the cursor, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepOutput {
    /// In chain order, then in the order of the answer.
    pub emissions: Vec<RawEmission>,
    /// The last value of each key that was written; `None` deletes. In key order.
    pub state: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Transactions whose way is to be followed.
    pub watches: Vec<Wish>,
    pub poison: Vec<Poison>,
    /// Calls of `process`, and the time they took.
    pub calls: u32,
    pub call_time: Duration,
}

/// Why a step did not succeed, named by what to do about it. Nothing of the step was kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The plugin asked for it, or the journal could not be read: the same step again later.
    #[error("{why}")]
    Again { why: String },
    /// A call took longer than its deadline, and the step was to be quick: to be done again where there is time to
    /// look for the event to blame.
    #[error("{why}")]
    Overrun { why: String },
    /// The plugin is at fault: it stops at its cursor and is tried again on the breaker's schedule. `event` is the one to blame, where
    /// splitting the batch found it.
    #[error("{why}")]
    Fault { why: String, event: Option<(BlockRef, EventPosition)> },
}

/// What to do with an event that a plugin rejects or traps on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnPoison {
    /// The plugin waits at its cursor until it is replaced by one that can.
    #[default]
    Wait,
    /// The event goes to the dead letters with the reason, the plugin goes on.
    Skip,
}
