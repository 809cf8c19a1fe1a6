//! `chainweir.toml` as values. Unknown keys are refused with the nearest known one; each kind of source and
//! sink parses its own table.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

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

#[derive(Clone, Debug)]
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
    /// What is left, for the source.
    pub table: toml::Table,
}

#[derive(Clone, Debug)]
pub struct PluginsConfig {
    /// `dir`: every `*.wasm` dropped here is loaded; `plugins`.
    pub dir: PathBuf,
}

#[derive(Clone, Debug, Default)]
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

#[derive(Clone, Debug)]
pub struct OutputConfig {
    pub name: OutputName,
    /// `type`: a name of [`crate::sink::KINDS`].
    pub kind: String,
    /// `attempts`: before a delivery goes to the dead letters; 10.
    pub attempts: u32,
    /// `on_refused`: `advance` (dead letter and go on) or `stop` (the lane waits).
    pub stop_on_refused: bool,
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
