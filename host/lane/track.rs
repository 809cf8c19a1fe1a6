//! One track on its way to one output: a window of entries in offset order, and the keys that wait alone.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use super::Routed;
use super::due::{Due, due};
use crate::journal::{Entry, Marks, Parked};
use crate::model::{Delivery, DeliveryId, Emission, OutputName, StreamId};

/// Deliveries held in memory per track, or two of its sink's batches, and their payloads' bytes: 1,024 and 8 MiB.
const WINDOW: usize = 1024;
const WINDOW_BYTES: usize = 8 << 20;
/// How far the others may run ahead of a slow one: what a crash may repeat.
const SLOTS: usize = 8 * WINDOW;
/// Entries in one read of the journal.
const CHUNK: usize = 256;

/// What a sink takes at once.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub batch: usize,
    /// Of payloads, where the lane waits for a batch to fill up.
    pub bytes: Option<usize>,
}

impl Room {
    fn bytes_in_hand(&self) -> usize {
        WINDOW_BYTES.max(2 * self.bytes.unwrap_or(0))
    }
}
/// Offsets remembered per parked key, and of all parked keys of a track (2 MiB); beyond, they are read again.
pub const KNOWN: usize = 1024;
const KNOWN_OF_TRACK: usize = 1 << 18;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Queued,
    InFlight,
    Settled,
}

#[derive(Debug)]
pub struct Slot {
    pub offset: u64,
    pub state: State,
    /// `None` where there is nothing to deliver: cancelled, settled, or left to a parked key.
    pub delivery: Option<Delivery>,
}

#[derive(Debug)]
pub struct TrackLane {
    pub routed: Routed,
    /// All up to here is settled or parked.
    pub position: u64,
    /// The position that was last written down.
    pub noted: u64,
    /// All up to here has been taken into the window.
    pub read: u64,
    /// There may be entries after `read`.
    pub more: bool,
    /// The consumer's moves that have been looked at.
    pub moves: u64,
    pub window: VecDeque<Slot>,
    live: usize,
    live_bytes: usize,
    pub parked: HashMap<String, ParkedKey>,
    /// Parked keys that wait for a time, by that time; without those under way.
    schedule: BTreeSet<(u64, String)>,
    known: usize,
    /// Lane keys with a delivery under way; of a sink that takes batches, the empty one.
    pub busy: HashSet<String>,
    /// Offsets of dead letters that were put back.
    pub redo: VecDeque<u64>,
    /// Those of them that are under way, or whose end is not written down yet.
    pub redo_taken: HashSet<u64>,
    /// Of a sink that takes batches: failures in a row, when to try again, and why it waits for a person.
    pub failures: u32,
    pub wait_until: Option<Instant>,
    pub stopped: bool,
    /// Dead letters that are not written down yet. A destination with a position of its own must not pass them before.
    pub letters: usize,
    /// Since when a batch that is not full has waited.
    pub filling: Option<Instant>,
    /// No longer routed: it ends when what is under way has ended.
    pub gone: bool,
}

#[derive(Debug)]
pub struct ParkedKey {
    pub at: Parked,
    /// Whether `next` moved since it was written down.
    pub moved: bool,
    pub left: Left,
}

/// What the window left to a parked key: entries after its `next`.
#[derive(Debug, Default)]
pub struct Left {
    /// The first of them.
    pub known: VecDeque<u64>,
    /// There are more than these.
    pub beyond: bool,
    /// How many there are, those beyond included.
    pub count: u64,
}

impl TrackLane {
    /// With every parked key comes what was left to it up to `position`.
    pub fn new(routed: Routed, position: u64, parked: Vec<(Parked, Left)>, redo: Vec<u64>) -> Self {
        let mut track = Self {
            routed,
            position,
            noted: position,
            read: position,
            more: true,
            moves: 0,
            window: VecDeque::new(),
            live: 0,
            live_bytes: 0,
            parked: HashMap::new(),
            schedule: BTreeSet::new(),
            known: 0,
            busy: HashSet::new(),
            redo: redo.into(),
            redo_taken: HashSet::new(),
            failures: 0,
            wait_until: None,
            stopped: false,
            letters: 0,
            filling: None,
            gone: false,
        };
        for (at, left) in parked {
            track.known += left.known.len();
            track.parked.insert(at.lane_key.clone(), ParkedKey { at: at.clone(), moved: false, left });
            track.reschedule(&at.lane_key, at.retry_at_ms);
        }
        track
    }

