//! Promise: what real nodes answer is understood. Every case in the shared data's `jsonrpc/` (execution-apis' and recorded
//! answers of five chains) goes through the parsing and the proofs of the source; and a server made of them alone answers
//! our client's own questions.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use alloy_consensus::{BlockBody, Header, TxEnvelope};
use alloy_primitives::{B256, Bloom, Bytes, keccak256};
use alloy_rlp::Decodable;
use chainweir::model::{BlockRef, ChainId, Log, Wanted};
use chainweir::proof::{self, Quirks};
use chainweir::source::classify::{Asks, classify};
use chainweir::source::record::Line;
use chainweir::source::rpc::Rpc;
use chainweir::source::wire::{self, WireBlock, WireReceipt, WireTransaction};
use chainweir::source::{Open, ReadError, Source, Tag};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use crate::verify::data;

const EXECUTION_APIS: ChainId = ChainId(0xc72dd9d5e883e);

struct Case {
    from: String,
    chain: ChainId,
    request: Value,
    response: Value,
}

impl Case {
    fn method(&self) -> &str {
        self.request["method"].as_str().expect("a method")
    }

    fn param(&self) -> &Value {
        &self.request["params"][0]
    }
}

/// All of them, batches taken apart, and in how many files they were.
fn cases(root: &Path) -> (Vec<Case>, usize) {
    let mut cases = Vec::new();
    let mut files = 0;
    let mut push = |from: &str, chain: ChainId, request: Value, response: Value| match (request, response) {
        (Value::Array(requests), Value::Array(responses)) => {
            assert_eq!(requests.len(), responses.len(), "{from}");
            for (request, response) in requests.into_iter().zip(responses) {
                assert_eq!(request["id"], response["id"], "{from}");
                cases.push(Case { from: from.into(), chain, request, response });
            }
        }
        (request, response) => cases.push(Case { from: from.into(), chain, request, response }),
    };
    let list = |folder: &Path| {
        let mut all: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        all.sort();
        all
    };
    for method in list(&root.join("execution-apis")).into_iter().filter(|p| p.is_dir()) {
        for file in list(&method) {
            files += 1;
            let name = format!("{}/{}", method.file_name().unwrap().display(), file.file_name().unwrap().display());
            let text = std::fs::read_to_string(&file).unwrap();
            let mut request = None;
            for line in text.lines() {
                if let Some(asked) = line.strip_prefix(">> ") {
                    request = Some(serde_json::from_str(asked).unwrap());
                } else if let Some(answer) = line.strip_prefix("<< ") {
                    let request = request.take().expect("a request before its answer");
                    push(&name, EXECUTION_APIS, request, serde_json::from_str(answer).unwrap());
                } else {
                    assert!(line.starts_with("//") || line.is_empty(), "{name}: {line}");
                }
            }
            assert!(request.is_none(), "{name}");
        }
    }
    for file in list(&root.join("erigon-rpc-tests")) {
        files += 1;
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let chain = ChainId(match name.split('.').next().unwrap() {
            "mainnet" => 1,
            "gnosis" => 100,
            "polygon-pos" => 137,
            "arb-sepolia" => 421614,
            other => panic!("{other}: a chain that is not known here"),
        });
        for line in BufReader::new(flate2::read::GzDecoder::new(std::fs::File::open(&file).unwrap())).lines() {
            let mut case: Value = serde_json::from_str(&line.unwrap()).unwrap();
            push(case["source"].clone().as_str().unwrap(), chain, case["request"].take(), case["response"].take());
        }
    }
    for file in list(&root.join("recorded-getlogs")) {
        files += 1;
        let mut case: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        push(&file.display().to_string(), ChainId(1), case["request"].take(), case["response"].take());
    }
    (cases, files)
}

fn raw(value: &Value) -> Box<RawValue> {
    to_raw_value(value).unwrap()
}

