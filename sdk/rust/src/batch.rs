//! The events of one call: lazy, borrowed views over the bytes that the host copied in.
//! `host -> Batch -> views -> handlers`.
//!
//! Nothing is decoded before it is asked for, and nothing is copied. The layout is `sdk/ABI.md`. A length is checked when its
//! record is reached, never in an accessor. Nothing here knows of handlers, verdicts or wasm.

use std::fmt;

use alloy_primitives::{Address, B256, U256};
use alloy_sol_types::{SolEvent, abi::token::WordToken};

use crate::subscription::Place;

/// The version of the batch layout that this SDK reads and writes.
pub const LAYOUT_VERSION: u32 = 1;

const MAGIC: [u8; 4] = *b"CWB1";
const HEADER: usize = 24;
const BLOCK_FIXED: usize = 168;
const TRANSACTION_FIXED: usize = 208;
const LOG_FIXED: usize = 80;
const TRANSFER_FIXED: usize = 128;
const FLAG_SUBSCRIBED: u8 = 1;
const FLAG_MADE: u8 = 2;

/// Why the bytes are not a batch in the layout of this SDK. The whole batch is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The batch does not begin with `CWB1` and a whole header.
    Header,
    /// A record does not fit into the batch, or its parts do not fit into the record.
    Record {
        /// Index of the record.
        index: u32,
        /// What does not fit.
        what: &'static str,
    },
    /// The header promises another number of records than there is.
    Count {
        /// As the header has it.
        promised: u32,
        /// As counted.
        found: u32,
    },
    /// A transaction or log that follows no block.
    NoBlock {
        /// Index of the record.
        index: u32,
    },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("malformed batch: ")?;
        match self {
            Self::Header => f.write_str("it does not begin with CWB1 and a whole header"),
            Self::Record { index, what } => write!(f, "record {index}: {what}"),
            Self::Count { promised, found } => write!(f, "the header promises {promised} records, there are {found}"),
            Self::NoBlock { index } => write!(f, "record {index} follows no block"),
        }
    }
}

impl std::error::Error for Malformed {}

#[inline]
fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

#[inline]
fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}

/// `N` bytes of a fixed part. The offset and `N` are constants below the part's length, so the check is compiled away.
#[inline]
fn bytes_at<const N: usize>(b: &[u8], at: usize) -> &[u8; N] {
    b[at..].first_chunk().expect("a constant offset inside the fixed part")
}

/// A whole batch: a checked header, and records that are checked one by one as they are reached.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    chain_id: u64,
    count: u32,
    records: &'a [u8],
}

impl<'a> Batch<'a> {
    /// Reads the header of `bytes`.
    #[inline]
    pub fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.len() < HEADER || bytes[..4] != MAGIC {
            return Err(Malformed::Header);
        }
        let header_len = usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
        if header_len < HEADER {
            return Err(Malformed::Header);
        }
        let records = bytes.get(header_len..).ok_or(Malformed::Header)?;
        Ok(Self { chain_id: u64_at(bytes, 8), count: u32_at(bytes, 16), records })
    }

    /// EIP-155 id of the chain that every event of the batch is from.
    #[inline]
    pub fn chain_id(&self) -> u64 {
        self.chain_id
    }

    /// Number of records that the header promises. Not to be trusted before all were read.
    #[inline]
    pub fn promised(&self) -> u32 {
        self.count
    }

    /// The events in chain order. Ends after the first error.
    #[inline]
    pub fn events(&self) -> Events<'a> {
        Events { rest: self.records, next: 0, promised: self.count, chain_id: self.chain_id, block: None, over: false }
    }
}

/// One record of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// Place in the batch, from 0: how a verdict names the event.
    pub index: u32,
    /// The plugin asked for it. A block that it did not ask for is there as context.
    pub subscribed: bool,
    /// What happened.
    pub record: Record<'a>,
}

