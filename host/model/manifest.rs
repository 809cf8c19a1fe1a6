//! What a plugin says of itself.

use alloy_primitives::{Address, B256};

use super::{PluginName, StreamName};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    Block,
    Transaction,
    Log,
}

/// Which events reach a plugin. Every list that is not empty must hold the event's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    pub kind: EventKind,
    /// Logs: the contract that wrote the log.
    pub addresses: Vec<Address>,
    /// Logs: allowed values of topic 0 to 3.
    pub topics: [Vec<B256>; 4],
    /// Transactions: `from`.
    pub senders: Vec<Address>,
    /// Transactions: `to`.
    pub receivers: Vec<Address>,
    /// Transactions: executed with success, or reverted.
    pub success: Option<bool>,
}

impl Subscription {
    /// Every event of one kind.
    pub fn all(kind: EventKind) -> Self {
        Self { kind, addresses: vec![], topics: Default::default(), senders: vec![], receivers: vec![], success: None }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSpec {
    pub name: StreamName,
    pub description: String,
    /// JSON Schema of the payloads; `None` when they are not JSON.
    pub schema: Option<serde_json::Value>,
}

/// Checked by whoever makes it: names are names, streams are unique, the schema is JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub name: PluginName,
    pub version: String,
    pub description: String,
    /// Raised when the meaning of the plugin's state changes.
    pub state_version: u32,
    pub subscriptions: Vec<Subscription>,
    pub streams: Vec<StreamSpec>,
}
