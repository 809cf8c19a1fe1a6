//! `chainweir.toml` as values. Unknown keys are refused with the nearest known one; each kind of source and
//! sink parses its own table.
//!
//! Secrets are not in here: outputs name the variable or file that holds one. Addresses of providers may hold a
//! key, so what is printed of a table shows scheme and host of a URL alone.

pub mod keys;
mod parse;
mod read;
mod suggest;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

pub use parse::{Examined, examine};
pub use suggest::{hint, nearest};

use crate::model::{ChainId, OutputName, PluginName, StreamId, When};
use crate::plugin::{Limits, OnPoison};

#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of the configuration file: relative paths are relative to it.
    pub base: PathBuf,
    /// `[journal]`
    pub journal: JournalConfig,
    /// `[http]`
    pub http: HttpConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `[chain.NAME]`
    pub chains: BTreeMap<String, ChainConfig>,
    /// `[plugins]`
    pub plugins: PluginsConfig,
    /// `[plugin.NAME]`
    pub plugin: BTreeMap<PluginName, PluginConfig>,
    /// `[output.NAME]`
    pub outputs: BTreeMap<OutputName, OutputConfig>,
    /// `[[route]]`
    pub routes: Vec<RouteConfig>,
}

#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// `path`: the SQLite file; `chainweir.db` beside the configuration.
    pub path: PathBuf,
    /// `backlog_limit`: undelivered emissions of one output at which the plugins that feed it pause; 1,000,000.
    pub backlog_limit: u64,
    /// `backlog_bytes`: the same, by the bytes of their payloads; 10 GiB.
    pub backlog_bytes: u64,
    /// `backlog_age`: the same, by the seconds that the oldest has waited; no limit.
    pub backlog_age: Option<u64>,
    /// `retain`: seconds that feeds can look back; 7 days.
    pub retain: u64,
}

#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// `listen`: `127.0.0.1:7300`. `None` (`listen = "off"`) serves nothing.
    pub listen: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Debug)]
pub struct LogConfig {
    /// `format`: `text` or `json`.
    pub format: LogFormat,
    /// `level`: as in `RUST_LOG`; `info`.
    pub level: String,
}

/// Where a plugin without a cursor begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// `"latest"`: with the next block after the head.
    Latest,
    /// A number: with this block.
    Block(u64),
    /// An RFC 3339 date or date-time: with the first block at or after it. Seconds since 1970.
    Time(u64),
}

/// What makes a block final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finality {
    /// `"tags"`: the node's `finalized` and `safe` tags.
    Tags,
    /// `{ depth = N }`: N blocks on top of it.
    Depth(u64),
}

/// Seconds after which a watched transaction that no node knows any more counts as dropped.
pub const DROPPED_AFTER: u64 = 300;

#[derive(Clone)]
pub struct ChainConfig {
    pub name: String,
    /// `source`: a name of [`crate::source::KINDS`]; the first by default.
    pub source: String,
    /// `chain_id`: refuse a provider of another chain.
    pub chain_id: Option<ChainId>,
    /// `start`: `"latest"`.
    pub start: Start,
    /// `finality`: `"tags"`.
    pub finality: Finality,
    /// `dropped_after`: seconds; 300.
    pub dropped_after: u64,
    /// What is left, for the source.
    pub table: toml::Table,
}

#[derive(Clone, Debug)]
pub struct PluginsConfig {
    /// `dir`: every `*.wasm` dropped here is loaded; `plugins`.
    pub dir: PathBuf,
}

#[derive(Clone, Default)]
pub struct PluginConfig {
    /// `config`: handed to the plugin as JSON.
    pub config: serde_json::Map<String, serde_json::Value>,
    /// `start`: the chain's.
    pub start: Option<Start>,
    /// `chains`: names of `[chain.NAME]`; all by default.
    pub chains: Option<Vec<String>>,
    /// `on_poison`: `wait` or `skip`.
    pub on_poison: OnPoison,
    /// `limits`
    pub limits: Limits,
    /// `grants`: of `config`, `state`, `log`; all three by default.
    pub grants: Option<Vec<String>>,
    /// `upgrade`: the state version that may take over the state of an older one.
    pub upgrade: Option<u32>,
}

#[derive(Clone)]
pub struct OutputConfig {
    pub name: OutputName,
    /// `type`: a name of [`crate::sink::KINDS`].
    pub kind: String,
    /// `attempts`: before a delivery goes to the dead letters; 10.
    pub attempts: u32,
    /// `on_refused`: `advance` (dead letter and go on) or `stop` (the lane waits).
    pub stop_on_refused: bool,
    /// `disable_after`: seconds for which a destination may be down; 5 days.
    pub disable_after: u64,
    /// What is left, for the sink.
    pub table: toml::Table,
}

#[derive(Clone, Debug)]
pub struct RouteConfig {
    /// `from`: `plugin.stream`, or `plugin.*` for all of a plugin's.
    pub from: RouteFrom,
    /// `to`
    pub to: Vec<OutputName>,
    /// `when`: `"latest"`.
    pub when: When,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteFrom {
    Stream(StreamId),
    AllOf(PluginName),
}

impl RouteFrom {
    pub fn matches(&self, stream: &StreamId) -> bool {
        match self {
            Self::Stream(s) => s == stream,
            Self::AllOf(plugin) => *plugin == stream.plugin,
        }
    }

    pub fn plugin(&self) -> &PluginName {
        match self {
            Self::Stream(s) => &s.plugin,
            Self::AllOf(plugin) => plugin,
        }
    }
}

/// Line and column, both from 1; the column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

/// Something in the file that cannot be meant. Shown as a compiler would: `file:line:column: what`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub file: String,
    /// `None` where the file itself is the matter.
    pub place: Option<Place>,
    /// What is wrong, and the nearest right word.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some(Place { line, column }) => write!(f, "{}:{line}:{column}: {}", self.file, self.what),
            None => write!(f, "{}: {}", self.file, self.what),
        }
    }
}

