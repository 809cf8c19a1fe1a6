//! Runs a plugin natively, as plain Rust, under `cargo test`.
//!
//! A [`Tester`] stands in for the host: it matches events against the plugin's subscriptions, encodes them, lets the plugin process them, reads the
//! answer as strictly as the host does, and keeps state only when the whole block succeeded. Blocks are made up ([`Block`], [`Tx`],
//! [`Log`]) or recorded ([`records`]).
//!
//! ```
//! use chainweir_sdk::{prelude::*, testing::{Block, Tester}};
//!
//! sol! { event Transfer(address indexed from, address indexed to, uint256 value); }
//! #[config]
//! struct Whale { min: U256 }
//! #[plugin(name = "whale")]
//! impl Whale {
//!     #[log(pass = "large")]
//!     fn transfer(&self, t: Transfer) -> bool { t.value >= self.min }
//! }
//!
//! fn main() {
//!     let mut whale = Tester::<Whale>::with_config(r#"{"min": "100"}"#);
//!     let moved = |value| Transfer { from: Address::ZERO, to: Address::ZERO, value: U256::from(value) };
//!     let token = Address::repeat_byte(1);
//!     let emissions = whale.block(&Block::new(1).event(token, &moved(99)).event(token, &moved(100)));
//!     assert_eq!(emissions.len(), 1);
//!     assert_eq!(emissions[0].stream, "large");
//! }
//! ```

pub mod answer;
mod chain;
pub(crate) mod memory;
pub mod records;

use std::io::BufRead;
use std::path::Path;

use serde_json::{Value, json};

pub use chain::{Block, Log, Transfer, Tx, encode_batch};

use crate::error::Fault;
use crate::host::Level;
use crate::plugin::{Loaded, Manifest, Plugin};
use crate::subscription::EventKind;
use crate::tracking::Watched;
use crate::verdict::ContentType;
use answer::Verdict;
use memory::Memory;

/// Which event of its block something was said about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The block itself.
    Block,
    /// The transaction at this place in the block.
    Tx(u32),
    /// The log at this place among the logs of the block.
    Log(u32),
    /// The transfer at this place among those of the block.
    Transfer(u32),
    /// A transaction that is in no block.
    Pending,
}

/// Something that the plugin emitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emission {
    /// Number of the block.
    pub block: u64,
    /// The event of the block.
    pub at: At,
    /// Name of the stream.
    pub stream: String,
    /// Empty for the host's default.
    pub lane_key: String,
    /// `None` where the event passed as it is.
    pub payload: Option<(ContentType, Vec<u8>)>,
}

impl Emission {
    /// The payload as JSON; `null` where the event passed as it is.
    ///
    /// # Panics
    /// Where the payload is text or bytes.
    pub fn json(&self) -> Value {
        match &self.payload {
            None => Value::Null,
            Some((ContentType::Json, payload)) => {
                serde_json::from_slice(payload).expect("checked when the answer was read")
            }
            Some((other, _)) => panic!("the payload is {other:?}, not JSON"),
        }
    }

    /// The payload as text: JSON too.
    ///
    /// # Panics
    /// Where the event passed as it is, or the payload is bytes.
    pub fn text(&self) -> &str {
        match &self.payload {
            Some((ContentType::Json | ContentType::Text, payload)) => {
                std::str::from_utf8(payload).expect("checked when the answer was read")
            }
            other => panic!("the payload is no text: {other:?}"),
        }
    }

    /// As a line of a golden file.
    fn line(&self) -> String {
        let at = match self.at {
            At::Block => "block".to_owned(),
            At::Tx(i) => format!("tx {i}"),
            At::Log(i) => format!("log {i}"),
            At::Transfer(i) => format!("transfer {i}"),
            At::Pending => "pending".to_owned(),
        };
        let mut line = serde_json::Map::new();
        line.insert("block".into(), json!(self.block));
        line.insert("at".into(), json!(at));
        line.insert("stream".into(), json!(self.stream));
        if !self.lane_key.is_empty() {
            line.insert("key".into(), json!(self.lane_key));
        }
        match &self.payload {
            None => line.insert("pass".into(), json!(true)),
            Some((ContentType::Json, _)) => line.insert("data".into(), self.json()),
            Some((ContentType::Text, _)) => line.insert("text".into(), json!(self.text())),
            Some((ContentType::Bytes, bytes)) => {
                line.insert("bytes".into(), json!(alloy_primitives::hex::encode_prefixed(bytes)))
            }
        };
        Value::Object(line).to_string()
    }
}

/// Everything that was said of a block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// In the order of the answer.
    pub emissions: Vec<Emission>,
    /// Events that were rejected, with the message.
    pub rejected: Vec<(At, String)>,
}

/// A host of one plugin.
#[derive(Debug)]
pub struct Tester<P> {
    loaded: Loaded<P>,
    memory: Memory,
    events_per_call: usize,
}

impl<P: Plugin> Tester<P> {
    /// The plugin without configuration.
    ///
    /// # Panics
    /// Where the plugin needs one.
    pub fn new() -> Self {
        Self::with_config("{}")
    }

