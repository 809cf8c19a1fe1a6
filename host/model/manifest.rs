//! What a plugin says of itself.

use std::sync::Arc;

use alloy_primitives::{Address, B256, U256};

use super::{ChainId, EventAbi, PluginName, SetName, StreamName};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    Block,
    Transaction,
    Log,
    /// Native value that moved: by a transaction, or by a call inside of one.
    Transfer,
    /// A contract that was created: by a transaction, or inside of one.
    Creation,
    /// A transaction that is in no block yet.
    Pending,
}

/// A place of a subscription that asks for one value of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Logs: the contract that wrote the log.
    Address,
    /// Logs: topic 0 to 3.
    Topic(u8),
    /// Transactions and transfers: who sent. Creations: who created.
    Sender,
    /// Transactions and transfers: who received. Creations: the new contract.
    Receiver,
    /// Transactions: the hash. Only sets name it.
    Hash,
}

impl Place {
    /// As in the batch layout.
    pub fn code(self) -> u8 {
        match self {
            Self::Address => 0,
            Self::Topic(n) => 1 + n,
            Self::Sender => 5,
            Self::Receiver => 6,
            Self::Hash => 7,
        }
    }
}

/// Which events reach a plugin. Every place that asks for something must be satisfied: by one of its values, by a
/// member of one of its sets, or (the address of a log) by a contract that the factory made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    pub kind: EventKind,
    /// On these chains alone; empty means on all.
    pub chains: Vec<ChainId>,
    /// Logs: the contract that wrote the log.
    pub addresses: Vec<Address>,
    /// Logs: allowed values of topic 0 to 3.
    pub topics: [Vec<B256>; 4],
    /// Transactions, transfers, creations: `from`.
    pub senders: Vec<Address>,
    /// Transactions, transfers, creations: `to`.
    pub receivers: Vec<Address>,
    /// Transactions: executed with success, or reverted.
    pub success: Option<bool>,
    /// Transactions and transfers: no less than this, in wei.
    pub min_value: Option<U256>,
    /// Watch sets, each at its place, beside the values there.
    pub sets: Vec<(Place, SetName)>,
    pub factory: Option<Factory>,
    /// Logs: every log that reaches the plugin comes with what it says by the first of these that it is.
    pub decode: Vec<Arc<EventAbi>>,
}

impl Subscription {
    /// Every event of one kind.
    pub fn all(kind: EventKind) -> Self {
        Self {
            kind,
            chains: vec![],
            addresses: vec![],
            topics: Default::default(),
            senders: vec![],
            receivers: vec![],
            success: None,
            min_value: None,
            sets: vec![],
            factory: None,
            decode: vec![],
        }
    }

    /// Of what a node's tracer alone can tell.
    pub fn is_traced(&self) -> bool {
        matches!(self.kind, EventKind::Transfer | EventKind::Creation)
    }

    pub fn on(&self, chain: ChainId) -> bool {
        self.chains.is_empty() || self.chains.contains(&chain)
    }

    pub fn sets_at(&self, place: Place) -> impl Iterator<Item = &SetName> {
        self.sets.iter().filter(move |(at, _)| *at == place).map(|(_, set)| set)
    }

    pub fn has_set(&self, place: Place) -> bool {
        self.sets_at(place).next().is_some()
    }
}

/// Contracts that are learned from events: followed from the very log that made them, forgotten with it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Factory {
    /// The contracts whose word counts; empty means any.
    pub makers: Vec<Address>,
    /// Topic 0 of the event that names the new contract.
    pub event: B256,
    pub child: Child,
    /// What was made from this block on counts, though the plugin begins later.
    pub since: Option<u64>,
}

/// Where in the event the new contract's address stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Child {
    /// Topic 1 to 3.
    Topic(u8),
    /// The n-th word of the data, from 0.
    Word(u32),
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
