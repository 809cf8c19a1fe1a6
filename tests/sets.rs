//! Watch sets: edited while the chain goes on, an entry holds from a known block, is shown its past where that is asked
//! for, and survives restarts and reorgs.

use std::collections::BTreeSet;

use alloy_primitives::Address;
use serde_json::{Value, json};

use crate::harness::anvil::Anvil;
use crate::harness::belt::{seed, times, waited};
use crate::harness::chain::{Chain, Town, Transfer};
use crate::harness::process::{Ledger, Process, folder};
use crate::harness::until;

const FINAL: u64 = 12;

fn config(anvil: &Anvil) -> String {
    format!(
        r#"
[chain.local]
rpc = "{}"
poll_ms = 50
start = 0
finality = {{ depth = {FINAL} }}

[plugin.erc20-transfers]
config = {{ parties_set = "deposits" }}
"#,
        anvil.ws()
    )
}

/// What the answers of the edits said: who is a member in which blocks.
#[derive(Default)]
struct Members(Vec<(Address, u64, Option<u64>)>);

impl Members {
    fn is(&self, who: Address) -> bool {
        self.0.iter().any(|(other, _, until)| *other == who && until.is_none())
    }

    fn at(&self, who: Address, block: u64) -> bool {
        self.0
            .iter()
            .any(|(other, from, until)| *other == who && *from <= block && until.is_none_or(|until| block < until))
    }

    async fn add(&mut self, process: &Process, who: Address, from: Option<u64>) {
        let (code, done) = process.post("/sets/deposits", &json!({ "add": [who], "from": from })).await;
        assert_eq!((code, &done["added"]), (200, &json!(u8::from(!self.is(who)))), "{done}");
        let begins = done["from"]["eip155:31337"].as_u64().expect("the first block");
        if let Some(from) = from {
            assert_eq!(begins, from);
        }
        if !self.is(who) {
            self.0.push((who, begins, None));
        }
    }

    async fn remove(&mut self, process: &Process, who: Address) {
        let (code, done) = process.post("/sets/deposits", &json!({ "remove": [who] })).await;
        assert_eq!((code, &done["removed"]), (200, &json!(u8::from(self.is(who)))), "{done}");
        let ends = done["from"]["eip155:31337"].as_u64();
        for (_, _, until) in self.0.iter_mut().filter(|(other, _, until)| *other == who && until.is_none()) {
            *until = ends;
        }
    }
}

