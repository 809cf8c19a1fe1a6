//! When to try again. Pure: the caller brings the time and the randomness.

use std::time::Duration;

use crate::model::DeliveryId;

/// Gaps after the first, second, ... failure of one delivery: 10 attempts in 74.6 hours.
const GAPS_S: [u64; 9] = [1, 10, 60, 300, 1_800, 7_200, 28_800, 86_400, 144_000];
/// A destination's own wish is honoured up to a day.
const LONGEST_WISH: Duration = Duration::from_secs(86_400);
/// Gaps between probes of a destination that is down: from 0.5 s to half a minute.
const PROBE_MS: [u64; 7] = [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000];

/// The gap after `attempts` failures (1 or more) of one delivery. The schedule gives each further attempt a slot, as long as its gap, one
/// after the other; the attempt falls anywhere in it (full jitter), so that what failed together does not come back together, and the last is
/// never later than the schedule's end. `id` says where: the same at every call. A wish of the destination is never undercut.
pub fn after_failures(attempts: u32, wish: Option<Duration>, id: DeliveryId) -> Duration {
    let index = (attempts.max(1) as usize - 1).min(GAPS_S.len() - 1);
    let slot = |index: usize| Duration::from_secs(GAPS_S[index]);
    // What is left of the slot before, and the part of this one.
    let left = index.checked_sub(1).map(|before| slot(before).mul_f64(1.0 - place(id, before))).unwrap_or_default();
    (left + slot(index).mul_f64(place(id, index))).max(wish.unwrap_or_default().min(LONGEST_WISH))
}

/// A number of 0..1 that is another for each delivery and slot. Ids are digests: what is evenly spread in them stays so.
fn place(id: DeliveryId, slot: usize) -> f64 {
    let at = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|n| id.0[(n + slot) % id.0.len()]));
    (at >> 11) as f64 / (1u64 << 53) as f64
}

/// The gap before a destination that is down is probed again, after `failures` in a row.
pub fn probe_after(failures: u32, wish: Option<Duration>, jitter: f64) -> Duration {
    let index = (failures.max(1) as usize - 1).min(PROBE_MS.len() - 1);
    let gap = spread(Duration::from_millis(PROBE_MS[index]), jitter);
    gap.max(wish.unwrap_or_default().min(LONGEST_WISH))
}

/// By a quarter each way: a probe is one for all that wait.
fn spread(gap: Duration, jitter: f64) -> Duration {
    gap.mul_f64(0.75 + 0.5 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_attempts_take_up_to_75_hours_each_anywhere_in_its_slot() {
        let ends: Vec<u64> = GAPS_S
            .iter()
            .scan(0, |end, gap| {
                Some({
                    *end += gap;
                    *end
                })
            })
            .collect();
        assert_eq!(ends.last(), Some(&268_571), "74.6 hours");
        let (mut early, mut late) = ([0; GAPS_S.len()], [0; GAPS_S.len()]);
        for n in 0..400u32 {
            let id = DeliveryId(*alloy_primitives::keccak256(n.to_le_bytes()).first_chunk().unwrap());
            let mut at = Duration::ZERO;
            for (index, (end, gap)) in ends.iter().zip(GAPS_S).enumerate() {
                at += after_failures(index as u32 + 1, None, id);
                let (begin, middle) = (end - gap, Duration::from_secs_f64(*end as f64 - gap as f64 / 2.0));
                let rounded = Duration::from_micros(1);
                assert!(
                    at + rounded >= Duration::from_secs(begin) && at <= Duration::from_secs(*end) + rounded,
                    "{at:?}"
                );
                if at < middle { early[index] += 1 } else { late[index] += 1 }
            }
        }
        assert!(early.iter().chain(&late).all(|count| (140..260).contains(count)), "{early:?} {late:?}");
    }

    #[test]
    fn a_wish_is_kept_but_not_for_ever() {
        let id = DeliveryId([7; 16]);
        assert_eq!(after_failures(1, Some(Duration::from_secs(100)), id), Duration::from_secs(100));
        assert_eq!(after_failures(1, Some(Duration::from_secs(1 << 40)), id), LONGEST_WISH);
        assert!(probe_after(100, None, 1.0) <= Duration::from_secs(38));
    }
}
