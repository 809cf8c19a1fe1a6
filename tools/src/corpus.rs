//! Records the chain that `examples/quickstart` plays: real contracts on a real anvil, with reorgs.
//!
//! Seeded, with fixed times and fees: the same anvil makes the same bytes. Blocks are written in the order in
//! which a follower would have met them, so that orphaned blocks stay in the recording with what replaced them
//! behind them.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::anvil::Anvil;
use crate::contracts::{Contract, Word};
use crate::setup;
use crate::shell::root;

const CHAIN_ID: u64 = 31337;
/// 2026-01-01T00:00:00Z, and a block every 12 seconds as on mainnet.
const GENESIS_TIME: &str = "1767225600";
const BLOCK_TIME_S: u64 = 12;
const HEIGHT: u64 = 300;
/// After which block, and how many blocks are replaced. The first comes soon, so that a demo shows one soon; at
/// 150 the replacement is itself replaced in part.
const REORGS: &[(u64, usize)] = &[
    (14, 2),
    (31, 1),
    (48, 3),
    (70, 1),
    (91, 4),
    (120, 2),
    (150, 6),
    (150, 3),
    (176, 1),
    (203, 5),
    (230, 2),
    (259, 6),
    (284, 3),
];
/// The account to which a quarter of all token transfers go: the shop of examples/deposits-to-webhook.
const SHOP: usize = 7;
/// One token, in its smallest unit.
const ONE: u128 = 1_000_000_000_000_000_000;

fn file() -> PathBuf {
    root().join("examples/quickstart/chain.ndjson.gz")
}

pub fn run(args: &[String]) -> Result<()> {
    setup::install();
    let recording = record()?;
    let mut gz = GzEncoder::new(Vec::new(), Compression::best());
    gz.write_all(recording.as_bytes())?;
    let packed = gz.finish()?;
    if args.iter().any(|arg| arg == "--check") {
        let mut there = String::new();
        let bytes = fs::File::open(file()).with_context(|| format!("cannot read {}", file().display()))?;
        GzDecoder::new(bytes).read_to_string(&mut there).context("examples/quickstart/chain.ndjson.gz")?;
        ensure!(
            there == recording,
            "examples/quickstart/chain.ndjson.gz is not what anvil makes now: run `cargo x corpus`"
        );
        return Ok(());
    }
    fs::create_dir_all(file().parent().context("no folder")?)?;
    fs::write(file(), &packed).with_context(|| format!("cannot write {}", file().display()))?;
    eprintln!("examples/quickstart/chain.ndjson.gz: {} KiB", packed.len() / 1024);
    Ok(())
}

fn record() -> Result<String> {
    let anvil = Anvil::start(&[
        "--no-mining",
        "--order",
        "fifo",
        "--hardfork",
        "prague",
        "--chain-id",
        &CHAIN_ID.to_string(),
        "--timestamp",
        GENESIS_TIME,
    ])?;
    anvil.call("anvil_setBlockTimestampInterval", json!([BLOCK_TIME_S]))?;
    let mut recording = Recording::default();
    recording.add(&anvil, 0)?;
    let mut traffic = Traffic::deploy(&anvil, &mut recording)?;

    let mut orphaned = 0;
    while anvil.head()? < HEIGHT {
        for _ in 0..traffic.dice.below(6).saturating_sub(1) {
            let transaction = traffic.any()?;
            anvil.call("eth_sendTransaction", json!([transaction]))?;
        }
        mine(&anvil, &mut recording)?;
        let head = anvil.head()?;
        for (_, depth) in REORGS.iter().filter(|(after, _)| *after == head) {
            let heights: Vec<u64> = (head - *depth as u64 + 1..=head).collect();
            let before = hashes(&anvil, &heights)?;
            reorg(&anvil, *depth, &mut traffic)?;
            ensure!(anvil.head()? == head, "a reorg changed the height");
            let after = hashes(&anvil, &heights)?;
            // On the same parent, the same transactions make the same block again.
            let kept = before.iter().zip(&after).take_while(|(before, after)| before == after).count();
            for number in &heights[kept..] {
                recording.add(&anvil, *number)?;
            }
            orphaned += depth - kept;
        }
    }
    recording.verify(HEIGHT, orphaned)?;
    Ok(recording.text)
}

