//! Whose turn it is to run wasm. A call has a deadline by the clock, so calls must not share the processors with any
//! number of others; and a plugin that loops must not keep another one waiting.
//!
//! ```text
//! live    one block; as many at once as there are processors. Who overstays goes on, but gives the place up.
//! range   many blocks, long by nature: places of its own
//! suspect the consumer faulted, or overran a moment ago: one at a time, whatever they do
//! ```
//!
//! Who has a place and who has none is all that is decided here; threads share the processors by the system's own
//! scheduler, which is fair.

use std::time::Duration;

use tokio::sync::Semaphore;

/// A live step that takes longer gives its place up: whoever waits behind loopers waits for this, not for deadlines.
/// Filters take some 0.1 ms for a block.
const PATIENCE: Duration = Duration::from_millis(25);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Live,
    Range,
    Suspect,
}

#[derive(Debug)]
pub struct Turns {
    live: Semaphore,
    range: Semaphore,
    suspect: Semaphore,
}

impl Turns {
    pub fn new(processors: usize) -> Self {
        Self { live: Semaphore::new(processors), range: Semaphore::new(processors), suspect: Semaphore::new(1) }
    }

    /// Runs it on a thread of its own when its turn has come. An error is a panic's.
    pub async fn run<R: Send + 'static>(
        &self,
        class: Class,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, tokio::task::JoinError> {
        let places = match class {
            Class::Live => &self.live,
            Class::Range => &self.range,
            Class::Suspect => &self.suspect,
        };
        // Nobody closes them; without a place it would run all the same.
        let place = places.acquire().await.ok();
        let mut job = tokio::task::spawn_blocking(work);
        if class == Class::Live
            && let Ok(done) = tokio::time::timeout(PATIENCE, &mut job).await
        {
            return done;
        }
        let place = place.filter(|_| class != Class::Live);
        let done = job.await;
        drop(place);
        done
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::time::Instant;

    use super::*;

    /// Holds a place of each class with work that does not end; whoever behaves is served all the same.
    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_overstays_keeps_nobody_waiting() {
        let turns = Arc::new(Turns::new(2));
        let mut ends = Vec::new();
        for class in [Class::Live, Class::Live, Class::Live, Class::Suspect, Class::Suspect, Class::Suspect] {
            let (end, ended) = channel::<()>();
            let turns = turns.clone();
            let held = tokio::spawn(async move { turns.run(class, move || ended.recv()).await });
            ends.push((end, held));
        }
        let began = Instant::now();
        for class in [Class::Live, Class::Range, Class::Live] {
            turns.run(class, || ()).await.unwrap();
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        let taken = async {
            while turns.suspect.available_permits() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), taken).await.expect("one of the suspects has the place");
        // All end before any is waited for: which of the suspects has the place is not said.
        let (ends, held): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
        drop(ends);
        for held in held {
            held.await.unwrap().unwrap().unwrap_err();
        }
        assert_eq!(turns.live.available_permits(), 2);
        assert_eq!(turns.suspect.available_permits(), 1);
    }
}
