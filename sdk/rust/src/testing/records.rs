//! Recorded blocks: one JSON object a line, with `number`, `hash`, `block` (an `eth_getBlockByNumber` result with whole transactions), and
//! `receipts` (`eth_getBlockReceipts`) or `logs` (`eth_getLogs`). This is what `chainweir record` writes.

use std::io::BufRead;

use alloy_primitives::{Address, B256, Bytes, U256};
use serde::Deserialize;

use super::chain::{Block, Log, Tx};

/// A number as JSON-RPC writes it: `0x` and hex.
#[derive(Clone, Copy, Default)]
struct Quantity(U256);

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let digits =
            text.strip_prefix("0x").ok_or_else(|| serde::de::Error::custom(format!("`{text}` is no quantity")))?;
        U256::from_str_radix(digits, 16).map(Self).map_err(serde::de::Error::custom)
    }
}

impl Quantity {
    fn u64(self, what: &str) -> Result<u64, String> {
        self.0.try_into().map_err(|_| format!("{what} does not fit into 64 bits"))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    chain_id: u64,
    block: Header,
    #[serde(default)]
    receipts: Option<Vec<Receipt>>,
    #[serde(default)]
    logs: Option<Vec<LogJson>>,
    #[serde(default)]
    canonical: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    number: Quantity,
    timestamp: Quantity,
    hash: B256,
    parent_hash: B256,
    miner: Address,
    gas_used: Quantity,
    gas_limit: Quantity,
    base_fee_per_gas: Option<Quantity>,
    transactions: Vec<TxJson>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TxJson {
    hash: B256,
    from: Address,
    to: Option<Address>,
    value: Quantity,
    input: Bytes,
    nonce: Quantity,
    #[serde(rename = "type", default)]
    kind: Quantity,
    gas: Quantity,
    gas_price: Option<Quantity>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Receipt {
    transaction_index: Quantity,
    status: Option<Quantity>,
    gas_used: Quantity,
    effective_gas_price: Option<Quantity>,
    contract_address: Option<Address>,
    logs: Vec<LogJson>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogJson {
    address: Address,
    topics: Vec<B256>,
    data: Bytes,
    transaction_index: Quantity,
    #[serde(default)]
    removed: bool,
}

impl From<LogJson> for Log {
    fn from(log: LogJson) -> Self {
        Self { address: log.address, topics: log.topics, data: log.data }
    }
}

/// Reads recorded blocks. Lines that say `"canonical": false` are left out. The error names the line.
pub fn read(lines: impl BufRead) -> Result<Vec<Block>, String> {
    let mut blocks = Vec::new();
    for (i, line) in lines.lines().enumerate() {
        let at = |why: String| format!("recorded block in line {}: {why}", i + 1);
        let line = line.map_err(|e| at(e.to_string()))?;
        if line.trim().is_empty() {
            continue;
        }
        let line: Line = serde_json::from_str(&line).map_err(|e| at(e.to_string()))?;
        if line.canonical != Some(false) {
            blocks.push(block(line).map_err(at)?);
        }
    }
    Ok(blocks)
}

fn block(line: Line) -> Result<Block, String> {
    let header = line.block;
    let mut transactions = Vec::with_capacity(header.transactions.len());
    for tx in header.transactions {
        transactions.push(Tx {
            hash: Some(tx.hash),
            from: tx.from,
            to: tx.to,
            created: None,
            value: tx.value.0,
            input: tx.input,
            nonce: tx.nonce.u64("nonce")?,
            transaction_type: tx.kind.0.try_into().map_err(|_| "the type of a transaction is above 255")?,
            gas_limit: tx.gas.u64("gas")?,
            gas_used: 0,
            gas_price: tx.gas_price.unwrap_or_default().0.try_into().map_err(|_| "a gas price is above 128 bits")?,
            success: None,
            transfers: Vec::new(),
            logs: Vec::new(),
        });
    }
    let count = transactions.len();
    let place = |index: Quantity| -> Result<usize, String> {
        let index = index.u64("transactionIndex")? as usize;
        if index < count { Ok(index) } else { Err(format!("there is no transaction {index}")) }
    };
    let mut last = 0;
    let mut in_order = |index: usize| {
        let good = index >= last;
        last = index;
        if good { Ok(()) } else { Err("receipts or logs are not in chain order".to_owned()) }
    };
    match (line.receipts, line.logs) {
        (Some(receipts), _) => {
            for receipt in receipts {
                let index = place(receipt.transaction_index)?;
                in_order(index)?;
                let tx = &mut transactions[index];
                tx.success = receipt.status.map(|status| !status.0.is_zero());
                tx.gas_used = receipt.gas_used.u64("gasUsed")?;
                tx.created = receipt.contract_address;
                if let Some(price) = receipt.effective_gas_price {
                    tx.gas_price = price.0.try_into().map_err(|_| "a gas price is above 128 bits")?;
                }
                tx.logs = receipt.logs.into_iter().map(Log::from).collect();
            }
        }
        (None, Some(logs)) => {
            for log in logs.into_iter().filter(|log| !log.removed) {
                let index = place(log.transaction_index)?;
                in_order(index)?;
                transactions[index].logs.push(log.into());
            }
        }
        // Not known is not empty: a test on such a block would prove nothing.
        (None, None) if count > 0 => return Err("it has neither receipts nor logs".into()),
        (None, None) => {}
    }
    Ok(Block {
        chain_id: line.chain_id,
        number: header.number.u64("number")?,
        timestamp: header.timestamp.u64("timestamp")?,
        hash: header.hash,
        parent_hash: header.parent_hash,
        beneficiary: header.miner,
        gas_used: header.gas_used.u64("gasUsed")?,
        gas_limit: header.gas_limit.u64("gasLimit")?,
        base_fee: header.base_fee_per_gas.and_then(|fee| fee.0.try_into().ok()),
        transactions,
    })
}
