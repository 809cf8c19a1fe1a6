//! Promises 1 and 2: whatever the chain does, what a plugin holds and what has left equal a run that saw the
//! final chain only. A seeded chain in memory, the real router, journal, lanes, plugin and sinks.
//!
//! `CHAINWEIR_SEED=n` replays one run, `CHAINWEIR_SEEDS=n` sets how many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use alloy_primitives::U256;
use chainweir::config::Config;
use chainweir::model::{ChainId, Op};
use chainweir::router::handle::Command;
use chainweir::router::{self, Running};
use chainweir::source::Source;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::harness::sim::{SimChain, expected_totals};
use crate::harness::{guests, ndjson, until};

const CONFIG: &str = r#"
[http]
listen = "off"

[chain.sim]
rpc = "http://127.0.0.1:1"
start = 0

[output.now]
type = "file"
path = "now.ndjson"

[output.third]
type = "file"
path = "third.ndjson"

[output.final]
type = "file"
path = "final.ndjson"

[output.store]
type = "sqlite"
path = "store.db"

[[route]]
from = "erc20-transfers.transfers"
to = ["now", "store"]

[[route]]
from = "erc20-transfers.transfers"
to = ["third"]
when = { confirmations = 3 }

[[route]]
from = "erc20-transfers.transfers"
to = ["final"]
when = "finalized"
"#;

async fn start(dir: &Path, chain: &Arc<SimChain>) -> Running {
    let config = Config::parse(CONFIG, dir, "chainweir.toml").expect("the configuration is right");
    let given = BTreeMap::from([("sim".to_owned(), chain.clone() as Arc<dyn Source>)]);
    router::start_with(config, given).await.expect("the router starts")
}

/// Waits until the plugin stands at the tip and every lane has nothing left that is due.
async fn settled(running: &Running, chain: &SimChain, path: &Path) {
    let tip = chain.tip();
    let handle = running.handle.clone();
    let watch = tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_secs(20)).await;
        println!("still waiting: {}", serde_json::to_string_pretty(&**handle.status.borrow()).unwrap());
    });
    until("the plugin to reach the tip", || async {
        let status = running.handle.status.borrow().clone();
        let consumer = status.plugins.first()?.chains.first()?;
        (consumer.cursor.as_ref()?.hash == tip.hash.to_string()).then_some(())
    })
    .await;
    watch.abort();
    // The first output is due at once: when its file holds everything, so does the journal.
    let last = running.handle.journal.tracks().unwrap()[0].last_offset;
    until("the file to hold the last entry", || async {
        (last == 0 || ndjson(&path.join("now.ndjson")).last()?["cursor"].as_str()? == last.to_string()).then_some(())
    })
    .await;
}

/// Applies and retracts by emission, and insists that nothing is applied twice or retracted unheard.
fn net(events: &[Value]) -> BTreeSet<(u64, String)> {
    let mut held: BTreeMap<String, (u64, String)> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for event in events {
        let id = event["id"].as_str().unwrap().to_owned();
        assert!(seen.insert(id), "delivered twice: {event}");
        let emission = event["emission"].as_str().unwrap().to_owned();
        let key = (
            event["block"].as_str().unwrap().parse().unwrap(),
            format!("{}/{}", event["blockhash"].as_str().unwrap(), event["data"]["log_index"]),
        );
        match event["op"].as_str().unwrap() {
            "apply" => assert!(held.insert(emission, key).is_none(), "applied twice: {event}"),
            "retract" => assert_eq!(held.remove(&emission), Some(key), "retracted unheard: {event}"),
            other => panic!("unknown op {other}"),
        }
    }
    held.into_values().collect()
}

/// Says what differs, not all there is.
fn same(found: &BTreeSet<(u64, String)>, expected: &BTreeSet<(u64, String)>, what: &str) {
    let (missing, extra) = (expected.difference(found), found.difference(expected));
    let (missing, extra): (Vec<_>, Vec<_>) = (missing.collect(), extra.collect());
    assert!(missing.is_empty() && extra.is_empty(), "{what}: missing {missing:?}, invented {extra:?}");
}

