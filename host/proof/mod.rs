//! The rules by which a block's parts prove each other: header hash, roots, blooms, log order.
//! `source -> [proof] -> follower`: a source calls these on every answer before anybody else sees it.
//!
//! Pure: no IO, no JSON, nothing of providers, and nothing of which block is canonical. A rule either holds, is
//! contradicted ([`Contradiction`]), or cannot be told for a named reason ([`Check::CannotTell`]: chains whose headers
//! or transactions have forms of their own). "Cannot tell" is never taken for "holds" where the form is one that we know.

mod header;
mod logs;
mod quirks;
mod roots;
pub mod unsigned;

pub use header::{AuraSeal, hash_of, header_hash};
pub use logs::{all_logs, bloom_of, in_bloom, in_order, may_hold};
pub use quirks::{Quirks, state_sync_hash};
pub use roots::{Form, ReceiptFacts, alone, created, receipts, receipts_root, transactions, withdrawals};

/// The parts cannot belong together: somebody's answer is false.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Contradiction(pub String);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    Holds,
    /// The rule does not apply to this form; the reason, for the log.
    CannotTell(String),
}

pub type Verdict = Result<Check, Contradiction>;

fn false_if(condition: bool, why: impl FnOnce() -> String) -> Result<(), Contradiction> {
    if condition { Err(Contradiction(why())) } else { Ok(()) }
}
