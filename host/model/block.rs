//! Blocks as the stages after the source see them: verified, complete for what was asked, chain-neutral.

use alloy_primitives::{Address, B256, Bytes, U256};

use super::ChainId;

/// A block's place: enough to link it to its parent and to be a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockRef {
    pub chain: ChainId,
    pub number: u64,
    pub hash: B256,
    pub parent: B256,
    /// Seconds since 1970.
    pub time: u64,
}

impl std::fmt::Display for BlockRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} block {} ({})", self.chain, self.number, self.hash)
    }
}

/// What a plugin can be told of a block itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub at: BlockRef,
    pub gas_used: u64,
    pub gas_limit: u64,
    /// Wei; `None` before London.
    pub base_fee: Option<u64>,
    pub beneficiary: Address,
    /// `None` where the transactions were not asked for.
    pub transaction_count: Option<u32>,
}

impl Header {
    /// Of a block of which no more is known than its place.
    pub fn of(at: BlockRef) -> Self {
        let (beneficiary, transaction_count) = (Address::ZERO, None);
        Self { at, gas_used: 0, gas_limit: 0, base_fee: None, beneficiary, transaction_count }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// `u32::MAX` where it is in no block.
    pub index: u32,
    pub hash: B256,
    pub from: Address,
    pub to: Option<Address>,
    /// The contract that it created, where its receipt is known.
    pub created: Option<Address>,
    pub value: U256,
    pub input: Bytes,
    pub nonce: u64,
    /// EIP-2718 type.
    pub kind: u8,
    pub gas_limit: u64,
    /// From the receipt; `None` where it was not asked for.
    pub gas_used: Option<u64>,
    /// Wei. From the receipt, else from the transaction.
    pub gas_price: u128,
    /// From the receipt: executed with success. `None` where it is not known (not asked for, or before Byzantium).
    pub success: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    pub index: u32,
    pub transaction_index: u32,
    pub transaction_hash: B256,
    pub address: Address,
    /// At most four.
    pub topics: Vec<B256>,
    pub data: Bytes,
}

/// How value moved, or a contract came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum How {
    /// The transaction itself, to an account.
    Transaction,
    /// The transaction itself created a contract.
    Creation,
    Call,
    Create,
    Create2,
    SelfDestruct,
}

impl How {
    /// As in the batch layout.
    pub fn code(self) -> u8 {
        match self {
            Self::Transaction => 0,
            Self::Creation => 1,
            Self::Call => 2,
            Self::Create => 3,
            Self::Create2 => 4,
            Self::SelfDestruct => 5,
        }
    }

    pub fn creates(self) -> bool {
        matches!(self, Self::Creation | Self::Create | Self::Create2)
    }
}

/// Native value that moved, or a contract that was created, by a transaction or by a call inside of it. Only what
/// took effect: nothing of a call that was reverted, nor of one inside of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Counts these in the block, in the order of execution, whether or not they were asked for.
    pub index: u32,
    pub transaction_index: u32,
    pub transaction_hash: B256,
    /// 0 for the transaction itself, 1 for what it calls.
    pub depth: u16,
    pub how: How,
    pub from: Address,
    /// The receiver, or the contract that was created.
    pub to: Address,
    pub value: U256,
}

/// A block with the events that somebody asked for. The source promises: what `wanted` asked for is
/// complete and fits the header; everything is in chain order; log and transaction indexes strictly rise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub header: Header,
    pub transactions: Vec<Transaction>,
    pub transfers: Vec<Transfer>,
    pub logs: Vec<Log>,
}

impl Block {
    pub fn at(&self) -> BlockRef {
        self.header.at
    }
}

/// What the plugins of a chain need to be told, taken together: what the source must fetch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Every block's header is an event for somebody.
    pub blocks: bool,
    pub transactions: bool,
    /// Status, gas used and created contracts of transactions.
    pub receipts: bool,
    /// Transfers and creations, for somebody. What a source is asked for is told apart: its node may have no tracer, and who
    /// wants nothing of it must not wait for it. The transactions and receipts are wanted with it, to hold it to them.
    pub transfers: bool,
    /// Transactions that are in no block yet: of none of what follows.
    pub pending: bool,
    pub logs: bool,
    /// Logs of these contracts alone; empty means of all.
    pub addresses: Vec<Address>,
    /// Logs whose topic 0 is one of these alone; empty means any. Holds together with `addresses`.
    pub topic0: Vec<B256>,
}

impl Wanted {
    /// Everything that every node can tell: what a recording asks for.
    pub fn all() -> Self {
        Self { blocks: true, transactions: true, receipts: true, logs: true, ..Self::default() }
    }

    /// Something of every block, whatever its logs.
    pub fn every_block(&self) -> bool {
        self.blocks || self.transactions || self.receipts || self.transfers
    }

    /// Whether a block that was fetched for `self` holds all that `need` asks for.
    pub fn covers(&self, need: &Self) -> bool {
        fn within<T: PartialEq>(ours: &[T], theirs: &[T]) -> bool {
            ours.is_empty() || (!theirs.is_empty() && theirs.iter().all(|t| ours.contains(t)))
        }
        (self.transactions || !need.transactions)
            && (self.receipts || !need.receipts)
            && (!need.logs
                || (self.logs && within(&self.addresses, &need.addresses) && within(&self.topic0, &need.topic0)))
    }
}

/// What the follower says of a chain. A reorg is `Removed` (tip first) and then `Added` (oldest first).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockUpdate {
    Added(BlockRef),
    Removed(BlockRef),
    /// This block and all before it stay. Never goes back.
    Finalized(BlockRef),
}

/// Where in its block an event stands. Part of an emission's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventPosition {
    Block,
    /// Transaction index.
    Transaction(u32),
    /// Log index in the block.
    Log(u32),
    /// Index among the transfers of the block.
    Transfer(u32),
    /// In no block: place among those that were told together. Of one emission's life, 0.
    Pending(u32),
}

impl EventPosition {
    pub fn to_bytes(self) -> [u8; 5] {
        let (kind, index) = match self {
            Self::Block => (1, 0),
            Self::Transaction(i) => (2, i),
            Self::Log(i) => (3, i),
            Self::Transfer(i) => (4, i),
            Self::Pending(i) => (5, i),
        };
        let mut bytes = [kind; 5];
        bytes[1..].copy_from_slice(&u32::to_le_bytes(index));
        bytes
    }
}
