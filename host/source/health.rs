//! What is known of one provider's condition, and what may be concluded from what several of them tell.
//! `answers, notifications -> [health] -> pool`.
//!
//! ```text
//!             fails, hangs, lags, other fork, false answer
//!     well  ------------------------------------------------>  aside (why, not before)
//!           <------------------------------------------------
//!             a look finds it answering, at the head, on the others' fork
//! ```
//!
//! Pure but for the clock that is passed in: no connection, no JSON-RPC.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use alloy_primitives::B256;

use crate::model::BlockRef;

/// Heads that are remembered of each provider: what two of them say is compared at a height that both have told.
const TOLD: usize = 256;
/// Answer times that are remembered of each kind of question.
const TIMES: usize = 64;
/// With fewer answer times than this nothing is usual yet.
const USUAL_FROM: usize = 8;
const USUAL_UNKNOWN: Duration = Duration::from_millis(400);

/// Later than another by more than this is behind. Providers of one chain hear of a block within some 300 ms.
pub(super) const BEHIND: Duration = Duration::from_millis(1000);
/// Two providers that differ for longer than this are on two forks: a reorg passes sooner.
pub(super) const DIFFER: Duration = Duration::from_millis(2000);
/// Failures or hangs in a row before a provider is left aside.
const STRIKES: u32 = 2;
const LOOK_FIRST: Duration = Duration::from_millis(200);
const LOOK_MOST: Duration = Duration::from_secs(15);
/// After a false answer: 5 s, twice as long each time, 5 minutes at most.
const FALSE_FIRST: Duration = Duration::from_secs(5);
const FALSE_MOST: Duration = Duration::from_secs(300);

/// A kind of question, by how long its answers take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The newest block.
    Head,
    /// One header.
    Header,
    /// One block with all that is wanted of it.
    Block,
    /// What a block's execution did: it may take long.
    Trace,
    /// Many blocks.
    Range,
}

impl Kind {
    /// No usual time, never asked of two.
    pub fn is_long(self) -> bool {
        matches!(self, Self::Trace | Self::Range)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// It fails or hangs: any answer ends this.
    Fails,
    Behind,
    OtherFork,
    False,
}

#[derive(Clone, Debug)]
pub(super) struct Aside {
    pub cause: Cause,
    pub why: String,
    /// Not looked at before.
    pub until: Instant,
}

#[derive(Debug, Default)]
struct Times {
    last: VecDeque<Duration>,
}

impl Times {
    fn add(&mut self, took: Duration) {
        if self.last.len() == TIMES {
            self.last.pop_front();
        }
        self.last.push_back(took);
    }

    /// 95 of 100 answers came within this.
    fn usual(&self) -> Option<Duration> {
        if self.last.len() < USUAL_FROM {
            return None;
        }
        let mut sorted: Vec<Duration> = self.last.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() * 95 / 100).copied()
    }

    fn mean(&self) -> Option<Duration> {
        let sum: Duration = self.last.iter().sum();
        u32::try_from(self.last.len()).ok().filter(|n| *n > 0).map(|n| sum / n)
    }
}

#[derive(Debug, Default)]
pub(super) struct Health {
    aside: Option<Aside>,
    strikes: u32,
    /// Looks in vain since it was left aside.
    looks: u32,
    falses: u32,
    told: BTreeMap<u64, (B256, Instant)>,
    /// When it last told its head, or failed to.
    pub asked: Option<Instant>,
    times: [Times; 4],
}

impl Health {
    pub fn aside(&self) -> Option<&Aside> {
        self.aside.as_ref()
    }

    /// It answers, and what it says of the chain counts in a vote on it.
    pub fn has_voice(&self) -> bool {
        self.aside.as_ref().is_none_or(|aside| matches!(aside.cause, Cause::OtherFork | Cause::Behind))
    }

    pub fn head(&self) -> Option<(u64, B256)> {
        self.told.last_key_value().map(|(number, (hash, _))| (*number, *hash))
    }

    pub fn told(&self, number: u64) -> Option<B256> {
        self.told.get(&number).map(|(hash, _)| *hash)
    }

    /// Its head now. Higher blocks that it told before are no longer its chain, nor are lower ones that do not link.
    pub fn tell(&mut self, head: &BlockRef, now: Instant) {
        self.asked = Some(now);
        self.told.split_off(&(head.number + 1));
        let parent = head.number.checked_sub(1).and_then(|n| self.told.get(&n)).map(|(hash, _)| *hash);
        if parent.is_some_and(|parent| parent != head.parent)
            || self.told(head.number).is_some_and(|old| old != head.hash)
        {
            self.told.clear();
        }
        self.told.entry(head.number).or_insert((head.hash, now));
        if let Some(parent) = head.number.checked_sub(1) {
            self.told.entry(parent).or_insert((head.parent, now));
        }
        while self.told.len() > TOLD {
            self.told.pop_first();
        }
    }

    /// What it has at a height below its head.
    pub fn note(&mut self, number: u64, hash: B256, now: Instant) {
        self.told.entry(number).or_insert((hash, now));
    }

    /// When another than this one's head was told first, of those above it: it should have it by now, or soon.
    pub fn first_above(&self, number: u64) -> Option<Instant> {
        self.told.range(number + 1..).map(|(_, (_, at))| *at).min()
    }

    pub fn took(&mut self, kind: Kind, took: Duration) {
        if !kind.is_long() {
            self.times[kind as usize].add(took);
        }
    }

