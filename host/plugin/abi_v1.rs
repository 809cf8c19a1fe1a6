//! `chainweir:plugin/processor@0.1`: the one place that knows how this version of the boundary looks from the
//! host's side. Makes instances, describes them, calls them, and says what a failed call was. A later version
//! gets a file of its own beside this one.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use alloy_primitives::{Address, B256};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{HasSelf, InstancePre, Linker, ResourceType};
use wasmtime::{PoolConcurrencyLimitError, Store, Trap, WasmBacktrace};

use super::capabilities::{Capability, Grants, Host, Level, LogGate, Stopped, link_wasi, one_line};
use super::engine::{Compiled, LoadError};
use super::overlay::Overlay;
use super::{Digest, Limits};
use crate::model::batch::LAYOUT_VERSION;
use crate::model::{
    Child, EventAbi, EventKind, Factory, Manifest, Place, PluginName, SetName, StreamName, StreamSpec, Subscription,
};
use crate::track::{Key, Wish};

mod wit {
    wasmtime::component::bindgen!({ path: "sdk/wit", world: "plugin", imports: { default: trappable } });
}

use wit::chainweir::plugin::{config, log, state, tracking};
use wit::exports::chainweir::plugin::processor;

/// Starting may take longer than a call: an interpreter sets itself up.
const START_DEADLINE_MS: u64 = 2_000;
/// Beside the answer itself, for what else crosses in one call of the host.
const CROSSING_BYTES: usize = 1 << 20;
const DESCRIPTION_BYTES: usize = 4096;
/// A manifest becomes tracks, places in the index and lines of `status`, which all plugins share.
const STREAMS: usize = 256;
const SCHEMA_BYTES: usize = 64 << 10;
const SUBSCRIPTIONS: usize = 1024;
/// Combinations of addresses and topics, of all subscriptions together.
const CONDITIONS: usize = 200_000;

/// Why a call did not do its work, named by what can be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CallError {
    /// Nobody's fault for now.
    Again(String),
    /// The plugin said no to the whole batch; the instance is well.
    Rejected(String),
    /// The deadline passed; on a busy machine a second try may do.
    Overrun(String),
    /// Trap, ceiling or nonsense; the instance is dead.
    Broken(String),
    /// The plugin's fault, but no event's: it does not start, or the whole step reached a ceiling.
    Unblamable(String),
}

/// What makes an instance of one plugin, again and again.
#[derive(Clone)]
pub(super) struct Maker {
    compiled: Compiled,
    pre: wit::PluginPre<Host>,
    limits: Limits,
    config: Arc<str>,
    log: Arc<Mutex<LogGate>>,
}

/// A live guest. After an error other than `Rejected` it is dead: drop it.
pub(super) struct Instance {
    store: Store<Host>,
    guest: wit::Plugin,
    compiled: Compiled,
    deadline_ms: u64,
}

impl Maker {
    pub(super) fn new(
        compiled: &Compiled,
        who: String,
        limits: &Limits,
        config: Arc<str>,
        grants: &Grants,
    ) -> Result<Self, LoadError> {
        let refused = |e: wasmtime::Error| LoadError::refused(format!("it cannot be linked to this host: {e:#}"));
        let pre = link(compiled, grants).and_then(wit::PluginPre::new).map_err(refused)?;
        let log = LogGate::new(who, limits.log_lines_per_second);
        Ok(Self { compiled: compiled.clone(), pre, limits: limits.clone(), config, log })
    }

    pub(super) fn make(&self) -> Result<Instance, CallError> {
        let host = Host::new(self.limits.memory_mib, self.config.clone(), self.log.clone());
        let mut store = Store::new(&self.compiled.engine.wasm, host);
        store.limiter(|host| host.limiter());
        store.set_hostcall_fuel(self.limits.answer_bytes.max(self.limits.state_write_bytes) + CROSSING_BYTES);
        store.epoch_deadline_trap();
        let deadline_ms = self.limits.deadline_ms.max(START_DEADLINE_MS);
        store.set_epoch_deadline(deadline_ms);
        let running = self.compiled.engine.ticker.run();
        let made = self.pre.instantiate(&mut store);
        drop(running);
        match made {
            Ok(guest) => {
                Ok(Instance { store, guest, compiled: self.compiled.clone(), deadline_ms: self.limits.deadline_ms })
            }
            Err(e) => Err(named(&e, store.data(), "while it started", deadline_ms)),
        }
    }
}

