//! Promises 1 and 5 on bad days: providers that refuse and vanish, receivers that are down, hang or are gone for good.
//! Nothing is lost, it goes on by itself, and the one beside it does not notice.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::anvil::Anvil;
use crate::harness::belt::{seed, times};
use crate::harness::cable::{Break, Cable};
use crate::harness::chain::{Chain, Town, Transfer};
use crate::harness::fake_node::{FakeNode, Reply};
use crate::harness::process::{Ledger, Process, folder};
use crate::harness::receiver::{Answer, Receiver};
use crate::harness::{free_port, ndjson, until};

fn chain_config(rpc: &str) -> String {
    format!("[chain.local]\nrpc = \"{rpc}\"\npoll_ms = 50\nstart = 0\nfinality = {{ depth = 12 }}\n")
}

fn webhook(name: &str, receiver: &Receiver, more: &str) -> String {
    format!("[output.{name}]\ntype = \"webhook\"\nurl = \"{}\"\nallow_private = true\n{more}\n", receiver.url())
}

fn route(outputs: &[&str]) -> String {
    format!("[[route]]\nfrom = \"erc20-transfers.transfers\"\nto = {outputs:?}\n")
}

/// What a receiver holds by what it accepted.
fn accepted(receiver: &Receiver) -> Vec<Transfer> {
    let events: Vec<Value> = receiver.received().iter().filter(|r| r.accepted()).map(|r| r.event()).collect();
    Ledger::of(&events).transfers()
}

async fn holds(what: &str, receiver: &Receiver, chain: &Chain) {
    let truth = chain.transfers(0..=chain.head().await).await;
    assert!(!truth.is_empty());
    until(what, || async { (accepted(receiver) == truth).then_some(()) }).await;
}

