//! The JSON of the Ethereum JSON-RPC, and its way into the model: parse, verify, assemble.
//! `node or recording -> [wire] -> model::Block`. The form is the execution-apis specification's.
//!
//! Knows nothing of connections or files. Everything here is hostile until [`assemble`] has proven it
//! against the header with [`crate::proof`].

use alloy_consensus::Eip658Value;
use alloy_eips::eip4895::Withdrawal;
use alloy_primitives::{Address, B256, Bloom, Bytes, U64, U128, U256, hex};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Whereabouts;
use crate::model::{Block, BlockRef, ChainId, Header, Log, Transaction, Wanted};
use crate::proof::unsigned::{self, ArbContract, ArbDeposit, ArbInternal, ArbRetry, ArbSubmitRetryable, ArbUnsigned};
use crate::proof::{self, AuraSeal, Check, Contradiction, Form, Quirks, ReceiptFacts};

/// Why parts do not make a block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    #[error("{0}")]
    False(String),
    /// The parts are not contradicted, but do not hold this.
    #[error("{0} are missing")]
    Lacks(&'static str),
}

impl From<Contradiction> for Trouble {
    fn from(c: Contradiction) -> Self {
        Self::False(c.0)
    }
}

fn unreadable(what: &str, e: &serde_json::Error) -> Trouble {
    Trouble::False(format!("{what} is not in the form of the specification: {e}"))
}

/// Names that a header may have in JSON without being hashed otherwise than Ethereum does.
const KNOWN_FIELDS: &[&str] = &[
    "hash",
    "parentHash",
    "sha3Uncles",
    "miner",
    "author",
    "stateRoot",
    "transactionsRoot",
    "receiptsRoot",
    "logsBloom",
    "difficulty",
    "totalDifficulty",
    "number",
    "gasLimit",
    "gasUsed",
    "timestamp",
    "extraData",
    "mixHash",
    "nonce",
    "baseFeePerGas",
    "withdrawalsRoot",
    "blobGasUsed",
    "excessBlobGas",
    "parentBeaconBlockRoot",
    "requestsHash",
    "blockAccessListHash",
    "slotNumber",
    "transactions",
    "uncles",
    "withdrawals",
    "size",
    "sealFields",
    "step",
    "signature",
    "auraStep",
    "auraSeal",
    // Arbitrum's: what is hashed of them stands in `mixHash` and `extraData`.
    "l1BlockNumber",
    "sendCount",
    "sendRoot",
];

/// Ethereum itself and its test chains.
const ETHEREUM: &[u64] = &[1, 17000, 560048, 11155111];
/// Other chains whose headers are Ethereum's: no unknown field excuses a wrong hash there either.
const PLAIN_HEADERS: &[u64] = &[10, 100, 8453, 42161, 42170, 421614];

#[derive(Clone, Debug)]
pub enum Listed {
    /// Only the header is known.
    Unknown,
    Hashes(Vec<B256>),
    Full(Vec<Told>),
}

/// A transaction, not read yet but for its hash.
#[derive(Clone, Debug)]
pub struct Told {
    hash: B256,
    json: Box<RawValue>,
}

