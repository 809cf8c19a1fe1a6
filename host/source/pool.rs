//! The providers of one chain: who is asked, who is asked instead, and who is left aside.
//! `rpc -> [pool] -> endpoint`.
//!
//! The order of the configuration is the order of preference among those that are well. An operation speaks to one provider
//! from its beginning to its end. Where that one fails, or takes longer than it usually does, the next one is asked the same;
//! the first answer counts. Asking twice is bounded to a small share, so that a slow day does not double the bill.
//! Knows nothing of what is asked.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use alloy_primitives::B256;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::Notify;

use super::health::{BEHIND, Cause, DIFFER, Health, Kind, behind, differ};
use super::limits::Importance;
use super::transport::{Endpoint, Fail, Provider, jitter};
use crate::model::{BlockRef, ProviderStatus};

/// A false answer is asked for again so often before it is told, where nobody has a better one.
const FALSE_TRIES: u32 = 3;
/// One question in twenty may be asked twice, and so many at once.
const TWICE_SHARE: f64 = 0.05;
const TWICE_MOST: f64 = 5.0;
/// Never sooner, however fast a provider usually is: a machine stalls for so long by itself.
const LATE_LEAST: Duration = Duration::from_millis(50);
const LATE_MOST: Duration = Duration::from_millis(2_000);
const LOOK_MOST: Duration = Duration::from_secs(15);
const LOOK_LEAST: Duration = Duration::from_millis(250);

pub(super) struct Member {
    pub provider: Arc<Provider>,
    false_answers: AtomicU64,
    /// It was found dead, hanging or lying: whatever still waits for it need not.
    given_up: Notify,
}

pub(super) struct Pool {
    /// The chain's, for the log.
    name: String,
    pub members: Vec<Member>,
    healths: Mutex<Vec<Health>>,
    twice: Mutex<f64>,
    differing: Mutex<HashMap<(usize, usize), Instant>>,
    pace: Mutex<Pace>,
}

/// How often heads come, by our own clock.
struct Pace {
    best: u64,
    at: Instant,
    interval: Option<Duration>,
}

fn rank(fail: &Fail) -> u8 {
    match fail {
        Fail::NoMethod(_) => 0,
        Fail::NoTag | Fail::Unknown(_) => 1,
        Fail::TooLarge { .. } => 2,
        Fail::WrongChain(_) => 3,
        Fail::Dead(_) => 4,
        Fail::Other(_) => 5,
        Fail::Limited { .. } => 6,
        Fail::False(_) => 7,
    }
}

impl Pool {
    pub fn new(name: String, providers: Vec<Arc<Provider>>) -> Self {
        let healths = providers.iter().map(|_| Health::default()).collect();
        let member = |provider| Member { provider, false_answers: AtomicU64::new(0), given_up: Notify::new() };
        Self {
            name,
            members: providers.into_iter().map(member).collect(),
            healths: Mutex::new(healths),
            twice: Mutex::new(TWICE_MOST),
            differing: Mutex::default(),
            pace: Mutex::new(Pace { best: 0, at: Instant::now(), interval: None }),
        }
    }

