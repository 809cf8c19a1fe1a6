//! Transactions whose way the host follows for a plugin. What becomes of each (pending, included, replaced, dropped, confirmed,
//! finalized, orphaned) is said in the stream `chainweir.transactions`, to be routed as any other.
//!
//! ```
//! # use chainweir_sdk::prelude::*;
//! use chainweir_sdk::tracking::{Which, watch};
//! #[config]
//! struct Shop {}
//!
//! #[plugin(name = "shop")]
//! impl Shop {
//!     #[pending(subscribe = [Subscription::pending()], pass = "seen")]
//!     fn seen(&self, tx: &TransactionView<'_>) -> bool {
//!         watch(Which::Hash(*tx.hash()), &[1, 12], Some("a payment"));
//!         true
//!     }
//! }
//! # fn main() {}
//! ```

use alloy_primitives::{Address, B256};

use crate::state;

/// Which transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// By its hash.
    Hash(B256),
    /// Whichever takes this nonce of this sender.
    Nonce(Address, u64),
}

/// A transaction to be watched, as a plugin asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Which one.
    pub which: Which,
    /// Counts to be told at.
    pub confirmations: Vec<u64>,
    /// Comes back in every statement.
    pub label: Option<String>,
}

/// Watches a transaction from here on, on the chain of the event at hand; one that is watched already stays as it is. Taken back
/// with the event where that is rejected, and not with its block: what becomes of it is of interest all the more then.
///
/// `confirmations`: counts to be told at, at most 16, each 1 or more. `label`: at most 256 bytes. The host stops a plugin that
/// asks for more.
pub fn watch(which: Which, confirmations: &[u64], label: Option<&str>) {
    state::watch(Watched { which, confirmations: confirmations.to_vec(), label: label.map(Into::into) });
}
