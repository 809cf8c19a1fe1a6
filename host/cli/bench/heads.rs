//! From a head to its events: how long after a node has said over its WebSocket that there is a block, the plugin is called
//! with what is in it, beyond the node's own time to answer. The real source, with all proofs, the real router and plugin.
//!
//! The round trips on the path are counted: the header came with the notification; block and receipts are asked for side by
//! side, and that is one.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_tungstenite::tungstenite::Message;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context as In, SubscriberExt};

use super::lab::{self, FILTER, Lab, PATIENCE, drop_plugin, percentile};
use super::node::Node;
use super::{Aim, Figure};
use crate::router;

/// When the node took a question about a block, and when its answer was out.
type Spans = Arc<Mutex<Vec<(Instant, Instant)>>>;

/// A node over WebSocket that shows one more block at a time.
struct Feed {
    node: Arc<Node>,
    heads: broadcast::Sender<String>,
    spans: Spans,
    /// When the last notification was handed to the socket.
    sent: Arc<Mutex<Option<Instant>>>,
}

impl Feed {
    async fn serve(node: Arc<Node>) -> anyhow::Result<(Self, String)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("ws://{}", listener.local_addr()?);
        let feed =
            Self { node: node.clone(), heads: broadcast::channel(16).0, spans: Spans::default(), sent: Arc::default() };
        let (heads, spans, sent) = (feed.heads.clone(), feed.spans.clone(), feed.sent.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).ok();
                let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { continue };
                let (node, mut heads, spans, sent) = (node.clone(), heads.subscribe(), spans.clone(), sent.clone());
                tokio::spawn(async move {
                    loop {
                        tokio::select! {
                            head = heads.recv() => {
                                let Ok(head) = head else { return };
                                *sent.lock().expect("no panic while held") = Some(Instant::now());
                                if socket.send(Message::text(head)).await.is_err() {
                                    return;
                                }
                            }
                            asked = socket.next() => {
                                let Some(Ok(asked)) = asked else { return };
                                let Ok(text) = asked.to_text() else { continue };
                                let taken = Instant::now();
                                let question = serde_json::from_str::<Value>(text);
                                // What is safe and final is asked beside the way, and nobody waits for it.
                                let by_hash = question.as_ref().is_ok_and(|q| {
                                    q["params"][0].as_str().is_some_and(|place| place.len() == 66)
                                });
                                let answer = match question {
                                    Ok(q) if q["method"] == "eth_subscribe" => {
                                        json!({ "jsonrpc": "2.0", "id": q["id"], "result": "0x1" }).to_string()
                                    }
                                    Ok(_) => node.reply(text.to_owned().into()).await,
                                    Err(_) => continue,
                                };
                                if socket.send(Message::text(answer)).await.is_err() {
                                    return;
                                }
                                if by_hash {
                                    spans.lock().expect("no panic while held").push((taken, Instant::now()));
                                }
                            }
                        }
                    }
                });
            }
        });
        Ok((feed, url))
    }

    fn next(&self) {
        let head = self.node.advance();
        let head = format!(
            r#"{{"jsonrpc":"2.0","method":"eth_subscription","params":{{"subscription":"0x1","result":{head}}}}}"#
        );
        // Nobody may listen yet.
        self.heads.send(head).ok();
    }
}

/// Hears when a plugin is called.
struct Calls(std::sync::mpsc::Sender<Instant>);

impl<S: tracing::Subscriber> Layer<S> for Calls {
    fn on_event(&self, event: &tracing::Event<'_>, _: In<'_, S>) {
        if event.metadata().target() == router::CALLS {
            // Whoever measures may have ended.
            self.0.send(Instant::now()).ok();
        }
    }
}

pub async fn measure(lab: Lab) -> anyhow::Result<Vec<Figure>> {
    let count = lab.either(3_000, 20);
    let (calls, called) = std::sync::mpsc::channel();
    let only = tracing_subscriber::filter::Targets::new().with_target(router::CALLS, tracing::Level::TRACE);
    let subscriber = tracing_subscriber::registry().with(Calls(calls).with_filter(only));
    // For this process and for good: other figures do not look at it.
    tracing::subscriber::set_global_default(subscriber).context("another figure listens already")?;
    // Two hundred transfers a block, as on mainnet, of which the plugin lets two pass.
    let node = Node::new(count + 20, 200, 1, Duration::ZERO)?;
    node.show(10, 64);
    let (feed, url) = Feed::serve(node).await?;
    let dir = lab.dir("heads")?;
    drop_plugin(&dir, "plugin.wasm", FILTER)?;
    let config = lab::config_at(&dir, &url, "")?;
    let running = router::start(config).await.map_err(anyhow::Error::msg)?;
    let live = async {
        let is_live =
            |s: &crate::model::Status| s.plugins.first().is_some_and(|p| p.chains.iter().any(|c| c.state == "live"));
        while !is_live(&running.handle.status.borrow()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, live).await?;
    let mut called = Calling(called);
    let (mut whole, mut added, mut questions) = (Vec::new(), Vec::new(), 0);
    for n in 0..count {
        called.drain();
        feed.spans.lock().expect("no panic while held").clear();
        feed.next();
        let at = called.next().await?;
        let sent = feed.sent.lock().expect("no panic while held").context("nothing was sent")?;
        let spans: Vec<_> =
            feed.spans.lock().expect("no panic while held").iter().filter(|s| s.1 <= at).copied().collect();
        let node_took = match (spans.iter().map(|s| s.0).min(), spans.iter().map(|s| s.1).max()) {
            (Some(first), Some(last)) => last - first,
            _ => Duration::ZERO,
        };
        // The first ones find everything cold.
        if n >= 10.min(count / 2) {
            questions += spans.len();
            whole.push((at - sent).as_secs_f64() * 1e3);
            added.push((at - sent).saturating_sub(node_took).as_secs_f64() * 1e3);
        }
        // As it is written down, so that the next head finds nothing under way.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    lab::stop(running).await?;
    let heads = whole.len() as f64;
    let mut figures = Vec::new();
    for percent in [50, 99] {
        let (ours, all) = (percentile(&mut added, percent), percentile(&mut whole, percent));
        let aim = if percent == 99 { Aim::AtMost(1.0) } else { Aim::None };
        figures.push(Figure::new(format!("head_to_plugin_p{percent}"), (ours, "ms"), (2.0, "the aim, 2 ms"), aim));
        figures.push(Figure::new(
            format!("head_to_plugin_whole_p{percent}"),
            (all, "ms"),
            (ours, "without the node's time"),
            Aim::None,
        ));
    }
    figures.push(Figure::new(
        "head_to_plugin_questions",
        (questions as f64 / heads, "questions"),
        (2.0, "one round trip"),
        Aim::None,
    ));
    Ok(figures)
}

struct Calling(std::sync::mpsc::Receiver<Instant>);

impl Calling {
    fn drain(&mut self) {
        while self.0.try_recv().is_ok() {}
    }

    async fn next(&mut self) -> anyhow::Result<Instant> {
        let began = Instant::now();
        loop {
            if let Ok(at) = self.0.try_recv() {
                return Ok(at);
            }
            anyhow::ensure!(began.elapsed() < PATIENCE, "the plugin was not called");
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }
}
