//! Streams as feeds. `journal -> merge -> feed -> reader`, by pages with a long poll, as server-sent events, over a WebSocket
//! (`socket`), or whole (`download`).
//!
//! The cursor is the journal's offset. It means the same after a restart, and everything behind it has been given.
//! A feed has no memory of its readers and buffers nothing for them: the next entries are read when the connection
//! has room for them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write;
use std::ops::RangeInclusive;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::merge::{Ask, Page, Read, last_offset, read};
use super::params::{Params, nearest, number};
use super::{App, Problem};
use super::{download, socket};
use crate::journal::TrackInfo;
use crate::model::{ChainId, Status, StreamId, StreamSpec};

const LIMIT_DEFAULT: usize = 100;
const LIMIT_MOST: usize = 1000;
const WAIT_MOST_S: u64 = 60;
/// A page ends with the event that reaches this.
const PAGE_BYTES: usize = 8 << 20;
/// What is read for an SSE connection at once; the least that it holds when its reader stands still.
const SSE_EVENTS: usize = 64;
const SSE_BYTES: usize = 256 << 10;
/// Proxies and phones give up on a connection that is silent for 30 s and more.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// One stream as `GET /streams` lists it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct StreamInfo {
    pub name: String,
    pub chains: Vec<String>,
    pub description: String,
    pub schema: Option<serde_json::Value>,
    /// Of its last entry; "0" where there is none yet.
    pub cursor: String,
}

/// The streams of the journal, and those of running plugins that have no track yet.
pub(super) fn streams(status: &Status, tracks: &[TrackInfo]) -> Vec<StreamInfo> {
    let mut all: BTreeMap<String, (u64, StreamInfo)> = BTreeMap::new();
    for name in announced(status) {
        let (chains, description, cursor) = (Vec::new(), String::new(), "0".into());
        all.insert(name.clone(), (0, StreamInfo { name, chains, description, schema: None, cursor }));
    }
    for track in tracks {
        let name = track.stream.to_string();
        let (last, info) = all.entry(name.clone()).or_insert_with(|| {
            let (description, cursor) = (String::new(), "0".into());
            (0, StreamInfo { name, chains: Vec::new(), description, schema: None, cursor })
        });
        *last = track.last_offset.max(*last);
        info.cursor = last.to_string();
        info.chains.push(track.chain.to_string());
        info.description.clone_from(&track.spec.description);
        info.schema.clone_from(&track.spec.schema);
    }
    all.into_values().map(|(_, info)| info).collect()
}

/// Streams of running plugins, by full name.
fn announced(status: &Status) -> impl Iterator<Item = String> {
    status.plugins.iter().flat_map(|plugin| {
        let prefix = format!("{}.", plugin.name);
        plugin.streams.iter().map(move |s| if s.starts_with(&prefix) { s.clone() } else { format!("{prefix}{s}") })
    })
}

pub(super) async fn list(State(app): State<App>, uri: Uri) -> Result<Response, Problem> {
    Params::of(&uri, &[])?;
    let tracks = app.read(|journal| journal.tracks()).await?;
    Ok(Json(serde_json::json!({ "streams": streams(&app.status(), &tracks) })).into_response())
}

enum After {
    Cursor(u64),
    Latest,
}

fn after(text: &str, whose: &str) -> Result<After, Problem> {
    match text {
        "latest" => Ok(After::Latest),
        text => number(text).map(After::Cursor).ok_or_else(|| {
            Problem::bad(format!(
                "{whose}={text}: it takes the \"next\" of an earlier answer, 0 for the beginning, or latest"
            ))
        }),
    }
}

