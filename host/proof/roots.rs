//! A header's roots prove its lists: transactions, withdrawals, receipts.

use alloy_consensus::proofs::{calculate_receipt_root, calculate_withdrawals_root, ordered_trie_root_with_encoder};
use alloy_consensus::transaction::SignerRecoverable;
use alloy_consensus::{Eip658Value, Receipt, ReceiptEnvelope, TxEnvelope};
use alloy_eips::eip2718::Encodable2718;
use alloy_eips::eip4895::Withdrawal;
use alloy_primitives::{Address, B256};

use super::{Check, Contradiction, Quirks, Verdict, false_if};
use crate::model::Log;

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

/// A contract's address by its creator (Yellow Paper 7): never taken from a provider.
pub fn created(from: Address, nonce: u64) -> Address {
    from.create(nonce)
}
