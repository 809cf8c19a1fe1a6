//! Promise: what the host decodes is what the contract said, or an error that says why not. Against what others encoded and
//! decoded: solc, ethers, eth-abi, the Ethereum tests.

use std::collections::HashMap;
use std::sync::Arc;

use alloy_primitives::{Address, B256, Bytes, I256, U256, keccak256};
use chainweir::model::{EventAbi, Log};
use serde_json::{Value, json};

use crate::harness::fake_node::{FakeNode, TOKEN};
use crate::harness::process::{Process, folder};
use crate::harness::until;
use crate::recorded::lines;
use crate::verify::data;

fn read(event: &str, topics: Vec<B256>, data: Bytes) -> Value {
    let event = Arc::new(EventAbi::parse(event).unwrap_or_else(|why| panic!("{event}: {why}")));
    let log =
        Log { index: 0, transaction_index: 0, transaction_hash: B256::ZERO, address: Address::ZERO, topics, data };
    let mut out = Vec::new();
    EventAbi::read(&[event], &log, &mut out);
    serde_json::from_slice(&out).expect("it is JSON")
}

/// An event of arguments that are all in the data.
fn event(inputs: &Value) -> String {
    let mut inputs = inputs.clone();
    inputs.as_array_mut().unwrap().iter_mut().for_each(|input| input["indexed"] = json!(false));
    json!({ "type": "event", "name": "E", "inputs": inputs, "anonymous": true }).to_string()
}

/// A type in ethers' short form, `(uint256,address)[2]`, as a JSON ABI has it.
fn input(kind: &str) -> Value {
    let Some(inside) = kind.strip_prefix('(') else { return json!({ "name": "", "type": kind }) };
    let (mut depth, mut begin, mut components) = (1, 0, vec![]);
    for (at, c) in inside.char_indices() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if depth == 0 || (depth == 1 && c == ',') {
            components.push(input(&inside[begin..at]));
            begin = at + 1;
        }
        if depth == 0 {
            return json!({ "name": "", "type": format!("tuple{}", &inside[at + 1..]), "components": components });
        }
    }
    panic!("{kind} has no end");
}

/// Ours has numbers in decimal and all hex in lower case; tuples with names are objects, theirs lists.
fn same(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::String(hash)) => a.len() == 1 && a["hash"] == *hash,
        (Value::Object(a), Value::Array(b)) => a.len() == b.len() && a.values().zip(b).all(|(a, b)| same(a, b)),
        (Value::String(a), Value::Number(b)) => *a == b.to_string(),
        (Value::String(a), Value::String(b)) if a == b => true,
        (Value::String(a), Value::String(b)) if a.starts_with("0x") => *a == b.to_lowercase(),
        (Value::String(a), Value::String(b)) => {
            let digits = b.replace("0x", "");
            let radix = if b.contains("0x") { 16 } else { 10 };
            let number =
                I256::try_from(U256::from_str_radix(digits.trim_start_matches('-'), radix).unwrap_or_default());
            match a.parse::<U256>() {
                Ok(a) => U256::from_str_radix(&digits, radix) == Ok(a),
                Err(_) => b.starts_with('-') && number.is_ok_and(|n| a.parse::<I256>() == Ok(-n)),
            }
        }
        (a, b) => a == b,
    }
}

/// The arguments without their names.
fn values(told: &Value) -> Value {
    match told["args"].as_object() {
        Some(args) => args.values().cloned().collect(),
        None => panic!("{told}"),
    }
}

