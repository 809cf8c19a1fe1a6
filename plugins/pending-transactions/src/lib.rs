//! Transactions that are in no block yet, filtered by party or amount: a hint of what may come.

use chainweir_sdk::prelude::*;
use chainweir_sdk::tracking::{Which, watch};

/// The plugin's configuration. Without it, all that the node hears of is emitted.
#[config]
pub struct PendingTransactions {
    /// Only transactions from or to one of these.
    #[default]
    parties: Vec<Address>,
    /// Only transactions from or to a member of this watch set, which is edited while the host runs. Beside `parties`.
    #[default]
    parties_set: Option<String>,
    /// Only values of this many wei, or more.
    #[default]
    min: U256,
    /// Follow what is passed on to its end: what becomes of each is told in the stream `chainweir.transactions`, and at these
    /// counts of confirmations, where any are listed.
    #[default]
    track: Option<Vec<u64>>,
}

/// Passes pending transactions on.
#[plugin]
impl PendingTransactions {
    fn wanted(&self) -> Vec<Subscription> {
        let all = Subscription::pending().min_value(self.min);
        if self.parties.is_empty() && self.parties_set.is_none() {
            return vec![all];
        }
        let with_set = |side: Subscription, place| self.parties_set.iter().fold(side, |side, set| side.set(place, set));
        vec![
            with_set(all.clone().senders(&self.parties), Place::Sender),
            with_set(all.receivers(&self.parties), Place::Receiver),
        ]
    }

    #[pending(subscribe = self.wanted(), pass = "transactions")]
    fn seen(&self, transaction: &TransactionView<'_>) -> bool {
        if let Some(confirmations) = &self.track {
            watch(Which::Hash(*transaction.hash()), confirmations, None);
        }
        true
    }
}