async fn at_head(process: &Process, chain: &Chain) {
    let hash = chain.hash(chain.head().await).await.to_string();
    process.until_at(&hash).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_answers_503_for_a_while_gets_everything() {
    let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let mut town = Town::found(&chain, 21).await;
    let (folder, receiver) = (folder(&["erc20-transfers"]), Receiver::start().await);
    let later = || Answer::Full(503, vec![("Retry-After", "1".into())], b"later".to_vec());
    receiver.otherwise(later());
    let config = chain_config(&anvil.ws()) + &webhook("shop", &receiver, "") + &route(&["shop"]);
    let process = Process::start(folder.path(), &config).await;
    for _ in 0..20 {
        town.block(&chain, 5).await;
    }
    town.reorg(&chain, 4, 3).await;
    at_head(&process, &chain).await;
    receiver.wait_for(2).await;
    assert!(accepted(&receiver).is_empty());
    // Down altogether, over a restart.
    let port = receiver.stop().await;
    let (status, _) = process.terminate().await;
    assert!(status.success(), "{status}");
    let receiver = Receiver::start_on(port).await;
    let process = Process::start(folder.path(), &config).await;
    town.block(&chain, 5).await;
    at_head(&process, &chain).await;
    holds("everything to arrive", &receiver, &chain).await;
    assert_eq!(process.cli(&["dead", "list"]).1.lines().count(), 1, "nothing was given up");
}

/// Who loses what here: ../shared/LESSONS.md names them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_refuses_and_stumbles_loses_nothing() {
    let node = FakeNode::start().await;
    (0..400).for_each(|n| {
        node.push(n % 4);
    });
    let mut calls = 0_u32;
    node.misbehave(move |method, params, honest| {
        calls += 1;
        let at = |key: &str| params[0][key].as_str().and_then(|n| u64::from_str_radix(&n[2..], 16).ok());
        if let ("eth_getLogs", Some(from), Some(to)) = (method, at("fromBlock"), at("toBlock"))
            && to - from >= 25
        {
            // One of them echoes the question as its suggestion.
            return match calls % 4 {
                0 => Reply::Error(-32005, "query returned more than 10000 results".into()),
                1 => Reply::Error(-32602, "query exceeds max block range 25".into()),
                2 => Reply::Error(-32602, format!("query exceeds max results 20000, retry with the range {from}-{to}")),
                _ => Reply::Error(
                    -32602,
                    format!("Log response size exceeded. this block range should work: [{from:#x}, {:#x}]", from + 9),
                ),
            };
        }
        match calls % 97 {
            25 => Reply::Error(-32005, "request rate exceeded".into()),
            51 => Reply::Status(502, "<html>bad gateway</html>".into()),
            77 => Reply::Answer(Value::Null),
            _ => Reply::Answer(honest),
        }
    });
    let folder = folder(&["erc20-transfers"]);
    let config = chain_config(&node.url) + "[output.all]\ntype = \"file\"\npath = \"all.ndjson\"\n" + &route(&["all"]);
    let process = Process::start(folder.path(), &config).await;
    process.until_at(&node.tip().to_string()).await;
    for round in 0..20 {
        node.push(round % 3);
    }
    node.reorg(5, 2);
    process.until_at(&node.tip().to_string()).await;
    // What the node itself holds is what came out.
    let expected = node.logs_held();
    until("every log once", || async {
        let ledger = Ledger::of(&ndjson(&folder.path().join("all.ndjson")));
        assert_eq!(ledger.repeats, 0);
        let mut found: BTreeMap<String, usize> = BTreeMap::new();
        for event in ledger.net() {
            *found.entry(event["blockhash"].as_str()?.to_owned()).or_default() += 1;
        }
        (found == expected).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_is_found_again_where_it_was() {
    let state = tempfile::tempdir().expect("a temporary folder");
    let file = state.path().join("state.json");
    let kept = ["--no-mining", "--state", file.to_str().expect("UTF-8"), "--state-interval", "1"];
    let port = free_port();
    let Some(anvil) = Anvil::on(port, &kept) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let mut town = Town::found(&chain, 23).await;
    let (folder, receiver) = (folder(&["erc20-transfers"]), Receiver::start().await);
    let config = chain_config(&anvil.ws()) + &webhook("shop", &receiver, "") + &route(&["shop"]);
    let process = Process::start(folder.path(), &config).await;
    for _ in 0..10 {
        town.block(&chain, 5).await;
    }
    holds("what came before", &receiver, &chain).await;
    let tip = chain.hash(chain.head().await).await;
    // SIGTERM lets anvil write its state; the program sees a connection that is cut.
    anvil.terminate();
    until("the program to notice", || async {
        let status = process.status().await?;
        (status["chains"][0]["state"] == "unreachable").then_some(())
    })
    .await;
    let ready = process.get("/readyz").await;
    assert!(ready.is_none(), "not ready without its chain");
    let Some(_anvil) = Anvil::on(port, &kept) else { return };
    assert_eq!(chain.hash(chain.head().await).await, tip, "anvil kept its chain");
    for _ in 0..10 {
        town.block(&chain, 5).await;
    }
    holds("what came after", &receiver, &chain).await;
    until("the chain to be followed again", || async {
        let status = process.status().await?;
        (status["chains"][0]["state"] == "following").then_some(())
    })
    .await;
}

/// In the middle of whatever is said: by byte, at random, over both ways, cut or silent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_goes_away_in_a_backfill_is_read_on_when_it_is_back() {
    let seed = seed();
    let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let mut town = Town::found(&chain, seed).await;
    for _ in 0..150 {
        town.block(&chain, 5).await;
    }
    chain.mine(150).await;
    let ways = ["ws", "http"].into_iter().flat_map(|way| [(way, Break::Cut), (way, Break::Silence)]);
    for (way, how) in ways.cycle().take(times(4, 40) as usize) {
        let cable = Cable::to(anvil.port).await;
        let bytes = 5_000 + town.below(300_000);
        println!("{way}: {how:?} after {bytes} bytes");
        cable.break_after(bytes, how);
        let folder = folder(&["erc20-transfers"]);
        let config = chain_config(&format!("{way}://127.0.0.1:{}", cable.port))
            .replace("start = 0", "start = 0\ntimeout_ms = 1000\nmax_range = 10")
            + "[output.all]\ntype = \"file\"\npath = \"all.ndjson\"\n"
            + &route(&["all"]);
        let process = Process::start(folder.path(), &config).await;
        until("the cable to break", || async { cable.is_broken().then_some(()) }).await;
        until("the program to notice", || async {
            let status = process.status().await?;
            (status["chains"][0]["state"] == "unreachable").then_some(())
        })
        .await;
        town.block(&chain, 5).await;
        town.reorg(&chain, 8, 2).await;
        cable.mend();
        at_head(&process, &chain).await;
        let truth = chain.transfers(0..=chain.head().await).await;
        until("every transfer once", || async {
            let ledger = Ledger::of(&ndjson(&folder.path().join("all.ndjson")));
            assert_eq!(ledger.repeats, 0);
            (ledger.transfers() == truth).then_some(())
        })
        .await;
    }
}

/// It lost its last blocks with its process, and what comes then is another chain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_behind_is_followed_where_it_goes() {
    let port = free_port();
    let Some(anvil) = Anvil::on(port, &["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let mut town = Town::found(&chain, seed()).await;
    let (folder, receiver) = (folder(&["erc20-transfers"]), Receiver::start().await);
    let config = chain_config(&anvil.ws()) + &webhook("shop", &receiver, "") + &route(&["shop"]);
    let process = Process::start(folder.path(), &config).await;
    for _ in 0..10 {
        town.block(&chain, 5).await;
    }
    let kept = chain.head().await;
    let state = anvil.state().await;
    for _ in 0..8 {
        town.block(&chain, 5).await;
    }
    holds("what came before", &receiver, &chain).await;
    let before = (chain.head().await, accepted(&receiver));
    drop(anvil);
    until("the program to notice", || async {
        let status = process.status().await?;
        (status["chains"][0]["state"] == "unreachable").then_some(())
    })
    .await;
    let file = folder.path().join("anvil.json");
    std::fs::write(&file, state).expect("a file in the test's folder");
    let Some(_anvil) = Anvil::on(port, &["--no-mining", "--load-state", file.to_str().expect("UTF-8")]) else { return };
    assert_eq!(chain.head().await, kept, "anvil is where it was");
    until("the chain to be followed again", || async {
        let status = process.status().await?;
        (status["chains"][0]["state"] == "following").then_some(())
    })
    .await;
    assert_eq!(accepted(&receiver), before.1, "a lower head takes nothing back");
    while chain.head().await < before.0 + 3 {
        town.block(&chain, 5).await;
    }
    holds("what came instead", &receiver, &chain).await;
    assert_ne!(accepted(&receiver), before.1);
}

/// From the block's being mined to its delivery's arrival, for each transfer: what the receiver beside bad ones feels.
async fn latencies(chain: &Chain, town: &mut Town, receiver: &Receiver) -> Vec<Duration> {
    let mut all = Vec::new();
    for _ in 0..30 {
        let before = receiver.received().len();
        let transfer = town.transfer(chain);
        chain.send(&transfer).await;
        let mined = Instant::now();
        chain.mine(1).await;
        all.push(receiver.wait_for(before + 1).await[before].at.saturating_duration_since(mined));
    }
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receivers_that_hang_fail_and_are_gone_do_not_slow_the_good_one() {
    let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let mut town = Town::found(&chain, 24).await;
    let good = Receiver::start().await;
    let (hanging, failing, gone) = (Receiver::start().await, Receiver::start().await, Receiver::start().await);
    hanging.otherwise(Answer::Hang);
    failing.otherwise(Answer::Status(500));
    gone.otherwise(Answer::Status(410));
    // Alone first: the same load, the same machine.
    let alone = {
        let folder = folder(&["erc20-transfers"]);
        let config = chain_config(&anvil.ws()) + &webhook("good", &good, "") + &route(&["good"]);
        let process = Process::start(folder.path(), &config).await;
        at_head(&process, &chain).await;
        holds("the beginning", &good, &chain).await;
        latencies(&chain, &mut town, &good).await
    };
    let good = Receiver::start().await;
    let folder = folder(&["erc20-transfers"]);
    let config = chain_config(&anvil.ws())
        + &webhook("good", &good, "")
        + &webhook("hanging", &hanging, "timeout_ms = 60000")
        + &webhook("failing", &failing, "attempts = 1000")
        + &webhook("gone", &gone, "")
        + &route(&["good", "hanging", "failing", "gone"]);
    let process = Process::start(folder.path(), &config).await;
    at_head(&process, &chain).await;
    holds("the beginning", &good, &chain).await;
    hanging.wait_for(1).await;
    failing.wait_for(2).await;
    gone.wait_for(1).await;
    let beside = latencies(&chain, &mut town, &good).await;
    let median = |all: &[Duration]| all[all.len() / 2];
    println!("alone {:?} at the median, beside bad ones {:?}", median(&alone), median(&beside));
    // A machine that is busy with other tests doubles any figure; a receiver that waits for another one waits for seconds.
    assert!(median(&beside) < median(&alone) * 3 + Duration::from_millis(50), "{alone:?} became {beside:?}");
    assert!(beside[beside.len() - 1] < Duration::from_secs(2), "{beside:?}");
    holds("all of it", &good, &chain).await;

    // Where the others' deliveries are: waiting, or in the dead letters with the reason.
    let expected = chain.transfers(0..=chain.head().await).await.len() as u64;
    let output = |status: &Value, name: &str| {
        status["outputs"].as_array().and_then(|all| all.iter().find(|o| o["name"] == name)).cloned().expect("an output")
    };
    let status = until("every refused one to be a dead letter, and the others' to be counted", || async {
        let status = process.status().await?;
        let waits = |name: &str| {
            let output = output(&status, name);
            output["backlog"].as_u64().unwrap_or(0) + output["parked"].as_u64().unwrap_or(0) > 0
        };
        let counted = output(&status, "gone")["dead"] == json!(expected) && waits("hanging") && waits("failing");
        counted.then_some(status)
    })
    .await;
    for waiting in ["hanging", "failing"] {
        assert_eq!(output(&status, waiting)["dead"], json!(0));
    }
    let (ok, listed) = process.cli(&["dead", "list"]);
    assert!(ok && listed.contains("410"), "{listed}");
    let first = listed.lines().nth(1).and_then(|line| line.split_whitespace().next()).expect("an id").to_owned();
    let (ok, shown) = process.cli(&["dead", "show", &first]);
    assert!(ok && shown.contains("410") && shown.contains("erc20-transfers.transfers"), "{shown}");
    // It is there again: what was given up is sent once more, in order, with the same ids.
    gone.otherwise(Answer::Status(204));
    let refused: Vec<String> = gone.received().iter().map(|r| r.header("webhook-id").to_owned()).collect();
    let (ok, said) = process.cli(&["dead", "retry", "--all"]);
    assert!(ok, "{said}");
    holds("what was given up", &gone, &chain).await;
    let again: Vec<String> =
        gone.received().iter().filter(|r| r.accepted()).map(|r| r.header("webhook-id").to_owned()).collect();
    assert_eq!(again.iter().filter(|id| refused.contains(id)).count(), again.len(), "with other ids");
    let events: Vec<u64> = gone
        .received()
        .iter()
        .filter(|r| r.accepted())
        .map(|r| r.event()["cursor"].as_str().and_then(|c| c.parse().ok()).expect("a cursor"))
        .collect();
    assert!(events.is_sorted(), "one token, one lane: {events:?}");
}