pub(super) async fn stream(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    uri: Uri,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let known = &["after", "limit", "wait", "chain", "lane_key", "from_block", "to_block", "format"];
    let params = Params::of(&uri, known)?;
    let format = Format::of(&params, &headers)?;
    let (most, default) = match format {
        Format::Ndjson => (usize::MAX, usize::MAX),
        Format::Parquet => (download::MOST_ROWS, download::MOST_ROWS),
        Format::Json | Format::Events => (LIMIT_MOST, LIMIT_DEFAULT),
    };
    let limit = params.number("limit", &format!("a number of events, 1 to {most}"), 1..=most, default)?;
    let wait = params.number("wait", "a number of seconds, 0 to 60", 0..=WAIT_MOST_S, 0)?;
    let chain = params.text("chain").map(chain_id).transpose()?;
    let events = format == Format::Events;
    // EventSource sends it when it connects again, with the address it was made with.
    let resumed = headers.get("last-event-id").filter(|id| events && !id.is_empty());
    let after = match resumed {
        Some(id) => after(id.to_str().map_err(|_| Problem::bad("Last-Event-ID is not a text"))?, "Last-Event-ID")?,
        None => after(params.text("after").unwrap_or("0"), "after")?,
    };

    let (tracks, last) = app
        .read(|journal| {
            let tracks = journal.tracks()?;
            let last = last_offset(journal, &tracks);
            Ok((tracks, last))
        })
        .await?;
    let stream = known_stream(&app.status(), &tracks, &name, chain)?;
    let after = match after {
        After::Latest => last,
        After::Cursor(cursor) if cursor <= last => cursor,
        After::Cursor(cursor) => {
            let why = format!(
                "cursor {cursor} lies beyond the journal's last, {last}: it comes from another journal. What was read \
                 with it may not fit this one: drop it and read from after=0"
            );
            return Err(Problem(StatusCode::GONE, why));
        }
    };
    let place = app.feeds.clone().try_acquire_owned();
    let full = |_| {
        let why = "too many feeds are open at once; close some, or ask again later";
        Problem(StatusCode::SERVICE_UNAVAILABLE, why.into())
    };
    let (lane_key, blocks) = (params.text("lane_key").map(str::to_owned), blocks(&params)?);
    let ask = |limit, bytes| {
        let (stream, lane_key, blocks) = (stream.clone(), lane_key.clone(), blocks.clone());
        Ask { stream, chain, lane_key, blocks, limit, bytes }
    };
    if headers.contains_key(header::UPGRADE) {
        let upgrade = upgrade.map_err(|error| Problem::bad(format!("not a WebSocket that is understood: {error}")))?;
        return Ok(socket::open(upgrade, app, ask(SSE_EVENTS, SSE_BYTES), after, place.map_err(full)?));
    }
    if events {
        let ask = ask(SSE_EVENTS, SSE_BYTES);
        return Ok(Sse { app, ask, after, state: SseState::Begin, _place: place.map_err(full)? }.into_response());
    }
    match format {
        Format::Ndjson => {
            return Ok(download::lines(app, ask(LIMIT_MOST, PAGE_BYTES), after, limit, last, place.map_err(full)?));
        }
        Format::Parquet => {
            let bare = || StreamSpec { name: stream.stream.clone(), description: String::new(), schema: None };
            let spec = tracks.iter().find(|t| t.stream == stream).map_or_else(bare, |t| t.spec.clone());
            // A file takes its time to make: it has a place as those have who wait.
            let _place = place.map_err(full)?;
            return download::parquet(&app, &ask(limit, download::MOST_BYTES), after, last, spec).await;
        }
        Format::Json | Format::Events => {}
    }
    let place = if wait > 0 { Some(place.map_err(full)?) } else { None };
    let ask = ask(limit, PAGE_BYTES);
    let page = poll(&app, &ask, after, Duration::from_secs(wait)).await?;
    drop(place);
    Ok(([(header::CONTENT_TYPE, "application/json")], json(&page)).into_response())
}

/// How the events are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// A page.
    Json,
    Events,
    /// All that there is, to the end.
    Ndjson,
    Parquet,
}

impl Format {
    const NAMES: [(&str, &str, Self); 4] = [
        ("json", "application/json", Self::Json),
        ("sse", "text/event-stream", Self::Events),
        ("ndjson", "application/x-ndjson", Self::Ndjson),
        ("parquet", "application/vnd.apache.parquet", Self::Parquet),
    ];

