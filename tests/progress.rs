//! Whoever waits for a plugin to catch up is told how far it is, how fast, and how long it will take.

use serde_json::json;

use crate::harness::fake_node::FakeNode;
use crate::harness::process::{Process, folder};
use crate::harness::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_catches_up_says_how_far_it_is_and_how_long_it_will_take() {
    let node = FakeNode::start().await;
    for _ in 0..2_200 {
        node.push(0);
    }
    let dir = folder(&["erc20-transfers"]);
    // So slow that it takes a quarter of a minute.
    let config = format!(
        "[chain.local]\nrpc = [{{ url = {:?}, requests_per_second = 150 }}]\npoll_ms = 200\nstart = 0\nfinality = {{ depth = 5 }}\n",
        node.url
    );
    let process = Process::start(dir.path(), &config).await;
    let told = until("a rate", || async {
        let status = process.status().await?;
        let told = status["plugins"].get(0)?["chains"][0]["catching_up"].clone();
        told["seconds_left"].as_u64()?;
        Some(told)
    })
    .await;
    assert_eq!((&told["from"], &told["to"]), (&json!(0), &json!(2_195)), "{told}");
    let (percent, rate) = (told["percent"].as_f64().unwrap(), told["blocks_per_second"].as_f64().unwrap());
    assert!((0.1..100.0).contains(&percent) && rate > 1.0, "{told}");
    let (worked, shown) = process.cli(&["status"]);
    assert!(worked && shown.contains("catching-up") && shown.contains("blocks/s") && shown.contains("left"), "{shown}");
    until("a line of the log", || async {
        process.log().lines().any(|l| l.contains("catches up") && l.contains("blocks/s")).then_some(())
    })
    .await;
    process.until_at(&node.tip().to_string()).await;
    let status = process.status().await.unwrap();
    assert_eq!(
        status["plugins"][0]["chains"][0]["catching_up"],
        json!(null),
        "at the tip there is nothing to wait for"
    );
    process.terminate().await;
}
