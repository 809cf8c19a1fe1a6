//! One track on its way to one output: a window of entries in offset order, and the keys that wait alone.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::Routed;
use super::due::{Due, due};
use crate::journal::{Entry, Marks, Parked};
use crate::model::{Delivery, DeliveryId, Emission, OutputName, StreamId};

/// Entries held in memory per track: bounds how far the others may run ahead of a slow one.
pub const WINDOW: usize = 1024;

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
    /// `None` where there is nothing to deliver: cancelled, or left to a parked key.
    pub delivery: Option<Delivery>,
}

#[derive(Debug)]
pub struct TrackLane {
    pub routed: Routed,
    /// All up to here is settled or parked.
    pub position: u64,
    /// All up to here has been taken into the window.
    pub read: u64,
    /// There may be entries after `read`.
    pub more: bool,
    pub window: VecDeque<Slot>,
    pub parked: HashMap<String, ParkedKey>,
    /// Lane keys with a delivery under way.
    pub busy: HashSet<String>,
    /// The sink has been told of the stream's present spec.
    pub prepared: bool,
    /// Offsets of dead letters that were put back.
    pub redo: VecDeque<u64>,
}

#[derive(Debug)]
pub struct ParkedKey {
    pub at: Parked,
    /// Whether `next` moved since it was written down.
    pub moved: bool,
}

impl TrackLane {
    pub fn new(routed: Routed, position: u64, parked: Vec<Parked>, redo: Vec<u64>) -> Self {
        Self {
            routed,
            position,
            read: position,
            more: true,
            window: VecDeque::new(),
            parked: parked.into_iter().map(|at| (at.lane_key.clone(), ParkedKey { at, moved: false })).collect(),
            busy: HashSet::new(),
            prepared: false,
            redo: redo.into(),
        }
    }

    pub fn room(&self) -> usize {
        WINDOW.saturating_sub(self.window.len())
    }

    /// Takes in entries that were read after `self.read`; `asked` is how many would have been taken.
    pub fn take_in(&mut self, output: &OutputName, marks: &Marks, entries: Vec<Entry>, asked: usize) {
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
                Due::Now if self.parked.contains_key(&entry.lane_key) => None,
                Due::Now => Some(delivery_of(output, &self.routed.track.stream, entry)),
            };
            let state = if delivery.is_some() { State::Queued } else { State::Settled };
            self.window.push_back(Slot { offset, state, delivery });
            self.read = offset;
        }
    }

    pub fn slot(&mut self, offset: u64) -> Option<&mut Slot> {
        let at = self.window.binary_search_by_key(&offset, |s| s.offset).ok()?;
        self.window.get_mut(at)
    }

    /// Everything of this key in the window is left to the parked reader.
    pub fn leave_to_parked(&mut self, lane_key: &str) {
        for slot in &mut self.window {
            if slot.delivery.as_ref().is_some_and(|d| d.emission.lane_key == lane_key) {
                slot.delivery = None;
                slot.state = State::Settled;
            }
        }
    }

    /// Moves the position over the settled prefix; true where it moved.
    pub fn advance(&mut self) -> bool {
        let before = self.position;
        while self.window.front().is_some_and(|s| s.state == State::Settled) {
            if let Some(slot) = self.window.pop_front() {
                self.position = slot.offset;
            }
        }
        self.position > before
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
