//! When to try again. Pure: the caller brings the time and the randomness.

use std::time::Duration;

/// Gaps after the first, second, ... failure of one delivery: 10 attempts in 74.6 hours.
const GAPS_S: [u64; 9] = [1, 10, 60, 300, 1_800, 7_200, 28_800, 86_400, 144_000];
/// A destination's own wish is honoured up to a day.
const LONGEST_WISH: Duration = Duration::from_secs(86_400);
/// Gaps between probes of a destination that is down: from 0.5 s to half a minute.
const PROBE_MS: [u64; 7] = [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000];

/// The gap after `attempts` failures (1 or more). `jitter` is in 0..1 and spreads it by a quarter each way, so
/// that what failed together does not come back together. A wish of the destination is never undercut.
pub fn after_failures(attempts: u32, wish: Option<Duration>, jitter: f64) -> Duration {
    let index = (attempts.max(1) as usize - 1).min(GAPS_S.len() - 1);
    let gap = spread(Duration::from_secs(GAPS_S[index]), jitter);
    gap.max(wish.unwrap_or_default().min(LONGEST_WISH))
}

/// The gap before a destination that is down is probed again, after `failures` in a row.
pub fn probe_after(failures: u32, wish: Option<Duration>, jitter: f64) -> Duration {
    let index = (failures.max(1) as usize - 1).min(PROBE_MS.len() - 1);
    let gap = spread(Duration::from_millis(PROBE_MS[index]), jitter);
    gap.max(wish.unwrap_or_default().min(LONGEST_WISH))
}

fn spread(gap: Duration, jitter: f64) -> Duration {
    gap.mul_f64(0.75 + 0.5 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_attempts_take_three_days() {
        let total: Duration = (1..10).map(|n| after_failures(n, None, 0.5)).sum();
        assert!(total > Duration::from_secs(70 * 3600) && total < Duration::from_secs(80 * 3600), "{total:?}");
    }

    #[test]
    fn a_wish_is_kept_but_not_for_ever() {
        assert_eq!(after_failures(1, Some(Duration::from_secs(100)), 0.5), Duration::from_secs(100));
        assert_eq!(after_failures(1, Some(Duration::from_secs(1 << 40)), 0.5), LONGEST_WISH);
        assert!(probe_after(100, None, 1.0) <= Duration::from_secs(38));
    }
}