/// A transaction as the node tells it, and as it is hashed where its type is known.
#[derive(Clone, Debug)]
struct Envelope {
    told: WireTransaction,
    form: Option<Form>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireTransaction {
    pub hash: B256,
    pub block_hash: Option<B256>,
    pub transaction_index: Option<U64>,
    pub from: Address,
    pub to: Option<Address>,
    // Of a type that we do not know, what it lacks is nothing; of the others all of it is proven.
    #[serde(default)]
    pub value: U256,
    #[serde(default)]
    pub input: Bytes,
    #[serde(default)]
    pub nonce: U64,
    #[serde(default)]
    pub gas: U64,
    pub gas_price: Option<U128>,
    pub max_fee_per_gas: Option<U128>,
    pub max_priority_fee_per_gas: Option<U128>,
    #[serde(rename = "type")]
    pub kind: Option<U64>,
}

/// `eth_getBlockBy...`, its header's hash not checked yet.
#[derive(Clone, Debug)]
pub struct WireBlock {
    pub hash: B256,
    pub header: alloy_consensus::Header,
    /// What the header hashes to.
    own: B256,
    /// Names of header fields that Ethereum does not have; looked for where the hash does not fit.
    foreign: Vec<String>,
    pub transactions: Listed,
    pub withdrawals: Option<Vec<Withdrawal>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outer {
    hash: B256,
    transactions: Option<Vec<Box<RawValue>>>,
    withdrawals: Option<Vec<Withdrawal>>,
}

#[derive(Deserialize)]
struct Hashed {
    hash: B256,
}

/// What stands in an AuRa header instead of mix hash and nonce: raw items (OpenEthereum), or a number and a signature
/// (Nethermind, Erigon).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Seals {
    #[serde(default)]
    seal_fields: Vec<Bytes>,
    #[serde(alias = "auraStep")]
    step: Option<serde_json::Value>,
    #[serde(alias = "auraSeal")]
    signature: Option<String>,
}

impl Seals {
    fn read(self) -> Option<AuraSeal> {
        if let [step, signature] = self.seal_fields.as_slice() {
            return Some(AuraSeal { step: step.clone(), signature: signature.clone() });
        }
        let step = match self.step? {
            serde_json::Value::Number(n) => n.as_u64()?,
            serde_json::Value::String(s) => match s.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16).ok()?,
                None => s.parse().ok()?,
            },
            _ => return None,
        };
        let signature = hex::decode(self.signature?).ok()?;
        Some(AuraSeal {
            step: alloy_rlp::encode(step).into(),
            signature: alloy_rlp::encode(signature.as_slice()).into(),
        })
    }
}

struct Parsed {
    header: alloy_consensus::Header,
    own: B256,
    foreign: Vec<String>,
}

/// The header in a block's JSON; `claimed` is the hash that it should have.
fn parse_header(json: &str, claimed: B256) -> Result<Parsed, Trouble> {
    let form = |e: &serde_json::Error| unreadable("the header", e);
    let mut plain = None;
    if let Ok(header) = serde_json::from_str::<alloy_consensus::Header>(json) {
        let own = proof::hash_of(&header, None);
        if own == claimed {
            return Ok(Parsed { header, own, foreign: Vec::new() });
        }
        plain = Some((header, own));
    }
    // Only where the hash does not fit is it of interest why.
    let mut all: serde_json::Map<String, serde_json::Value> = serde_json::from_str(json).map_err(|e| form(&e))?;
    all.remove("transactions");
    let seal: Option<AuraSeal> = Seals::deserialize(serde_json::Value::Object(all.clone())).ok().and_then(Seals::read);
    let foreign = all.keys().filter(|k| !KNOWN_FIELDS.contains(&k.as_str())).cloned().collect();
    let (header, own) = match (plain, seal) {
        (Some(plain), None) => plain,
        (_, seal) => {
            // Sealed headers have neither, and no other may lack them.
            if seal.is_some() {
                all.insert("mixHash".into(), B256::ZERO.to_string().into());
                all.insert("nonce".into(), "0x0000000000000000".into());
            }
            let header = serde_json::from_value(serde_json::Value::Object(all)).map_err(|e| form(&e))?;
            let own = proof::hash_of(&header, seal.as_ref());
            (header, own)
        }
    };
    Ok(Parsed { header, own, foreign })
}

/// The verified place of a block, without a look at its transactions.
pub fn place(json: &str, chain: ChainId, quirks: &Quirks, doubts: &mut Vec<String>) -> Result<BlockRef, Trouble> {
    WireBlock::parse_header(json)?.verify(chain, quirks, doubts)
}

impl WireBlock {
    /// The header alone: of a block, or as a subscription tells it.
    pub fn parse_header(json: &str) -> Result<Self, Trouble> {
        let Hashed { hash } = serde_json::from_str(json).map_err(|e| unreadable("the header", &e))?;
        let Parsed { header, own, foreign } = parse_header(json, hash)?;
        Ok(Self { hash, header, own, foreign, transactions: Listed::Unknown, withdrawals: None })
    }

    /// Its header alone.
    pub fn bare(&self) -> Self {
        let (header, foreign) = (self.header.clone(), self.foreign.clone());
        let transactions = Listed::Unknown;
        Self { hash: self.hash, header, own: self.own, foreign, transactions, withdrawals: None }
    }

