//! Listens to each provider, and looks at those that are not heard of. Part of [`rpc`](super::rpc).
//! `node -> [watch] -> pool, wake`.
//!
//! One task per provider. A notification carries a header: where it proves itself and goes on from what is known, it *is* the
//! head, and nobody has to ask. All else that a notification may be (late, twice, out of order, of another branch) is a hint
//! to ask. One that never comes is made up for by polling, and the subscription is opened again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_pubsub::RawSubscription;
use tokio::sync::broadcast::error::RecvError;

use super::limits::Importance;
use super::rpc::{Inner, trouble};
use super::transport::{Fail, jitter};
use super::wire::WireBlock;

/// The provider's head moves, and its subscription has said nothing for so long: it is dead.
const SILENT: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(250);
/// A look that is not answered within this is one in vain: another provider may be asked in the meantime.
const LOOK_WITHIN: Duration = Duration::from_secs(2);

impl Inner {
    pub(super) async fn attend(self: Arc<Self>, index: usize) {
        let provider = self.pool.members[index].provider.clone();
        let mut subscription: Option<RawSubscription> = None;
        let mut subscribe_at = Instant::now();
        // What the subscription told last, and since when the provider is known to have more.
        let (mut told, mut silent) = (0, None);
        loop {
            if provider.subscribes() && subscription.is_none() && subscribe_at <= Instant::now() {
                match provider.subscribe(serde_json::json!(["newHeads"])).await {
                    Ok(opened) => {
                        (subscription, told, silent) = (Some(opened), 0, None);
                        // What came between the last look and the subscription.
                        self.wake.notify_one();
                    }
                    Err(fail) => {
                        tracing::debug!(chain = %self.name, ?fail, "no subscription; polling");
                        subscribe_at = Instant::now() + jitter(self.poll().min(SILENT));
                    }
                }
            }
            let now = Instant::now();
            let look_at = self.pool.look_at(index, self.poll());
            let rest = look_at.map_or(TICK, |at| at.saturating_duration_since(now).min(TICK));
            let heard = async {
                match &mut subscription {
                    Some(subscription) => subscription.recv().await,
                    None => std::future::pending().await,
                }
            };
            match tokio::time::timeout(rest.max(Duration::from_millis(1)), heard).await {
                Ok(Ok(raw)) => {
                    silent = None;
                    match WireBlock::parse_header(raw.get()).map_err(trouble) {
                        Ok(header) => told = self.notified(index, &header).unwrap_or(told),
                        // Not in the form of a header: a hint all the same.
                        Err(_) => self.wake.notify_one(),
                    }
                }
                Ok(Err(RecvError::Lagged(_))) => self.wake.notify_one(),
                Ok(Err(RecvError::Closed)) => {
                    subscription = None;
                    subscribe_at = Instant::now() + jitter(Duration::from_millis(100));
                }
                Err(_) => {}
            }
            if look_at.is_some_and(|at| at <= Instant::now()) {
                self.look(index).await;
            }
            if subscription.is_some() && self.pool.head_of(index).is_some_and(|(head, _)| head > told) {
                let since = *silent.get_or_insert_with(Instant::now);
                // The first head of all may be older than the subscription.
                if told == 0 {
                    told = self.pool.head_of(index).map_or(0, |(head, _)| head);
                } else if since.elapsed() >= SILENT {
                    tracing::warn!(chain = %self.name, provider = %provider.shown, "the subscription is silent while the head moves: opened again");
                    provider.reset().await;
                    (subscription, silent) = (None, None);
                }
            } else {
                silent = None;
            }
        }
    }

    /// A provider's subscription told of a header: its height, where it proves itself.
    fn notified(&self, index: usize, header: &WireBlock) -> Option<u64> {
        let proven = match self.prove_header(header) {
            Ok(proven) => proven,
            Err(fail) => {
                self.pool.unheard(index, &fail);
                return None;
            }
        };
        let at = header.at(self.chain);
        if proven {
            self.headers.keep(header);
        }
        self.pool.heard(index, &at);
        let leads = self.pool.leader() == index;
        let mut heads = self.heads.lock().expect("no panic while held");
        let best = heads.last.iter().chain(&heads.told).map(|head| head.number).max();
        match best {
            _ if !leads => {
                // The leader tells by itself, or has to be asked.
                if !self.pool.members[self.pool.leader()].provider.subscribes()
                    && best.is_none_or(|best| at.number > best)
                {
                    self.wake.notify_one();
                }
            }
            Some(best) if at.number > best && proven => {
                heads.told = Some(at);
                self.wake.notify_one();
            }
            // Told again: nothing new.
            Some(_) if heads.last == Some(at) || heads.told == Some(at) => {}
            _ => {
                heads.told = None;
                self.wake.notify_one();
            }
        }
        Some(at.number)
    }

    /// Asks a provider for its head, and what it has at the height of one that is lower.
    async fn look(&self, index: usize) {
        let ep = self.pool.members[index].provider.asked(Importance::Head, false);
        let late = |_| Fail::Dead(format!("{}: no answer in {} ms", ep.shown, LOOK_WITHIN.as_millis()));
        let head = tokio::time::timeout(LOOK_WITHIN, self.tag(&ep, "latest")).await.map_err(late);
        match head {
            Ok(Ok(head)) => {
                self.pool.heard(index, &head);
                if let Some(number) = self.pool.to_compare(index) {
                    let asked = self.header(&ep, super::rpc::Place::Number(number));
                    if let Ok(Ok(block)) = tokio::time::timeout(LOOK_WITHIN, asked).await {
                        self.pool.noted(index, number, block.hash);
                    }
                }
                // One that was aside may lead again, or know of more.
                let last = self.heads.lock().expect("no panic while held").last;
                if self.pool.leader() == index && last.is_none_or(|last| head.number > last.number) {
                    self.wake.notify_one();
                }
            }
            Ok(Err(fail)) | Err(fail) => self.pool.unheard(index, &fail),
        }
    }
}
