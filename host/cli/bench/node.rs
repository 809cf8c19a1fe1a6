//! A node on loopback for the benchmarks: a made-up chain whose headers, blooms and roots are right, answered as a node
//! does, after a given time. It notes every question, so that a bare client can ask the same.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy_consensus::proofs::{calculate_receipt_root, calculate_transaction_root};
use alloy_consensus::{Header, Receipt, ReceiptEnvelope, SignableTransaction, TxEnvelope, TxLegacy};
use alloy_primitives::{Address, B256, Bloom, Bytes, Signature, TxKind, U64, U256};
use axum::body::Bytes as Body;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::lab::{CHAIN, transfers};

/// Blocks and results in one `eth_getLogs`, as large providers allow.
const RANGE_MOST: u64 = 2_000;
const RESULTS_MOST: usize = 10_000;

struct Told {
    header: Box<RawValue>,
    full: Box<RawValue>,
    receipts: Box<RawValue>,
    logs: Vec<Box<RawValue>>,
}

pub struct Node {
    blocks: Vec<Told>,
    numbers: HashMap<B256, usize>,
    delay: Duration,
    /// How many of the blocks are there by now.
    there: AtomicUsize,
    /// Those at the end that are not final.
    open: AtomicUsize,
    asked: Mutex<Vec<Body>>,
}

fn raw(value: &Value) -> anyhow::Result<Box<RawValue>> {
    Ok(serde_json::value::to_raw_value(value)?)
}

impl Node {
    /// `blocks` with so many transfers each, in one transaction; in each `every`th alone.
    pub fn new(blocks: u64, logs: u32, every: u64, delay: Duration) -> anyhow::Result<Arc<Self>> {
        let (there, open) = (AtomicUsize::new(blocks as usize), AtomicUsize::new(0));
        let mut node =
            Self { blocks: Vec::new(), numbers: HashMap::new(), delay, there, open, asked: Mutex::default() };
        let mut parent = B256::ZERO;
        for number in 0..blocks {
            let logs = if number % every == 0 { transfers(logs, 100) } else { vec![] };
            parent = node.push(number, parent, &logs)?;
        }
        Ok(Arc::new(node))
    }

    fn push(&mut self, number: u64, parent: B256, logs: &[crate::model::Log]) -> anyhow::Result<B256> {
        let transaction = TxLegacy {
            chain_id: Some(CHAIN.0),
            nonce: number,
            gas_price: 1,
            gas_limit: 30_000_000,
            to: TxKind::Call(Address::repeat_byte(8)),
            value: U256::ZERO,
            input: Bytes::new(),
        };
        // Nobody's: of this chain id signatures are not looked at, as on every development chain.
        let signature = Signature::new(U256::from(1), U256::from(1), false);
        let envelope = TxEnvelope::from(transaction.into_signed(signature));
        let transactions = if logs.is_empty() { vec![] } else { vec![envelope] };
        let bare =
            logs.iter().map(|l| alloy_primitives::Log::new_unchecked(l.address, l.topics.clone(), l.data.clone()));
        let receipt = Receipt { status: true.into(), cumulative_gas_used: 21_000, logs: bare.collect() };
        let receipts: Vec<ReceiptEnvelope> =
            transactions.iter().map(|_| ReceiptEnvelope::Legacy(receipt.clone().with_bloom())).collect();
        let bloom = receipts.first().map_or(Bloom::ZERO, |r| *r.logs_bloom());
        let header = Header {
            parent_hash: parent,
            number,
            timestamp: 1_700_000_000 + 12 * number,
            gas_limit: 30_000_000,
            gas_used: 21_000 * transactions.len() as u64,
            base_fee_per_gas: Some(1),
            logs_bloom: bloom,
            transactions_root: calculate_transaction_root(&transactions),
            receipts_root: calculate_receipt_root(&receipts),
            ..Header::default()
        };
        let hash = header.hash_slow();
        let place = |index: usize| json!({ "blockHash": hash, "blockNumber": U64::from(number), "transactionIndex": U64::from(index) });
        let with = |mut value: Value, more: Value| {
            if let (Some(value), Some(more)) = (value.as_object_mut(), more.as_object()) {
                value.extend(more.clone());
            }
            value
        };
        let tx_hash = transactions.first().map(|t| *t.tx_hash()).unwrap_or_default();
        let told: Vec<Value> = logs
            .iter()
            .map(|log| {
                let more = json!({ "transactionIndex": "0x0", "transactionHash": tx_hash, "logIndex": U64::from(log.index), "removed": false });
                let log = json!({ "address": log.address, "topics": log.topics, "data": log.data });
                with(with(log, place(0)), more)
            })
            .collect();
        let full: Vec<Value> = transactions
            .iter()
            .map(|tx| Ok(with(with(serde_json::to_value(tx)?, place(0)), json!({ "from": Address::repeat_byte(7) }))))
            .collect::<anyhow::Result<_>>()?;
        let receipt = |_: &TxEnvelope| {
            let receipt = json!({
                "transactionHash": tx_hash, "from": Address::repeat_byte(7), "to": Address::repeat_byte(8),
                "cumulativeGasUsed": "0x5208", "gasUsed": "0x5208", "effectiveGasPrice": "0x1", "type": "0x0",
                "status": "0x1", "contractAddress": null, "logsBloom": bloom, "logs": told,
            });
            with(receipt, place(0))
        };
        let receipts: Vec<Value> = transactions.iter().map(receipt).collect();
        let block = |listed: Value| {
            let own = json!({ "hash": hash, "uncles": [], "size": "0x400", "transactions": listed });
            Ok::<_, anyhow::Error>(with(serde_json::to_value(&header)?, own))
        };
        let hashes: Vec<B256> = transactions.iter().map(|t| *t.tx_hash()).collect();
        self.blocks.push(Told {
            header: raw(&block(json!(hashes))?)?,
            full: raw(&block(Value::Array(full))?)?,
            receipts: raw(&Value::Array(receipts))?,
            logs: told.iter().map(raw).collect::<anyhow::Result<_>>()?,
        });
        self.numbers.insert(hash, number as usize);
        Ok(hash)
    }