    pub fn parse(json: &str) -> Result<Self, Trouble> {
        let outer: Outer = serde_json::from_str(json).map_err(|e| unreadable("the block", &e))?;
        let Parsed { header, own, foreign } = parse_header(json, outer.hash)?;
        let listed =
            outer.transactions.ok_or_else(|| Trouble::False("the block has no list of transactions".into()))?;
        let transactions = if listed.first().is_some_and(|t| t.get().starts_with('"')) {
            let hashes = listed.iter().map(|t| serde_json::from_str(t.get()));
            Listed::Hashes(hashes.collect::<Result<_, _>>().map_err(|e| unreadable("a transaction hash", &e))?)
        } else {
            let told = listed.into_iter().map(|json| {
                let Hashed { hash } = serde_json::from_str(json.get()).map_err(|e| unreadable("a transaction", &e))?;
                Ok(Told { hash, json })
            });
            Listed::Full(told.collect::<Result<_, Trouble>>()?)
        };
        Ok(Self { hash: outer.hash, header, own, foreign, transactions, withdrawals: outer.withdrawals })
    }

    pub fn at(&self, chain: ChainId) -> BlockRef {
        let h = &self.header;
        BlockRef { chain, number: h.number, hash: self.hash, parent: h.parent_hash, time: h.timestamp }
    }

    pub fn hash_at(&self, index: usize) -> Option<B256> {
        match &self.transactions {
            Listed::Unknown => None,
            Listed::Hashes(all) => all.get(index).copied(),
            Listed::Full(all) => all.get(index).map(|t| t.hash),
        }
    }

    pub fn count(&self) -> usize {
        match &self.transactions {
            Listed::Unknown => 0,
            Listed::Hashes(all) => all.len(),
            Listed::Full(all) => all.len(),
        }
    }

    /// Its last transaction is Bor's state-sync transaction.
    fn state_synced(&self, quirks: &Quirks) -> bool {
        let n = self.header.number;
        quirks.may_state_sync(n)
            && self.count() > 0
            && self.hash_at(self.count() - 1) == Some(proof::state_sync_hash(n, self.hash))
    }

    /// What the header alone can prove. Reasons why something cannot be told go to `doubts`.
    pub fn verify(&self, chain: ChainId, quirks: &Quirks, doubts: &mut Vec<String>) -> Result<BlockRef, Trouble> {
        let plain = ETHEREUM.contains(&chain.0) || PLAIN_HEADERS.contains(&chain.0);
        let foreign = if plain { &[] } else { self.foreign.as_slice() };
        note(proof::header_hash(self.header.number, self.own, self.hash, foreign, quirks)?, doubts);
        Ok(self.at(chain))
    }

    /// No logs that are wanted can be in this block, says its (verified) bloom.
    pub fn excludes(&self, wanted: &Wanted, quirks: &Quirks) -> bool {
        !quirks.bloom_unreliable
            && !quirks.may_state_sync(self.header.number)
            && !proof::may_hold(&self.header.logs_bloom, &wanted.addresses, &wanted.topic0)
    }
}

fn note(check: Check, doubts: &mut Vec<String>) {
    if let Check::CannotTell(why) = check {
        doubts.push(why);
    }
}

impl Envelope {
    fn parse(json: &str) -> Result<Self, Trouble> {
        let told: WireTransaction = serde_json::from_str(json).map_err(|e| unreadable("a transaction", &e))?;
        let form = match told.kind.unwrap_or_default().to::<u64>() {
            0..=4 => Some(Form::Signed(serde_json::from_str(json).map_err(|e| unreadable("a transaction", &e))?)),
            // Nodes differ in how much of these they tell: what is not told cannot be hashed.
            kind => u8::try_from(kind).ok().and_then(|kind| unsigned_form(kind, json)).map(Form::Unsigned),
        };
        Ok(Self { told, form })
    }
}

