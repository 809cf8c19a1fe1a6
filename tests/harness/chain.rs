//! Traffic on a real anvil, and the truth about it: what tests compare Chainweir's output with.
//!
//! It speaks JSON-RPC itself and shares no code with the host's sources: what it reads from anvil is read
//! independently. It starts no process; see `anvil.rs` for that.
//!
//! # How anvil 1.7.1 behaves (tried, not read)
//!
//! Process
//! - `node_modules/.bin/anvil` is a Node.js script around the real program: killing it leaves the chain running.
//!   `cargo x setup` links the real program to `target/tools/bin/anvil`.
//! - It prints some lines a block. If nobody reads its stdout it stops for good once the pipe is full (64 KiB, some
//!   400 blocks): read on after "Listening on", or give it a file. `--port 0` works and is printed in that line.
//!
//! Finality
//! - `safe` is head - slots, `finalized` head - 2 x slots, never below 0; `--slots-in-an-epoch`, 32 by default. With
//!   1, finalized is two blocks behind the head.
//! - `anvil_reorg` does not care: it goes below `finalized`, whose hash then changes. Only genesis is safe from it.
//!
//! `anvil_reorg [depth, [[transaction, at], ...]]`
//! - Replaces the last `depth` blocks (1 ..= head) by as many new ones: **the head's height stays**, only its hash
//!   changes. `depth` above the head's height, or `at` above depth - 1, is refused (-32602) and changes nothing;
//!   `depth` 0 is an error (-32603).
//! - A transaction is an object (unsigned; anvil signs, and counts the nonces up from the common ancestor) or a raw
//!   signed one (so an orphaned transaction can come again with its own hash). In the order given. What is not valid
//!   there (funds, nonce) is left out without a word.
//! - **Orphaned transactions do not go back to the pool**: they are gone, and so is their receipt. Transactions in
//!   the pool stay out of the new blocks; those whose nonce has a gap now vanish when the next block is mined.
//! - Orphaned blocks are gone at once: by hash `null`; `eth_getLogs {blockHash}` -32000 "unknown block";
//!   `eth_getBlockReceipts` of an unknown block is `null`.
//! - Times of the new blocks go on from the common ancestor (by the interval, if one is set).
//! - The base fee is *not* rolled back: it goes on from the orphaned head's, so that the same transactions make other
//!   blocks. **With `--base-fee 0` (fees 0 in transactions) and `anvil_setBlockTimestampInterval` it stays equal, and
//!   the same transactions make the very same block again: A -> B -> A.** `mixHash` depends on the parent only.
//! - The next block's base fee falls by an eighth a block to 7 wei, so on long idle chains the same happens by itself.
//! - Orders: 64 blocks in 12 ms. 250 mined in 60 ms.
//!
//! `anvil_rollback [depth]` takes blocks off the head: the height falls and nothing replaces them until somebody
//! mines. `evm_revert` does the same and puts the pool back, too.
//!
//! Subscriptions
//! - During a reorg `newHeads` tells every new block of the branch once, oldest first: the first has a height at or
//!   below the one told last. Nothing is told of orphaned blocks; `logs` tells the new logs and **never
//!   `removed: true`**. A log may be told before its head. `eth_newBlockFilter` lists the new hashes likewise.
//! - A rollback and a revert tell nothing.
//!
//! Reading
//! - `eth_getLogs` with `toBlock` beyond the head is cut short silently; with `fromBlock` beyond it, -32602
//!   "BlockOutOfRangeError".
//! - With fixed `--timestamp`, interval, fees and gas, everything is the same in every run.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use alloy_primitives::{Address, B256, Bytes, U256, b256, hex};
use serde_json::{Value, json};

/// `Transfer(address,address,uint256)`
pub const TRANSFER: B256 = b256!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");

/// One ERC-20 transfer of the canonical chain, as anvil itself has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Transfer {
    pub block: u64,
    /// In the block.
    pub log_index: u64,
    pub block_hash: B256,
    pub tx: B256,
    pub token: Address,
    pub from: Address,
    pub to: Address,
    pub value: U256,
}

/// The real program, where `cargo x setup` puts it; `None` where it was not to be had.
pub fn anvil_program() -> Option<PathBuf> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin/anvil");
    program.is_file().then_some(program)
}

/// JSON-RPC to one anvil. Panics with the method's name when anvil refuses: a test cannot go on then.
#[derive(Debug)]
pub struct Chain {
    url: String,
    http: reqwest::Client,
    next_id: AtomicU64,
    /// anvil's own ten, unlocked.
    pub accounts: Vec<Address>,
}