impl Instance {
    /// Bytes of linear memory.
    pub(super) fn memory_bytes(&self) -> usize {
        self.store.data().memory_bytes()
    }

    fn call<R>(
        &mut self,
        what: &str,
        deadline_ms: u64,
        act: impl FnOnce(&wit::Plugin, &mut Store<Host>) -> wasmtime::Result<R>,
    ) -> Result<R, CallError> {
        self.store.set_epoch_deadline(deadline_ms);
        let running = self.compiled.engine.ticker.run();
        let done = act(&self.guest, &mut self.store);
        drop(running);
        done.map_err(|e| named(&e, self.store.data(), what, deadline_ms))
    }

    /// One batch in, one answer out. `state` comes back whatever happens.
    pub(super) fn process(
        &mut self,
        batch: &[u8],
        time: u64,
        hash: [u8; 32],
        state: Overlay,
    ) -> (Result<Vec<u8>, CallError>, Overlay) {
        let host = self.store.data_mut();
        host.begin(time, hash);
        host.state = Some(state);
        let answer = self.call("in `process`", self.deadline_ms, |guest, store| {
            guest.chainweir_plugin_processor().call_process(store, batch)
        });
        let state = self.store.data_mut().state.take().expect("put there above; nothing else takes it");
        let answer = answer.and_then(|answer| match answer {
            Ok(bytes) => {
                self.store.data().print_said();
                Ok(bytes)
            }
            Err(processor::Fault::Retry(why)) => {
                Err(CallError::Again(format!("the plugin asked to wait: {}", one_line(&why, 1024))))
            }
            Err(processor::Fault::Reject(why)) => {
                Err(CallError::Rejected(format!("the plugin rejected it: {}", one_line(&why, 1024))))
            }
        });
        (answer, state)
    }

    fn describe(&mut self) -> Result<processor::Manifest, CallError> {
        self.store.data_mut().begin(0, [0; 32]);
        let deadline_ms = self.deadline_ms.max(START_DEADLINE_MS);
        self.call("in `describe`", deadline_ms, |guest, store| guest.chainweir_plugin_processor().call_describe(store))
    }
}

impl Compiled {
    /// Starts the plugin, asks what it is, and checks every word of the answer.
    pub fn describe(&self, config_json: &str, limits: &Limits) -> Result<Manifest, LoadError> {
        let who = format!("(new, {:.12})", self.digest().to_string());
        let maker = Maker::new(self, who, limits, config_json.into(), &Grants::default())?;
        let said = maker.make().and_then(|mut instance| instance.describe());
        let manifest = said.map_err(|e| match e {
            CallError::Again(why) => LoadError::Again { why },
            CallError::Rejected(why)
            | CallError::Overrun(why)
            | CallError::Broken(why)
            | CallError::Unblamable(why) => LoadError::Refused { why },
        })?;
        checked(manifest).map_err(|why| LoadError::refused(format!("its manifest cannot be accepted: {why}")))
    }
}

impl config::Host for Host {
    fn get(&mut self) -> wasmtime::Result<String> {
        Ok(self.config())
    }
}

impl log::Host for Host {
    fn write(&mut self, level: log::Level, message: String) -> wasmtime::Result<()> {
        let level = match level {
            log::Level::Error => Level::Error,
            log::Level::Warn => Level::Warn,
            log::Level::Info => Level::Info,
            log::Level::Debug => Level::Debug,
        };
        Host::log(self, level, &message);
        Ok(())
    }
}

type Bytes = Vec<u8>;

