//! The driver says the truth about a real anvil, and anvil behaves as the driver's head says.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use alloy_primitives::{Address, U256};
use serde_json::{Value, json};

use crate::harness::chain::{Chain, Town, anvil_program, ether};

struct Anvil {
    process: Child,
    url: String,
}

impl Anvil {
    /// `None`, said aloud, where anvil is not to be had.
    fn start(args: &[&str]) -> Option<Self> {
        let Some(program) = anvil_program() else {
            // Past the test runner's capture: a skipped test must be seen.
            let _ = writeln!(std::io::stderr(), "SKIPPED chain_driver: no anvil; run `cargo x setup`");
            return None;
        };
        let mut process = Command::new(program)
            .args(["--port", "0", "--no-mining"])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("anvil starts");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let address = lines.find_map(|line| line.strip_prefix("Listening on ").map(str::to_owned));
        let url = format!("http://{}", address.expect("anvil listens"));
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { process, url })
    }
}

impl Drop for Anvil {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn transfers_told_by_the_driver_add_up_to_the_balances_after_any_reorgs() {
    let seed = 7;
    println!("seed {seed}");
    let Some(anvil) = Anvil::start(&[]) else { return };
    let chain = Chain::connect(&anvil.url).await;
    let mut town = Town::found(&chain, seed).await;
    let mut orphaned = BTreeSet::new();
    for round in 0..12 {
        for _ in 0..6 {
            town.block(&chain, 4).await;
        }
        let depth = [1, 2, 32, 5, 3, 17][round % 6].min(chain.head().await - 2);
        let head = chain.head().await;
        let before = chain.transfers(1..=head).await;
        town.reorg(&chain, depth, 2).await;
        assert_eq!(chain.head().await, head, "a reorg keeps the height");
        let after = chain.transfers(1..=head).await;
        orphaned.extend(before.into_iter().filter(|transfer| !after.contains(transfer)));
    }
    let head = chain.head().await;
    let truth = chain.transfers(1..=head).await;
    let mut balances: BTreeMap<Address, U256> = BTreeMap::new();
    for transfer in &truth {
        assert_eq!(transfer.block_hash, chain.hash(transfer.block).await, "a transfer of an orphaned block");
        *balances.entry(transfer.to).or_default() += transfer.value;
        if !transfer.from.is_zero() {
            *balances.get_mut(&transfer.from).expect("somebody who was given some") -= transfer.value;
        }
    }
    for who in &chain.accounts {
        assert_eq!(chain.balance(&town.token, *who).await, balances[who]);
    }
    assert!(truth.len() > 50, "only {} transfers", truth.len());
    assert!(orphaned.len() > 20, "only {} transfers orphaned", orphaned.len());
}

#[tokio::test]
async fn anvil_reorgs_as_the_driver_says() {
    let Some(anvil) = Anvil::start(&["--slots-in-an-epoch", "4"]) else { return };
    let chain = Chain::connect(&anvil.url).await;
    chain.mine(20).await;
    assert_eq!((chain.tagged("safe").await, chain.tagged("finalized").await), (16, 12));

    let kept = chain.hash(17).await;
    let orphan = chain.hash(18).await;
    let sent = chain.send(&ether(chain.accounts[0], chain.accounts[1], 1)).await;
    chain.call("anvil_reorg", json!([3, [[ether(chain.accounts[2], chain.accounts[3], 5), 1]]])).await;
    assert_eq!(chain.head().await, 20, "the height stays");
    assert_eq!(chain.hash(17).await, kept);
    assert_ne!(chain.hash(18).await, orphan);
    assert_eq!(chain.block(19).await["transactions"].as_array().map(Vec::len), Some(1));
    assert_eq!(chain.call("eth_getBlockByHash", json!([orphan, false])).await, Value::Null);
    let logs = chain.try_call("eth_getLogs", json!([{ "blockHash": orphan }])).await;
    assert_eq!(logs.expect_err("an unknown block")["message"], "unknown block");

    chain.mine(1).await;
    assert_eq!(chain.block(21).await["transactions"][0]["hash"], json!(sent), "the pool outlives a reorg");
    chain.reorg(1, &[]).await;
    assert_eq!(chain.call("eth_getTransactionByHash", json!([sent])).await, Value::Null, "and the orphaned is lost");

    let finalized = chain.tagged("finalized").await;
    let hash = chain.hash(finalized).await;
    chain.reorg(19, &[]).await;
    assert_ne!(chain.hash(finalized).await, hash, "finalized does not bind anvil_reorg");
    assert!(chain.try_call("anvil_reorg", json!([22, []])).await.is_err(), "deeper than the chain");
    chain.call("anvil_rollback", json!([2])).await;
    assert_eq!(chain.head().await, 19, "a rollback lowers the head");
}

#[tokio::test]
async fn the_same_block_can_come_back() {
    let Some(anvil) = Anvil::start(&["--base-fee", "0", "--timestamp", "1700000000"]) else { return };
    let chain = Chain::connect(&anvil.url).await;
    chain.block_interval(12).await;
    chain.mine(5).await;
    chain.send(&ether(chain.accounts[0], chain.accounts[1], 1)).await;
    chain.mine(1).await;
    let first = chain.hash(6).await;
    let same = chain.raw_of_last(1).await;
    chain.reorg(1, &[]).await;
    assert_ne!(chain.hash(6).await, first);
    chain.reorg(1, &same).await;
    assert_eq!(chain.hash(6).await, first, "A -> B -> A");
}
