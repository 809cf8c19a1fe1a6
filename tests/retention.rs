//! What is delivered leaves the journal, what is owed stays however long, and what was delivered can be had again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::anvil::Anvil;
use crate::harness::chain::{Chain, Town};
use crate::harness::process::{Ledger, Process, folder};
use crate::harness::receiver::{Answer, Receiver};
use crate::harness::until;

const STREAM: &str = "erc20-transfers.transfers";

fn config(anvil: &Anvil, journal: &str, outputs: &[(&str, &Receiver)]) -> String {
    let mut config = format!(
        "[journal]\n{journal}\n[chain.local]\nrpc = \"{}\"\npoll_ms = 50\nstart = 0\nfinality = {{ depth = 3 }}\n",
        anvil.ws()
    );
    for (name, receiver) in outputs {
        config += &format!(
            "[output.{name}]\ntype = \"webhook\"\nurl = \"{}\"\nallow_private = true\n[[route]]\nfrom = \"{STREAM}\"\nto = [\"{name}\"]\n",
            receiver.url()
        );
    }
    config
}

fn accepted(receiver: &Receiver) -> Vec<Value> {
    receiver.received().iter().filter(|r| r.accepted()).map(|r| r.event()).collect()
}

fn entries(folder: &Path) -> u64 {
    let db = rusqlite::Connection::open(folder.join("chainweir.db")).expect("the journal");
    db.query_row("SELECT count(*) FROM entry", [], |r| r.get(0)).expect("a count")
}

