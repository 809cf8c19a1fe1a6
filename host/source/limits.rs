//! How much may be asked of one provider, and who is asked for first. `rpc -> [gate] -> endpoint -> the node`.
//!
//! Two bounds. Questions under way: a window as TCP has one; small when a provider comes back, larger with every answer, half
//! at "too many". Questions a second: what the configuration says; and where it refuses more than a few, less than what was
//! asked just then, rising again slowly. Who waits goes by importance, then by when the operation began that it is part of:
//! what began first is done first. Whoever leaves wakes the first of those that wait, and nobody else.
//! Knows nothing of JSON-RPC, nor which provider this is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::transport::jitter;

/// What a question is for: the first goes before the last where not all can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Importance {
    Head,
    Live,
    Backfill,
}

/// Under way at a time, where nothing else is configured: a few ranges with their headers.
pub(super) const CONCURRENCY: usize = 128;
/// The window of a provider that nothing is known of yet.
const BEGIN_WITH: f64 = 16.0;
/// The window of a provider that failed: whatever waited does not come all at once.
const BACK_WITH: f64 = 2.0;
/// "Too many" within this time is one saying: all of one burst are refused.
const ONE_SAYING: Duration = Duration::from_millis(500);
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// Waiting for so long is less trouble than asking somebody else.
const SOON: Duration = Duration::from_millis(20);
const PAUSE_MOST: Duration = Duration::from_secs(8);
/// Of what was asked in a second. Fewer refusals than this are what asking at the limit costs.
const REFUSED_MOST: f64 = 0.25;
/// Where it refuses more: so much of what was asked in the last second.
const LESS: f64 = 0.7;
/// A learned rate rises by so much of itself in a second, and by one question at least.
const RISE: f64 = 0.1;

pub(super) struct Gate {
    most: f64,
    given: Option<f64>,
    state: Mutex<State>,
}

/// Importance, when the operation began, and the order of coming within it.
type Key = (Importance, u64, u64);

struct State {
    window: f64,
    /// Below it the window grows by one with every answer; above it by one with every windowful.
    threshold: f64,
    under_way: usize,
    rate: Option<f64>,
    tokens: f64,
    filled: Instant,
    paused: Option<Instant>,
    said: Option<Instant>,
    /// When the rate was lowered last.
    cut: Option<Instant>,
    sayings: u32,
    /// Questions and refusals in this second and in the one before it.
    second: Instant,
    asked: [u32; 2],
    refused: [u32; 2],
    waiting: BTreeMap<Key, Arc<Notify>>,
    /// Counts operations and those that came.
    count: u64,
}

impl State {
    /// Begins a new second where one has passed.
    fn turn(&mut self, now: Instant) {
        let seconds = now.duration_since(self.second).as_secs();
        if seconds > 0 {
            let before = |count: [u32; 2]| [0, if seconds == 1 { count[0] } else { 0 }];
            (self.second, self.asked, self.refused) = (now, before(self.asked), before(self.refused));
        }
    }

    /// Brings the bucket up to now. How long until there is a question in it, where there is none.
    fn refill(&mut self, now: Instant, given: Option<f64>) -> Option<Duration> {
        let rate = self.rate.as_mut()?;
        let passed = now.duration_since(self.filled).as_secs_f64();
        self.filled = now;
        if given.is_none_or(|given| *rate < given) {
            *rate += passed * (*rate * RISE).max(1.0);
            *rate = given.map_or(*rate, |given| rate.min(given));
        }
        self.tokens = (self.tokens + passed * *rate).min((*rate / 10.0).max(1.0));
        (self.tokens < 1.0).then(|| Duration::from_secs_f64((1.0 - self.tokens) / *rate))
    }

    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// Something moved: the first looks whether it may go.
    fn wake(&self) {
        if let Some((_, first)) = self.waiting.first_key_value() {
            first.notify_one();
        }
    }

    /// `Err`: how long to wait at least; `None` until something moves.
    fn admit(&mut self, importance: Importance, now: Instant, given: Option<f64>) -> Result<(), Option<Duration>> {
        if let Some(until) = self.paused {
            if until > now {
                return Err(Some(until - now));
            }
            self.paused = None;
        }
        // Long answers of the past must not stand before the next head.
        let room = if importance == Importance::Backfill { self.window * 0.9 } else { self.window };
        if self.under_way as f64 >= room.floor().max(1.0) {
            return Err(None);
        }
        if let Some(wait) = self.refill(now, given) {
            return Err(Some(wait));
        }
        self.tokens -= 1.0;
        self.under_way += 1;
        self.turn(now);
        self.asked[0] += 1;
        Ok(())
    }
}