    /// How many entries to read now; 0 where there is enough to do.
    pub fn wants(&self, room: Room) -> usize {
        let enough = !self.more
            || self.gone
            // While a whole batch is under way, the next one is read.
            || self.live + CHUNK > WINDOW.max(2 * room.batch)
            || self.live_bytes > room.bytes_in_hand() / 2
            || self.window.len() >= SLOTS.max(4 * room.batch);
        if enough { 0 } else { CHUNK }
    }

    /// Takes in entries that were read after `self.read`; `asked` is how many would have been taken.
    pub fn take_in(&mut self, output: &OutputName, marks: &Marks, entries: Vec<Entry>, asked: usize, room: Room) {
        self.more = entries.len() == asked;
        for entry in entries {
            let offset = entry.offset;
            let delivery = match due(&entry, self.routed.when, marks) {
                // What is behind it waits too; it is read again when the marks have moved.
                Due::Later => {
                    self.more = false;
                    return;
                }
                Due::Never => None,
                Due::Now if self.leave(&entry.lane_key, offset) => None,
                Due::Now if self.live_bytes > room.bytes_in_hand() => {
                    self.more = true;
                    return;
                }
                Due::Now => Some(delivery_of(output, &self.routed.track.stream, entry)),
            };
            let state = if delivery.is_some() { State::Queued } else { State::Settled };
            if let Some(delivery) = &delivery {
                self.live += 1;
                self.live_bytes += delivery.emission.payload.len();
            }
            self.window.push_back(Slot { offset, state, delivery });
            self.read = offset;
        }
    }

    /// Leaves an offset to its key where that is parked.
    fn leave(&mut self, lane_key: &str, offset: u64) -> bool {
        let Some(key) = self.parked.get_mut(lane_key) else { return false };
        if offset > key.at.next {
            key.left.count += 1;
            if !key.left.beyond && key.left.known.len() < KNOWN && self.known < KNOWN_OF_TRACK {
                key.left.known.push_back(offset);
                self.known += 1;
            } else {
                key.left.beyond = true;
            }
        }
        true
    }

    /// Deliveries that are due and not settled, as far as the track has been read: those in hand and their bytes, and
    /// the others.
    pub fn waiting(&self) -> (u64, u64, u64) {
        let parked: u64 = self.parked.values().map(|key| 1 + key.left.count).sum();
        (self.live as u64, self.live_bytes as u64, (self.redo.len() + self.redo_taken.len()) as u64 + parked)
    }

    /// The offset of the first of them that was not put back by a person.
    pub fn oldest(&self) -> Option<u64> {
        let live = self.window.iter().find(|slot| slot.delivery.is_some()).map(|slot| slot.offset);
        self.parked.values().map(|key| key.at.next).chain(live).min()
    }

    /// One that was put back could not be delivered now.
    pub fn redo_later(&mut self, offset: u64) {
        self.redo_taken.remove(&offset);
        self.redo.push_front(offset);
    }

    pub fn slot(&mut self, offset: u64) -> Option<&mut Slot> {
        let at = self.window.binary_search_by_key(&offset, |s| s.offset).ok()?;
        self.window.get_mut(at)
    }

    pub fn settle(&mut self, offset: u64) {
        if let Ok(at) = self.window.binary_search_by_key(&offset, |s| s.offset) {
            self.settle_at(at);
        }
    }

    fn settle_at(&mut self, at: usize) {
        let slot = &mut self.window[at];
        slot.state = State::Settled;
        if let Some(delivery) = slot.delivery.take() {
            self.live -= 1;
            self.live_bytes -= delivery.emission.payload.len();
        }
    }

    /// How many of the window make the next batch, and whether they fill it.
    pub fn next_batch(&self, room: Room) -> (usize, bool) {
        let (mut count, mut bytes) = (0, 0);
        for slot in self.window.iter().filter(|s| s.state == State::Queued) {
            count += 1;
            bytes += slot.delivery.as_ref().map_or(0, |delivery| delivery.emission.payload.len());
            if count == room.batch || room.bytes.is_some_and(|full| bytes >= full) {
                return (count, true);
            }
        }
        (count, false)
    }

    pub fn queued(&self) -> bool {
        self.window.iter().any(|s| {
            s.state == State::Queued && s.delivery.as_ref().is_some_and(|d| !self.busy.contains(&d.emission.lane_key))
        })
    }

