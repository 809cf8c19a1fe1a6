//! Beside the flow: lets others look and ask. It stands on the router's handle and on reads of the journal.
//!
//! Streams as feeds (pages and server-sent events), status, health and metrics, and the few commands that a person
//! gives a running process. It knows nothing of plugins, chains or sinks, writes nothing into the journal, and holds
//! up nobody: every read of the journal runs on a blocking thread, a bounded number of them at a time, and a slow
//! reader of a feed is read for at its own pace.
//!
//! It has no password. So it listens on loopback unless told otherwise, and [`guard`] keeps web pages out, which a
//! browser on the same machine would let in.

mod admin;
mod download;
mod feed;
mod guard;
mod merge;
mod page;
mod params;
mod sets;
mod socket;
#[cfg(test)]
mod tests;
mod transactions;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::journal::{Journal, JournalError};
use crate::model::Status;
use crate::router::handle::Handle;
use crate::telemetry;

/// Connections at once; more wait to be accepted. Each may buffer 64 KiB each way: 64 MiB at the very most.
const CONNECTIONS: usize = 512;
/// Of these, held open by feeds that wait or stream. The rest stays free for health, metrics and commands.
const FEEDS: usize = 384;
/// Reads of the journal at once.
const READS: usize = 8;
/// For a request's head, and for a kept connection's next request.
const HEAD_READ: Duration = Duration::from_secs(20);
/// What requests have from the stop on; `run` as a whole is to end within 10 s.
const DRAIN: Duration = Duration::from_secs(5);
const BODY_BYTES: usize = 64 * 1024;
/// A change of a watch set: a million members.
const SET_BODY_BYTES: usize = 64 * 1024 * 1024;
const BUFFER_BYTES: usize = 64 * 1024;

#[derive(Clone)]
struct App {
    handle: Handle,
    metrics: PrometheusHandle,
    /// True from the stop on: what waits ends.
    stopping: watch::Receiver<bool>,
    feeds: Arc<Semaphore>,
    reads: Arc<Semaphore>,
}

/// Serves until `shutdown` is there and the requests under way have ended, or 5 s have passed.
pub async fn serve(
    listener: TcpListener,
    handle: Handle,
    metrics: PrometheusHandle,
    shutdown: impl Future<Output = ()>,
) {
    let (stop, stopping) = watch::channel(false);
    let app = App {
        handle,
        metrics,
        stopping: stopping.clone(),
        feeds: Arc::new(Semaphore::new(FEEDS)),
        reads: Arc::new(Semaphore::new(READS)),
    };
    let service = TowerToHyperService::new(routes(app));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await.expect("this semaphore is never closed");
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = &mut shutdown => break,
            next = next => next,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let connection = serve_connection(stream, service.clone(), stopping.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(error) => {
                // One that the peer gave up, or no file descriptors left: the next may do better, but not at once.
                tracing::warn!(%error, "the http listener could not accept a connection; it goes on");
                tokio::select! {
                    () = &mut shutdown => break,
                    () = tokio::time::sleep(Duration::from_millis(200)) => {}
                }
            }
        }
    }
    drop(listener);
    stop.send_replace(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::info!(open = connections.len(), "http connections that did not end in time are closed");
        connections.shutdown().await;
    }
}

async fn serve_connection(
    stream: TcpStream,
    service: TowerToHyperService<Router>,
    mut stopping: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY on a connection: feeds may be late by some milliseconds");
    }
    let mut connection = pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_READ)
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    let stopped = async { stopping.wait_for(|s| *s).await.is_ok() };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stopped => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an http connection ended early");
    }
}