/// A question under way. It has left when this is dropped.
pub(super) struct Pass<'g> {
    gate: &'g Gate,
}

/// A place among those that wait. Given up when this is dropped, as when the question is not asked after all.
struct Ticket<'g> {
    gate: &'g Gate,
    key: Key,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        state.waiting.remove(&self.key);
        state.wake();
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        state.under_way -= 1;
        state.wake();
    }
}

impl Gate {
    pub fn new(concurrency: Option<usize>, per_second: Option<f64>) -> Self {
        let most = concurrency.unwrap_or(CONCURRENCY).max(1) as f64;
        let now = Instant::now();
        let state = State {
            window: most.min(BEGIN_WITH),
            threshold: most,
            under_way: 0,
            rate: per_second,
            tokens: 1.0,
            filled: now,
            paused: None,
            said: None,
            cut: None,
            sayings: 0,
            second: now,
            asked: [0; 2],
            refused: [0; 2],
            waiting: BTreeMap::new(),
            count: 0,
        };
        Self { most, given: per_second, state: Mutex::new(state) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// When an operation begins, by its order among others.
    pub fn begins(&self) -> u64 {
        self.state().next()
    }

    /// Waits for its turn, as part of an operation that [began](Self::begins) then. `Err`: the provider wants to be left
    /// alone for so long, which is more than `patience`.
    pub async fn enter(&self, importance: Importance, began: u64, patience: Duration) -> Result<Pass<'_>, Duration> {
        let woken = Arc::new(Notify::new());
        let ticket = {
            let mut state = self.state();
            let key = (importance, began, state.next());
            state.waiting.insert(key, woken.clone());
            Ticket { gate: self, key }
        };
        loop {
            let wait = {
                let (mut state, now) = (self.state(), Instant::now());
                if let Some(rest) = state.paused.and_then(|until| until.checked_duration_since(now))
                    && rest > patience.max(SOON)
                {
                    return Err(rest);
                }
                if state.waiting.first_key_value().is_some_and(|(first, _)| *first == ticket.key) {
                    match state.admit(importance, now, self.given) {
                        Ok(()) => return Ok(Pass { gate: self }),
                        Err(wait) => wait,
                    }
                } else {
                    None
                }
            };
            match wait {
                Some(wait) if wait > patience.max(SOON) => return Err(wait),
                None => woken.notified().await,
                Some(wait) => {
                    let _ = tokio::time::timeout(wait, woken.notified()).await;
                }
            }
        }
    }

    /// For so long it wants to be left alone, or nothing more may be asked.
    pub fn pause(&self) -> Option<Duration> {
        let (mut state, now) = (self.state(), Instant::now());
        let told = state.paused.and_then(|until| until.checked_duration_since(now));
        told.max(state.refill(now, self.given)).filter(|rest| *rest > SOON)
    }
}

impl Pass<'_> {
    /// A question that holds many: a provider counts each.
    pub fn holds(&self, questions: usize) {
        let more = questions.saturating_sub(1);
        let mut state = self.gate.state();
        if state.rate.is_some() {
            // Below zero: whoever comes next waits for it.
            state.tokens -= more as f64;
        }
        state.asked[0] = state.asked[0].saturating_add(u32::try_from(more).unwrap_or(u32::MAX));
    }

    pub fn answered(&self) {
        let mut state = self.gate.state();
        state.sayings = 0;
        state.window += if state.window < state.threshold { 1.0 } else { 1.0 / state.window };
        state.window = state.window.min(self.gate.most);
    }

    /// It said "too many", and perhaps for how long.
    pub fn limited(&self, after: Option<Duration>) {
        let (mut state, now) = (self.gate.state(), Instant::now());
        state.turn(now);
        state.refused[0] += 1;
        if state.said.is_none_or(|said| now.duration_since(said) >= ONE_SAYING) {
            state.said = Some(now);
            state.sayings = state.sayings.saturating_add(1);
            state.threshold = (state.window / 2.0).max(1.0);
            state.window = state.threshold;
        }
        let sum = |count: [u32; 2]| f64::from(count[0] + count[1]);
        if sum(state.refused) > sum(state.asked) * REFUSED_MOST
            && state.cut.is_none_or(|cut| now.duration_since(cut) >= ONE_SAYING)
        {
            state.cut = Some(now);
            let asked = f64::from(state.asked[0].max(state.asked[1]));
            state.rate = Some((state.rate.map_or(asked, |rate| rate.min(asked)) * LESS).max(1.0));
        }
        let wait =
            after.unwrap_or(PAUSE_FIRST.saturating_mul(1 << state.sayings.min(8).saturating_sub(1)).min(PAUSE_MOST));
        let until = now + jitter(wait);
        state.paused = Some(state.paused.map_or(until, |before| before.max(until)));
    }

