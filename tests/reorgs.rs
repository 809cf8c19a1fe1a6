//! Promises 1 and 2 on a real chain: after any reorg, what every destination, the feed and the plugin's state hold
//! equals a replay of the canonical chain alone.

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::B256;
use serde_json::{Value, json};

use crate::harness::anvil::Anvil;
use crate::harness::belt::{Belt, Via, seed, times};
use crate::harness::chain::{Chain, Town, ether};
use crate::harness::process::{Ledger, Process, folder};
use crate::harness::{guests, ndjson, until};

async fn through_reorgs(via: Via, tags: bool) {
    let Some(mut belt) = Belt::new(seed(), via).await else { return };
    belt.tags = tags;
    belt.load(40, false).await;
    belt.start().await;
    belt.check().await;
    for round in 0..times(8, 100) {
        let blocks = 1 + belt.town.below(8);
        belt.load(blocks, false).await;
        let depth = belt.reorg().await;
        println!("round {round}: {depth} deep");
        belt.check().await;
    }
    // Under load, with nobody waiting for anybody.
    belt.load(times(60, 1000), true).await;
    belt.check().await;
    let (status, _) = belt.process.take().expect("it runs").terminate().await;
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_destination_holds_the_canonical_chain_after_reorgs_seen_over_websocket() {
    through_reorgs(Via::WebSocket, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_destination_holds_the_canonical_chain_after_reorgs_seen_by_polling() {
    through_reorgs(Via::Http, true).await;
}

/// The chain goes on, and back, while nobody looks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reorgs_that_came_while_it_was_down_are_found() {
    let Some(mut belt) = Belt::new(seed(), Via::WebSocket).await else { return };
    belt.load(50, false).await;
    for _ in 0..times(4, 40) {
        belt.start().await;
        belt.check().await;
        let (status, took) = belt.process.take().expect("it runs").terminate().await;
        assert!(status.success() && took.as_secs() < 10, "{status} after {took:?}");
        belt.load(5, true).await;
        belt.reorg().await;
    }
    belt.start().await;
    belt.check().await;
}

/// A -> B -> A: the same blocks again, of which everything is said anew, with other ids.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_back_is_said_anew() {
    const DEPTH: u64 = 6;
    const RETURNS: usize = 3;
    let Some(mut belt) = Belt::new(seed(), Via::Http).await else { return };
    belt.load(12, false).await;
    let (mut head, mut logs) = (belt.chain.head().await, vec![]);
    while logs.len() < 4 {
        belt.load(1, false).await;
        head = belt.chain.head().await;
        logs = belt.chain.transfers(head + 1 - DEPTH..=head).await;
    }
    let (tip, raw) = (belt.chain.hash(head).await, belt.chain.raw_of_last(DEPTH).await);
    belt.start().await;
    belt.check().await;
    for round in 0..RETURNS {
        belt.chain.reorg(DEPTH, &[]).await;
        assert_ne!(belt.chain.hash(head).await, tip);
        belt.check().await;
        if round == 1 {
            // How often a block came is not forgotten.
            belt.kill();
            belt.start().await;
        }
        belt.chain.reorg(DEPTH, &raw).await;
        assert_eq!(belt.chain.hash(head).await, tip, "the same transactions make the same block");
        belt.check().await;
    }
    for log in logs {
        let of_it = |event: &Value| {
            event["blockhash"] == json!(log.block_hash) && event["data"]["log_index"] == json!(log.log_index)
        };
        let feed = belt.running().feed("erc20-transfers.transfers").await;
        let said: Vec<&Value> = feed.iter().filter(|event| of_it(event)).collect();
        let ops: Vec<&str> = said.iter().filter_map(|event| event["op"].as_str()).collect();
        assert_eq!(ops[..2 * RETURNS], ["apply", "retract"].repeat(RETURNS), "{log:?}");
        assert_eq!(ops[2 * RETURNS..], ["apply"], "{log:?}");
        let distinct = |key: &str| said.iter().filter_map(|event| event[key].as_str()).collect::<BTreeSet<_>>().len();
        assert_eq!((distinct("emission"), distinct("id")), (RETURNS + 1, 2 * RETURNS + 1), "{log:?}");
        assert!(said.windows(2).all(|pair| pair[0]["data"] == pair[1]["data"]));
    }
}

/// A lower head is no reorg: a node that has lost its last blocks takes nothing back before it has others instead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_falls_behind_takes_nothing_back() {
    let seed = seed();
    let via = if seed.is_multiple_of(2) { Via::WebSocket } else { Via::Http };
    let Some(mut belt) = Belt::new(seed, via).await else { return };
    belt.tags = seed.is_multiple_of(3);
    belt.load(40, false).await;
    belt.start().await;
    belt.check().await;
    for round in 0..times(5, 50) {
        let blocks = 1 + belt.town.below(6);
        belt.load(blocks, false).await;
        belt.check().await;
        let before = belt.running().feed("erc20-transfers.transfers").await;
        let head = belt.chain.head().await;
        let depth = 1 + belt.town.below(32);
        belt.chain.call("anvil_rollback", json!([depth])).await;
        println!("round {round}: {depth} blocks gone");
        let behind = belt.town.below(depth);
        belt.load(behind, false).await;
        let after = belt.running().feed("erc20-transfers.transfers").await;
        assert_eq!(after, before, "{} blocks are no reorg of {depth}", behind);
        belt.load(depth - behind, false).await;
        assert_eq!(belt.chain.head().await, head);
        belt.check().await;
    }
}

