//! One stream's entries of all its chains, in offset order. `journal -> merge -> feed`; pure reading.
//!
//! A stream has a track for each chain and a reader one cursor for all of them: an offset. So an entry may only be
//! given out when no track can still come up with a smaller one. Two rules see to that: nothing beyond the tail as it
//! was *before* the first track was read (a commit in between could otherwise show its later entry and hide its
//! earlier one), and the smallest of all tracks' next entries first, with every track that has more in hand.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::journal::{Entry, Journal, JournalError, TrackInfo};
use crate::model::{ChainId, Delivery, DeliveryId, Emission, StreamId};
use crate::sink::cloudevent;

/// Entries of a track that are read at once.
const CHUNK: usize = 64;
/// Entries that are looked at for one page, where most are left out.
const LOOKED_AT: usize = 20_000;

/// What is asked of a stream.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub stream: StreamId,
    pub chain: Option<ChainId>,
    /// Of this lane key, or of these blocks, alone.
    pub lane_key: Option<String>,
    pub blocks: Option<RangeInclusive<u64>>,
    pub limit: usize,
    /// A page ends with the event that reaches this.
    pub bytes: usize,
}

impl Ask {
    fn takes(&self, entry: &Entry) -> bool {
        self.lane_key.as_ref().is_none_or(|key| *key == entry.lane_key)
            && self.blocks.as_ref().is_none_or(|blocks| blocks.contains(&entry.block.number))
    }

    /// Whether `takes` leaves anything out.
    fn is_filtered(&self) -> bool {
        self.lane_key.is_some() || self.blocks.is_some()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Item {
    pub delivery: Delivery,
    /// The CloudEvent: one line of JSON.
    pub event: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(super) struct Page {
    pub items: Vec<Item>,
    /// All of the stream up to here has been given.
    pub next: u64,
}

struct Source<'a> {
    track: &'a TrackInfo,
    read_to: u64,
    /// Its last entry that this page may hold.
    end: u64,
    waiting: VecDeque<Entry>,
}

/// The last offset that is known to be committed.
pub(super) fn last_offset(journal: &dyn Journal, tracks: &[TrackInfo]) -> u64 {
    // The watch may be told a moment after the commit.
    let told = *journal.tail().borrow();
    tracks.iter().map(|t| t.last_offset).fold(told, u64::max)
}

/// What is read of a stream at once.
#[derive(Debug)]
pub(super) enum Read {
    Page(Page),
    /// Entries after the cursor have gone: the journal keeps what comes after this one.
    Gone(u64),
}

/// The entries after an offset, 0 being the first that is kept. Where fewer than `limit` come, it was `bytes` or there are
/// no more yet; where none come, there are none up to `next`.
pub(super) fn read(journal: &dyn Journal, ask: &Ask, after: u64) -> Result<Read, JournalError> {
    loop {
        let from = if after == 0 { journal.window() } else { after };
        let page = page(journal, ask, from);
        // Asked after the reading: the window moves before its entries go.
        match journal.window() {
            kept if kept <= from => return Ok(Read::Page(page?)),
            kept if after > 0 => return Ok(Read::Gone(kept)),
            _ => {}
        }
    }
}

fn page(journal: &dyn Journal, ask: &Ask, after: u64) -> Result<Page, JournalError> {
    let tail = *journal.tail().borrow();
    let tracks = journal.tracks()?;
    let ours = |t: &&TrackInfo| t.stream == ask.stream && ask.chain.is_none_or(|c| c == t.chain);
    let mut sources: Vec<Source<'_>> = tracks
        .iter()
        .filter(ours)
        .map(|track| Source { track, read_to: after, end: track.last_offset.min(tail), waiting: VecDeque::new() })
        .collect();
    let (mut items, mut bytes, mut last, mut looked_at) = (Vec::new(), 0, after, 0);
    let chunk = if ask.is_filtered() { CHUNK } else { ask.limit.min(CHUNK) };
    while items.len() < ask.limit && bytes < ask.bytes && looked_at < LOOKED_AT {
        for source in &mut sources {
            source.refill(journal, chunk)?;
        }
        let first = sources
            .iter_mut()
            .filter_map(|s| s.waiting.front().map(|e| e.offset).map(|offset| (offset, s)))
            .min_by_key(|(offset, _)| *offset);
        let Some((_, source)) = first else { return Ok(Page { items, next: after.max(tail) }) };
        let entry = source.waiting.pop_front().expect("its first entry was looked at just now");
        (last, looked_at) = (entry.offset, looked_at + 1);
        if !ask.takes(&entry) {
            continue;
        }
        let delivery = delivery(DeliveryId::of(entry.emission, None, entry.op), &source.track.stream, entry);
        let event = cloudevent::encode(&delivery);
        bytes += event.len();
        items.push(Item { delivery, event });
    }
    Ok(Page { items, next: last })
}

impl Source<'_> {
    fn refill(&mut self, journal: &dyn Journal, limit: usize) -> Result<(), JournalError> {
        if !self.waiting.is_empty() || self.read_to >= self.end {
            return Ok(());
        }
        let (_, entries) = journal.entries(self.track.id, self.read_to, limit, None)?;
        let Some(last) = entries.last().map(|e| e.offset).filter(|last| *last > self.read_to) else {
            // An entry at `end` is committed: "nothing there" is a failed read, never the end of the stream.
            let (track, from, to) = (&self.track.stream, self.read_to, self.end);
            return Err(JournalError::Halt {
                why: format!("entries of {track} after {from} up to {to} are not there"),
            });
        };
        self.read_to = last;
        self.waiting.extend(entries.into_iter().filter(|e| e.offset <= self.end));
        Ok(())
    }
}

/// What is said by an entry, as a sink is told it.
pub(super) fn delivery(id: DeliveryId, stream: &StreamId, entry: Entry) -> Delivery {
    let emission = Emission {
        id: entry.emission,
        stream: stream.clone(),
        block: entry.block,
        position: entry.position,
        ordinal: entry.ordinal,
        lane_key: entry.lane_key,
        content_type: entry.content_type,
        payload: entry.payload,
    };
    Delivery { id, op: entry.op, offset: entry.offset, emission: Arc::new(emission) }
}