impl Chain {
    pub async fn connect(url_http: &str) -> Self {
        // A second installation is refused, which is as good: there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().expect("a plain client needs nothing that can fail");
        let mut chain = Self { url: url_http.to_owned(), http, next_id: AtomicU64::new(1), accounts: Vec::new() };
        let accounts = chain.call("eth_accounts", json!([])).await;
        chain.accounts = serde_json::from_value(accounts).expect("eth_accounts lists addresses");
        chain
    }

    /// The error object where anvil refuses.
    pub async fn try_call(&self, method: &str, params: Value) -> Result<Value, Value> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let body = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let answer = self.http.post(&self.url).json(&body).send().await;
        let answer = answer.unwrap_or_else(|error| panic!("{method}: anvil does not answer: {error}"));
        let mut answer: Value = answer.json().await.unwrap_or_else(|error| panic!("{method}: not JSON: {error}"));
        match answer.get("error") {
            Some(error) => Err(error.clone()),
            None => Ok(answer["result"].take()),
        }
    }

    pub async fn call(&self, method: &str, params: Value) -> Value {
        let shown = params.to_string();
        let result = self.try_call(method, params).await;
        result.unwrap_or_else(|error| panic!("{method} {}: {error}", &shown[..shown.len().min(300)]))
    }

    pub async fn head(&self) -> u64 {
        quantity(&self.call("eth_blockNumber", json!([])).await)
    }

    /// With full transactions; panics where there is no such block.
    pub async fn block(&self, number: u64) -> Value {
        let block = self.call("eth_getBlockByNumber", json!([format!("{number:#x}"), true])).await;
        assert!(!block.is_null(), "anvil has no block {number}");
        block
    }

    pub async fn hash(&self, number: u64) -> B256 {
        word(&self.block(number).await["hash"])
    }

    /// The height that a tag (`safe`, `finalized`) stands for now.
    pub async fn tagged(&self, tag: &str) -> u64 {
        quantity(&self.call("eth_getBlockByNumber", json!([tag, false])).await["number"])
    }

    /// Every block `seconds` after its parent, whatever the clock says.
    pub async fn block_interval(&self, seconds: u64) {
        self.call("anvil_setBlockTimestampInterval", json!([seconds])).await;
    }

    /// Into the pool, signed by anvil. A block that holds it comes with [`Chain::mine`].
    pub async fn send(&self, transaction: &Value) -> B256 {
        word(&self.call("eth_sendTransaction", json!([transaction])).await)
    }

    /// One block with what is in the pool, then empty ones. The new head's height.
    pub async fn mine(&self, blocks: u64) -> u64 {
        if blocks > 0 {
            self.call("anvil_mine", json!([format!("{blocks:#x}")])).await;
        }
        self.head().await
    }

    /// Creates a contract of tests/contracts and mines the block that holds it.
    pub async fn deploy(&self, name: &str, args: &[Arg]) -> Contract {
        let mut contract = Contract::read(name);
        let code = Bytes::from([contract.bytecode.as_ref(), &encode(args)].concat());
        let hash = self.send(&transaction(self.accounts[0], None, U256::ZERO, &code)).await;
        self.mine(1).await;
        let receipt = self.call("eth_getTransactionReceipt", json!([hash])).await;
        assert_eq!(receipt["status"], "0x1", "{name} was not created: {receipt}");
        contract.address = receipt["contractAddress"].as_str().expect("an address").parse().expect("an address");
        contract
    }

    /// Replaces the last `depth` blocks by as many with these transactions, each named with its block (0 is the
    /// oldest); see this file's head. The pool is emptied first, or later nonces have gaps.
    pub async fn reorg(&self, depth: u64, transactions: &[(Value, u64)]) {
        self.call("anvil_dropAllTransactions", json!([])).await;
        let pairs: Vec<Value> = transactions.iter().map(|(transaction, at)| json!([transaction, at])).collect();
        self.call("anvil_reorg", json!([depth, pairs])).await;
    }

    /// The last `depth` blocks' transactions as [`Chain::reorg`] takes them: raw, each in its own block.
    pub async fn raw_of_last(&self, depth: u64) -> Vec<(Value, u64)> {
        let first = self.head().await + 1 - depth;
        let mut raw = Vec::new();
        for at in 0..depth {
            for transaction in self.block(first + at).await["transactions"].as_array().expect("transactions") {
                raw.push((self.call("eth_getRawTransactionByHash", json!([transaction["hash"]])).await, at));
            }
        }
        raw
    }

    /// All logs of canonical blocks, in order, by an optional address and first topic.
    pub async fn logs(
        &self,
        blocks: RangeInclusive<u64>,
        address: Option<Address>,
        topic0: Option<B256>,
    ) -> Vec<Value> {
        let (from, to) = (format!("{:#x}", blocks.start()), format!("{:#x}", blocks.end()));
        let mut filter = json!({ "fromBlock": from, "toBlock": to });
        if let Some(address) = address {
            filter["address"] = json!(address);
        }
        if let Some(topic0) = topic0 {
            filter["topics"] = json!([topic0]);
        }
        match self.call("eth_getLogs", json!([filter])).await {
            Value::Array(logs) => logs,
            other => panic!("eth_getLogs: {other}"),
        }
    }

    /// The truth about ERC-20 transfers: all of them in these canonical blocks, in chain order.
    pub async fn transfers(&self, blocks: RangeInclusive<u64>) -> Vec<Transfer> {
        let logs = self.logs(blocks, None, Some(TRANSFER)).await;
        let topic = |log: &Value, at: usize| Address::from_word(word(&log["topics"][at]));
        let transfer = |log: &Value| Transfer {
            block: quantity(&log["blockNumber"]),
            log_index: quantity(&log["logIndex"]),
            block_hash: word(&log["blockHash"]),
            tx: word(&log["transactionHash"]),
            token: log["address"].as_str().expect("an address").parse().expect("an address"),
            from: topic(log, 1),
            to: topic(log, 2),
            value: word(&log["data"]).into(),
        };
        let mut transfers: Vec<Transfer> = logs.iter().map(transfer).collect();
        transfers.sort();
        transfers
    }

    pub async fn balance(&self, token: &Contract, who: Address) -> U256 {
        let call = json!({ "to": token.address, "data": token.data("balanceOf(address)", &[who.into()]) });
        word(&self.call("eth_call", json!([call, "latest"])).await).into()
    }
}

