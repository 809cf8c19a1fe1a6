//! Watch sets: looked at, and edited while the process runs. `request -> Change -> router`.
//!
//! A large change is done in many edits, so that nothing waits long behind one; each is durable before the next begins,
//! and a request that is repeated changes nothing twice.

use std::collections::{BTreeMap, HashSet};

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::admin::{body_of, name};
use super::params::Params;
use super::{App, Problem, SET_BODY_BYTES};
use crate::model::{ChainId, Member, SetName};
use crate::router::edits::Change;

/// Members of one edit: some milliseconds of the journal's writer.
const AT_ONCE: usize = 2_000;
const PAGE_DEFAULT: usize = 1_000;
const PAGE_MOST: usize = 100_000;

/// A member as it is written in JSON. Read here, so that the error names it.
struct Text(Member);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    #[serde(default)]
    add: Vec<Text>,
    #[serde(default)]
    remove: Vec<Text>,
    from: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole {
    members: Vec<Text>,
    from: Option<u64>,
}

pub(super) async fn list(State(app): State<App>, uri: Uri) -> Result<Response, Problem> {
    Params::of(&uri, &[])?;
    let sets = app.handle.sets.read();
    let items: Vec<Value> = sets.list().map(|(name, members)| json!({ "name": name, "members": members })).collect();
    Ok(Json(json!({ "items": items, "bytes": sets.bytes() })).into_response())
}

pub(super) async fn show(State(app): State<App>, Path(set): Path<String>, uri: Uri) -> Result<Response, Problem> {
    let params = Params::of(&uri, &["after", "limit"])?;
    let limit = params.number("limit", "a number of members, 1 to 100000", 1..=PAGE_MOST, PAGE_DEFAULT)?;
    let after = params.text("after").map(str::parse::<Member>).transpose();
    let after = after.map_err(|e| Problem::bad(format!("after: {e}")))?;
    let name = known(&app, &set)?;
    let sets = app.handle.sets.clone();
    let page = tokio::task::spawn_blocking(move || {
        let sets = sets.read();
        sets.get(&name).map_or(vec![], |id| sets.page(id, after, limit))
    });
    let members = page.await.map_err(|e| Problem(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    let next = if members.len() == limit { members.last().map(ToString::to_string) } else { None };
    let items: Vec<String> = members.iter().map(ToString::to_string).collect();
    Ok(Json(json!({ "items": items, "next": next })).into_response())
}

/// A set that somebody named or filled.
fn known(app: &App, set: &str) -> Result<SetName, Problem> {
    let name = name(set, SetName::new)?;
    let sets = app.handle.sets.read();
    if sets.get(&name).is_some() {
        return Ok(name);
    }
    let names: Vec<&str> = sets.list().map(|(name, _)| name.as_str()).collect();
    let why = format!("there is no watch set '{set}'; there are: {}", names.join(", "));
    Err(Problem(StatusCode::NOT_FOUND, why))
}

fn members(texts: Vec<Text>) -> Vec<Member> {
    texts.into_iter().map(|text| text.0).collect()
}

pub(super) async fn edit(
    State(app): State<App>,
    Path(set): Path<String>,
    uri: Uri,
    sent: Body,
) -> Result<Response, Problem> {
    Params::of(&uri, &[])?;
    let set = name(&set, SetName::new)?;
    let takes = r#"{"add": ["0x..."], "remove": ["0x..."], "from": BLOCK}"#;
    let Edit { add, remove, from } = body_of(sent, SET_BODY_BYTES, takes).await?;
    change(&app, set, members(add), members(remove), from).await
}

/// After it, the set has these members and no others.
pub(super) async fn replace(
    State(app): State<App>,
    Path(set): Path<String>,
    uri: Uri,
    sent: Body,
) -> Result<Response, Problem> {
    Params::of(&uri, &[])?;
    let set = name(&set, SetName::new)?;
    let Whole { members: whole, from } =
        body_of(sent, SET_BODY_BYTES, r#"{"members": ["0x..."], "from": BLOCK}"#).await?;
    let whole = members(whole);
    let sets = app.handle.sets.clone();
    let (of, keep) = (set.clone(), whole.iter().copied().collect::<HashSet<_>>());
    let gone = tokio::task::spawn_blocking(move || {
        let sets = sets.read();
        let now = sets.get(&of).map(|id| sets.members(id));
        now.into_iter().flatten().filter(|member| !keep.contains(member)).collect::<Vec<_>>()
    });
    let gone = gone.await.map_err(|e| Problem(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    change(&app, set, whole, gone, from).await
}

async fn change(
    app: &App,
    set: SetName,
    add: Vec<Member>,
    remove: Vec<Member>,
    from: Option<u64>,
) -> Result<Response, Problem> {
    let (mut added, mut removed) = (0, 0);
    let mut begins: BTreeMap<ChainId, u64> = BTreeMap::new();
    let adds = add.chunks(AT_ONCE).map(|add| Change { add: add.to_vec(), remove: vec![], from });
    let removes = remove.chunks(AT_ONCE).map(|remove| Change { add: vec![], remove: remove.to_vec(), from: None });
    for change in adds.chain(removes) {
        let done = app.handle.edit(set.clone(), change).await;
        let done = done.map_err(|why| {
            let sofar = format!("{added} were added and {removed} removed before it; send it again");
            Problem(StatusCode::SERVICE_UNAVAILABLE, format!("{why}; {sofar}"))
        })?;
        (added, removed) = (added + done.added, removed + done.removed);
        for (chain, block) in done.begins {
            let first = begins.entry(chain).or_default();
            *first = (*first).max(block);
        }
    }
    let begins: serde_json::Map<String, Value> =
        begins.into_iter().map(|(chain, block)| (chain.to_string(), block.into())).collect();
    Ok(Json(json!({ "added": added, "removed": removed, "from": begins })).into_response())
}