/// What happened on the chain.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    /// A block.
    Block(BlockView<'a>),
    /// A transaction of the block before it.
    Transaction(TransactionView<'a>),
    /// A log of the block before it.
    Log(LogView<'a>),
    /// Native value that moved, or a contract that was created, in the block before it.
    Transfer(TransferView<'a>),
    /// A transaction that is in no block yet. The block before it is the newest that the plugin has seen.
    Pending(TransactionView<'a>),
}

/// Iterates over a [`Batch`]. Records of unknown kinds are skipped, but count in the index.
#[derive(Clone, Debug)]
pub struct Events<'a> {
    rest: &'a [u8],
    next: u32,
    promised: u32,
    chain_id: u64,
    block: Option<BlockView<'a>>,
    over: bool,
}

impl<'a> Events<'a> {
    #[cold]
    fn fail(&mut self, error: Malformed) -> Option<Result<Event<'a>, Malformed>> {
        self.over = true;
        Some(Err(error))
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = Result<Event<'a>, Malformed>;

    // Out of line, most of the time would go into copies of the view.
    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.over {
                return None;
            }
            if self.rest.is_empty() {
                self.over = true;
                if self.next != self.promised {
                    return Some(Err(Malformed::Count { promised: self.promised, found: self.next }));
                }
                return None;
            }
            let index = self.next;
            let bad = |what| Malformed::Record { index, what };
            if self.rest.len() < 8 {
                return self.fail(bad("less than 8 bytes are left"));
            }
            let len = u32_at(self.rest, 0) as usize;
            let fixed_len = usize::from(u16::from_le_bytes([self.rest[6], self.rest[7]]));
            let (kind, flags) = (self.rest[4], self.rest[5]);
            if len < 8 || !len.is_multiple_of(8) || len > self.rest.len() {
                return self.fail(bad("its length does not fit into the batch"));
            }
            let (record, rest) = self.rest.split_at(len);
            self.rest = rest;
            if index == u32::MAX {
                return self.fail(bad("too many records"));
            }
            self.next = index + 1;
            if fixed_len < 8 || fixed_len > len {
                return self.fail(bad("its fixed part does not fit into the record"));
            }
            let variable = &record[fixed_len..];
            let read = match kind {
                1 => BlockView::read(record, fixed_len, self.chain_id).map(|view| {
                    self.block = Some(view);
                    Record::Block(view)
                }),
                2..=5 => {
                    let Some(block) = self.block else {
                        return self.fail(Malformed::NoBlock { index });
                    };
                    match kind {
                        2 => TransactionView::read(record, fixed_len, variable, block).map(Record::Transaction),
                        3 => LogView::read(record, fixed_len, variable, block).map(Record::Log),
                        5 => TransactionView::read(record, fixed_len, variable, block).map(Record::Pending),
                        _ => TransferView::read(record, fixed_len, variable, block).map(Record::Transfer),
                    }
                }
                _ => continue,
            };
            return match read {
                Ok(record) => Some(Ok(Event { index, subscribed: flags & FLAG_SUBSCRIBED != 0, record })),
                Err(what) => self.fail(bad(what)),
            };
        }
    }
}

#[inline]
fn fixed<const N: usize>(record: &[u8], fixed_len: usize) -> Result<&[u8; N], &'static str> {
    if fixed_len < N {
        return Err("its fixed part is shorter than in layout 1");
    }
    record.first_chunk().ok_or("its fixed part does not fit into the record")
}

/// The watch sets that values of an event are in: each a place, a length and a name. At the end of a record.
#[derive(Clone, Copy)]
struct InSets<'a>(&'a [u8]);

impl<'a> InSets<'a> {
    fn read(mut bytes: &'a [u8], count: u8) -> Result<Self, &'static str> {
        const MISFIT: &str = "its sets do not fit into the record";
        let all = bytes;
        for _ in 0..count {
            let len = usize::from(*bytes.get(1).ok_or(MISFIT)?);
            bytes = bytes.get(2 + len..).ok_or(MISFIT)?;
        }
        Ok(Self(&all[..all.len() - bytes.len()]))
    }

    fn contains(self, place: Place, name: &str) -> bool {
        let mut rest = self.0;
        while let [at, len, tail @ ..] = rest {
            let (this, tail) = tail.split_at(usize::from(*len));
            if *at == place.code() && this == name.as_bytes() {
                return true;
            }
            rest = tail;
        }
        false
    }
}

/// A block. Copied freely: it is a reference.
#[derive(Clone, Copy)]
pub struct BlockView<'a> {
    fixed: &'a [u8; BLOCK_FIXED],
    chain_id: u64,
}

