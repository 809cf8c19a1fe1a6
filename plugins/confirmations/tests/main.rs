//! What `confirmations` promises, run natively.

use chainweir_sdk::prelude::*;
use chainweir_sdk::serde_json::json;
use chainweir_sdk::testing::{Block, Emission, Tester, Tx, golden};
use confirmations::{Confirmations, Transfer};

const TOKEN: Address = address!("0x00000000000000000000000000000000000000aa");
const OTHER: Address = address!("0x00000000000000000000000000000000000000bb");
const ALICE: Address = address!("0x000000000000000000000000000000000000a11c");
const SHOP: Address = address!("0x0000000000000000000000000000000000005409");

fn story(emissions: &[Emission]) -> Vec<(u64, String, String)> {
    let word = |e: &Emission| e.json()["what"].as_str().expect("a string").to_owned();
    emissions.iter().map(|e| (e.block, e.stream.clone(), word(e))).collect()
}

fn says(block: u64, stream: &str, what: &str) -> (u64, String, String) {
    (block, stream.into(), what.into())
}

fn paid(number: u64, value: u64) -> Block {
    Block::new(number).tx(Tx::new(ALICE, SHOP).value(U256::from(value)))
}

#[test]
fn a_deposit_of_ether_is_seen_then_confirmed_then_finalized() {
    let config = json!({"addresses": [SHOP], "confirmations": 3, "finality_depth": 5}).to_string();
    let mut plugin = Tester::<Confirmations>::with_config(&config);
    let blocks: Vec<Block> =
        (10..20).map(|number| if number == 11 { paid(11, 7) } else { Block::new(number) }).collect();
    let emissions = plugin.blocks(&blocks);
    // Block 11 is the first of three confirmations, so 13 is the third.
    assert_eq!(
        story(&emissions),
        [says(11, "seen", "ether"), says(13, "confirmed", "ether"), says(15, "finalized", "ether")]
    );
    assert_eq!(emissions[1].json()["confirmations"], 3);
    let mut confirmed = emissions[1].json();
    confirmed.as_object_mut().expect("an object").remove("confirmations");
    assert_eq!(confirmed, emissions[0].json(), "it says again what was seen, with the block of inclusion");
    assert_eq!(emissions[0].json()["value"], "7");
    assert_eq!(plugin.entries().count(), 0, "what is finalized is forgotten");
}

#[test]
fn one_confirmation_is_the_block_of_inclusion() {
    let config = json!({"addresses": [SHOP], "confirmations": 1, "finality_depth": 1}).to_string();
    let emissions = Tester::<Confirmations>::with_config(&config).block(&paid(5, 1));
    assert_eq!(
        story(&emissions),
        [says(5, "seen", "ether"), says(5, "confirmed", "ether"), says(5, "finalized", "ether")]
    );
}

#[test]
fn a_transaction_is_followed_by_its_hash_also_when_reverted() {
    let tx = b256!("0x00000000000000000000000000000000000000000000000000000000000000f1");
    let config = json!({"transactions": [tx], "confirmations": 2, "finality_depth": 2}).to_string();
    let mut plugin = Tester::<Confirmations>::with_config(&config);
    let other = Tx::new(ALICE, SHOP).value(U256::from(1));
    let emissions =
        plugin.blocks(&[Block::new(1).tx(other).tx(Tx::new(ALICE, SHOP).hash(tx).reverted()), Block::new(2)]);
    let expected =
        [says(1, "seen", "transaction"), says(2, "confirmed", "transaction"), says(2, "finalized", "transaction")];
    assert_eq!(story(&emissions), expected);
    assert_eq!(emissions[0].json()["success"], false);
    assert_eq!(emissions[0].lane_key, tx.to_string());
}

#[test]
fn tokens_sent_to_a_deposit_address_are_followed_and_others_are_not() {
    let config = json!({"addresses": [SHOP], "tokens": [TOKEN], "confirmations": 2}).to_string();
    let moved = |to, value| Transfer { from: ALICE, to, value: U256::from(value) };
    let block = Block::new(1)
        .event(TOKEN, &moved(SHOP, 5))
        .event(OTHER, &moved(SHOP, 6))
        .event(TOKEN, &moved(ALICE, 7))
        .event(TOKEN, &moved(SHOP, 0))
        .tx(Tx::new(ALICE, SHOP).value(U256::from(8)).reverted());
    let emissions = Tester::<Confirmations>::with_config(&config).block(&block);
    assert_eq!(story(&emissions), [says(1, "seen", "token")]);
    assert_eq!(emissions[0].json()["value"], "5");
    assert_eq!(emissions[0].json()["token"], TOKEN.to_string().to_lowercase());
}

#[test]
fn many_deposits_due_in_one_block_are_all_confirmed() {
    let config = json!({"addresses": [SHOP], "confirmations": 2, "finality_depth": 9}).to_string();
    let mut plugin = Tester::<Confirmations>::with_config(&config).events_per_call(17);
    let full = (0..250).fold(Block::new(1), |block, _| block.tx(Tx::new(ALICE, SHOP).value(U256::from(1))));
    assert_eq!(plugin.block(&full).len(), 250);
    let confirmed = plugin.block(&Block::new(2));
    assert_eq!(confirmed.len(), 250);
    assert!(confirmed.iter().all(|e| e.stream == "confirmed"));
}

#[test]
fn a_configuration_that_follows_nothing_or_counts_wrongly_is_refused() {
    let why = |config: &str| Tester::<Confirmations>::try_with_config(config).err().expect("refused");
    assert!(why("{}").contains("`transactions` and `addresses`"));
    let address = r#""addresses": ["0x0000000000000000000000000000000000005409"]"#;
    assert!(why(&format!("{{{address}, \"confirmations\": 0}}")).contains("`confirmations`"));
    assert!(why(&format!("{{{address}, \"confirmations\": 9, \"finality_depth\": 8}}")).contains("`finality_depth`"));
}

#[test]
fn the_schemas_are_flat_for_a_store() {
    let manifest = Tester::<Confirmations>::with_config(&json!({"addresses": [SHOP]}).to_string()).manifest();
    let schema: chainweir_sdk::serde_json::Value =
        chainweir_sdk::serde_json::from_str(&manifest.streams[1].schema).expect("JSON");
    let properties = schema["properties"].as_object().expect("properties");
    assert_eq!(properties.len(), 10);
    assert_eq!(properties["value"]["format"], "uint256");
}

#[test]
fn the_emissions_are_those_of_the_golden_file() {
    let config = json!({"addresses": [SHOP], "confirmations": 2, "finality_depth": 3}).to_string();
    let moved = Transfer { from: ALICE, to: SHOP, value: U256::from(1_000_000) };
    let blocks = [paid(1, 9).event(TOKEN, &moved), paid(2, 10), Block::new(3), Block::new(4)];
    let emissions = Tester::<Confirmations>::with_config(&config).blocks(&blocks);
    assert_eq!(emissions, Tester::<Confirmations>::with_config(&config).events_per_call(1).blocks(&blocks));
    golden("tests/golden.ndjson", &emissions);
}