/// Logs as the source reads them, in the order that it insists on within each block.
fn read_logs(from: &str, told: &Value) -> Vec<(B256, Log)> {
    let told = wire::parse_logs(raw(told).get()).unwrap_or_else(|e| panic!("{from}: {e}"));
    let all: Vec<_> = told.into_iter().map(|l| (l.block_hash, l.into_model().unwrap())).collect();
    for block in all.chunk_by(|a, b| a.0 == b.0) {
        let logs: Vec<Log> = block.iter().map(|(_, log)| log.clone()).collect();
        proof::in_order(&logs).unwrap_or_else(|e| panic!("{from}: {e}"));
    }
    all
}

/// A filter of the specification against a log, by this test's own reading of it.
fn matches(filter: &Value, log: &Log) -> bool {
    let one = |allowed: &Value, is: &str| match allowed {
        Value::Null => true,
        Value::String(s) => s.eq_ignore_ascii_case(is),
        Value::Array(any) => any.is_empty() || any.iter().any(|a| a.as_str().unwrap().eq_ignore_ascii_case(is)),
        other => panic!("{other}"),
    };
    one(&filter["address"], &log.address.to_string())
        && filter["topics"].as_array().is_none_or(|topics| {
            topics.iter().enumerate().all(|(i, allowed)| match log.topics.get(i) {
                Some(topic) => one(allowed, &topic.to_string()),
                None => allowed.as_array().is_some_and(Vec::is_empty) || allowed.is_null(),
            })
        })
}

fn read_block(case: &Case, told: &Value) -> WireBlock {
    let block = WireBlock::parse(raw(told).get()).unwrap_or_else(|e| panic!("{}: {e}", case.from));
    let mut doubts = vec![];
    block.verify(case.chain, &Quirks::of(case.chain), &mut doubts).unwrap_or_else(|e| panic!("{}: {e}", case.from));
    assert_eq!(doubts, Vec::<String>::new(), "{}", case.from);
    block
}

/// The line of the record format that an answered block makes, with receipts where they are in a case too.
fn line(case: &Case, block: &WireBlock, receipts: Option<&Value>) -> Line {
    Line {
        chain_id: case.chain.0,
        number: block.header.number,
        hash: block.hash,
        block: Some(raw(&case.response["result"])),
        receipts: receipts.map(raw),
        logs: None,
    }
}

/// What our client never asks. Its answers are looked at for being JSON-RPC, no more.
const NOT_OURS: &[&str] = &[
    "eth_call",
    "eth_capabilities",
    "eth_config",
    "eth_feeHistory",
    "eth_getBalance",
    "eth_getBlockTransactionCountByHash",
    "eth_getBlockTransactionCountByNumber",
    "eth_getCode",
    "eth_syncing",
    "net_version",
    "debug_getRawTransaction",
];

