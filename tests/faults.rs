//! Promise 1 on a provider's bad days: whatever it answers, what comes out equals the canonical chain's, or nothing does.
//! A fault proxy before a real anvil, one for each kind of fault, by WebSocket and by HTTP; each is a chain of its own in one
//! process. A round is one seed for all of them.
//!
//! `CHAINWEIR_SEED=n` replays a run, `CHAINWEIR_SEEDS=n` sets the number of rounds; `CHAINWEIR_LONG=1` is 1,000.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use alloy_primitives::B256;
use chainweir::config::Config;
use chainweir::model::{Op, Wanted};
use chainweir::router::{self, Running};
use chainweir::source::{Open, ReadError, Source, rpc};
use serde_json::Value;

use crate::harness::anvil::Anvil;
use crate::harness::belt::seed;
use crate::harness::chain::{Chain, TRANSFER, Town, Transfer};
use crate::harness::fault_proxy::{Fault, FaultProxy};
use crate::harness::process::folder;
use crate::harness::until;

/// Deeper than any reorg here.
const FINAL: u64 = 30;
/// Chains of the process; anvil's own is 31337.
const FIRST_CHAIN: u64 = 900_000;

/// Seeds of each kind of fault.
fn rounds(short: u64) -> u64 {
    let set = std::env::var("CHAINWEIR_SEEDS").ok().and_then(|s| s.parse().ok());
    if std::env::var_os("CHAINWEIR_LONG").is_some() { 1_000 } else { set.unwrap_or(short) }
}

/// Where a log is, and what it says.
type Key = (u64, B256, u64);
type Moves = BTreeMap<Key, Transfer>;

fn by_key(transfers: Vec<Transfer>) -> Moves {
    transfers.into_iter().map(|t| ((t.block, t.block_hash, t.log_index), t)).collect()
}

/// A chain of the process: its providers, and what may be held against it.
struct Followed {
    name: String,
    id: u64,
    fault: Fault,
    proxies: Vec<FaultProxy>,
    /// Of the faulty ones.
    chance: f64,
    /// Only proxies that fail at every question make this chain wait.
    table: String,
}

struct World {
    anvil: Anvil,
    chain: Chain,
    town: Town,
    /// All that ever was on the node's chain, orphaned blocks too.
    ever: Moves,
}

impl World {
    async fn new(seed: u64) -> Option<Self> {
        let anvil = Anvil::start(&["--no-mining", "--base-fee", "0"])?;
        let chain = Chain::connect(&anvil.http()).await;
        chain.block_interval(12).await;
        let town = Town::found(&chain, seed).await;
        Some(Self { anvil, chain, town, ever: Moves::new() })
    }

    /// What the chain has now; remembered for ever.
    async fn truth(&mut self) -> Moves {
        let head = self.chain.head().await;
        let now = by_key(self.chain.transfers(0..=head).await);
        self.ever.extend(now.clone());
        now
    }
}

fn config(chains: &[Followed]) -> String {
    let mut text = "[http]\nlisten = \"off\"\n".to_owned();
    for chain in chains {
        text += &format!(
            "[chain.{}]\nchain_id = {}\nstart = 0\npoll_ms = 50\ntimeout_ms = 400\nquirks = [\"unsigned\"]\n\
             finality = {{ depth = {FINAL} }}\n{}\n",
            chain.name, chain.id, chain.table
        );
    }
    text
}

async fn run(dir: &Path, chains: &[Followed]) -> Running {
    let config = Config::parse(&config(chains), dir, "chainweir.toml").expect("the configuration is right");
    router::start(config).await.expect("the router starts")
}

/// Follows the journal: what holds now of each chain, and whether something was ever said that no chain had.
#[derive(Default)]
struct Heard {
    held: HashMap<u64, Moves>,
    offsets: HashMap<i64, u64>,
    /// What was said, of each chain, that must never be said.
    wrong: Vec<(u64, Transfer)>,
}

