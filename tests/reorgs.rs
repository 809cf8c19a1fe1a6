//! Promises 1 and 2 on a real chain: after any reorg, what every destination, the feed and the plugin's state hold
//! equals a replay of the canonical chain alone.

use crate::harness::belt::{Belt, Via, seed, times};

async fn through_reorgs(via: Via, tags: bool) {
    let Some(mut belt) = Belt::new(seed(), via).await else { return };
    belt.tags = tags;
    belt.load(40, false).await;
    belt.start().await;
    belt.check().await;
    for round in 0..times(8, 100) {
        let blocks = 1 + belt.town.below(8);
        belt.load(blocks, false).await;
        let depth = belt.reorg().await;
        println!("round {round}: {depth} deep");
        belt.check().await;
    }
    // Under load, with nobody waiting for anybody.
    belt.load(times(60, 1000), true).await;
    belt.check().await;
    let (status, _) = belt.process.take().expect("it runs").terminate().await;
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_destination_holds_the_canonical_chain_after_reorgs_seen_over_websocket() {
    through_reorgs(Via::WebSocket, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_destination_holds_the_canonical_chain_after_reorgs_seen_by_polling() {
    through_reorgs(Via::Http, true).await;
}

/// The chain goes on, and back, while nobody looks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reorgs_that_came_while_it_was_down_are_found() {
    let Some(mut belt) = Belt::new(seed(), Via::WebSocket).await else { return };
    belt.load(50, false).await;
    for _ in 0..times(4, 40) {
        belt.start().await;
        belt.check().await;
        let (status, took) = belt.process.take().expect("it runs").terminate().await;
        assert!(status.success() && took.as_secs() < 10, "{status} after {took:?}");
        belt.load(5, true).await;
        belt.reorg().await;
    }
    belt.start().await;
    belt.check().await;
}
