//! What `pending-transactions` promises, run natively.

use chainweir_sdk::prelude::*;
use chainweir_sdk::serde_json::json;
use chainweir_sdk::testing::{At, Block, Tester, Tx};
use pending_transactions::PendingTransactions;

const ALICE: Address = address!("0x000000000000000000000000000000000000a11c");
const BOB: Address = address!("0x0000000000000000000000000000000000000b0b");
const CAROL: Address = address!("0x00000000000000000000000000000000000ca401");

fn pay(from: Address, to: Address, wei: u64) -> Tx {
    Tx::new(from, to).value(U256::from(wei))
}

#[test]
fn pending_transactions_pass_by_party_and_amount_and_those_in_blocks_do_not() {
    let config = json!({ "parties": [ALICE], "min": "2" }).to_string();
    let mut tester = Tester::<PendingTransactions>::with_config(&config);
    let told =
        |tester: &mut Tester<PendingTransactions>, tx| tester.pending(tx).iter().map(|e| e.at).collect::<Vec<_>>();
    assert_eq!(told(&mut tester, pay(ALICE, BOB, 2)), [At::Pending]);
    assert_eq!(told(&mut tester, pay(CAROL, ALICE, 3)), [At::Pending]);
    assert_eq!(told(&mut tester, pay(CAROL, ALICE, 1)), []);
    assert_eq!(told(&mut tester, pay(CAROL, BOB, 3)), []);
    assert_eq!(tester.block(&Block::new(1).tx(pay(ALICE, BOB, 2))), []);
}

#[test]
fn what_passes_is_followed_to_its_end_where_that_is_asked_for() {
    let pay = pay(ALICE, BOB, 2);
    for (config, expected) in
        [(json!({}), None), (json!({ "track": [] }), Some(vec![])), (json!({ "track": [1, 12] }), Some(vec![1, 12]))]
    {
        let mut tester = Tester::<PendingTransactions>::with_config(&config.to_string());
        assert_eq!(tester.pending(pay.clone()).len(), 1);
        let watched: Vec<_> = tester.watched().iter().map(|watched| watched.confirmations.clone()).collect();
        assert_eq!(watched, Vec::from_iter(expected));
    }
}
