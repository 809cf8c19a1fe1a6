//! Runs the plugin as plain Rust: `cargo test`.

use chainweir_sdk::prelude::*;
use chainweir_sdk::serde_json::json;
use chainweir_sdk::testing::{Block, Tester, golden};
use {{name_snake}}::{Settings, Transfer};

const TOKEN: Address = address!("0x00000000000000000000000000000000000000aa");
const ALICE: Address = address!("0x000000000000000000000000000000000000a11c");
const BOB: Address = address!("0x0000000000000000000000000000000000000b0b");

fn moved(value: u64) -> Transfer {
    Transfer { from: ALICE, to: BOB, value: U256::from(value) }
}

#[test]
fn only_large_transfers_are_told() {
    let mut plugin = Tester::<Settings>::with_config(r#"{"min": "100"}"#);
    let emissions = plugin.block(&Block::new(1).event(TOKEN, &moved(99)).event(TOKEN, &moved(100)));
    assert_eq!(emissions.len(), 1);
    assert_eq!(emissions[0].json()["value"], json!("100"));
}

#[test]
fn large_transfers_are_counted_per_token() {
    let mut plugin = Tester::<Settings>::new();
    let blocks = [
        Block::new(1).event(TOKEN, &moved(1_000_000)).event(BOB, &moved(2_000_000)),
        Block::new(2).event(TOKEN, &moved(3_000_000)),
    ];
    let emissions = plugin.blocks(&blocks);
    // The whole output, line by line. After a change: UPDATE_GOLDEN=1 cargo test, then read the difference.
    golden("tests/golden.ndjson", &emissions);
}