impl<'a> BlockView<'a> {
    #[inline]
    fn read(record: &'a [u8], fixed_len: usize, chain_id: u64) -> Result<Self, &'static str> {
        Ok(Self { fixed: fixed(record, fixed_len)?, chain_id })
    }

    /// EIP-155 id of the chain.
    #[inline]
    pub fn chain_id(&self) -> u64 {
        self.chain_id
    }
    /// Block number.
    #[inline]
    pub fn number(&self) -> u64 {
        u64_at(self.fixed, 8)
    }
    /// Seconds since 1970, as the block has it.
    #[inline]
    pub fn timestamp(&self) -> u64 {
        u64_at(self.fixed, 16)
    }
    /// Gas that all transactions used.
    #[inline]
    pub fn gas_used(&self) -> u64 {
        u64_at(self.fixed, 24)
    }
    /// Gas that all transactions may use.
    #[inline]
    pub fn gas_limit(&self) -> u64 {
        u64_at(self.fixed, 32)
    }
    /// Wei per gas. `None` before London, or where it does not fit into 64 bits.
    #[inline]
    pub fn base_fee(&self) -> Option<u64> {
        Some(u64_at(self.fixed, 40)).filter(|fee| *fee != u64::MAX)
    }
    /// Number of transactions; `None` where the host did not ask for them.
    #[inline]
    pub fn transaction_count(&self) -> Option<u32> {
        Some(u32_at(self.fixed, 48)).filter(|count| *count != u32::MAX)
    }
    /// Block hash.
    #[inline]
    pub fn hash(&self) -> &'a B256 {
        bytes_at::<32>(self.fixed, 56).into()
    }
    /// Hash of the parent.
    #[inline]
    pub fn parent_hash(&self) -> &'a B256 {
        bytes_at::<32>(self.fixed, 88).into()
    }
    /// Who gets the fees.
    #[inline]
    pub fn beneficiary(&self) -> Address {
        Address::new(*bytes_at(self.fixed, 120))
    }
}

impl fmt::Debug for BlockView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {} ({})", self.number(), self.hash())
    }
}

/// A transaction. Copied freely: it is a few references.
#[derive(Clone, Copy)]
pub struct TransactionView<'a> {
    fixed: &'a [u8; TRANSACTION_FIXED],
    input: &'a [u8],
    sets: InSets<'a>,
    block: BlockView<'a>,
}

impl<'a> TransactionView<'a> {
    #[inline]
    fn read(
        record: &'a [u8],
        fixed_len: usize,
        variable: &'a [u8],
        block: BlockView<'a>,
    ) -> Result<Self, &'static str> {
        let fixed: &[u8; TRANSACTION_FIXED] = fixed(record, fixed_len)?;
        let (input, rest) =
            variable.split_at_checked(u32_at(fixed, 180) as usize).ok_or("its input does not fit into the record")?;
        Ok(Self { fixed, input, sets: InSets::read(rest, fixed[15])?, block })
    }

    #[inline]
    fn has(&self, bit: u8) -> bool {
        self.fixed[14] & bit != 0
    }

    /// The block it is in. Of a pending one: the newest that the plugin has seen, of which number, time and hashes are known.
    #[inline]
    pub fn block(&self) -> BlockView<'a> {
        self.block
    }
    /// Place in the block, from 0. Of a pending one: `u32::MAX`.
    #[inline]
    pub fn index(&self) -> u32 {
        u32_at(self.fixed, 8)
    }
    /// Executed with success, or reverted. `None` where it is not known: blocks before Byzantium.
    #[inline]
    pub fn success(&self) -> Option<bool> {
        match self.fixed[12] {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
    /// EIP-2718 type: 0 legacy, 1 access list, 2 dynamic fee, 3 blobs, 4 set code.
    #[inline]
    pub fn transaction_type(&self) -> u8 {
        self.fixed[13]
    }
    /// The sender's transactions before this one.
    #[inline]
    pub fn nonce(&self) -> u64 {
        u64_at(self.fixed, 16)
    }
    /// Gas that it may use.
    #[inline]
    pub fn gas_limit(&self) -> u64 {
        u64_at(self.fixed, 24)
    }
    /// Gas that it used; `None` where its receipt is not known.
    #[inline]
    pub fn gas_used(&self) -> Option<u64> {
        (self.fixed[12] < 2).then(|| u64_at(self.fixed, 32))
    }
    /// What it paid per gas, in wei; of a pending one, the most that it would.
    #[inline]
    pub fn gas_price(&self) -> u128 {
        u128::from_le_bytes(*bytes_at(self.fixed, 40))
    }
    /// What it paid for gas, in wei; `None` where its receipt is not known.
    #[inline]
    pub fn fee(&self) -> Option<U256> {
        // 64 bits times 128 bits cannot overflow 256.
        self.gas_used().map(|gas| U256::from(gas) * U256::from(self.gas_price()))
    }
    /// Transaction hash.
    #[inline]
    pub fn hash(&self) -> &'a B256 {
        bytes_at::<32>(self.fixed, 56).into()
    }
    /// Value that it moves, in wei. Nothing moves when it was reverted.
    #[inline]
    pub fn value(&self) -> U256 {
        U256::from_be_bytes(*bytes_at::<32>(self.fixed, 88))
    }
    /// Who signed it.
    #[inline]
    pub fn from(&self) -> Address {
        Address::new(*bytes_at(self.fixed, 120))
    }
    /// Whom it calls; `None` when it creates a contract.
    #[inline]
    pub fn to(&self) -> Option<Address> {
        self.has(1).then(|| Address::new(*bytes_at(self.fixed, 140)))
    }
    /// The contract that it created.
    #[inline]
    pub fn created(&self) -> Option<Address> {
        self.has(2).then(|| Address::new(*bytes_at(self.fixed, 160)))
    }
    /// Call data.
    #[inline]
    pub fn input(&self) -> &'a [u8] {
        self.input
    }
    /// Its sender or receiver is in this watch set, which the plugin named at that place.
    pub fn is_in(&self, place: Place, set: &str) -> bool {
        self.sets.contains(place, set)
    }
}