impl state::Host for Host {
    fn get(&mut self, key: Bytes) -> wasmtime::Result<Option<Bytes>> {
        self.with_state(|state| state.get(&key))
    }
    fn get_many(&mut self, keys: Vec<Bytes>) -> wasmtime::Result<Vec<Option<Bytes>>> {
        self.with_state(|state| state.get_many(&keys))
    }
    fn set(&mut self, key: Bytes, value: Bytes) -> wasmtime::Result<()> {
        self.with_state(|state| state.write(key, Some(value)))
    }
    fn set_many(&mut self, entries: Vec<(Bytes, Bytes)>) -> wasmtime::Result<()> {
        self.with_state(|state| entries.into_iter().try_for_each(|(key, value)| state.write(key, Some(value))))
    }
    fn delete(&mut self, key: Bytes) -> wasmtime::Result<()> {
        self.with_state(|state| state.write(key, None))
    }
    fn scan(&mut self, prefix: Bytes, after: Option<Bytes>, limit: u32) -> wasmtime::Result<Vec<(Bytes, Bytes)>> {
        self.with_state(|state| state.scan(&prefix, after.as_deref(), limit))
    }
}

impl tracking::Host for Host {
    fn watch(
        &mut self,
        transaction: tracking::Transaction,
        confirmations: Vec<u64>,
        label: Option<String>,
    ) -> wasmtime::Result<()> {
        let key = match &transaction {
            tracking::Transaction::Hash(hash) => B256::try_from(hash.as_slice()).ok().map(Key::Hash),
            tracking::Transaction::Nonce((sender, nonce)) => {
                Address::try_from(sender.as_slice()).ok().map(|sender| Key::Nonce(sender, *nonce))
            }
        };
        let key = key.ok_or_else(|| Stopped::Ceiling("it asked to watch a hash or sender of a wrong length".into()))?;
        let wish = Wish { key, confirmations, label }.checked();
        let wish = wish.map_err(|why| Stopped::Ceiling(format!("it asked to watch a transaction: {why}")))?;
        self.with_state(|state| state.watch(wish))
    }
}

fn link(compiled: &Compiled, grants: &Grants) -> wasmtime::Result<InstancePre<Host>> {
    let engine = &compiled.engine.wasm;
    let mut linker = Linker::new(engine);
    link_wasi(&mut linker)?;
    for capability in &grants.0 {
        match capability {
            Capability::Config => config::add_to_linker::<_, HasSelf<Host>>(&mut linker, |host| host)?,
            Capability::State => state::add_to_linker::<_, HasSelf<Host>>(&mut linker, |host| host)?,
            Capability::Log => log::add_to_linker::<_, HasSelf<Host>>(&mut linker, |host| host)?,
            Capability::Tracking => tracking::add_to_linker::<_, HasSelf<Host>>(&mut linker, |host| host)?,
        }
    }
    // What else it imports is there to be called and to stop it by name. Many a guest imports more than it calls.
    for (import, item) in compiled.component.component_type().imports(engine) {
        let ComponentItem::ComponentInstance(interface) = item.ty else { continue };
        if provided(import, grants) {
            continue;
        }
        let mut stub = linker.instance(import)?;
        for (name, item) in interface.exports(engine) {
            match item.ty {
                ComponentItem::ComponentFunc(_) => {
                    let why = format!("it called `{import}` {name}, which it was not granted (granted: {grants})");
                    stub.func_new(name, move |_, _, _, _| Err(Stopped::Ceiling(why.clone()).into()))?;
                }
                ComponentItem::Resource(_) => stub.resource(name, ResourceType::host::<()>(), |_, _| Ok(()))?,
                _ => {}
            }
        }
    }
    linker.instantiate_pre(&compiled.component)
}

/// The linker matches compatible versions by itself, but only for names that are not there in another version:
/// a stub must not be laid over what is provided.
fn provided(import: &str, grants: &Grants) -> bool {
    let name = import.split('@').next().unwrap_or(import);
    match name.strip_prefix("chainweir:plugin/") {
        Some(interface) => grants.0.iter().any(|c| c.as_str() == interface),
        None => {
            ["wasi:cli/", "wasi:clocks/", "wasi:filesystem/", "wasi:io/", "wasi:random/", "wasi:sockets/"]
                .iter()
                .any(|package| name.starts_with(package))
                && import.contains("@0.2.")
        }
    }
}

