//! Promise: a source tells what the chain has, or says that it cannot; it never tells less in silence.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chainweir::model::{Block, ChainId, Wanted};
use chainweir::proof;
use chainweir::source::record::{Reader, Writer, follow, record};
use chainweir::source::{Open, ReadError, Source, Tag, recorded, rpc};
use serde_json::{Value, json};

use crate::harness::anvil::Anvil;
use crate::harness::fake_node::{FakeNode, Reply, TOKEN, TOPIC};
use crate::harness::session::SessionServer;
use crate::verify::data;

fn open(text: &str) -> Open {
    Open { name: "test".into(), expect: None, table: toml::from_str(text).unwrap(), base: Path::new(".").into() }
}

async fn rpc(url: &str) -> rpc::Rpc {
    by(url, "receipts").await
}

/// Filters are asked, and believed as far as blooms go.
async fn by_bloom(url: &str) -> rpc::Rpc {
    by(url, "bloom").await
}

async fn by(url: &str, verify: &str) -> rpc::Rpc {
    let text = format!("rpc = {url:?}\npoll_ms = 50\ntimeout_ms = 2000\nverify = {verify:?}");
    opened(&text).await
}

/// One that is late at the first question is asked again.
async fn opened(table: &str) -> rpc::Rpc {
    until("a provider to answer in time", || rpc::Rpc::open(open(table))).await
}

