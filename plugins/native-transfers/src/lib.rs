//! Ether (or whatever a chain's own coin is) that transactions move, filtered by party or amount.

use chainweir_sdk::prelude::*;

/// The plugin's configuration. Without it, every successful transaction that moves value is emitted.
#[config]
pub struct NativeTransfers {
    /// Only transactions from or to one of these.
    #[default]
    parties: Vec<Address>,
    /// Only transactions from or to a member of this watch set, which is edited while the host runs. Beside `parties`.
    #[default]
    parties_set: Option<String>,
    /// Only values of this many wei, or more.
    #[default(U256::from(1))]
    min: U256,
    /// What contracts move among themselves too: the node must be able to trace.
    #[default]
    internal: bool,
}

/// Value moved by a transaction, in wei.
#[stream(name = "transfers", key = to)]
pub struct Moved {
    from: Address,
    /// The receiver, or the contract that the transaction created.
    to: Address,
    value: U256,
    tx: B256,
    tx_index: u32,
}

/// Emits the value that successful transactions move; what contracts move among themselves where `internal` asks for it.
#[plugin(streams(Moved))]
impl NativeTransfers {
    /// A party may be on either side. A contract in creation has no `to` yet, and is found by its creator alone.
    fn sides(&self, all: Subscription) -> Vec<Subscription> {
        if self.parties.is_empty() && self.parties_set.is_none() {
            return vec![all];
        }
        let with_set = |side: Subscription, place| self.parties_set.iter().fold(side, |side, set| side.set(place, set));
        vec![
            with_set(all.clone().senders(&self.parties), Place::Sender),
            with_set(all.receivers(&self.parties), Place::Receiver),
        ]
    }

    fn transactions(&self) -> Vec<Subscription> {
        if self.internal { vec![] } else { self.sides(Subscription::transactions().success(true)) }
    }

    fn transfers(&self) -> Vec<Subscription> {
        if self.internal { self.sides(Subscription::transfers().min_value(self.min)) } else { vec![] }
    }

    /// A transaction's own value is among them.
    #[transfer(subscribe = self.transfers())]
    fn transfer(&self, t: &TransferView, out: &mut Out<Self>) -> Result {
        out.emit(&Moved { from: t.from(), to: t.to(), value: t.value(), tx: *t.tx_hash(), tx_index: t.tx_index() })
    }

    #[transaction(subscribe = self.transactions())]
    fn transaction(&self, tx: &TransactionView, out: &mut Out<Self>) -> Result {
        let value = tx.value();
        if value.is_zero() || value < self.min {
            return Ok(());
        }
        let Some(to) = tx.to().or(tx.created()) else {
            reject!("the transaction {} moves value to nobody", tx.hash());
        };
        out.emit(&Moved { from: tx.from(), to, value, tx: *tx.hash(), tx_index: tx.index() })
    }
}
