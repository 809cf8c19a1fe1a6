//! Native value that contracts move among themselves, and contracts that they make: all of what took effect, in the order of
//! execution, and nothing of what was taken back. Against a real node, by both of the methods that nodes have.

use std::path::Path;
use std::sync::Arc;

use alloy_primitives::{Address, I256, U256};
use chainweir::model::{Block, How, Transfer, Wanted};
use chainweir::source::traces::{from_call_tracer, from_trace_block};
use chainweir::source::wire::Trouble;
use chainweir::source::{Open, Source, rpc};
use serde_json::{Value, json};

use crate::harness::anvil::Anvil;
use crate::harness::belt::seed;
use crate::harness::chain::{Chain, Contract, Town, ether};
use crate::harness::fake_node::FakeNode;
use crate::harness::process::{Process, folder};
use crate::harness::until;

/// More gas, and some wei to spend.
fn with(mut call: Value, wei: u64) -> Value {
    (call["value"], call["gas"]) = (json!(U256::from(wei)), json!("0xe4e1c0"));
    call
}

fn spread(purse: &Contract, from: Address, first: Address, second: Address, wei: u64) -> Value {
    with(purse.call(from, "spread(address,address)", &[first.into(), second.into()]), wei)
}

async fn open(url: &str) -> Arc<dyn Source> {
    let table = toml::from_str(&format!("rpc = {url:?}\npoll_ms = 50")).unwrap();
    let open = Open { name: "test".into(), expect: None, table, base: Path::new(".").into() };
    Arc::new(rpc::Rpc::open(open).await.unwrap())
}

/// A block, and what the node says of it by each method.
struct Told {
    block: Block,
    tree: Value,
    list: Value,
}

impl Told {
    async fn of(chain: &Chain, source: &Arc<dyn Source>) -> Self {
        let at = source.head().await.unwrap();
        let block = source.block(&at, &Wanted::all()).await.unwrap();
        let tree = chain.call("debug_traceBlockByHash", json!([at.hash, { "tracer": "callTracer" }])).await;
        let list = chain.call("trace_block", json!([format!("{:#x}", at.number)])).await;
        Self { block, tree, list }
    }

    fn by_tree(&self, tree: &Value) -> Result<Vec<Transfer>, Trouble> {
        from_call_tracer(&tree.to_string(), &self.block)
    }

    fn by_list(&self, list: &Value) -> Result<Vec<Transfer>, Trouble> {
        from_trace_block(&list.to_string(), &self.block)
    }
}

