//! A hundred destinations, of which some are broken, each in its own way: the others have everything at once, the broken ones when they
//! are well again, and memory stays what it is however long it takes. How long the good ones wait beside the broken is a figure:
//! `chainweir bench crowd`.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::harness::anvil::Anvil;
use crate::harness::belt::{seed, times};
use crate::harness::chain::{Chain, Town, Transfer};
use crate::harness::process::{Process, folder};
use crate::harness::until;

const ALL: usize = 100;
/// Nobody there, no answer, a failure, a refusal of each event, an answer that never ends.
const BROKEN: [&str; 5] = ["absent", "hangs", "fails", "refuses", "drips"];
/// What a process may grow by while it runs on: the allocator's own, and what comes with more peers, reorgs and pages of the journal.
const MAY_GROW: u64 = 24 << 20;

/// What holds at each destination: the hash of a transfer's block, and its place there.
type Holds = Arc<Mutex<Vec<BTreeSet<(String, u64)>>>>;

struct Destinations {
    holds: Holds,
    well: Arc<Mutex<bool>>,
    port: u16,
    /// Nobody listens at it before all are well.
    absent: u16,
}

impl Destinations {
    async fn start() -> Self {
        let holds: Holds = Arc::new(Mutex::new(vec![BTreeSet::new(); ALL]));
        let well = Arc::new(Mutex::new(false));
        let port = Self::listen(crate::harness::free_port(), &holds, &well).await;
        let absent = crate::harness::free_port();
        Self { holds, well, port, absent }
    }

    async fn listen(port: u16, holds: &Holds, well: &Arc<Mutex<bool>>) -> u16 {
        let (holds, well) = (holds.clone(), well.clone());
        let take = move |Path(number): Path<usize>, body: Bytes| async move {
            if !*well.lock().unwrap()
                && let Some(how) = BROKEN.get(number)
            {
                return answer(how).await;
            }
            let event: Value = serde_json::from_slice(&body).expect("a webhook's body is JSON");
            let of = (
                event["blockhash"].as_str().expect("a hash").to_owned(),
                event["data"]["log_index"].as_u64().expect("an index"),
            );
            let holds = &mut holds.lock().unwrap()[number];
            match event["op"].as_str() {
                Some("apply") => holds.insert(of),
                _ => holds.remove(&of),
            };
            StatusCode::NO_CONTENT.into_response()
        };
        let app = axum::Router::new().route("/{number}", axum::routing::post(take));
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a port of loopback");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move { axum::serve(listener, app).await });
        port
    }

    async fn mend(&self) {
        *self.well.lock().unwrap() = true;
        Self::listen(self.absent, &self.holds, &self.well).await;
    }

    fn config(&self) -> String {
        let mut config = String::new();
        for number in 0..ALL {
            let port = if BROKEN.get(number) == Some(&"absent") { self.absent } else { self.port };
            config += &format!(
                "[output.o{number}]\ntype = \"webhook\"\nurl = \"http://127.0.0.1:{port}/{number}\"\nallow_private = true\ntimeout_ms = 2000\n"
            );
        }
        let to: Vec<String> = (0..ALL).map(|number| format!("\"o{number}\"")).collect();
        config + &format!("[[route]]\nfrom = \"erc20-transfers.transfers\"\nto = [{}]\n", to.join(", "))
    }

    async fn hold(&self, truth: &[Transfer], which: std::ops::Range<usize>) {
        let truth: BTreeSet<_> = truth.iter().map(|t| (t.block_hash.to_string(), t.log_index)).collect();
        until(&format!("destinations {which:?} to have everything"), || async {
            let holds = self.holds.lock().unwrap();
            which.clone().all(|number| holds[number] == truth).then_some(())
        })
        .await;
    }
}

async fn answer(how: &str) -> Response {
    match how {
        "hangs" => std::future::pending().await,
        "fails" => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        "refuses" => StatusCode::UNPROCESSABLE_ENTITY.into_response(),
        _ => {
            let drops = futures::stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Some((Ok::<_, std::convert::Infallible>(Bytes::from_static(b".")), ()))
            });
            (StatusCode::SERVICE_UNAVAILABLE, Body::from_stream(drops.boxed())).into_response()
        }
    }
}

/// In `cargo x nightly` as many blocks as mainnet has in a day, as fast as a node makes them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_destinations_and_five_broken_ones_lose_nothing_in_memory_that_stays() {
    let Some(anvil) = Anvil::start(&["--no-mining"]) else { return };
    let chain = Chain::connect(&anvil.http()).await;
    chain.block_interval(12).await;
    let mut town = Town::found(&chain, seed()).await;
    let destinations = Destinations::start().await;
    let folder = folder(&["erc20-transfers"]);
    let config = format!(
        "[journal]\nretain = 60\nbacklog_limit = 1000000\n\n[chain.local]\nrpc = \"{}\"\npoll_ms = 50\nstart = 0\nfinality = {{ depth = 40 }}\n{}",
        anvil.ws(),
        destinations.config()
    );
    let process = Process::start(folder.path(), &config).await;
    let blocks = times(120, 7_200);
    let mut resident = vec![];
    for block in 0..blocks {
        town.block(&chain, 4).await;
        if town.below(25) == 0 {
            let depth = 1 + town.below(12.min(chain.head().await - 2));
            town.reorg(&chain, depth, 2).await;
        }
        if block % (blocks / 20) == 0 {
            // At the pace of the good ones: what waits for them is in nobody's memory.
            let head = chain.head().await;
            process.until_at(&chain.hash(head).await.to_string()).await;
            destinations.hold(&chain.transfers(0..=head).await, BROKEN.len()..ALL).await;
            resident.push(process.resident_bytes());
        }
    }
    println!("resident, MiB: {:?}", resident.iter().map(|bytes| bytes >> 20).collect::<Vec<_>>());
    // From a third on everything has been met.
    let (early, late) = (resident[resident.len() / 3], *resident.last().expect("many"));
    assert!(late < early + MAY_GROW, "{early} bytes, then {late}");

    until("dead letters of what refuses, and of nothing good", || async {
        let status = process.status().await?;
        let output = |name: &str| status["outputs"].as_array()?.iter().find(|output| output["name"] == name).cloned();
        let (refuses, good) = (output("o3")?, output("o50")?);
        assert_eq!(good["dead"], json!(0), "{good}");
        (refuses["dead"].as_u64() > Some(0) && good["backlog"] == json!(0)).then_some(())
    })
    .await;

    destinations.mend().await;
    let truth = chain.transfers(0..=chain.head().await).await;
    until("the broken ones to be told that all is well", || async {
        for number in 0..BROKEN.len() {
            let (code, said) = process.post(&format!("/outputs/o{number}/resume"), &json!({})).await;
            assert_eq!(code, 200, "{said}");
        }
        let status = process.status().await?;
        let some = |field: &'static str| move |output: &Value| output[field] != json!(0);
        let outputs = status["outputs"].as_array()?;
        if outputs.iter().any(some("dead")) {
            // What was under way when all became well may still be refused.
            let (ok, said) = process.cli(&["dead", "retry", "--all"]);
            assert!(ok || said.contains("no such dead letters"), "{said}");
            return None;
        }
        (!outputs.iter().any(some("parked")) && !outputs.iter().any(some("backlog"))).then_some(())
    })
    .await;
    destinations.hold(&truth, 0..ALL).await;
}