    /// Parks a key at the delivery that failed; everything of it in the window is left to the parked reader.
    pub fn park(&mut self, at: Parked) {
        let (lane_key, retry_at_ms, next) = (at.lane_key.clone(), at.retry_at_ms, at.next);
        match self.parked.get_mut(&lane_key) {
            Some(key) => {
                // The time it is scheduled by now, until it is rescheduled below.
                key.at = Parked { retry_at_ms: key.at.retry_at_ms, ..at };
                key.moved = false;
            }
            None => {
                let key = ParkedKey { at, moved: false, left: Left::default() };
                self.parked.insert(lane_key.clone(), key);
                for at in 0..self.window.len() {
                    let slot = &self.window[at];
                    if slot.delivery.as_ref().is_some_and(|d| d.emission.lane_key == lane_key) {
                        let offset = slot.offset;
                        self.settle_at(at);
                        if offset > next {
                            self.leave(&lane_key, offset);
                        }
                    }
                }
            }
        }
        self.reschedule(&lane_key, retry_at_ms);
    }

    /// Sets when a parked key is tried again; `None` waits for a person.
    pub fn reschedule(&mut self, lane_key: &str, retry_at_ms: Option<u64>) {
        let Some(key) = self.parked.get_mut(lane_key) else { return };
        if let Some(before) = key.at.retry_at_ms {
            self.schedule.remove(&(before, lane_key.to_owned()));
        }
        key.at.retry_at_ms = retry_at_ms;
        if let Some(at) = retry_at_ms {
            self.schedule.insert((at, lane_key.to_owned()));
        }
    }

    /// The parked key whose turn comes first, and when.
    pub fn first_parked(&self) -> Option<(u64, &str)> {
        self.schedule.iter().find(|(_, key)| !self.busy.contains(key)).map(|(at, key)| (*at, key.as_str()))
    }

    /// The delivery at `next` of a parked key is settled: on to what was left to it. False where there is no more.
    pub fn next_of_parked(&mut self, lane_key: &str) -> bool {
        let Some(key) = self.parked.get_mut(lane_key) else { return false };
        key.at.attempts = 0;
        key.moved = true;
        key.left.count = key.left.count.saturating_sub(1);
        match key.left.known.pop_front() {
            Some(next) => {
                self.known -= 1;
                key.at.next = next;
            }
            None if !key.left.beyond => return false,
            // The journal is asked for the rest.
            None => key.at.next += 1,
        }
        self.reschedule(lane_key, Some(0));
        true
    }

    /// The journal's answer of what is left to a key, from `next` on.
    pub fn refill(&mut self, lane_key: &str, offsets: Vec<u64>, all: bool) -> bool {
        let Some(key) = self.parked.get_mut(lane_key) else { return false };
        self.known -= key.left.known.len();
        key.left.known = offsets.into();
        key.left.beyond = !all;
        match key.left.known.pop_front() {
            Some(next) => {
                key.at.next = next;
                key.moved = true;
                self.known += key.left.known.len();
                true
            }
            None => false,
        }
    }

    pub fn unpark(&mut self, lane_key: &str) {
        self.reschedule(lane_key, None);
        if let Some(key) = self.parked.remove(lane_key) {
            self.known -= key.left.known.len();
        }
    }

    /// Everything that waits for its time, and at a person's word what waits for a person, is due now.
    pub fn wake_parked(&mut self, stopped_too: bool) {
        let wake = self.parked.iter().filter(|(_, k)| k.at.retry_at_ms.map_or(stopped_too, |at| at > 0));
        for key in wake.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.reschedule(&key, Some(0));
        }
        self.wait_until = None;
        self.stopped &= !stopped_too;
    }

    /// Moves the position over the settled prefix.
    pub fn advance(&mut self) {
        while self.window.front().is_some_and(|s| s.state == State::Settled) {
            if let Some(slot) = self.window.pop_front() {
                self.position = slot.offset;
            }
        }
    }
}

pub fn delivery_of(output: &OutputName, stream: &StreamId, entry: Entry) -> Delivery {
    Delivery {
        id: DeliveryId::of(entry.emission, Some(output), entry.op),
        op: entry.op,
        offset: entry.offset,
        emission: Arc::new(Emission {
            id: entry.emission,
            stream: stream.clone(),
            block: entry.block,
            position: entry.position,
            ordinal: entry.ordinal,
            lane_key: entry.lane_key,
            content_type: entry.content_type,
            payload: entry.payload,
        }),
    }
}
