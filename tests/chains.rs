//! Many chains in one process, each at its own pace: one that is not there, or goes away, changes nothing for another. Real
//! nodes; the seeded one, with halts, is in `simulation.rs`.

use serde_json::Value;

use crate::harness::anvil::Anvil;
use crate::harness::belt::seed;
use crate::harness::chain::{Chain, Town, Transfer};
use crate::harness::process::{Ledger, Process, folder};
use crate::harness::until;

async fn net(process: &Process, id: u64) -> Vec<Transfer> {
    let source = format!("eip155:{id}");
    let feed = process.feed("erc20-transfers.transfers").await;
    let ledger = Ledger::of(feed.iter().filter(|item| item["source"] == source.as_str()));
    assert_eq!(ledger.repeats, 0, "{source} says something twice");
    ledger.transfers()
}

async fn chain_of(process: &Process, name: &str) -> Option<Value> {
    process.status().await?["chains"].as_array()?.iter().find(|chain| chain["name"] == name).cloned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_that_goes_away_changes_nothing_for_another_and_comes_back_whole() {
    let (Some(first), Some(second)) =
        (Anvil::start(&["--no-mining", "--chain-id", "101"]), Anvil::start(&["--no-mining", "--chain-id", "102"]))
    else {
        return;
    };
    let (one, two) = (Chain::connect(&first.http()).await, Chain::connect(&second.http()).await);
    let seed = seed();
    let (mut town, mut other) = (Town::found(&one, seed).await, Town::found(&two, seed ^ 1).await);
    for _ in 0..20 {
        town.block(&one, 4).await;
        other.block(&two, 4).await;
    }
    let dir = folder(&["erc20-transfers"]);
    let table =
        |name: &str, rpc: &str| format!("[chain.{name}]\nrpc = {rpc:?}\npoll_ms = 50\ntimeout_ms = 500\nstart = 0\n");
    // The third's provider never answers: nothing listens at port 1.
    let config = format!(
        "{}{}{}",
        table("one", &first.ws()),
        table("two", &second.http()),
        table("three", "http://127.0.0.1:1").replace("start", "chain_id = 103\nstart")
    );
    let process = Process::start(dir.path(), &config).await;
    until("the plugin to be there", || async {
        process.get("/streams/erc20-transfers.transfers?after=0&limit=1").await
    })
    .await;
    let all = async |chain: &Chain| chain.transfers(0..=chain.head().await).await;
    let settled = async |chain: &Chain, id: u64| {
        let truth = all(chain).await;
        until("all of a chain's transfers", || async { (net(&process, id).await == truth).then_some(()) }).await;
    };
    settled(&one, 101).await;
    settled(&two, 102).await;
    until("the third to be unreachable", || async {
        let third = chain_of(&process, "three").await?;
        (third["state"] == "unreachable" && third["why"].is_string()).then_some(())
    })
    .await;

    // The second freezes, with its connections open.
    second.signal("STOP");
    until("the second to be missed", || async { chain_of(&process, "two").await?["why"].as_str().map(drop) }).await;
    for round in 0..15 {
        town.block(&one, 4).await;
        if round % 5 == 4 {
            town.reorg(&one, 1 + round % 3, 2).await;
        }
        settled(&one, 101).await;
        assert_eq!(chain_of(&process, "one").await.unwrap()["why"], Value::Null);
    }
    let frozen = net(&process, 102).await;
    second.signal("CONT");
    assert_eq!(frozen, all(&two).await, "who has no word says nothing");
    for _ in 0..5 {
        other.block(&two, 4).await;
    }
    settled(&two, 102).await;
    settled(&one, 101).await;
    process.terminate().await;
}
