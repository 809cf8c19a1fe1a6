//! Between the host's two calls and the author's handlers: reads the configuration, says what the plugin is, and hands each event of a
//! batch to the handlers that asked for it. `host -> Loaded -> handlers -> Out -> host`.
//!
//! The same code runs natively in tests and in wasm; nothing here knows of either.

use std::fmt::Display;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering};

use schemars::generate::SchemaSettings;

use crate::batch::{Batch, BlockView, LogView, Record, TransactionView, TransferView};
use crate::error::{Error, Fault, Result};
use crate::state;
use crate::subscription::{EventKind, Subscription};
use crate::verdict::{ContentType, Verdicts};

/// A named stream of emissions. Implemented by [`stream`](macro@crate::stream).
#[diagnostic::on_unimplemented(message = "`{Self}` is not a stream", label = "put #[stream] on the struct `{Self}`")]
pub trait Stream {
    /// Name of the stream: with the plugin's name it is the address of what is emitted.
    const NAME: &'static str;
    /// What is emitted there, for people.
    const DESCRIPTION: &'static str;
    /// What a payload is; `None` where events pass as they are and the host writes the payload.
    const CONTENT: Option<ContentType>;
    /// JSON Schema of the payload; empty where it is not JSON.
    fn schema() -> String;
    /// Appends the payload.
    fn write(&self, out: &mut Vec<u8>) -> Result;
    /// Emissions of the same key keep their order at a destination; `None` for the host's default.
    fn lane_key(&self) -> Option<String> {
        None
    }
}

/// The plugin has the stream `S`. Implemented by `#[plugin(streams(...))]`.
#[diagnostic::on_unimplemented(
    message = "the plugin `{Self}` does not have this stream",
    label = "list the struct's name: #[plugin(streams(...))]"
)]
pub trait Emits<S: Stream> {
    /// Place of the stream in the manifest.
    const INDEX: u16;
}

/// Made from the plugin's own table of the configuration. Implemented by [`config`](macro@crate::config).
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be read from a configuration",
    label = "put #[config] on the struct `{Self}`, also when it has no fields"
)]
pub trait Configured: Sized {
    /// Reads a JSON object. The error names the field.
    fn from_config(json: &str) -> Result<Self, String>;
}

/// A stream, as the manifest has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSpec {
    /// Its name.
    pub name: String,
    /// What is emitted there.
    pub description: String,
    /// JSON Schema of the payloads; empty where they are not JSON.
    pub schema: String,
}

/// What the host needs to know about a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Name of the plugin.
    pub name: String,
    /// Version of the plugin's crate.
    pub version: String,
    /// What it does.
    pub description: String,
    /// Raised when the meaning of what is kept in `state` changes.
    pub state_version: u32,
    /// Which events reach it.
    pub subscriptions: Vec<Subscription>,
    /// What it emits.
    pub streams: Vec<StreamSpec>,
}

/// Which events a handler gets.
#[derive(Clone, Debug)]
pub struct Filters(Vec<Option<Vec<Subscription>>>);

impl Filters {
    /// A handler need not be asked again where the host's match already decides: it is the only one for its kind of event.
    fn new(handlers: &[(EventKind, Vec<Subscription>)]) -> Self {
        // Transfers and creations come as one kind of record.
        let one_record = |kind| if kind == EventKind::Creation { EventKind::Transfer } else { kind };
        let alone = |kind| handlers.iter().filter(|(other, _)| one_record(*other) == one_record(kind)).count() == 1;
        Self(handlers.iter().map(|(kind, wanted)| (!alone(*kind)).then(|| wanted.clone())).collect())
    }
    /// Does the handler ask for the log?
    #[inline]
    pub fn log(&self, handler: usize, log: &LogView<'_>) -> bool {
        self.0[handler].as_ref().is_none_or(|wanted| wanted.iter().any(|s| s.wants_log(log)))
    }
    /// Does the handler ask for the transfer or creation?
    #[inline]
    pub fn transfer(&self, handler: usize, transfer: &TransferView<'_>) -> bool {
        self.0[handler].as_ref().is_none_or(|wanted| wanted.iter().any(|s| s.wants_transfer(transfer)))
    }
    /// Does the handler ask for the transaction?
    #[inline]
    pub fn transaction(&self, handler: usize, tx: &TransactionView<'_>) -> bool {
        self.0[handler].as_ref().is_none_or(|wanted| wanted.iter().any(|s| s.wants_transaction(tx)))
    }
    /// Does the handler ask for the transaction while it is pending?
    #[inline]
    pub fn pending(&self, handler: usize, tx: &TransactionView<'_>) -> bool {
        self.0[handler].as_ref().is_none_or(|wanted| wanted.iter().any(|s| s.wants_pending(tx)))
    }
}