/// A transaction that is in no block yet, proven to be signed by its sender. `None` where it is in one by now, or the node has
/// forgotten it.
pub fn pending(json: &str, chain: ChainId) -> Result<Option<Transaction>, Trouble> {
    if json == "null" {
        return Ok(None);
    }
    let Envelope { told, form } = Envelope::parse(json)?;
    let Some(Form::Signed(envelope)) = form else {
        return Err(Trouble::False(format!("transaction {} is of a type that is known in blocks alone", told.hash)));
    };
    proof::alone(&envelope, told.hash, told.from, chain)?;
    if told.block_hash.is_some() {
        return Ok(None);
    }
    let most = told.max_fee_per_gas.or(told.gas_price).unwrap_or_default().to();
    Ok(Some(Transaction {
        index: u32::MAX,
        hash: told.hash,
        from: told.from,
        to: told.to,
        created: None,
        value: told.value,
        input: told.input,
        nonce: told.nonce.to(),
        kind: u8::try_from(told.kind.unwrap_or_default().to::<u64>()).unwrap_or(0),
        gas_limit: told.gas.to(),
        gas_used: None,
        gas_price: most,
        success: None,
    }))
}

/// The same, told where it is.
pub fn whereabouts(json: &str, chain: ChainId) -> Result<Whereabouts, Trouble> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Mined {
        block_number: Option<U64>,
    }
    if json != "null" {
        let mined: Mined = serde_json::from_str(json).map_err(|e| unreadable("a transaction", &e))?;
        if let Some(number) = mined.block_number {
            return Ok(Whereabouts::Mined(number.to()));
        }
    }
    Ok(pending(json, chain)?.map_or(Whereabouts::Unknown, |tx| Whereabouts::Pending(Box::new(tx))))
}

