//! Transactions whose fate somebody waits for: watched, looked at, and left. `request -> Ask -> router`.

use alloy_primitives::{Address, B256};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::admin::body_of;
use super::params::Params;
use super::{App, Problem, SET_BODY_BYTES};
use crate::router::tracking::Ask;
use crate::track::{Key, Wish};

/// Of one durable write.
const AT_ONCE: usize = 1_000;
const PAGE_DEFAULT: usize = 1_000;
const PAGE_MOST: usize = 10_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    #[serde(default)]
    add: Vec<Watched>,
    #[serde(default)]
    remove: Vec<String>,
}

/// A hash, or a sender and a nonce.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Watched {
    hash: Option<B256>,
    sender: Option<Address>,
    nonce: Option<u64>,
    #[serde(default)]
    confirmations: Vec<u64>,
    label: Option<String>,
}

impl Watched {
    fn wish(self) -> Result<Wish, Problem> {
        let key = match (self.hash, self.sender, self.nonce) {
            (Some(hash), None, None) => Key::Hash(hash),
            (None, Some(sender), Some(nonce)) => Key::Nonce(sender, nonce),
            _ => return Err(Problem::bad("each of \"add\" has a \"hash\", or a \"sender\" and a \"nonce\"")),
        };
        Wish { key, confirmations: self.confirmations, label: self.label }.checked().map_err(Problem::bad)
    }
}

fn key(text: &str) -> Result<Key, Problem> {
    text.parse().map_err(Problem::bad)
}

/// A chain that is not there, or has not answered yet.
fn problem(why: String) -> Problem {
    let status =
        if why.starts_with("there is no chain") { StatusCode::NOT_FOUND } else { StatusCode::SERVICE_UNAVAILABLE };
    Problem(status, why)
}

pub(super) async fn edit(
    State(app): State<App>,
    Path(chain): Path<String>,
    uri: Uri,
    sent: Body,
) -> Result<Response, Problem> {
    Params::of(&uri, &[])?;
    let takes = r#"{"add": [{"hash": "0x..."} or {"sender": "0x...", "nonce": N}, each with "confirmations": [N] and "label" where wanted], "remove": ["0x..." or "SENDER/NONCE"]}"#;
    let Edit { add, remove } = body_of(sent, SET_BODY_BYTES, takes).await?;
    let wishes: Vec<Wish> = add.into_iter().map(Watched::wish).collect::<Result<_, _>>()?;
    let keys: Vec<Key> = remove.iter().map(|text| key(text)).collect::<Result<_, _>>()?;
    let (mut added, mut removed) = (0, 0);
    let sofar = |added, removed| format!("{added} were added and {removed} removed before it; send it again");
    for part in wishes.chunks(AT_ONCE) {
        let done = app.handle.track(&chain, |reply| Ask::Watch(part.to_vec(), reply)).await;
        let done = done.map_err(problem)?;
        added += done.map_err(|why| problem(format!("{why}; {}", sofar(added, removed))))?;
    }
    for key in keys {
        let done = app.handle.track(&chain, |reply| Ask::Forget(key, reply)).await.map_err(problem)?;
        removed += usize::from(done.map_err(|why| problem(format!("{why}; {}", sofar(added, removed))))?);
    }
    Ok(Json(json!({ "added": added, "removed": removed })).into_response())
}

fn item(key: Key, mut told: Value) -> Value {
    told["key"] = json!(key.to_string());
    told
}

pub(super) async fn list(State(app): State<App>, Path(chain): Path<String>, uri: Uri) -> Result<Response, Problem> {
    let params = Params::of(&uri, &["after", "limit"])?;
    let limit = params.number("limit", "a number of transactions, 1 to 10000", 1..=PAGE_MOST, PAGE_DEFAULT)?;
    let after = params.text("after").map(key).transpose()?;
    let page = app.handle.track(&chain, |reply| Ask::List(after, limit, reply)).await.map_err(problem)?;
    let next = if page.len() == limit { page.last().map(|(key, _)| key.to_string()) } else { None };
    let items: Vec<Value> = page.into_iter().map(|(key, told)| item(key, told)).collect();
    Ok(Json(json!({ "items": items, "next": next })).into_response())
}

pub(super) async fn show(
    State(app): State<App>,
    Path((chain, text)): Path<(String, String)>,
    uri: Uri,
) -> Result<Response, Problem> {
    Params::of(&uri, &[])?;
    let key = key(&text)?;
    let told = app.handle.track(&chain, |reply| Ask::Show(key, reply)).await.map_err(problem)?;
    let why = || format!("{key} is not watched on {chain}; POST /transactions/{chain} watches it");
    let told = told.ok_or_else(|| Problem(StatusCode::NOT_FOUND, why()))?;
    Ok(Json(item(key, told)).into_response())
}
