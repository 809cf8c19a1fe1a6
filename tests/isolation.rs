//! Promise 5 beyond one delivery: an output that is away for long pauses what feeds it, and nothing else; and what was
//! given up can be sent again, or dropped, by a person.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::anvil::Anvil;
use crate::harness::chain::{Chain, Town, Transfer, ether};
use crate::harness::nats::Nats;
use crate::harness::process::{Ledger, Process, folder};
use crate::harness::receiver::{Answer, Received, Receiver};
use crate::harness::until;

fn chain_config(anvil: &Anvil) -> String {
    let rpc = anvil.ws();
    format!("[chain.local]\nrpc = \"{rpc}\"\npoll_ms = 50\nstart = 0\nfinality = {{ depth = 40 }}\n")
}

fn webhook(name: &str, receiver: &Receiver, more: &str) -> String {
    format!("[output.{name}]\ntype = \"webhook\"\nurl = \"{}\"\nallow_private = true\n{more}\n", receiver.url())
}

fn route(from: &str, to: &str, when: &str) -> String {
    format!("[[route]]\nfrom = \"{from}.transfers\"\nto = [\"{to}\"]\nwhen = {when}\n")
}

fn accepted(receiver: &Receiver) -> Vec<Value> {
    receiver.received().iter().filter(|r| r.accepted()).map(Received::event).collect()
}

fn transfers(receiver: &Receiver) -> Vec<Transfer> {
    Ledger::of(&accepted(receiver)).transfers()
}

/// A plugin on the one chain, as `status` has it.
fn plugin<'a>(status: &'a Value, name: &str) -> &'a Value {
    let all = status["plugins"].as_array().expect("plugins");
    all.iter().find(|p| p["name"] == name).map_or(&Value::Null, |p| &p["chains"][0])
}

fn output(status: &Value, name: &str) -> Value {
    let all = status["outputs"].as_array().expect("outputs");
    all.iter().find(|o| o["name"] == name).cloned().expect("an output of the configuration")
}

async fn at_head(process: &Process, chain: &Chain, name: &str) {
    let hash = chain.hash(chain.head().await).await.to_string();
    until("the plugin to reach the head", || async {
        (plugin(&process.status().await?, name)["cursor"]["hash"] == json!(hash)).then_some(())
    })
    .await;
}

/// The destination that is away, and how it comes back.
enum Away {
    /// Answers, and nothing is one.
    Failing(Receiver),
    /// Takes the request and is silent.
    Hanging(Receiver),
    /// Is not there when the program starts.
    Absent(Nats),
}

const LIMIT: u64 = 30;

impl Away {
    fn config(&self) -> String {
        match self {
            Self::Failing(receiver) | Self::Hanging(receiver) => webhook("away", receiver, "timeout_ms = 1000"),
            Self::Absent(nats) => format!("[output.away]\ntype = \"nats\"\nurl = \"{}\"\n", nats.url()),
        }
    }

    async fn come_back(&mut self) {
        match self {
            Self::Failing(receiver) | Self::Hanging(receiver) => receiver.otherwise(Answer::Status(204)),
            Self::Absent(nats) => nats.restart().await,
        }
    }

    async fn holds(&self) -> Vec<Transfer> {
        match self {
            Self::Failing(receiver) | Self::Hanging(receiver) => transfers(receiver),
            Self::Absent(nats) => {
                let ledger = Ledger::of(&nats.messages("CHAINWEIR").await.unwrap_or_default());
                assert_eq!(ledger.repeats, 0, "a queue holds a message twice");
                ledger.transfers()
            }
        }
    }
}

