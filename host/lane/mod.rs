//! Sixth stage: order, patience, and the dead letters. `journal -> lane -> sink`.
//!
//! One task per output reads the tracks that are routed to it, in offset order, and hands what is due to the
//! sink. A lane key keeps its order. What fails is parked, by key, with a note in the journal, and waits
//! alone while the other keys pass; what is refused or exhausted goes to the dead letters. The task keeps
//! nothing that it could not read again: after a crash it goes on from the journal, with the same ids.
//!
//! ```text
//! slot:    Queued -> InFlight -> Settled            position = the settled prefix of a track
//!             ^          | retry        (a key)
//!             |          v
//!             +------ Parked ... until its own entries are all delivered, then it joins the others
//! output:  Up -> Down (several failures in a row: one probe at a time) -> Up
//! ```
//!
//! It knows nothing of chains, plugins or the router.

pub mod due;
mod open;
pub mod schedule;
mod task;
#[cfg(test)]
mod tests;
mod track;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::journal::{Journal, TrackInfo};
use crate::model::{OutputName, OutputStatus, When};
use crate::sink::Sink;

#[derive(Clone, Debug)]
pub struct Settings {
    pub output: OutputName,
    /// The sink's kind, for `status`.
    pub kind: String,
    /// Attempts at one delivery before it goes to the dead letters. A destination that is down altogether
    /// does not use them up.
    pub attempts: u32,
    /// A refused delivery stops its lane key instead of going to the dead letters.
    pub stop_on_refused: bool,
    /// A destination that has been down for so long is left alone until a person resumes it.
    pub disable_after: Duration,
}

/// A track that is routed to the output.
#[derive(Clone, Debug, PartialEq)]
pub struct Routed {
    pub track: TrackInfo,
    pub when: When,
}

/// Deliveries that are due and not settled, parked ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    pub entries: u64,
    /// Of their payloads, estimated.
    pub bytes: u64,
    /// Since the oldest of them was there.
    pub age: Duration,
}

/// What a lane tells of itself, and what others may tell it.
pub struct Lane {
    pub output: OutputName,
    status: Arc<std::sync::Mutex<OutputStatus>>,
    backlog: watch::Receiver<Backlog>,
    resume: mpsc::Sender<()>,
    redo: Arc<Notify>,
    note: mpsc::Sender<oneshot::Sender<()>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("output", &self.output).finish_non_exhaustive()
    }
}

impl Lane {
    pub fn start(
        settings: Settings,
        sink: Arc<dyn Sink>,
        journal: Arc<dyn Journal>,
        routed: watch::Receiver<Arc<Vec<Routed>>>,
    ) -> Self {
        let status = Arc::new(std::sync::Mutex::new(OutputStatus {
            name: settings.output.to_string(),
            kind: settings.kind.clone(),
            state: "starting".into(),
            ..OutputStatus::default()
        }));
        let (counted, backlog) = watch::channel(Backlog::default());
        let (resume, resumed) = mpsc::channel(1);
        let (note, noting) = mpsc::channel(1);
        let (stop, stopped) = watch::channel(false);
        let output = settings.output.clone();
        let task = task::Task::new(settings, sink, journal, routed, status.clone(), counted);
        let redo = Arc::<Notify>::default();
        let task = tokio::spawn(task.run(resumed, redo.clone(), noting, stopped));
        Self { output, status, backlog, resume, redo, note, stop, task }
    }

    pub fn status(&self) -> OutputStatus {
        self.status.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// As counted about once a second.
    pub fn waiting(&self) -> Backlog {
        *self.backlog.borrow()
    }

    /// Everything that waits for its time, or for a person, is tried at once.
    pub fn resume(&self) {
        // A full channel means that it is about to happen.
        self.resume.try_send(()).ok();
    }

    /// To be told that dead letters were put back; what waits for a person goes on waiting.
    pub fn redo(&self) -> Arc<Notify> {
        self.redo.clone()
    }

    /// Ends when the journal has all that is settled by now, which it learns a little later otherwise. False where it
    /// cannot be written, or the lane ends.
    pub fn noted(&self) -> impl Future<Output = bool> + use<> {
        let (note, (tell, told)) = (self.note.clone(), oneshot::channel());
        async move { note.send(tell).await.is_ok() && told.await.is_ok() }
    }

    /// Lets what is under way end, writes the positions, and ends.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(output = %self.output, %error, "the lane ended badly; it goes on from the journal at the next start");
        }
    }
}