    fn healths(&self) -> MutexGuard<'_, Vec<Health>> {
        self.healths.lock().expect("no panic while held")
    }

    /// Well ones first, then those that want to be left alone for a moment, then those that are aside.
    fn order(&self) -> (Vec<usize>, usize) {
        let healths = self.healths();
        let class = |i: usize| match (healths[i].aside(), self.members[i].provider.gate.pause()) {
            (Some(aside), _) if aside.cause == Cause::False => 3,
            (Some(_), _) => 2,
            (None, Some(_)) => 1,
            (None, None) => 0,
        };
        let mut order: Vec<(u8, usize)> = (0..self.members.len()).map(|i| (class(i), i)).collect();
        order.sort_unstable();
        let well = order.iter().take_while(|(class, _)| *class < 2).count();
        (order.into_iter().map(|(_, i)| i).collect(), well)
    }

    /// Whom the chain is followed by.
    pub fn leader(&self) -> usize {
        self.order().0[0]
    }

    /// An operation by one provider; by the next ones where that one fails or is late.
    pub async fn ask<T>(
        &self,
        kind: Kind,
        op: impl Fn(Arc<Endpoint>) -> BoxFuture<'static, Result<T, Fail>>,
    ) -> Result<T, Fail> {
        let mut round = 0;
        loop {
            let fail = match self.round(kind, &op).await {
                Ok(value) => return Ok(value),
                Err(fail) => fail,
            };
            round += 1;
            if !matches!(fail, Fail::False(_)) || round == FALSE_TRIES {
                return Err(fail);
            }
            tokio::time::sleep(jitter(Duration::from_millis(50 << round))).await;
        }
    }

    async fn round<T>(
        &self,
        kind: Kind,
        op: impl Fn(Arc<Endpoint>) -> BoxFuture<'static, Result<T, Fail>>,
    ) -> Result<T, Fail> {
        let importance = match kind {
            Kind::Head => Importance::Head,
            Kind::Header | Kind::Block | Kind::Trace => Importance::Live,
            Kind::Range => Importance::Backfill,
        };
        let (order, mut well) = self.order();
        let mut next: VecDeque<usize> = order.into();
        let mut running = FuturesUnordered::new();
        let mut under_way: Vec<(usize, Instant)> = vec![];
        let start = |i: usize, patient: bool, watched: bool| {
            let member = &self.members[i];
            let asking = op(member.provider.asked(importance, patient));
            async move {
                let given_up = member.given_up.notified();
                let answer = tokio::select! {
                    answer = asking => Some(answer),
                    () = given_up, if watched => None,
                };
                (i, answer)
            }
            .boxed()
        };
        {
            let mut twice = self.twice.lock().expect("no panic while held");
            *twice = (*twice + TWICE_SHARE).min(TWICE_MOST);
        }
        let mut worst: Option<Fail> = None;
        let mut late_at = None;
        let mut begin = true;
        loop {
            if begin && let Some(i) = next.pop_front() {
                begin = false;
                let others = well.saturating_sub(1);
                running.push(start(i, kind.is_long() || next.is_empty(), others > 0 && well > 0));
                under_way.push((i, Instant::now()));
                well = others;
                // Only a well one is worth asking the same.
                let late = self.healths()[i].late(kind).clamp(LATE_LEAST, LATE_MOST);
                late_at = (!kind.is_long() && well > 0).then(|| tokio::time::Instant::now() + late);
            }
            if running.is_empty() {
                return Err(worst.unwrap_or_else(|| Fail::Dead("no provider".into())));
            }
            let late = async {
                match late_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((i, answer)) = running.next() => {
                    let began = under_way.iter().position(|(j, _)| *j == i).map(|at| under_way.remove(at).1);
                    match answer {
                        Some(Ok(value)) => {
                            self.succeeded(i, kind, began.map(|b| b.elapsed()));
                            for (slow, began) in under_way {
                                self.was_late(slow, began.elapsed());
                            }
                            return Ok(value);
                        }
                        None => begin = true,
                        Some(Err(fail)) => {
                            self.blame(i, &fail);
                            begin = match &fail {
                                Fail::TooLarge { .. } | Fail::NoTag => return Err(fail),
                                // Another well one may have heard of it; one that is aside says nothing by not knowing.
                                Fail::Unknown(_) => well > 0,
                                _ => true,
                            };
                            if worst.as_ref().is_none_or(|w| rank(w) < rank(&fail)) {
                                worst = Some(fail);
                            }
                        }
                    }
                }
                () = late => {
                    late_at = None;
                    let mut twice = self.twice.lock().expect("no panic while held");
                    if *twice >= 1.0 {
                        *twice -= 1.0;
                        begin = true;
                    }
                }
            }
        }
    }

    fn succeeded(&self, i: usize, kind: Kind, took: Option<Duration>) {
        let mut healths = self.healths();
        let health = &mut healths[i];
        health.answered();
        if let Some(took) = took {
            health.took(kind, took);
        }
        let ends = health
            .aside()
            .is_some_and(|a| a.cause == Cause::Fails || (self.members.len() == 1 && a.until <= Instant::now()));
        if ends {
            self.take_back(i, health);
        }
    }

    fn take_back(&self, i: usize, health: &mut Health) {
        if health.take_back() {
            tracing::info!(chain = %self.name, provider = %self.members[i].provider.shown, "the provider is well again");
        }
    }

    fn leave(&self, i: usize, health: &mut Health, cause: Cause, why: String) {
        let member = &self.members[i];
        let provider = &member.provider.shown;
        if health.leave(cause, why.clone(), Instant::now()) {
            tracing::warn!(chain = %self.name, %provider, why, "the provider is left aside");
        }
        if cause != Cause::Behind {
            member.given_up.notify_waiters();
        }
    }

    fn was_late(&self, i: usize, took: Duration) {
        let mut healths = self.healths();
        if healths[i].strike() {
            let why = format!("it did not answer in {} ms, when another did", took.as_millis());
            self.leave(i, &mut healths[i], Cause::Fails, why);
        }
    }

    fn blame(&self, i: usize, fail: &Fail) {
        let mut healths = self.healths();
        let health = &mut healths[i];
        match fail {
            Fail::Dead(why) | Fail::Other(why) => {
                if health.strike() {
                    self.leave(i, health, Cause::Fails, why.clone());
                }
            }
            Fail::WrongChain(why) => self.leave(i, health, Cause::False, why.clone()),
            Fail::False(why) => {
                self.members[i].false_answers.fetch_add(1, Ordering::Relaxed);
                let provider = &self.members[i].provider.shown;
                tracing::warn!(chain = %self.name, %provider, why, "a false answer; another is asked");
                self.leave(i, health, Cause::False, format!("a false answer: {why}"));
            }
            // It works as it should.
            Fail::Limited { .. } | Fail::TooLarge { .. } | Fail::Unknown(_) | Fail::NoMethod(_) | Fail::NoTag => {}
        }
    }

    /// A provider told its head, asked or not.
    pub fn heard(&self, i: usize, head: &BlockRef) {
        let now = Instant::now();
        {
            let mut pace = self.pace.lock().expect("no panic while held");
            if head.number > pace.best {
                if pace.best > 0 {
                    let each = now.duration_since(pace.at) / u32::try_from(head.number - pace.best).unwrap_or(u32::MAX);
                    pace.interval = Some(pace.interval.map_or(each, |before| before.mul_f64(0.8) + each.mul_f64(0.2)));
                }
                (pace.best, pace.at) = (head.number, now);
            }
        }
        let mut healths = self.healths();
        healths[i].tell(head, now);
        self.judge(&mut healths, now);
    }

    /// What a provider has at a height below its head.
    pub fn noted(&self, i: usize, number: u64, hash: B256) {
        let now = Instant::now();
        let mut healths = self.healths();
        healths[i].note(number, hash, now);
        self.judge(&mut healths, now);
    }

    /// The look at a provider that is aside, or was not heard of for a while, was in vain.
    pub fn unheard(&self, i: usize, fail: &Fail) {
        let now = Instant::now();
        let until = {
            let mut healths = self.healths();
            healths[i].asked = Some(now);
            healths[i].aside().map(|aside| aside.until)
        };
        match (fail, until) {
            (Fail::Dead(why) | Fail::Other(why) | Fail::Limited { why, .. }, Some(until)) => {
                // Asked before its time, for its voice alone, it has not been looked at once more in vain.
                if until <= now {
                    self.leave(i, &mut self.healths()[i], Cause::Fails, why.clone());
                }
            }
            _ => self.blame(i, fail),
        }
    }

    /// Who is behind, who stands on another fork than the others, and who is well again.
    fn judge(&self, healths: &mut [Health], now: Instant) {
        let mut differing = self.differing.lock().expect("no panic while held");
        let count = healths.len();
        let mut apart = vec![vec![None; count]; count];
        for a in 0..count {
            for b in a + 1..count {
                match differ(&healths[a], &healths[b]) {
                    Some(where_) => {
                        let since = *differing.entry((a, b)).or_insert(now);
                        if now.duration_since(since) >= DIFFER {
                            (apart[a][b], apart[b][a]) = (Some(where_), Some((where_.0, where_.2, where_.1)));
                        }
                    }
                    None => drop(differing.remove(&(a, b))),
                }
            }
        }
        let is_well = |h: &Health| h.aside().is_none();
        // The fork that most stand on; of two, a well one's, and the preferred one's. Whoever is aside for its fork has a voice
        // as well: else a liar that was believed once, while another was away, would outvote all others one by one.
        let against = |i: usize| (0..count).filter(|j| healths[*j].has_voice() && apart[i][*j].is_some()).count();
        let voices = (0..count).filter(|i| healths[*i].has_voice());
        let reference = voices.min_by_key(|i| (against(*i), !is_well(&healths[*i]), *i));
        for i in 0..count {
            let fork = reference.and_then(|r| apart[i][r].map(|where_| (r, where_)));
            let others = (0..count).filter(|j| *j != i && is_well(&healths[*j])).filter(|j| {
                // One that has our head, too, and more.
                healths[i].head().is_some_and(|(number, hash)| healths[*j].told(number) == Some(hash))
            });
            let behind = behind(&healths[i], others.map(|j| &healths[j]));
            let verdict = match (fork, behind) {
                (Some((r, (number, ours, theirs))), _) => {
                    let other = &self.members[r].provider.shown;
                    Some((
                        Cause::OtherFork,
                        format!("another fork: block {number} is {ours}, at {other} it is {theirs}"),
                    ))
                }
                (None, Some(n)) => Some((Cause::Behind, format!("it is {n} blocks behind"))),
                (None, None) => None,
            };
            let aside = healths[i].aside().cloned();
            match (verdict, aside) {
                (Some((cause, why)), None) => self.leave(i, &mut healths[i], cause, why),
                (Some((cause, why)), Some(aside)) if aside.until <= now => self.leave(i, &mut healths[i], cause, why),
                (None, Some(aside))
                    if aside.until <= now && healths[i].asked.is_some_and(|asked| asked >= aside.until) =>
                {
                    self.take_back(i, &mut healths[i]);
                }
                _ => {}
            }
        }
    }

    /// When this one is to be asked for its head, where nobody does so anyway.
    pub fn look_at(&self, i: usize, poll: Duration) -> Option<Instant> {
        if self.members.len() == 1 {
            return None;
        }
        let now = Instant::now();
        let healths = self.healths();
        let health = &healths[i];
        if let Some(aside) = health.aside() {
            return Some(aside.until);
        }
        let asked = health.asked.unwrap_or(now - LOOK_MOST);
        let pace = self.pace.lock().expect("no panic while held");
        let interval = match pace.interval {
            // No head for longer than usual: perhaps the others have one.
            Some(usual) if now.duration_since(pace.at) > usual.mul_f64(1.5) => poll.min(LOOK_MOST).max(LOOK_LEAST),
            Some(usual) => usual.clamp(poll.min(LOOK_MOST), LOOK_MOST),
            None => poll.min(LOOK_MOST),
        };
        let own = health.head().map_or(0, |(number, _)| number);
        let others = healths.iter().enumerate().filter(|(j, h)| *j != i && h.aside().is_none());
        let suspect = others.filter_map(|(_, h)| h.first_above(own)).map(|at| at + BEHIND).min();
        let suspect = suspect.filter(|at| asked < *at);
        Some(suspect.map_or(asked + interval, |at| at.min(asked + interval)))
    }

    /// A height of a well provider of which this one, which is higher, has not said what it has there.
    pub fn to_compare(&self, i: usize) -> Option<u64> {
        let healths = self.healths();
        let (own, _) = healths[i].head()?;
        let mut others = healths.iter().enumerate().filter(|(j, h)| *j != i && h.aside().is_none());
        others.find_map(|(_, h)| h.head().map(|(n, _)| n).filter(|n| *n < own && healths[i].told(*n).is_none()))
    }

    /// Who said that this is the block at this height, of those that are well.
    pub fn agreeing(&self, number: u64, hash: B256) -> Vec<usize> {
        let healths = self.healths();
        (0..healths.len()).filter(|i| healths[*i].aside().is_none() && healths[*i].told(number) == Some(hash)).collect()
    }

    pub fn head_of(&self, i: usize) -> Option<(u64, B256)> {
        self.healths()[i].head()
    }

    pub fn status(&self) -> Vec<ProviderStatus> {
        let healths = self.healths();
        let mut seen: HashMap<&str, usize> = HashMap::new();
        let mut all = vec![];
        for (member, health) in self.members.iter().zip(healths.iter()) {
            let provider = &member.provider;
            // Two keys at one host are two providers.
            let times = seen.entry(&provider.shown).or_default();
            *times += 1;
            let pause = provider.gate.pause();
            let (state, why) = match (health.aside(), pause) {
                (Some(aside), _) => ("aside", Some(aside.why.clone())),
                (None, Some(rest)) => ("limited", Some(format!("asked again in {} ms", rest.as_millis()))),
                (None, None) => ("well", None),
            };
            all.push(ProviderStatus {
                name: if *times == 1 { provider.shown.clone() } else { format!("{} #{times}", provider.shown) },
                state: state.into(),
                why,
                head: health.head().map(|(number, _)| number),
                latency_ms: health.latency().map(|l| l.as_secs_f64() * 1000.0),
                requests: provider.requests.load(Ordering::Relaxed),
                errors: provider.errors.load(Ordering::Relaxed),
                false_answers: member.false_answers.load(Ordering::Relaxed),
            });
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ChainId;
    use crate::source::transport::Setting;

    fn block(number: u64, branch: u8) -> BlockRef {
        let hash = |number: u64, branch: u8| B256::right_padding_from(&[branch, number as u8]);
        BlockRef { chain: ChainId(1), number, hash: hash(number, branch), parent: hash(number - 1, 0), time: number }
    }

    fn pool(count: usize) -> Pool {
        let provider = |n: usize| {
            let setting = Setting { url: format!("http://127.0.0.1:{n}"), ..Setting::default() };
            Arc::new(Provider::new(n, setting, Duration::from_secs(1), None).expect("a URL"))
        };
        Pool::new("test".into(), (0..count).map(provider).collect())
    }

    #[test]
    fn one_that_is_aside_and_asked_for_its_voice_all_the_while_is_looked_at_no_later() {
        let pool = pool(2);
        let until = |i: usize| pool.healths()[i].aside().map(|aside| aside.until);
        let no_answer = Fail::Dead("no answer".into());
        pool.healths()[0].leave(Cause::Fails, "no answer".into(), Instant::now() + Duration::from_secs(60));
        let before = until(0);
        (0..50).for_each(|_| pool.unheard(0, &no_answer));
        assert_eq!(until(0), before);
        // Its time has come, and the look is in vain.
        pool.healths()[1].leave(Cause::Fails, "no answer".into(), Instant::now() - Duration::from_secs(60));
        let before = until(1);
        pool.unheard(1, &no_answer);
        assert!(until(1) > before);
    }

    #[test]
    fn a_liar_that_was_believed_while_another_was_away_is_outvoted_when_it_is_back() {
        let pool = pool(3);
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let state = |healths: &[Health]| healths.iter().map(|h| h.aside().is_none()).collect::<Vec<_>>();
        let mut healths = pool.healths();
        // The preferred one is on a fork of its own, and the second does not answer.
        healths[1].leave(Cause::Fails, "no answer".into(), at(0));
        healths[0].tell(&block(10, 1), at(0));
        healths[2].tell(&block(10, 0), at(0));
        pool.judge(&mut healths, at(0));
        pool.judge(&mut healths, at(3));
        assert_eq!(state(&healths), [true, false, false], "of two, the preferred one is believed");
        // The second is back, and stands where the third does.
        for second in 20..60 {
            let fork = |i: usize| u8::from(i == 0);
            (0..3).for_each(|i| healths[i].tell(&block(10, fork(i)), at(second)));
            pool.judge(&mut healths, at(second));
        }
        assert_eq!(state(&healths), [false, true, true]);
        // And when all are on one fork again, all are well.
        for second in 60..120 {
            (0..3).for_each(|i| healths[i].tell(&block(11, 0), at(second)));
            pool.judge(&mut healths, at(second));
        }
        assert_eq!(state(&healths), [true, true, true]);
    }
}