impl Heard {
    fn listen(&mut self, running: &Running) {
        let journal = &running.handle.journal;
        for track in journal.tracks().unwrap() {
            let after = self.offsets.entry(track.id.0).or_default();
            let (_, entries) = journal.entries(track.id, *after, usize::MAX >> 1, None).unwrap();
            let held = self.held.entry(track.chain.0).or_default();
            for entry in entries {
                *after = entry.offset;
                let data: Value = serde_json::from_slice(&entry.payload).expect("a transfer is JSON");
                let field = |name: &str| data[name].as_str().unwrap_or_else(|| panic!("{name} in {data}"));
                let transfer = Transfer {
                    block: entry.block.number,
                    log_index: data["log_index"].as_u64().expect("an index"),
                    block_hash: entry.block.hash,
                    tx: field("tx").parse().expect("a hash"),
                    token: field("token").parse().expect("an address"),
                    from: field("from").parse().expect("an address"),
                    to: field("to").parse().expect("an address"),
                    value: field("value").parse().expect("a number"),
                };
                let key = (transfer.block, transfer.block_hash, transfer.log_index);
                match entry.op {
                    Op::Apply => {
                        assert!(held.insert(key, transfer.clone()).is_none(), "applied twice: {transfer:?}");
                        self.wrong.push((track.chain.0, transfer));
                    }
                    Op::Retract => assert_eq!(held.remove(&key), Some(transfer), "retracted as something else"),
                    Op::Pending => unreachable!("nothing here is pending"),
                }
            }
        }
    }

    /// What was said since the last time, and is on no chain. `excused`: whole blocks that never were may be told of these.
    fn wrong(&mut self, ever: &Moves, excused: &BTreeSet<u64>) -> Vec<(u64, Transfer)> {
        let said = std::mem::take(&mut self.wrong);
        let is_wrong = |(chain, t): &(u64, Transfer)| {
            !excused.contains(chain) && ever.get(&(t.block, t.block_hash, t.log_index)) != Some(t)
        };
        said.into_iter().filter(is_wrong).collect()
    }
}

