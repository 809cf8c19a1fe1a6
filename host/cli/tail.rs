//! Reads the entries of every track as they are committed, in the order of their offsets.

use std::collections::HashMap;
use std::sync::Arc;

use crate::journal::{Entry, Journal, JournalError, TrackId, TrackInfo};
use crate::model::{Delivery, DeliveryId, Emission};

/// Entries of one track in one read.
const PAGE: usize = 1_000;

pub struct Tail {
    journal: Arc<dyn Journal>,
    seen: HashMap<TrackId, u64>,
}

impl Tail {
    /// From the first entry on.
    pub fn new(journal: Arc<dyn Journal>) -> Self {
        Self { journal, seen: HashMap::new() }
    }

    /// From the entries on that are not there yet.
    pub fn from_now(journal: Arc<dyn Journal>) -> Result<Self, JournalError> {
        let seen = journal.tracks()?.into_iter().map(|track| (track.id, track.last_offset)).collect();
        Ok(Self { journal, seen })
    }

    /// What has come since the last call; empty when nothing has.
    pub fn next(&mut self) -> Result<Vec<(TrackInfo, Entry)>, JournalError> {
        let mut all = vec![];
        // A track that filled its page may hold more: nothing beyond its last entry is in order yet.
        let mut sure = u64::MAX;
        for track in self.journal.tracks()? {
            let after = self.seen.get(&track.id).copied().unwrap_or(0);
            let (_, entries) = self.journal.entries(track.id, after, PAGE, None)?;
            if entries.len() == PAGE {
                sure = entries.last().map_or(sure, |last| sure.min(last.offset));
            }
            all.extend(entries.into_iter().map(|entry| (track.clone(), entry)));
        }
        all.retain(|(_, entry)| entry.offset <= sure);
        all.sort_by_key(|(_, entry)| entry.offset);
        for (track, entry) in &all {
            self.seen.insert(track.id, entry.offset);
        }
        Ok(all)
    }
}

/// As the feed delivers it.
pub fn delivery(track: &TrackInfo, entry: Entry) -> Delivery {
    Delivery {
        id: DeliveryId::of(entry.emission, None, entry.op),
        op: entry.op,
        offset: entry.offset,
        emission: Arc::new(Emission {
            id: entry.emission,
            stream: track.stream.clone(),
            block: entry.block,
            position: entry.position,
            ordinal: entry.ordinal,
            lane_key: entry.lane_key,
            content_type: entry.content_type,
            payload: entry.payload,
        }),
    }
}
