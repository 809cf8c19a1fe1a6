//! Blocks of a made-up chain, and their encoding in the batch layout. Whatever a test does not say has a plain default.

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_sol_types::SolEvent;

/// A block with its transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// EIP-155 id of the chain; 31337 unless said otherwise, as on a test node.
    pub chain_id: u64,
    /// Block number.
    pub number: u64,
    /// Seconds since 1970; by default 12 for every block.
    pub timestamp: u64,
    /// By default the hash of the number.
    pub hash: B256,
    /// By default the hash of the number before.
    pub parent_hash: B256,
    /// Who gets the fees.
    pub beneficiary: Address,
    /// Gas that the transactions used.
    pub gas_used: u64,
    /// Gas that the transactions may use.
    pub gas_limit: u64,
    /// Wei per gas.
    pub base_fee: Option<u64>,
    /// In chain order.
    pub transactions: Vec<Tx>,
}

/// A transaction with its logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tx {
    /// By default the hash of the block's hash and its place.
    pub hash: Option<B256>,
    /// Who signed it.
    pub from: Address,
    /// Whom it calls.
    pub to: Option<Address>,
    /// The contract that it created.
    pub created: Option<Address>,
    /// In wei.
    pub value: U256,
    /// Call data.
    pub input: Bytes,
    /// The sender's transactions before this one.
    pub nonce: u64,
    /// EIP-2718 type.
    pub transaction_type: u8,
    /// Gas that it may use.
    pub gas_limit: u64,
    /// Gas that it used.
    pub gas_used: u64,
    /// In wei per gas.
    pub gas_price: u128,
    /// `None`: not known.
    pub success: Option<bool>,
    /// In the order of execution: value that it moves and contracts that it creates, itself included where it does.
    pub transfers: Vec<Transfer>,
    /// In chain order.
    pub logs: Vec<Log>,
}

/// Native value that moves, or a contract that is created, inside of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Code of [`How`](crate::batch::How) in the batch layout; 2 is a call.
    pub how: u8,
    /// 0 for the transaction itself.
    pub depth: u16,
    /// Who sends, or creates.
    pub from: Address,
    /// Who receives, or the new contract.
    pub to: Address,
    /// In wei.
    pub value: U256,
}

/// A log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The contract that wrote it.
    pub address: Address,
    /// At most four.
    pub topics: Vec<B256>,
    /// What was not indexed.
    pub data: Bytes,
}

impl Log {
    /// The log that a contract writes for an event.
    pub fn event(address: Address, event: &impl SolEvent) -> Self {
        let (topics, data) = event.encode_log_data().split();
        Self { address, topics, data }
    }

    /// A log of these very bytes.
    ///
    /// # Panics
    /// With more than four topics: no chain has such a log.
    pub fn raw(address: Address, topics: impl Into<Vec<B256>>, data: impl Into<Bytes>) -> Self {
        let topics = topics.into();
        assert!(topics.len() <= 4, "a log has at most four topics");
        Self { address, topics, data: data.into() }
    }
}

impl Tx {
    /// A transaction that calls a contract, or moves value to somebody.
    pub fn new(from: Address, to: Address) -> Self {
        Self {
            hash: None,
            from,
            to: Some(to),
            created: None,
            value: U256::ZERO,
            input: Bytes::new(),
            nonce: 0,
            transaction_type: 2,
            gas_limit: 21_000,
            gas_used: 21_000,
            gas_price: 1_000_000_000,
            success: Some(true),
            transfers: Vec::new(),
            logs: Vec::new(),
        }
    }

    /// A transaction that creates a contract.
    pub fn creating(from: Address, contract: Address) -> Self {
        Self { to: None, created: Some(contract), ..Self::new(from, contract) }
    }

    /// Moves value, in wei.
    pub fn value(mut self, wei: U256) -> Self {
        self.value = wei;
        self
    }

    /// With this hash.
    pub fn hash(mut self, hash: B256) -> Self {
        self.hash = Some(hash);
        self
    }

    /// With this call data.
    pub fn input(mut self, input: impl Into<Bytes>) -> Self {
        self.input = input.into();
        self
    }

    /// Reverted: it moves no value and has no logs.
    pub fn reverted(mut self) -> Self {
        self.success = Some(false);
        self.transfers.clear();
        self.logs.clear();
        self
    }

    /// With a call inside of it that moves value.
    pub fn transfer(mut self, from: Address, to: Address, wei: U256) -> Self {
        self.transfers.push(Transfer { how: 2, depth: 1, from, to, value: wei });
        self
    }

    /// With one more log.
    pub fn log(mut self, log: Log) -> Self {
        self.logs.push(log);
        self
    }
}

impl Block {
    /// An empty block.
    pub fn new(number: u64) -> Self {
        let hash = |number: u64| keccak256(number.to_be_bytes());
        Self {
            chain_id: 31337,
            number,
            timestamp: number.saturating_mul(12),
            hash: hash(number),
            parent_hash: hash(number.wrapping_sub(1)),
            beneficiary: Address::ZERO,
            gas_used: 0,
            gas_limit: 30_000_000,
            base_fee: Some(1_000_000_000),
            transactions: Vec::new(),
        }
    }