fn hashes(anvil: &Anvil, heights: &[u64]) -> Result<Vec<Value>> {
    let hash = |number: &u64| {
        let mut block = anvil.call("eth_getBlockByNumber", json!([format!("{number:#x}"), false]))?;
        Ok(block["hash"].take())
    };
    heights.iter().map(hash).collect()
}

fn mine(anvil: &Anvil, recording: &mut Recording) -> Result<()> {
    anvil.call("evm_mine", json!([]))?;
    recording.add(anvil, anvil.head()?)
}

/// Replaces the last blocks. Most of their transactions come again, some a block later, as on real chains; some
/// never do; some are new.
fn reorg(anvil: &Anvil, depth: usize, traffic: &mut Traffic) -> Result<()> {
    let head = anvil.head()?;
    let mut branch: Vec<Vec<Value>> = vec![Vec::new(); depth];
    let mut busy = BTreeSet::new();
    let mut dropped = BTreeSet::new();
    // Accounts whose next transaction moved back a block: what follows it may not be before it.
    let mut late: HashMap<String, usize> = HashMap::new();
    for at in 0..depth {
        let number = head - depth as u64 + 1 + at as u64;
        let block = anvil.call("eth_getBlockByNumber", json!([format!("{number:#x}"), true]))?;
        for transaction in block["transactions"].as_array().context("no transactions")? {
            let from = transaction["from"].as_str().context("no sender")?.to_owned();
            // Without one of its transactions, none of an account's later ones is valid.
            if dropped.contains(&from) || traffic.dice.below(5) == 0 {
                dropped.insert(from);
                continue;
            }
            let earliest = at.max(late.get(&from).copied().unwrap_or(0));
            let to = (earliest + usize::from(traffic.dice.below(3) == 0)).min(depth - 1);
            branch[to].push(anvil.call("eth_getRawTransactionByHash", json!([transaction["hash"]]))?);
            late.insert(from.clone(), to);
            busy.insert(from);
        }
    }
    for transactions in &mut branch {
        for _ in 0..traffic.dice.below(3) {
            let transaction = traffic.any()?;
            // anvil gives nonces to what it signs itself, not knowing of those that come signed.
            if !busy.contains(transaction["from"].as_str().context("no sender")?) {
                transactions.push(transaction);
            }
        }
    }
    let pairs: Vec<Value> = branch
        .into_iter()
        .enumerate()
        .flat_map(|(at, transactions)| transactions.into_iter().map(move |transaction| json!([transaction, at])))
        .collect();
    anvil.call("anvil_reorg", json!([depth, pairs])).map(drop)
}

/// What was met, in order of arrival: one JSON object a line, in the format that `chainweir record` writes.
#[derive(Default)]
struct Recording {
    text: String,
    /// hash, parent, height
    met: Vec<(String, String, u64)>,
}

impl Recording {
    fn add(&mut self, anvil: &Anvil, number: u64) -> Result<()> {
        let at = format!("{number:#x}");
        let block = anvil.call("eth_getBlockByNumber", json!([at, true]))?;
        let receipts = anvil.call("eth_getBlockReceipts", json!([at]))?;
        let hash = block["hash"].as_str().context("a block without a hash")?.to_owned();
        let parent = block["parentHash"].as_str().context("a block without a parent")?.to_owned();
        let transactions = block["transactions"].as_array().map_or(0, Vec::len);
        ensure!(receipts.as_array().map(Vec::len) == Some(transactions), "block {number}: receipts are missing");
        let line = json!({ "chainId": CHAIN_ID, "number": number, "hash": hash, "block": block, "receipts": receipts });
        self.text += &(line.to_string() + "\n");
        self.met.push((hash, parent, number));
        Ok(())
    }

