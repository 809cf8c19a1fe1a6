//! A header proves itself: its hash is over its fields.

use alloy_consensus::Header;
use alloy_primitives::B256;

use super::{Check, Contradiction, Quirks, Verdict};

/// keccak256(rlp(header)) is the block's hash (Yellow Paper 4.3; field order as in the forks' EIPs).
/// `foreign` names fields of the header that Ethereum does not have: with one, a mismatch proves nothing.
pub fn header_hash(header: &Header, claimed: B256, foreign: &[String], quirks: &Quirks) -> Verdict {
    if header.hash_slow() == claimed {
        return Ok(Check::Holds);
    }
    if quirks.foreign_header {
        return Ok(Check::CannotTell("this chain's header hash is its own".into()));
    }
    if !foreign.is_empty() {
        return Ok(Check::CannotTell(format!("the header has fields of its own: {}", foreign.join(", "))));
    }
    Err(Contradiction(format!("the header of block {} does not hash to {claimed}", header.number)))
}