    /// The plugin with a configuration, a JSON object.
    ///
    /// # Panics
    /// Where the plugin refuses the configuration.
    pub fn with_config(json: &str) -> Self {
        Self::try_with_config(json).unwrap_or_else(|why| panic!("{why}"))
    }

    /// The plugin with a configuration, or why it is refused.
    pub fn try_with_config(json: &str) -> Result<Self, String> {
        let mut memory = Memory { config: json.to_owned(), ..Memory::default() };
        let loaded = memory::lend(&mut memory, || Loaded::new(&crate::host::config()))?;
        Ok(Self { loaded, memory, events_per_call: usize::MAX })
    }

    /// Hands over at most this many events in a call. What a plugin emits must not depend on it.
    #[must_use]
    pub fn events_per_call(mut self, events: usize) -> Self {
        self.events_per_call = events.max(1);
        self
    }

    /// What the plugin says of itself.
    pub fn manifest(&self) -> Manifest {
        self.loaded.manifest()
    }

    /// The plugin, as configured.
    pub fn plugin(&self) -> &P {
        self.loaded.plugin()
    }

    /// Processes a block and returns what was emitted.
    ///
    /// # Panics
    /// Where the plugin rejects an event or asks to retry: see [`Tester::try_block`].
    pub fn block(&mut self, block: &Block) -> Vec<Emission> {
        match self.try_block(block) {
            Ok(Answer { emissions, rejected }) if rejected.is_empty() => emissions,
            Ok(Answer { rejected, .. }) => panic!("block {}: rejected: {rejected:?}", block.number),
            Err(fault) => panic!("block {}: {fault:?}", block.number),
        }
    }

