//! Orders to send again: taken from people, and fed to the lanes at their pace.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::handle::{Answer, Resend};
use crate::journal::{Journal, JournalError, Replay, Write};

/// Of which the pace is counted.
const EVERY: Duration = Duration::from_secs(1);

/// Never returns. `told` says that there is an order; the lanes are told that there is something to send again.
pub async fn run(journal: Arc<dyn Journal>, told: Arc<Notify>, lanes: Vec<Arc<Notify>>) {
    loop {
        let left = match journal.commit(Write::ReplayOn).await {
            Ok(done) => done.id,
            // A full disk, say: whoever writes tells of it.
            Err(error) => {
                tracing::debug!(%error, "what is to be sent again waits");
                1
            }
        };
        lanes.iter().for_each(|lane| lane.notify_one());
        if left > 0 {
            tokio::time::sleep(EVERY).await;
        } else {
            told.notified().await;
        }
    }
}

/// Takes an order, for each chain of the stream. `noted` is the lane's: what the output has had a moment ago is sent
/// again too.
pub async fn order(journal: &dyn Journal, noted: impl Future<Output = bool>, resend: Resend) -> Answer {
    let Resend { stream, chain, output, blocks, pace } = resend;
    let tracks = journal.tracks().map_err(|e| e.to_string())?;
    let tracks: Vec<_> = tracks.iter().filter(|t| t.stream == stream && chain.is_none_or(|c| c == t.chain)).collect();
    if tracks.is_empty() {
        let on = chain.map_or(String::new(), |chain| format!(" on {chain}"));
        return Err(format!("the journal has no stream '{stream}'{on}; GET /streams lists what it has"));
    }
    if !noted.await {
        return Err(format!("the journal cannot note what {output} has had: the log says why; then order it again"));
    }
    let mut count = 0;
    for track in tracks {
        let replay = Replay { output: output.clone(), track: track.id, blocks: blocks.clone(), pace };
        count += journal.commit(Write::Replay(replay)).await.map_err(|e: JournalError| e.to_string())?.id;
    }
    match count {
        0 => Err(format!(
            "the journal keeps nothing of {stream} in blocks {} to {} that {output} has had: what it has not had yet comes \
             by itself, and what is older than [journal] retain has gone",
            blocks.start(),
            if *blocks.end() == u64::MAX { "the last".into() } else { blocks.end().to_string() },
        )),
        count => {
            Ok(format!("{output} is sent {count} deliveries of {stream} again, {pace} a second, with the same ids"))
        }
    }
}
