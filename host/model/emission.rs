//! What a plugin emits, what is said of it downstream, and what a destination answers.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{BlockRef, DeliveryId, EmissionId, EventPosition, StreamId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    Json,
    Text,
    Bytes,
}

impl ContentType {
    pub fn mime(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Text => "text/plain; charset=utf-8",
            Self::Bytes => "application/octet-stream",
        }
    }
    /// As in the batch layout and in the journal.
    pub fn code(self) -> u8 {
        match self {
            Self::Json => 0,
            Self::Text => 1,
            Self::Bytes => 2,
        }
    }
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Json, Self::Text, Self::Bytes].get(usize::from(code)).copied()
    }
}

/// One thing that a plugin said about one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emission {
    pub id: EmissionId,
    pub stream: StreamId,
    pub block: BlockRef,
    pub position: EventPosition,
    pub ordinal: u32,
    /// Deliveries with the same key on one output keep their order.
    pub lane_key: String,
    pub content_type: ContentType,
    pub payload: Vec<u8>,
}

/// What is said of an emission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// It holds.
    Apply,
    /// Its block was orphaned: take it back.
    Retract,
    /// Of a transaction that is in no block: it may never hold, and is not taken back.
    Pending,
}

impl Op {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::Retract => "retract",
            Self::Pending => "pending",
        }
    }
}

/// When a route delivers. As in the configuration: `"latest"`, `{ confirmations = 12 }`, `"safe"`, `"finalized"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// At once; retracted if orphaned.
    #[default]
    Latest,
    /// When the block and the ones on top of it are this many (a block at the tip has one confirmation).
    Confirmations(u64),
    Safe,
    Finalized,
}

/// One thing said about one emission to one destination. Read from the journal, never recomputed.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The same at every attempt.
    pub id: DeliveryId,
    pub op: Op,
    /// The journal's offset of this statement; rises strictly within a lane. The feed's cursor.
    pub offset: u64,
    /// The payload that holds, or at `Retract` the one that is taken back.
    pub emission: Arc<Emission>,
}

/// What a destination said. The lane decides what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Delivered,
    /// Not now. `after` is the destination's own wish (Retry-After).
    Retry {
        why: String,
        after: Option<Duration>,
    },
    /// Not ever, as it is.
    Refused {
        why: String,
    },
}