/// What a failed call was: the ceiling or trap, what the plugin said last, and where it was.
fn named(error: &wasmtime::Error, host: &Host, what: &str, deadline_ms: u64) -> CallError {
    if let Some(Stopped::Journal(why)) = error.downcast_ref() {
        return CallError::Again(format!("the journal could not be read: {why}"));
    }
    if let Some(pool) = error.downcast_ref::<PoolConcurrencyLimitError>() {
        return CallError::Again(format!("no room for another instance now: {pool}"));
    }
    let trap = error.downcast_ref::<Trap>();
    let mut why = match (error.downcast_ref::<Stopped>(), host.refused(), trap) {
        (Some(stopped), _, _) => stopped.to_string(),
        (None, Some(refused), _) => refused.to_string(),
        (None, None, Some(Trap::Interrupt)) => format!("it took longer than deadline_ms = {deadline_ms}"),
        (None, None, Some(Trap::StackOverflow)) => "its recursion was too deep (1 MiB of stack)".into(),
        (None, None, _) => one_line(&error.root_cause().to_string(), 512),
    };
    if error.root_cause().to_string().contains("fuel") {
        why = "it handed over more bytes in one call than answer_bytes and state_write_bytes allow".into();
    }
    why.push_str(&format!(", {what}"));
    let said = host.said();
    if !said.is_empty() {
        why.push_str(&format!("; it said: {}", one_line(&said, 1024)));
    }
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        why.push_str(&place(backtrace));
    }
    match (trap, error.downcast_ref()) {
        (_, Some(Stopped::StepCeiling(_))) => {
            CallError::Unblamable(format!("{why}; no event alone is to blame: raise the limit, or keep less"))
        }
        (Some(Trap::Interrupt), _) => CallError::Overrun(why),
        _ => CallError::Broken(why),
    }
}

/// The innermost frames, without those of the panic machinery that every Rust panic has.
fn place(backtrace: &WasmBacktrace) -> String {
    let mut frames: Vec<(String, u32)> = Vec::new();
    for frame in backtrace.frames() {
        let shown = |name: &str| one_line(&format!("{:#}", rustc_demangle::demangle(name)), 200);
        let symbol = frame.symbols().first();
        let name = symbol.and_then(|s| s.name()).or(frame.func_name()).map(shown);
        let name = name.unwrap_or_else(|| format!("function {}", frame.func_index()));
        if PANICKING.iter().any(|noise| name.contains(noise)) {
            continue;
        }
        let line = symbol.and_then(|s| Some(format!(" ({}:{})", one_line(s.file()?, 200), s.line()?)));
        let frame = format!("{name}{}", line.unwrap_or_default());
        let full = frames.len() == 5;
        match frames.last_mut() {
            Some((last, times)) if *last == frame => *times += 1,
            _ if full => break,
            _ => frames.push((frame, 1)),
        }
    }
    let frames: Vec<String> = frames
        .into_iter()
        .map(|(frame, times)| if times > 1 { format!("{frame} (calling itself, deep)") } else { frame })
        .collect();
    if frames.is_empty() { String::new() } else { format!("; in {}", frames.join(" < ")) }
}

/// Parts of the names of functions that only carry a Rust panic, or the end of its memory, out.
const PANICKING: [&str; 9] = [
    "rust_oom",
    "alloc_error",
    "rust_panic",
    "__rustc",
    "core::panicking",
    "std::panicking",
    "rust_begin_unwind",
    "std::sys::backtrace",
    "__rust_abort",
];

