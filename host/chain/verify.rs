//! The rules by which a block's parts prove each other: header hash, roots, blooms, log order.
//! `source -> [verify] -> follower`: a source calls these on every answer before anybody else sees it.
//!
//! Pure: no IO, no JSON, nothing of providers. A rule either holds, is contradicted ([`Contradiction`]), or
//! cannot be told for a named reason ([`Check::CannotTell`]: chains whose headers or transactions have forms
//! of their own). "Cannot tell" is never taken for "holds" where the form is one that we know.

use alloy_consensus::proofs::{calculate_receipt_root, calculate_withdrawals_root, ordered_trie_root_with_encoder};
use alloy_consensus::transaction::SignerRecoverable;
use alloy_consensus::{Eip658Value, Header, Receipt, ReceiptEnvelope, TxEnvelope};
use alloy_eips::eip2718::Encodable2718;
use alloy_eips::eip4895::Withdrawal;
use alloy_primitives::{Address, B256, Bloom, BloomInput, keccak256};

use crate::model::{ChainId, Log};

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

/// In what a chain departs from Ethereum's rules. Named, so that a configuration can switch one on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quirks {
    /// Bor (Polygon PoS): the last block of a sprint may end in a state-sync transaction (from and to 0x0, gas
    /// 0) that is outside of the roots and of the bloom.
    pub state_sync: bool,
    /// Blooms say nothing: set on empty blocks, or zero with logs (zksync-era 4580, l2beat 10113).
    pub bloom_unreliable: bool,
    /// Log indexes of a block need not be 0, 1, 2, ...
    pub log_gaps: bool,
    /// The hash is not the one of the Ethereum header, whatever its fields.
    pub foreign_header: bool,
    /// Transactions may lack a signature of their sender (impersonation on development chains).
    pub unsigned: bool,
}

impl Quirks {
    /// Every quirk that a configuration can name, with its switch.
    pub const NAMES: &'static [&'static str] =
        &["state-sync", "bloom-unreliable", "log-gaps", "foreign-header", "unsigned"];

    /// What is known of a chain.
    pub fn of(chain: ChainId) -> Self {
        let none = Self::default();
        match chain.0 {
            137 => Self { state_sync: true, ..none },
            // zkSync Era and its testnet: the bloom and the hash are its own.
            324 | 300 => Self { bloom_unreliable: true, foreign_header: true, ..none },
            // anvil, hardhat, geth --dev, ganache.
            31337 | 1337 => Self { unsigned: true, ..none },
            _ => none,
        }
    }

    /// Switches a quirk on by its name; false if there is none of that name.
    pub fn enable(&mut self, name: &str) -> bool {
        match name {
            "state-sync" => self.state_sync = true,
            "bloom-unreliable" => self.bloom_unreliable = true,
            "log-gaps" => self.log_gaps = true,
            "foreign-header" => self.foreign_header = true,
            "unsigned" => self.unsigned = true,
            _ => return false,
        }
        true
    }

    /// Whether this block may end in a state-sync transaction: sprints were 64 blocks, and are 16 since Delhi.
    pub fn may_state_sync(&self, number: u64) -> bool {
        self.state_sync && number.is_multiple_of(16)
    }
}

/// The hash of Bor's state-sync transaction: it depends on the block alone
/// (bor `core/types/bor_receipt.go`, `GetDerivedBorTxHash`).
pub fn state_sync_hash(number: u64, block_hash: B256) -> B256 {
    keccak256([b"matic-bor-receipt-".as_slice(), &number.to_be_bytes(), block_hash.as_slice()].concat())
}

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

/// The trie of the transactions (Yellow Paper 4.3.2, EIP-2718). Also each hash, and each sender by signature.
/// `transactions`: the envelope, the hash and the sender that were claimed for it.
pub fn transactions(transactions: &[(TxEnvelope, B256, Address)], root: B256, quirks: &Quirks) -> Verdict {
    let envelopes: Vec<&TxEnvelope> = transactions.iter().map(|t| &t.0).collect();
    let computed = ordered_trie_root_with_encoder(&envelopes, |tx, out| tx.encode_2718(out));
    false_if(computed != root, || format!("the transactions have the root {computed}, the header says {root}"))?;
    if quirks.unsigned {
        return Ok(Check::Holds);
    }
    for (envelope, hash, from) in transactions {
        let computed = envelope.trie_hash();
        false_if(computed != *hash, || format!("transaction {hash} hashes to {computed}"))?;
        // The signing hash is computed from the fields. "Unchecked" allows the high s values of before Homestead.
        match envelope.recover_signer_unchecked() {
            Ok(signer) => {
                false_if(signer != *from, || format!("transaction {hash} is signed by {signer}, not by {from}"))?;
            }
            Err(_) => return Err(Contradiction(format!("transaction {hash} has no valid signature"))),
        }
    }
    Ok(Check::Holds)
}

/// The trie of the withdrawals (EIP-4895). A root without a list is "not known", as in some recordings.
pub fn withdrawals(list: Option<&[Withdrawal]>, root: Option<B256>) -> Verdict {
    match (list, root) {
        (None, None) => Ok(Check::Holds),
        (None, Some(_)) => Ok(Check::CannotTell("the withdrawals are not given".into())),
        (Some([]), None) => Ok(Check::Holds),
        (Some(_), None) => Err(Contradiction("there are withdrawals, but the header has no root of them".into())),
        (Some(list), Some(root)) => {
            let computed = calculate_withdrawals_root(list);
            false_if(computed != root, || format!("the withdrawals have the root {computed}, the header says {root}"))?;
            Ok(Check::Holds)
        }
    }
}

