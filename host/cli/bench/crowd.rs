//! A hundred destinations of which five are broken, each in its own way: what the good ones have to wait for it. Twenty blocks a second
//! with one event each, which goes to every destination: 2,000 webhooks a second. Compared with as long a time with none broken, in turns.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use axum::body::{Body, Bytes};
use axum::extract::Path as Named;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::lab::{self, FILTER, Lab, Memory, PATIENCE, drop_plugin, percentile};
use super::{Aim, Figure};

const ALL: usize = 100;
/// What is broken is the first of them, by the path that they are called at: nobody is there (by the port), no answer, a 500, a
/// refusal of each delivery, and an answer that never ends.
const BROKEN: [&str; 5] = ["absent", "hangs", "fails", "refuses", "drips"];
const EVERY: Duration = Duration::from_millis(50);

pub async fn measure(lab: Lab) -> anyhow::Result<Vec<Figure>> {
    let blocks = lab.either(200, 10);
    let (mut with, mut without) = (vec![], vec![]);
    for round in 0..lab.either(3, 1) {
        without.extend(waits(&lab.dir(&format!("whole-{round}"))?, &[], blocks).await?);
        with.extend(waits(&lab.dir(&format!("broken-{round}"))?, &BROKEN, blocks).await?);
    }
    let figures = [50, 99].map(|percent| {
        let (ours, theirs) = (percentile(&mut with, percent), percentile(&mut without, percent));
        let aim = if percent == 99 { Aim::AtMost(1.1) } else { Aim::None };
        Figure::new(format!("crowd_p{percent}"), (ours, "ms"), (theirs, "the same with none broken"), aim)
    });
    Ok(figures.into())
}

/// From each block to its arrival at each destination that is good in both runs, ms.
async fn waits(dir: &Path, broken: &[&str], blocks: usize) -> anyhow::Result<Vec<f64>> {
    let (tell, mut arrived) = mpsc::unbounded_channel();
    let take = move |Named(path): Named<String>, body: Bytes| {
        if let Ok(number) = path.parse::<usize>() {
            // The measurement may have ended.
            tell.send((number, Instant::now())).ok();
        }
        drop(body);
        answer(path)
    };
    let app = axum::Router::new().route("/{path}", axum::routing::post(take));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = tokio::spawn(async move { drop(axum::serve(listener, app).await) });

    // A port that nobody listens at any more.
    let nobody = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let mut config = String::new();
    for number in 0..ALL {
        let (host, path) = match broken.get(number) {
            Some(&"absent") => (nobody, "absent".to_owned()),
            Some(how) => (address, (*how).to_owned()),
            None => (address, number.to_string()),
        };
        config +=
            &format!("[output.o{number}]\ntype = \"webhook\"\nurl = \"http://{host}/{path}\"\nallow_private = true\n");
    }
    let to: Vec<String> = (0..ALL).map(|number| format!("\"o{number}\"")).collect();
    config += &format!("[[route]]\nfrom = \"filter.passed\"\nto = [{}]\n", to.join(", "));
    drop_plugin(dir, "filter.wasm", FILTER)?;
    let chain = Memory::new(vec![lab::block(0, vec![])], 32, 32);
    let running = lab::router(lab::config(dir, &config)?, &chain).await?;

    // The first ones find everything cold.
    const WARM: usize = 20;
    let load = tokio::spawn({
        let chain = chain.clone();
        async move {
            let mut tick = tokio::time::interval(EVERY);
            let mut there = Vec::with_capacity(WARM + blocks);
            for _ in 0..WARM + blocks {
                tick.tick().await;
                there.push(chain.push(lab::transfers(1, 1)));
            }
            there
        }
    });
    // One contract is one lane: the n-th arrival at a destination is of the n-th block.
    let mut arrivals: Vec<Vec<Instant>> = vec![vec![]; ALL];
    let good = BROKEN.len()..ALL;
    let mut missing = good.len() * (WARM + blocks);
    while missing > 0 {
        let next = tokio::time::timeout(PATIENCE, arrived.recv()).await;
        let (number, at) = next.context("no webhook came")?.context("the receiver ended")?;
        arrivals[number].push(at);
        missing -= usize::from(good.contains(&number));
    }
    let there = load.await?;
    lab::stop(running).await?;
    server.abort();
    let waits = arrivals[good].iter().flat_map(|arrivals| arrivals.iter().zip(&there).skip(WARM));
    Ok(waits.map(|(arrived, there)| (*arrived - *there).as_secs_f64() * 1e3).collect())
}

async fn answer(path: String) -> Response {
    match path.as_str() {
        "hangs" => std::future::pending().await,
        "fails" => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        "refuses" => StatusCode::UNPROCESSABLE_ENTITY.into_response(),
        "drips" => {
            let drops = futures::stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Some((Ok::<_, std::convert::Infallible>(Bytes::from_static(b".")), ()))
            });
            (StatusCode::SERVICE_UNAVAILABLE, Body::from_stream(drops.boxed())).into_response()
        }
        _ => StatusCode::NO_CONTENT.into_response(),
    }
}