impl fmt::Debug for TransactionView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "transaction {} ({}) of {:?}", self.index(), self.hash(), self.block)
    }
}

/// A log. Copied freely: it is a few references.
#[derive(Clone, Copy)]
pub struct LogView<'a> {
    fixed: &'a [u8; LOG_FIXED],
    topics: &'a [B256],
    data: &'a [u8],
    decoded: &'a [u8],
    sets: InSets<'a>,
    made: bool,
    block: BlockView<'a>,
}

impl<'a> LogView<'a> {
    #[inline]
    fn read(
        record: &'a [u8],
        fixed_len: usize,
        variable: &'a [u8],
        block: BlockView<'a>,
    ) -> Result<Self, &'static str> {
        let fixed: &[u8; LOG_FIXED] = fixed(record, fixed_len)?;
        let count = usize::from(fixed[68]);
        if count > 4 {
            return Err("it has more than four topics");
        }
        let (topics, data) = variable.split_at_checked(count * 32).ok_or("its topics do not fit into the record")?;
        let (data, rest) =
            data.split_at_checked(u32_at(fixed, 72) as usize).ok_or("its data does not fit into the record")?;
        let (decoded, rest) =
            rest.split_at_checked(u32_at(fixed, 76) as usize).ok_or("what is decoded does not fit into the record")?;
        let sets = InSets::read(rest, fixed[69])?;
        // SAFETY: `topics` is exactly `count * 32` initialised bytes that live as long as the batch, and `B256` is
        // `repr(transparent)` over `[u8; 32]`, so its size is 32, its alignment 1, and every bit pattern is a value.
        let topics = unsafe { std::slice::from_raw_parts(topics.as_ptr().cast::<B256>(), count) };
        Ok(Self { fixed, topics, data, decoded, sets, made: record[5] & FLAG_MADE != 0, block })
    }

    /// The block it is in.
    #[inline]
    pub fn block(&self) -> BlockView<'a> {
        self.block
    }
    /// Place among the logs of the block, from 0.
    #[inline]
    pub fn index(&self) -> u32 {
        u32_at(self.fixed, 8)
    }
    /// Place of its transaction in the block, from 0.
    #[inline]
    pub fn tx_index(&self) -> u32 {
        u32_at(self.fixed, 12)
    }
    /// Hash of its transaction.
    #[inline]
    pub fn tx_hash(&self) -> &'a B256 {
        bytes_at::<32>(self.fixed, 16).into()
    }
    /// The contract that wrote it.
    #[inline]
    pub fn address(&self) -> Address {
        Address::new(*bytes_at(self.fixed, 48))
    }
    /// 0 to 4 topics.
    #[inline]
    pub fn topics(&self) -> &'a [B256] {
        self.topics
    }
    /// What was not indexed, ABI-encoded where the contract follows the ABI.
    #[inline]
    pub fn data(&self) -> &'a [u8] {
        self.data
    }
    /// What the host decoded, as JSON: `{"event": "Transfer", "args": {...}}`, or `{"error": "..."}` where it fits none of the events that the
    /// subscription names. `None` where the subscription names none.
    pub fn decoded(&self) -> Option<&'a str> {
        if self.decoded.is_empty() { None } else { std::str::from_utf8(self.decoded).ok() }
    }
    /// Its contract or one of its topics is in this watch set, which the plugin named at that place.
    pub fn is_in(&self, place: Place, set: &str) -> bool {
        self.sets.contains(place, set)
    }
    /// Its contract was made by a factory of the plugin.
    pub fn is_made(&self) -> bool {
        self.made
    }
    /// Topic 0 and the number of topics are those of `E`. An ERC-721 `Transfer` is not an ERC-20 one: it has one more.
    #[inline]
    pub fn is<E: SolEvent>(&self) -> bool {
        use alloy_sol_types::TopicList;
        self.topics.len() == <E::TopicList as TopicList>::COUNT && (E::ANONYMOUS || self.topics[0] == E::SIGNATURE_HASH)
    }
    /// Decodes it as `E`. Bytes after the encoded values are allowed, as every common decoder does.
    #[inline]
    pub fn decode<E: SolEvent>(&self) -> Result<E, Undecodable> {
        E::decode_raw_log(self.topics.iter().map(|topic| WordToken(*topic)), self.data).map_err(Undecodable)
    }
}