fn routes(app: App) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .route("/streams", get(feed::list))
        .route("/streams/{stream}", get(feed::stream))
        .route("/plugins/{name}/rollback", post(admin::rollback))
        .route("/plugins/{name}/retry", post(admin::retry))
        .route("/plugins/{name}/upgrade", post(admin::upgrade))
        .route("/outputs/{name}/resume", post(admin::resume))
        .route("/outputs/{name}/replay", post(admin::replay))
        .route("/chains/{name}/accept-reorg", post(admin::accept_reorg))
        .route("/sets", get(sets::list))
        .route("/sets/{name}", get(sets::show).post(sets::edit).put(sets::replace))
        .route("/transactions/{chain}", get(transactions::list).post(transactions::edit))
        .route("/transactions/{chain}/{*key}", get(transactions::show))
        .route("/dead", get(admin::dead_list))
        .route("/dead/{id}", get(admin::dead_show))
        .route("/dead/retry", post(admin::dead_retry))
        .route("/dead/drop", post(admin::dead_drop))
        .fallback(async || Problem(StatusCode::NOT_FOUND, "nothing is here; GET / shows what there is".into()))
        .method_not_allowed_fallback(async || {
            Problem(StatusCode::METHOD_NOT_ALLOWED, "not with this method: GET looks, POST does".into())
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .layer(axum::middleware::from_fn(guard::check))
        .with_state(app)
}

impl App {
    /// Runs a read of the journal away from the async loop.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Journal) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, Problem> {
        let turn = self.reads.clone().acquire_owned().await.expect("this semaphore is never closed");
        let journal = self.handle.journal.clone();
        let done = tokio::task::spawn_blocking(move || {
            // The turn ends with the read, even when nobody waits for its answer any more.
            let _turn = turn;
            read(&*journal)
        })
        .await;
        match done {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                tracing::warn!(%error, "a request could not be answered from the journal");
                Err(Problem(StatusCode::SERVICE_UNAVAILABLE, format!("{error}; nothing is lost: ask again later")))
            }
            Err(error) => {
                tracing::error!(%error, "a read of the journal broke down");
                Err(Problem(StatusCode::INTERNAL_SERVER_ERROR, "a read of the journal broke down; see the log".into()))
            }
        }
    }

    fn status(&self) -> Arc<Status> {
        self.handle.status.borrow().clone()
    }
}

/// What went wrong and what to do next, as `{"error": "..."}`.
#[derive(Debug)]
struct Problem(StatusCode, String);

impl Problem {
    fn bad(why: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, why.into())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

async fn index(State(app): State<App>) -> Result<Response, Problem> {
    let tracks = app.read(|journal| journal.tracks()).await?;
    let html = page::render(&app.status(), &feed::streams(&app.status(), &tracks));
    let headers =
        [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, page::policy())];
    Ok((headers, html).into_response())
}

async fn status(State(app): State<App>) -> Response {
    Json(&*app.status()).into_response()
}

async fn metrics(State(app): State<App>) -> Response {
    telemetry::picture(&app.status());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics.render()).into_response()
}

async fn ready(State(app): State<App>) -> Response {
    let status = app.status();
    if status.ready {
        return Json(json!({ "ready": true })).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "ready": false, "reasons": reasons(&status) }))).into_response()
}

fn reasons(status: &Status) -> Vec<String> {
    let because = |why: &Option<String>| why.as_ref().map_or(String::new(), |w| format!(": {w}"));
    let mut reasons = Vec::new();
    if let Some(why) = &status.journal.paused {
        reasons.push(format!("the journal takes nothing in: {why}"));
    }
    for chain in status.chains.iter().filter(|c| !matches!(c.state.as_str(), "following" | "ended")) {
        reasons.push(format!("chain {} is {}{}", chain.name, chain.state, because(&chain.why)));
    }
    for plugin in &status.plugins {
        for at in plugin.chains.iter().filter(|c| !matches!(c.state.as_str(), "live" | "catching-up")) {
            reasons.push(format!("plugin {} on {} is {}{}", plugin.name, at.chain, at.state, because(&at.why)));
        }
    }
    for output in status.outputs.iter().filter(|o| !matches!(o.state.as_str(), "ok" | "idle" | "starting")) {
        reasons.push(format!("output {} is {}{}", output.name, output.state, because(&output.why)));
    }
    if reasons.is_empty() {
        reasons.push("the process is starting".into());
    }
    reasons
}
