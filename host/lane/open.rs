//! Taking up tracks: where each was left, what waits in it, and the destination made ready for its stream.
//!
//! One at a time and beside the deliveries: a stream that its destination refuses holds up nobody but itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinError;
use tokio::time::Instant;

use super::Routed;
use super::schedule::probe_after;
use super::task::Task;
use super::track::{KNOWN, Left, TrackLane};
use crate::journal::{Journal, JournalError, Parked, TrackId};
use crate::model::OutputName;

/// A sink has its own deadlines; one that forgot them does not hold up the others' opening for ever.
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// Entries in one read of the journal.
const CHUNK: usize = 1024;

/// A track that is not ready yet.
pub struct Opening {
    pub routed: Routed,
    /// When to try, or to try again.
    pub at: Instant,
    failures: u32,
    /// A person wants what waits to be tried at once, and it is not known here yet.
    pub resumed: bool,
}

/// What was found of a track that is new to the lane.
struct Notes {
    position: u64,
    parked: Vec<(Parked, Left)>,
    redo: Vec<u64>,
}

pub struct Opened {
    routed: Routed,
    result: Result<Option<Notes>, String>,
}

impl Task {
    /// Takes up new tracks where they were left, changed routes and changed specs.
    pub(super) fn take_routes(&mut self, routed: &Arc<Vec<Routed>>) {
        let now = Instant::now();
        for route in routed.iter() {
            let id = route.track.id;
            let known = self.tracks.get_mut(&id).map(|track| {
                track.gone = false;
                // More may be due on another route.
                track.more = true;
                std::mem::replace(&mut track.routed, route.clone()).track.spec
            });
            if let Some(opening) = self.opening.get_mut(&id) {
                opening.routed = route.clone();
            } else if known.as_ref() != Some(&route.track.spec) {
                self.opening.insert(id, Opening { routed: route.clone(), at: now, failures: 0, resumed: false });
            }
        }
        let routed = |id: &TrackId| routed.iter().any(|r| r.track.id == *id);
        self.opening.retain(|id, _| routed(id));
        self.tracks.iter_mut().filter(|(id, _)| !routed(id)).for_each(|(_, track)| track.gone = true);
        self.redo_changed();
    }

    /// Begins with the next track whose time has come.
    pub(super) fn open_next(&mut self) {
        if !self.opened.is_empty() {
            return;
        }
        let Some((id, opening)) = self.opening.iter().min_by_key(|(_, o)| o.at).filter(|(_, o)| o.at <= Instant::now())
        else {
            return;
        };
        let (routed, name, is_new) =
            (opening.routed.clone(), self.track_name(&opening.routed), !self.tracks.contains_key(id));
        let (sink, journal) = (self.sink.clone(), self.journal.clone());
        self.opened.spawn(async move {
            let open = async {
                sink.prepare(&routed.track.stream, &routed.track.spec).await.map_err(|e| e.to_string())?;
                if !is_new {
                    return Ok(None);
                }
                // A destination that keeps its own position is believed before our note of it.
                let kept = sink.position(&name).await.map_err(|e| e.to_string())?;
                Ok(Some(kept))
            };
            let asked = tokio::time::timeout(OPEN_LIMIT, open).await;
            let result = match asked.unwrap_or_else(|_| Err("the destination did not answer in 30 s".into())) {
                Ok(Some(kept)) => {
                    let id = routed.track.id;
                    let read = tokio::task::spawn_blocking(move || notes(&*journal, &name.output, id, kept)).await;
                    match read {
                        Ok(Ok(notes)) => Ok(Some(notes)),
                        Ok(Err(error)) => Err(error.to_string()),
                        Err(error) => Err(error.to_string()),
                    }
                }
                Ok(None) => Ok(None),
                Err(why) => Err(why),
            };
            Opened { routed, result }
        });
    }

