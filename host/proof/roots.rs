//! A header's roots prove its lists: transactions, withdrawals, receipts.

use std::borrow::Cow;
use std::sync::LazyLock;

use alloy_consensus::proofs::{calculate_withdrawals_root, ordered_trie_root_encoded, ordered_trie_root_with_encoder};
use alloy_consensus::{Eip658Value, Transaction as _, TxEnvelope};
use alloy_eips::eip2718::Encodable2718;
use alloy_eips::eip4895::Withdrawal;
use alloy_primitives::{Address, B256, Bloom, keccak256};
use alloy_rlp::{Encodable, Header};
use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};
use secp256k1::{Message, Secp256k1, VerifyOnly};

use super::logs::Blooms;
use super::{Check, Contradiction, Quirks, Verdict, false_if, unsigned};
use crate::model::{ChainId, Log};

/// A transaction as it is hashed.
#[derive(Clone, Debug)]
pub enum Form {
    Signed(TxEnvelope),
    /// Of a type that carries its sender as a field: type and RLP.
    Unsigned(Vec<u8>),
}

impl Form {
    fn encoded(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Signed(envelope) => envelope.encoded_2718().into(),
            Self::Unsigned(bytes) => bytes.into(),
        }
    }
}

/// The trie of the transactions (Yellow Paper 4.3.2, EIP-2718). Also each hash, and each sender by signature, which costs
/// by far the most: only with `senders`. `transactions`: the form, the hash and the sender that were claimed for it.
pub fn transactions(transactions: &[(&Form, B256, Address)], root: B256, senders: bool, quirks: &Quirks) -> Verdict {
    let encoded: Vec<Cow<'_, [u8]>> = transactions.iter().map(|(form, ..)| form.encoded()).collect();
    let computed = ordered_trie_root_encoded(&encoded);
    if computed != root && quirks.foreign_header {
        return Ok(Check::CannotTell("this chain's roots are its own".into()));
    }
    false_if(computed != root, || format!("the transactions have the root {computed}, the header says {root}"))?;
    for ((form, hash, from), bytes) in transactions.iter().zip(&encoded) {
        if quirks.unsigned && matches!(form, Form::Signed(_)) {
            continue;
        }
        // Not the envelope's own: that is the one which it was told with.
        let own = keccak256(bytes);
        false_if(own != *hash, || format!("transaction {hash} hashes to {own}"))?;
        match form {
            _ if !senders => {}
            Form::Signed(envelope) => signed_by(envelope, *hash, *from)?,
            Form::Unsigned(_) => {
                let internal = bytes.first() == Some(&unsigned::ARB_INTERNAL);
                false_if(internal && *from != unsigned::ARBOS, || {
                    format!("the internal transaction {hash} is told to be from {from}")
                })?;
            }
        }
    }
    Ok(Check::Holds)
}

fn signed_by(envelope: &TxEnvelope, hash: B256, from: Address) -> Result<(), Contradiction> {
    let signer = signer(envelope).ok_or_else(|| Contradiction(format!("transaction {hash} has no valid signature")))?;
    false_if(signer != from, || format!("transaction {hash} is signed by {signer}, not by {from}"))
}

/// Of a transaction by itself, in no block: that it has this hash, and was signed by this sender for this chain.
pub fn alone(envelope: &TxEnvelope, hash: B256, from: Address, chain: ChainId) -> Result<(), Contradiction> {
    let own = keccak256(envelope.encoded_2718());
    false_if(own != hash, || format!("transaction {hash} hashes to {own}"))?;
    // Before EIP-155 a signature was for any chain.
    let other = envelope.chain_id().filter(|id| *id != chain.0);
    false_if(other.is_some(), || format!("transaction {hash} is for another chain, {other:?}"))?;
    signed_by(envelope, hash, from)
}

/// Who signed it (Yellow Paper, appendix F). The hash is computed from the fields. High s values are recovered too: before
/// Homestead they were allowed.
fn signer(envelope: &TxEnvelope) -> Option<Address> {
    static CURVE: LazyLock<Secp256k1<VerifyOnly>> = LazyLock::new(Secp256k1::verification_only);
    let signature = envelope.signature();
    let rs = [signature.r().to_be_bytes::<32>(), signature.s().to_be_bytes::<32>()].concat();
    let rs = RecoverableSignature::from_compact(&rs, RecoveryId::from_u8_masked(signature.v().into())).ok()?;
    let key = CURVE.recover_ecdsa(Message::from_digest(envelope.signature_hash().0), &rs).ok()?;
    Some(Address::from_raw_public_key(&key.serialize_uncompressed()[1..]))
}