async fn holds_all(receiver: &Receiver, chain: &Chain) {
    let truth = chain.transfers(0..=chain.head().await).await;
    until("everything to arrive", || async { (Ledger::of(&accepted(receiver)).transfers() == truth).then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_all_outputs_have_leaves_the_journal_and_what_one_has_not_stays() {
    let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let mut town = Town::found(&chain, 61).await;
    let folder = folder(&["erc20-transfers"]);
    let (shop, away) = (Receiver::start().await, Receiver::start().await);
    away.otherwise(Answer::Status(503));
    let config = config(&anvil, "retain = 1", &[("shop", &shop), ("away", &away)]);
    let process = Process::start(folder.path(), &config).await;
    for _ in 0..20 {
        town.block(&chain, 5).await;
    }
    town.reorg(&chain, 2, 4).await;
    holds_all(&shop, &chain).await;
    let old = accepted(&shop).iter().map(cursor).min().unwrap();

    // A reader is told that what it asks for is out of reach, while the one that failed has lost nothing.
    let gone = until("the window to pass", || async {
        town_tick(&chain).await;
        let (code, said) = status_of(&process, &format!("/streams/{STREAM}?after={old}")).await;
        (code == 410).then_some(said)
    })
    .await;
    assert!(gone.contains("retain") && gone.contains("after=0"), "{gone}");
    let kept = entries(folder.path());
    assert!(kept as usize >= accepted(&shop).len(), "one output has had nothing yet, and {kept} are left");
    until("what waits to be counted and weighed", || async {
        let status = process.status().await?;
        let away = status["outputs"].as_array()?.iter().find(|o| o["name"] == "away")?;
        (away["backlog_age"].as_u64()? >= 1 && away["backlog_bytes"].as_u64()? > 100 * away["backlog"].as_u64()?)
            .then_some(())
    })
    .await;

    // It comes back, over a crash; then all of it goes.
    process.kill();
    away.otherwise(Answer::Status(204));
    let process = Process::start(folder.path(), &config).await;
    holds_all(&away, &chain).await;
    until("the journal to forget", || async {
        town_tick(&chain).await;
        (entries(folder.path()) == 0).then_some(())
    })
    .await;

    // What comes after goes on behind it: no cursor is used twice, and a new output begins with what is kept.
    let highest = |receiver: &Receiver| accepted(receiver).iter().map(cursor).max().unwrap();
    let before = highest(&shop);
    for _ in 0..5 {
        town.block(&chain, 5).await;
    }
    holds_all(&shop, &chain).await;
    assert!(highest(&shop) > before);
    let (status, _) = process.terminate().await;
    assert!(status.success());
}

/// A block in which nothing happens: what was before it becomes final.
async fn town_tick(chain: &Chain) {
    chain.mine(1).await;
}

async fn status_of(process: &Process, path: &str) -> (u16, String) {
    let answer = reqwest::Client::builder().no_proxy().build().unwrap().get(process.url(path)).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

fn cursor(event: &Value) -> u64 {
    event["cursor"].as_str().and_then(|c| c.parse().ok()).expect("a cursor")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_output_has_had_is_sent_again_with_the_same_ids_beside_what_is_new() {
    let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let mut town = Town::found(&chain, 62).await;
    let folder = folder(&["erc20-transfers"]);
    let shop = Receiver::start().await;
    let config = config(&anvil, "", &[("shop", &shop)]);
    let process = Process::start(folder.path(), &config).await;
    let first = chain.head().await + 1;
    for _ in 0..12 {
        town.block(&chain, 5).await;
    }
    town.reorg(&chain, 2, 4).await;
    let last = chain.head().await;
    town.block(&chain, 5).await;
    holds_all(&shop, &chain).await;
    until("what is retracted to be told", || async {
        let events = accepted(&shop);
        let count = |op| events.iter().filter(|e| e["op"] == op).count();
        (count("apply") - count("retract") == Ledger::of(&events).net().len()).then_some(())
    })
    .await;
    let before = accepted(&shop);
    // What it has accepted is delivered when the lane has read so.
    let ids: BTreeSet<String> = before.iter().map(|e| e["id"].to_string()).collect();
    until("the lane to know it", || async {
        (process.status().await?["outputs"][0]["delivered"] == json!(ids.len())).then_some(())
    })
    .await;
    let number = |e: &Value| e["block"].as_str().and_then(|b| b.parse::<u64>().ok()).unwrap();
    // Of what was taken back, the taking back alone.
    let retracted: Vec<&Value> = before.iter().filter(|e| e["op"] == "retract").map(|e| &e["emission"]).collect();
    let mut wanted: Vec<&Value> = before
        .iter()
        .filter(|e| (first + 2..=last).contains(&number(e)))
        .filter(|e| e["op"] == "retract" || !retracted.contains(&&e["emission"]))
        .collect();
    wanted.sort_by_key(|e| cursor(e));

    for (bad, why) in [
        (&["--stream", STREAM, "--from", "0", "--to", "nowhere"][..], "there are: shop"),
        (&["--stream", "a.b", "--from", "0", "--to", "shop"], "no stream"),
        (&["--stream", STREAM, "--from", "1000000", "--to", "shop"], "keeps nothing"),
    ] {
        let (ok, said) = process.cli(&[&["replay"], bad].concat());
        assert!(!ok && said.contains(why), "{said}");
    }
    // Slow enough for the crash to come in between.
    let (from, until_block) = ((first + 2).to_string(), last.to_string());
    let order = ["replay", "--stream", STREAM, "--from", &from, "--until", &until_block, "--to", "shop", "--pace", "4"];
    let (ok, said) = process.cli(&order);
    assert!(ok && said.contains("the same ids"), "{said}");
    let (ok, said) = process.cli(&order);
    assert!(!ok && said.contains("wait until that has ended"), "{said}");
    shop.wait_for(before.len() + 3).await;
    process.kill();
    let process = Process::start(folder.path(), &config).await;
    town.block(&chain, 5).await;
    holds_all(&shop, &chain).await;
    let again = until("all of it to come again", || async {
        let known: BTreeMap<String, &Value> = before.iter().map(|e| (e["id"].to_string(), e)).collect();
        let now = accepted(&shop);
        let mut again: Vec<Value> = now[before.len()..].to_vec();
        again.retain(|e| known.contains_key(&e["id"].to_string()));
        // The crash may repeat one.
        let mut seen = BTreeSet::new();
        again.retain(|e| seen.insert(e["id"].to_string()));
        (again.len() >= wanted.len()).then_some(again)
    })
    .await;
    assert_eq!(again.iter().collect::<Vec<_>>(), wanted, "in its order, and word for word");
    until("nothing to be left of it", || async {
        let status = process.status().await?;
        (status["outputs"][0]["replaying"] == json!(0) && status["outputs"][0]["backlog"] == json!(0)).then_some(())
    })
    .await;
    assert!(process.terminate().await.0.success());
}
