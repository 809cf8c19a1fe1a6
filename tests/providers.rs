//! Promise: a chain is followed as well as the best of its providers does, at no more questions than it takes; who is not
//! well is left aside, said so, and taken back.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::B256;
use chainweir::model::{Block, BlockRef, ProviderStatus, Wanted};
use chainweir::proof;
use chainweir::source::{Open, ReadError, Source, rpc};

use crate::harness::anvil::Anvil;
use crate::harness::belt::seed;
use crate::harness::chain::{Chain, TRANSFER, Town};
use crate::harness::fault_proxy::{Fault, FaultProxy};
use crate::harness::session::SessionServer;
use crate::harness::until;
use crate::verify::data;

async fn open(table: &str) -> Arc<rpc::Rpc> {
    let table = toml::from_str(table).expect("TOML");
    let open = Open { name: "test".into(), expect: None, table, base: Path::new(".").into() };
    let opened = until("a provider to answer in time", || async { rpc::Rpc::open(open.clone()).await.ok() });
    Arc::new(opened.await)
}

fn logs() -> Wanted {
    Wanted { logs: true, topic0: vec![TRANSFER], ..Default::default() }
}

struct Node {
    anvil: Anvil,
    chain: Chain,
    town: Town,
}

impl Node {
    async fn start(arguments: &[&str]) -> Option<Self> {
        let anvil = Anvil::start(&[&["--no-mining", "--base-fee", "0"], arguments].concat())?;
        let chain = Chain::connect(&anvil.http()).await;
        let town = Town::found(&chain, seed()).await;
        Some(Self { anvil, chain, town })
    }

    async fn proxies(&self, count: usize) -> Vec<FaultProxy> {
        let mut all = vec![];
        for _ in 0..count {
            all.push(FaultProxy::before(&self.anvil.http(), Some(&self.anvil.ws())).await);
        }
        all
    }

    /// One block with one transfer; its hash.
    async fn transfer(&mut self) -> B256 {
        let transfer = self.town.transfer(&self.chain);
        self.chain.send(&transfer).await;
        let head = self.chain.mine(1).await;
        self.chain.hash(head).await
    }
}

/// As the follower does: looks at the head whenever it may have changed.
async fn follow_to(source: &rpc::Rpc, hash: B256) -> BlockRef {
    let began = Instant::now();
    loop {
        if let Ok(head) = source.head().await
            && head.hash == hash
        {
            return head;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "it never came to {hash}: {:?}", source.providers());
        source.changed().await;
    }
}

fn list(proxies: &[FaultProxy], web_socket: bool) -> String {
    let urls = proxies.iter().map(|p| format!("{:?}", if web_socket { p.ws() } else { p.http() }));
    format!("rpc = [{}]", urls.collect::<Vec<_>>().join(", "))
}