impl fmt::Debug for LogView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "log {} of transaction {} in {:?}", self.index(), self.tx_hash(), self.block)
    }
}

/// Native value that moved, or a contract that was created, by a transaction or by a call inside of it. Only what took effect. Copied
/// freely: it is a few references.
#[derive(Clone, Copy)]
pub struct TransferView<'a> {
    fixed: &'a [u8; TRANSFER_FIXED],
    sets: InSets<'a>,
    block: BlockView<'a>,
}

/// How value moved, or a contract came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The transaction itself, to an account.
    Transaction,
    /// The transaction itself created a contract.
    Creation,
    /// A call inside of it.
    Call,
    /// `CREATE` inside of it.
    Create,
    /// `CREATE2` inside of it.
    Create2,
    /// `SELFDESTRUCT` inside of it.
    SelfDestruct,
    /// Something that this SDK does not know.
    Other,
}

impl<'a> TransferView<'a> {
    #[inline]
    fn read(
        record: &'a [u8],
        fixed_len: usize,
        variable: &'a [u8],
        block: BlockView<'a>,
    ) -> Result<Self, &'static str> {
        let fixed: &[u8; TRANSFER_FIXED] = fixed(record, fixed_len)?;
        Ok(Self { fixed, sets: InSets::read(variable, fixed[17])?, block })
    }

    /// The block it is in.
    #[inline]
    pub fn block(&self) -> BlockView<'a> {
        self.block
    }
    /// Place among the transfers and creations of the block, from 0.
    #[inline]
    pub fn index(&self) -> u32 {
        u32_at(self.fixed, 8)
    }
    /// Place of its transaction in the block, from 0.
    #[inline]
    pub fn tx_index(&self) -> u32 {
        u32_at(self.fixed, 12)
    }
    /// Hash of its transaction.
    #[inline]
    pub fn tx_hash(&self) -> &'a B256 {
        bytes_at::<32>(self.fixed, 24).into()
    }
    /// How it came about.
    #[inline]
    pub fn how(&self) -> How {
        match self.fixed[16] {
            0 => How::Transaction,
            1 => How::Creation,
            2 => How::Call,
            3 => How::Create,
            4 => How::Create2,
            5 => How::SelfDestruct,
            _ => How::Other,
        }
    }
    /// It created a contract.
    #[inline]
    pub fn creates(&self) -> bool {
        matches!(self.how(), How::Creation | How::Create | How::Create2)
    }
    /// 0 for the transaction itself, 1 for what it calls, and so on.
    #[inline]
    pub fn depth(&self) -> u16 {
        u16::from_le_bytes([self.fixed[18], self.fixed[19]])
    }
    /// In wei.
    #[inline]
    pub fn value(&self) -> U256 {
        U256::from_be_bytes(*bytes_at::<32>(self.fixed, 56))
    }
    /// Who sent, or created.
    #[inline]
    pub fn from(&self) -> Address {
        Address::new(*bytes_at(self.fixed, 88))
    }
    /// Who received, or the contract that was created.
    #[inline]
    pub fn to(&self) -> Address {
        Address::new(*bytes_at(self.fixed, 108))
    }
    /// Its sender or receiver is in this watch set, which the plugin named at that place.
    pub fn is_in(&self, place: Place, set: &str) -> bool {
        self.sets.contains(place, set)
    }
}

impl fmt::Debug for TransferView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "transfer {} of transaction {} in {:?}", self.index(), self.tx_hash(), self.block)
    }
}

/// A log whose topic 0 and number of topics are those of an event, but whose data is not. Anybody can write such a log.
#[derive(Clone, Debug)]
pub struct Undecodable(alloy_sol_types::Error);

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the log is not an encoding of the event: {}", self.0)
    }
}

impl std::error::Error for Undecodable {}

/// What a handler takes that wants to see undecodable logs too: `fn transfer(&self, t: Decoded<Transfer>)`.
pub type Decoded<E> = Result<E, Undecodable>;
