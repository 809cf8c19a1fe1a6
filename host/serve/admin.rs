//! What a person may tell a running process, and the dead letters. `request -> Command -> router -> answer`.
//!
//! Nothing is decided here: the router does it or says why not (409).

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json, value::RawValue};

use super::feed::chain_id;
use super::merge::delivery;
use super::params::{Params, nearest, number};
use super::{App, BODY_BYTES, Problem};
use crate::journal::{DeadFilter, DeadLetter};
use crate::model::{NameError, OutputName, PluginName, StreamId};
use crate::router::handle::{Command, Resend};
use crate::sink::cloudevent;

/// For a body of at most 64 KiB.
const BODY_READ: Duration = Duration::from_secs(10);
const DEAD_DEFAULT: usize = 100;
const DEAD_MOST: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ids {
    ids: Vec<i64>,
}

async fn body<T: DeserializeOwned>(body: Body, takes: &str) -> Result<T, Problem> {
    body_of(body, BODY_BYTES, takes).await
}

pub(super) async fn body_of<T: DeserializeOwned>(body: Body, most: usize, takes: &str) -> Result<T, Problem> {
    // 64 KiB in 10 s, and as much in each further one.
    let within = BODY_READ * u32::try_from(most / BODY_BYTES).unwrap_or(1).clamp(1, 30);
    let read = tokio::time::timeout(within, axum::body::to_bytes(body, most)).await;
    let bytes = match read {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => {
            let why = format!("the body cannot be read ({error}); it may have {most} bytes");
            return Err(Problem(StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        Err(_) => {
            return Err(Problem(
                StatusCode::REQUEST_TIMEOUT,
                format!("the body did not come within {} s", within.as_secs()),
            ));
        }
    };
    let json = if bytes.trim_ascii().is_empty() { b"{}" } else { &bytes[..] };
    serde_json::from_slice(json).map_err(|e| Problem::bad(format!("the body is not what this takes, {takes}: {e}")))
}

async fn ask(app: &App, command: Command) -> Result<Response, Problem> {
    match app.handle.ask(command).await {
        Ok(done) => Ok(Json(json!({ "ok": done })).into_response()),
        Err(why) => Err(Problem(StatusCode::CONFLICT, why)),
    }
}

pub(super) fn name<T>(text: &str, new: impl FnOnce(&str) -> Result<T, NameError>) -> Result<T, Problem> {
    new(text).map_err(|e| Problem(StatusCode::NOT_FOUND, e.to_string()))
}

async fn tell(app: App, uri: Uri, sent: Body, command: Command) -> Result<Response, Problem> {
    Params::of(&uri, &[])?;
    let Nothing {} = body(sent, "an empty body or {}").await?;
    ask(&app, command).await
}

type Named = Path<String>;

pub(super) async fn rollback(
    State(app): State<App>,
    Path(plugin): Named,
    uri: Uri,
    sent: Body,
) -> Result<Response, Problem> {
    tell(app, uri, sent, Command::Rollback { plugin: name(&plugin, PluginName::new)? }).await
}

pub(super) async fn retry(
    State(app): State<App>,
    Path(plugin): Named,
    uri: Uri,
    sent: Body,
) -> Result<Response, Problem> {
    tell(app, uri, sent, Command::Retry { plugin: name(&plugin, PluginName::new)? }).await
}

pub(super) async fn upgrade(
    State(app): State<App>,
    Path(plugin): Named,
    uri: Uri,
    sent: Body,
) -> Result<Response, Problem> {
    tell(app, uri, sent, Command::Upgrade { plugin: name(&plugin, PluginName::new)? }).await
}

pub(super) async fn resume(
    State(app): State<App>,
    Path(output): Named,
    uri: Uri,
    sent: Body,
) -> Result<Response, Problem> {
    tell(app, uri, sent, Command::Resume { output: name(&output, OutputName::new)? }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resent {
    stream: String,
    /// As CAIP-2 has it.
    chain: Option<String>,
    from: u64,
    to: Option<u64>,
    pace: Option<u32>,
}

/// Deliveries a second where nobody says.
const PACE: u32 = 100;

pub(super) async fn replay(
    State(app): State<App>,
    Path(output): Named,
    uri: Uri,
    sent: Body,
) -> Result<Response, Problem> {
    Params::of(&uri, &[])?;
    const TAKES: &str = r#"{"stream": "whale.large", "from": 100} and "to", "chain", "pace" where wanted"#;
    let Resent { stream, chain, from, to, pace } = body(sent, TAKES).await?;
    let (to, pace) = (to.unwrap_or(u64::MAX), pace.unwrap_or(PACE));
    if from > to || from > i64::MAX as u64 || pace == 0 || pace > 100_000 {
        let why = format!(
            "blocks {from} to {to} at {pace} a second: \"from\" is not after \"to\", and \"pace\" is 1 to 100000"
        );
        return Err(Problem::bad(why));
    }
    let stream: StreamId = stream.parse().map_err(|error| Problem::bad(format!("stream: {error}")))?;
    let (output, chain) = (name(&output, OutputName::new)?, chain.as_deref().map(chain_id).transpose()?);
    ask(&app, Command::Resend(Resend { stream, chain, output, blocks: from..=to, pace })).await
}

pub(super) async fn accept_reorg(
    State(app): State<App>,
    Path(chain): Named,
    uri: Uri,
    sent: Body,
) -> Result<Response, Problem> {
    tell(app, uri, sent, Command::AcceptReorg { chain }).await
}

pub(super) async fn dead_retry(State(app): State<App>, uri: Uri, sent: Body) -> Result<Response, Problem> {
    dead(app, uri, sent, true).await
}

pub(super) async fn dead_drop(State(app): State<App>, uri: Uri, sent: Body) -> Result<Response, Problem> {
    dead(app, uri, sent, false).await
}

async fn dead(app: App, uri: Uri, sent: Body, again: bool) -> Result<Response, Problem> {
    const TAKES: &str = r#"{"ids": [1, 2]}"#;
    Params::of(&uri, &[])?;
    let Ids { ids } = body(sent, TAKES).await?;
    if ids.is_empty() {
        return Err(Problem::bad(format!("no ids are given; the body takes {TAKES} with ids of GET /dead")));
    }
    ask(&app, Command::Dead { ids, again }).await
}

fn letter(letter: &DeadLetter) -> Value {
    json!({
        "id": letter.id,
        "output": letter.output,
        "stream": letter.stream.to_string(),
        "chain": letter.chain.to_string(),
        "cursor": letter.offset.to_string(),
        "lane_key": letter.lane_key,
        "delivery": letter.delivery.to_string(),
        "op": letter.op,
        "attempts": letter.attempts,
        "why": letter.why,
        // Beyond 9999, which RFC 3339 cannot write, there is no time.
        "time": cloudevent::rfc3339(letter.at_ms / 1000),
    })
}

pub(super) async fn dead_list(State(app): State<App>, uri: Uri) -> Result<Response, Problem> {
    let params = Params::of(&uri, &["output", "after", "limit"])?;
    let limit = params.number("limit", "a number of dead letters, 1 to 1000", 1..=DEAD_MOST, DEAD_DEFAULT)?;
    let after = params.number("after", "the \"next\" of an earlier answer", 0..=i64::MAX, 0)?;
    let output =
        params.text("output").map(|o| OutputName::new(o).map_err(|e| Problem::bad(e.to_string()))).transpose()?;
    let filter = DeadFilter { id: None, output: output.clone() };
    let letters = app.read(move |journal| journal.dead(&filter, after, limit)).await?;
    let status = app.status();
    // An output that was taken out of the configuration may still have dead letters.
    if let Some(output) = output.filter(|o| letters.is_empty() && !status.outputs.iter().any(|s| s.name == o.as_str()))
    {
        let known: Vec<&str> = status.outputs.iter().map(|s| s.name.as_str()).collect();
        let meant =
            nearest(output.as_str(), known.iter().copied()).map_or(String::new(), |n| format!(" (did you mean {n}?)"));
        let why = format!("there is no output '{output}'{meant}; there are: {}", known.join(", "));
        return Err(Problem(StatusCode::NOT_FOUND, why));
    }
    let next = letters.last().map_or(after, |l| l.id);
    let items: Vec<Value> = letters.iter().map(letter).collect();
    Ok(Json(json!({ "items": items, "next": next.to_string() })).into_response())
}

pub(super) async fn dead_show(State(app): State<App>, Path(id): Named, uri: Uri) -> Result<Response, Problem> {
    Params::of(&uri, &[])?;
    let missing = || Problem(StatusCode::NOT_FOUND, format!("there is no dead letter '{id}'; GET /dead lists them"));
    let number: i64 = number(&id).ok_or_else(missing)?;
    let found = app
        .read(move |journal| {
            let filter = DeadFilter { id: Some(number), output: None };
            let Some(dead) = journal.dead(&filter, 0, 1)?.pop() else { return Ok(None) };
            let tracks = journal.tracks()?;
            let track = tracks.iter().find(|t| t.stream == dead.stream && t.chain == dead.chain);
            let entry = match track {
                Some(track) => journal.entries(track.id, dead.offset.saturating_sub(1), 1, None)?.1.pop(),
                None => None,
            };
            let event = entry
                .filter(|e| e.offset == dead.offset)
                .map(|e| cloudevent::encode(&delivery(dead.delivery, &dead.stream, e)));
            Ok(Some((dead, event)))
        })
        .await?;
    let (dead, event) = found.ok_or_else(missing)?;
    let mut shown = letter(&dead);
    // The event as it would be sent, with the digits of its payload as they are.
    let event: Option<Box<RawValue>> = event.map(|e| serde_json::from_slice(&e)).transpose().map_err(|e| {
        Problem(StatusCode::INTERNAL_SERVER_ERROR, format!("the event of this dead letter cannot be shown: {e}"))
    })?;
    #[derive(serde::Serialize)]
    struct Shown<'a> {
        #[serde(flatten)]
        letter: &'a mut Value,
        event: Option<Box<RawValue>>,
    }
    Ok(Json(Shown { letter: &mut shown, event }).into_response())
}
