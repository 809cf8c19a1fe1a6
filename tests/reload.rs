//! Promise 4: a better plugin can always be dropped in. The real program on a real chain with reorgs: files good and
//! bad, written in every way; what runs goes on until something better is proven, and no event is missed or doubled.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::anvil::Anvil;
use crate::harness::builds::{digest, hostile, other_world, put, variant};
use crate::harness::chain::{Chain, Town, ether};
use crate::harness::process::{Ledger, Process};
use crate::harness::{guests, ndjson, until};

const MIB: u64 = 1 << 20;
/// Compiled code of a plugin is some 0.5 MiB: a leak of it in 200 reloads is above this.
const GROWTH: u64 = 24 * MIB;

/// SplitMix64, as [`Town`] has it, for what is not on the chain.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }
}

fn seed() -> u64 {
    let given = std::env::var("CHAINWEIR_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
        now.as_nanos() as u64 % 1_000_000
    });
    println!("CHAINWEIR_SEED={seed}");
    seed
}

/// What `status` says of a plugin.
async fn plugin(process: &Process, name: &str) -> Option<Value> {
    let status = process.status().await.expect("it answers");
    status["plugins"].as_array()?.iter().find(|p| p["name"] == name).cloned()
}

async fn until_plugin(process: &Process, name: &str, what: &str, wanted: impl Fn(Option<&Value>) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let found = plugin(process, name).await;
        if wanted(found.as_ref()) {
            return found.unwrap_or_default();
        }
        if began.elapsed() > Duration::from_secs(30) {
            let status = process.status().await.unwrap_or_default();
            panic!("waited for {name}: {what}\n{:#}\n{:#}", status["plugins"], status["refused_files"]);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn until_running(process: &Process, name: &str, wasm: &[u8], what: &str) {
    let digest = digest(wasm);
    until_plugin(process, name, what, |p| p.is_some_and(|p| p["digest"] == digest && p["refused"].is_null())).await;
}

/// At the head, by hash.
async fn until_at_head(process: &Process, chain: &Chain, name: &str) {
    let hash = chain.hash(chain.head().await).await.to_string();
    let there = |p: Option<&Value>| p.is_some_and(|p| p["chains"][0]["cursor"]["hash"] == hash);
    until_plugin(process, name, "at the head", there).await;
}

/// Ways in which a file comes to have its content.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// `cp`: cut to nothing, then written.
    InPlace,
    /// `plugin build`, `rsync`: beside it, then renamed.
    Renamed,
    /// vim: the old one is moved away, the new one written under the name, the old one removed.
    Editor,
    /// A slow copy: the first half stands there for a while.
    Slow,
}

const WAYS: [Way; 4] = [Way::InPlace, Way::Renamed, Way::Editor, Way::Slow];

async fn write(way: Way, dir: &Path, name: &str, wasm: &[u8]) {
    let path = dir.join(name);
    let done = match way {
        Way::InPlace => std::fs::write(&path, wasm),
        Way::Renamed => return put(dir, name, wasm),
        Way::Editor => {
            let backup = dir.join(format!("{name}~"));
            std::fs::write(dir.join("4913"), "")
                .and_then(|()| std::fs::remove_file(dir.join("4913")))
                .expect("a probe");
            let moved = std::fs::rename(&path, &backup).is_ok();
            let written = std::fs::write(&path, wasm);
            if moved {
                std::fs::remove_file(&backup).expect("the backup is ours");
            }
            written
        }
        Way::Slow => {
            std::fs::write(&path, &wasm[..wasm.len() / 2]).expect("the first half");
            tokio::time::sleep(Duration::from_millis(250)).await;
            std::fs::write(&path, wasm)
        }
    };
    done.expect("a file in the test's folder");
}

/// A kind of bad file: what it is, its bytes by the plugin's name and the good file, words of the reason.
type Bad = (&'static str, fn(&str, &[u8]) -> Vec<u8>, &'static str);

const BAD: &[Bad] = &[
    ("half written", |_, good| good[..good.len() / 2].to_vec(), "truncated"),
    ("cut to 8 bytes", |_, good| good[..8].to_vec(), "without a component type"),
    ("empty", |_, _| vec![], "the file is empty"),
    ("not wasm", |_, _| b"<html>404</html>".to_vec(), "not WebAssembly"),
    ("wrong world", |_, good| other_world(good), "this host speaks 0.1.0"),
    ("traps at start", |name, _| evil(name, "describe-trap"), "in `describe`"),
    ("traps on recent blocks", |name, _| evil(name, "trap"), "its trial on"),
    ("lies of its layout", |name, _| evil(name, "bad-layout"), "batch layout 2"),
    ("lies of its streams", |name, _| evil(name, "bad-stream"), "names stream 77"),
    ("another plugin", |_, _| evil("another", ""), "it calls itself 'another', but this file provides"),
    (
        "another state",
        |name, _| hostile(&format!(r#"{{"name":"{name}","state_version":"9"}}"#)),
        "it has state version 9",
    ),
];

fn evil(name: &str, evil: &str) -> Vec<u8> {
    hostile(&format!(r#"{{"name":"{name}","mode":"count","evil":"{evil}"}}"#))
}

/// Reloads one plugin again and again; after each the right one runs. Gives memory held after each.
async fn drive(process: &Process, dir: &Path, name: &str, good: &[u8], mut dice: Dice, times: u32) -> Vec<u64> {
    let file = format!("{name}.wasm");
    let mut running = good.to_vec();
    let mut held = Vec::new();
    for n in 0..times {
        let way = *dice.one_of(&WAYS);
        match dice.below(20) {
            0 if n > 0 => {
                std::fs::remove_file(dir.join(&file)).expect("it is there");
                until_plugin(process, name, "unloaded", |p| p.is_none()).await;
                running = variant(good, n);
                write(way, dir, &file, &running).await;
                until_running(process, name, &running, "it came back").await;
            }
            1..10 => {
                let (what, bytes, words) = dice.one_of(BAD);
                let bytes = bytes(name, good);
                write(way, dir, &file, &bytes).await;
                let digest_of_bad = digest(&bytes);
                let refused = |p: Option<&Value>| p.is_some_and(|p| p["refused"]["digest"] == digest_of_bad);
                let found = until_plugin(process, name, what, refused).await;
                let why = found["refused"]["why"].as_str().unwrap_or_default();
                assert!(why.contains(words), "{what} ({way:?}): {why}");
                assert_eq!(found["digest"], digest(&running), "{what} ({way:?}): the old one goes on");
            }
            _ => {
                running = variant(good, n);
                write(way, dir, &file, &running).await;
                until_running(process, name, &running, &format!("good file {n} ({way:?})")).await;
            }
        }
        held.push(process.resident_bytes());
    }
    // Whatever was last: a good one ends it.
    running = variant(good, times);
    write(Way::Renamed, dir, &file, &running).await;
    until_running(process, name, &running, "the last one").await;
    held
}

fn median(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

/// Counts events in its state: each event's emission says how many there were, itself among them. What the chain
/// itself has must be counted 1, 2, 3 ... in chain order.
async fn counted(process: &Process, chain: &Chain, stream: &str) {
    let events = process.feed(stream).await;
    let ledger = Ledger::of(&events);
    assert_eq!(ledger.repeats, 0);
    let number = |v: &Value| v.as_str().expect("a height").parse::<u64>().expect("a height");
    let mut all: Vec<(u64, u64, String)> = (ledger.net().iter())
        .map(|e| (e["data"]["seen"].as_u64().expect("a count"), number(&e["block"]), e["blockhash"].to_string()))
        .collect();
    all.sort();
    let mut expected = Vec::new();
    for at in 0..=chain.head().await {
        let block = chain.block(at).await;
        let transactions = block["transactions"].as_array().map_or(0, Vec::len);
        let logs = chain.logs(at..=at, None, None).await.len();
        for _ in 0..1 + transactions + logs {
            expected.push((expected.len() as u64 + 1, at, block["hash"].to_string()));
        }
    }
    let different = all.iter().zip(&expected).position(|(a, b)| a != b);
    assert!(different.is_none(), "{:?} is not {:?}", different.map(|n| &all[n]), different.map(|n| &expected[n]));
    assert_eq!(all.len(), expected.len());
}

const COUNTER: &str = r#"{"name":"counter","mode":"count"}"#;
const TALLY: &str = r#"{"name":"tally","mode":"count"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_reloads_under_load_miss_and_double_nothing() {
    let seed = seed();
    // Finalized is 16 blocks behind the head; reorgs are shallower.
    let Some(anvil) = Anvil::start(&["--no-mining", "--slots-in-an-epoch", "8"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let mut town = Town::found(&chain, seed).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path().join("plugins");
    std::fs::create_dir(&dir).expect("a folder in it");
    let transfers = std::fs::read(guests::wasm("erc20-transfers")).expect("it was just built");
    put(&dir, "erc20-transfers.wasm", &transfers);
    let (counter, tally) = (hostile(COUNTER), hostile(TALLY));
    put(&dir, "counter.wasm", &counter);
    put(&dir, "tally.wasm", &tally);
    let config = format!(
        r#"
[chain.anvil]
rpc = "{}"
start = 0
[output.log]
type = "file"
path = "events.ndjson"
[[route]]
from = "erc20-transfers.transfers"
to = ["log"]
"#,
        anvil.ws()
    );
    let process = Process::start(folder.path(), &config).await;
    until_running(&process, "erc20-transfers", &transfers, "begin").await;
    until_running(&process, "counter", &counter, "begin").await;
    until_running(&process, "tally", &tally, "begin").await;

    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let load = tokio::spawn(async move {
        let (mut blocks, mut reorgs) = (0, 0);
        while !stopped.load(Ordering::Relaxed) {
            town.block(&chain, 3).await;
            blocks += 1;
            if blocks > 8 && town.below(8) == 0 {
                let depth = 1 + town.below(6);
                town.reorg(&chain, depth, 2).await;
                reorgs += 1;
            }
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        println!("{blocks} blocks, {reorgs} reorgs");
        chain
    });
    let times = if std::env::var_os("CHAINWEIR_LONG").is_some() { 700 } else { 67 };
    let (held, ..) = tokio::join!(
        drive(&process, &dir, "erc20-transfers", &transfers, Dice(seed), times),
        drive(&process, &dir, "counter", &counter, Dice(seed + 1), times),
        drive(&process, &dir, "tally", &tally, Dice(seed + 2), times),
    );
    stop.store(true, Ordering::Relaxed);
    let chain = load.await.expect("the load ends well");
    chain.mine(2).await;
    until_at_head(&process, &chain, "erc20-transfers").await;
    until_at_head(&process, &chain, "counter").await;
    until_at_head(&process, &chain, "tally").await;

    let fifth = held.len() / 5;
    let (early, last) = (median(&held[fifth..2 * fifth]), median(&held[4 * fifth..]));
    println!("memory: {} MiB early, {} MiB at the end", early / MIB, last / MIB);
    assert!(last < early + GROWTH, "it grows: {:?} MiB", held.iter().map(|b| b / MIB).collect::<Vec<_>>());

    let truth = chain.transfers(0..=chain.head().await).await;
    assert!(truth.len() > 100, "{} transfers are no load", truth.len());
    let feed = process.feed("erc20-transfers.transfers").await;
    let ledger = Ledger::of(&feed);
    assert_eq!((ledger.transfers(), ledger.repeats), (truth.clone(), 0));
    let lines = until("all of it to be in the file", || async {
        let lines = ndjson(&folder.path().join("events.ndjson"));
        (lines.len() >= feed.len()).then_some(lines)
    })
    .await;
    let ledger = Ledger::of(&lines);
    assert_eq!((ledger.transfers(), ledger.repeats), (truth, 0));
    counted(&process, &chain, "counter.one").await;
    counted(&process, &chain, "tally.one").await;
}

/// A command of the program itself, to the running one.
fn ask(process: &Process, args: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_chainweir")).args(args).args(["--url", &process.url]).output();
    let output = output.expect("the program runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

struct Quiet {
    chain: Chain,
    folder: tempfile::TempDir,
    dir: PathBuf,
    config: String,
    _anvil: Anvil,
}

impl Quiet {
    async fn new() -> Option<Self> {
        let anvil = Anvil::start(&["--no-mining"])?;
        let chain = Chain::connect(&anvil.http()).await;
        Town::found(&chain, 1).await;
        chain.mine(600).await;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let dir = folder.path().join("plugins");
        std::fs::create_dir(&dir).expect("a folder in it");
        let config = format!("[chain.anvil]\nrpc = \"{}\"\nstart = 0\n", anvil.ws());
        Some(Self { chain, folder, dir, config, _anvil: anvil })
    }

    fn put(&self, settings: &str) -> Vec<u8> {
        let wasm = hostile(settings);
        put(&self.dir, "counter.wasm", &wasm);
        wasm
    }
}

fn counter(version: &str, more: &str) -> String {
    format!(r#"{{"name":"counter","mode":"count","version":"{version}"{more}}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn rollback_is_one_command_and_comes_by_itself_when_the_new_one_faults_at_once() {
    let Some(world) = Quiet::new().await else { return };
    let first = world.put(&counter("1.0.0", ""));
    let process = Process::start(world.folder.path(), &world.config).await;
    until_running(&process, "counter", &first, "1.0.0").await;
    until_at_head(&process, &world.chain, "counter").await;
    let (done, said) = ask(&process, &["plugin", "rollback", "counter"]);
    assert!(!done && said.contains("no earlier version"), "{said}");

    // By a person.
    let second = world.put(&counter("2.0.0", ""));
    until_running(&process, "counter", &second, "2.0.0").await;
    world.chain.mine(3).await;
    until_at_head(&process, &world.chain, "counter").await;
    let (done, said) = ask(&process, &["plugin", "rollback", "counter"]);
    assert!(done && said.contains("counter runs version 1.0.0"), "{said}");
    let back = |p: Option<&Value>| p.is_some_and(|p| p["digest"] == digest(&first));
    let found = until_plugin(&process, "counter", "back at 1.0.0", back).await;
    assert_eq!(found["refused"]["digest"], digest(&second));
    let why = found["refused"]["why"].as_str().unwrap_or_default();
    assert!(why.contains("rolled back") && why.contains("until it changes"), "{why}");
    let (_, said) = ask(&process, &["plugin", "list"]);
    assert!(said.contains("1.0.0") && said.contains("rolled back"), "{said}");
    world.chain.mine(2).await;
    until_at_head(&process, &world.chain, "counter").await;

    // The file is still 2.0.0: a restart does not take it either.
    assert!(process.terminate().await.0.success());
    let process = Process::start(world.folder.path(), &world.config).await;
    let found = until_plugin(&process, "counter", "1.0.0 after a restart", back).await;
    assert_eq!(found["refused"]["digest"], digest(&second));

    // By itself: its trial goes well, since the block that it cannot stand is still to come.
    let head = world.chain.head().await;
    let third = world.put(&counter("3.0.0", &format!(r#","evil":"trap","at":[{}]"#, head + 3)));
    until_running(&process, "counter", &third, "3.0.0").await;
    world.chain.mine(5).await;
    let found = until_plugin(&process, "counter", "rolled back by itself", back).await;
    let why = found["refused"]["why"].as_str().unwrap_or_default();
    assert!(why.contains("it faulted in its first blocks") && why.contains("unreachable"), "{why}");
    until_at_head(&process, &world.chain, "counter").await;
    // Nothing to go back to is left, and 1.0.0 goes on.
    let (done, said) = ask(&process, &["plugin", "rollback", "counter"]);
    assert!(!done && said.contains("no earlier version"), "{said}");

    // All of it was counted once, whoever ran.
    counted(&process, &world.chain, "counter.one").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_state_version_waits_for_a_person() {
    let Some(mut world) = Quiet::new().await else { return };
    let first = world.put(&counter("1.0.0", ""));
    let process = Process::start(world.folder.path(), &world.config).await;
    until_running(&process, "counter", &first, "1.0.0").await;
    until_at_head(&process, &world.chain, "counter").await;

    let second = world.put(&counter("2.0.0", r#","state_version":"2""#));
    let refused = |p: Option<&Value>| p.is_some_and(|p| p["refused"]["digest"] == digest(&second));
    let found = until_plugin(&process, "counter", "refused for its state", refused).await;
    assert_eq!(found["digest"], digest(&first));
    let why = found["refused"]["why"].as_str().unwrap_or_default();
    assert!(why.contains("state version 2") && why.contains("upgrade = 2"), "{why}");
    world.chain.mine(2).await;
    until_at_head(&process, &world.chain, "counter").await;
    let (done, said) = ask(&process, &["plugin", "upgrade", "counter"]);
    assert!(done && said.contains("2.0.0"), "{said}");
    until_running(&process, "counter", &second, "2.0.0 after upgrade").await;
    world.chain.mine(2).await;
    until_at_head(&process, &world.chain, "counter").await;

    // Back to the old meaning: by the configuration this time.
    let third = world.put(&counter("3.0.0", r#","state_version":"1""#));
    let refused = |p: Option<&Value>| p.is_some_and(|p| p["refused"]["digest"] == digest(&third));
    until_plugin(&process, "counter", "refused for its state", refused).await;
    assert!(process.terminate().await.0.success());
    world.config.push_str("[plugin.counter]\nupgrade = 1\n");
    let process = Process::start(world.folder.path(), &world.config).await;
    until_running(&process, "counter", &third, "3.0.0 after a restart").await;
    world.chain.mine(2).await;
    until_at_head(&process, &world.chain, "counter").await;
    counted(&process, &world.chain, "counter.one").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faulted_plugin_goes_on_at_its_cursor_when_a_better_file_comes() {
    let Some(world) = Quiet::new().await else { return };
    let at = world.chain.head().await + 2;
    let bad = world.put(&counter("1.0.0", &format!(r#","evil":"trap","at":[{at}]"#)));
    let process = Process::start(world.folder.path(), &world.config).await;
    until_running(&process, "counter", &bad, "1.0.0").await;
    until_at_head(&process, &world.chain, "counter").await;
    world.chain.mine(4).await;
    let stopped = |p: Option<&Value>| p.is_some_and(|p| p["chains"][0]["state"] == "faulted");
    let found = until_plugin(&process, "counter", "stopped", stopped).await;
    assert_eq!(found["chains"][0]["cursor"]["number"], at - 1);

    // What does not help is not taken.
    let no_better = world.put(&counter("1.0.1", &format!(r#","evil":"panic","at":[{at}]"#)));
    let refused = |p: Option<&Value>| p.is_some_and(|p| p["refused"]["digest"] == digest(&no_better));
    let found = until_plugin(&process, "counter", "no better", refused).await;
    let why = found["refused"]["why"].as_str().unwrap_or_default();
    assert!(why.contains("its trial on") && why.contains("cannot stand event"), "{why}");
    assert_eq!(found["digest"], digest(&bad));

    // The block goes while it stands there: it goes back with the chain, at once.
    let retry_at = "it waits for its turn";
    until_plugin(&process, "counter", retry_at, |p| p.is_some_and(|p| p["chains"][0]["faults"].as_u64() > Some(2)))
        .await;
    let before = plugin(&process, "counter").await.expect("it is there");
    // With something in it: empty blocks of the same second would be the very same ones again.
    let (one, other) = (world.chain.accounts[0], world.chain.accounts[1]);
    world.chain.reorg(6, &[(ether(one, other, 1), 0)]).await;
    let parted = world.chain.hash(at - 1).await.to_string();
    let gone = |p: Option<&Value>| {
        p.is_some_and(|p| p["chains"][0]["cursor"]["hash"] == parted || p["chains"][0]["state"] == "live")
    };
    until_plugin(&process, "counter", "on the new branch", gone).await;
    assert_ne!(before["chains"][0]["cursor"]["hash"], parted);

    let good = world.put(&counter("1.0.2", ""));
    until_running(&process, "counter", &good, "1.0.2").await;
    until_at_head(&process, &world.chain, "counter").await;
    counted(&process, &world.chain, "counter.one").await;
}