    /// Every block's parent was met before it, one below; and what is not below the last block was orphaned.
    fn verify(&self, height: u64, orphaned: usize) -> Result<()> {
        let mut heights: HashMap<&str, (&str, u64)> = HashMap::new();
        for (hash, parent, number) in &self.met {
            let linked = *number == 0 || heights.get(parent.as_str()).is_some_and(|(_, below)| below + 1 == *number);
            ensure!(linked, "block {number} {hash} does not stand on a block met before it");
            ensure!(heights.insert(hash, (parent, *number)).is_none(), "block {number} {hash} was met twice");
        }
        let (tip, _, number) = self.met.last().context("nothing was recorded")?;
        ensure!(*number == height, "the last block is {number}");
        let mut canonical = 1;
        let mut here = tip.as_str();
        while let Some((parent, number)) = heights.get(here).filter(|(_, number)| *number > 0) {
            canonical += 1;
            here = parent;
            ensure!(canonical <= height + 1, "more blocks than heights at {number}");
        }
        let found = self.met.len() - canonical as usize;
        ensure!(found == orphaned, "{found} blocks are orphaned, not {orphaned}");
        eprintln!("{} blocks, {found} of them orphaned in {} reorgs", self.met.len(), REORGS.len());
        Ok(())
    }
}

/// SplitMix64: the same numbers on every machine, in every version of every library.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// Makes transactions that look like a small town's.
struct Traffic {
    dice: Dice,
    accounts: Vec<String>,
    token: Contract,
    pool: Contract,
    vault: Contract,
    /// Where the two tokens, the pool and the vault are.
    tokens: [String; 2],
    pool_at: String,
    vault_at: String,
}

impl Traffic {
    /// The first blocks: the contracts, then tokens and approvals for everybody, then reserves for the pool.
    fn deploy(anvil: &Anvil, recording: &mut Recording) -> Result<Self> {
        let accounts = anvil.call("eth_accounts", json!([]))?;
        let accounts: Vec<String> =
            accounts.as_array().into_iter().flatten().filter_map(|a| a.as_str()).map(str::to_lowercase).collect();
        ensure!(accounts.len() == 10, "anvil has {} accounts, not 10", accounts.len());
        let (token, pool, vault) = (Contract::read("Token")?, Contract::read("Pool")?, Contract::read("Vault")?);
        let mut create = |code: String| -> Result<String> {
            let hash = anvil.text("eth_sendTransaction", json!([transaction(&accounts[0], None, 0, &code)]))?;
            mine(anvil, recording)?;
            let receipt = anvil.call("eth_getTransactionReceipt", json!([hash]))?;
            receipt["contractAddress"].as_str().map(str::to_owned).context("nothing was created")
        };
        let dollar = create(token.creation(&[Word::Text("Weir Dollar"), Word::Text("WUSD")]))?;
        let river = create(token.creation(&[Word::Text("River"), Word::Text("RVR")]))?;
        let pool_at = create(pool.creation(&[Word::Address(dollar.clone()), Word::Address(river.clone())]))?;
        let vault_at = create(vault.creation(&[]))?;
        let tokens = [dollar, river];

        for at in &tokens {
            for method in ["mint(address,uint256)", "approve(address,uint256)"] {
                for account in &accounts {
                    let (who, much) =
                        if method.starts_with("mint") { (account, 10_000 * ONE) } else { (&pool_at, u128::MAX) };
                    let data = token.call(method, &[Word::Address(who.clone()), Word::Uint(much)])?;
                    anvil.call("eth_sendTransaction", json!([transaction(account, Some(at), 0, &data)]))?;
                }
                mine(anvil, recording)?;
            }
        }
        let data = pool.call("add(uint256,uint256)", &[Word::Uint(5_000 * ONE), Word::Uint(5_000 * ONE)])?;
        anvil.call("eth_sendTransaction", json!([transaction(&accounts[0], Some(&pool_at), 0, &data)]))?;
        mine(anvil, recording)?;
        Ok(Self { dice: Dice(3), accounts, token, pool, vault, tokens, pool_at, vault_at })
    }