#[tokio::test]
async fn all_that_took_effect_is_told_and_nothing_of_what_was_taken_back() {
    let Some(anvil) = Anvil::start(&["--no-mining", "--steps-tracing"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let purse = chain.deploy("Purse", &[]).await;
    let source = open(&anvil.http()).await;
    let (rich, first, second) = (chain.accounts[1], Address::repeat_byte(0xa1), Address::repeat_byte(0xb2));
    // The contract itself was created by a transaction, and made another.
    let told = Told::of(&chain, &source).await;
    let moved = source.transfers(Arc::new(told.block.clone())).await.unwrap();
    let hows: Vec<(How, u16)> = moved.iter().map(|t| (t.how, t.depth)).collect();
    assert_eq!(hows, [(How::Creation, 0), (How::Create, 1)]);
    assert_eq!((moved[0].from, moved[0].to, moved[1].from), (chain.accounts[0], purse.address, purse.address));

    chain.send(&ether(chain.accounts[2], second, 9)).await;
    chain.send(&spread(&purse, rich, first, second, 19)).await;
    // All of it is taken back: it can pay no more than it has.
    chain.send(&spread(&purse, chain.accounts[3], first, second, 7)).await;
    chain.send(&with(purse.call(chain.accounts[4], "dig(uint256,address)", &[40.into(), first.into()]), 8)).await;
    chain.mine(1).await;
    let told = Told::of(&chain, &source).await;
    assert_eq!(told.block.transactions.len(), 4);
    let moved = source.transfers(Arc::new(told.block.clone())).await.unwrap();
    let of = |n: usize| {
        let all = moved.iter().filter(move |t| t.transaction_index as usize == n);
        all.map(|t| (t.how, t.depth, t.from, t.to, t.value.to::<u64>())).collect::<Vec<_>>()
    };
    let place = |from: Address| told.block.transactions.iter().position(|tx| tx.from == from).unwrap();
    assert_eq!(of(place(chain.accounts[2])), [(How::Transaction, 0, chain.accounts[2], second, 9)]);
    let spread = of(place(rich));
    let (heir, other) = (spread[3].3, spread[4].3);
    let p = purse.address;
    assert_eq!(
        spread,
        [
            (How::Transaction, 0, rich, p, 19),
            (How::Call, 1, p, first, 1),
            (How::Call, 1, p, second, 3),
            (How::Create, 1, p, heir, 4),
            (How::Create2, 1, p, other, 5),
            (How::SelfDestruct, 2, heir, first, 4),
            // By another's code, of its own.
            (How::Call, 2, p, second, 6),
        ]
    );
    assert_eq!(of(place(chain.accounts[3])), [(How::Transaction, 0, chain.accounts[3], p, 7)][..0]);
    let dug = of(place(chain.accounts[4]));
    assert_eq!(dug.len(), 42);
    assert_eq!((dug[0].2, dug[41]), (chain.accounts[4], (How::Call, 41, p, first, 8)));
    assert!(moved.iter().enumerate().all(|(i, t)| t.index as usize == i));

    // The other method says the same, but for which kind of creation it was, where it does not tell.
    let alike = |all: Vec<Transfer>| {
        let how = |how| if how == How::Create2 { How::Create } else { how };
        all.into_iter().map(|t| Transfer { how: how(t.how), ..t }).collect::<Vec<_>>()
    };
    assert_eq!(told.by_tree(&told.tree), Ok(moved.clone()));
    assert_eq!(told.by_list(&told.list).map(alike), Ok(alike(moved)));
}

#[tokio::test]
async fn traces_that_do_not_fit_the_block_are_false() {
    let Some(anvil) = Anvil::start(&["--no-mining", "--steps-tracing"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let purse = chain.deploy("Purse", &[]).await;
    let source = open(&anvil.http()).await;
    let (first, second) = (Address::repeat_byte(0xa1), Address::repeat_byte(0xb2));
    chain.send(&ether(chain.accounts[2], second, 9)).await;
    chain.send(&spread(&purse, chain.accounts[1], first, second, 19)).await;
    chain.send(&spread(&purse, chain.accounts[3], first, second, 7)).await;
    chain.mine(1).await;
    let told = Told::of(&chain, &source).await;
    let place = |n: usize| told.block.transactions.iter().position(|tx| tx.from == chain.accounts[n]).unwrap();
    let (paid, spent, failed) = (place(2), place(1), place(3));
    assert!(told.by_tree(&told.tree).is_ok() && told.by_list(&told.list).is_ok());

    type Lie = Box<dyn Fn(&mut Value)>;
    let stranger = || json!(Address::repeat_byte(0xee));
    let lie = |f: Box<dyn Fn(&mut Value)>| f;
    let in_tree: Vec<(&str, Lie)> = vec![
        ("one is left out", lie(Box::new(|t| drop(t.as_array_mut().unwrap().pop())))),
        ("all are left out", lie(Box::new(|t| *t = json!([])))),
        (
            "one is told twice",
            lie(Box::new(|t| {
                let again = t[0].clone();
                t.as_array_mut().unwrap().push(again);
            })),
        ),
        ("another order", lie(Box::new(|t| t.as_array_mut().unwrap().swap(0, 1)))),
        ("another sender", lie(Box::new(move |t| t[paid]["result"]["from"] = stranger()))),
        ("another receiver", lie(Box::new(move |t| t[paid]["result"]["to"] = stranger()))),
        ("another value", lie(Box::new(move |t| t[paid]["result"]["value"] = json!("0x8")))),
        ("no value", lie(Box::new(move |t| drop(t[paid]["result"].as_object_mut().unwrap().remove("value"))))),
        ("another kind", lie(Box::new(move |t| t[paid]["result"]["type"] = json!("CREATE")))),
        ("a kind that is none", lie(Box::new(move |t| t[spent]["result"]["calls"][0]["type"] = json!("GIFT")))),
        ("a failure that was none", lie(Box::new(move |t| t[spent]["result"]["error"] = json!("out of gas")))),
        (
            "success that was none",
            lie(Box::new(move |t| drop(t[failed]["result"].as_object_mut().unwrap().remove("error")))),
        ),
        ("another caller within", lie(Box::new(move |t| t[spent]["result"]["calls"][0]["from"] = stranger()))),
        ("a call of nobody", lie(Box::new(move |t| t[spent]["result"]["calls"][0]["to"] = Value::Null))),
    ];
    for (name, change) in in_tree {
        let mut tree = told.tree.clone();
        change(&mut tree);
        assert!(matches!(told.by_tree(&tree), Err(Trouble::False(_))), "{name}: {:?}", told.by_tree(&tree));
    }
    // Not told is not false: it is asked for again.
    let mut tree = told.tree.clone();
    tree[paid] = json!({ "error": "execution timeout" });
    assert!(matches!(told.by_tree(&tree), Err(Trouble::Lacks(_))));

    let tops: Vec<usize> = (0..3)
        .map(|n| {
            let list = told.list.as_array().unwrap();
            list.iter().position(|t| t["transactionPosition"] == n && t["traceAddress"] == json!([])).unwrap()
        })
        .collect();
    let (paid, spent, failed) = (tops[paid], tops[spent], tops[failed]);
    let in_list: Vec<(&str, Lie)> = vec![
        ("the last ones are left out", lie(Box::new(move |t| t.as_array_mut().unwrap().truncate(tops[2])))),
        ("all are left out", lie(Box::new(|t| *t = json!([])))),
        ("another block", lie(Box::new(|t| t[0]["blockHash"] = json!(alloy_primitives::B256::ZERO)))),
        ("another transaction", lie(Box::new(|t| t[0]["transactionHash"] = json!(alloy_primitives::B256::ZERO)))),
        ("another sender", lie(Box::new(move |t| t[paid]["action"]["from"] = stranger()))),
        ("another value", lie(Box::new(move |t| t[paid]["action"]["value"] = json!("0x8")))),
        ("a failure that was none", lie(Box::new(move |t| t[spent]["error"] = json!("out of gas")))),
        ("success that was none", lie(Box::new(move |t| drop(t[failed].as_object_mut().unwrap().remove("error"))))),
        ("another caller within", lie(Box::new(move |t| t[spent + 1]["action"]["from"] = stranger()))),
        ("a call without its caller", lie(Box::new(move |t| t[spent + 1]["traceAddress"] = json!([0, 0, 0])))),
        (
            "a transaction that is not there",
            lie(Box::new(|t| {
                let mut more = t[0].clone();
                more["transactionPosition"] = json!(3);
                t.as_array_mut().unwrap().push(more);
            })),
        ),
    ];
    for (name, change) in in_list {
        let mut list = told.list.clone();
        change(&mut list);
        assert!(matches!(told.by_list(&list), Err(Trouble::False(_))), "{name}: {:?}", told.by_list(&list));
    }
    // What miners get is nobody's transfer.
    let mut list = told.list.clone();
    let at = told.block.at();
    list.as_array_mut().unwrap().push(json!({
        "type": "reward", "action": { "author": stranger(), "rewardType": "block", "value": "0x1" },
        "blockHash": at.hash, "blockNumber": at.number, "traceAddress": [], "subtraces": 0, "result": null,
    }));
    assert_eq!(told.by_list(&list), told.by_list(&told.list));
}

/// 1,024 calls within each other are what the chain allows, and what costs a few gas.
#[tokio::test]
async fn calls_within_calls_are_read_to_the_last_of_them() {
    let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    chain.send(&ether(chain.accounts[1], chain.accounts[2], 5)).await;
    chain.mine(1).await;
    let source = open(&anvil.http()).await;
    let told = Told::of(&chain, &source).await;
    let deep = |depth: usize| {
        let mut tree = told.tree.clone();
        let mut inner =
            json!({ "type": "CALL", "from": chain.accounts[2], "to": chain.accounts[2], "value": "0x1" }).to_string();
        for _ in 1..depth {
            inner = format!("{},\"calls\":[{inner}]}}", inner_head(chain.accounts[2]));
        }
        tree[0]["result"]["calls"] = json!("HERE");
        from_call_tracer(&tree.to_string().replace("\"HERE\"", &format!("[{inner}]")), &told.block)
    };
    assert_eq!(deep(1024).unwrap().len(), 1025);
    assert!(matches!(deep(1025), Err(Trouble::False(_))));
}

fn inner_head(who: Address) -> String {
    let head = json!({ "type": "CALL", "from": who, "to": who, "value": "0x1" }).to_string();
    head.trim_end_matches('}').to_owned()
}

const INTERNAL: &str = "\n[plugin.native-transfers]\nconfig = { internal = true }\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_plugin_hears_adds_up_to_the_balances_through_backfill_life_and_reorgs() {
    let Some(anvil) = Anvil::start(&["--no-mining", "--steps-tracing"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    let mut town = Town::found(&chain, seed()).await;
    let purse = chain.deploy("Purse", &[]).await;
    let parties: Vec<Address> = (0..3).map(|n| Address::repeat_byte(0xd0 + n)).collect();
    let act = async |town: &mut Town| {
        let from = chain.accounts[town.below(chain.accounts.len() as u64) as usize];
        let (a, b) = (parties[town.below(3) as usize], parties[town.below(3) as usize]);
        let wei = 10 + town.below(14);
        // Some of them fail: it needs 19 in all.
        chain.send(&spread(&purse, from, a, b, wei)).await;
        town.block(&chain, 2).await;
    };
    for _ in 0..40 {
        act(&mut town).await;
    }
    let dir = folder(&["native-transfers"]);
    let config = format!(
        "[chain.local]\nrpc = {:?}\npoll_ms = 50\nstart = 0\nfinality = {{ depth = 12 }}\n{INTERNAL}",
        anvil.ws()
    );
    let process = Process::start(dir.path(), &config).await;
    let check = async || {
        let head = chain.head().await;
        process.until_at(&chain.hash(head).await.to_string()).await;
        let feed = process.feed("native-transfers.transfers").await;
        for party in parties.iter().chain([&purse.address]) {
            let balance = chain.call("eth_getBalance", json!([party, "latest"])).await;
            let balance: U256 = serde_json::from_value(balance).unwrap();
            let mut sum = I256::ZERO;
            for item in &feed {
                let value: I256 = item["data"]["value"].as_str().unwrap().parse().unwrap();
                let sign = if item["op"] == "apply" { I256::ONE } else { I256::MINUS_ONE };
                if item["data"]["to"] == json!(party) {
                    sum += sign * value;
                }
                if item["data"]["from"] == json!(party) {
                    sum -= sign * value;
                }
            }
            assert_eq!(sum, I256::from_raw(balance), "{party} at block {head}");
        }
        feed.len()
    };
    let before = check().await;
    // Seven for each that went well; of forty, some find an empty purse.
    assert!(before > 20, "{before}");
    for round in 0..20 {
        act(&mut town).await;
        if round % 4 == 3 {
            let depth = 1 + town.below(8);
            town.reorg(&chain, depth, 2).await;
        }
        check().await;
    }
    process.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_trace_stops_who_needs_it_and_nobody_else() {
    let node = FakeNode::start().await;
    for _ in 0..30 {
        node.push(2);
    }
    let dir = folder(&["erc20-transfers", "native-transfers"]);
    let config = format!("[chain.local]\nrpc = {:?}\npoll_ms = 50\nstart = 0\n{INTERNAL}", node.url);
    let process = Process::start(dir.path(), &config).await;
    let why = until("the reason", || async {
        let status = process.status().await?;
        let plugin = status["plugins"].as_array()?.iter().find(|p| p["name"] == "native-transfers")?.clone();
        Some(plugin["chains"][0]["why"].as_str()?.to_owned())
    })
    .await;
    assert!(why.contains("neither debug_traceBlockByHash nor trace_block"), "{why}");
    for _ in 0..5 {
        node.push(2);
        process.until_at(&node.tip().to_string()).await;
    }
    assert_eq!(process.feed("erc20-transfers.transfers").await.len(), 70);
    assert_eq!(process.feed("native-transfers.transfers").await.len(), 0);
    process.terminate().await;
}