fn checked(said: processor::Manifest) -> Result<Manifest, String> {
    if said.batch_layout != LAYOUT_VERSION {
        return Err(format!(
            "it reads batch layout {}, this host writes {LAYOUT_VERSION}: build it with the SDK of this host's version",
            said.batch_layout
        ));
    }
    let name = PluginName::new(&shown(&said.name)).map_err(|e| format!("name: {e}"))?;
    if name.as_str() == RESERVED {
        return Err(format!("name: '{RESERVED}' is the host's own"));
    }
    if said.version.is_empty()
        || said.version.len() > 64
        || said.version.chars().any(|c| c.is_control() || c.is_whitespace())
    {
        return Err(format!("version '{}': expected one such as 1.2.3", shown(&said.version)));
    }
    for text in std::iter::once(&said.description).chain(said.streams.iter().map(|s| &s.description)) {
        if text.len() > DESCRIPTION_BYTES {
            return Err(format!("a description is longer than {DESCRIPTION_BYTES} bytes"));
        }
    }
    if said.streams.len() > STREAMS {
        return Err(format!("{} streams; at most {STREAMS}", said.streams.len()));
    }
    if said.subscriptions.len() > SUBSCRIPTIONS {
        return Err(format!("{} subscriptions; at most {SUBSCRIPTIONS}", said.subscriptions.len()));
    }
    let conditions = said.subscriptions.iter().map(conditions).fold(0, usize::saturating_add);
    if conditions > CONDITIONS {
        return Err(format!("{conditions} combinations of addresses and topics; at most {CONDITIONS}"));
    }
    let mut names = BTreeSet::new();
    let mut streams = Vec::with_capacity(said.streams.len());
    for stream in said.streams {
        let name = StreamName::new(&shown(&stream.name)).map_err(|e| format!("stream: {e}"))?;
        if !names.insert(name.clone()) {
            return Err(format!("two streams are called '{name}'"));
        }
        let schema = match stream.schema.as_str() {
            "" => None,
            text if text.len() > SCHEMA_BYTES => {
                return Err(format!("stream '{name}': its schema is longer than {SCHEMA_BYTES} bytes"));
            }
            text => {
                let value: serde_json::Value =
                    serde_json::from_str(text).map_err(|e| format!("stream '{name}': its schema is not JSON: {e}"))?;
                if !value.is_object() && !value.is_boolean() {
                    return Err(format!("stream '{name}': its schema is not a JSON Schema (an object, or a boolean)"));
                }
                Some(value)
            }
        };
        streams.push(StreamSpec { name, description: stream.description, schema });
    }
    let subscriptions = said
        .subscriptions
        .into_iter()
        .enumerate()
        .map(|(i, s)| subscription(s).map_err(|why| format!("subscription {i}: {why}")))
        .collect::<Result<_, _>>()?;
    Ok(Manifest {
        name,
        version: said.version,
        description: said.description,
        state_version: said.state_version,
        subscriptions,
        streams,
    })
}

/// Places in the index that a subscription takes: one for each combination of what a log is filed under.
fn conditions(s: &processor::Subscription) -> usize {
    let lists = std::iter::once(s.addresses.len()).chain(s.topics.iter().map(Vec::len));
    let of_logs = lists.fold(1, |all: usize, list| all.saturating_mul(list.max(1)));
    let makers = s.factory.as_ref().map_or(0, |f| f.makers.len());
    of_logs.saturating_add(s.senders.len() + s.receivers.len() + s.sets.len() + s.decode.len() + makers)
}

/// Its streams are the host's: `chainweir.transactions`.
const RESERVED: &str = "chainweir";

fn address(what: &str, bytes: &Bytes) -> Result<Address, String> {
    Address::try_from(bytes.as_slice())
        .map_err(|_| format!("one of the {what} has {} bytes, an address has 20", bytes.len()))
}