/// What [`plugin`](macro@crate::plugin) makes of an `impl` block. Not written by hand.
pub trait Plugin: Configured + 'static {
    /// Name of the plugin.
    const NAME: &'static str;
    /// Version of its crate.
    const VERSION: &'static str;
    /// What it does.
    const DESCRIPTION: &'static str;
    /// Version of what it keeps in `state`.
    const STATE_VERSION: u32;
    /// Its streams, in the order of [`Emits::INDEX`].
    fn streams() -> Vec<StreamSpec>;
    /// Runs once after the configuration was read.
    fn init(&mut self) -> Result;
    /// What each handler asks for.
    fn handlers(&self) -> Vec<(EventKind, Vec<Subscription>)>;
    /// Hands a block to the handlers.
    fn on_block(&self, block: &BlockView<'_>, out: &mut Out<Self>) -> Result;
    /// Hands a transaction to the handlers that asked for it.
    fn on_transaction(&self, filters: &Filters, tx: &TransactionView<'_>, out: &mut Out<Self>) -> Result;
    /// Hands a transaction that is in no block yet to the handlers that asked for it.
    fn on_pending(&self, filters: &Filters, tx: &TransactionView<'_>, out: &mut Out<Self>) -> Result;
    /// Hands a transfer or creation to the handlers that asked for it.
    fn on_transfer(&self, filters: &Filters, transfer: &TransferView<'_>, out: &mut Out<Self>) -> Result;
    /// Hands a log to the handlers that asked for it.
    fn on_log(&self, filters: &Filters, log: &LogView<'_>, out: &mut Out<Self>) -> Result;
}

/// Where a handler puts what it has to say about the event at hand.
#[derive(Debug)]
pub struct Out<P> {
    verdicts: Verdicts,
    event: u32,
    plugin: PhantomData<fn() -> P>,
}

impl<P> Out<P> {
    fn new() -> Self {
        Self { verdicts: Verdicts::new(), event: 0, plugin: PhantomData }
    }

    /// Emits a payload to its stream. Rejects the event where the payload cannot be written.
    #[inline]
    pub fn emit<S: Stream>(&mut self, payload: &S) -> Result
    where
        P: Emits<S>,
    {
        let key = payload.lane_key();
        self.write(key.as_deref().unwrap_or(""), payload)
    }

    /// Emits a payload under a lane key: emissions of the same key keep their order at a destination, others may overtake.
    pub fn emit_keyed<S: Stream>(&mut self, key: impl Display, payload: &S) -> Result
    where
        P: Emits<S>,
    {
        self.write(&key.to_string(), payload)
    }

    fn write<S: Stream>(&mut self, key: &str, payload: &S) -> Result
    where
        P: Emits<S>,
    {
        match S::CONTENT {
            Some(content) => self.verdicts.emit_with(self.event, P::INDEX, content, key, |out| payload.write(out)),
            None => {
                self.verdicts.pass(self.event, P::INDEX);
                Ok(())
            }
        }
    }

    /// Lets the event pass as it is to the stream of this place in the manifest. `#[log(pass = "...")]` comes here.
    #[doc(hidden)]
    #[inline]
    pub fn pass_to(&mut self, stream: u16) {
        self.verdicts.pass(self.event, stream);
    }
}

/// Which event is being processed, for the panic hook: `NOWHERE` between calls. Only an instance, which is one thread, reads it.
static AT: AtomicU32 = AtomicU32::new(NOWHERE);
const NOWHERE: u32 = u32::MAX;

/// Index of the event that is being processed.
#[cfg(target_arch = "wasm32")]
pub(crate) fn event_at_hand() -> Option<u32> {
    Some(AT.load(Ordering::Relaxed)).filter(|at| *at != NOWHERE)
}

/// A plugin with its configuration.
#[derive(Debug)]
pub struct Loaded<P> {
    plugin: P,
    filters: Filters,
    subscriptions: Vec<Subscription>,
}

impl<P: Plugin> Loaded<P> {
    /// Reads the configuration, a JSON object. The error names the field.
    pub fn new(config: &str) -> Result<Self, String> {
        let mut plugin = P::from_config(config)?;
        plugin.init().map_err(|error| format!("configuration: {error}"))?;
        let handlers = plugin.handlers();
        let mut subscriptions = Vec::new();
        for wanted in handlers.iter().flat_map(|(_, wanted)| wanted) {
            if !subscriptions.contains(wanted) {
                subscriptions.push(wanted.clone());
            }
        }
        Ok(Self { plugin, filters: Filters::new(&handlers), subscriptions })
    }

    /// The plugin itself.
    pub fn plugin(&self) -> &P {
        &self.plugin
    }

    /// What the host needs to know.
    pub fn manifest(&self) -> Manifest {
        Manifest {
            name: P::NAME.to_owned(),
            version: P::VERSION.to_owned(),
            description: P::DESCRIPTION.to_owned(),
            state_version: P::STATE_VERSION,
            subscriptions: self.subscriptions.clone(),
            streams: P::streams(),
        }
    }

    /// Processes a batch: events in, verdicts out, both in the batch layout.
    pub fn process(&self, batch: &[u8]) -> Result<Vec<u8>, Fault> {
        let malformed = |error: crate::batch::Malformed| Fault::Reject(error.to_string());
        let mut out = Out::<P>::new();
        state::begin_call();
        for event in Batch::read(batch).map_err(malformed)?.events() {
            let event = event.map_err(malformed)?;
            if !event.subscribed {
                continue;
            }
            AT.store(event.index, Ordering::Relaxed);
            out.event = event.index;
            let mark = out.verdicts.mark();
            let done = match &event.record {
                Record::Block(block) => self.plugin.on_block(block, &mut out),
                Record::Transaction(tx) => self.plugin.on_transaction(&self.filters, tx, &mut out),
                Record::Log(log) => self.plugin.on_log(&self.filters, log, &mut out),
                Record::Pending(tx) => self.plugin.on_pending(&self.filters, tx, &mut out),
                Record::Transfer(transfer) => self.plugin.on_transfer(&self.filters, transfer, &mut out),
            };
            match done {
                Ok(()) => state::keep_event(),
                Err(error) if error.is_retry() => {
                    state::begin_call();
                    return Err(Fault::Retry(format!("{error} ({:?})", event.record)));
                }
                Err(error) => {
                    out.verdicts.rewind(mark);
                    state::undo_event();
                    out.verdicts.reject(event.index, error.message());
                }
            }
        }
        AT.store(NOWHERE, Ordering::Relaxed);
        state::finish_call();
        Ok(out.verdicts.finish())
    }
}

/// What a handler may return: nothing, or a `Result`.
pub trait Handled {
    /// As a result.
    fn handled(self) -> Result;
}
impl Handled for () {
    #[inline]
    fn handled(self) -> Result {
        Ok(())
    }
}
impl<E: Into<Error>> Handled for Result<(), E> {
    #[inline]
    fn handled(self) -> Result {
        self.map_err(Into::into)
    }
}

/// What a handler of `#[log(pass = "...")]` may return: whether the event passes.
#[diagnostic::on_unimplemented(
    message = "a handler with `pass` says whether the event passes: it returns `bool` or `Result<bool>`"
)]
pub trait Passes {
    /// As a result.
    fn passes(self) -> Result<bool>;
}
impl Passes for bool {
    #[inline]
    fn passes(self) -> Result<bool> {
        Ok(self)
    }
}
impl<E: Into<Error>> Passes for Result<bool, E> {
    #[inline]
    fn passes(self) -> Result<bool> {
        self.map_err(Into::into)
    }
}

/// The manifest's entry for a stream.
pub fn spec_of<S: Stream>() -> StreamSpec {
    StreamSpec { name: S::NAME.to_owned(), description: S::DESCRIPTION.to_owned(), schema: S::schema() }
}

/// JSON Schema of what serde writes for `T`, with nothing but itself to refer to.
pub fn schema_of<T: schemars::JsonSchema>() -> String {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|s| s.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>().as_value().to_string()
}

/// Reads a configuration; the error names the field by its path.
pub fn read_config<'de, T: serde::Deserialize<'de>>(json: &'de str) -> Result<T, String> {
    let mut reader = serde_json::Deserializer::from_str(json);
    let config = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let cause = error.inner().to_string();
        // serde_json's place in the text means nothing to whoever wrote TOML.
        let cause = cause.split(" at line ").next().unwrap_or(&cause);
        if path == "." { format!("configuration: {cause}") } else { format!("configuration: `{path}`: {cause}") }
    })?;
    reader.end().map_err(|error| format!("configuration: {error}"))?;
    Ok(config)
}

/// Is it a name of a plugin or stream? Lower-case letters, digits, `-` and `_`; at most 64 bytes, beginning with a letter.
pub const fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > 64 || !bytes[0].is_ascii_lowercase() {
        return false;
    }
    let mut i = 0;
    while i < bytes.len() {
        let b = bytes[i];
        if !(b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_') {
            return false;
        }
        i += 1;
    }
    true
}

/// Are all of them names, and no two the same?
pub const fn are_streams(names: &[&str]) -> bool {
    let mut i = 0;
    while i < names.len() {
        if !is_name(names[i]) {
            return false;
        }
        let mut j = 0;
        while j < i {
            if same(names[i], names[j]) {
                return false;
            }
            j += 1;
        }
        i += 1;
    }
    true
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}
