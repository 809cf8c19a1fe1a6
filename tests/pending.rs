//! Transactions that are in no block yet: shown as they come, marked as part of no promise, and in nobody's way.

use std::collections::BTreeSet;
use std::sync::Mutex;

use alloy_primitives::Address;
use serde_json::{Value, json};

use crate::harness::anvil::Anvil;
use crate::harness::builds::{hostile, put};
use crate::harness::chain::{Chain, ether};
use crate::harness::process::{Process, folder};
use crate::harness::{guests, ndjson, until};

fn config(rpc: &str, party: Address) -> String {
    format!(
        r#"
[chain.local]
rpc = "{rpc}"
poll_ms = 50
start = 0

[plugin.pending-transactions]
config = {{ parties = ["{party}"] }}

[output.now]
type = "file"
path = "now.ndjson"

[output.later]
type = "file"
path = "later.ndjson"

[output.table]
type = "sqlite"
path = "table.db"

[[route]]
from = "pending-transactions.transactions"
to = ["now", "table"]

[[route]]
from = "pending-transactions.transactions"
to = ["later"]
when = {{ confirmations = 1 }}
"#
    )
}

async fn both_at(process: &Process, chain: &Chain) {
    let tip = json!(chain.hash(chain.head().await).await);
    until("both plugins at the tip", || async {
        let status = process.status().await?;
        let plugins = status["plugins"].as_array()?;
        (plugins.len() == 2 && plugins.iter().all(|p| p["chains"][0]["cursor"]["hash"] == tip)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_is_told_before_it_is_in_a_block_and_marked_as_no_promise() {
    let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let (alice, bob, carol) = (chain.accounts[1], chain.accounts[2], chain.accounts[3]);
    chain.mine(3).await;
    // Over a subscription, and by a filter that is asked for what came.
    for rpc in [anvil.ws(), anvil.http()] {
        let dir = folder(&["pending-transactions", "native-transfers"]);
        let process = Process::start(dir.path(), &config(&rpc, bob)).await;
        both_at(&process, &chain).await;
        // Until the node has been asked to tell, it tells nobody.
        let sent = Mutex::new(BTreeSet::new());
        let feed = || process.feed("pending-transactions.transactions");
        until("a transaction to be told", || async {
            let tx = chain.send(&ether(alice, bob, 7)).await.to_string();
            sent.lock().unwrap().insert(tx);
            chain.send(&ether(alice, carol, 8)).await;
            (!feed().await.is_empty()).then_some(())
        })
        .await;
        let last = chain.send(&ether(bob, alice, 9)).await.to_string();
        sent.lock().unwrap().insert(last.clone());
        let sent = sent.into_inner().unwrap();
        until("the last one to be told", || async {
            feed().await.iter().any(|item| item["data"]["tx"] == json!(last)).then_some(())
        })
        .await;
        let told = feed().await;
        for item in &told {
            assert_eq!(
                (&item["op"], item.get("block"), item.get("blockhash")),
                (&json!("pending"), None, None),
                "{item}"
            );
            let data = &item["data"];
            assert!(sent.contains(data["tx"].as_str().unwrap()), "of others nothing is told: {item}");
            assert!(data["from"] == json!(bob) || data["to"] == json!(bob), "{item}");
        }
        assert_eq!(process.status().await.unwrap()["plugins"][1]["chains"][0]["why"], Value::Null);

        // Included, it is told by those who speak of blocks, and a pending one says nothing more.
        chain.mine(1).await;
        both_at(&process, &chain).await;
        until("the transfers in the block", || async {
            let moved = process.feed("native-transfers.transfers").await;
            moved.iter().any(|item| item["data"]["tx"] == json!(last)).then_some(())
        })
        .await;
        // Several are asked for at once: one of before the last may be told only now.
        let told = feed().await;
        let once: BTreeSet<&str> = told.iter().map(|item| item["data"]["tx"].as_str().unwrap()).collect();
        assert_eq!(once.len(), told.len(), "{told:?}");
        until("what leaves at once", || async {
            (ndjson(&dir.path().join("now.ndjson")).len() == feed().await.len()).then_some(())
        })
        .await;
        chain.mine(2).await;
        both_at(&process, &chain).await;
        assert_eq!(ndjson(&dir.path().join("later.ndjson")), Vec::<Value>::new(), "nothing of it is ever confirmed");
        let table = rusqlite::Connection::open(dir.path().join("table.db")).unwrap();
        let mut tables = table.prepare("SELECT name FROM sqlite_master WHERE type = 'table'").unwrap();
        let names: Vec<String> = tables.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        let of_rows = names.iter().filter(|name| !name.starts_with("chainweir"));
        let rows: i64 = of_rows
            .map(|name| {
                table.query_row(&format!("SELECT count(*) FROM \"{name}\""), [], |r| r.get::<_, i64>(0)).unwrap()
            })
            .sum();
        assert_eq!(rows, 0, "a table holds what the chain has");

        // A plugin that is gone has nobody listen for it; one that comes back has its past.
        std::fs::remove_file(dir.path().join("plugins/pending-transactions.wasm")).unwrap();
        until("the plugin to be gone", || async {
            (process.status().await?["plugins"].as_array()?.len() == 1).then_some(())
        })
        .await;
        let unheard = chain.send(&ether(alice, bob, 11)).await.to_string();
        std::fs::copy(guests::wasm("pending-transactions"), dir.path().join("plugins/pending-transactions.wasm"))
            .unwrap();
        let sent = Mutex::new(BTreeSet::new());
        until("it to hear again", || async {
            let tx = chain.send(&ether(alice, bob, 12)).await.to_string();
            sent.lock().unwrap().insert(tx);
            let told = feed().await;
            let sent = sent.lock().unwrap();
            told.iter().any(|item| sent.contains(item["data"]["tx"].as_str().unwrap())).then_some(())
        })
        .await;
        assert!(!feed().await.iter().any(|item| item["data"]["tx"] == json!(unheard)));
        process.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_a_plugin_cannot_bear_hides_no_other_and_stops_no_block() {
    let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let (alice, bob) = (chain.accounts[1], chain.accounts[2]);
    let dir = folder(&["native-transfers"]);
    put(&dir.path().join("plugins"), "odd.wasm", &hostile(r#"{"name":"odd","mode":"odd-pending"}"#));
    let config = format!("[chain.local]\nrpc = {:?}\npoll_ms = 50\nstart = 0\n", anvil.ws());
    let process = Process::start(dir.path(), &config).await;
    both_at(&process, &chain).await;
    let told = || async {
        let values = process.feed("odd.one").await.into_iter();
        values.map(|item| item["data"]["value"].as_str().unwrap().parse::<u64>().unwrap()).collect::<BTreeSet<_>>()
    };
    until("the node to tell", || async {
        chain.send(&ether(alice, bob, 2)).await;
        (!told().await.is_empty()).then_some(())
    })
    .await;
    let wanted: BTreeSet<u64> = (50..90).filter(|n| n % 2 == 0).collect();
    for value in 50..90 {
        chain.send(&ether(alice, bob, value)).await;
    }
    until("every one that it can bear", || async { told().await.is_superset(&wanted).then_some(()) }).await;
    assert!(told().await.iter().all(|value| value % 2 == 0));
    chain.mine(1).await;
    both_at(&process, &chain).await;
    process.terminate().await;
}

/// What a plugin asks to be watched is part of its step: neither a kill nor the plugin's end takes it away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_has_a_transaction_followed_to_its_end() {
    let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let (alice, bob) = (chain.accounts[1], chain.accounts[2]);
    chain.mine(3).await;
    let dir = folder(&["pending-transactions"]);
    let config = format!(
        "[chain.local]\nrpc = \"{}\"\npoll_ms = 50\nstart = 0\nfinality = {{ depth = 4 }}\n\n\
         [plugin.pending-transactions]\nconfig = {{ parties = [\"{bob}\"], track = [2] }}\n",
        anvil.ws()
    );
    let mut process = Process::start(dir.path(), &config).await;
    process.until_at(&chain.hash(3).await.to_string()).await;
    until("a transaction to be told", || async {
        chain.send(&ether(alice, bob, 7)).await;
        (!process.feed("pending-transactions.transactions").await.is_empty()).then_some(())
    })
    .await;
    // The step is durable; whether it has been taken in yet is chance.
    process.kill();
    process = Process::start(dir.path(), &config).await;
    let told = process.feed("pending-transactions.transactions").await;
    let hash = told[0]["data"]["tx"].clone();
    until("the stream", || async { process.get("/streams").await?.contains("chainweir.transactions").then_some(()) })
        .await;
    let statuses = async |process: &Process| -> Vec<Value> {
        let all = process.feed("chainweir.transactions").await;
        all.iter().filter(|item| item["data"]["hash"] == hash).map(|item| item["data"]["status"].clone()).collect()
    };
    until("it to be known as pending", || async { statuses(&process).await.contains(&json!("pending")).then_some(()) })
        .await;
    for _ in 0..8 {
        chain.mine(1).await;
        process.until_at(&chain.hash(chain.head().await).await.to_string()).await;
    }
    let all = until("its end", || async {
        let all = statuses(&process).await;
        (all.last() == Some(&json!("finalized"))).then_some(all)
    })
    .await;
    let after = all.iter().skip_while(|status| **status != "included").cloned().collect::<Vec<_>>();
    assert_eq!(after, ["included", "confirmed", "finalized"], "{all:?}");
    process.terminate().await;
}