fn unsigned_form(kind: u8, json: &str) -> Option<Vec<u8>> {
    fn encoded<T: serde::de::DeserializeOwned + alloy_rlp::Encodable>(kind: u8, json: &str) -> Option<Vec<u8>> {
        Some(unsigned::encoded(kind, &serde_json::from_str::<T>(json).ok()?))
    }
    match kind {
        unsigned::OP_DEPOSIT => encoded::<unsigned::OpDeposit>(kind, json),
        unsigned::ARB_DEPOSIT => encoded::<ArbDeposit>(kind, json),
        unsigned::ARB_UNSIGNED => encoded::<ArbUnsigned>(kind, json),
        unsigned::ARB_CONTRACT => encoded::<ArbContract>(kind, json),
        unsigned::ARB_RETRY => encoded::<ArbRetry>(kind, json),
        unsigned::ARB_SUBMIT_RETRYABLE => encoded::<ArbSubmitRetryable>(kind, json),
        unsigned::ARB_INTERNAL => encoded::<ArbInternal>(kind, json),
        _ => None,
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireLog {
    pub address: Address,
    pub topics: Vec<B256>,
    pub data: Bytes,
    pub block_hash: B256,
    pub block_number: U64,
    pub transaction_hash: B256,
    pub transaction_index: U64,
    pub log_index: U64,
    #[serde(default)]
    pub removed: Option<bool>,
}

impl WireLog {
    pub fn into_model(self) -> Result<Log, Trouble> {
        if self.removed == Some(true) {
            return Err(Trouble::False(format!("log {} is marked as removed", self.log_index)));
        }
        let small = |n: U64| u32::try_from(n.to::<u64>()).map_err(|_| Trouble::False(format!("{n} is not an index")));
        Ok(Log {
            index: small(self.log_index)?,
            transaction_index: small(self.transaction_index)?,
            transaction_hash: self.transaction_hash,
            address: self.address,
            topics: self.topics,
            data: self.data,
        })
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireReceipt {
    pub transaction_hash: B256,
    pub transaction_index: U64,
    pub block_hash: B256,
    pub cumulative_gas_used: U64,
    pub gas_used: U64,
    pub effective_gas_price: Option<U128>,
    pub contract_address: Option<Address>,
    pub logs: Vec<WireLog>,
    #[serde(rename = "type")]
    pub kind: Option<U64>,
    pub status: Option<U64>,
    pub root: Option<Bytes>,
    /// OP stack; hashed where there is a version too (Canyon).
    pub deposit_nonce: Option<U64>,
    pub deposit_receipt_version: Option<U64>,
}

pub fn parse_logs(json: &str) -> Result<Vec<WireLog>, Trouble> {
    serde_json::from_str(json).map_err(|e| unreadable("the list of logs", &e))
}

pub fn parse_receipts(json: &str) -> Result<Vec<WireReceipt>, Trouble> {
    serde_json::from_str(json).map_err(|e| unreadable("the list of receipts", &e))
}

/// Every log belongs to this block. Order and completeness are not looked at.
pub fn logs_of(block: &WireBlock, logs: Vec<WireLog>) -> Result<Vec<Log>, Trouble> {
    let mut all = Vec::with_capacity(logs.len());
    for log in logs {
        if log.block_hash != block.hash || log.block_number.to::<u64>() != block.header.number {
            return Err(Trouble::False(format!(
                "log {} is of block {} ({}), not of block {} ({})",
                log.log_index, log.block_number, log.block_hash, block.header.number, block.hash
            )));
        }
        let log = log.into_model()?;
        let listed = !matches!(block.transactions, Listed::Unknown);
        if listed && block.hash_at(log.transaction_index as usize) != Some(log.transaction_hash) {
            return Err(Trouble::False(format!(
                "log {} names transaction {} at place {}, where the block has another",
                log.index, log.transaction_hash, log.transaction_index
            )));
        }
        all.push(log);
    }
    Ok(all)
}

/// What is known of one block. `None` is "not known", never "none".
pub struct Parts {
    pub block: WireBlock,
    pub logs: Option<Vec<WireLog>>,
    pub receipts: Option<Vec<WireReceipt>>,
}

struct Receipts {
    told: Vec<WireReceipt>,
    logs: Vec<Log>,
    /// The bloom of those logs that count for the header's.
    bloom: Bloom,
}

fn check_receipts(
    block: &WireBlock,
    mut told: Vec<WireReceipt>,
    quirks: &Quirks,
    doubts: &mut Vec<String>,
) -> Result<Receipts, Trouble> {
    let (count, outside) = (block.count(), usize::from(block.state_synced(quirks)));
    if told.len() != count && told.len() != count - outside {
        return Err(Trouble::False(format!("{count} transactions, but {} receipts", told.len())));
    }
    let mut logs = Vec::with_capacity(told.iter().map(|r| r.logs.len()).sum());
    // Where in the block's logs each receipt's own end.
    let mut ends = Vec::with_capacity(told.len());
    for (i, receipt) in told.iter_mut().enumerate() {
        let fits = receipt.transaction_index.to::<u64>() == i as u64
            && block.hash_at(i) == Some(receipt.transaction_hash)
            && receipt.block_hash == block.hash;
        if !fits {
            return Err(Trouble::False(format!("receipt {i} is of another transaction or block")));
        }
        let own = logs_of(block, std::mem::take(&mut receipt.logs))?;
        if own.iter().any(|log| log.transaction_index as usize != i) {
            return Err(Trouble::False(format!("receipt {i} holds the log of another transaction")));
        }
        logs.extend(own);
        ends.push(logs.len());
    }
    let mut facts = Vec::with_capacity(told.len());
    let mut begin = 0;
    for (i, receipt) in told.iter().enumerate().take(count - outside) {
        let outcome = match (&receipt.status, &receipt.root) {
            (Some(status), _) => Eip658Value::Eip658(!status.is_zero()),
            (None, Some(root)) if root.len() == 32 => Eip658Value::PostState(B256::from_slice(root)),
            _ => return Err(Trouble::False(format!("receipt {i} has neither status nor root"))),
        };
        let kind = u8::try_from(receipt.kind.unwrap_or_default().to::<u64>())
            .map_err(|_| Trouble::False(format!("receipt {i} has a type above 255")))?;
        let deposit = match (receipt.deposit_nonce, receipt.deposit_receipt_version) {
            (Some(nonce), Some(version)) if kind == unsigned::OP_DEPOSIT => Some((nonce.to(), version.to())),
            _ => None,
        };
        let cumulative_gas_used = receipt.cumulative_gas_used.to();
        facts.push(ReceiptFacts { kind, outcome, cumulative_gas_used, logs: &logs[begin..ends[i]], deposit });
        begin = ends[i];
    }
    let (check, bloom) = proof::receipts(&facts, block.header.receipts_root, quirks)?;
    let proven = check == Check::Holds;
    note(check, doubts);
    if proven {
        let mut before = 0u64;
        for (i, (receipt, facts)) in told.iter().zip(&facts).enumerate() {
            let own = facts.cumulative_gas_used.checked_sub(before);
            if own != Some(receipt.gas_used.to()) {
                return Err(Trouble::False(format!("receipt {i} tells another gas than its place in the sum")));
            }
            before = facts.cumulative_gas_used;
        }
    }
    Ok(Receipts { told, logs, bloom })
}

/// Reads the transactions, and proves them; who sent them only where `senders` are wanted.
fn check_transactions(
    block: &WireBlock,
    listed: &[Told],
    senders: bool,
    quirks: &Quirks,
    doubts: &mut Vec<String>,
) -> Result<Vec<Envelope>, Trouble> {
    let all = listed.iter().map(|t| Envelope::parse(t.json.get())).collect::<Result<Vec<_>, _>>()?;
    let inside = all.len() - usize::from(block.state_synced(quirks));
    // Bor may tell the place that a state-sync transaction had in an orphaned sibling: it is known by its hash.
    for (i, tx) in all[..inside].iter().enumerate() {
        let placed = tx.told.transaction_index.is_none_or(|t| t.to::<u64>() == i as u64)
            && tx.told.block_hash.is_none_or(|h| h == block.hash);
        if !placed {
            return Err(Trouble::False(format!("transaction {i} is placed elsewhere by its own fields")));
        }
    }
    let mut known = Vec::with_capacity(inside);
    for tx in &all[..inside] {
        match &tx.form {
            Some(form) => known.push((form, tx.told.hash, tx.told.from)),
            None => {
                doubts.push(format!("a transaction has the type {:#x}", tx.told.kind.unwrap_or_default()));
                return Ok(all);
            }
        }
    }
    note(proof::transactions(&known, block.header.transactions_root, senders, quirks)?, doubts);
    Ok(all)
}

/// Verifies the parts against the header and each other, and takes what is wanted.
/// `doubts` receives the named reasons why something could not be told.
pub fn assemble(
    chain: ChainId,
    parts: Parts,
    wanted: &Wanted,
    quirks: &Quirks,
    doubts: &mut Vec<String>,
) -> Result<Block, Trouble> {
    let Parts { block, logs, receipts } = parts;
    let at = block.verify(chain, quirks, doubts)?;
    note(proof::withdrawals(block.withdrawals.as_deref(), block.header.withdrawals_root, quirks)?, &mut Vec::new());
    let receipts = match receipts {
        Some(told) => Some(check_receipts(&block, told, quirks, doubts)?),
        None if wanted.receipts => return Err(Trouble::Lacks("receipts")),
        None => None,
    };
    let logs = if wanted.logs { take_logs(&block, logs, receipts.as_ref(), wanted, quirks)? } else { Vec::new() };
    let taken = wanted.transactions || wanted.receipts;
    let transactions = match &block.transactions {
        // How many there are is told with the block, and their hashes with the logs.
        Listed::Full(listed) if !taken && (wanted.blocks || wanted.logs) => {
            check_transactions(&block, listed, false, quirks, doubts)?;
            Vec::new()
        }
        _ if !taken => Vec::new(),
        Listed::Hashes(all) if all.is_empty() => Vec::new(),
        Listed::Unknown | Listed::Hashes(_) => return Err(Trouble::Lacks("transactions")),
        Listed::Full(listed) => {
            let all = check_transactions(&block, listed, true, quirks, doubts)?;
            take_transactions(chain, &block, all, receipts.as_ref())?
        }
    };
    let h = &block.header;
    let header = Header {
        at,
        gas_used: h.gas_used,
        gas_limit: h.gas_limit,
        base_fee: h.base_fee_per_gas,
        beneficiary: h.beneficiary,
        transaction_count: match block.transactions {
            Listed::Unknown => None,
            _ => u32::try_from(block.count()).ok(),
        },
    };
    Ok(Block { header, transactions, transfers: Vec::new(), logs })
}

fn take_logs(
    block: &WireBlock,
    logs: Option<Vec<WireLog>>,
    receipts: Option<&Receipts>,
    wanted: &Wanted,
    quirks: &Quirks,
) -> Result<Vec<Log>, Trouble> {
    let place = (block.header.number, block.hash);
    let mut all = match (logs, receipts) {
        (Some(told), receipts) => {
            let all = logs_of(block, told)?;
            proof::all_logs(place, &block.header.logs_bloom, &all, None, quirks)?;
            if let Some(r) = receipts {
                let outside = proof::state_sync_hash(place.0, place.1);
                let same = all
                    .iter()
                    .filter(|l| l.transaction_hash != outside)
                    .eq(r.logs.iter().filter(|l| l.transaction_hash != outside));
                if !same {
                    return Err(Trouble::False("the logs are not those of the receipts".into()));
                }
            }
            all
        }
        // A node may leave the state-sync receipt out: then its logs are not known.
        (None, Some(r)) if r.told.len() < block.count() => return Err(Trouble::Lacks("logs")),
        (None, Some(r)) => {
            proof::all_logs(place, &block.header.logs_bloom, &r.logs, Some(r.bloom), quirks)?;
            r.logs.iter().filter(|log| is_wanted(log, wanted)).cloned().collect()
        }
        (None, None) if block.excludes(wanted, quirks) => Vec::new(),
        (None, None) => return Err(Trouble::Lacks("logs")),
    };
    all.retain(|log| is_wanted(log, wanted));
    Ok(all)
}

pub fn is_wanted(log: &Log, wanted: &Wanted) -> bool {
    (wanted.addresses.is_empty() || wanted.addresses.contains(&log.address))
        && (wanted.topic0.is_empty() || log.topics.first().is_some_and(|t| wanted.topic0.contains(t)))
}

fn take_transactions(
    chain: ChainId,
    block: &WireBlock,
    all: Vec<Envelope>,
    receipts: Option<&Receipts>,
) -> Result<Vec<Transaction>, Trouble> {
    all.into_iter()
        .enumerate()
        .map(|(i, Envelope { told, form })| {
            let signed = matches!(form, Some(Form::Signed(_)));
            let receipt = receipts.and_then(|r| r.told.get(i));
            let success = receipt.and_then(|r| r.status).map(|s| !s.is_zero());
            let created = match receipt {
                Some(_) if success == Some(false) => None,
                // Proven transactions: computed, not believed.
                Some(_) if told.to.is_none() && signed => Some(proof::created(told.from, told.nonce.to())),
                Some(r) => r.contract_address,
                None => None,
            };
            let kind = u8::try_from(told.kind.unwrap_or_default().to::<u64>())
                .map_err(|_| Trouble::False(format!("transaction {i} has a type above 255")))?;
            let own_price = price(&told, block.header.base_fee_per_gas);
            let gas_price = receipt.and_then(|r| r.effective_gas_price).map_or(own_price, |p| p.to());
            // No root holds what a transaction paid: it follows from what it offered.
            if signed && gas_price != own_price && ETHEREUM.contains(&chain.0) {
                return Err(Trouble::False(format!("transaction {i} paid {own_price} wei a gas, not {gas_price}")));
            }
            Ok(Transaction {
                index: u32::try_from(i).map_err(|_| Trouble::False("too many transactions".into()))?,
                hash: told.hash,
                from: told.from,
                to: told.to,
                created,
                value: told.value,
                input: told.input,
                nonce: told.nonce.to(),
                kind,
                gas_limit: told.gas.to(),
                gas_used: receipt.map(|r| r.gas_used.to()),
                gas_price,
                success,
            })
        })
        .collect()
}

/// EIP-1559's effective gas price, from the transaction and the block alone.
fn price(tx: &WireTransaction, base_fee: Option<u64>) -> u128 {
    match (tx.max_fee_per_gas, tx.max_priority_fee_per_gas, base_fee) {
        // A legacy transaction has no say in these, whatever fields it is told with.
        _ if tx.kind.unwrap_or_default().to::<u64>() < 2 => tx.gas_price.unwrap_or_default().to(),
        (Some(most), Some(tip), Some(base)) => most.to::<u128>().min(u128::from(base).saturating_add(tip.to::<u128>())),
        _ => tx.gas_price.unwrap_or_default().to(),
    }
}