/// Asks until it succeeds; a source may say "again" and "unknown" on the way.
async fn until<T, F: Future<Output = Result<T, ReadError>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let begin = Instant::now();
    loop {
        match ask().await {
            Ok(value) => return value,
            Err(e) if begin.elapsed() > Duration::from_secs(20) => panic!("{what}: {e}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

fn filtered() -> Wanted {
    Wanted { logs: true, addresses: vec![TOKEN], topic0: vec![TOPIC], ..Default::default() }
}

/// All logs from `from` to the head, by as many ranges as it takes.
async fn walk(source: &dyn Source, from: u64, wanted: &Wanted) -> Vec<Block> {
    let head = until("head", || source.head()).await;
    let (mut next, mut all) = (from, Vec::new());
    while next <= head.number {
        let range = until("range", || source.range(next, head.number, wanted)).await;
        assert!(range.to.number >= next && range.to.number <= head.number);
        next = range.to.number + 1;
        all.extend(range.blocks);
    }
    all
}

fn count(blocks: &[Block]) -> usize {
    blocks.iter().map(|b| b.logs.len()).sum()
}

/// Creates a contract whose code is MSTORE(0, 42); LOG0(0, 32); STOP.
const EMITTER: &str = "0x600b600c600039600b6000f3602a60005260206000a000";

#[tokio::test]
async fn a_real_node_is_read_over_websocket_and_http() {
    let Some(anvil) = Anvil::start(&[]) else { return };
    let from = anvil.call("eth_accounts", json!([])).await[0].clone();
    let sent = anvil.call("eth_sendTransaction", json!([{ "from": from, "data": EMITTER }])).await;
    // A busy machine mines a moment after it has said that it will.
    let mined = async |sent: &Value| {
        crate::harness::until("a receipt", || async {
            let receipt = anvil.call("eth_getTransactionReceipt", json!([sent])).await;
            receipt.is_object().then_some(receipt)
        })
        .await
    };
    let contract = mined(&sent).await["contractAddress"].clone();
    for _ in 0..3 {
        let sent = anvil.call("eth_sendTransaction", json!([{ "from": from, "to": contract, "value": "0x0" }])).await;
        mined(&sent).await;
    }
    for (url, verify) in
        [(anvil.ws(), "receipts"), (anvil.http(), "receipts"), (anvil.ws(), "bloom"), (anvil.http(), "bloom")]
    {
        let source = by(&url, verify).await;
        assert_eq!(source.chain(), ChainId(31337));
        let head = source.head().await.unwrap();
        assert_eq!(head.number, 4);
        assert_eq!(source.by_number(4).await.unwrap(), head);
        assert_eq!(source.by_hash(head.hash).await.unwrap(), head);
        assert!(source.tagged(Tag::Finalized).await.unwrap().is_some());
        let block = source.block(&head, &Wanted::all()).await.unwrap();
        assert_eq!((block.transactions.len(), block.logs.len()), (1, 1), "{url}");
        assert_eq!(block.transactions[0].success, Some(true));
        let first = source.block(&source.by_number(1).await.unwrap(), &Wanted::all()).await.unwrap();
        assert_eq!(json!(first.transactions[0].created), contract);
        let only_logs = source.block(&head, &Wanted { logs: true, ..Default::default() }).await.unwrap();
        assert_eq!(only_logs.logs, block.logs);
        assert_eq!(count(&walk(&source, 0, &Wanted { logs: true, ..Default::default() }).await), 3);
        assert_eq!(count(&walk(&source, 0, &Wanted::all()).await), 3);
        let address = vec![serde_json::from_value(contract.clone()).unwrap()];
        assert_eq!(count(&walk(&source, 0, &Wanted { logs: true, addresses: address, ..Default::default() }).await), 3);
        assert!(matches!(source.by_number(99).await, Err(ReadError::Unknown { .. })));
        assert!(matches!(source.range(99, 100, &Wanted::all()).await, Err(ReadError::Unknown { .. })));
    }
}

#[tokio::test]
async fn a_subscription_wakes_and_a_node_that_is_killed_is_found_again() {
    let Some(anvil) = Anvil::start(&[]) else { return };
    let (port, url) = (anvil.port, anvil.ws());
    let source = rpc::Rpc::open(open(&format!("rpc = {url:?}\npoll_ms = 5000\ntimeout_ms = 2000"))).await.unwrap();
    let before = source.head().await.unwrap();
    source.changed().await; // What the subscription says when it opens.
    anvil.mine(1).await;
    let begin = Instant::now();
    while source.head().await.unwrap() == before {
        source.changed().await;
    }
    assert!(begin.elapsed() < Duration::from_secs(4), "polling found it, not the subscription");
    drop(anvil);
    assert!(matches!(source.head().await, Err(ReadError::Again { .. })));
    let Some(anvil) = Anvil::on(port, &[]) else { return };
    anvil.mine(3).await;
    let all = Wanted::all();
    let mut head = until("the head after a restart", || source.head()).await;
    while head.number != 3 {
        tokio::time::timeout(Duration::from_secs(20), source.changed()).await.expect("changed() returns");
        head = until("the head after a restart", || source.head()).await;
    }
    let block = until("a block after a restart", || source.block(&head, &all)).await;
    assert_eq!(block.at(), head);
    anvil.mine(1).await;
    while until("head", || source.head()).await.number != 4 {
        tokio::time::timeout(Duration::from_secs(20), source.changed()).await.expect("changed() returns");
    }
}

#[tokio::test]
async fn another_chain_is_refused_for_good() {
    let node = FakeNode::start().await;
    let mut wrong = open(&format!("rpc = {:?}", node.url));
    wrong.expect = Some(ChainId(1));
    let refused = rpc::Rpc::open(wrong).await.err().unwrap();
    assert!(matches!(refused, ReadError::Halt { .. }), "{refused}");
}

async fn node_of(blocks: usize, logs: usize) -> FakeNode {
    let node = FakeNode::start().await;
    for _ in 0..blocks {
        node.push(logs);
    }
    node
}

#[tokio::test]
async fn a_provider_that_refuses_large_ranges_is_asked_for_smaller_ones() {
    let node = node_of(100, 2).await;
    for (code, message) in [
        (-32005, "query returned more than 10000 results"),
        (-32005, ""),
        (-32602, "Log response size exceeded. this block range should work: [0x0, 0xffff]"),
        (-32614, "eth_getLogs is limited to a 7 range"),
    ] {
        let source = by_bloom(&node.url).await;
        node.misbehave(move |method, params, honest| {
            let at =
                |k: &str| u64::from_str_radix(params[0][k].as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
            if method == "eth_getLogs" && params[0].get("fromBlock").is_some() && at("toBlock") - at("fromBlock") >= 7 {
                return Reply::Error(code, message.into());
            }
            Reply::Answer(honest)
        });
        assert_eq!(count(&walk(&source, 0, &filtered()).await), 200, "{code} {message}");
        assert_eq!(count(&walk(&source, 0, &Wanted { logs: true, ..Default::default() }).await), 200);
    }
    // Not even one block: then by its hash, and its receipts.
    node.misbehave(|method, _, honest| match method {
        "eth_getLogs" => Reply::Error(-32005, "query returned more than 10000 results".into()),
        _ => Reply::Answer(honest),
    });
    assert_eq!(count(&walk(&by_bloom(&node.url).await, 90, &filtered()).await), 22);
}

#[tokio::test]
async fn a_suspiciously_round_answer_is_split() {
    let node = node_of(40, 50).await;
    // Cuts at 1,000, and says nothing.
    node.misbehave(|method, _, mut honest| {
        if let ("eth_getLogs", Some(all)) = (method, honest.as_array_mut()) {
            all.truncate(1000);
        }
        Reply::Answer(honest)
    });
    assert_eq!(count(&walk(&by_bloom(&node.url).await, 0, &filtered()).await), 2000);
}

#[tokio::test]
async fn logs_that_a_provider_leaves_out_of_a_range_are_found_by_the_blooms() {
    let node = node_of(60, 2).await;
    for _ in 0..20 {
        node.push(0);
    }
    node.misbehave(|method, params, mut honest| {
        if let ("eth_getLogs", Some(all), None) = (method, honest.as_array_mut(), params[0].get("blockHash")) {
            // An index that is behind: whole blocks are missing, and nothing says so.
            all.retain(|log| !log["blockNumber"].as_str().is_some_and(|n| n.ends_with('7') || n.ends_with('c')));
        }
        Reply::Answer(honest)
    });
    assert_eq!(count(&walk(&by_bloom(&node.url).await, 0, &filtered()).await), 120);
    // A bloom that excludes what was asked for is believed: nothing more is asked of such a block.
    node.behave();
    let source = by_bloom(&node.url).await;
    let before = node.calls().len();
    let range = source.range(61, 80, &filtered()).await.unwrap();
    assert_eq!((range.to.number, range.blocks.len()), (80, 0));
    assert_eq!(node.calls()[before..].iter().filter(|m| *m == "eth_getLogs").count(), 1);
}

#[tokio::test]
async fn trouble_that_passes_costs_time_and_nothing_else() {
    let node = node_of(20, 3).await;
    type Trouble = (&'static str, fn() -> Reply);
    let troubles: &[Trouble] = &[
        ("429", || Reply::Status(429, "slow down".into())),
        ("rate in JSON", || Reply::Error(-32005, "project ID request rate exceeded".into())),
        ("500", || Reply::Status(500, "<html>block range too large</html>".into())),
        ("not JSON", || Reply::Status(200, "<html>".into())),
        ("hang", || Reply::Hang),
        ("null", || Reply::Answer(Value::Null)),
        ("internal error", || Reply::Error(-32603, "Internal error".into())),
    ];
    for (name, trouble) in troubles {
        let table = format!("rpc = {:?}\npoll_ms = 50\ntimeout_ms = 150\nmax_range = 1\nverify = \"bloom\"", node.url);
        let source = opened(&table).await;
        let calls = Arc::new(AtomicUsize::new(0));
        let trouble = *trouble;
        node.misbehave(move |_, _, honest| {
            // Every fifth call, from the first on.
            if calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(5) { trouble() } else { Reply::Answer(honest) }
        });
        assert_eq!(count(&walk(&source, 0, &filtered()).await), 60, "{name}");
        let head = until("head", || source.head()).await;
        let all = Wanted::all();
        let block = until("block", || source.block(&head, &all)).await;
        assert_eq!((block.transactions.len(), block.logs.len()), (3, 3), "{name}");
        node.behave();
    }
}

#[tokio::test]
async fn batches_are_given_up_where_they_are_refused_and_not_for_an_outage() {
    let node = node_of(200, 1).await;
    let source = by_bloom(&node.url).await;
    assert_eq!(count(&walk(&source, 0, &filtered()).await), 200);
    let usual = node.largest_batch();
    assert!(usual > 8, "headers come in batches: {usual}");

    node.misbehave(|_, _, _| Reply::Status(502, "bad gateway".into()));
    assert!(source.range(0, 200, &filtered()).await.is_err());
    node.behave();
    node.largest_batch();
    assert_eq!(count(&walk(&source, 0, &filtered()).await), 200);
    assert_eq!(node.largest_batch(), usual, "the connection was at fault, not the batch");
}

#[tokio::test]
async fn rate_limits_never_shrink_a_range() {
    let node = node_of(50, 1).await;
    let source = by_bloom(&node.url).await;
    let limited = AtomicUsize::new(0);
    node.misbehave(move |method, _, honest| {
        if method == "eth_getLogs" && limited.fetch_add(1, Ordering::Relaxed) < 2 {
            return Reply::Error(-32005, "daily request count exceeded, request rate limited".into());
        }
        Reply::Answer(honest)
    });
    let range = source.range(0, 50, &filtered()).await.unwrap();
    assert_eq!((range.to.number, count(&range.blocks)), (50, 50));
}

#[tokio::test]
async fn a_false_answer_is_an_error_and_never_an_empty_block() {
    let node = node_of(3, 4).await;
    let source = by_bloom(&node.url).await;
    let head = source.head().await.unwrap();
    type Lie = (&'static str, fn(&str, Value) -> Value);
    let lies: &[Lie] = &[
        ("no logs", |m, v| if m == "eth_getLogs" { json!([]) } else { v }),
        ("one log less", |m, mut v| {
            if m == "eth_getLogs" {
                v.as_array_mut().unwrap().remove(1);
            }
            v
        }),
        ("removed", |m, mut v| {
            if m == "eth_getLogs" {
                v[0]["removed"] = true.into();
            }
            v
        }),
        ("another block's", |m, mut v| {
            if m == "eth_getLogs" {
                v[0]["blockHash"] = json!(TOPIC);
            }
            v
        }),
        ("out of order", |m, mut v| {
            if m == "eth_getLogs" {
                v.as_array_mut().unwrap().reverse();
            }
            v
        }),
        ("another hash", |m, mut v| {
            if m.starts_with("eth_getBlockBy") {
                v["hash"] = json!(TOPIC);
            }
            v
        }),
        ("another parent", |m, mut v| {
            if m.starts_with("eth_getBlockBy") {
                v["parentHash"] = json!(TOPIC);
            }
            v
        }),
    ];
    for (name, lie) in lies {
        let lie = *lie;
        // One that does not know the header yet: what is proven is not asked for again.
        let source = by_bloom(&node.url).await;
        node.misbehave(move |method, _, honest| Reply::Answer(lie(method, honest)));
        let answer = source.block(&head, &Wanted { logs: true, ..Default::default() }).await;
        node.behave();
        assert!(matches!(answer, Err(ReadError::False { .. })), "{name}: {answer:?}");
    }
    for (name, lie) in &lies[2..5] {
        let lie = *lie;
        node.misbehave(move |method, _, honest| Reply::Answer(lie(method, honest)));
        let answer = source.range(1, 3, &filtered()).await;
        assert!(matches!(answer, Err(ReadError::False { .. })), "range, {name}: {answer:?}");
    }
    let receipts: &[Lie] = &[
        ("no receipts", |m, v| if m == "eth_getBlockReceipts" { json!([]) } else { v }),
        ("failed", |m, mut v| {
            if m == "eth_getBlockReceipts" {
                v[0]["status"] = "0x0".into();
            }
            v
        }),
        ("no transactions", |m, mut v| {
            if m.starts_with("eth_getBlockBy") {
                v["transactions"] = json!([]);
            }
            v
        }),
    ];
    for (name, lie) in receipts {
        let lie = *lie;
        node.misbehave(move |method, _, honest| Reply::Answer(lie(method, honest)));
        let answer = source.block(&head, &Wanted::all()).await;
        assert!(matches!(answer, Err(ReadError::False { .. })), "{name}: {answer:?}");
    }
    node.behave();
    assert_eq!(source.block(&head, &Wanted::all()).await.unwrap().logs.len(), 4);
}

#[tokio::test]
async fn a_node_without_block_receipts_is_asked_one_by_one() {
    let node = node_of(2, 5).await;
    let source = rpc(&node.url).await;
    node.misbehave(|method, _, honest| match method {
        "eth_getBlockReceipts" => {
            Reply::Error(-32601, "the method eth_getBlockReceipts does not exist/is not available".into())
        }
        _ => Reply::Answer(honest),
    });
    let head = source.head().await.unwrap();
    assert_eq!(source.block(&head, &Wanted::all()).await.unwrap().logs.len(), 5);
    source.block(&head, &Wanted::all()).await.unwrap();
    assert_eq!(node.calls().iter().filter(|m| *m == "eth_getBlockReceipts").count(), 1, "it is remembered");
}

#[tokio::test]
async fn a_range_ends_at_the_head_of_the_node_that_answers() {
    let node = node_of(10, 1).await;
    let range = rpc(&node.url).await.range(5, 1000, &filtered()).await.unwrap();
    assert_eq!((range.to.number, count(&range.blocks)), (10, 6));
}

#[tokio::test]
async fn another_provider_answers_while_the_first_is_ill() {
    let (first, second) = (node_of(3, 1).await, node_of(3, 1).await);
    let source =
        rpc::Rpc::open(open(&format!("rpc = [{:?}, {:?}]\ntimeout_ms = 500", first.url, second.url))).await.unwrap();
    first.misbehave(|_, _, _| Reply::Status(502, "bad gateway".into()));
    assert_eq!(source.head().await.unwrap().number, 3);
    assert_eq!(count(&walk(&source, 0, &filtered()).await), 3);
    assert!(second.calls().contains(&"eth_getBlockReceipts".into()));
}

#[tokio::test]
async fn a_recorded_session_of_a_real_node_is_read_through_its_reorg() {
    for (name, orphans) in [("polygon-13522175", 1), ("polygon-13522239", 2), ("polygon-13522111", 0)] {
        let Some(path) = data(&format!("reorg/{name}.session.ndjson.gz")) else { return };
        let server = SessionServer::start(&path).await;
        let source = by_bloom(&server.url).await;
        assert_eq!(source.tagged(Tag::Finalized).await.unwrap(), None);
        let wanted = Wanted { logs: true, transactions: true, ..Default::default() };
        let (mut logs, mut blocks, mut unknown) = (0, 0, 0);
        loop {
            let head = source.head().await.unwrap();
            match source.block(&head, &wanted).await {
                Ok(block) => {
                    blocks += 1;
                    logs += block.logs.len();
                }
                Err(ReadError::Unknown { .. }) => unknown += 1,
                Err(e) => panic!("{name}, {head}: {e}"),
            }
            if !server.advance() {
                break;
            }
        }
        assert!(server.done());
        assert!(blocks >= 55 && logs > 1000, "{name}: {blocks} blocks, {logs} logs");
        eprintln!("{name}: {blocks} heads read, {logs} logs, {unknown} unknown, {orphans} orphans recorded");
        // The canonical end, by range and block by block, tells the same.
        let head = source.head().await.unwrap();
        let from = head.number - 40;
        let by_range = walk(&source, from, &Wanted { logs: true, ..Default::default() }).await;
        let mut by_block = 0;
        for n in from..=head.number {
            let at = source.by_number(n).await.unwrap();
            by_block += source.block(&at, &Wanted { logs: true, ..Default::default() }).await.unwrap().logs.len();
        }
        assert_eq!(count(&by_range), by_block, "{name}");
    }
}

#[tokio::test]
async fn a_recording_plays_every_head_and_keeps_every_reorg_visible() {
    let Some(path) = data("reorg/polygon-13522175.blocks.ndjson.gz") else { return };
    let source = recorded::Recorded::open(open(&format!("files = {:?}", path.display().to_string()))).await.unwrap();
    let wanted = Wanted { logs: true, transactions: true, ..Default::default() };
    let (mut heads, mut logs) = (Vec::new(), 0);
    while !source.ended() {
        let head = source.head().await.unwrap();
        if heads.last() != Some(&head) {
            heads.push(head);
            logs += source.block(&head, &wanted).await.unwrap().logs.len();
            assert_eq!(source.by_number(head.number).await.unwrap(), head);
        }
        source.changed().await;
    }
    assert_eq!((heads.len(), logs), (57, 1961));
    let tip = heads.last().unwrap();
    let range = source.range(tip.number - 30, tip.number, &wanted).await.unwrap();
    assert_eq!(range.blocks.len(), 31);
    for pair in range.blocks.windows(2) {
        assert_eq!(pair[0].at().hash, pair[1].at().parent);
    }
    let refused = source.block(tip, &Wanted::all()).await.unwrap_err();
    assert!(
        matches!(&refused, ReadError::Halt { why } if why.contains("line 57") && why.contains("receipts")),
        "{refused}"
    );
}

#[tokio::test]
async fn what_is_recorded_from_a_node_plays_as_it_was() {
    let node = node_of(6, 2).await;
    let source = rpc(&node.url).await;
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.ndjson", "a.ndjson.gz"] {
        let path = folder.path().join(name);
        let mut writer = Writer::create(&path).unwrap();
        let mut seen = Vec::new();
        for n in 0..=6 {
            let at = source.by_number(n).await.unwrap();
            writer.write(&source.record(&at).await.unwrap()).unwrap();
            seen.push(source.block(&at, &Wanted::all()).await.unwrap());
        }
        writer.finish().unwrap();
        assert_eq!(Reader::open(&path).unwrap().count(), 7);
        let mut table = open("files = \"a*\"");
        table.table.insert("files".into(), name.into());
        table.base = folder.path().into();
        let played = recorded::Recorded::open(table).await.unwrap();
        for block in seen {
            let head = played.head().await.unwrap();
            assert_eq!(played.block(&head, &Wanted::all()).await.unwrap(), block);
            played.changed().await;
        }
        assert!(played.ended());
    }
}

#[tokio::test]
async fn following_records_orphaned_blocks_too_in_the_order_of_their_coming() {
    let node = node_of(4, 1).await;
    let source = rpc(&node.url).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.ndjson.gz");
    let mut writer = Writer::create(&path).unwrap();
    let mut steps = vec![3, 1, 2].into_iter();
    // A reorg each time the tip has been written.
    let progress = |at: chainweir::model::BlockRef| {
        if at.hash == node.tip()
            && let Some(depth) = steps.next()
        {
            node.reorg(depth, 2);
        }
    };
    follow(&source, 1, Some(7), &mut writer, std::future::pending(), progress).await.unwrap();
    writer.finish().unwrap();
    let numbers: Vec<u64> = Reader::open(&path).unwrap().map(|l| l.unwrap().1.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 2, 3, 4, 5, 5, 6, 5, 6, 7]);
    let played = recorded::Recorded::open(open(&format!("files = {:?}", path.display().to_string()))).await.unwrap();
    while !played.ended() {
        let head = played.head().await.unwrap();
        played.block(&head, &Wanted::all()).await.unwrap();
        played.changed().await;
    }
    assert_eq!(played.head().await.unwrap(), source.head().await.unwrap());

    let mut writer = Writer::create(&path).unwrap();
    record(&source, 0, 7, &mut writer, |_| {}).await.unwrap();
    writer.finish().unwrap();
    assert_eq!(Reader::open(&path).unwrap().count(), 8);
}

#[tokio::test]
async fn a_recording_that_is_cut_off_or_has_a_gap_says_where() {
    let node = node_of(4, 1).await;
    let source = rpc(&node.url).await;
    let folder = tempfile::tempdir().unwrap();
    let mut lines = Vec::new();
    for n in [0, 1, 3] {
        let at = source.by_number(n).await.unwrap();
        lines.push(serde_json::to_string(&source.record(&at).await.unwrap()).unwrap());
    }
    let path = folder.path().join("x.ndjson");
    for (text, says) in [(lines.join("\n"), "gap"), (lines.join("\n")[..lines[0].len() + 50].to_owned(), "line 2")] {
        std::fs::write(&path, text).unwrap();
        let refused =
            recorded::Recorded::open(open(&format!("files = {:?}", path.display().to_string()))).await.err().unwrap();
        assert!(matches!(&refused, ReadError::Halt { why } if why.contains(says)), "{refused}");
    }
}

#[test]
fn the_state_sync_transaction_is_known_by_its_hash() {
    let Some(path) = data("reorg/polygon-13522239.blocks.ndjson.gz") else { return };
    let mut found = 0;
    for line in Reader::open(&path).unwrap() {
        let (_, line) = line.unwrap();
        let block: Value = serde_json::from_str(line.block.as_ref().unwrap().get()).unwrap();
        if line.number % 64 == 0 {
            let last = block["transactions"].as_array().unwrap().last().unwrap()["hash"].clone();
            found += usize::from(last == json!(proof::state_sync_hash(line.number, line.hash)));
        }
    }
    assert!(found > 0);
}
