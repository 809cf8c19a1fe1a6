//! A header proves itself: its hash is over its fields.

use alloy_consensus::Header;
use alloy_primitives::{B256, Bytes, U256, keccak256};
use alloy_rlp::Encodable;

use super::{Check, Contradiction, Quirks, Verdict};

/// What stands in a header of an AuRa chain (Gnosis before its merge) where Ethereum has mix hash and nonce: the step and
/// the validator's signature, both as the RLP items that are hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuraSeal {
    pub step: Bytes,
    pub signature: Bytes,
}

/// keccak256(rlp(header)) (Yellow Paper 4.3; field order as in the forks' EIPs).
pub fn hash_of(header: &Header, seal: Option<&AuraSeal>) -> B256 {
    seal.map_or_else(|| header.hash_slow(), |seal| aura_hash(header, seal))
}

/// A header's own hash is the block's. `foreign` names fields of the header that Ethereum does not have: with one, a
/// mismatch proves nothing.
pub fn header_hash(number: u64, own: B256, claimed: B256, foreign: &[String], quirks: &Quirks) -> Verdict {
    if own == claimed {
        return Ok(Check::Holds);
    }
    if quirks.foreign_header {
        return Ok(Check::CannotTell("this chain's header hash is its own".into()));
    }
    if number < quirks.own_headers_below {
        return Ok(Check::CannotTell(format!(
            "before block {} this chain had other headers",
            quirks.own_headers_below
        )));
    }
    if !foreign.is_empty() {
        return Ok(Check::CannotTell(format!("the header has fields of its own: {}", foreign.join(", "))));
    }
    Err(Contradiction(format!("the header of block {number} does not hash to {claimed}")))
}

fn aura_hash(header: &Header, seal: &AuraSeal) -> B256 {
    let mut fields = Vec::with_capacity(700);
    header.parent_hash.encode(&mut fields);
    header.ommers_hash.encode(&mut fields);
    header.beneficiary.encode(&mut fields);
    header.state_root.encode(&mut fields);
    header.transactions_root.encode(&mut fields);
    header.receipts_root.encode(&mut fields);
    header.logs_bloom.encode(&mut fields);
    header.difficulty.encode(&mut fields);
    U256::from(header.number).encode(&mut fields);
    U256::from(header.gas_limit).encode(&mut fields);
    U256::from(header.gas_used).encode(&mut fields);
    header.timestamp.encode(&mut fields);
    header.extra_data.encode(&mut fields);
    fields.extend_from_slice(&seal.step);
    fields.extend_from_slice(&seal.signature);
    if let Some(base_fee) = header.base_fee_per_gas {
        U256::from(base_fee).encode(&mut fields);
    }
    let mut whole = Vec::with_capacity(fields.len() + 4);
    alloy_rlp::Header { list: true, payload_length: fields.len() }.encode(&mut whole);
    whole.extend_from_slice(&fields);
    keccak256(whole)
}