/// A contract of tests/contracts, compiled by `cargo x contracts`.
#[derive(Clone, Debug)]
pub struct Contract {
    pub address: Address,
    bytecode: Bytes,
    methods: BTreeMap<String, String>,
}

impl Contract {
    fn read(name: &str) -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/contracts/out").join(format!("{name}.json"));
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let mut json: Value = serde_json::from_str(&text).expect("written by cargo x contracts");
        let field = |value: Value| -> Bytes { serde_json::from_value(value).expect("hex") };
        let methods = serde_json::from_value(json["methods"].take()).expect("signatures and selectors");
        Self { address: Address::ZERO, bytecode: field(json["bytecode"].take()), methods }
    }

    /// One that was created by somebody else.
    pub fn at(name: &str, address: Address) -> Self {
        Self { address, ..Self::read(name) }
    }

    /// Call data of a method named by its whole signature.
    pub fn data(&self, method: &str, args: &[Arg]) -> Bytes {
        let selector = self.methods.get(method).unwrap_or_else(|| panic!("no method {method}: {:?}", self.methods));
        Bytes::from([hex::decode(selector).expect("hex"), encode(args)].concat())
    }

    /// A transaction that calls a method.
    pub fn call(&self, from: Address, method: &str, args: &[Arg]) -> Value {
        transaction(from, Some(self.address), U256::ZERO, &self.data(method, args))
    }

    /// `Token`: a transfer.
    pub fn transfer(&self, from: Address, to: Address, value: u64) -> Value {
        self.call(from, "transfer(address,uint256)", &[to.into(), value.into()])
    }

    /// `Token`: new tokens out of nothing.
    pub fn mint(&self, from: Address, to: Address, value: u64) -> Value {
        self.call(from, "mint(address,uint256)", &[to.into(), value.into()])
    }
}

/// An argument of a call.
#[derive(Clone, Debug)]
pub enum Arg {
    Word(B256),
    /// At most 32 bytes.
    Text(String),
}

