//! Transactions that are in no block yet, as the leading provider's mempool has them. Part of [`rpc`](super::rpc).
//! `node -> [pending] -> router`.
//!
//! A hint, and part of no promise: a transaction may be told twice or never. What is told is proven to be signed by its sender,
//! and nothing more. Whole transactions are asked for; a node that tells hashes is asked for each. What comes faster than it
//! is taken is dropped and counted: a flood of the mempool costs neither memory nor blocks.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::B256;
use futures::stream::{FuturesUnordered, StreamExt};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::mpsc::{self, error::TrySendError};

use super::limits::Importance;
use super::rpc::Inner;
use super::transport::{Endpoint, Fail, jitter};
use super::wire;
use crate::model::Transaction;
use crate::telemetry;

/// Told and not taken yet.
const WAITING: usize = 1024;
/// Hashes that are told and not asked for yet.
const UNASKED: usize = 1024;
const ASKED_AT_ONCE: usize = 8;
/// So many are remembered, and told once.
const REMEMBERED: usize = 1 << 16;
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Whoever leads is listened to: looked at so often.
const LOOK: Duration = Duration::from_secs(2);
/// Between two questions for what came, where there are no subscriptions.
const POLL: Duration = Duration::from_millis(500);

/// Hashes in the order of their coming, the oldest forgotten.
#[derive(Default)]
struct Seen {
    all: HashSet<B256>,
    order: VecDeque<B256>,
}

impl Seen {
    /// True the first time.
    fn first(&mut self, hash: B256) -> bool {
        if !self.all.insert(hash) {
            return false;
        }
        self.order.push_back(hash);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.all.remove(&oldest);
        }
        true
    }
}

struct Listener {
    inner: Arc<Inner>,
    to: mpsc::Sender<Transaction>,
    seen: Seen,
    unasked: VecDeque<B256>,
}

impl Inner {
    /// Until the receiver is dropped.
    pub(super) fn listen(self: &Arc<Self>) -> mpsc::Receiver<Transaction> {
        let (to, receiver) = mpsc::channel(WAITING);
        let listener = Listener { inner: self.clone(), to, seen: Seen::default(), unasked: VecDeque::new() };
        tokio::spawn(listener.run());
        receiver
    }
}

impl Listener {
    async fn run(mut self) {
        while !self.to.is_closed() {
            let leader = self.inner.pool.leader();
            if let Err(fail) = self.hear(leader).await {
                tracing::debug!(chain = %self.inner.name, ?fail, "pending transactions are not told; asked again");
                let gone = self.to.clone();
                tokio::select! {
                    () = gone.closed() => return,
                    () = tokio::time::sleep(jitter(AGAIN_AFTER)) => {}
                }
            }
        }
    }

    /// Returns when another provider leads, or nobody listens.
    async fn hear(&mut self, leader: usize) -> Result<(), Fail> {
        let provider = self.inner.pool.members[leader].provider.clone();
        let ep = provider.asked(Importance::Backfill, false);
        let mut asking = FuturesUnordered::new();
        let mut look = tokio::time::interval(LOOK);
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut subscription = None;
        let mut filter = None;
        if provider.subscribes() {
            let whole = provider.subscribe(json!(["newPendingTransactions", true])).await;
            subscription = Some(match whole {
                // It takes no second word.
                Err(Fail::Other(_)) => provider.subscribe(json!(["newPendingTransactions"])).await?,
                other => other?,
            });
        } else {
            filter = Some(ep.call("eth_newPendingTransactionFilter", json!([])).await?);
        }
        let gone = self.to.clone();
        loop {
            while asking.len() < ASKED_AT_ONCE
                && let Some(hash) = self.unasked.pop_front()
            {
                asking.push(by_hash(&ep, hash));
            }
            tokio::select! {
                () = gone.closed() => return Ok(()),
                _ = look.tick() => if self.inner.pool.leader() != leader {
                    return Ok(());
                },
                told = async { subscription.as_mut().expect("looked at").recv().await }, if subscription.is_some() => match told {
                    Ok(told) => self.told(&told),
                    Err(tokio::sync::broadcast::error::RecvError::Lagged(n)) => self.dropped(n),
                    Err(_) => return Err(Fail::Dead("the connection has ended".into())),
                },
                _ = poll.tick(), if filter.is_some() => {
                    let told = ep.call("eth_getFilterChanges", json!([filter])).await?;
                    let told: Vec<Box<RawValue>> = serde_json::from_str(told.get())
                        .map_err(|e| Fail::False(format!("eth_getFilterChanges is not a list: {e}")))?;
                    told.iter().for_each(|told| self.told(told));
                }
                Some(answer) = asking.next() => match answer {
                    Ok(whole) => self.whole(&whole),
                    Err(fail) => {
                        tracing::debug!(chain = %self.inner.name, ?fail, "a pending transaction is not told");
                        self.dropped(1);
                    }
                },
            }
        }
    }

    /// A hash, or a whole transaction.
    fn told(&mut self, told: &RawValue) {
        let Ok(hash) = serde_json::from_str::<B256>(told.get()) else { return self.whole(told) };
        if !self.seen.first(hash) {
            return;
        }
        if self.unasked.len() == UNASKED {
            self.unasked.pop_front();
            self.dropped(1);
        }
        self.unasked.push_back(hash);
    }

    fn whole(&mut self, told: &RawValue) {
        match wire::pending(told.get(), self.inner.chain) {
            Ok(Some(tx)) => {
                self.seen.first(tx.hash);
                if let Err(TrySendError::Full(_)) = self.to.try_send(tx) {
                    self.dropped(1);
                }
            }
            // In a block by now, or forgotten.
            Ok(None) => {}
            Err(trouble) => {
                tracing::debug!(chain = %self.inner.name, %trouble, "a pending transaction that is none");
                self.dropped(1);
            }
        }
    }

    fn dropped(&self, n: u64) {
        telemetry::pending_dropped(self.inner.chain).increment(n);
    }
}

async fn by_hash(ep: &Endpoint, hash: B256) -> Result<Box<RawValue>, Fail> {
    ep.call("eth_getTransactionByHash", json!([hash])).await
}