    fn account(&mut self) -> String {
        let at = self.dice.below(self.accounts.len() as u64) as usize;
        self.accounts[at].clone()
    }

    fn recipient(&mut self) -> String {
        if self.dice.below(4) == 0 { self.accounts[SHOP].clone() } else { self.account() }
    }

    /// Up to 100 tokens, in hundredths.
    fn amount(&mut self) -> u128 {
        u128::from(self.dice.below(10_000) + 1) * (ONE / 100)
    }

    fn any(&mut self) -> Result<Value> {
        let from = self.account();
        let token_at = self.tokens[self.dice.below(2) as usize].clone();
        Ok(match self.dice.below(100) {
            0..46 => {
                let args = [Word::Address(self.recipient()), Word::Uint(self.amount())];
                transaction(&from, Some(&token_at), 0, &self.token.call("transfer(address,uint256)", &args)?)
            }
            46..48 => {
                let args = [Word::Address(from.clone()), Word::Uint(0)];
                transaction(&from, Some(&token_at), 0, &self.token.call("transfer(address,uint256)", &args)?)
            }
            48..68 => {
                let args = [Word::Address(token_at), Word::Uint(self.amount()), Word::Uint(0)];
                let data = self.pool.call("swap(address,uint256,uint256)", &args)?;
                transaction(&from, Some(&self.pool_at), 0, &data)
            }
            68..82 => {
                let (to, value) = (self.recipient(), self.amount());
                transaction(&from, Some(&to), value, "0x")
            }
            82..89 => {
                let (note, value) = (u128::from(self.dice.below(1_000)), self.amount());
                let data = self.vault.call("deposit(bytes32)", &[Word::Uint(note)])?;
                transaction(&from, Some(&self.vault_at), value, &data)
            }
            89..91 => {
                let data = self.vault.call("withdraw(uint256)", &[Word::Uint(ONE / 100)])?;
                transaction(&from, Some(&self.vault_at), 0, &data)
            }
            91..93 => transaction(&from, None, 0, &self.vault.creation(&[])),
            93..96 => {
                let args = [Word::Address(self.recipient()), Word::Uint(u128::MAX)];
                transaction(&from, Some(&token_at), 0, &self.token.call("transfer(address,uint256)", &args)?)
            }
            96..98 => {
                let args = [Word::Address(token_at), Word::Uint(self.amount()), Word::Uint(u128::MAX)];
                let data = self.pool.call("swap(address,uint256,uint256)", &args)?;
                transaction(&from, Some(&self.pool_at), 0, &data)
            }
            _ => {
                let args = [Word::Address(self.recipient()), Word::Uint(self.amount())];
                let data = self.token.call("transfer(address,uint256)", &args)?;
                let mut starved = transaction(&from, Some(&token_at), 0, &data);
                starved["gas"] = json!("0x6000");
                starved
            }
        })
    }
}

/// Gas and fees are given, because anvil's own estimates depend on what it happens to have seen, and it refuses to
/// estimate what will fail.
fn transaction(from: &str, to: Option<&str>, value: u128, data: &str) -> Value {
    let mut transaction = json!({
        "from": from,
        "value": format!("{value:#x}"),
        "data": data,
        "gas": if to.is_some() { "0x30d40" } else { "0x1e8480" },
        "maxFeePerGas": "0x77359400",
        "maxPriorityFeePerGas": "0x3b9aca00",
    });
    if let Some(to) = to {
        transaction["to"] = json!(to);
    }
    transaction
}
