//! What `native-transfers` promises, run natively.

use chainweir_sdk::prelude::*;
use chainweir_sdk::serde_json::json;
use chainweir_sdk::testing::{At, Block, Tester, Tx, golden};
use native_transfers::NativeTransfers;

const ALICE: Address = address!("0x000000000000000000000000000000000000a11c");
const BOB: Address = address!("0x0000000000000000000000000000000000000b0b");
const CAROL: Address = address!("0x00000000000000000000000000000000000ca401");

fn pay(from: Address, to: Address, wei: u64) -> Tx {
    Tx::new(from, to).value(U256::from(wei))
}

fn values(config: &str, block: &Block) -> Vec<String> {
    let emissions = Tester::<NativeTransfers>::with_config(config).block(block);
    emissions.iter().map(|e| e.json()["value"].as_str().expect("a string").to_owned()).collect()
}

#[test]
fn only_successful_transactions_that_move_value_are_emitted() {
    let block = Block::new(1).tx(pay(ALICE, BOB, 0)).tx(pay(ALICE, BOB, 7).reverted()).tx(pay(ALICE, BOB, 9));
    let emissions = Tester::<NativeTransfers>::new().block(&block);
    assert_eq!(emissions.len(), 1);
    assert_eq!(emissions[0].at, At::Tx(2));
    assert_eq!(
        emissions[0].json(),
        json!({
            "from": "0x000000000000000000000000000000000000a11c",
            "to": "0x0000000000000000000000000000000000000b0b",
            "value": "9",
            "tx": block.tx_hash(2).to_string(),
            "tx_index": 2,
        })
    );
}

#[test]
fn parties_on_either_side_and_min_filter() {
    let block = Block::new(1).tx(pay(ALICE, BOB, 1)).tx(pay(BOB, CAROL, 2)).tx(pay(CAROL, ALICE, 3));
    assert_eq!(values("{}", &block), ["1", "2", "3"]);
    assert_eq!(values(&json!({"parties": [ALICE]}).to_string(), &block), ["1", "3"]);
    assert_eq!(values(&json!({"parties": [ALICE], "min": "2"}).to_string(), &block), ["3"]);
    assert_eq!(values(r#"{"min": "0x3"}"#, &block), ["3"]);
}

#[test]
fn value_sent_to_a_contract_in_creation_goes_to_the_contract() {
    let block = Block::new(1).tx(Tx::creating(ALICE, CAROL).value(U256::from(5)));
    let emissions = Tester::<NativeTransfers>::new().block(&block);
    assert_eq!(emissions[0].json()["to"], CAROL.to_string().to_lowercase());
}

#[test]
fn the_emissions_are_those_of_the_golden_file() {
    let blocks = [
        Block::new(1).tx(pay(ALICE, BOB, 1_000_000_000_000_000_000)),
        Block::new(2).tx(pay(BOB, CAROL, u64::MAX)).tx(pay(CAROL, CAROL, 1)),
    ];
    let emissions = Tester::<NativeTransfers>::new().blocks(&blocks);
    assert_eq!(emissions, Tester::<NativeTransfers>::new().events_per_call(1).blocks(&blocks));
    golden("tests/golden.ndjson", &emissions);
}

#[test]
fn internal_transfers_are_emitted_where_they_are_asked_for() {
    let paid = pay(ALICE, BOB, 5).transfer(BOB, CAROL, U256::from(3)).transfer(BOB, ALICE, U256::from(1));
    let block = Block::new(1).tx(paid);
    assert_eq!(values("{}", &block), ["5"]);
    // What a test's transaction moves itself is told by the trace as well, which a test says itself.
    assert_eq!(values(r#"{"internal": true}"#, &block), ["3", "1"]);
    assert_eq!(values(&json!({"internal": true, "parties": [CAROL]}).to_string(), &block), ["3"]);
    assert_eq!(values(r#"{"internal": true, "min": "2"}"#, &block), ["3"]);
}