    pub(super) fn take_opened(&mut self, opened: Result<Opened, JoinError>) {
        let (id, why) = match opened {
            Ok(Opened { routed, result }) => {
                let id = routed.track.id;
                // Unless it was taken off the routes meanwhile.
                let Some(opening) = self.opening.get_mut(&id) else { return };
                match result {
                    Ok(notes) => {
                        let (now, resumed) = (opening.routed.clone(), opening.resumed);
                        if let Some(notes) = notes {
                            if !self.answered && notes.parked.iter().any(|(at, _)| at.retry_at_ms.is_some()) {
                                self.trial_at = Some(Instant::now());
                            }
                            let mut track = TrackLane::new(now.clone(), notes.position, notes.parked, notes.redo);
                            if resumed {
                                track.wake_parked(true);
                            }
                            self.tracks.insert(id, track);
                        }
                        if now.track.spec == routed.track.spec && self.tracks.contains_key(&id) {
                            self.opening.remove(&id);
                            self.opened_well();
                        }
                        return;
                    }
                    Err(why) => (id, why),
                }
            }
            // A panic does not say whose it was: the one whose turn it is was it.
            Err(error) => {
                let Some((id, _)) = self.opening.iter().min_by_key(|(_, o)| o.at) else { return };
                (*id, error.to_string())
            }
        };
        let output = self.settings.output.clone();
        let Some(opening) = self.opening.get_mut(&id) else { return };
        opening.failures = opening.failures.saturating_add(1);
        opening.at = Instant::now() + probe_after(opening.failures, None, rand::random());
        let what = format!("the destination is not ready for {}", opening.routed.track.stream);
        if opening.failures == 1 {
            tracing::warn!(%output, why, "{what}; it is tried again");
        }
        self.show("failing", Some(format!("{what}: {why}")));
    }

    fn opened_well(&mut self) {
        if !self.opening.is_empty() {
            return;
        }
        // What it shows is of all tracks now.
        self.count_at = Instant::now();
        let mut status = self.status.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if status.why.as_ref().is_some_and(|why| why.starts_with("the destination is not ready")) {
            status.state = "ok".into();
            status.why = None;
        }
    }
}

/// Where a track was left. What waits for its parked keys is found in one pass over the entries, whatever the
/// number of keys.
fn notes(journal: &dyn Journal, output: &OutputName, id: TrackId, kept: Option<u64>) -> Result<Notes, JournalError> {
    let gone = journal.forgotten(id)?;
    let position = match (kept, journal.position(output, id)?) {
        (Some(kept), _) if kept < gone => {
            return Err(JournalError::Moved {
                why: format!(
                    "the destination has what came up to {kept}, and the journal keeps what came after {gone} ([journal] \
                     retain): restore a newer copy of the destination, or remove the position that it keeps of this \
                     stream to go on without what is missing"
                ),
            });
        }
        (Some(kept), _) => kept,
        (None, Some(noted)) if noted < gone => {
            tracing::warn!(%output, noted, kept_after = gone, "entries have gone while the route was not there; it goes on after them");
            gone
        }
        (None, noted) => noted.unwrap_or(gone),
    };
    let parked = journal.parked(output, id)?;
    let mut left: HashMap<String, (u64, Left)> =
        parked.iter().map(|p| (p.lane_key.clone(), (p.next, Left::default()))).collect();
    let mut after = parked.iter().map(|p| p.next).min().unwrap_or(position);
    while after < position {
        let (_, entries) = journal.entries(id, after, CHUNK, None)?;
        let Some(last) = entries.last() else { break };
        after = last.offset;
        for entry in entries.iter().filter(|e| e.offset <= position) {
            if let Some((next, left)) = left.get_mut(&entry.lane_key)
                && entry.offset > *next
            {
                left.count += 1;
                if left.known.len() < KNOWN { left.known.push_back(entry.offset) } else { left.beyond = true }
            }
        }
    }
    let parked = parked.into_iter().map(|p| {
        let (_, left) = left.remove(&p.lane_key).unwrap_or_default();
        (p, left)
    });
    Ok(Notes { position, parked: parked.collect(), redo: journal.redo(output, id)? })
}