    /// When an answer is late: its own usual time and some more.
    pub fn late(&self, kind: Kind) -> Duration {
        let usual = if kind.is_long() { None } else { self.times[kind as usize].usual() };
        usual.unwrap_or(USUAL_UNKNOWN).mul_f64(1.25)
    }

    pub fn latency(&self) -> Option<Duration> {
        self.times.iter().filter_map(Times::mean).min()
    }

    /// It answered as it should.
    pub fn answered(&mut self) {
        self.strikes = 0;
    }

    /// A failure, or a question that another answered first. True: it is to be left aside.
    pub fn strike(&mut self) -> bool {
        self.strikes += 1;
        self.strikes >= STRIKES
    }

    /// Leaves it aside. True where it was not so before.
    pub fn leave(&mut self, cause: Cause, why: String, now: Instant) -> bool {
        let wait = if cause == Cause::False {
            self.falses = self.falses.saturating_add(1);
            FALSE_FIRST.saturating_mul(1 << (self.falses - 1).min(10)).min(FALSE_MOST)
        } else {
            self.looks = self.looks.saturating_add(1);
            LOOK_FIRST.saturating_mul(1 << (self.looks - 1).min(10)).min(LOOK_MOST)
        };
        let before = self.aside.take();
        let new = before.is_none();
        self.aside = Some(match before {
            // Whoever lied and then fails is kept for the lie.
            Some(before) if before.cause == Cause::False && cause != Cause::False => before,
            before => {
                let until = before.map_or(now + wait, |before| before.until.max(now + wait));
                Aside { cause, why, until }
            }
        });
        new
    }

    /// It is well again. True where it was not.
    pub fn take_back(&mut self) -> bool {
        (self.strikes, self.looks) = (0, 0);
        self.aside.take().is_some()
    }
}

/// How far this one is behind what another told a while ago: blocks. It must have been asked since.
pub(super) fn behind<'h>(this: &Health, others: impl Iterator<Item = &'h Health>) -> Option<u64> {
    let (head, _) = this.head()?;
    let asked = this.asked?;
    let best = others
        .filter_map(|other| {
            let told_long_ago = |(_, (_, at)): &(&u64, &(B256, Instant))| asked.duration_since(*at) >= BEHIND;
            other.told.iter().rev().find(told_long_ago).map(|(number, _)| *number)
        })
        .max()?;
    best.checked_sub(head).filter(|n| *n > 0)
}

/// The highest height that both told, and what each says there, where they differ.
pub(super) fn differ(a: &Health, b: &Health) -> Option<(u64, B256, B256)> {
    let common = a.told.iter().rev().find_map(|(number, (ours, _))| Some((*number, *ours, b.told(*number)?)))?;
    (common.1 != common.2).then_some(common)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ChainId;

    fn block(number: u64, branch: u8, parent_branch: u8) -> BlockRef {
        let hash = |number: u64, branch: u8| B256::right_padding_from(&[branch, number as u8]);
        BlockRef {
            chain: ChainId(1),
            number,
            hash: hash(number, branch),
            parent: hash(number.saturating_sub(1), parent_branch),
            time: number,
        }
    }

    #[test]
    fn two_that_tell_of_one_chain_at_different_times_do_not_differ() {
        let now = Instant::now();
        let (mut a, mut b) = (Health::default(), Health::default());
        a.tell(&block(10, 0, 0), now);
        b.tell(&block(8, 0, 0), now);
        assert_eq!(differ(&a, &b), None, "no height in common");
        b.tell(&block(9, 0, 0), now);
        assert_eq!(differ(&a, &b), None);
        // A reorg of two blocks: what was told before of the other branch is forgotten with it.
        a.tell(&block(11, 0, 0), now);
        b.tell(&block(10, 0, 0), now);
        b.tell(&block(11, 0, 0), now);
        b.tell(&block(11, 1, 1), now);
        assert_eq!(differ(&a, &b).map(|d| d.0), Some(11));
        a.tell(&block(12, 1, 1), now);
        assert_eq!(differ(&a, &b), None);
    }

    #[test]
    fn behind_is_who_has_not_what_another_told_a_while_ago() {
        let began = Instant::now();
        let later = began + BEHIND;
        let (mut a, mut b) = (Health::default(), Health::default());
        a.tell(&block(10, 0, 0), began);
        b.tell(&block(9, 0, 0), began);
        assert_eq!(behind(&b, std::iter::once(&a)), None, "it may come yet");
        b.tell(&block(9, 0, 0), later);
        assert_eq!(behind(&b, std::iter::once(&a)), Some(1));
        assert_eq!(behind(&a, std::iter::once(&b)), None);
        b.tell(&block(10, 0, 0), later);
        assert_eq!(behind(&b, std::iter::once(&a)), None);
    }

    #[test]
    fn false_answers_keep_it_aside_for_longer_each_time() {
        let now = Instant::now();
        let mut health = Health::default();
        assert!(health.leave(Cause::False, "a".into(), now));
        assert!(!health.leave(Cause::Fails, "b".into(), now + FALSE_FIRST));
        assert_eq!(health.aside().unwrap().until, now + FALSE_FIRST);
        assert!(health.take_back());
        assert!(health.leave(Cause::False, "c".into(), now));
        assert_eq!(health.aside().unwrap().until, now + FALSE_FIRST * 2);
    }
}
