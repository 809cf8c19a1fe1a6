//! What `erc20-transfers` promises, run natively.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use chainweir_sdk::prelude::*;
use chainweir_sdk::serde_json::{Value, json};
use chainweir_sdk::testing::{At, Block, Log, Tester, golden};
use erc20_transfers::{Erc20Transfers, TOTALS, Transfer};
use flate2::read::GzDecoder;

const TOKEN: Address = address!("0x00000000000000000000000000000000000000aa");
const OTHER: Address = address!("0x00000000000000000000000000000000000000bb");
const ALICE: Address = address!("0x000000000000000000000000000000000000a11c");
const BOB: Address = address!("0x0000000000000000000000000000000000000b0b");
const CAROL: Address = address!("0x00000000000000000000000000000000000ca401");

fn moved(from: Address, to: Address, value: u128) -> Transfer {
    Transfer { from, to, value: U256::from(value) }
}

fn values(config: &str, block: &Block) -> Vec<String> {
    let mut plugin = Tester::<Erc20Transfers>::with_config(config);
    let emissions = plugin.block(block);
    emissions.iter().map(|e| e.json()["value"].as_str().expect("a string").to_owned()).collect()
}

#[test]
fn a_transfer_is_emitted_with_its_place_and_its_value_as_a_decimal_string() {
    let block = Block::new(7).log(Log::raw(OTHER, [], vec![])).event(TOKEN, &moved(ALICE, BOB, u128::MAX));
    let emissions = Tester::<Erc20Transfers>::new().block(&block);
    assert_eq!(emissions.len(), 1);
    assert_eq!((emissions[0].at, &*emissions[0].stream), (At::Log(1), "transfers"));
    assert_eq!(
        emissions[0].json(),
        json!({
            "token": "0x00000000000000000000000000000000000000aa",
            "from": "0x000000000000000000000000000000000000a11c",
            "to": "0x0000000000000000000000000000000000000b0b",
            "value": "340282366920938463463374607431768211455",
            "log_index": 1,
            "tx": block.tx_hash(1).to_string(),
        })
    );
}

#[test]
fn an_nft_transfer_and_a_log_that_only_looks_like_a_transfer_are_left_out() {
    let topics = [Transfer::SIGNATURE_HASH, ALICE.into_word(), BOB.into_word(), B256::with_last_byte(1)];
    let block = Block::new(1)
        .log(Log::raw(TOKEN, topics, vec![]))
        .log(Log::raw(TOKEN, &topics[..3], vec![]))
        .log(Log::raw(TOKEN, &topics[..3], vec![0; 31]))
        .log(Log::raw(TOKEN, &topics[..1], vec![0; 96]))
        .event(TOKEN, &moved(ALICE, BOB, 5));
    assert_eq!(values("{}", &block), ["5"]);
}

