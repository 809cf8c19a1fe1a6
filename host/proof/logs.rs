//! A header's bloom proves logs, as far as a bloom can; their indexes prove more.

use alloy_primitives::{Address, B256, Bloom, BloomInput};

use super::{Contradiction, Quirks, false_if, state_sync_hash};
use crate::model::Log;

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
