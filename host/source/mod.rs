//! First stage: tells of blocks. `source -> follower`.
//!
//! A source answers questions about one chain and wakes its caller when the head may have moved. It knows
//! nothing of which block is canonical, of plugins, or of the journal. What it returns is verified as far
//! as headers allow; what it cannot read is an error, never an empty answer.
//!
//! A new kind of source is one new file and one line in [`KINDS`].

mod archive;
pub mod classify;
mod headers;
mod health;
mod ipc;
mod limits;
pub mod parquet;
mod pool;
pub mod record;
pub mod recorded;
pub mod rpc;
mod rpc_pending;
mod rpc_range;
mod rpc_traces;
mod rpc_watch;
pub mod traces;
mod transport;
pub mod wire;
mod ws;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, B256};
use futures::future::BoxFuture;
use tokio::sync::mpsc;

use crate::model::{Block, BlockRef, ChainId, ProviderStatus, Transaction, Transfer, Wanted};

/// Why a read did not succeed, named by what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Ask again; the provider may recover by itself.
    #[error("{why}")]
    Again { why: String, after: Option<Duration> },
    /// The provider does not know this block (any more, or yet): look at the head again.
    #[error("the provider does not know {what}")]
    Unknown { what: String },
    /// The answer contradicts the header. Counted apart, then asked again.
    #[error("the provider's answer is false: {why}")]
    False { why: String },
    /// Asking again will not help: wrong chain, unusable configuration.
    #[error("{why}")]
    Halt { why: String },
}

/// Where a node has a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    Unknown,
    /// In no block; signed by its sender.
    Pending(Box<Transaction>),
    /// In the block of this height, it says.
    Mined(u64),
}

/// Up to when an account's transactions are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    Block(u64),
    /// With those that wait.
    Pending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    Safe,
    Finalized,
}

/// A run of blocks that are final: those in which something wanted may be, in order.
#[derive(Debug, Clone)]
pub struct Range {
    pub blocks: Vec<Block>,
    /// The last block that this answer speaks for; may be below what was asked, never above it.
    pub to: BlockRef,
}

#[async_trait::async_trait]
pub trait Source: Send + Sync + 'static {
    fn chain(&self) -> ChainId;

    /// The tip, as the provider has it now.
    async fn head(&self) -> Result<BlockRef, ReadError>;

    /// The block that a tag names; `None` where this chain has no such tag.
    async fn tagged(&self, tag: Tag) -> Result<Option<BlockRef>, ReadError>;

    async fn by_hash(&self, hash: B256) -> Result<BlockRef, ReadError>;

    /// The block that the provider holds for canonical at this height.
    async fn by_number(&self, number: u64) -> Result<BlockRef, ReadError>;

    /// One block by its hash, with what is wanted, verified against its header.
    async fn block(&self, at: &BlockRef, wanted: &Wanted) -> Result<Block, ReadError>;

    /// Blocks `from..=to`, both finalized. Ranges that a provider refuses are split here.
    async fn range(&self, from: u64, to: u64, wanted: &Wanted) -> Result<Range, ReadError>;

    /// Returns when the head may have changed. A hint: it may come late, twice, or for nothing, but a
    /// source returns from here at least once in its polling interval.
    async fn changed(&self);

    /// Native value that moved in a block, and contracts that were created, in the order of execution; of a block that was
    /// fetched with all of its transactions and their receipts.
    async fn transfers(&self, block: Arc<Block>) -> Result<Vec<Transfer>, ReadError> {
        let _ = block;
        Err(ReadError::Halt {
            why: "this source cannot tell of transfers and creations inside of transactions: a node that can trace is needed".into(),
        })
    }

    /// Where the node has a transaction now: its word. A `Halt` where this source cannot tell.
    async fn transaction(&self, hash: B256) -> Result<Whereabouts, ReadError> {
        let _ = hash;
        Err(ReadError::Halt { why: "this source has no mempool".into() })
    }

    /// How many transactions an account has sent: the node's word.
    async fn sent(&self, who: Address, until: Until) -> Result<u64, ReadError> {
        let _ = (who, until);
        Err(ReadError::Halt { why: "this source has no accounts".into() })
    }

    /// Transactions that are in no block yet, as they come, until the receiver is dropped. A hint: of each it is proven who signed it,
    /// and no more; it may be told twice or never. `None` where this source cannot tell.
    fn pending(&self) -> Option<mpsc::Receiver<Transaction>> {
        None
    }

    /// Who is asked, and how they do: for `status`.
    fn providers(&self) -> Vec<ProviderStatus> {
        vec![]
    }

    /// The lowest block of a recording; `None` for a live chain, which goes back to its genesis.
    fn first(&self) -> Option<u64> {
        None
    }

    /// Nothing more will ever come: a recording that was played to its end.
    fn ended(&self) -> bool {
        false
    }
}

/// What a source is opened with: the chain's own table of the configuration, raw.
#[derive(Clone, Debug)]
pub struct Open {
    /// The name in `[chain.NAME]`, for messages.
    pub name: String,
    /// Refuse a provider of another chain.
    pub expect: Option<ChainId>,
    pub table: toml::Table,
    /// Relative paths are relative to this folder.
    pub base: PathBuf,
}

pub type Opened = Result<Arc<dyn Source>, ReadError>;

pub struct Kind {
    pub name: &'static str,
    /// The keys of `[chain.NAME]` that this kind reads, each with a line of help.
    pub options: &'static [(&'static str, &'static str)],
    pub open: fn(Open) -> BoxFuture<'static, Opened>,
}

/// The first kind is the default.
pub const KINDS: &[Kind] = &[rpc::KIND, recorded::KIND, parquet::KIND];
