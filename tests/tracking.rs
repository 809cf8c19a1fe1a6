//! What becomes of a transaction is said once, in its order, whatever the chain and the process do in between.

use alloy_primitives::{Address, U256};
use serde_json::{Value, json};

use crate::harness::anvil::Anvil;
use crate::harness::chain::{Chain, ether};
use crate::harness::process::{Process, folder};
use crate::harness::until;

const STREAM: &str = "chainweir.transactions";

fn config(rpc: &str) -> String {
    format!(
        r#"
[chain.local]
rpc = "{rpc}"
poll_ms = 50
start = 0
finality = {{ depth = 6 }}
dropped_after = 1

[output.orders]
type = "file"
path = "orders.ndjson"

[[route]]
from = "{STREAM}"
to = ["orders"]
"#
    )
}

/// More of a fee: it takes the place of one with the same nonce.
fn priced(mut tx: Value, wei: u64) -> Value {
    (tx["maxFeePerGas"], tx["maxPriorityFeePerGas"]) = (json!(U256::from(wei * 10)), json!(U256::from(wei)));
    tx
}

async fn watch(process: &Process, items: &Value) {
    let done = until("the chain to be followed", || async {
        let (code, done) = process.post("/transactions/local", &json!({ "add": items })).await;
        assert!(code == 200 || code == 503, "{done}");
        (code == 200).then_some(done)
    })
    .await;
    assert_eq!(done["added"], json!(items.as_array().unwrap().len()), "{done}");
}

/// What was said of one, as `status` or `confirmed N`.
async fn said(process: &Process, key: &str) -> Vec<String> {
    let Some(_) = process.get(&format!("/streams/{STREAM}?after=0&limit=1")).await else { return vec![] };
    let feed = process.feed(STREAM).await.into_iter();
    let own = feed.filter(|item| item["subject"] == json!(key));
    own.map(|item| {
        assert_eq!(item["op"], "apply");
        let status = item["data"]["status"].as_str().unwrap();
        item["data"]["confirmations"].as_u64().map_or(status.to_owned(), |n| format!("{status} {n}"))
    })
    .collect()
}