impl Config {
    /// Reads a file. Every mistake in it is named, in the order of the file.
    pub fn load(path: &Path) -> Result<Self, Vec<Mistake>> {
        Self::examine_file(path).config
    }

    /// As [`Config::load`], with the place of every key.
    pub fn examine_file(path: &Path) -> Examined {
        let file = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => {
                // The parent of a bare file name is empty.
                let base = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                examine(&text, base, &file)
            }
            Err(error) => {
                let what = match error.kind() {
                    std::io::ErrorKind::NotFound => {
                        "there is no such file; name one, or run without: --rpc URL --plugins DIR".to_owned()
                    }
                    _ => error.to_string(),
                };
                Examined { config: Err(vec![Mistake { file, place: None, what }]), places: BTreeMap::new() }
            }
        }
    }

    /// `base` is the folder that relative paths begin at, `file` the name for messages.
    pub fn parse(text: &str, base: &Path, file: &str) -> Result<Self, Vec<Mistake>> {
        examine(text, base, file).config
    }

    /// One chain by its providers, plugins from a folder, no outputs, and the journal in `base`.
    pub fn quick(base: &Path, rpc: &[String], plugins: &Path) -> Self {
        let mut config = Self::empty(base);
        let urls = rpc.iter().map(|url| toml::Value::String(url.clone())).collect();
        let chain = ChainConfig {
            name: "main".into(),
            source: "rpc".into(),
            chain_id: None,
            dropped_after: DROPPED_AFTER,
            start: Start::Latest,
            finality: Finality::Tags,
            table: toml::Table::from_iter([("rpc".to_owned(), toml::Value::Array(urls))]),
        };
        config.chains.insert(chain.name.clone(), chain);
        config.plugins.dir = base.join(plugins);
        config
    }

    /// All defaults: no chain, no output.
    pub fn empty(base: &Path) -> Self {
        Self {
            base: base.to_owned(),
            journal: JournalConfig {
                path: base.join("chainweir.db"),
                backlog_limit: 1_000_000,
                backlog_bytes: 10 << 30,
                backlog_age: None,
                retain: 7 * 86_400,
            },
            http: HttpConfig { listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 7300))) },
            log: LogConfig { format: LogFormat::Text, level: "info".into() },
            chains: BTreeMap::new(),
            plugins: PluginsConfig { dir: base.join("plugins") },
            plugin: BTreeMap::new(),
            outputs: BTreeMap::new(),
            routes: vec![],
        }
    }

    /// Every environment variable that a `*_env` key of a source or an output names, with the key's path.
    pub fn variables(&self) -> Vec<(String, String)> {
        let chains = self.chains.iter().map(|(name, chain)| (format!("chain.{name}"), &chain.table));
        let outputs = self.outputs.iter().map(|(name, output)| (format!("output.{name}"), &output.table));
        let tables = chains.chain(outputs);
        let of_table = |(path, table): (String, &toml::Table)| {
            let keys = table.iter().filter(|(key, _)| key.ends_with("_env"));
            keys.filter_map(|(key, value)| Some((format!("{path}.{key}"), value.as_str()?.to_owned())))
                .collect::<Vec<_>>()
        };
        tables.flat_map(of_table).collect()
    }
}

/// Scheme and host of a URL, for messages: user, path and query may hold a key.
pub fn redact(text: &str) -> String {
    match url::Url::parse(text) {
        Ok(url) if text.contains("://") => match (url.host_str(), url.port()) {
            (Some(host), Some(port)) => format!("{}://{host}:{port}/...", url.scheme()),
            (Some(host), None) => format!("{}://{host}/...", url.scheme()),
            (None, _) => format!("{}://...", url.scheme()),
        },
        _ => text.to_owned(),
    }
}

struct Redacted<'a>(&'a toml::Table);

impl fmt::Debug for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn shown(value: &toml::Value) -> String {
            match value {
                toml::Value::String(text) => redact(text),
                toml::Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(", ")),
                toml::Value::Table(table) => format!("{:?}", Redacted(table)),
                other => other.to_string(),
            }
        }
        // A header's value is a secret more often than not.
        let shown = |key: &str, value| if key == "headers" { "...".to_owned() } else { shown(value) };
        f.debug_map().entries(self.0.iter().map(|(key, value)| (key, shown(key, value)))).finish()
    }
}

impl fmt::Debug for ChainConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChainConfig")
            .field("name", &self.name)
            .field("source", &self.source)
            .field("chain_id", &self.chain_id)
            .field("dropped_after", &self.dropped_after)
            .field("start", &self.start)
            .field("finality", &self.finality)
            .field("table", &Redacted(&self.table))
            .finish()
    }
}

/// Of the plugin's own table only the keys: nobody but the plugin knows what in it is secret.
impl fmt::Debug for PluginConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PluginConfig")
            .field("config", &self.config.keys().collect::<Vec<_>>())
            .field("start", &self.start)
            .field("chains", &self.chains)
            .field("on_poison", &self.on_poison)
            .field("limits", &self.limits)
            .field("grants", &self.grants)
            .field("upgrade", &self.upgrade)
            .finish()
    }
}

impl fmt::Debug for OutputConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutputConfig")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .field("attempts", &self.attempts)
            .field("stop_on_refused", &self.stop_on_refused)
            .field("disable_after", &self.disable_after)
            .field("table", &Redacted(&self.table))
            .finish()
    }
}

#[cfg(test)]
mod tests;