async fn until_state(source: &rpc::Rpc, index: usize, state: &str) -> ProviderStatus {
    until(&format!("provider {index} to be {state}"), || async {
        // As the router does beside: nobody learns of a provider that is not asked.
        let _ = source.head().await;
        let status = source.providers()[index].clone();
        (status.state == state).then_some(status)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_hangs_or_dies_costs_less_than_a_block_and_comes_back() {
    let Some(mut node) = Node::start(&[]).await else { return };
    for (fault, web_socket) in
        [(Fault::Hang, true), (Fault::Hang, false), (Fault::Drop, false), (Fault::TooMany, false)]
    {
        let proxies = node.proxies(2).await;
        // The patience of a provider that is alone.
        let source = open(&format!("{}\npoll_ms = 50\ntimeout_ms = 20000", list(&proxies, web_socket))).await;
        for _ in 0..10 {
            let hash = node.transfer().await;
            let head = follow_to(&source, hash).await;
            source.block(&head, &logs()).await.expect("a block");
        }
        let before = proxies[1].calls("eth_getBlockReceipts");
        assert!(before <= 2, "asked of two: {before} of 10");
        proxies[0].misbehave(fault, 1.0, 1);
        let began = Instant::now();
        let mut took = vec![];
        for _ in 0..5 {
            let hash = node.transfer().await;
            let asked = Instant::now();
            let head = follow_to(&source, hash).await;
            assert_eq!(source.block(&head, &logs()).await.expect("a block").logs.len(), 1);
            took.push(asked.elapsed());
        }
        // One of five may suffer from a busy machine.
        took.sort();
        let longest = took[3];
        println!("{fault:?}, web_socket {web_socket}: longest {longest:?}, five blocks {:?}", began.elapsed());
        // A block of the fastest large chains but Arbitrum.
        assert!(longest < Duration::from_secs(1), "{fault:?}: {longest:?}, {:?}", source.providers());
        if fault != Fault::TooMany {
            let aside = until_state(&source, 0, "aside").await;
            assert!(aside.why.is_some(), "{aside:?}");
        }
        proxies[0].behave();
        until_state(&source, 0, "well").await;
        let (before, began) = (proxies[0].calls("eth_getBlockReceipts"), Instant::now());
        while proxies[0].calls("eth_getBlockReceipts") == before {
            let hash = node.transfer().await;
            let head = follow_to(&source, hash).await;
            source.block(&head, &logs()).await.expect("a block");
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "the preferred one is not asked again: {:?}",
                source.providers()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_behind_or_on_another_fork_is_left_aside_with_the_reason() {
    let Some(mut node) = Node::start(&[]).await else { return };
    for (fault, count, says) in [(Fault::OlderHead, 2, "behind"), (Fault::SiblingFork, 3, "another fork")] {
        let proxies = node.proxies(count).await;
        let source = open(&format!("{}\npoll_ms = 50", list(&proxies, false))).await;
        let hash = node.transfer().await;
        follow_to(&source, hash).await;
        proxies[0].misbehave(fault, 1.0, 1);
        let began = Instant::now();
        let mut looks = 0;
        let aside = loop {
            // A block every six seconds: a fork is one when it has been for two.
            if looks % 120 == 0 {
                node.transfer().await;
            }
            looks += 1;
            let _ = source.head().await;
            source.changed().await;
            let first = source.providers()[0].clone();
            // On a slow machine it may be late before that.
            if first.state == "aside" && first.why.as_ref().is_some_and(|why| why.contains(says)) {
                break first;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{fault:?}: {:?}", source.providers());
        };
        assert_eq!(aside.state, "aside");
        let hash = node.transfer().await;
        follow_to(&source, hash).await;
        proxies[0].behave();
        until_state(&source, 0, "well").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_head_to_its_logs_there_is_one_round_trip_and_no_needless_question() {
    const METHODS: [&str; 5] =
        ["eth_getBlockByNumber", "eth_getBlockByHash", "eth_getBlockReceipts", "eth_getLogs", "eth_blockNumber"];
    let Some(mut node) = Node::start(&[]).await else { return };
    let proxies = node.proxies(1).await;
    let asked = || METHODS.map(|method| proxies[0].calls(method));
    let since = |before: [u64; 5]| {
        let now = asked();
        std::array::from_fn::<u64, 5, _>(|i| now[i] - before[i])
    };
    for (verify, questions) in [("receipts", [0, 1, 1, 0, 0]), ("bloom", [0, 0, 0, 1, 0])] {
        let source = open(&format!("rpc = {:?}\nverify = {verify:?}", proxies[0].ws())).await;
        let hash = node.transfer().await;
        follow_to(&source, hash).await;
        let mut took = Duration::ZERO;
        for _ in 0..5 {
            // Hints of before are used up.
            while tokio::time::timeout(Duration::from_millis(100), source.changed()).await.is_ok() {
                source.head().await.expect("a head");
            }
            let before = asked();
            let hash = node.transfer().await;
            source.changed().await;
            let head = follow_to(&source, hash).await;
            assert_eq!(since(before), [0; 5], "the notification is the head");
            let began = Instant::now();
            assert_eq!(source.block(&head, &logs()).await.expect("a block").logs.len(), 1);
            took += began.elapsed();
            assert_eq!(since(before), questions, "{METHODS:?}");
            assert_eq!(source.by_hash(hash).await.expect("a header"), head);
            // A bloom that excludes all that is wanted is an answer.
            let number = node.chain.mine(1).await;
            source.changed().await;
            let head = follow_to(&source, node.chain.hash(number).await).await;
            assert!(source.block(&head, &logs()).await.expect("a block").logs.is_empty());
            assert_eq!(since(before), questions, "{METHODS:?}");
        }
        println!("verify = {verify:?}: {:?} a block", took / 5);
    }
    let source = open(&format!("rpc = {:?}\npoll_ms = 10", proxies[0].http())).await;
    let before = asked();
    for _ in 0..20 {
        source.head().await.expect("a head");
        source.changed().await;
    }
    assert_eq!(since(before), [20, 0, 0, 0, 0], "polling asks for the head and nothing else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_provider_may_be_asked_in_a_second_is_kept() {
    let Some(node) = Node::start(&[]).await else { return };
    let proxies = node.proxies(1).await;
    let table = format!("rpc = [{{ url = {:?}, requests_per_second = 20, concurrency = 4 }}]", proxies[0].http());
    let source = open(&table).await;
    let began = Instant::now();
    let all = futures::future::join_all((0..30).map(|_| source.by_number(1))).await;
    assert!(all.iter().all(Result::is_ok));
    assert!(began.elapsed() > Duration::from_millis(1_300), "30 questions in {:?}", began.elapsed());
    // It says "too many" once in a while: nothing is lost, and it is said in the status.
    proxies[0].misbehave(Fault::TooMany, 0.1, 7);
    let all = futures::future::join_all((0..30).map(|_| source.by_number(1))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert!(source.providers()[0].errors > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_counts_when_enough_providers_name_it() {
    let Some(mut node) = Node::start(&[]).await else { return };
    let proxies = node.proxies(2).await;
    let source = open(&format!("{}\nagree = 2\npoll_ms = 50\ntimeout_ms = 300", list(&proxies, true))).await;
    let hash = node.transfer().await;
    let agreed = follow_to(&source, hash).await;
    // One that stands still holds the other back.
    proxies[1].misbehave(Fault::Drop, 1.0, 1);
    // What is said unasked comes until something was asked in vain.
    until_state(&source, 1, "aside").await;
    node.transfer().await;
    for _ in 0..10 {
        match source.head().await {
            Ok(head) => assert_eq!(head, agreed),
            Err(error) => assert!(matches!(error, ReadError::Again { .. }), "{error}"),
        }
        source.changed().await;
    }
    proxies[1].behave();
    let hash = node.chain.hash(node.chain.head().await).await;
    follow_to(&source, hash).await;
    let refused = rpc::Rpc::open(Open {
        name: "test".into(),
        expect: None,
        table: toml::from_str("rpc = [\"http://127.0.0.1:1\"]\nagree = 2").expect("TOML"),
        base: Path::new(".").into(),
    });
    let refused = refused.await.err().expect("two cannot agree where there is one");
    assert!(refused.to_string().contains("`agree` is 2"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_of_the_node_beside_us_is_read_and_listened_to() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("node.ipc").display().to_string();
    let Some(mut node) = Node::start(&["--ipc", &path]).await else { return };
    for url in [path.clone(), format!("ipc://{path}")] {
        let source = open(&format!("rpc = {url:?}\npoll_ms = 20000")).await;
        let first = node.transfer().await;
        follow_to(&source, first).await;
        let began = Instant::now();
        for _ in 0..5 {
            let hash = node.transfer().await;
            let head = follow_to(&source, hash).await;
            assert_eq!(source.block(&head, &logs()).await.expect("a block").logs.len(), 1);
        }
        assert!(began.elapsed() < Duration::from_secs(15), "polling found it, not the subscription");
        assert_eq!(source.providers()[0].name, format!("ipc://{path}"));
    }
}

/// Polygon in 2021, through a reorg, with each fault before it: what is read of a head is what the session has of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorded_session_is_read_through_any_fault() {
    let seed = seed();
    let Some(path) = data("reorg/polygon-13522175.session.ndjson.gz") else { return };
    let wanted = Wanted { logs: true, transactions: true, ..Default::default() };
    let each = Fault::ALL.iter().filter(|f| **f != Fault::SiblingFork).map(|fault| {
        let (path, wanted) = (&path, &wanted);
        async move {
            let server = SessionServer::start(path).await;
            let proxy = FaultProxy::before(&server.url, None).await;
            let honest = open(&format!("rpc = {:?}\nverify = \"bloom\"", server.url)).await;
            // That node had no receipts to ask for: what blooms do not cover is not tried.
            let unproven = matches!(fault, Fault::LieInData);
            let source =
                open(&format!("rpc = {:?}\nverify = \"bloom\"\npoll_ms = 20\ntimeout_ms = 300", proxy.http())).await;
            let mut same = 0;
            for step in 0..12 {
                if !unproven {
                    proxy.misbehave(*fault, 0.2, seed ^ step);
                }
                let head = honest.head().await.expect("a head");
                let (truth, began) = (honest.block(&head, wanted).await, Instant::now());
                while let Ok(truth) = &truth {
                    match source.block(&head, wanted).await {
                        Ok(block) => {
                            // Last logs that say nothing new to the bloom can be cut off unseen.
                            let unseen = truth.logs.starts_with(&block.logs)
                                && proof::bloom_of(&block.logs) == proof::bloom_of(&truth.logs);
                            let rest = Block { logs: truth.logs.clone(), ..block.clone() };
                            assert!(unseen && &rest == truth, "{fault:?}: block {} is another", head.number);
                            same += 1;
                            break;
                        }
                        Err(error) if began.elapsed() > Duration::from_secs(10) => panic!("{fault:?}: {error}"),
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                }
                if !server.advance() {
                    break;
                }
            }
            assert!(same > 8, "{fault:?}: {same} blocks");
        }
    });
    futures::future::join_all(each).await;
}
