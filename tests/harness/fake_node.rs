//! A node that lies on demand: an in-memory chain with true hashes, roots and blooms, behind HTTP JSON-RPC.
//!
//! `push` adds a block on the tip, `reorg` replaces the last blocks. `misbehave` takes a rule that sees every call
//! with the honest answer and says what is answered instead. Each block has `logs` transactions of one log each.

use std::sync::{Arc, Mutex};

use alloy_consensus::{Header, ReceiptEnvelope, SignableTransaction, TxEnvelope, TxLegacy};
use alloy_primitives::{Address, B256, Bytes, Signature, TxKind, U256};
use axum::response::{IntoResponse, Response};
use chainweir::model::Log;
use chainweir::proof;
use serde_json::{Value, json};

pub const CHAIN: u64 = 31337;
pub const TOKEN: Address = Address::repeat_byte(0x70);
/// ERC-20's Transfer: plugins understand what this node holds.
pub const TOPIC: B256 = super::chain::TRANSFER;

#[derive(Clone, Debug)]
pub enum Reply {
    Answer(Value),
    Error(i64, String),
    /// An HTTP status with headers left out, and this body.
    Status(u16, String),
    Hang,
}

type Rule = Box<dyn FnMut(&str, &Value, Value) -> Reply + Send>;

#[derive(Clone)]
struct Made {
    header: Header,
    hash: B256,
    block: Value,
    hashes: Value,
    receipts: Value,
    logs: Vec<Value>,
}

struct State {
    chain: Vec<Made>,
    /// Every block ever made: a node remembers orphans for a while.
    all: Vec<Made>,
    rule: Option<Rule>,
    salt: u64,
    calls: Vec<String>,
    /// How many questions each request held.
    sizes: Vec<usize>,
}

#[derive(Clone)]
pub struct FakeNode {
    state: Arc<Mutex<State>>,
    pub url: String,
}

fn make(parent: Option<&Made>, logs: usize, salt: u64) -> Made {
    let number = parent.map_or(0, |p| p.header.number + 1);
    let mut envelopes = Vec::new();
    let (mut receipts, mut all) = (Vec::new(), Vec::new());
    for i in 0..logs {
        let tx = TxLegacy {
            nonce: salt * 1000 + i as u64,
            gas_price: 7,
            gas_limit: 50_000,
            to: TxKind::Call(TOKEN),
            value: U256::from(i),
            ..Default::default()
        };
        envelopes.push(TxEnvelope::Legacy(tx.into_signed(Signature::test_signature())));
        let data = Bytes::from(vec![i as u8; 32]);
        let party = B256::with_last_byte(i as u8);
        all.push(Log {
            index: i as u32,
            transaction_index: i as u32,
            transaction_hash: *envelopes[i].tx_hash(),
            address: TOKEN,
            topics: vec![TOPIC, party, party],
            data: data.clone(),
        });
        let log = alloy_primitives::Log::new_unchecked(TOKEN, vec![TOPIC, party, party], data);
        let receipt = alloy_consensus::Receipt {
            status: true.into(),
            cumulative_gas_used: 21_000 * (i as u64 + 1),
            logs: vec![log],
        };
        receipts.push(ReceiptEnvelope::Legacy(receipt.with_bloom()));
    }
    let header = Header {
        parent_hash: parent.map_or(B256::ZERO, |p| p.hash),
        number,
        timestamp: 1_700_000_000 + number * 12,
        extra_data: Bytes::from(salt.to_be_bytes().to_vec()),
        gas_limit: 30_000_000,
        gas_used: 21_000 * logs as u64,
        base_fee_per_gas: Some(7),
        logs_bloom: proof::bloom_of(&all),
        transactions_root: alloy_consensus::proofs::calculate_transaction_root(&envelopes),
        receipts_root: alloy_consensus::proofs::calculate_receipt_root(&receipts),
        ..Default::default()
    };
    let hash = header.hash_slow();
    let hex = |n: u64| format!("{n:#x}");
    let logs: Vec<Value> = all
        .iter()
        .map(|l| json!({
            "address": l.address, "topics": l.topics, "data": l.data, "blockHash": hash, "blockNumber": hex(number),
            "transactionHash": l.transaction_hash, "transactionIndex": hex(l.transaction_index.into()), "logIndex": hex(l.index.into()), "removed": false,
        }))
        .collect();
    let told: Vec<Value> = envelopes
        .iter()
        .enumerate()
        .map(|(i, tx)| {
            let mut told = serde_json::to_value(tx).expect("a transaction is JSON");
            told["from"] = json!(Address::repeat_byte(9));
            told["blockHash"] = json!(hash);
            told["blockNumber"] = json!(hex(number));
            told["transactionIndex"] = json!(hex(i as u64));
            told
        })
        .collect();
    let receipts: Vec<Value> = (0..logs.len())
        .map(|i| json!({
            "transactionHash": envelopes[i].tx_hash(), "transactionIndex": hex(i as u64), "blockHash": hash, "blockNumber": hex(number),
            "cumulativeGasUsed": hex(21_000 * (i as u64 + 1)), "gasUsed": "0x5208", "effectiveGasPrice": "0x7", "contractAddress": null,
            "type": "0x0", "status": "0x1", "logs": [logs[i]],
        }))
        .collect();
    let mut block = serde_json::to_value(&header).expect("a header is JSON");
    block["hash"] = json!(hash);
    block["uncles"] = json!([]);
    block["transactions"] = json!(told);
    let mut hashes = block.clone();
    hashes["transactions"] = json!(envelopes.iter().map(|t| *t.tx_hash()).collect::<Vec<B256>>());
    Made { header, hash, block, hashes, receipts: json!(receipts), logs }
}

