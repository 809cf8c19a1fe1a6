//! Transactions that nobody signs: a rollup derives them from its parent chain. Their fields, in the order in which they
//! are hashed: `type || rlp(fields)`.
//!
//! OP stack: specs.optimism.io, "Deposits". Arbitrum: nitro's go-ethereum, `core/types/arb_types.go`. The names are those
//! of the nodes' JSON. `to` is absent where a contract is created.

use alloy_primitives::{Address, B256, Bytes, TxKind, U64, U256, address};
use alloy_rlp::{Encodable, RlpEncodable};
use serde::{Deserialize, Deserializer};

/// Who an Arbitrum block's internal transactions are from; it is not among the hashed fields.
pub const ARBOS: Address = address!("00000000000000000000000000000000000a4b05");

pub const OP_DEPOSIT: u8 = 0x7e;
pub const ARB_DEPOSIT: u8 = 0x64;
pub const ARB_UNSIGNED: u8 = 0x65;
pub const ARB_CONTRACT: u8 = 0x66;
pub const ARB_RETRY: u8 = 0x68;
pub const ARB_SUBMIT_RETRYABLE: u8 = 0x69;
pub const ARB_INTERNAL: u8 = 0x6a;

/// No mint and a mint of nothing are hashed alike, and told as null, 0x0 or not at all.
fn or_zero<'de, D: Deserializer<'de>>(from: D) -> Result<U256, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

fn or_false<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[derive(Debug, Deserialize, RlpEncodable)]
#[serde(rename_all = "camelCase")]
pub struct OpDeposit {
    source_hash: B256,
    from: Address,
    #[serde(default)]
    to: TxKind,
    #[serde(default, deserialize_with = "or_zero")]
    mint: U256,
    value: U256,
    gas: U64,
    #[serde(default, deserialize_with = "or_false")]
    is_system_tx: bool,
    input: Bytes,
}

#[derive(Debug, Deserialize, RlpEncodable)]
#[serde(rename_all = "camelCase")]
pub struct ArbDeposit {
    chain_id: U256,
    request_id: B256,
    from: Address,
    to: Address,
    value: U256,
}

#[derive(Debug, Deserialize, RlpEncodable)]
#[serde(rename_all = "camelCase")]
pub struct ArbUnsigned {
    chain_id: U256,
    from: Address,
    nonce: U64,
    max_fee_per_gas: U256,
    gas: U64,
    #[serde(default)]
    to: TxKind,
    value: U256,
    input: Bytes,
}

#[derive(Debug, Deserialize, RlpEncodable)]
#[serde(rename_all = "camelCase")]
pub struct ArbContract {
    chain_id: U256,
    request_id: B256,
    from: Address,
    max_fee_per_gas: U256,
    gas: U64,
    #[serde(default)]
    to: TxKind,
    value: U256,
    input: Bytes,
}

#[derive(Debug, Deserialize, RlpEncodable)]
#[serde(rename_all = "camelCase")]
pub struct ArbRetry {
    chain_id: U256,
    nonce: U64,
    from: Address,
    max_fee_per_gas: U256,
    gas: U64,
    #[serde(default)]
    to: TxKind,
    value: U256,
    input: Bytes,
    ticket_id: B256,
    refund_to: Address,
    max_refund: U256,
    submission_fee_refund: U256,
}

#[derive(Debug, Deserialize, RlpEncodable)]
#[serde(rename_all = "camelCase")]
pub struct ArbSubmitRetryable {
    chain_id: U256,
    request_id: B256,
    from: Address,
    l1_base_fee: U256,
    deposit_value: U256,
    max_fee_per_gas: U256,
    gas: U64,
    #[serde(default)]
    retry_to: TxKind,
    retry_value: U256,
    beneficiary: Address,
    max_submission_fee: U256,
    refund_to: Address,
    retry_data: Bytes,
}

#[derive(Debug, Deserialize, RlpEncodable)]
#[serde(rename_all = "camelCase")]
pub struct ArbInternal {
    chain_id: U256,
    input: Bytes,
}

/// The bytes that are hashed, and stand in the transactions' trie.
pub fn encoded(kind: u8, fields: &impl Encodable) -> Vec<u8> {
    let mut out = vec![kind];
    fields.encode(&mut out);
    out
}