/// Waits until the feed's net is what the canonical chain and the memberships give, and the state counts the same.
async fn check(process: &Process, chain: &Chain, members: &Members) -> usize {
    let head = chain.head().await;
    process.until_at(&chain.hash(head).await.to_string()).await;
    let truth: Vec<Transfer> = chain.transfers(0..=head).await;
    let truth: Vec<Transfer> =
        truth.into_iter().filter(|t| members.at(t.from, t.block) || members.at(t.to, t.block)).collect();
    let net = || async {
        let ledger = Ledger::of(&process.feed("erc20-transfers.transfers").await);
        assert_eq!(ledger.repeats, 0, "the feed says something twice");
        Some(ledger.transfers())
    };
    waited(&format!("the feed of {:?}", members.0), &truth, net).await;
    truth.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_holds_from_its_block_on_and_is_shown_its_past_alone() {
    let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let mut town = Town::found(&chain, seed()).await;
    for _ in 0..30 {
        town.block(&chain, 4).await;
    }
    let dir = folder(&["erc20-transfers"]);
    let mut process = Process::start(dir.path(), &config(&anvil)).await;
    let mut members = Members::default();
    assert_eq!(check(&process, &chain, &members).await, 0, "an empty set lets nothing pass");
    for round in 0..times(30, 400) {
        let who = chain.accounts[town.below(5) as usize];
        match town.below(5) {
            0 => members.remove(&process, who).await,
            1 | 2 => members.add(&process, who, None).await,
            _ => {
                let from = town.below(chain.head().await);
                members.add(&process, who, Some(from)).await;
            }
        }
        for _ in 0..town.below(4) {
            town.block(&chain, 4).await;
        }
        if town.below(3) == 0 {
            let depth = 1 + town.below(6);
            town.reorg(&chain, depth, 2).await;
        }
        if town.below(6) == 0 {
            process.kill();
            process = Process::start(dir.path(), &config(&anvil)).await;
        }
        if round % 10 == 9 {
            // What an edit reaches back to is shown when it is final.
            chain.mine(FINAL + 1).await;
            check(&process, &chain, &members).await;
        }
    }
    assert!(members.0.len() > 3, "{:?}", members.0);
    process.kill();
    let process = Process::start(dir.path(), &config(&anvil)).await;
    town.block(&chain, 4).await;
    assert!(check(&process, &chain, &members).await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sets_are_edited_by_the_command_line() {
    let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let mut town = Town::found(&chain, 7).await;
    let dir = folder(&["erc20-transfers"]);
    let process = Process::start(dir.path(), &config(&anvil)).await;
    until("the plugin to name its set", || async {
        let sets: Value = serde_json::from_str(&process.get("/sets").await?).ok()?;
        (sets["items"][0]["name"] == "deposits").then_some(())
    })
    .await;
    let all: Vec<String> = (0..30_000u64)
        .map(|n| format!("{:?}", Address::from_word(alloy_primitives::keccak256(n.to_be_bytes()))))
        .collect();
    let file = dir.path().join("all.txt");
    let write = |lines: &[String]| std::fs::write(&file, format!("# all\n\n{}\n", lines.join("\n"))).expect("a file");
    write(&all);
    let path = file.to_str().expect("a path");
    let (done, said) = process.cli(&["set", "import", "deposits", path]);
    assert!(done && said.contains("30000 added, 0 removed"), "{said}");
    let (done, said) = process.cli(&["set", "import", "deposits", path]);
    assert!(done && said.contains("0 added, 0 removed, 30000 were as asked already"), "{said}");
    let (done, said) = process.cli(&["set", "remove", "deposits", &all[0], &all[1]]);
    assert!(done && said.contains("0 added, 2 removed"), "{said}");
    // Half of it goes, one is new.
    let mut kept: Vec<String> = all[15_000..].to_vec();
    kept.push(format!("{:?}", chain.accounts[3]));
    write(&kept);
    let (done, said) = process.cli(&["set", "replace", "deposits", path]);
    assert!(done && said.contains("1 added, 14998 removed"), "{said}");
    let (done, said) = process.cli(&["set", "show", "deposits"]);
    let shown: BTreeSet<&str> = said.lines().collect();
    assert!(done && shown == kept.iter().map(String::as_str).collect(), "{} shown", shown.len());
    let (done, said) = process.cli(&["set", "list"]);
    assert!(done && said.contains("deposits  15001"), "{said}");
    for (args, why) in [
        (["set", "add", "deposits", "0x12"], "neither an address (20 bytes) nor a word (32 bytes)"),
        (["set", "add", "No Name", all[0].as_str()], "is not a name"),
        (["set", "show", "depositz", ""], ""),
    ] {
        let args: Vec<&str> = args.into_iter().filter(|a| !a.is_empty()).collect();
        let (done, said) = process.cli(&args);
        assert!(!done && said.contains(why), "{args:?}: {said}");
    }
    write(&["0xabc".into()]);
    let (done, said) = process.cli(&["set", "import", "deposits", path]);
    assert!(!done && said.contains("all.txt, line 3: '0xabc'"), "{said}");

    let (code, done) = process.post("/sets/deposits", &json!({ "add": [chain.accounts[0]], "front": 3 })).await;
    assert!(code == 400 && done["error"].as_str().expect("why").contains("front"), "{done}");

    // Another process of the same journal has them all, and they work.
    let (status, _) = process.terminate().await;
    assert!(status.success());
    let process = Process::start(dir.path(), &config(&anvil)).await;
    let (_, said) = process.cli(&["set", "list"]);
    assert!(said.contains("deposits  15001"), "{said}");
    town.block(&chain, 1).await;
    chain.send(&town.token.transfer(chain.accounts[1], chain.accounts[3], 5)).await;
    chain.send(&town.token.transfer(chain.accounts[2], chain.accounts[4], 5)).await;
    chain.mine(1).await;
    until("the one transfer to a member", || async {
        let feed = process.feed("erc20-transfers.transfers").await;
        let to = format!("{:?}", chain.accounts[3]);
        feed.iter().any(|e| e["data"]["to"].as_str().map(str::to_lowercase) == Some(to.clone())).then_some(())
    })
    .await;
}
