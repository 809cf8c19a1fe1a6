//! A .wasm file as the commands see it: loaded as the process would load it, and what it says of itself.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value, json};
use sha2::Digest;

use super::Trouble;
use crate::model::{EventKind, Manifest, Place, Subscription};
use crate::plugin::Limits;
use crate::plugin::engine::Engine;
use alloy_primitives::{Address, hex};

#[derive(Clone, Debug)]
pub struct Artifact {
    pub manifest: Manifest,
    pub digest: String,
    pub bytes: u64,
    /// Names of the interfaces that it imports.
    pub imports: Vec<String>,
}

/// For clap: `--config JSON`.
pub fn parse_config(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text)
        .map_err(|error| format!("it must be a JSON object such as '{{\"min\": \"1000\"}}': {error}"))
}

/// Compiles the file and asks it to describe itself, with its configuration.
pub fn load(path: &Path, config: &Map<String, Value>) -> anyhow::Result<Artifact> {
    let bytes = std::fs::read(path).with_context(|| {
        Trouble::usage(
            format!("cannot read {}", path.display()),
            "name a .wasm file; 'chainweir plugin build' makes one",
        )
    })?;
    describe(&bytes, config).with_context(|| {
        Trouble::new(
            format!("{} is not a plugin that runs here", path.display()),
            "'chainweir plugin new NAME' makes one that does",
        )
    })
}

fn describe(bytes: &[u8], config: &Map<String, Value>) -> anyhow::Result<Artifact> {
    // Without a cache: what is only looked at leaves nothing behind.
    let engine = Engine::new(None)?;
    let config = serde_json::to_string(config)?;
    let manifest = engine.load(bytes)?.describe(&config, &Limits::default())?;
    let digest = hex::encode(sha2::Sha256::digest(bytes));
    Ok(Artifact { manifest, digest, bytes: bytes.len() as u64, imports: vec![] })
}

fn kind(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Block => "blocks",
        EventKind::Transaction => "transactions",
        EventKind::Log => "logs",
        EventKind::Transfer => "transfers",
        EventKind::Creation => "contract creations",
        EventKind::Pending => "pending transactions",
    }
}

/// What one subscription asks for, in words.
fn subscription(s: &Subscription) -> String {
    fn list<T: ToString>(out: &mut String, what: &str, values: &[T]) {
        /// More than these are counted, not shown.
        const SHOWN: usize = 3;
        if values.is_empty() {
            return;
        }
        let shown: Vec<String> = values.iter().take(SHOWN).map(ToString::to_string).collect();
        out.push_str(&format!(", {what} {}", shown.join(" or ")));
        if values.len() > SHOWN {
            out.push_str(&format!(" or {} more", values.len() - SHOWN));
        }
    }
    let mut out = kind(s.kind).to_owned();
    let set = |place| s.sets_at(place).map(|name| format!("set {name}"));
    let place = |out: &mut String, what: &str, values: Vec<String>, place| {
        let all: Vec<String> = values.into_iter().chain(set(place)).collect();
        list(out, what, &all);
    };
    let texts = |values: &[Address]| values.iter().map(ToString::to_string).collect::<Vec<_>>();
    list(&mut out, "on", &s.chains);
    place(&mut out, "address", texts(&s.addresses), Place::Address);
    for (n, topics) in (0u8..).zip(&s.topics) {
        let topics = topics.iter().map(ToString::to_string).collect();
        place(&mut out, &format!("topic{n}"), topics, Place::Topic(n));
    }
    place(&mut out, "from", texts(&s.senders), Place::Sender);
    place(&mut out, "to", texts(&s.receivers), Place::Receiver);
    if let Some(factory) = &s.factory {
        let makers: Vec<String> = texts(&factory.makers);
        let makers = if makers.is_empty() { "any contract".to_owned() } else { makers.join(" or ") };
        out.push_str(&format!(", of contracts that {makers} made (event {})", factory.event));
    }
    if let Some(min) = s.min_value {
        out.push_str(&format!(", of at least {min} wei"));
    }
    if !s.decode.is_empty() {
        out.push_str(", decoded");
    }
    match s.success {
        Some(true) => out.push_str(", successful"),
        Some(false) => out.push_str(", reverted"),
        None => {}
    }
    out
}

impl Artifact {
    pub fn in_a_line(&self) -> String {
        let m = &self.manifest;
        let streams: Vec<&str> = m.streams.iter().map(|s| s.name.as_str()).collect();
        let kinds: BTreeSet<&str> = m.subscriptions.iter().map(|s| kind(s.kind)).collect();
        let kinds: Vec<&str> = kinds.into_iter().collect();
        let or_none = |list: &[&str]| if list.is_empty() { "none".to_owned() } else { list.join(", ") };
        format!("{} {}, streams: {}, gets: {}", m.name, m.version, or_none(&streams), or_none(&kinds))
    }

    pub fn text(&self) -> String {
        let m = &self.manifest;
        let mut out = format!("{} {}\n", m.name, m.version);
        let mut say = |name: &str, text: &str| {
            writeln!(out, "{name:<14}{text}").expect("writing to a string cannot fail");
        };
        if !m.description.is_empty() {
            say("", &m.description);
        }
        say("digest", &self.digest);
        say("size", &format!("{} bytes", self.bytes));
        say("state version", &m.state_version.to_string());
        for s in &m.subscriptions {
            say("gets", &subscription(s));
        }
        for s in &m.streams {
            let schema = if s.schema.is_some() { "" } else { " (not JSON)" };
            say("emits", &format!("{}.{}{schema}  {}", m.name, s.name, s.description));
        }
        for import in &self.imports {
            say("imports", import);
        }
        out
    }

    pub fn json(&self) -> Value {
        let m = &self.manifest;
        json!({
            "name": m.name.as_str(),
            "version": m.version,
            "description": m.description,
            "digest": self.digest,
            "bytes": self.bytes,
            "state_version": m.state_version,
            "subscriptions": m.subscriptions.iter().map(|s| json!({
                "kind": kind(s.kind),
                "chains": s.chains.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "addresses": s.addresses,
                "topics": s.topics,
                "senders": s.senders,
                "receivers": s.receivers,
                "success": s.success,
                "min_value": s.min_value.map(|v| v.to_string()),
                "sets": s.sets.iter().map(|(place, set)| json!({ "place": format!("{place:?}"), "set": set })).collect::<Vec<_>>(),
                "factory": s.factory.as_ref().map(|f| json!({
                    "makers": f.makers, "event": f.event, "child": format!("{:?}", f.child), "since": f.since,
                })),
                "decode": s.decode.iter().map(ToString::to_string).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
            "streams": m.streams.iter().map(|s| json!({
                "name": s.name.as_str(),
                "description": s.description,
                "schema": s.schema,
            })).collect::<Vec<_>>(),
            "imports": self.imports,
        })
    }
}