impl From<Address> for Arg {
    fn from(address: Address) -> Self {
        Self::Word(address.into_word())
    }
}
impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Self::Word(U256::from(value).into())
    }
}
impl From<U256> for Arg {
    fn from(value: U256) -> Self {
        Self::Word(value.into())
    }
}
impl From<&str> for Arg {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// Heads in order, then the tails of texts (Solidity's ABI specification, "Formal Specification of the Encoding").
fn encode(args: &[Arg]) -> Vec<u8> {
    let (mut heads, mut tails) = (Vec::new(), Vec::new());
    for arg in args {
        match arg {
            Arg::Word(word) => heads.extend_from_slice(word.as_slice()),
            Arg::Text(text) => {
                heads.extend_from_slice(&U256::from(args.len() * 32 + tails.len()).to_be_bytes::<32>());
                tails.extend_from_slice(&U256::from(text.len()).to_be_bytes::<32>());
                tails.extend_from_slice(B256::right_padding_from(text.as_bytes()).as_slice());
            }
        }
    }
    heads.extend(tails);
    heads
}

/// Gas and fees are given: anvil refuses to estimate what will fail. The fee covers the first base fee (1 gwei)
/// twice; with `--base-fee 0` it may be anything.
pub fn transaction(from: Address, to: Option<Address>, value: U256, data: &Bytes) -> Value {
    let mut transaction = json!({
        "from": from,
        "value": value,
        "data": data,
        "gas": if to.is_some() { "0x30d40" } else { "0x1e8480" },
        "maxFeePerGas": "0x77359400",
        "maxPriorityFeePerGas": "0x1",
    });
    if let Some(to) = to {
        transaction["to"] = json!(to);
    }
    transaction
}

/// Ether from one account to another.
pub fn ether(from: Address, to: Address, wei: u64) -> Value {
    transaction(from, Some(to), U256::from(wei), &Bytes::new())
}

fn quantity(value: &Value) -> u64 {
    let text = value.as_str().unwrap_or_else(|| panic!("{value} is not a quantity"));
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or_else(|_| panic!("{value} is not a quantity"))
}

fn word(value: &Value) -> B256 {
    serde_json::from_value(value.clone()).unwrap_or_else(|_| panic!("{value} is not 32 bytes"))
}

/// A token and its holders under random, seeded load: what most end-to-end tests need.
#[derive(Debug)]
pub struct Town {
    pub token: Contract,
    dice: u64,
}

impl Town {
    /// Deploys a token and gives every account 1,000,000 of its units: two blocks.
    pub async fn found(chain: &Chain, seed: u64) -> Self {
        let token = chain.deploy("Token", &["Town".into(), "TWN".into()]).await;
        for who in &chain.accounts {
            chain.send(&token.mint(*who, *who, 1_000_000)).await;
        }
        chain.mine(1).await;
        Self { token, dice: seed }
    }

    /// SplitMix64.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.dice;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    pub fn transfer(&mut self, chain: &Chain) -> Value {
        let people = chain.accounts.len() as u64;
        let (from, to) = (self.below(people) as usize, self.below(people) as usize);
        let value = self.below(100) + 1;
        self.token.transfer(chain.accounts[from], chain.accounts[to], value)
    }

    /// Mines one block of up to `most` transfers; sometimes it is empty.
    pub async fn block(&mut self, chain: &Chain, most: u64) -> u64 {
        for _ in 0..self.below(most + 1) {
            let transfer = self.transfer(chain);
            chain.send(&transfer).await;
        }
        chain.mine(1).await
    }

    /// Replaces the last blocks. Each account's orphaned transfers come again up to a random one and not after it;
    /// accounts that had none get new ones.
    pub async fn reorg(&mut self, chain: &Chain, depth: u64, most: u64) {
        let mut branch = Vec::new();
        let (mut busy, mut dropped) = (Vec::new(), Vec::new());
        let first = chain.head().await + 1 - depth;
        for at in 0..depth {
            for transaction in chain.block(first + at).await["transactions"].as_array().expect("transactions") {
                let from: Address = serde_json::from_value(transaction["from"].clone()).expect("an address");
                if dropped.contains(&from) || self.below(4) == 0 {
                    dropped.push(from);
                    continue;
                }
                busy.push(from);
                let raw = chain.call("eth_getRawTransactionByHash", json!([transaction["hash"]])).await;
                branch.push((raw, at));
            }
            for _ in 0..self.below(most + 1) {
                let from = chain.accounts[self.below(chain.accounts.len() as u64) as usize];
                let to = chain.accounts[self.below(chain.accounts.len() as u64) as usize];
                let value = self.below(100) + 1;
                if !busy.contains(&from) {
                    // From now on anvil counts this account's nonces: none of its signed ones may follow.
                    dropped.push(from);
                    branch.push((self.token.transfer(from, to, value), at));
                }
            }
        }
        chain.reorg(depth, &branch).await;
    }
}