/// What of a receipt is under the receipts root.
#[derive(Clone, Debug)]
pub struct ReceiptFacts {
    /// EIP-2718 type.
    pub kind: u8,
    /// Success since Byzantium (EIP-658), a state root before.
    pub outcome: Eip658Value,
    pub cumulative_gas_used: u64,
    pub logs: Vec<Log>,
}

/// The trie of the receipts, with the blooms computed from their logs (Yellow Paper 4.3.1, EIP-658, EIP-2718).
pub fn receipts(receipts: &[ReceiptFacts], root: B256) -> Verdict {
    let mut envelopes = Vec::with_capacity(receipts.len());
    for facts in receipts {
        let logs = facts
            .logs
            .iter()
            .map(|log| alloy_primitives::Log::new_unchecked(log.address, log.topics.clone(), log.data.clone()));
        let receipt =
            Receipt { status: facts.outcome, cumulative_gas_used: facts.cumulative_gas_used, logs: logs.collect() }
                .with_bloom();
        envelopes.push(match facts.kind {
            0 => ReceiptEnvelope::Legacy(receipt),
            1 => ReceiptEnvelope::Eip2930(receipt),
            2 => ReceiptEnvelope::Eip1559(receipt),
            3 => ReceiptEnvelope::Eip4844(receipt),
            4 => ReceiptEnvelope::Eip7702(receipt),
            other => return Ok(Check::CannotTell(format!("a receipt has the type {other:#x}"))),
        });
    }
    let computed = calculate_receipt_root(&envelopes);
    false_if(computed != root, || format!("the receipts have the root {computed}, the header says {root}"))?;
    Ok(Check::Holds)
}

/// The bloom of a set of logs (Yellow Paper 4.3.1).
pub fn bloom_of<'a>(logs: impl IntoIterator<Item = &'a Log>) -> Bloom {
    let mut bloom = Bloom::ZERO;
    for log in logs {
        bloom.accrue(BloomInput::Raw(log.address.as_slice()));
        for topic in &log.topics {
            bloom.accrue(BloomInput::Raw(topic.as_slice()));
        }
    }
    bloom
}

/// Whether a block of this bloom may hold a log of one of these contracts and one of these first topics.
/// An empty list allows any. False is certain, true is not.
pub fn may_hold(bloom: &Bloom, addresses: &[Address], topic0: &[B256]) -> bool {
    let holds = |item: &[u8]| bloom.contains_input(BloomInput::Raw(item));
    !bloom.is_zero()
        && (addresses.is_empty() || addresses.iter().any(|a| holds(a.as_slice())))
        && (topic0.is_empty() || topic0.iter().any(|t| holds(t.as_slice())))
}

/// Each of these logs lies in the block's bloom.
pub fn in_bloom(bloom: &Bloom, logs: &[Log]) -> Result<(), Contradiction> {
    for log in logs {
        let mut inputs = std::iter::once(log.address.as_slice()).chain(log.topics.iter().map(|t| t.as_slice()));
        let inside = inputs.all(|i| bloom.contains_input(BloomInput::Raw(i)));
        false_if(!inside, || format!("log {} is not in the header's bloom", log.index))?;
    }
    Ok(())
}

/// Log indexes strictly rise and transaction indexes do not fall; at most four topics.
pub fn in_order(logs: &[Log]) -> Result<(), Contradiction> {
    for log in logs {
        false_if(log.topics.len() > 4, || format!("log {} has {} topics", log.index, log.topics.len()))?;
    }
    for pair in logs.windows(2) {
        let (a, b) = (&pair[0], &pair[1]);
        false_if(a.index >= b.index || a.transaction_index > b.transaction_index, || {
            format!(
                "log {} of transaction {} follows log {} of transaction {}",
                b.index, b.transaction_index, a.index, a.transaction_index
            )
        })?;
    }
    Ok(())
}

/// These are all the logs of the block: their bloom is the header's, their indexes have no gap.
/// A log that is left out shows, unless it is at the end and sets no bit of its own.
pub fn all_logs(at: (u64, B256), bloom: &Bloom, logs: &[Log], quirks: &Quirks) -> Result<(), Contradiction> {
    in_order(logs)?;
    if !quirks.log_gaps {
        for (expected, log) in logs.iter().enumerate() {
            false_if(log.index as usize != expected, || {
                format!("log {expected} is missing: the next one is {}", log.index)
            })?;
        }
    }
    if quirks.bloom_unreliable {
        return Ok(());
    }
    let outside = quirks.may_state_sync(at.0).then(|| state_sync_hash(at.0, at.1));
    let computed = bloom_of(logs.iter().filter(|log| Some(log.transaction_hash) != outside));
    false_if(computed != *bloom, || {
        format!("the {} logs of block {} do not make up its header's bloom", logs.len(), at.0)
    })
}

/// A contract's address by its creator (Yellow Paper 7): never taken from a provider.
pub fn created(from: Address, nonce: u64) -> Address {
    from.create(nonce)
}

/// The EIP-2718 types that the transactions root can be computed for.
pub fn knows_type(kind: u8) -> bool {
    kind <= 4
}