    pub async fn serve(self: &Arc<Self>) -> anyhow::Result<SocketAddr> {
        let node = self.clone();
        let handler = move |body: Body| {
            let node = node.clone();
            async move { node.reply(body).await }
        };
        let app = axum::Router::new().route("/", axum::routing::post(handler));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move { drop(axum::serve(listener, app).await) });
        Ok(address)
    }

    /// What was asked since the last call of this.
    pub fn asked(&self) -> Vec<Body> {
        std::mem::take(&mut self.asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    pub fn tip(&self) -> u64 {
        self.there.load(Ordering::Relaxed) as u64 - 1
    }

    /// Only so many are there yet, and the last of them are not final.
    pub fn show(&self, blocks: usize, open: usize) {
        self.there.store(blocks, Ordering::Relaxed);
        self.open.store(open, Ordering::Relaxed);
    }

    /// One more: its header.
    pub fn advance(&self) -> &str {
        let next = self.there.fetch_add(1, Ordering::Relaxed);
        self.blocks.get(next).map_or("null", |told| told.header.get())
    }

    pub async fn reply(&self, body: Body) -> String {
        self.asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(body.clone());
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        match serde_json::from_slice::<Value>(&body) {
            Ok(Value::Array(all)) => format!("[{}]", all.iter().map(|q| self.one(q)).collect::<Vec<_>>().join(",")),
            Ok(question) => self.one(&question),
            Err(error) => format!(r#"{{"jsonrpc":"2.0","id":null,"error":{{"code":-32700,"message":"{error}"}}}}"#),
        }
    }

    fn one(&self, question: &Value) -> String {
        let id = &question["id"];
        match self.answer(&question["method"], &question["params"]) {
            Ok(result) => format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#),
            Err(why) => format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32005,"message":"{why}"}}}}"#),
        }
    }

    fn answer(&self, method: &Value, params: &Value) -> Result<String, String> {
        let number = |value: &Value| match value.as_str() {
            Some("latest") => Some(self.tip() as usize),
            Some("safe" | "finalized") => Some((self.tip() as usize).saturating_sub(self.open.load(Ordering::Relaxed))),
            Some(text) if text.len() == 66 => self.numbers.get(&text.parse::<B256>().ok()?).copied(),
            Some(text) => usize::from_str_radix(text.trim_start_matches("0x"), 16).ok(),
            None => None,
        };
        let told = |value: &Value| number(value).filter(|n| *n as u64 <= self.tip()).and_then(|n| self.blocks.get(n));
        let or_null = |raw: Option<&RawValue>| raw.map_or("null".to_owned(), |raw| raw.get().to_owned());
        Ok(match method.as_str() {
            Some("eth_chainId") => format!("\"{:#x}\"", CHAIN.0),
            Some("eth_blockNumber") => format!("\"{:#x}\"", self.tip()),
            Some("eth_getBlockByNumber" | "eth_getBlockByHash") => {
                let full = params[1] == true;
                or_null(told(&params[0]).map(|t| if full { &*t.full } else { &*t.header }))
            }
            Some("eth_getBlockReceipts") => or_null(told(&params[0]).map(|t| &*t.receipts)),
            Some("eth_getLogs") => {
                let filter = &params[0];
                let (from, to) = if filter["blockHash"].is_string() {
                    let at = number(&filter["blockHash"]).ok_or("unknown block")?;
                    (at, at)
                } else {
                    (number(&filter["fromBlock"]).unwrap_or(0), number(&filter["toBlock"]).unwrap_or(0))
                };
                if to.saturating_sub(from) as u64 >= RANGE_MOST {
                    return Err(format!("eth_getLogs is limited to a {RANGE_MOST} range"));
                }
                let blocks = self.blocks.get(from..=to.min(self.blocks.len() - 1)).unwrap_or_default();
                let logs: Vec<&str> = blocks.iter().flat_map(|b| &b.logs).map(|log| log.get()).collect();
                if logs.len() > RESULTS_MOST {
                    return Err(format!("query returned more than {RESULTS_MOST} results"));
                }
                format!("[{}]", logs.join(","))
            }
            _ => return Err(format!("the method {method} does not exist/is not available").replace('"', "")),
        })
    }
}