    /// With one more transaction.
    pub fn tx(mut self, tx: Tx) -> Self {
        self.transactions.push(tx);
        self
    }

    /// With one more log, in a transaction of its own that calls the contract.
    pub fn log(self, log: Log) -> Self {
        let tx = Tx::new(Address::repeat_byte(0xee), log.address).log(log);
        self.tx(tx)
    }

    /// With one more event, in a transaction of its own that calls the contract.
    pub fn event(self, contract: Address, event: &impl SolEvent) -> Self {
        self.log(Log::event(contract, event))
    }

    /// Hash of the transaction at a place: its own, or the default.
    pub fn tx_hash(&self, index: usize) -> B256 {
        let own = self.transactions.get(index).and_then(|tx| tx.hash);
        own.unwrap_or_else(|| keccak256([self.hash.as_slice(), &(index as u64).to_be_bytes()].concat()))
    }

    /// The block's record.
    pub fn encode(&self, subscribed: bool) -> Vec<u8> {
        let mut r = Record::new(1, u8::from(subscribed), 168);
        r.u64(self.number).u64(self.timestamp).u64(self.gas_used).u64(self.gas_limit);
        r.u64(self.base_fee.unwrap_or(u64::MAX)).u32(self.transactions.len() as u32).zeros(4);
        r.put(self.hash).put(self.parent_hash).put(self.beneficiary).zeros(28);
        r.end()
    }

    /// The record of the transaction at a place.
    pub fn encode_tx(&self, index: usize) -> Vec<u8> {
        let tx = &self.transactions[index];
        let present = u8::from(tx.to.is_some()) | u8::from(tx.created.is_some()) << 1;
        let mut r = Record::new(2, 1, 208);
        r.u32(index as u32).put([tx.success.map_or(2, u8::from), tx.transaction_type, present, 0]);
        r.u64(tx.nonce).u64(tx.gas_limit).u64(if tx.success.is_some() { tx.gas_used } else { 0 });
        r.put(tx.gas_price.to_le_bytes()).put(self.tx_hash(index)).put(tx.value.to_be_bytes::<32>());
        r.put(tx.from).put(tx.to.unwrap_or_default()).put(tx.created.unwrap_or_default());
        r.u32(tx.input.len() as u32).zeros(24).put(&tx.input);
        r.end()
    }

    /// The record of the transaction at a place, as if it were in no block yet.
    pub fn encode_pending(&self, index: usize) -> Vec<u8> {
        let mut record = self.encode_tx(index);
        record[4] = 5;
        record[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        // Nothing is known of how it will do.
        (record[12], record[14]) = (2, record[14] & 1);
        record[32..40].fill(0);
        record[160..180].fill(0);
        record
    }

    /// The record of a transfer of the transaction at a place. `index` counts the transfers of the block.
    pub fn encode_transfer(&self, tx_index: usize, transfer: &Transfer, index: u32) -> Vec<u8> {
        let mut r = Record::new(4, 1, 128);
        r.u32(index).u32(tx_index as u32).put([transfer.how, 0]).put(transfer.depth.to_le_bytes()).zeros(4);
        r.put(self.tx_hash(tx_index)).put(transfer.value.to_be_bytes::<32>()).put(transfer.from).put(transfer.to);
        r.end()
    }

    /// The record of a log of the transaction at a place. `log_index` counts the logs of the block.
    pub fn encode_log(&self, tx_index: usize, log: &Log, log_index: u32) -> Vec<u8> {
        let mut r = Record::new(3, 1, 80);
        r.u32(log_index).u32(tx_index as u32).put(self.tx_hash(tx_index)).put(log.address);
        r.put([log.topics.len() as u8, 0, 0, 0]).u32(log.data.len() as u32).zeros(4);
        for topic in &log.topics {
            r.put(topic);
        }
        r.put(&log.data);
        r.end()
    }
}

/// A batch of whole records.
pub fn encode_batch<R: AsRef<[u8]>>(chain_id: u64, records: &[R]) -> Vec<u8> {
    let mut batch = b"CWB1\x18\0\0\0".to_vec();
    batch.extend_from_slice(&chain_id.to_le_bytes());
    batch.extend_from_slice(&(records.len() as u32).to_le_bytes());
    batch.extend_from_slice(&[0; 4]);
    for record in records {
        batch.extend_from_slice(record.as_ref());
    }
    batch
}

struct Record(Vec<u8>);

impl Record {
    fn new(kind: u8, flags: u8, fixed_len: u16) -> Self {
        let mut bytes = vec![0, 0, 0, 0, kind, flags];
        bytes.extend_from_slice(&fixed_len.to_le_bytes());
        Self(bytes)
    }
    fn put(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.0.extend_from_slice(bytes.as_ref());
        self
    }
    fn u32(&mut self, value: u32) -> &mut Self {
        self.put(value.to_le_bytes())
    }
    fn u64(&mut self, value: u64) -> &mut Self {
        self.put(value.to_le_bytes())
    }
    fn zeros(&mut self, n: usize) -> &mut Self {
        self.0.resize(self.0.len() + n, 0);
        self
    }
    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_le_bytes());
        self.0
    }
}