    /// The connection failed.
    pub fn failed(&self) {
        let mut state = self.gate.state();
        state.threshold = (state.window / 2.0).max(BACK_WITH);
        state.window = state.window.min(BACK_WITH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn who_waits_goes_by_importance_then_by_when_its_operation_began() {
        let gate = Arc::new(Gate::new(Some(1), None));
        let first = gate.enter(Importance::Backfill, 0, LONG).await.unwrap();
        let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let all = [(Importance::Backfill, 2), (Importance::Live, 9), (Importance::Backfill, 1), (Importance::Head, 9)];
        for (n, (importance, began)) in all.into_iter().chain([(Importance::Backfill, 2)]).enumerate() {
            let (own, said) = (gate.clone(), said.clone());
            tokio::spawn(async move {
                let _pass = own.enter(importance, began, LONG).await.unwrap();
                said.send(n).unwrap();
            });
            while gate.state().waiting.len() <= n {
                tokio::task::yield_now().await;
            }
        }
        drop(first);
        let mut order = vec![];
        while order.len() < 5 {
            order.push(heard.recv().await.unwrap());
        }
        assert_eq!(order, [3, 1, 2, 0, 4]);
    }

    #[tokio::test]
    async fn thousands_that_wait_cost_what_one_does() {
        let (gate, looks) = (Arc::new(Gate::new(Some(1), None)), Arc::new(AtomicU64::new(0)));
        let first = gate.enter(Importance::Live, 0, LONG).await.unwrap();
        let all = (0..2_000).map(|_| {
            let (gate, looks) = (gate.clone(), looks.clone());
            tokio::spawn(async move {
                let mut entering = Box::pin(gate.enter(Importance::Backfill, 0, LONG));
                let pass = std::future::poll_fn(|cx| {
                    looks.fetch_add(1, Ordering::Relaxed);
                    entering.as_mut().poll(cx)
                });
                drop(pass.await.unwrap());
            })
        });
        let all: Vec<_> = all.collect();
        while gate.state().waiting.len() < 2_000 {
            tokio::task::yield_now().await;
        }
        drop(first);
        futures::future::join_all(all).await;
        // On coming, when it is the first, and when there is room.
        assert!(looks.load(Ordering::Relaxed) <= 3 * 2_000, "{looks:?}");
    }

    #[tokio::test]
    async fn a_rate_that_is_given_is_kept() {
        let gate = Gate::new(None, Some(200.0));
        let began = Instant::now();
        for _ in 0..60 {
            gate.enter(Importance::Live, 0, LONG).await.unwrap().answered();
        }
        // One at once, and no more than a tenth of a second's in a burst.
        assert!(began.elapsed() >= Duration::from_millis(190), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn too_many_makes_less_and_an_answer_more() {
        let gate = Gate::new(Some(64), None);
        let passes = futures::future::join_all((0..16).map(|_| gate.enter(Importance::Live, 0, LONG))).await;
        for pass in passes {
            pass.unwrap().limited(Some(Duration::from_millis(60)));
        }
        assert_eq!(gate.state().window, 8.0, "all of a burst are one saying");
        let rate = gate.state().rate.unwrap();
        assert!((rate - 16.0 * LESS).abs() < 0.01, "{rate}");
        assert!(
            matches!(gate.enter(Importance::Live, 0, Duration::ZERO).await, Err(rest) if rest <= Duration::from_millis(90))
        );
        let pass = gate.enter(Importance::Live, 0, LONG).await.unwrap();
        pass.answered();
        assert!(gate.state().window > 8.0);
        pass.failed();
        assert_eq!(gate.state().window, BACK_WITH);
    }

    #[tokio::test]
    async fn a_question_that_is_given_up_gives_its_place_up() {
        let gate = Gate::new(Some(1), None);
        let pass = gate.enter(Importance::Live, 0, LONG).await.unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(10), gate.enter(Importance::Head, 0, LONG)).await;
        assert!(waited.is_err() && gate.state().waiting.is_empty());
        drop(pass);
        gate.enter(Importance::Backfill, 0, LONG).await.unwrap();
    }
}