async fn a_full_backlog_pauses_what_feeds_it(seed: u64, mut away: Away) {
    let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let mut town = Town::found(&chain, seed).await;
    let beside = Receiver::start().await;
    let folder = folder(&["erc20-transfers", "native-transfers"]);
    let config = format!("[journal]\nbacklog_limit = {LIMIT}\n\n")
        + &chain_config(&anvil)
        + &away.config()
        + &webhook("beside", &beside, "")
        + &route("erc20-transfers", "away", "\"latest\"")
        + &route("native-transfers", "beside", "\"latest\"");
    let process = Process::start(folder.path(), &config).await;
    let paused = |status: &Value| {
        let plugin = plugin(status, "erc20-transfers");
        let why = plugin["why"].as_str().unwrap_or_default();
        (plugin["state"] == "paused" && why.contains("output 'away'")).then(|| plugin["cursor"]["number"].clone())
    };
    for _ in 0..40 {
        town.block(&chain, 4).await;
    }
    until("more to wait than may", || async {
        (output(&process.status().await?, "away")["backlog"].as_u64() >= Some(LIMIT)).then_some(())
    })
    .await;
    at_head(&process, &chain, "native-transfers").await;
    for _ in 0..3 {
        town.block(&chain, 4).await;
    }
    // What was under way when it paused ends yet.
    let stopped_at = until("it to pause", || async {
        let at = paused(&process.status().await?)?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        (paused(&process.status().await?)? == at).then_some(at)
    })
    .await;
    let (ok, said) = process.cli(&["status"]);
    assert!(ok && said.contains("output 'away'"), "{said}");

    // The plugin beside goes on, and so does its receiver.
    for _ in 0..10 {
        let before = beside.received().len();
        chain.send(&ether(chain.accounts[0], chain.accounts[1], 7)).await;
        town.block(&chain, 3).await;
        beside.wait_for(before + 1).await;
    }
    at_head(&process, &chain, "native-transfers").await;
    let still = plugin(&process.status().await.expect("it answers"), "erc20-transfers").clone();
    assert_eq!((&still["state"], &still["cursor"]["number"]), (&json!("paused"), &stopped_at), "{still}");
    // What it holds is orphaned meanwhile, and it does not know that it will go on in another life.
    town.reorg(&chain, 25, 2).await;
    let process = if seed.is_multiple_of(2) {
        process.kill();
        Process::start(folder.path(), &config).await
    } else {
        process
    };

    away.come_back().await;
    at_head(&process, &chain, "erc20-transfers").await;
    let truth = chain.transfers(0..=chain.head().await).await;
    until("all of it to be delivered", || async { (away.holds().await == truth).then_some(()) }).await;
    until("nothing to be counted as waiting", || async {
        let output = output(&process.status().await?, "away");
        (output["backlog"] == json!(0) && output["parked"] == json!(0) && output["state"] == "ok").then_some(())
    })
    .await;
    assert_eq!(output(&process.status().await.expect("it answers"), "away")["dead"], json!(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_that_fails_for_long_pauses_the_plugin_that_feeds_it() {
    let receiver = Receiver::start().await;
    receiver.otherwise(Answer::Status(500));
    a_full_backlog_pauses_what_feeds_it(41, Away::Failing(receiver)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_that_hangs_for_long_pauses_the_plugin_that_feeds_it() {
    let receiver = Receiver::start().await;
    receiver.otherwise(Answer::Hang);
    a_full_backlog_pauses_what_feeds_it(42, Away::Hanging(receiver)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_that_was_never_there_pauses_the_plugin_that_feeds_it() {
    let Some(mut nats) = Nats::start(None).await else { return };
    nats.kill();
    a_full_backlog_pauses_what_feeds_it(43, Away::Absent(nats)).await;
}

/// What waits for its time is no backlog: a pause would be for ever, for the head would never pass it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_due_yet_fills_no_backlog() {
    let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let mut town = Town::found(&chain, 44).await;
    let receiver = Receiver::start().await;
    let folder = folder(&["erc20-transfers"]);
    let config = String::from("[journal]\nbacklog_limit = 10\n\n")
        + &chain_config(&anvil)
        + &webhook("late", &receiver, "")
        + &route("erc20-transfers", "late", "\"finalized\"");
    let process = Process::start(folder.path(), &config).await;
    for _ in 0..100 {
        town.block(&chain, 4).await;
    }
    at_head(&process, &chain, "erc20-transfers").await;
    let truth = chain.transfers(0..=chain.head().await - 40).await;
    until("what is final to be delivered", || async { (transfers(&receiver) == truth).then_some(()) }).await;
}

fn letters(process: &Process, output: &str) -> Value {
    process.cli_json(&["dead", "list", "--output", output])
}

fn ids(process: &Process, output: &str) -> Vec<i64> {
    letters(process, output).as_array().expect("a list").iter().map(|l| l["id"].as_i64().expect("an id")).collect()
}

fn cursor(event: &Value) -> u64 {
    event["cursor"].as_str().and_then(|c| c.parse().ok()).expect("a cursor")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_sent_again_in_order_or_dropped_even_over_a_crash() {
    let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let mut town = Town::found(&chain, 45).await;
    let (shop, other) = (Receiver::start().await, Receiver::start().await);
    shop.script((0..6).map(|_| Answer::Status(410)));
    other.script([Answer::Status(400)]);
    let folder = folder(&["erc20-transfers"]);
    let config = chain_config(&anvil)
        + &webhook("shop", &shop, "")
        + &webhook("other", &other, "")
        + &route("erc20-transfers", "shop", "\"latest\"")
        + &route("erc20-transfers", "other", "\"latest\"");
    let process = Process::start(folder.path(), &config).await;
    for _ in 0..5 {
        town.block(&chain, 4).await;
    }
    let truth = chain.transfers(0..=chain.head().await).await;
    shop.wait_for(truth.len()).await;
    until("the refused ones to be dead letters", || async {
        (ids(&process, "shop").len() == 6 && ids(&process, "other").len() == 1).then_some(())
    })
    .await;
    assert_eq!(transfers(&shop).len(), truth.len() - 6, "the others passed");
    let dead = ids(&process, "shop");
    let (ok, shown) = process.cli(&["dead", "show", &dead[2].to_string()]);
    assert!(ok && shown.contains("410") && shown.contains(&truth[2].tx.to_string()), "{shown}");

    // One that nobody has is named; nothing is done then.
    let unknown = 1_000_000.to_string();
    for command in ["retry", "drop"] {
        let (ok, said) = process.cli(&["dead", command, &dead[0].to_string(), &unknown]);
        assert!(!ok && said.contains(&unknown), "{said}");
    }
    assert_eq!(ids(&process, "shop"), dead);

    // Shown first: those of the output that have the word in their reason, and nothing is done.
    let (ok, said) =
        process.cli(&["dead", "retry", "--output", "shop", "--reason", "410", "--since", "2026-01-01", "--dry-run"]);
    assert!(ok && said.contains("to these 6") && said.contains("nothing was done"), "{said}");
    for none in [["--plugin", "other"], ["--before", "2026-01-01"], ["--reason", "413"]] {
        let (ok, said) = process.cli(&[&["dead", "drop"][..], &none].concat());
        assert!(!ok && said.contains("no such dead letters"), "{said}");
    }
    assert_eq!(ids(&process, "shop"), dead);

    // Given up for good: never sent.
    let (ok, said) = process.cli(&["dead", "drop", &dead[1].to_string()]);
    assert!(ok, "{said}");
    // Sent again while it hangs, and the process dies: still owed, and in the order in which it was said.
    shop.otherwise(Answer::Hang);
    let before = shop.received().len();
    let (ok, said) = process.cli(&["dead", "retry", &dead[4].to_string(), &dead[0].to_string(), &dead[2].to_string()]);
    assert!(ok, "{said}");
    shop.wait_for(before + 1).await;
    process.kill();
    shop.otherwise(Answer::Status(204));
    let before = shop.received().len();
    let process = Process::start(folder.path(), &config).await;
    let got = |from: usize| shop.received()[from..].iter().map(Received::event).collect::<Vec<_>>();
    until("three to come again", || async {
        let wanted = [&truth[0], &truth[2], &truth[4]];
        let net = transfers(&shop);
        wanted.iter().all(|t| net.contains(t)).then_some(())
    })
    .await;
    let again = got(before);
    assert!(again.iter().map(cursor).is_sorted(), "{again:?}");
    assert_eq!(ids(&process, "shop"), [dead[3], dead[5]]);

    // Refused once more: a dead letter again, with its new reason.
    shop.script([Answer::Status(422)]);
    let (ok, said) = process.cli(&["dead", "retry", &dead[3].to_string()]);
    assert!(ok, "{said}");
    until("it to be a dead letter again", || async {
        let all = letters(&process, "shop");
        let again = |letter: &Value| letter["why"].as_str().is_some_and(|why| why.contains("422"));
        all.as_array()?.iter().any(again).then_some(())
    })
    .await;
    let (ok, said) = process.cli(&["dead", "retry", "--all"]);
    assert!(ok, "{said}");
    let without = |dropped: &[usize]| {
        let kept = truth.iter().enumerate().filter(|(n, _)| !dropped.contains(n));
        kept.map(|(_, t)| t.clone()).collect::<Vec<_>>()
    };
    until("the rest to be delivered", || async {
        (transfers(&shop) == without(&[1]) && transfers(&other) == truth).then_some(())
    })
    .await;
    until("no letter to be left", || async {
        let (_, said) = process.cli(&["dead", "list"]);
        said.contains("no dead letters").then_some(())
    })
    .await;
    let (status, took) = process.terminate().await;
    assert!(status.success() && took < Duration::from_secs(10), "{status} after {took:?}");
}