fn subscription(said: processor::Subscription) -> Result<Subscription, String> {
    let kind = match said.kind {
        processor::EventKind::Block => EventKind::Block,
        processor::EventKind::Transaction => EventKind::Transaction,
        processor::EventKind::Log => EventKind::Log,
        processor::EventKind::Transfer => EventKind::Transfer,
        processor::EventKind::Creation => EventKind::Creation,
        processor::EventKind::Pending => EventKind::Pending,
    };
    let addresses = |what: &str, list: Vec<Bytes>| list.iter().map(|b| address(what, b)).collect::<Result<Vec<_>, _>>();
    if said.topics.len() > 4 {
        return Err(format!("{} lists of topics; a log has at most 4", said.topics.len()));
    }
    let mut topics: [Vec<B256>; 4] = Default::default();
    for (position, list) in said.topics.iter().enumerate() {
        for topic in list {
            let topic = B256::try_from(topic.as_slice())
                .map_err(|_| format!("topic {position} has a value of {} bytes, a topic has 32", topic.len()))?;
            topics[position].push(topic);
        }
    }
    let min_value = said.min_value.map(|bytes| {
        let word = B256::try_from(bytes.as_slice());
        word.map(Into::into).map_err(|_| format!("min-value has {} bytes, a value has 32", bytes.len()))
    });
    let sets = said.sets.iter().map(|set| {
        let place = match set.place {
            processor::Place::Address => Place::Address,
            processor::Place::Topic0 => Place::Topic(0),
            processor::Place::Topic1 => Place::Topic(1),
            processor::Place::Topic2 => Place::Topic(2),
            processor::Place::Topic3 => Place::Topic(3),
            processor::Place::Sender => Place::Sender,
            processor::Place::Receiver => Place::Receiver,
            processor::Place::Hash => Place::Hash,
        };
        Ok((place, SetName::new(&shown(&set.name)).map_err(|e| format!("set: {e}"))?))
    });
    let subscription = Subscription {
        kind,
        chains: said.chains.iter().map(|c| shown(c).parse()).collect::<Result<_, _>>()?,
        addresses: addresses("addresses", said.addresses)?,
        topics,
        senders: addresses("senders", said.senders)?,
        receivers: addresses("receivers", said.receivers)?,
        success: said.success,
        min_value: min_value.transpose()?,
        sets: sets.collect::<Result<_, String>>()?,
        factory: said.factory.map(factory).transpose()?,
        decode: said.decode.iter().map(|event| Ok(Arc::new(EventAbi::parse(event)?))).collect::<Result<_, String>>()?,
    };
    let mut subscription = subscription;
    let topic0s: Option<Vec<B256>> = subscription.decode.iter().map(|event| event.topic0()).collect();
    if subscription.topics[0].is_empty() && !subscription.has_set(Place::Topic(0)) {
        // Who names the events to decode asks for these. One that is anonymous has no topic of its own.
        subscription.topics[0] = topic0s.unwrap_or_default();
    }
    let s = &subscription;
    // Said of the wrong kind, a condition would silently hold nothing back.
    let in_log = |place: Place| matches!(place, Place::Address | Place::Topic(_));
    let of_logs = !s.addresses.is_empty()
        || s.topics.iter().any(|t| !t.is_empty())
        || s.sets.iter().any(|(place, _)| in_log(*place))
        || s.factory.is_some()
        || !s.decode.is_empty();
    let of_moves = !s.senders.is_empty() || !s.receivers.is_empty() || s.sets.iter().any(|(place, _)| !in_log(*place));
    if of_logs && kind != EventKind::Log {
        return Err("addresses, topics, factory and decode are conditions on logs".into());
    }
    if of_moves && matches!(kind, EventKind::Log | EventKind::Block) {
        return Err("senders and receivers are conditions on transactions, transfers and creations".into());
    }
    if s.has_set(Place::Hash) && !matches!(kind, EventKind::Transaction | EventKind::Pending) {
        return Err("a set of hashes is a condition on transactions".into());
    }
    if s.success.is_some() && kind != EventKind::Transaction {
        return Err("success is a condition on transactions: transfers and creations are those that took effect, of pending transactions nobody knows".into());
    }
    if s.min_value.is_some() && !matches!(kind, EventKind::Transaction | EventKind::Transfer | EventKind::Pending) {
        return Err("min-value is a condition on transactions and transfers".into());
    }
    Ok(subscription)
}

fn factory(said: processor::Factory) -> Result<Factory, String> {
    let event = B256::try_from(said.event.as_slice())
        .map_err(|_| format!("factory: its event has {} bytes, a topic has 32", said.event.len()))?;
    let child = match said.child {
        processor::Child::Topic(n @ 1..=3) => Child::Topic(n),
        processor::Child::Topic(n) => return Err(format!("factory: topic {n} cannot hold an address: 1 to 3 can")),
        processor::Child::Word(n) => Child::Word(n),
    };
    let makers = said.makers.iter().map(|b| address("makers", b)).collect::<Result<_, _>>()?;
    Ok(Factory { makers, event, child, since: said.since })
}

fn shown(text: &str) -> String {
    one_line(text, 128)
}

/// For the status page: the same digest as the cache's.
impl Maker {
    pub(super) fn digest(&self) -> Digest {
        self.compiled.digest()
    }
}