/// What anvil itself has of value that transactions moved.
async fn ether_moved(chain: &Chain, from: u64) -> BTreeSet<(B256, String)> {
    let mut moved = BTreeSet::new();
    for number in from..=chain.head().await {
        let block = chain.block(number).await;
        let hash = block["hash"].as_str().and_then(|hash| hash.parse().ok()).expect("a hash");
        let transactions = block["transactions"].as_array().expect("transactions");
        let with_value = transactions.iter().filter(|tx| tx["value"] != "0x0");
        moved.extend(with_value.map(|tx| (hash, tx["hash"].as_str().expect("a hash").to_owned())));
    }
    moved
}

/// Its past is its own affair: it reads it alone, and then shares the live blocks with those that were there before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_comes_later_reads_the_past_and_joins_without_gap_or_double() {
    let mut seeds = seed();
    for round in 0..times(2, 30) {
        let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
        let chain = Chain::connect(&anvil.http()).await;
        let mut town = Town::found(&chain, seeds).await;
        seeds = seeds.wrapping_add(1);
        // The past is long enough for ranges, and so that some of it is not final.
        let past = 60 + town.below(60);
        for _ in 0..past {
            town.block(&chain, 4).await;
        }
        let (live, early) = (past - town.below(20), 3 + town.below(8));
        let folder = folder(&["native-transfers"]);
        let drop_in = |name: &str| {
            let file = folder.path().join(format!("plugins/{name}.wasm"));
            std::fs::copy(guests::wasm(name), file).expect("the plugin was built");
        };
        // Built before the clock runs.
        guests::wasm("erc20-transfers");
        let rpc = if round % 2 == 0 { anvil.ws() } else { anvil.http() };
        let config = format!(
            r#"
[chain.local]
rpc = "{rpc}"
poll_ms = 50
start = {live}
finality = {{ depth = 40 }}
max_range = 7

[plugin.erc20-transfers]
start = {early}

[output.tokens]
type = "file"
path = "tokens.ndjson"

[output.coins]
type = "file"
path = "coins.ndjson"

[[route]]
from = "erc20-transfers.transfers"
to = ["tokens"]

[[route]]
from = "native-transfers.transfers"
to = ["coins"]
"#
        );
        let process = Process::start(folder.path(), &config).await;
        let at_head = async |name: &str, number: usize| {
            let hash = chain.hash(chain.head().await).await.to_string();
            until("the plugin to reach the head", || async {
                let status = process.status().await?;
                let plugins = status["plugins"].as_array()?;
                let plugin = plugins.iter().find(|plugin| plugin["name"] == name)?;
                (plugins.len() == number && plugin["chains"][0]["cursor"]["hash"] == json!(hash)).then_some(())
            })
            .await;
        };
        at_head("native-transfers", 1).await;
        drop_in("erc20-transfers");
        for _ in 0..30 {
            let people = chain.accounts.len() as u64;
            let (from, to) = (town.below(people) as usize, town.below(people) as usize);
            chain.send(&ether(chain.accounts[from], chain.accounts[to], 1 + town.below(9))).await;
            town.block(&chain, 4).await;
            if town.below(6) == 0 {
                let depth = 1 + town.below(32);
                town.reorg(&chain, depth, 2).await;
            }
        }
        // The last reorg may have taken all there was.
        chain.send(&ether(chain.accounts[0], chain.accounts[1], 1)).await;
        let last = town.transfer(&chain);
        chain.send(&last).await;
        chain.mine(1).await;
        at_head("native-transfers", 2).await;
        at_head("erc20-transfers", 2).await;
        let lines = |file: &str| ndjson(&folder.path().join(file));
        let tokens = chain.transfers(early..=chain.head().await).await;
        let coins = ether_moved(&chain, live).await;
        assert!(!tokens.is_empty() && !coins.is_empty());
        until("both outputs to hold the chain's", || async {
            let (token_lines, coin_lines) = (lines("tokens.ndjson"), lines("coins.ndjson"));
            let (token_ledger, coin_ledger) = (Ledger::of(&token_lines), Ledger::of(&coin_lines));
            assert_eq!((token_ledger.repeats, coin_ledger.repeats), (0, 0), "a file holds a line twice");
            let mut found: BTreeMap<(B256, String), usize> = BTreeMap::new();
            for event in coin_ledger.net() {
                let hash = event["blockhash"].as_str()?.parse().ok()?;
                *found.entry((hash, event["data"]["tx"].as_str()?.to_owned())).or_default() += 1;
            }
            let once = found.values().all(|times| *times == 1) && found.keys().eq(coins.iter());
            (token_ledger.transfers() == tokens && once).then_some(())
        })
        .await;
    }
}
