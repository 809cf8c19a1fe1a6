//! Lets the journal forget, beside everything else: what every output has settled, once feeds can look back no more.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::config::Config;
use crate::journal::{Journal, JournalError, TrackInfo, Write};
use crate::model::OutputName;

/// How exactly the age of what waits is known, where the window is long.
const EVERY: Duration = Duration::from_secs(10);
/// Of a window that is short, for whoever tries it out.
const SHORTEST: Duration = Duration::from_millis(100);

/// Never returns.
pub async fn run(config: Arc<Config>, journal: Arc<dyn Journal>) {
    let keep = Duration::from_secs(config.journal.retain);
    let every = (keep / 10).clamp(SHORTEST, EVERY);
    loop {
        // What fails, most of all a full disk, is told by whoever writes; forgetting is tried again.
        if let Err(error) = forget(&config, &*journal, keep).await {
            tracing::debug!(%error, "the journal could not forget what it needs no more");
        }
        tokio::time::sleep(every).await;
    }
}

async fn forget(config: &Config, journal: &dyn Journal, keep: Duration) -> Result<(), JournalError> {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let window = Write::Window { now_ms, keep_ms: keep.as_millis() as u64 };
    if journal.commit(window).await?.id == 0 {
        return Ok(());
    }
    for track in journal.tracks()? {
        let outputs = outputs(config, &track);
        let mut after = 0;
        loop {
            let piece = Write::Forget { track: track.id, outputs: outputs.clone(), after };
            after = journal.commit(piece).await?.id as u64;
            if after == 0 {
                break;
            }
        }
    }
    while journal.commit(Write::Shrink).await?.id > 0 {}
    Ok(())
}

fn outputs(config: &Config, track: &TrackInfo) -> Vec<OutputName> {
    let routes = config.routes.iter().filter(|route| route.from.matches(&track.stream));
    let mut outputs: Vec<OutputName> = routes.flat_map(|route| route.to.iter().cloned()).collect();
    outputs.sort();
    outputs.dedup();
    outputs
}