#[test]
fn every_log_that_another_library_decoded_reads_the_same() {
    let Some(root) = data("decode") else { return };
    let mut abis: HashMap<(String, String), String> = HashMap::new();
    let mut decoded = 0;
    for (blocks, expected) in [
        ("chain/mainnet-17686110-17686117.ndjson.gz", "decode/mainnet-17686110-17686113.decoded.ndjson.gz"),
        ("reorg/polygon-13522175.blocks.ndjson.gz", "decode/polygon-13522175.decoded.ndjson.gz"),
    ] {
        let root = root.parent().unwrap();
        let mut logs: HashMap<(String, u64), Value> = HashMap::new();
        for line in lines(&root.join(blocks)) {
            let in_receipts = line["receipts"].as_array().into_iter().flatten().flat_map(|r| r["logs"].as_array());
            let told = line["logs"].as_array().into_iter().chain(in_receipts).flatten();
            for log in told {
                let index = log["logIndex"].as_str().unwrap();
                let index = u64::from_str_radix(index.trim_start_matches("0x"), 16).unwrap();
                logs.insert((log["blockHash"].as_str().unwrap().to_owned(), index), log.clone());
            }
        }
        for case in lines(&root.join(expected)) {
            let abi = case["abi"].as_str().unwrap().to_owned();
            let signature = case["event"].as_str().unwrap().to_owned();
            let event = abis.entry((abi.clone(), signature.clone())).or_insert_with(|| {
                let text = std::fs::read_to_string(root.join(format!("abis/{abi}.json"))).unwrap();
                let items: Vec<Value> = serde_json::from_str(&text).unwrap();
                let topic0 = case["topic0"].as_str().unwrap();
                let is_it = |item: &&Value| {
                    let indexed =
                        |args: &Value| args.as_array().unwrap().iter().filter(|a| a["indexed"] == true).count();
                    item["type"] == "event"
                        && indexed(&item["inputs"]) == indexed(&case["args"])
                        && keccak256(signature_of(item)).to_string() == topic0
                };
                items.iter().find(is_it).expect("the ABI has the event").to_string()
            });
            let at = (case["blockHash"].as_str().unwrap().to_owned(), case["logIndex"].as_u64().unwrap());
            let log = &logs[&at];
            let topics = serde_json::from_value(log["topics"].clone()).unwrap();
            let told = read(event, topics, serde_json::from_value(log["data"].clone()).unwrap());
            for (i, arg) in case["args"].as_array().unwrap().iter().enumerate() {
                let name = arg["name"].as_str().unwrap();
                let key = if name.is_empty() { i.to_string() } else { name.to_owned() };
                let (ours, theirs) = (&told["args"][&key], &arg["value"]);
                let hashed = theirs.get("hash").is_some_and(|hash| ours["hash"] == *hash);
                assert!(hashed || same(ours, theirs), "{at:?}: {key}: {ours} and {theirs} in {told}");
            }
            assert_eq!(told["event"], signature.split('(').next().unwrap());
            decoded += 1;
        }
    }
    assert_eq!(decoded, 1352 + 749);
}

/// `Transfer(address,address,uint256)`, of an event in a JSON ABI.
fn signature_of(item: &Value) -> String {
    fn kind(input: &Value) -> String {
        let written = input["type"].as_str().unwrap();
        match written.strip_prefix("tuple") {
            Some(rest) => format!("({}){rest}", kinds(&input["components"])),
            None => written.to_owned(),
        }
    }
    fn kinds(inputs: &Value) -> String {
        inputs.as_array().unwrap().iter().map(kind).collect::<Vec<_>>().join(",")
    }
    format!("{}({})", item["name"].as_str().unwrap(), kinds(&item["inputs"]))
}

#[test]
fn every_event_that_solc_wrote_reads_as_ethers_has_it() {
    let Some(root) = data("abi-vectors") else { return };
    let (mut named, mut anonymous) = (0, 0);
    for case in lines(&root.join("ethers5-contract-events.ndjson.gz")) {
        let items: Vec<Value> = serde_json::from_str(case["interface"].as_str().unwrap()).unwrap();
        let item = items.iter().find(|item| item["name"] == "testEvent").unwrap();
        let topics = serde_json::from_value(case["topics"].clone()).unwrap();
        let told = read(&item.to_string(), topics, serde_json::from_value(case["data"].clone()).unwrap());
        let (ours, theirs) = (values(&told), &case["normalizedValues"]);
        assert!(same(&ours, theirs), "{}: {ours} and {theirs}", case["name"]);
        if item["anonymous"] == true { anonymous += 1 } else { named += 1 }
    }
    assert_eq!(named + anonymous, 1344);
    assert!(named > 400 && anonymous > 400, "{named} {anonymous}");
}

/// Ethers' own notation of values with their types.
fn plain(told: &Value) -> Value {
    match told {
        Value::Array(all) => all.iter().map(plain).collect(),
        Value::Object(typed) => plain(&typed["value"]),
        other => other.clone(),
    }
}