async fn until_said(process: &Process, key: &str, expected: &[&str]) {
    until(&format!("{key} to be {expected:?}"), || async { (said(process, key).await == expected).then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_is_followed_from_the_mempool_to_its_end_through_reorgs_and_kills() {
    let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let [alice, bob, carol, dave] = [1, 2, 3, 4].map(|n| chain.accounts[n]);
    chain.mine(8).await;
    // Mined, and final, before anybody asks.
    let old = chain.send(&ether(alice, bob, 1)).await.to_string();
    chain.mine(8).await;
    let dir = folder(&[]);
    let mut process = Process::start(dir.path(), &config(&anvil.ws())).await;

    let paid = chain.send(&ether(alice, bob, 7)).await.to_string();
    let cheap = chain.send(&priced(ether(bob, carol, 8), 1_000_000_000)).await.to_string();
    let lost = chain.send(&ether(carol, dave, 9)).await.to_string();
    let nobody = format!("0x{}", "ee".repeat(32));
    watch(
        &process,
        &json!([
            { "hash": paid, "confirmations": [2, 4], "label": "order 17" }, { "hash": cheap }, { "hash": lost },
            { "hash": nobody }, { "hash": old, "confirmations": [1] }, { "sender": dave, "nonce": 0 },
        ]),
    )
    .await;
    let by_nonce = format!("{dave:?}/0");
    until_said(&process, &paid, &["pending"]).await;
    until_said(&process, &cheap, &["pending"]).await;
    until_said(&process, &lost, &["pending"]).await;
    until_said(&process, &nobody, &["unknown"]).await;
    until_said(&process, &by_nonce, &["unknown"]).await;
    until_said(&process, &old, &["included", "confirmed 1", "finalized"]).await;
    // Asked again, nothing is new.
    let (_, again) = process.post("/transactions/eip155:31337", &json!({ "add": [{ "hash": nobody }] })).await;
    assert_eq!(again["added"], 0);

    // One is taken over by a dearer one, one is dropped, the rest is mined; the process is killed meanwhile.
    process.kill();
    let mut dear = priced(ether(bob, carol, 8), 2_000_000_000);
    dear["nonce"] = json!(U256::ZERO);
    let dear = chain.send(&dear).await.to_string();
    chain.call("anvil_dropTransaction", json!([lost])).await;
    let first = chain.send(&ether(dave, bob, 3)).await.to_string();
    chain.mine(1).await;
    process = Process::start(dir.path(), &config(&anvil.ws())).await;
    until_said(&process, &paid, &["pending", "included"]).await;
    until_said(&process, &cheap, &["pending", "replaced"]).await;
    until_said(&process, &lost, &["pending", "dropped"]).await;
    until_said(&process, &by_nonce, &["unknown", "included"]).await;
    let show = async |process: &Process, key: &str| -> Value {
        serde_json::from_str(&process.get(&format!("/transactions/local/{key}")).await.unwrap()).unwrap()
    };
    let told = show(&process, &paid).await;
    assert_eq!(
        (&told["status"], &told["label"], &told["success"]),
        (&json!("included"), &json!("order 17"), &json!(true))
    );
    assert_eq!(told["blockhash"], json!(chain.hash(chain.head().await).await));
    assert_eq!(show(&process, &cheap).await["replaced_by"], json!(dear));
    assert_eq!(show(&process, &by_nonce).await["hash"], json!(first));

    chain.mine(1).await;
    until_said(&process, &paid, &["pending", "included", "confirmed 2"]).await;
    // Both blocks are taken away: on the new branch it comes one block later, and the replaced one is open.
    let raw = chain.call("eth_getRawTransactionByHash", json!([paid])).await;
    chain.reorg(2, &[(raw, 1)]).await;
    chain.mine(1).await;
    let story = ["pending", "included", "confirmed 2", "orphaned", "included", "confirmed 2"];
    until_said(&process, &paid, &story).await;
    until("the replaced one to be open", || async {
        let said = said(&process, &cheap).await;
        (said.len() > 2 && said[2] == "orphaned").then_some(())
    })
    .await;
    process.kill();
    chain.mine(8).await;
    process = Process::start(dir.path(), &config(&anvil.ws())).await;
    let story = [&story[..], &["confirmed 4", "finalized"]].concat();
    until_said(&process, &paid, &story).await;
    assert_eq!(said(&process, &old).await, ["included", "confirmed 1", "finalized"], "what is final is said once");

    // What left is what was said, each with an id of its own.
    let feed = process.feed(STREAM).await;
    let lines = || std::fs::read_to_string(dir.path().join("orders.ndjson")).unwrap_or_default();
    until("the output to hold it", || async { (lines().lines().count() == feed.len()).then_some(()) }).await;
    let mut ids: Vec<&str> = feed.iter().map(|item| item["emission"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), feed.len());

    let (worked, listed) = process.cli(&["track", "list", "--chain", "local"]);
    assert!(worked && listed.contains(&paid) && listed.contains("order 17"), "{listed}");
    let (worked, dropped) = process.cli(&["track", "drop", "--chain", "local", &paid, &by_nonce]);
    assert!(worked && dropped.starts_with("2 are not"), "{dropped}");
    assert!(process.get(&format!("/transactions/local/{paid}")).await.is_none());
    process.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_watched_is_refused_with_the_reason() {
    let Some(anvil) = Anvil::start(&[]) else { return };
    let dir = folder(&[]);
    let process = Process::start(dir.path(), &config(&anvil.http())).await;
    let one = json!({ "hash": format!("0x{}", "11".repeat(32)) });
    watch(&process, &json!([one])).await;
    let (code, why) = process.post("/transactions/elsewhere", &json!({ "add": [one] })).await;
    assert!(code == 404 && why["error"].as_str().unwrap().contains("there are: local"), "{why}");
    for bad in [
        json!({ "nonce": 3 }),
        json!({ "hash": "0x11" }),
        json!({ "sender": Address::ZERO }),
        json!({ "hash": format!("0x{}", "11".repeat(32)), "confirmations": [0] }),
        json!({ "hash": format!("0x{}", "11".repeat(32)), "label": "x".repeat(257) }),
    ] {
        let (code, why) = process.post("/transactions/local", &json!({ "add": [bad] })).await;
        assert_eq!(code, 400, "{why}");
    }
    process.terminate().await;
}