async fn check(running: &Running, chain: &SimChain, dir: &Path) {
    settled(running, chain, dir).await;
    let logs = chain.canonical_logs();
    let tip = chain.tip().number;
    let all: BTreeSet<(u64, String)> =
        logs.iter().map(|(at, log)| (at.number, format!("{}/{}", at.hash, log.index))).collect();
    let up_to = |number: u64| all.iter().filter(|(n, _)| *n <= number).cloned().collect::<BTreeSet<_>>();

    same(&net(&ndjson(&dir.join("now.ndjson"))), &all, "what left at once");
    until("the third confirmations", || async {
        (net(&ndjson(&dir.join("third.ndjson"))) == up_to(tip.saturating_sub(2))).then_some(())
    })
    .await;
    // The chain's own: the follower hears of it after the head, and the picture is drawn later still.
    let finalized = chain.finalized();
    until("what is final", || async {
        let out = ndjson(&dir.join("final.ndjson"));
        assert!(out.iter().all(|e| e["op"] == "apply"), "what is final is never retracted");
        (net(&out) == up_to(finalized)).then_some(())
    })
    .await;
    until("the store's rows", || async {
        let db = rusqlite::Connection::open(dir.join("store.db")).ok()?;
        let mut rows = db.prepare("SELECT _block, _block_hash, log_index FROM erc20_transfers_transfers").ok()?;
        let rows: BTreeSet<(u64, String)> = rows
            .query_map([], |r| Ok((r.get(0)?, format!("{}/{}", r.get::<_, String>(1)?, r.get::<_, i64>(2)?))))
            .ok()?
            .collect::<Result<_, _>>()
            .ok()?;
        (rows == all).then_some(())
    })
    .await;

    // The journal's own net, and the plugin's state.
    let journal = &running.handle.journal;
    let track = &journal.tracks().unwrap()[0];
    let (_, entries) = journal.entries(track.id, 0, usize::MAX >> 1, None).unwrap();
    let mut ids = BTreeSet::new();
    for entry in &entries {
        match entry.op {
            Op::Apply => assert!(ids.insert(entry.emission), "an emission has one id for life"),
            Op::Retract => assert!(ids.remove(&entry.emission)),
            Op::Pending => unreachable!("nothing here is pending"),
        }
    }
    assert_eq!(ids.len(), all.len());
    let consumer = journal.consumers().unwrap().remove(0);
    let state: Vec<Value> = journal
        .state_scan(consumer.id, b"", None, 1000)
        .unwrap()
        .into_iter()
        .map(|(_, value)| serde_json::from_slice(&value).expect("the totals are JSON"))
        .collect();
    let mut found: Vec<(u64, U256)> =
        state.iter().map(|t| (t["count"].as_u64().unwrap(), t["sum"].as_str().unwrap().parse().unwrap())).collect();
    let mut expected: Vec<(u64, U256)> = expected_totals(&logs).into_values().collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "the plugin's state");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_and_net_output_equal_a_run_that_saw_the_final_chain_only() {
    let one: Option<u64> = std::env::var("CHAINWEIR_SEED").ok().and_then(|s| s.parse().ok());
    let runs = std::env::var("CHAINWEIR_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(6);
    let seeds: Vec<u64> = match one {
        Some(seed) => vec![seed],
        None => (0..runs).map(|_| rand::random()).collect(),
    };
    let wasm = guests::wasm("erc20-transfers");
    for seed in seeds {
        println!("CHAINWEIR_SEED={seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("plugins")).unwrap();
        std::fs::copy(&wasm, dir.path().join("plugins/erc20-transfers.wasm")).unwrap();
        let chain = Arc::new(SimChain::new(seed, 16));
        chain.grow(rng.random_range(1..200));
        let mut running = start(dir.path(), &chain).await;
        for _ in 0..8 {
            chain.fail_one_in(rng.random_range(5..50));
            for _ in 0..rng.random_range(1..20) {
                match rng.random_range(0..3) {
                    0 => chain.grow(rng.random_range(1..6)),
                    1 => drop(chain.reorg(rng.random_range(1..16), rng.random_range(0..3))),
                    _ => tokio::time::sleep(std::time::Duration::from_millis(rng.random_range(0..30))).await,
                }
            }
            if rng.random_bool(0.4) {
                running.stop().await.expect("it stops in order");
                // What happened while it was down.
                chain.grow(rng.random_range(0..30));
                chain.reorg(rng.random_range(1..16), rng.random_range(0..3));
                running = start(dir.path(), &chain).await;
            }
            chain.fail_one_in(0);
            check(&running, &chain, dir.path()).await;
        }
        running.stop().await.expect("it stops in order");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reorg_of_final_blocks_halts_the_chain_until_a_person_accepts_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("plugins")).unwrap();
    std::fs::copy(guests::wasm("erc20-transfers"), dir.path().join("plugins/erc20-transfers.wasm")).unwrap();
    let chain = Arc::new(SimChain::new(7, 4));
    chain.grow(40);
    let running = start(dir.path(), &chain).await;
    settled(&running, &chain, dir.path()).await;
    let before = *running.handle.journal.tail().borrow();

    chain.deep_reorg(10);
    until("the chain to halt", || async {
        let status = running.handle.status.borrow().clone();
        (status.chains[0].state == "halted" && status.chains[0].why.is_some() && !status.ready).then_some(())
    })
    .await;
    // It never guesses: nothing is said of the other branch, nor taken back, by itself or after a restart.
    running.stop().await.expect("it stops in order");
    let running = start(dir.path(), &chain).await;
    until("the chain to halt again", || async {
        (running.handle.status.borrow().chains[0].state == "halted").then_some(())
    })
    .await;
    assert_eq!(*running.handle.journal.tail().borrow(), before);

    let said = running.handle.ask(Command::AcceptReorg { chain: "sim".into() }).await;
    assert!(said.is_ok(), "{said:?}");
    settled(&running, &chain, dir.path()).await;
    chain.grow(5);
    settled(&running, &chain, dir.path()).await;
    running.stop().await.expect("it stops in order");
    // The accepted chain is the one that counts from now on.
    let running = start(dir.path(), &chain).await;
    chain.grow(1);
    settled(&running, &chain, dir.path()).await;
    running.stop().await.expect("it stops in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reorg_that_goes_below_where_a_plugin_began_tells_it_nothing_of_the_blocks_before() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("plugins")).unwrap();
    std::fs::copy(guests::wasm("erc20-transfers"), dir.path().join("plugins/erc20-transfers.wasm")).unwrap();
    let chain = Arc::new(SimChain::new(3, 16));
    chain.grow(22);
    let config = CONFIG.replace("start = 0", "start = 20");
    let config = Config::parse(&config, dir.path(), "chainweir.toml").expect("the configuration is right");
    let given = BTreeMap::from([("sim".to_owned(), chain.clone() as Arc<dyn Source>)]);
    let running = router::start_with(config, given).await.expect("the router starts");
    settled(&running, &chain, dir.path()).await;
    for depth in [8, 12, 3] {
        chain.reorg(depth, 1);
        settled(&running, &chain, dir.path()).await;
        let logs = chain.canonical_logs();
        let truth: BTreeSet<(String, u32)> =
            logs.iter().filter(|(at, _)| at.number >= 20).map(|(at, log)| (at.hash.to_string(), log.index)).collect();
        assert_eq!(net_of(&running, &chain), truth);
    }
    running.stop().await.expect("it stops in order");
}

/// What the journal says of one chain: the net of its entries, by block hash and log index.
fn net_of(running: &Running, chain: &SimChain) -> BTreeSet<(String, u32)> {
    let journal = &running.handle.journal;
    let Some(track) = journal.tracks().unwrap().into_iter().find(|t| t.chain == chain.chain()) else {
        return BTreeSet::new();
    };
    let (_, entries) = journal.entries(track.id, 0, usize::MAX >> 1, None).unwrap();
    let mut net = BTreeMap::new();
    for entry in entries {
        match entry.op {
            Op::Apply => {
                let payload: Value = serde_json::from_slice(&entry.payload).unwrap();
                let key = (entry.block.hash.to_string(), payload["log_index"].as_u64().unwrap() as u32);
                assert!(net.insert(entry.emission, key).is_none());
            }
            Op::Retract => assert!(net.remove(&entry.emission).is_some()),
            Op::Pending => unreachable!("nothing here is pending"),
        }
    }
    net.into_values().collect()
}

async fn at_tip(running: &Running, chain: &SimChain) {
    until("the plugin to reach this chain's tip", || async {
        let status = running.handle.status.borrow().clone();
        let plugin = status.plugins.first()?;
        let consumer = plugin.chains.iter().find(|c| c.chain == chain.chain().to_string())?;
        (consumer.cursor.as_ref()?.hash == chain.tip().hash.to_string()).then_some(())
    })
    .await;
    let truth: BTreeSet<(String, u32)> =
        chain.canonical_logs().iter().map(|(at, log)| (at.hash.to_string(), log.index)).collect();
    assert_eq!(net_of(running, chain), truth);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_chains_outage_or_halt_changes_nothing_for_another() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("plugins")).unwrap();
    std::fs::copy(guests::wasm("erc20-transfers"), dir.path().join("plugins/erc20-transfers.wasm")).unwrap();
    let names = ["calm", "down", "torn"];
    let chains = [11, 12, 13].map(|id| Arc::new(SimChain::of(ChainId(id), id, 8)));
    let table = |name: &str| format!("[chain.{name}]\nrpc = \"http://127.0.0.1:1\"\nstart = 0\n");
    let text = format!("[http]\nlisten = \"off\"\n{}", names.map(table).concat());
    let config = Config::parse(&text, dir.path(), "chainweir.toml").expect("the configuration is right");
    let given = names.iter().zip(&chains).map(|(name, chain)| ((*name).to_owned(), chain.clone() as Arc<dyn Source>));
    let running = router::start_with(config, given.collect()).await.expect("the router starts");
    // Nothing is said of a provider before it was asked.
    assert!(running.handle.status.borrow().chains.iter().all(|c| c.state != "unreachable"));
    let [calm, down, torn] = &chains;
    // Each at its own pace.
    for (chain, blocks) in chains.iter().zip([40, 3, 400]) {
        chain.grow(blocks);
    }
    for chain in &chains {
        at_tip(&running, chain).await;
    }

    down.fail_one_in(1);
    torn.deep_reorg(20);
    let state = |name: &'static str| {
        let status = running.handle.status.borrow().clone();
        let chain = status.chains.iter().find(|c| c.name == name).expect("it is configured").clone();
        (chain.state.to_string(), chain.why.is_some())
    };
    until("one chain to halt, and one to have no provider", || async {
        (state("torn").0 == "halted" && state("down").1).then_some(())
    })
    .await;
    let frozen = (net_of(&running, down), net_of(&running, torn));
    for round in 0..40 {
        calm.grow(round % 3 + 1);
        if round % 4 == 0 {
            calm.reorg(round % 7 + 1, 1);
        }
        down.grow(1);
        at_tip(&running, calm).await;
        assert_eq!(state("calm"), ("following".to_owned(), false));
    }
    assert_eq!((net_of(&running, down), net_of(&running, torn)), frozen, "who has no word says nothing");
    assert_eq!(state("torn").0, "halted");

    // And each comes back alone.
    down.fail_one_in(0);
    at_tip(&running, down).await;
    assert_eq!(state("torn").0, "halted");
    let said = running.handle.ask(Command::AcceptReorg { chain: "torn".into() }).await;
    assert!(said.is_ok(), "{said:?}");
    torn.grow(1);
    until("the torn chain to go on", || async { (state("torn").0 == "following").then_some(()) }).await;
    calm.grow(1);
    at_tip(&running, calm).await;
    running.stop().await.expect("it stops in order");
}