#[test]
fn tokens_parties_and_min_filter() {
    let block = Block::new(1)
        .event(TOKEN, &moved(ALICE, BOB, 1))
        .event(OTHER, &moved(ALICE, BOB, 2))
        .event(TOKEN, &moved(BOB, CAROL, 3))
        .event(TOKEN, &moved(CAROL, CAROL, 4));
    assert_eq!(values("{}", &block), ["1", "2", "3", "4"]);
    assert_eq!(values(&json!({"tokens": [OTHER]}).to_string(), &block), ["2"]);
    assert_eq!(values(&json!({"parties": [ALICE]}).to_string(), &block), ["1", "2"]);
    assert_eq!(values(&json!({"parties": [CAROL]}).to_string(), &block), ["3", "4"]);
    assert_eq!(values(&json!({"parties": [CAROL, ALICE], "tokens": [TOKEN]}).to_string(), &block), ["1", "3", "4"]);
    assert_eq!(values(r#"{"min": "3"}"#, &block), ["3", "4"]);
    assert_eq!(values(r#"{"min": 4}"#, &block), ["4"]);
}

#[test]
fn a_wrong_configuration_is_refused_by_the_name_of_the_field() {
    let why = |config: &str| Tester::<Erc20Transfers>::try_with_config(config).err().expect("refused");
    let wrong = why(r#"{"tokens": ["0x00000000000000000000000000000000000000aa", "0x12"]}"#);
    assert!(wrong.contains("`tokens[1]`") && wrong.contains("0x12"), "{wrong}");
    assert!(why(r#"{"min": 1.5}"#).contains("`min`"));
    assert!(why(r#"{"mim": "1"}"#).contains("unknown field `mim`"));
}

#[test]
fn totals_are_kept_per_token() {
    let mut plugin = Tester::<Erc20Transfers>::with_config(r#"{"min": "2"}"#);
    plugin.block(&Block::new(1).event(TOKEN, &moved(ALICE, BOB, 1)).event(TOKEN, &moved(ALICE, BOB, 2)));
    plugin.block(&Block::new(2).event(TOKEN, &moved(BOB, ALICE, 40)).event(OTHER, &moved(BOB, ALICE, 5)));
    let total = |token| plugin.state(|| TOTALS.get(&token)).expect("readable").expect("there is one");
    let (token, other) = {
        let mut total = total;
        (total(TOKEN), total(OTHER))
    };
    assert_eq!((token.count, token.sum), (2, U256::from(42)));
    assert_eq!((other.count, other.sum), (1, U256::from(5)));
}

#[test]
fn the_manifest_asks_for_transfers_alone_and_has_a_schema_for_a_store() {
    let manifest = Tester::<Erc20Transfers>::new().manifest();
    assert_eq!(manifest.name, "erc20-transfers");
    assert_eq!(manifest.subscriptions, [Subscription::event::<Transfer>()]);
    let schema: Value = chainweir_sdk::serde_json::from_str(&manifest.streams[0].schema).expect("JSON");
    let value = &schema["properties"]["value"];
    assert_eq!((&value["type"], &value["format"]), (&json!("string"), &json!("uint256")));
    assert_eq!(schema["properties"]["token"]["format"], "address");
    assert_eq!(schema["properties"]["tx"]["format"], "hash");
    assert_eq!(schema["required"].as_array().expect("a list").len(), 6);
}

#[test]
fn the_emissions_are_those_of_the_golden_file() {
    let blocks = [
        Block::new(1).event(TOKEN, &moved(ALICE, BOB, 1_000_000)).event(OTHER, &moved(BOB, CAROL, 0)),
        Block::new(2),
        Block::new(3).event(TOKEN, &moved(Address::ZERO, ALICE, u128::MAX)),
    ];
    let emissions = Tester::<Erc20Transfers>::new().blocks(&blocks);
    let one_by_one = Tester::<Erc20Transfers>::new().events_per_call(1).blocks(&blocks);
    assert_eq!(emissions, one_by_one, "what is emitted does not depend on how events are batched");
    golden("tests/golden.ndjson", &emissions);
}

/// On real blocks: what the plugin finds is what another ABI library found.
#[test]
fn on_mainnet_blocks_it_finds_what_an_independent_decoder_finds() {
    let data = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let open = |name: &str| Some(BufReader::new(GzDecoder::new(File::open(data.join(name)).ok()?)));
    let (Some(chain), Some(decoded)) =
        (open("chain/mainnet-17686110-17686117.ndjson.gz"), open("decode/mainnet-17686110-17686113.decoded.ndjson.gz"))
    else {
        eprintln!("SKIPPED: {} is not beside the checkout", data.display());
        return;
    };
    let mut expected = BTreeMap::new();
    for line in decoded.lines() {
        let log: Value = chainweir_sdk::serde_json::from_str(&line.expect("readable")).expect("JSON");
        if log["event"] == "Transfer(address,address,uint256)" && log["args"][2]["indexed"] == false {
            let arg = |i: usize| log["args"][i]["value"].as_str().expect("a value").to_owned();
            let place = (log["blockNumber"].as_u64().expect("a number"), log["logIndex"].as_u64().expect("a number"));
            expected.insert(place, [log["address"].as_str().expect("an address").to_owned(), arg(0), arg(1), arg(2)]);
        }
    }
    let mut found = BTreeMap::new();
    for emission in Tester::<Erc20Transfers>::new().replay(chain) {
        let json = emission.json();
        let text = |name: &str| json[name].as_str().expect("a string").to_owned();
        let place = (emission.block, json["log_index"].as_u64().expect("a number"));
        if emission.block <= 17_686_113 {
            found.insert(place, [text("token"), text("from"), text("to"), text("value")]);
        }
    }
    assert!(expected.len() > 500, "the decoded file has transfers");
    assert_eq!(found, expected);
}
