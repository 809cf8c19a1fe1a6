//! Promise 1 when the process dies: nothing lost, nothing doubled where a destination can know, and the same id where it
//! cannot.

use std::time::Duration;

use crate::harness::belt::{Belt, Via, seed, times};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_it_loses_and_doubles_nothing() {
    let seed = seed();
    let via = if seed.is_multiple_of(2) { Via::WebSocket } else { Via::Http };
    let Some(mut belt) = Belt::new(seed, via).await else { return };
    belt.load(10, false).await;
    for kill in 0..times(50, 300) {
        belt.start().await;
        let life = Duration::from_millis(belt.town.below(600));
        let process = belt.process.take();
        tokio::select! {
            () = belt.load(u64::MAX, true) => {}
            () = tokio::time::sleep(life) => {}
        }
        belt.process = process;
        belt.kill();
        if kill % 10 == 9 {
            // It goes on from there by itself, and then dies again.
            belt.start().await;
            belt.check().await;
            belt.kill();
        }
    }
    belt.start().await;
    belt.check().await;
    let repeats = {
        let events: Vec<_> = belt.receiver.received().iter().map(|r| r.event()).collect();
        crate::harness::process::Ledger::of(&events).repeats
    };
    println!("{repeats} webhooks came again, each with its id");
}
