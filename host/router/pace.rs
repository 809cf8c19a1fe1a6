//! How fast a consumer comes nearer to the present, over the last seconds: for whoever waits for it. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::model::CatchingUp;

/// The rate is that of so long: a pause shows soon, a single slow range does not.
const WINDOW: Duration = Duration::from_secs(10);
/// Before this there is none.
const SHORTEST: Duration = Duration::from_secs(1);
/// Steps within this are one.
const GRAIN: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// Where it began to catch up.
    from: Option<u64>,
    /// When it stood where: the first of them a window ago, or longer.
    stood: VecDeque<(Instant, u64)>,
}

impl Pace {
    /// Before a range step that begins at this block.
    pub fn begins(&mut self, now: Instant, at: u64) {
        if self.from.is_none() {
            self.from = Some(at);
            self.stood.push_back((now, at));
        }
    }

    /// It stands at this block now.
    pub fn stands(&mut self, now: Instant, at: u64) {
        if self.from.is_none() {
            return;
        }
        // The newest one is replaced while it is near to the one before it.
        let near = self.stood.len() > 1 && self.stood.iter().nth_back(1).is_some_and(|(then, _)| now - *then < GRAIN);
        if near {
            self.stood.pop_back();
        }
        self.stood.push_back((now, at));
        while self.stood.get(1).is_some_and(|(then, _)| now - *then >= WINDOW) {
            self.stood.pop_front();
        }
    }

    /// It has caught up, or goes back.
    pub fn ends(&mut self) {
        *self = Self::default();
    }

    /// On the way to a block. The rate falls while nothing comes.
    pub fn toward(&self, to: u64, now: Instant) -> Option<CatchingUp> {
        let (from, (since, first)) = (self.from?, *self.stood.front()?);
        let at = self.stood.back().map_or(first, |(_, at)| *at);
        let took = now.saturating_duration_since(since);
        let rate = (took >= SHORTEST).then(|| at.saturating_sub(first) as f64 / took.as_secs_f64());
        let left = to.saturating_sub(at);
        let percent = match to.saturating_sub(from) {
            0 => 100.0,
            all => 100.0 * at.saturating_sub(from) as f64 / all as f64,
        };
        Some(CatchingUp {
            from,
            to,
            // One place is what a person reads.
            percent: (10.0 * percent).floor() / 10.0,
            blocks_per_second: rate.map(|rate| (10.0 * rate).round() / 10.0),
            seconds_left: rate.filter(|rate| *rate > 0.0).map(|rate| (left as f64 / rate).ceil() as u64),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_seconds_and_falls_while_nothing_comes() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut pace = Pace::default();
        assert_eq!(pace.toward(1_000, at(0)), None);
        pace.begins(at(0), 100);
        let told = pace.toward(1_100, at(0)).unwrap();
        assert_eq!((told.percent, told.blocks_per_second, told.seconds_left), (0.0, None, None));
        // Ten blocks a second for twenty seconds, then a hundred.
        (1..=20).for_each(|n| pace.stands(at(n), 100 + 10 * n));
        let told = pace.toward(1_100, at(20)).unwrap();
        assert_eq!((told.from, told.to, told.percent), (100, 1_100, 20.0));
        assert_eq!((told.blocks_per_second, told.seconds_left), (Some(10.0), Some(80)));
        (21..=26).for_each(|n| pace.stands(at(n), 300 + 100 * (n - 20)));
        let told = pace.toward(1_100, at(26)).unwrap();
        assert_eq!((told.percent, told.blocks_per_second), (80.0, Some(64.0)));
        // Nothing comes any more.
        assert_eq!(pace.toward(1_100, at(46)).unwrap().blocks_per_second, Some(21.3));
        pace.ends();
        assert_eq!(pace.toward(1_100, at(47)), None);
        pace.stands(at(48), 1_100);
        assert_eq!(pace.toward(1_101, at(48)), None, "a live step is no catching up");
    }

    #[test]
    fn a_thousand_steps_a_second_take_no_more_room_than_one() {
        let begin = Instant::now();
        let mut pace = Pace::default();
        pace.begins(begin, 0);
        (1..=10_000).for_each(|n| pace.stands(begin + Duration::from_millis(n), 16 * n));
        assert!(pace.stood.len() <= 103, "{}", pace.stood.len());
        let told = pace.toward(1 << 20, begin + Duration::from_millis(10_000)).unwrap();
        assert!(told.blocks_per_second.is_some_and(|rate| (15_000.0..17_000.0).contains(&rate)), "{told:?}");
    }
}