#[test]
fn every_recorded_answer_is_understood() {
    let Some(root) = data("jsonrpc") else { return };
    let (cases, files) = cases(&root);
    assert_eq!((files, cases.len()), (75, 133), "files and cases: a set that grew is looked at, not passed over");

    let mut receipts_of: BTreeMap<B256, &Value> = BTreeMap::new();
    for case in cases.iter().filter(|c| c.method().contains("BlockReceipts")) {
        if let Some(hash) = case.response["result"][0]["blockHash"].as_str() {
            receipts_of.insert(hash.parse().unwrap(), &case.response["result"]);
        }
    }
    let mut blooms: BTreeMap<B256, Bloom> = BTreeMap::new();
    for case in cases.iter().filter(|c| c.method().starts_with("eth_getBlockBy")) {
        if !case.response["result"].is_null() {
            let block = read_block(case, &case.response["result"]);
            blooms.insert(block.hash, block.header.logs_bloom);
        }
    }

    let mut tally: BTreeMap<&str, usize> = BTreeMap::new();
    for case in &cases {
        let from = &case.from;
        let result = &case.response["result"];
        if let Some(error) = case.response.get("error") {
            let asks = classify(case.method(), error["code"].as_i64().unwrap(), error["message"].as_str().unwrap());
            let expected = match from.as_str() {
                "eth_getLogs/filter-error-future-block-range.io" => Asks::Unknown,
                "eth_getLogs/filter-error-invalid-blockHash-and-range.io"
                | "eth_call/call-revert-abi-error.io"
                | "debug_getRawTransaction/get-invalid-hash.io" => Asks::Other,
                other => panic!("{other}: an error that nobody has judged: {error}"),
            };
            assert_eq!(asks, expected, "{from}");
            *tally.entry("errors").or_default() += 1;
            continue;
        }
        let kind = match case.method() {
            _ if result.is_null() => "nulls",
            "eth_chainId" | "eth_blockNumber" => {
                let _: alloy_primitives::U64 = serde_json::from_value(result.clone()).unwrap();
                "numbers"
            }
            "eth_getBlockByHash" | "eth_getBlockByNumber" => {
                let block = read_block(case, result);
                let full = result["transactions"].as_array().unwrap().first().is_none_or(Value::is_object);
                let receipts = receipts_of.get(&block.hash).copied();
                let wanted = Wanted {
                    blocks: true,
                    transactions: full,
                    receipts: full && receipts.is_some(),
                    logs: receipts.is_some(),
                    ..Default::default()
                };
                let mut doubts = vec![];
                let whole = line(case, &block, receipts).to_block(&wanted, &Quirks::of(case.chain), &mut doubts);
                let whole = whole.unwrap_or_else(|e| panic!("{from}: {e}"));
                assert_eq!(doubts, Vec::<String>::new(), "{from}");
                assert_eq!(whole.transactions.len(), if full { block.count() } else { 0 }, "{from}");
                if receipts.is_some() { "blocks proven with receipts" } else { "blocks proven" }
            }
            "eth_getBlockReceipts" | "erigon_getBlockReceiptsByBlockHash" => {
                let told = wire::parse_receipts(raw(result).get()).unwrap_or_else(|e| panic!("{from}: {e}"));
                let json = result.as_array().unwrap();
                for (receipt, json) in told.iter().zip(json) {
                    let logs: Vec<Log> = receipt.logs.iter().map(|l| l.clone().into_model().unwrap()).collect();
                    let bloom: Bloom = json["logsBloom"].as_str().unwrap().parse().unwrap();
                    assert_eq!(proof::bloom_of(&logs), bloom, "{from}");
                }
                let logs: Vec<Value> = json.iter().flat_map(|r| r["logs"].as_array().unwrap().clone()).collect();
                read_logs(from, &json!(logs));
                "lists of receipts"
            }
            "eth_getLogs" => {
                let filter = case.param();
                for (hash, log) in read_logs(from, result) {
                    assert!(matches(filter, &log), "{from}: log {} was not asked for", log.index);
                    if let Some(bloom) = blooms.get(&hash) {
                        let (at, none) = ((0, hash), Quirks::default());
                        let inside = proof::in_bloom(at, bloom, std::slice::from_ref(&log), &none);
                        inside.unwrap_or_else(|e| panic!("{from}: {e}"));
                    }
                }
                "filtered logs"
            }
            "erigon_getLogsByHash" => {
                let logs: Vec<Value> =
                    result.as_array().unwrap().iter().flat_map(|t| t.as_array().unwrap().clone()).collect();
                let logs: Vec<Log> = read_logs(from, &json!(logs)).into_iter().map(|(_, log)| log).collect();
                if let Some(bloom) = case.param().as_str().and_then(|h| blooms.get(&h.parse::<B256>().unwrap())) {
                    let (at, none) = ((0, B256::ZERO), Quirks::default());
                    proof::all_logs(at, bloom, &logs, None, &none).unwrap_or_else(|e| panic!("{from}: {e}"));
                }
                "logs of a block"
            }
            "eth_getTransactionByHash" => {
                let tx: WireTransaction =
                    serde_json::from_value(result.clone()).unwrap_or_else(|e| panic!("{from}: {e}"));
                assert_eq!(json!(tx.hash), *case.param(), "{from}");
                "transactions"
            }
            "eth_getTransactionReceipt" => {
                let receipt: WireReceipt =
                    serde_json::from_value(result.clone()).unwrap_or_else(|e| panic!("{from}: {e}"));
                assert_eq!(json!(receipt.transaction_hash), *case.param(), "{from}");
                "receipts"
            }
            "debug_getRawHeader" | "debug_getRawBlock" | "debug_getRawReceipts" => "raw forms, of the chain below",
            other => {
                assert!(NOT_OURS.contains(&other), "{from}: {other} is new: is it ours?");
                "not ours"
            }
        };
        *tally.entry(kind).or_default() += 1;
    }
    println!("{tally:#?}");
    assert_eq!(tally.values().sum::<usize>(), cases.len());
    assert!(tally["blocks proven with receipts"] >= 3, "{tally:?}");
}

