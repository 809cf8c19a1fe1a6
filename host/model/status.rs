//! What `status` shows: a picture of the whole process at one moment. Served as JSON at `GET /status`.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    /// Seconds since 1970.
    pub started_at: u64,
    /// Every stage works: what `/readyz` answers.
    pub ready: bool,
    pub journal: JournalStatus,
    pub chains: Vec<ChainStatus>,
    pub plugins: Vec<PluginStatus>,
    /// Files in the plugin folder that are not running, and why.
    pub refused_files: Vec<RefusedFile>,
    pub outputs: Vec<OutputStatus>,
}

impl Status {
    /// Refused files that no plugin stands beside: the others are shown with the plugin that goes on in their place.
    pub fn refused_alone(&self) -> impl Iterator<Item = &RefusedFile> {
        let shown = |file: &&RefusedFile| !self.plugins.iter().any(|p| p.refused.as_ref() == Some(*file));
        self.refused_files.iter().filter(shown)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JournalStatus {
    pub path: String,
    pub bytes: u64,
    pub last_offset: u64,
    /// Why nothing is taken in now.
    pub paused: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockStatus {
    pub number: u64,
    pub hash: String,
    /// Seconds since 1970.
    pub time: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChainStatus {
    pub name: String,
    /// CAIP-2; empty until the provider has answered.
    pub chain: String,
    /// `connecting`, `following`, `unreachable`, `halted`, `ended`.
    pub state: String,
    pub why: Option<String>,
    pub head: Option<BlockStatus>,
    pub safe: Option<u64>,
    pub finalized: Option<BlockStatus>,
    pub reorgs: u64,
    /// Transactions of which it is said what becomes of them.
    pub watched: u64,
    /// In order of preference; empty for a recording.
    pub providers: Vec<ProviderStatus>,
}

/// One of a chain's providers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProviderStatus {
    /// Scheme and host.
    pub name: String,
    /// `well`, `limited` (it said "too many"), `aside`.
    pub state: String,
    pub why: Option<String>,
    /// The number of the newest block that it told of.
    pub head: Option<u64>,
    /// Of one answer, at the mean.
    pub latency_ms: Option<f64>,
    pub requests: u64,
    /// Requests that failed, or were refused for now.
    pub errors: u64,
    /// Answers that contradicted a header, or each other.
    #[serde(rename = "false")]
    pub false_answers: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PluginStatus {
    pub name: String,
    pub version: String,
    pub description: String,
    pub digest: String,
    pub file: String,
    pub streams: Vec<String>,
    pub chains: Vec<ConsumerStatus>,
    /// A newer file that was not taken, and why.
    pub refused: Option<RefusedFile>,
}

/// Of a plugin that reads blocks of the past.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CatchingUp {
    /// The block at which it began, and the one at which it joins the present.
    pub from: u64,
    pub to: u64,
    pub percent: f64,
    /// Over the last seconds; `None` in the first one.
    pub blocks_per_second: Option<f64>,
    /// At that rate; `None` where it stands still.
    pub seconds_left: Option<u64>,
}

impl std::fmt::Display for CatchingUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} %", self.percent)?;
        if let Some(rate) = self.blocks_per_second {
            write!(f, ", {rate:.0} blocks/s")?;
        }
        match self.seconds_left {
            Some(left @ 0..=119) => write!(f, ", {left} s left"),
            Some(left @ 120..=7_199) => write!(f, ", {} min left", left.div_ceil(60)),
            Some(left) => write!(f, ", {} h left", left.div_ceil(3_600)),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConsumerStatus {
    pub chain: String,
    /// `live`, `catching-up`, `waiting` (asked for a pause), `faulted`, `paused` (back-pressure, disk full), `starting`.
    pub state: String,
    pub why: Option<String>,
    /// Seconds since 1970.
    pub retry_at: Option<u64>,
    pub cursor: Option<BlockStatus>,
    pub lag_blocks: Option<u64>,
    pub catching_up: Option<CatchingUp>,
    pub events: u64,
    pub emissions: u64,
    pub faults: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedFile {
    pub file: String,
    pub digest: String,
    pub why: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OutputStatus {
    pub name: String,
    pub kind: String,
    /// `starting` until it is known what waits, then `idle` until the first delivery; `ok`, `failing`, `stopped`, `disabled`.
    pub state: String,
    pub why: Option<String>,
    /// Entries not yet settled, of all its tracks.
    pub backlog: u64,
    /// Bytes of their payloads, estimated.
    #[serde(default)]
    pub backlog_bytes: u64,
    /// Seconds that the oldest of them has waited.
    #[serde(default)]
    pub backlog_age: u64,
    /// Of what is sent again, as it was asked for, what is still to come.
    #[serde(default)]
    pub replaying: u64,
    /// Lane keys that wait alone.
    pub parked: u64,
    pub dead: u64,
    pub delivered: u64,
}