#[test]
fn every_encoding_of_the_vectors_reads_back_as_an_event_that_has_it() {
    let Some(root) = data("abi-vectors") else { return };
    let check = |name: &Value, inputs: Value, data: Bytes, theirs: &Value| {
        let ours = values(&read(&event(&inputs), vec![], data));
        assert!(same(&ours, theirs), "{name}: {ours} and {theirs}");
    };
    let mut cases = 0;
    for case in lines(&root.join("ethers5-contract-interface-abi2.ndjson.gz")) {
        let items: Vec<Value> = serde_json::from_str(case["interface"].as_str().unwrap()).unwrap();
        let theirs: Value = serde_json::from_str(case["values"].as_str().unwrap()).unwrap();
        let data = serde_json::from_value(case["result"].clone()).unwrap();
        check(&case["name"], items[0]["outputs"].clone(), data, &plain(&theirs));
        cases += 1;
    }
    for case in lines(&root.join("ethers6-abi.ndjson.gz")) {
        let data = serde_json::from_value(case["encoded"].clone()).unwrap();
        check(&case["name"], json!([input(case["type"].as_str().unwrap())]), data, &json!([plain(&case["verbose"])]));
        cases += 1;
    }
    let text = std::fs::read_to_string(root.join("ethereum-tests-basic_abi_tests.json")).unwrap();
    let basic: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    for (name, case) in &basic {
        let inputs = case["types"].as_array().unwrap().iter().map(|t| input(t.as_str().unwrap())).collect();
        let data = format!("0x{}", case["result"].as_str().unwrap()).parse().unwrap();
        let mut theirs = case["args"].clone();
        for (arg, kind) in theirs.as_array_mut().unwrap().iter_mut().zip(case["types"].as_array().unwrap()) {
            // Bytes are written as their text.
            if let (Some(text), true) = (arg.as_str(), kind.as_str().unwrap().starts_with("bytes")) {
                *arg = json!(alloy_primitives::hex::encode_prefixed(text));
            }
        }
        check(&json!(name), inputs, data, &theirs);
        cases += 1;
    }
    assert_eq!(cases, 1254 + 683 + basic.len());
}

#[test]
fn every_signature_of_the_vectors_is_known_by_its_topic() {
    let Some(root) = data("abi-vectors") else { return };
    let mut cases = 0;
    for case in lines(&root.join("ethers5-contract-signatures.ndjson.gz")) {
        let items: Vec<Value> = serde_json::from_str(case["abi"].as_str().unwrap()).unwrap();
        let item = items.iter().find(|item| item["name"] == "testSig").unwrap();
        let mut inputs = item["inputs"].clone();
        inputs.as_array_mut().unwrap().iter_mut().for_each(|input| input["indexed"] = json!(false));
        let event = json!({ "type": "event", "name": "testSig", "inputs": inputs, "anonymous": false });
        let topic = keccak256(case["signature"].as_str().unwrap());
        assert_eq!(alloy_primitives::hex::encode_prefixed(&topic[..4]), *case["sigHash"].as_str().unwrap());
        // Without data it is the event still, and says what is missing.
        let told = read(&event.to_string(), vec![topic], Bytes::new());
        assert_eq!(told["event"], "testSig", "{case}");
        cases += 1;
    }
    assert_eq!(cases, 1254);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_a_configuration_names_come_with_their_arguments() {
    let node = FakeNode::start().await;
    for _ in 0..20 {
        node.push(3);
    }
    let dir = folder(&["decoded-events"]);
    let config = |event: &str| {
        format!(
            "[chain.local]\nrpc = {:?}\npoll_ms = 50\nstart = 0\n\n[plugin.decoded-events]\nconfig = {{ events = [{event:?}], \
             addresses = [\"{TOKEN}\"] }}\n",
            node.url
        )
    };
    let erc20 = "event Transfer(address indexed from, address indexed to, uint256 value)";
    let process = Process::start(dir.path(), &config(erc20)).await;
    process.until_at(&node.tip().to_string()).await;
    let feed = process.feed("decoded-events.events").await;
    assert_eq!(feed.len(), 60);
    for (i, item) in feed.iter().enumerate() {
        let data = &item["data"];
        let n = i as u8 % 3;
        assert_eq!(data["decoded"]["event"], "Transfer", "{item}");
        let args = &data["decoded"]["args"];
        let party = format!("{:?}", Address::with_last_byte(n));
        let value = U256::from_be_bytes([n; 32]).to_string();
        assert_eq!((&args["from"], &args["to"], &args["value"]), (&json!(party), &json!(party), &json!(value)));
        assert_eq!(data["data"], B256::repeat_byte(n).to_string());
    }
    process.terminate().await;

    // A text that is no event is told where a user looks.
    let process = Process::start(dir.path(), &config("event Transfer(address indexed from, uint7 value)")).await;
    let why = until("the plugin to be refused", || async {
        let status = process.status().await?;
        let refused = status["refused_files"].as_array()?.first()?.clone();
        Some(refused["why"].as_str()?.to_owned())
    })
    .await;
    assert!(why.contains("subscription 0") && why.contains("uint7"), "{why}");
    process.terminate().await;
}