impl State {
    fn push(&mut self, logs: usize) -> B256 {
        self.salt += 1;
        let made = make(self.chain.last(), logs, self.salt);
        self.chain.push(made.clone());
        self.all.push(made.clone());
        made.hash
    }

    fn by_number(&self, number: &Value) -> Option<&Made> {
        match number.as_str()? {
            "latest" => self.chain.last(),
            "safe" | "finalized" => self.chain.get(self.chain.len().saturating_sub(3)),
            hex => self.chain.get(usize::from_str_radix(hex.trim_start_matches("0x"), 16).ok()?),
        }
    }

    fn by_hash(&self, hash: &Value) -> Option<&Made> {
        let hash: B256 = serde_json::from_value(hash.clone()).ok()?;
        self.all.iter().find(|m| m.hash == hash)
    }

    fn honest(&self, method: &str, p: &Value) -> Reply {
        let shape = |m: Option<&Made>, full: &Value| match m {
            Some(m) if full == &json!(true) => m.block.clone(),
            Some(m) => m.hashes.clone(),
            None => Value::Null,
        };
        Reply::Answer(match method {
            "eth_chainId" => json!(format!("{CHAIN:#x}")),
            "eth_blockNumber" => json!(format!("{:#x}", self.chain.len() - 1)),
            "eth_getBlockByNumber" => shape(self.by_number(&p[0]), &p[1]),
            "eth_getBlockByHash" => shape(self.by_hash(&p[0]), &p[1]),
            "eth_getBlockReceipts" => {
                self.by_hash(&p[0]).or_else(|| self.by_number(&p[0])).map_or(Value::Null, |m| m.receipts.clone())
            }
            "eth_getTransactionReceipt" => {
                let all = self.chain.iter().flat_map(|m| m.receipts.as_array().into_iter().flatten());
                all.into_iter().find(|r| r["transactionHash"] == p[0]).cloned().unwrap_or(Value::Null)
            }
            "eth_getLogs" => return self.logs(&p[0]),
            _ => return Reply::Error(-32601, format!("the method {method} does not exist/is not available")),
        })
    }