    /// By the parameter, which a browser's address can have, or by what is accepted.
    fn of(params: &Params, headers: &HeaderMap) -> Result<Self, Problem> {
        if let Some(text) = params.text("format") {
            let found = Self::NAMES.iter().find(|(name, ..)| *name == text).map(|(.., format)| *format);
            return found.ok_or_else(|| Problem::bad(format!("format={text}: it takes json, sse, ndjson or parquet")));
        }
        let accepts = headers.get_all(header::ACCEPT).iter().filter_map(|a| a.to_str().ok());
        let mut kinds = accepts.flat_map(|a| a.split(',')).filter_map(|k| k.split(';').next());
        let found = kinds.find_map(|kind| {
            let named = Self::NAMES.iter().find(|(_, mime, _)| kind.trim().eq_ignore_ascii_case(mime));
            named.map(|(.., format)| *format).filter(|format| *format != Self::Json)
        });
        Ok(found.unwrap_or(Self::Json))
    }
}

fn blocks(params: &Params) -> Result<Option<RangeInclusive<u64>>, Problem> {
    let end = |key, default| params.number(key, "a block's number", 0..=u64::MAX, default);
    let (from, to) = (end("from_block", 0)?, end("to_block", u64::MAX)?);
    if from > to {
        return Err(Problem::bad(format!("from_block={from} is after to_block={to}")));
    }
    Ok((from > 0 || to < u64::MAX).then_some(from..=to))
}

pub(super) fn chain_id(text: &str) -> Result<ChainId, Problem> {
    text.strip_prefix("eip155:")
        .and_then(number)
        .map(ChainId)
        .ok_or_else(|| Problem::bad(format!("chain={text}: chain takes a CAIP-2 id, as eip155:1")))
}

fn known_stream(
    status: &Status,
    tracks: &[TrackInfo],
    name: &str,
    chain: Option<ChainId>,
) -> Result<StreamId, Problem> {
    let known: Vec<String> = streams(status, tracks).into_iter().map(|s| s.name).collect();
    if !known.iter().any(|k| k == name) {
        let why = if known.is_empty() {
            format!("there is no stream '{name}': no plugin has been loaded yet; see /status")
        } else {
            let meant = nearest(name, known.iter().map(String::as_str));
            let meant = meant.map_or(String::new(), |n| format!(" (did you mean {n}?)"));
            format!("there is no stream '{name}'{meant}; there are: {}", known.join(", "))
        };
        return Err(Problem(StatusCode::NOT_FOUND, why));
    }
    let stream: StreamId = name.parse().map_err(|e| Problem(StatusCode::NOT_FOUND, format!("{e}")))?;
    let chains: Vec<ChainId> = tracks.iter().filter(|t| t.stream == stream).map(|t| t.chain).collect();
    if let Some(chain) = chain.filter(|c| !chains.contains(c)) {
        let on = chains.iter().map(ChainId::to_string).collect::<Vec<_>>().join(", ");
        let on = if on.is_empty() { "none yet".into() } else { on };
        return Err(Problem(StatusCode::NOT_FOUND, format!("{name} is not on {chain}; its chains: {on}")));
    }
    Ok(stream)
}

/// A page, as soon as there is something for it; an empty one when the time is over or the process stops.
async fn poll(app: &App, ask: &Ask, mut after: u64, wait: Duration) -> Result<Page, Problem> {
    let until = Instant::now() + wait;
    let mut tail = app.handle.journal.tail();
    let mut stopping = app.stopping.clone();
    loop {
        let page = read_page(app, ask, after).await?;
        if !page.items.is_empty() || wait.is_zero() {
            return Ok(page);
        }
        after = page.next;
        tokio::select! {
            more = tail.wait_for(|tail| *tail > after) => if more.is_err() { return Ok(page) },
            () = tokio::time::sleep_until(until) => return Ok(page),
            _ = stopping.wait_for(|s| *s) => return Ok(page),
        }
    }
}