    /// Processes many blocks, as [`Tester::block`] does one.
    ///
    /// # Panics
    /// As [`Tester::block`].
    pub fn blocks<'a>(&mut self, blocks: impl IntoIterator<Item = &'a Block>) -> Vec<Emission> {
        blocks.into_iter().flat_map(|block| self.block(block)).collect()
    }

    /// Processes recorded blocks, as [`records::read`] reads them.
    ///
    /// # Panics
    /// As [`Tester::block`], and where the lines are not recorded blocks.
    pub fn replay(&mut self, lines: impl BufRead) -> Vec<Emission> {
        let blocks = records::read(lines).unwrap_or_else(|why| panic!("{why}"));
        self.blocks(&blocks)
    }

    /// Shows a transaction that is in no block yet. What is written to `state` is not kept, as with the host.
    ///
    /// # Panics
    /// As [`Tester::block`].
    pub fn pending(&mut self, tx: Tx) -> Vec<Emission> {
        let before = self.memory.state.clone();
        let block = Block::new(0).tx(tx);
        let manifest = self.manifest();
        let wanted =
            |tx: &crate::batch::TransactionView<'_>| manifest.subscriptions.iter().any(|s| s.wants_pending(tx));
        let record = block.encode_pending(0);
        let batch = encode_batch(block.chain_id, &[&block.encode(false), &record]);
        let read = crate::batch::Batch::read(&batch).and_then(|batch| batch.events().nth(1).transpose());
        let calls = match read.expect("encoded above").expect("two records").record {
            crate::batch::Record::Pending(tx) if wanted(&tx) => {
                vec![vec![(At::Block, block.encode(false)), (At::Pending, record)]]
            }
            _ => vec![],
        };
        let answered = self.answer(&block, &manifest, calls);
        self.memory.state = before;
        match answered {
            Ok(Answer { emissions, rejected }) if rejected.is_empty() => emissions,
            other => panic!("a pending transaction: {other:?}"),
        }
    }

    /// Processes a block. At a fault nothing of it is kept, as with the host.
    ///
    /// # Panics
    /// Where the answer is not in the batch layout: a bug of this SDK.
    pub fn try_block(&mut self, block: &Block) -> Result<Answer, Fault> {
        let manifest = self.manifest();
        let calls = self.calls(block, &manifest);
        self.answer(block, &manifest, calls)
    }

    fn answer(&mut self, block: &Block, manifest: &Manifest, calls: Vec<Vec<(At, Vec<u8>)>>) -> Result<Answer, Fault> {
        let names: Vec<String> = manifest.streams.iter().map(|stream| stream.name.clone()).collect();
        let before = self.memory.state.clone();
        let mut answer = Answer::default();
        for call in calls {
            let records: Vec<&[u8]> = call.iter().map(|(_, record)| record.as_slice()).collect();
            let batch = encode_batch(block.chain_id, &records);
            let (loaded, memory) = (&self.loaded, &mut self.memory);
            let bytes = match memory::lend(memory, || loaded.process(&batch)) {
                Ok(bytes) => bytes,
                Err(fault) => {
                    self.memory.state = before;
                    return Err(fault);
                }
            };
            let verdicts =
                answer::read(&bytes, call.len() as u32, names.len() as u16).expect("the SDK writes whole answers");
            for verdict in verdicts {
                let at = |event: u32| call[event as usize].0;
                let emission = |event, stream: u16, lane_key, payload| Emission {
                    block: block.number,
                    at: at(event),
                    stream: names[usize::from(stream)].clone(),
                    lane_key,
                    payload,
                };
                match verdict {
                    Verdict::Pass { event, stream } => {
                        answer.emissions.push(emission(event, stream, String::new(), None));
                    }
                    Verdict::Emit { event, stream, content_type, lane_key, payload } => {
                        answer.emissions.push(emission(event, stream, lane_key, Some((content_type, payload))));
                    }
                    Verdict::Reject { event, message } => answer.rejected.push((at(event), message)),
                    Verdict::Retry { message, .. } => {
                        self.memory.state = before;
                        return Err(Fault::Retry(message));
                    }
                }
            }
        }
        Ok(answer)
    }

    /// The records of each call: what of the block the plugin subscribed to. Empty where that is nothing.
    fn calls(&self, block: &Block, manifest: &Manifest) -> Vec<Vec<(At, Vec<u8>)>> {
        let subscribed = manifest.subscriptions.iter().any(|s| s.kind == EventKind::Block);
        let context = block.encode(false);
        let mut events: Vec<(At, Vec<u8>)> = Vec::new();
        let mut push_wanted = |at, record: Vec<u8>| {
            // Read back with the views, so that the match is the one of the handlers.
            let batch = encode_batch(block.chain_id, &[&context, &record]);
            let read = crate::batch::Batch::read(&batch).and_then(|batch| batch.events().nth(1).transpose());
            let wanted = match read.expect("encoded above").expect("two records").record {
                crate::batch::Record::Block(_) | crate::batch::Record::Pending(_) => false,
                crate::batch::Record::Transaction(tx) => {
                    manifest.subscriptions.iter().any(|s| s.wants_transaction(&tx))
                }
                crate::batch::Record::Log(log) => manifest.subscriptions.iter().any(|s| s.wants_log(&log)),
                crate::batch::Record::Transfer(t) => manifest.subscriptions.iter().any(|s| s.wants_transfer(&t)),
            };
            if wanted {
                events.push((at, record));
            }
        };
        let (mut log_index, mut transfer_index) = (0, 0);
        for (i, tx) in block.transactions.iter().enumerate() {
            push_wanted(At::Tx(i as u32), block.encode_tx(i));
            for transfer in &tx.transfers {
                push_wanted(At::Transfer(transfer_index), block.encode_transfer(i, transfer, transfer_index));
                transfer_index += 1;
            }
            for log in &tx.logs {
                push_wanted(At::Log(log_index), block.encode_log(i, log, log_index));
                log_index += 1;
            }
        }
        let mut calls: Vec<Vec<(At, Vec<u8>)>> = Vec::new();
        if subscribed && events.is_empty() {
            calls.push(vec![(At::Block, block.encode(true))]);
        }
        for (i, chunk) in events.chunks(self.events_per_call).enumerate() {
            let mut call = vec![(At::Block, block.encode(subscribed && i == 0))];
            call.extend_from_slice(chunk);
            calls.push(call);
        }
        calls
    }

    /// Runs `f` with this plugin's state at hand: to read what a [`Table`](crate::state::Table) holds, or to prepare it.
    pub fn state<R>(&mut self, f: impl FnOnce() -> R) -> R {
        memory::lend(&mut self.memory, || {
            crate::state::begin_call();
            let result = f();
            crate::state::finish_call();
            result
        })
    }

    /// Every key and value in the state, as bytes.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.memory.state.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// The transactions that the plugin asked to be watched so far, each as often as it asked.
    pub fn watched(&self) -> &[Watched] {
        &self.memory.watched
    }

    /// What the plugin logged so far.
    pub fn lines(&self) -> &[(Level, String)] {
        &self.memory.lines
    }
}

impl<P: Plugin> Default for Tester<P> {
    fn default() -> Self {
        Self::new()
    }
}

/// Compares emissions with a golden file of one JSON object a line. With the environment variable `UPDATE_GOLDEN=1` it writes the file instead.
///
/// # Panics
/// Where they differ, naming the first line that does, or where the file cannot be read.
pub fn golden(path: impl AsRef<Path>, emissions: &[Emission]) {
    let path = path.as_ref();
    let found: Vec<String> = emissions.iter().map(Emission::line).collect();
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        let text: String = found.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(path, text).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
        return;
    }
    let text = std::fs::read_to_string(path)
        .unwrap_or_else(|e| panic!("cannot read {}: {e}. UPDATE_GOLDEN=1 writes it", path.display()));
    let expected: Vec<&str> = text.lines().collect();
    for i in 0..expected.len().max(found.len()) {
        let (expected, found) =
            (expected.get(i).copied().unwrap_or("(nothing)"), found.get(i).map_or("(nothing)", |l| l));
        assert!(
            expected == found
                || serde_json::from_str::<Value>(expected).ok() == serde_json::from_str::<Value>(found).ok(),
            "{} line {}: expected {expected}\n  found {found}\nUPDATE_GOLDEN=1 accepts what was found",
            path.display(),
            i + 1,
        );
    }
}