struct Known {
    header: Header,
    hash: B256,
    transactions: Vec<B256>,
}

/// execution-apis' whole chain.
fn chain(root: &Path) -> Vec<Known> {
    let rlp = std::fs::read(root.join("execution-apis/chain.rlp")).unwrap();
    let mut rest = rlp.as_slice();
    let mut all = Vec::new();
    while !rest.is_empty() {
        let block = alloy_consensus::Block::<TxEnvelope>::decode(&mut rest).unwrap();
        let BlockBody { transactions, .. } = block.body;
        let hash = block.header.hash_slow();
        all.push(Known {
            header: block.header,
            hash,
            transactions: transactions.iter().map(|t| *t.tx_hash()).collect(),
        });
    }
    all
}

/// Answers what is in the cases, and headers of the chain that they were made over; nothing else.
async fn serve(cases: Arc<Vec<Case>>, of: ChainId, chain: Arc<Vec<Known>>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = move |method: &str, params: &Value| -> Result<Value, Value> {
        let lower = |v: &Value| v.to_string().to_lowercase();
        let asked = |case: &&Case| {
            // Parameters that there are none of may be left out.
            let none = json!([]);
            let theirs = case.request.get("params").unwrap_or(&none);
            case.chain == of
                && case.method() == method
                && (lower(theirs) == lower(params)
                    || (method.starts_with("eth_getBlockBy") && lower(&theirs[0]) == lower(&params[0])))
        };
        let header = || {
            let of =
                chain.iter().find(|k| params[0] == json!(k.hash) || params[0] == format!("{:#x}", k.header.number))?;
            let mut json = serde_json::to_value(&of.header).unwrap();
            json["hash"] = json!(of.hash);
            json["transactions"] = json!(of.transactions);
            Some(json)
        };
        match method {
            "eth_chainId" => return Ok(json!(format!("{:#x}", of.0))),
            "eth_blockNumber" if of != EXECUTION_APIS => return Ok(json!("0xffffffff")),
            _ => {}
        }
        let found = cases.iter().filter(asked).max_by_key(|c| c.request["params"] == *params);
        match found {
            Some(case) => {
                let mut result = case.response["result"].clone();
                if params[1] == json!(false)
                    && let Some(all) = result.get_mut("transactions").and_then(Value::as_array_mut)
                {
                    all.iter_mut().filter(|t| t.is_object()).for_each(|t| *t = t["hash"].clone());
                }
                case.response.get("error").map_or(Ok(result), |e| Err(e.clone()))
            }
            None if method.starts_with("eth_getBlockBy") && params[1] == json!(false) => Ok(json!(header())),
            None => Err(
                json!({ "code": -32601, "message": format!("the method {method} does not exist/is not available") }),
            ),
        }
    };
    let answer = Arc::new(answer);
    let handler = move |axum::Json(body): axum::Json<Value>| async move {
        let one = |body: &Value| match answer(body["method"].as_str().unwrap(), &body["params"]) {
            Ok(result) => json!({ "jsonrpc": "2.0", "id": body["id"], "result": result }),
            Err(error) => json!({ "jsonrpc": "2.0", "id": body["id"], "error": error }),
        };
        axum::Json(match &body {
            Value::Array(batch) => batch.iter().map(one).collect(),
            _ => one(&body),
        })
    };
    let app = axum::Router::new().route("/", axum::routing::post(handler));
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

async fn client(url: &str, chain: ChainId) -> Rpc {
    // The cases have no receipts of most blocks.
    let table = toml::Table::from_iter([("rpc".to_owned(), url.into()), ("verify".to_owned(), "bloom".into())]);
    let open = Open { name: "cases".into(), expect: Some(chain), table, base: ".".into() };
    Rpc::open(open).await.expect("the server answers")
}

fn place(chain: ChainId, block: &Value) -> BlockRef {
    let header: Header = serde_json::from_value(block.clone()).unwrap();
    BlockRef {
        chain,
        number: header.number,
        hash: block["hash"].as_str().unwrap().parse().unwrap(),
        parent: header.parent_hash,
        time: header.timestamp,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_client_gets_from_a_server_of_recorded_answers_what_they_say() {
    let Some(root) = data("jsonrpc") else { return };
    let known = Arc::new(chain(&root));
    assert_eq!(known.len(), 54);
    let cases = Arc::new(cases(&root).0);
    for case in cases.iter().filter(|c| c.method() == "debug_getRawHeader" && *c.param() != json!("0x0")) {
        let bytes: Bytes = serde_json::from_value(case.response["result"].clone()).unwrap();
        assert!(known.iter().any(|k| k.hash == keccak256(&bytes)), "{}", case.from);
    }
    let (mut blocks, mut unknown, mut whole) = (0, 0, 0);
    for chain in [EXECUTION_APIS, ChainId(1)] {
        let url = serve(cases.clone(), chain, known.clone()).await;
        let source = client(&url, chain).await;
        for case in cases.iter().filter(|c| c.chain == chain) {
            let result = &case.response["result"];
            let answer = match (case.method(), case.param().as_str()) {
                ("eth_getBlockByHash", Some(hash)) => source.by_hash(hash.parse().unwrap()).await,
                ("eth_getBlockByNumber", Some(tag @ ("safe" | "finalized"))) => {
                    let tag = if tag == "safe" { Tag::Safe } else { Tag::Finalized };
                    source.tagged(tag).await.map(|at| at.expect("this chain has tags"))
                }
                ("eth_getBlockByNumber", Some(number)) => {
                    source.by_number(u64::from_str_radix(&number[2..], 16).unwrap()).await
                }
                _ => continue,
            };
            if result.is_null() {
                unknown += 1;
                assert!(matches!(answer, Err(ReadError::Unknown { .. })), "{}: {answer:?}", case.from);
                continue;
            }
            blocks += 1;
            let at = place(chain, result);
            assert_eq!(answer, Ok(at), "{}", case.from);
            // With everything, where a case holds the receipts too.
            let receipts = cases.iter().find(|c| c.method() == "eth_getBlockReceipts" && c.param() == &json!(at.hash));
            if let Some(receipts) = receipts {
                whole += 1;
                let block = source.block(&at, &Wanted::all()).await.unwrap_or_else(|e| panic!("{}: {e}", case.from));
                let told = receipts.response["result"].as_array().unwrap();
                assert_eq!(block.transactions.len(), told.len());
                assert_eq!(block.logs.len(), told.iter().map(|r| r["logs"].as_array().unwrap().len()).sum::<usize>());
            }
        }
    }
    assert_eq!((blocks, unknown, whole), (23, 4, 1));

    // A block's logs, as they are asked for near the tip.
    let url = serve(cases.clone(), EXECUTION_APIS, known.clone()).await;
    let source = client(&url, EXECUTION_APIS).await;
    let case = cases.iter().find(|c| c.from == "eth_getLogs/filter-with-blockHash.io").unwrap();
    let of = known.iter().find(|k| case.param()["blockHash"] == json!(k.hash)).unwrap();
    let at = source.by_hash(of.hash).await.expect("the chain's header");
    let block = source.block(&at, &Wanted { logs: true, ..Default::default() }).await.expect("the case's answer");
    let told: Vec<Log> = read_logs(&case.from, &case.response["result"]).into_iter().map(|(_, log)| log).collect();
    assert!(!told.is_empty());
    assert_eq!((block.at().number, block.logs), (of.header.number, told));
}