pub(super) async fn read_page(app: &App, ask: &Ask, after: u64) -> Result<Page, Problem> {
    let ask = ask.clone();
    match app.read(move |journal| read(journal, &ask, after)).await? {
        Read::Page(page) => Ok(page),
        Read::Gone(kept) => {
            let why = format!(
                "cursor {after} lies before what the journal keeps, which is what came after {kept} ([journal] retain): \
                 entries between them have gone. Read from after=0, and take what you hold as incomplete"
            );
            Err(Problem(StatusCode::GONE, why))
        }
    }
}

fn json(page: &Page) -> Vec<u8> {
    let mut body = Vec::with_capacity(64 + page.items.iter().map(|i| i.event.len() + 1).sum::<usize>());
    body.extend_from_slice(b"{\"items\":[");
    for (i, item) in page.items.iter().enumerate() {
        if i > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&item.event);
    }
    body.extend_from_slice(format!("],\"next\":\"{}\"}}\n", page.next).as_bytes());
    body
}

/// A connection of server-sent events (WHATWG HTML, section 9.2): `id` is the cursor, `event` the op.
struct Sse {
    app: App,
    ask: Ask,
    after: u64,
    state: SseState,
    _place: OwnedSemaphorePermit,
}

enum SseState {
    Begin,
    Reading,
    Ended,
}

impl Sse {
    /// What to send next; called when the connection has room for it. `None` ends it, and its reader comes again.
    async fn next(&mut self) -> Option<Vec<u8>> {
        match self.state {
            SseState::Ended => return None,
            SseState::Begin => {
                self.state = SseState::Reading;
                // An id without data moves the reader's Last-Event-ID: who began at the latest and heard nothing
                // before the connection broke goes on where it began.
                return Some(format!("retry: 1000\nid: {}\n\n", self.after).into_bytes());
            }
            SseState::Reading => {}
        }
        let mut tail = self.app.handle.journal.tail();
        let mut stopping = self.app.stopping.clone();
        let keep_alive = tokio::time::sleep(KEEP_ALIVE);
        tokio::pin!(keep_alive);
        loop {
            if *stopping.borrow() {
                return None;
            }
            match read_page(&self.app, &self.ask, self.after).await {
                Ok(page) if page.items.is_empty() => self.after = page.next,
                Ok(page) => {
                    self.after = page.next;
                    return Some(sse(&page));
                }
                // Why is said to who comes again.
                Err(_) => {
                    self.state = SseState::Ended;
                    return Some(b": the stream cannot be read on from here; come again\n\n".to_vec());
                }
            }
            tokio::select! {
                more = tail.wait_for(|tail| *tail > self.after) => if more.is_err() { return None },
                () = &mut keep_alive => return Some(b": keep-alive\n\n".to_vec()),
                _ = stopping.wait_for(|s| *s) => return None,
            }
        }
    }
}

impl IntoResponse for Sse {
    fn into_response(self) -> Response {
        let chunks = futures::stream::unfold(self, async |mut sse: Sse| {
            let chunk = sse.next().await?;
            Some((Ok::<_, Infallible>(chunk), sse))
        });
        // Nginx holds back what it proxies unless told not to.
        let headers = [(header::CONTENT_TYPE.as_str(), "text/event-stream"), ("x-accel-buffering", "no")];
        (headers, Body::from_stream(chunks)).into_response()
    }
}

fn sse(page: &Page) -> Vec<u8> {
    let mut text = Vec::with_capacity(page.items.iter().map(|i| i.event.len() + 48).sum());
    let mut head = String::new();
    for item in &page.items {
        head.clear();
        write!(head, "id: {}\nevent: {}\ndata: ", item.delivery.offset, item.delivery.op.as_str())
            .expect("a text takes any text");
        text.extend_from_slice(head.as_bytes());
        text.extend_from_slice(&item.event); // one line: the encoder promises it
        text.extend_from_slice(b"\n\n");
    }
    text
}