/// Waits until every chain holds just this, each for as long as it takes; says who does not.
async fn settled(
    running: &Running,
    heard: &mut Heard,
    chains: &[Followed],
    truth: &Moves,
    patience: Duration,
) -> Vec<String> {
    let began = Instant::now();
    loop {
        heard.listen(running);
        let late: Vec<&Followed> = chains.iter().filter(|c| heard.held.get(&c.id) != Some(truth)).collect();
        if late.is_empty() {
            return vec![];
        }
        if began.elapsed() > patience {
            return late.iter().map(|c| c.name.clone()).collect();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn trouble(running: &Running, names: &[String]) -> String {
    let status = running.handle.status.borrow().clone();
    let chains: Vec<_> = status.chains.iter().filter(|c| names.contains(&c.name)).collect();
    serde_json::to_string_pretty(&chains).expect("a status is JSON")
}

async fn before(world: &World, id: u64) -> FaultProxy {
    FaultProxy::of_chain(&world.anvil.http(), Some(&world.anvil.ws()), Some(id)).await
}

/// The chain goes on, a block or two at a time, and sometimes back.
async fn advance(world: &mut World) {
    for _ in 0..1 + world.town.below(2) {
        world.town.block(&world.chain, 3).await;
    }
    world.truth().await;
    if world.town.below(5) == 0 {
        // Not the blocks that made the token.
        let most = world.chain.head().await.saturating_sub(2).clamp(1, 4);
        let depth = 1 + world.town.below(most);
        world.town.reorg(&world.chain, depth, 2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_provider_answers_the_output_is_the_chains_or_nothing() {
    let seed = seed();
    let Some(mut world) = World::new(seed).await else { return };
    let mut chains = vec![];
    for fault in Fault::ALL {
        for web_socket in [true, false] {
            let id = FIRST_CHAIN + chains.len() as u64;
            let proxy = before(&world, id).await;
            let url = if web_socket { proxy.ws() } else { proxy.http() };
            let via = if web_socket { "ws" } else { "http" };
            chains.push(Followed {
                name: format!("{fault:?}-{via}").to_lowercase(),
                id,
                fault: *fault,
                table: format!("rpc = \"{url}\""),
                proxies: vec![proxy],
                chance: 0.2,
            });
        }
    }
    let siblings = chains.iter().filter(|c| c.fault == Fault::SiblingFork).map(|c| c.id).collect();
    let folder = folder(&["erc20-transfers"]);
    let running = run(folder.path(), &chains).await;
    let mut heard = Heard::default();
    let truth = world.truth().await;
    let late = settled(&running, &mut heard, &chains, &truth, Duration::from_secs(30)).await;
    assert!(late.is_empty(), "not begun: {}", trouble(&running, &late));
    for round in 0..rounds(50) {
        for chain in &chains {
            chain.proxies[0].misbehave(chain.fault, chain.chance, seed.wrapping_add(round) ^ chain.id);
        }
        advance(&mut world).await;
        // Most get there by themselves; some faults end before that.
        let truth = world.truth().await;
        let patience = Duration::from_millis(if round.is_multiple_of(5) { 1_000 } else { 150 });
        let late = settled(&running, &mut heard, &chains, &truth, patience).await;
        if !late.is_empty() {
            chains.iter().for_each(|c| c.proxies[0].behave());
            let late = settled(&running, &mut heard, &chains, &truth, Duration::from_secs(20)).await;
            assert!(late.is_empty(), "round {round}, with the faults gone: {}", trouble(&running, &late));
        }
        let wrong = heard.wrong(&world.ever, &siblings);
        assert!(wrong.is_empty(), "round {round}: {wrong:?}");
    }
    for chain in &chains {
        let batch = matches!(chain.fault, Fault::BatchDisorder | Fault::BatchOneMissing | Fault::BatchError);
        let subscription = matches!(chain.fault, Fault::SilentSubscription | Fault::DoubleNotifications);
        let expected = !batch && (!subscription || chain.name.ends_with("ws"));
        // One long day may pass without an answer that the fault fits.
        assert!(!expected || chain.proxies[0].done() > 0, "{} was never at fault", chain.name);
    }
    running.stop().await.expect("it stops in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_providers_one_always_wrong_nothing_wrong_comes_out_and_the_other_carries_on() {
    let seed = seed();
    let Some(mut world) = World::new(seed).await else { return };
    let mut chains = vec![];
    for fault in Fault::LIES.iter().chain(&[Fault::Hang, Fault::Drop, Fault::ServerError, Fault::SilentSubscription]) {
        for web_socket in [true, false] {
            let id = FIRST_CHAIN + chains.len() as u64;
            let via = if web_socket { "ws" } else { "http" };
            let url = |p: &FaultProxy| if web_socket { p.ws() } else { p.http() };
            let mut proxies = vec![];
            // A whole and consistent other block is no lie that a header could show: there, two of three must agree.
            let count = if *fault == Fault::SiblingFork { 3 } else { 2 };
            for _ in 0..count {
                proxies.push(before(&world, id).await);
            }
            let urls: Vec<String> = proxies.iter().map(|p| format!("{:?}", url(p))).collect();
            let agree = if count == 3 { "\nagree = 2" } else { "" };
            chains.push(Followed {
                name: format!("{fault:?}-{via}").to_lowercase(),
                id,
                fault: *fault,
                table: format!("rpc = [{}]{agree}", urls.join(", ")),
                proxies,
                chance: 1.0,
            });
        }
    }
    // From the first question on; its chain id alone it tells.
    for chain in &chains {
        if !matches!(chain.fault, Fault::Hang | Fault::Drop | Fault::ServerError) {
            chain.proxies[0].misbehave(chain.fault, chain.chance, seed ^ chain.id);
        }
    }
    let folder = folder(&["erc20-transfers"]);
    let running = run(folder.path(), &chains).await;
    let (mut heard, mut said) = (Heard::default(), BTreeSet::new());
    for round in 0..rounds(12).min(100) {
        for chain in &chains {
            chain.proxies[0].misbehave(chain.fault, chain.chance, seed.wrapping_add(round) ^ chain.id);
        }
        advance(&mut world).await;
        let truth = world.truth().await;
        let late = settled(&running, &mut heard, &chains, &truth, Duration::from_secs(15)).await;
        assert!(late.is_empty(), "round {round}: {}", trouble(&running, &late));
        let wrong = heard.wrong(&world.ever, &BTreeSet::new());
        assert!(wrong.is_empty(), "round {round}: {wrong:?}");
        for chain in &running.handle.status.borrow().chains {
            let liar = &chain.providers[0];
            if liar.why.as_ref().is_some_and(|why| why.contains("false answer")) {
                assert_eq!(liar.state, "aside", "{}: {liar:?}", chain.name);
                said.insert(chain.name.clone());
            }
        }
    }
    // What was proven false is counted, and was said: by now it may be aside for another reason, or asked again.
    let status = running.handle.status.borrow().clone();
    for chain in status.chains.iter().filter(|c| c.name.starts_with("liein") || c.name.starts_with("leaveone")) {
        let liar = &chain.providers[0];
        assert!(liar.false_answers > 0, "{}: {liar:?}", chain.name);
        assert!(said.contains(&chain.name), "{}: {liar:?}", chain.name);
        assert_eq!(chain.providers[1].false_answers, 0, "{}: {:?}", chain.name, chain.providers[1]);
    }
    running.stop().await.expect("it stops in order");
}

fn open(url: &str, verify: &str) -> Open {
    let text = format!("rpc = {url:?}\npoll_ms = 50\ntimeout_ms = 300\nquirks = [\"unsigned\"]\nverify = {verify:?}");
    Open { name: "test".into(), expect: None, table: toml::from_str(&text).expect("TOML"), base: Path::new(".").into() }
}

/// Every log of these blocks by ranges, patiently; `None` where it was told to wait too often.
async fn walk(source: &dyn Source, from: u64, to: u64, wanted: &Wanted) -> Option<Moves> {
    let (mut next, mut found, mut failures) = (from, vec![], 0);
    while next <= to {
        match source.range(next, to, wanted).await {
            Ok(range) => {
                assert!(range.to.number >= next && range.to.number <= to, "{next} to {to}: {}", range.to);
                next = range.to.number + 1;
                found.extend(range.blocks);
            }
            Err(ReadError::Halt { why }) => panic!("{why}"),
            Err(_) if failures < 40 => {
                failures += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(_) => return None,
        }
    }
    let transfers = found.iter().flat_map(|block| {
        let at = block.at();
        block.logs.iter().map(move |log| Transfer {
            block: at.number,
            log_index: log.index.into(),
            block_hash: at.hash,
            tx: log.transaction_hash,
            token: log.address,
            from: alloy_primitives::Address::from_word(log.topics[1]),
            to: alloy_primitives::Address::from_word(log.topics[2]),
            value: alloy_primitives::U256::from_be_slice(&log.data),
        })
    });
    Some(by_key(transfers.collect()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backfill_through_any_fault_gives_the_chains_logs_or_says_that_it_cannot() {
    let seed = seed();
    let Some(mut world) = World::new(seed).await else { return };
    for _ in 0..40 {
        world.town.block(&world.chain, 3).await;
    }
    let truth = world.truth().await;
    let wanted = Wanted { logs: true, topic0: vec![TRANSFER], ..Default::default() };
    let (truth, wanted, world) = (&truth, &wanted, &world);
    let each = Fault::ALL.iter().enumerate().map(|(i, fault)| async move {
        let proxy = before(world, 31337).await;
        let (mut gave_up, runs) = (0, rounds(50));
        for run in 0..runs {
            let seed = seed.wrapping_add(run * 100 + i as u64);
            // It begins well, or not.
            proxy.behave();
            let url = if seed.is_multiple_of(2) { proxy.ws() } else { proxy.http() };
            let source = || async { rpc::Rpc::open(open(&url, "receipts")).await.ok() };
            let source = until("it to answer in time", source).await;
            let from = 1 + seed % 30;
            let to = from + 8;
            proxy.misbehave(*fault, 0.1, seed);
            match walk(&source, from, to, wanted).await {
                Some(found) => {
                    let there = truth.iter().filter(|(key, _)| (from..=to).contains(&key.0));
                    let there: Moves = there.map(|(key, t)| (*key, t.clone())).collect();
                    assert_eq!(found, there, "{fault:?}, seed {seed}, blocks {from} to {to}");
                }
                None => gave_up += 1,
            }
        }
        assert!(gave_up * 4 < runs, "{fault:?}: {gave_up} of {runs} runs gave up");
    });
    futures::future::join_all(each).await;
}