/// The trie of the withdrawals (EIP-4895). A root without a list is "not known", as in some recordings.
pub fn withdrawals(list: Option<&[Withdrawal]>, root: Option<B256>, quirks: &Quirks) -> Verdict {
    match (list, root) {
        (None, None) => Ok(Check::Holds),
        (None, Some(_)) => Ok(Check::CannotTell("the withdrawals are not given".into())),
        (Some([]), None) => Ok(Check::Holds),
        (Some([]), Some(_)) if quirks.op_stack => Ok(Check::Holds),
        (Some(_), None) => Err(Contradiction("there are withdrawals, but the header has no root of them".into())),
        (Some(list), Some(root)) => {
            let computed = calculate_withdrawals_root(list);
            if computed != root && quirks.foreign_header {
                return Ok(Check::CannotTell("this chain's roots are its own".into()));
            }
            false_if(computed != root, || format!("the withdrawals have the root {computed}, the header says {root}"))?;
            Ok(Check::Holds)
        }
    }
}

/// What of a receipt is under the receipts root.
#[derive(Clone, Debug)]
pub struct ReceiptFacts<'a> {
    /// EIP-2718 type.
    pub kind: u8,
    /// Success since Byzantium (EIP-658), a state root before.
    pub outcome: Eip658Value,
    pub cumulative_gas_used: u64,
    pub logs: &'a [Log],
    /// Of an OP-stack deposit since Canyon: the nonce that it had, and the version of this form. Before, the nonce was
    /// told and not hashed.
    pub deposit: Option<(u64, u64)>,
}

impl ReceiptFacts<'_> {
    /// The receipt as it is hashed (Yellow Paper 4.3.1, EIP-658, EIP-2718): type, then status or root, gas, bloom, logs.
    fn encode(&self, bloom: &Bloom, out: &mut Vec<u8>) {
        if self.kind != 0 {
            out.push(self.kind);
        }
        let logs: usize = self.logs.iter().map(|log| whole(log_length(log))).sum();
        let deposit = self.deposit.map_or(0, |(nonce, version)| nonce.length() + version.length());
        let fields = self.outcome.length() + self.cumulative_gas_used.length() + bloom.length() + whole(logs) + deposit;
        Header { list: true, payload_length: fields }.encode(out);
        self.outcome.encode(out);
        self.cumulative_gas_used.encode(out);
        bloom.encode(out);
        Header { list: true, payload_length: logs }.encode(out);
        for log in self.logs {
            Header { list: true, payload_length: log_length(log) }.encode(out);
            log.address.encode(out);
            Header { list: true, payload_length: TOPIC * log.topics.len() }.encode(out);
            for topic in &log.topics {
                topic.encode(out);
            }
            log.data.encode(out);
        }
        if let Some((nonce, version)) = self.deposit {
            nonce.encode(out);
            version.encode(out);
        }
    }
}

/// A word as an RLP item.
const TOPIC: usize = 33;

fn log_length(log: &Log) -> usize {
    log.address.length() + whole(TOPIC * log.topics.len()) + log.data.length()
}

/// An RLP list's length with its head.
fn whole(payload_length: usize) -> usize {
    payload_length + Header { list: true, payload_length }.length()
}

/// The root of the receipts' trie, with the blooms computed from their logs; and the bloom of them all.
pub fn receipts_root(receipts: &[ReceiptFacts<'_>]) -> (B256, Bloom) {
    let mut blooms = Blooms::default();
    let each: Vec<Bloom> = receipts.iter().map(|facts| blooms.of(facts.logs)).collect();
    let all = each.iter().fold(Bloom::ZERO, |all, one| all | *one);
    let with_bloom: Vec<(&ReceiptFacts<'_>, &Bloom)> = receipts.iter().zip(&each).collect();
    (ordered_trie_root_with_encoder(&with_bloom, |(facts, bloom), out| facts.encode(bloom, out)), all)
}

/// Proves receipts; returns the bloom of all their logs.
pub fn receipts(receipts: &[ReceiptFacts<'_>], root: B256, quirks: &Quirks) -> Result<(Check, Bloom), Contradiction> {
    let (computed, all) = receipts_root(receipts);
    if computed == root {
        return Ok((Check::Holds, all));
    }
    if quirks.foreign_header {
        return Ok((Check::CannotTell("this chain's roots are its own".into()), all));
    }
    // A type that we do not know may have a form of its own.
    if let Some(other) = receipts.iter().find(|r| !knows_receipt(r.kind)) {
        return Ok((Check::CannotTell(format!("a receipt has the type {:#x}", other.kind)), all));
    }
    Err(Contradiction(format!("the receipts have the root {computed}, the header says {root}")))
}

/// Arbitrum's unsigned types have receipts like Ethereum's typed ones.
fn knows_receipt(kind: u8) -> bool {
    kind <= 4 || kind == unsigned::OP_DEPOSIT || (unsigned::ARB_DEPOSIT..=unsigned::ARB_INTERNAL).contains(&kind)
}

/// A contract's address by its creator (Yellow Paper 7): never taken from a provider.
pub fn created(from: Address, nonce: u64) -> Address {
    from.create(nonce)
}
