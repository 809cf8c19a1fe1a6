//! A header's bloom proves logs, as far as a bloom can; their indexes prove more.

use std::collections::HashMap;

use alloy_primitives::{Address, B256, Bloom, BloomInput, keccak256};

use super::{Contradiction, Quirks, false_if, state_sync_hash};
use crate::model::Log;

/// Computes blooms, and every word's place in them once: most words of a block's logs come again and again.
#[derive(Default)]
pub(super) struct Blooms<'a> {
    known: HashMap<&'a [u8], [u16; 3], foldhash::fast::RandomState>,
}

impl<'a> Blooms<'a> {
    /// The three bits of a word (Yellow Paper 4.3.1): eleven low bits of each of the first three pairs of its hash.
    fn bits(&mut self, word: &'a [u8]) -> [u16; 3] {
        *self.known.entry(word).or_insert_with(|| {
            let hash = keccak256(word);
            [0, 2, 4].map(|i| u16::from_be_bytes([hash[i], hash[i + 1]]) & 0x7ff)
        })
    }

    /// The bloom of a set of logs (Yellow Paper 4.3.1).
    pub fn of(&mut self, logs: &'a [Log]) -> Bloom {
        self.of_those(logs, |_| true)
    }

    fn of_those(&mut self, logs: &'a [Log], which: impl Fn(&Log) -> bool) -> Bloom {
        let mut bloom = Bloom::ZERO;
        for log in logs.iter().filter(|log| which(log)) {
            for word in words(log) {
                for bit in self.bits(word) {
                    bloom[BLOOM_BYTES - 1 - usize::from(bit / 8)] |= 1 << (bit % 8);
                }
            }
        }
        bloom
    }
}

const BLOOM_BYTES: usize = 256;

/// What of a log is in the bloom.
fn words(log: &Log) -> impl Iterator<Item = &[u8]> {
    std::iter::once(log.address.as_slice()).chain(log.topics.iter().map(|t| t.as_slice()))
}

/// The bloom of a set of logs.
pub fn bloom_of(logs: &[Log]) -> Bloom {
    Blooms::default().of(logs)
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
pub fn in_bloom(at: (u64, B256), bloom: &Bloom, logs: &[Log], quirks: &Quirks) -> Result<(), Contradiction> {
    if quirks.bloom_unreliable {
        return Ok(());
    }
    let outside = outside(at, quirks);
    let mut blooms = Blooms::default();
    for log in logs.iter().filter(|log| Some(log.transaction_hash) != outside) {
        let holds = |bit: u16| bloom[BLOOM_BYTES - 1 - usize::from(bit / 8)] & (1 << (bit % 8)) != 0;
        let inside = words(log).all(|word| blooms.bits(word).into_iter().all(holds));
        false_if(!inside, || format!("log {} is not in the header's bloom", log.index))?;
    }
    Ok(())
}

/// The transaction whose logs are not in its block's bloom.
fn outside((number, hash): (u64, B256), quirks: &Quirks) -> Option<B256> {
    quirks.may_state_sync(number).then(|| state_sync_hash(number, hash))
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
/// `known`: their bloom, where it was computed already.
pub fn all_logs(
    at: (u64, B256),
    bloom: &Bloom,
    logs: &[Log],
    known: Option<Bloom>,
    quirks: &Quirks,
) -> Result<(), Contradiction> {
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
    let outside = outside(at, quirks);
    let computed =
        known.unwrap_or_else(|| Blooms::default().of_those(logs, |log| Some(log.transaction_hash) != outside));
    false_if(computed != *bloom, || {
        format!("the {} logs of block {} do not make up its header's bloom", logs.len(), at.0)
    })
}