    fn logs(&self, filter: &Value) -> Reply {
        let blocks: Vec<&Made> = if filter.get("blockHash").is_some() {
            match self.by_hash(&filter["blockHash"]) {
                Some(m) => vec![m],
                None => return Reply::Error(-32000, "unknown block".into()),
            }
        } else {
            let at = |v: &Value| {
                v.as_str().and_then(|s| usize::from_str_radix(s.trim_start_matches("0x"), 16).ok()).unwrap_or(0)
            };
            let (from, to) = (at(&filter["fromBlock"]), at(&filter["toBlock"]));
            self.chain.iter().skip(from).take((to + 1).saturating_sub(from)).collect()
        };
        let allowed = |list: Option<&Value>, v: &Value| match list {
            Some(Value::Array(l)) if !l.is_empty() => l.contains(v),
            _ => true,
        };
        let logs = blocks.iter().flat_map(|m| m.logs.iter());
        let fits = |l: &&Value| {
            allowed(filter.get("address"), &l["address"])
                && allowed(filter.get("topics").and_then(|t| t.get(0)), &l["topics"][0])
        };
        Reply::Answer(json!(logs.filter(fits).cloned().collect::<Vec<_>>()))
    }
}

impl FakeNode {
    /// With a genesis block. Serves until the runtime of the test ends.
    pub async fn start() -> Self {
        let mut state = State { chain: vec![], all: vec![], rule: None, salt: 0, calls: vec![], sizes: vec![] };
        state.push(0);
        let state = Arc::new(Mutex::new(state));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let shared = state.clone();
        let app = axum::Router::new()
            .route("/", axum::routing::post(move |axum::Json(body): axum::Json<Value>| answer(shared.clone(), body)));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { state, url }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn push(&self, logs: usize) -> B256 {
        self.state().push(logs)
    }

    pub fn tip(&self) -> B256 {
        self.state().chain.last().expect("a chain has a genesis block").hash
    }

    /// The number of logs of each canonical block that has any, by its hash.
    pub fn logs_held(&self) -> std::collections::BTreeMap<String, usize> {
        let state = self.state();
        let with_logs = state.chain.iter().filter(|made| !made.logs.is_empty());
        with_logs.map(|made| (made.hash.to_string(), made.logs.len())).collect()
    }

    /// Takes the last `depth` blocks away and puts as many and one more there.
    pub fn reorg(&self, depth: usize, logs: usize) {
        let mut state = self.state();
        let keep = state.chain.len() - depth;
        state.chain.truncate(keep);
        (0..=depth).for_each(|_| {
            state.push(logs);
        });
    }

    /// From now on `rule(method, params, honest answer)` says what is answered. Null stands for an honest error.
    pub fn misbehave(&self, rule: impl FnMut(&str, &Value, Value) -> Reply + Send + 'static) {
        self.state().rule = Some(Box::new(rule));
    }

    pub fn behave(&self) {
        self.state().rule = None;
    }

    /// Methods called so far, in order.
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    /// The number of questions in the largest request since this was asked last.
    pub fn largest_batch(&self) -> usize {
        self.state().sizes.drain(..).max().unwrap_or(0)
    }
}

/// One question, or a batch of them. What is more than an answer to one of a batch is said to all of it.
async fn answer(state: Arc<Mutex<State>>, body: Value) -> Response {
    let questions = body.as_array().cloned().unwrap_or_else(|| vec![body.clone()]);
    let mut answers = Vec::with_capacity(questions.len());
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).sizes.push(questions.len());
    for question in &questions {
        let id = &question["id"];
        match reply(&state, question) {
            Reply::Answer(result) => answers.push(json!({ "jsonrpc": "2.0", "id": id, "result": result })),
            Reply::Error(code, message) => {
                answers.push(json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } }));
            }
            Reply::Status(status, body) => {
                return (axum::http::StatusCode::from_u16(status).expect("a status"), body).into_response();
            }
            Reply::Hang => std::future::pending().await,
        }
    }
    let whole = if body.is_array() { Value::Array(answers) } else { answers.pop().expect("one question, one answer") };
    axum::Json(whole).into_response()
}

fn reply(state: &Mutex<State>, body: &Value) -> Reply {
    let method = body["method"].as_str().unwrap_or("").to_owned();
    let mut state = state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    state.calls.push(method.clone());
    let honest = state.honest(&method, &body["params"]);
    match (&mut state.rule, honest) {
        (Some(rule), Reply::Answer(value)) => rule(&method, &body["params"], value),
        (Some(rule), other) => match rule(&method, &body["params"], Value::Null) {
            Reply::Answer(Value::Null) => other,
            changed => changed,
        },
        (None, honest) => honest,
    }
}
