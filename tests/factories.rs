//! Factories: a contract is followed from the very log that made it, and forgotten with that log.

use std::collections::BTreeSet;

use alloy_primitives::{Address, B256, keccak256};
use serde_json::Value;

use crate::harness::anvil::Anvil;
use crate::harness::belt::{seed, times};
use crate::harness::chain::{Chain, Contract};
use crate::harness::process::{Ledger, Process, folder};
use crate::harness::until;

const FINAL: u64 = 40;

fn config(anvil: &Anvil, maker: Address, start: &str, since: &str) -> String {
    format!(
        r#"
[chain.local]
rpc = "{}"
poll_ms = 50
start = {start}
finality = {{ depth = {FINAL} }}

[plugin.family]
config = {{ maker = "{maker}"{since} }}
"#,
        anvil.ws()
    )
}

/// `(block hash, log index, child)` of every ping that a child said after its maker had named it.
async fn truth(chain: &Chain, maker: Address, from: u64) -> BTreeSet<(String, u64, String)> {
    let (made, pinged) = (keccak256("Made(address,uint256)"), keccak256("Pinged(uint256)"));
    let mut children: BTreeSet<String> = BTreeSet::new();
    let mut pings = BTreeSet::new();
    for log in chain.logs(0..=chain.head().await, None, None).await {
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let number = |value: &Value| u64::from_str_radix(&text(value)[2..], 16).expect("a number");
        let topic0: B256 = text(&log["topics"][0]).parse().expect("a topic");
        if topic0 == made && text(&log["address"]).parse::<Address>() == Ok(maker) {
            children.insert(format!("0x{}", &text(&log["topics"][1])[26..]));
        } else if topic0 == pinged && children.contains(&text(&log["address"])) && number(&log["blockNumber"]) >= from {
            pings.insert((text(&log["blockHash"]), number(&log["logIndex"]), text(&log["address"])));
        }
    }
    pings
}

async fn check(process: &Process, chain: &Chain, maker: Address, from: u64) -> usize {
    let truth = truth(chain, maker, from).await;
    let head = chain.hash(chain.head().await).await.to_string();
    process.until_at(&head).await;
    until("the feed to hold what the children of the canonical chain say", || async {
        let feed = process.feed("family.pings").await;
        let ledger = Ledger::of(&feed);
        let net = ledger.net().into_iter().map(|event| {
            let child = event["data"]["child"].as_str().expect("a child").to_lowercase();
            let hash = event["blockhash"].as_str().expect("a hash").to_owned();
            (hash, event["data"]["log_index"].as_u64().expect("an index"), child)
        });
        (net.collect::<BTreeSet<_>>() == truth).then_some(())
    })
    .await;
    truth.len()
}

struct Nursery {
    maker: Contract,
    children: Vec<Contract>,
    dice: u64,
}

impl Nursery {
    fn below(&mut self, bound: u64) -> u64 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % bound
    }

    /// A contract is made, unsaid or said, or one that was made speaks. Each from an account of its own.
    fn something(&mut self, from: Address) -> Value {
        match self.below(6) {
            0 => self.maker.call(from, "makeUnsaid()", &[]),
            1 | 2 => {
                let pings = self.below(3);
                self.maker.call(from, "make(uint256)", &[pings.into()])
            }
            _ => {
                let (child, value) = (self.below(self.children.len() as u64) as usize, self.below(9));
                self.children[child].call(from, "ping(uint256)", &[value.into()])
            }
        }
    }

    async fn blocks(&mut self, chain: &Chain, blocks: u64) {
        for _ in 0..blocks {
            for at in 0..self.below(4) {
                let something = self.something(chain.accounts[at as usize]);
                chain.send(&something).await;
            }
            chain.mine(1).await;
        }
    }

    /// Other things happen in the last blocks, by accounts whose orphaned nonces matter to nobody.
    async fn reorg(&mut self, chain: &Chain) {
        let head = chain.head().await;
        let depth = 1 + self.below(head.min(30) - 2);
        let mut branch = Vec::new();
        for at in 0..depth {
            if self.below(2) == 0 {
                let from = chain.accounts[self.below(5) as usize];
                let something = self.something(from);
                branch.push((something, at));
            }
        }
        chain.reorg(depth, &branch).await;
    }
}

async fn nursery(chain: &Chain, seed: u64) -> Nursery {
    let maker = chain.deploy("Maker", &[]).await;
    let mut nursery = Nursery { maker, children: vec![], dice: seed };
    // Addresses that the maker's first contracts will have, or not, as the branches go.
    for nonce in 1..12 {
        nursery.children.push(Contract::at("Child", nursery.maker.address.create(nonce)));
    }
    nursery
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_is_followed_from_its_log_on_and_forgotten_with_it() {
    let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let mut nursery = nursery(&chain, seed()).await;
    let maker = nursery.maker.address;
    let dir = folder(&["family"]);
    nursery.blocks(&chain, 60).await;
    let config = config(&anvil, maker, "0", "");
    let mut process = Process::start(dir.path(), &config).await;
    check(&process, &chain, maker, 0).await;
    let mut seen = 0;
    for round in 0..times(12, 200) {
        nursery.blocks(&chain, 3).await;
        nursery.reorg(&chain).await;
        if round % 4 == 3 {
            process.kill();
            nursery.reorg(&chain).await;
            process = Process::start(dir.path(), &config).await;
        }
        seen = seen.max(check(&process, &chain, maker, 0).await);
    }
    assert!(seen > 10, "only {seen} pings: this test shows nothing");
}

/// A plugin that begins at the head knows the children that were made before, where it says from when on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn children_that_were_made_before_the_plugin_began_are_known() {
    let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let mut nursery = nursery(&chain, seed()).await;
    let maker = nursery.maker.address;
    chain.send(&nursery.maker.call(chain.accounts[0], "make(uint256)", &[2u64.into()])).await;
    nursery.blocks(&chain, 80).await;
    for start in ["\"latest\"".to_owned(), (chain.head().await - 20).to_string()] {
        let latest = start.contains("latest");
        let from = if latest { chain.head().await + 1 } else { start.parse().expect("a height") };
        let dir = folder(&["family"]);
        let config = config(&anvil, maker, &start, ", since = 0");
        let process = Process::start(dir.path(), &config).await;
        process.until_at(&chain.hash(chain.head().await).await.to_string()).await;
        chain.send(&nursery.children[0].call(chain.accounts[0], "ping(uint256)", &[5u64.into()])).await;
        nursery.blocks(&chain, 6).await;
        assert!(check(&process, &chain, maker, from).await > 0, "nothing was said");
        process.kill();
        let process = Process::start(dir.path(), &config).await;
        nursery.reorg(&chain).await;
        nursery.blocks(&chain, 3).await;
        // From latest the reorg may take blocks back that were before its beginning.
        if !latest {
            check(&process, &chain, maker, from).await;
        }
    }
}
