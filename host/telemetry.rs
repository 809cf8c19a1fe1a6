//! Tracing set-up and every metric's name, in one place. Any stage may call in here; it calls nobody.
//!
//! It knows nothing of HTTP: what scrapes gets its text from the handle that [`metrics()`] gives. Without a recorder
//! (in tests, or with `listen = "off"`) every helper here is a cheap nothing.
//!
//! Gauges that only repeat what `status` shows (head, lag, backlog, journal size) are set by [`picture`] at each
//! scrape, so that a lag in seconds goes on rising while the process stands still. A gauge that is not set for
//! [`GAUGE_IDLE`] is forgotten: what is gone from `status` goes from `/metrics`.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::metrics::{Counter, Gauge, Histogram, Unit, counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use metrics_util::MetricKindMask;
use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};
use crate::model::{ChainId, OutputName, PluginName, Status};

/// Starts logging to stderr. `RUST_LOG` wins over the configured level.
///
/// # Errors
/// A filter that cannot be read, or logging that was started before: for the user.
pub fn init(config: &LogConfig) -> Result<(), String> {
    let (from, filter) = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() => ("the environment variable RUST_LOG", filter),
        Ok(_) | Err(std::env::VarError::NotPresent) => ("[log] level", config.level.clone()),
        Err(std::env::VarError::NotUnicode(_)) => return Err("the environment variable RUST_LOG is not UTF-8".into()),
    };
    // What these say of a connection that is cut, or of a message that came back, is said by the source and the sink, once
    // and with the provider's or the output's name.
    let quiet = [("alloy", ",alloy_pubsub=off,alloy_transport_ws=off"), ("lapin", ",lapin=off")];
    let quiet: String = quiet.iter().filter(|(name, _)| !filter.contains(name)).map(|(_, off)| *off).collect();
    let parsed = EnvFilter::try_new(format!("{filter}{quiet}"));
    let filter = parsed.map_err(|e| {
        format!("{from} = \"{filter}\" is not a log filter ({e}); write for example info or chainweir=debug,info")
    })?;
    // With a terminal, bars are taken away for each line, and drawn anew below it.
    let lines = || Lines { above_bars: std::io::stderr().is_terminal() };
    // A log that cannot be written (its disk is full, its reader is gone) is lost; saying so on stderr would panic.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines).log_internal_errors(false);
    match config.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|e| format!("logging could not be started: {e}"))
}

/// Where progress is drawn on a terminal: below the log.
pub fn bars() -> &'static indicatif::MultiProgress {
    static BARS: OnceLock<indicatif::MultiProgress> = OnceLock::new();
    BARS.get_or_init(indicatif::MultiProgress::new)
}

struct Lines {
    above_bars: bool,
}

impl std::io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let write = || std::io::stderr().write(line);
        if self.above_bars { bars().suspend(write) } else { write() }
    }
    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Most scrapers ask every 15 to 60 seconds.
pub const GAUGE_IDLE: Duration = Duration::from_secs(300);
/// Histograms gather single values until somebody renders them or this has passed: it bounds their memory.
const UPKEEP: Duration = Duration::from_secs(5);

const CHAIN_HEAD_BLOCK: &str = "chainweir_chain_head_block";
const PROVIDER_WELL: &str = "chainweir_provider_well";
const PROVIDER_HEAD_BLOCK: &str = "chainweir_provider_head_block";
const PROVIDER_ANSWER_SECONDS: &str = "chainweir_provider_answer_seconds";
const PROVIDER_REQUESTS: &str = "chainweir_provider_requests_total";
const PROVIDER_ERRORS: &str = "chainweir_provider_errors_total";
const PROVIDER_FALSE: &str = "chainweir_provider_false_answers_total";
const CHAIN_LAG_BLOCKS: &str = "chainweir_chain_lag_blocks";
const CHAIN_LAG_SECONDS: &str = "chainweir_chain_lag_seconds";
const EVENTS: &str = "chainweir_events_total";
const PLUGIN_CALLS: &str = "chainweir_plugin_calls_total";
const PLUGIN_CALL_SECONDS: &str = "chainweir_plugin_call_seconds";
const PLUGIN_FAULTS: &str = "chainweir_plugin_faults_total";
const EMISSIONS: &str = "chainweir_emissions_total";
const RETRACTIONS: &str = "chainweir_retractions_total";
const LANE_BACKLOG: &str = "chainweir_lane_backlog";
const LANE_BACKLOG_BYTES: &str = "chainweir_lane_backlog_bytes";
const LANE_BACKLOG_AGE: &str = "chainweir_lane_backlog_age_seconds";
const DELIVERIES: &str = "chainweir_deliveries_total";
const PLUGIN_RELOADS: &str = "chainweir_plugin_reloads_total";
const REORGS: &str = "chainweir_reorgs_total";
const REORG_DEPTH_BLOCKS: &str = "chainweir_reorg_depth_blocks";
const TRANSACTIONS_WATCHED: &str = "chainweir_transactions_watched";
const TRANSACTIONS_TOLD: &str = "chainweir_transactions_told_total";
const PENDING_DROPPED: &str = "chainweir_pending_dropped_total";
const SOURCE_ERRORS: &str = "chainweir_source_errors_total";
const JOURNAL_BYTES: &str = "chainweir_journal_bytes";
const JOURNAL_COMMIT_SECONDS: &str = "chainweir_journal_commit_seconds";
const BUILD_INFO: &str = "chainweir_build_info";

/// From a filter over one event (50 us) to a call that its deadline cuts off.
const CALL_BUCKETS: &[f64] =
    &[5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 5.0];
/// A durable commit takes 0.1 ms on a good disk; beyond a second the disk is in trouble.
const COMMIT_BUCKETS: &[f64] =
    &[1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
/// Mainnet finalizes within 64 to 96 blocks.
const DEPTH_BUCKETS: &[f64] = &[1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 32.0, 64.0, 128.0, 256.0, 1024.0];

#[derive(Clone, Copy, Debug)]
enum Kind {
    Counter,
    Gauge,
    Histogram(&'static [f64]),
}

struct Metric {
    name: &'static str,
    kind: Kind,
    unit: Unit,
    help: &'static str,
}

const fn metric(name: &'static str, kind: Kind, unit: Unit, help: &'static str) -> Metric {
    Metric { name, kind, unit, help }
}

/// Every metric there is. One that is not here has no help text, so it is not there.
const METRICS: &[Metric] = &[
    metric(
        CHAIN_HEAD_BLOCK,
        Kind::Gauge,
        Unit::Count,
        "Number of the newest block that the provider told of, by chain",
    ),
    metric(
        PROVIDER_WELL,
        Kind::Gauge,
        Unit::Count,
        "1 while the provider is asked, 0 while it is left aside, by chain and provider",
    ),
    metric(PROVIDER_HEAD_BLOCK, Kind::Gauge, Unit::Count, "Number of the newest block that this provider told of"),
    metric(PROVIDER_ANSWER_SECONDS, Kind::Gauge, Unit::Seconds, "Mean time of one answer of this provider"),
    metric(PROVIDER_REQUESTS, Kind::Counter, Unit::Count, "Requests to this provider"),
    metric(
        PROVIDER_ERRORS,
        Kind::Counter,
        Unit::Count,
        "Requests to this provider that failed or were refused for now",
    ),
    metric(PROVIDER_FALSE, Kind::Counter, Unit::Count, "Answers of this provider that were proven false"),
    metric(
        CHAIN_LAG_BLOCKS,
        Kind::Gauge,
        Unit::Count,
        "Blocks from a plugin's cursor to the head, by plugin and chain",
    ),
    metric(
        CHAIN_LAG_SECONDS,
        Kind::Gauge,
        Unit::Seconds,
        "Seconds since the time of the block at a plugin's cursor, by plugin and chain",
    ),
    metric(EVENTS, Kind::Counter, Unit::Count, "Events handed to a plugin, by plugin and chain"),
    metric(PLUGIN_CALLS, Kind::Counter, Unit::Count, "Calls into a plugin, each with a batch of events"),
    metric(PLUGIN_CALL_SECONDS, Kind::Histogram(CALL_BUCKETS), Unit::Seconds, "Duration of one call into a plugin"),
    metric(
        PLUGIN_FAULTS,
        Kind::Counter,
        Unit::Count,
        "Calls that ended in a fault: trap, deadline, bound or false answer",
    ),
    metric(EMISSIONS, Kind::Counter, Unit::Count, "Emissions committed, by plugin"),
    metric(RETRACTIONS, Kind::Counter, Unit::Count, "Emissions taken back because their block was orphaned, by plugin"),
    metric(LANE_BACKLOG, Kind::Gauge, Unit::Count, "Entries of an output that are not settled yet"),
    metric(LANE_BACKLOG_BYTES, Kind::Gauge, Unit::Bytes, "Bytes of their payloads, estimated"),
    metric(LANE_BACKLOG_AGE, Kind::Gauge, Unit::Seconds, "Time that the oldest of them has waited"),
    metric(DELIVERIES, Kind::Counter, Unit::Count, "Attempts to deliver, by output and outcome"),
    metric(PLUGIN_RELOADS, Kind::Counter, Unit::Count, "Plugin files that were tried, by plugin and outcome"),
    metric(TRANSACTIONS_WATCHED, Kind::Gauge, Unit::Count, "Transactions that are watched, by chain"),
    metric(TRANSACTIONS_TOLD, Kind::Counter, Unit::Count, "What was said of watched transactions, by chain and status"),
    metric(
        PENDING_DROPPED,
        Kind::Counter,
        Unit::Count,
        "Pending transactions that came faster than they were taken, or were none, by chain",
    ),
    metric(REORGS, Kind::Counter, Unit::Count, "Reorgs followed, by chain"),
    metric(REORG_DEPTH_BLOCKS, Kind::Histogram(DEPTH_BUCKETS), Unit::Count, "Blocks that a reorg took away, by chain"),
    metric(SOURCE_ERRORS, Kind::Counter, Unit::Count, "Reads from a provider that did not succeed, by chain and kind"),
    metric(JOURNAL_BYTES, Kind::Gauge, Unit::Bytes, "Size of the journal on the disk"),
    metric(
        JOURNAL_COMMIT_SECONDS,
        Kind::Histogram(COMMIT_BUCKETS),
        Unit::Seconds,
        "Duration of one durable commit, which may hold many writes",
    ),
    metric(BUILD_INFO, Kind::Gauge, Unit::Count, "1, with the version of the running program"),
];

/// A recorder that is not installed: for tests, and for [`metrics()`].
pub fn recorder() -> PrometheusRecorder {
    let mut builder = PrometheusBuilder::new().idle_timeout(MetricKindMask::GAUGE, Some(GAUGE_IDLE));
    for metric in METRICS {
        if let Kind::Histogram(buckets) = metric.kind {
            builder = builder
                .set_buckets_for_metric(Matcher::Full(metric.name.into()), buckets)
                .expect("the lists of buckets above are not empty");
        }
    }
    let recorder = builder.build_recorder();
    ::metrics::with_local_recorder(&recorder, describe);
    recorder
}

fn describe() {
    for Metric { name, kind, unit, help } in METRICS {
        match kind {
            Kind::Counter => ::metrics::describe_counter!(*name, *unit, *help),
            Kind::Gauge => ::metrics::describe_gauge!(*name, *unit, *help),
            Kind::Histogram(_) => ::metrics::describe_histogram!(*name, *unit, *help),
        }
    }
    build_info().set(1.0);
}

/// Installs the recorder, once in a process, and gives what renders it. Called again it gives the same.
pub fn metrics() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let recorder = recorder();
            let handle = recorder.handle();
            if let Err(error) = ::metrics::set_global_recorder(recorder) {
                tracing::warn!(%error, "metrics are recorded by somebody else in this process; /metrics stays empty");
            }
            let upkeep = handle.clone();
            let thread = std::thread::Builder::new().name("metrics".into()).spawn(move || {
                loop {
                    std::thread::sleep(UPKEEP);
                    upkeep.run_upkeep();
                }
            });
            if let Err(error) = thread {
                tracing::warn!(%error, "no thread for the metrics' upkeep: histograms grow until /metrics is asked for");
            }
            handle
        })
        .clone()
}

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$each:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$each])* $variant),+ }

        impl $name {
            /// As it stands in the label.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    };
}

labels!(/// How an attempt to deliver ended.
DeliveryOutcome {
    Delivered = "delivered",
    /// Not now; it is tried again.
    Retry = "retry",
    /// The destination will not have it.
    Refused = "refused",
    /// Given up, and kept in the dead letters.
    Dead = "dead",
});
labels!(/// What became of a plugin file that was tried.
ReloadOutcome {
    Loaded = "loaded",
    /// The old one goes on.
    Refused = "refused",
    /// The new one faulted in its first blocks, or a person asked for it.
    RolledBack = "rolled_back",
    Removed = "removed",
});
labels!(/// As the source's errors: named by what is to be done.
SourceErrorKind {
    Again = "again",
    Unknown = "unknown",
    /// The answer contradicted the block's header.
    False = "false",
    Halt = "halt",
});

pub fn events(plugin: &PluginName, chain: ChainId) -> Counter {
    counter!(EVENTS, "plugin" => plugin.to_string(), "chain" => chain.to_string())
}
pub fn plugin_calls(plugin: &PluginName) -> Counter {
    counter!(PLUGIN_CALLS, "plugin" => plugin.to_string())
}
/// Record seconds (`Duration` is taken as it is).
pub fn plugin_call_seconds(plugin: &PluginName) -> Histogram {
    histogram!(PLUGIN_CALL_SECONDS, "plugin" => plugin.to_string())
}
pub fn plugin_faults(plugin: &PluginName) -> Counter {
    counter!(PLUGIN_FAULTS, "plugin" => plugin.to_string())
}
pub fn emissions(plugin: &PluginName) -> Counter {
    counter!(EMISSIONS, "plugin" => plugin.to_string())
}
pub fn retractions(plugin: &PluginName) -> Counter {
    counter!(RETRACTIONS, "plugin" => plugin.to_string())
}
pub fn deliveries(output: &OutputName, outcome: DeliveryOutcome) -> Counter {
    counter!(DELIVERIES, "output" => output.to_string(), "outcome" => outcome.as_str())
}
/// By the plugin's name, or its file's where it has not told its name.
pub fn plugin_reloads(plugin: &str, outcome: ReloadOutcome) -> Counter {
    counter!(PLUGIN_RELOADS, "plugin" => plugin.to_string(), "outcome" => outcome.as_str())
}
/// Counts a reorg and how many blocks it took away.
pub fn reorg(chain: ChainId, depth_blocks: u64) {
    counter!(REORGS, "chain" => chain.to_string()).increment(1);
    histogram!(REORG_DEPTH_BLOCKS, "chain" => chain.to_string()).record(depth_blocks as f64);
}
pub fn transactions_told(chain: ChainId, status: &str) -> Counter {
    counter!(TRANSACTIONS_TOLD, "chain" => chain.to_string(), "status" => status.to_owned())
}
pub fn pending_dropped(chain: ChainId) -> Counter {
    counter!(PENDING_DROPPED, "chain" => chain.to_string())
}
pub fn source_errors(chain: ChainId, kind: SourceErrorKind) -> Counter {
    counter!(SOURCE_ERRORS, "chain" => chain.to_string(), "kind" => kind.as_str())
}
pub fn journal_commit_seconds() -> Histogram {
    histogram!(JOURNAL_COMMIT_SECONDS)
}
fn build_info() -> Gauge {
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION"))
}

/// Sets every gauge from a picture of the process. The listener does it at each scrape; nobody else has to.
pub fn picture(status: &Status) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    build_info().set(1.0);
    gauge!(JOURNAL_BYTES).set(status.journal.bytes as f64);
    for chain in status.chains.iter().filter(|c| !c.chain.is_empty()) {
        if let Some(head) = &chain.head {
            gauge!(CHAIN_HEAD_BLOCK, "chain" => chain.chain.clone()).set(head.number as f64);
        }
        if chain.watched > 0 {
            gauge!(TRANSACTIONS_WATCHED, "chain" => chain.chain.clone()).set(chain.watched as f64);
        }
        for provider in &chain.providers {
            let labels = [("chain", chain.chain.clone()), ("provider", provider.name.clone())];
            gauge!(PROVIDER_WELL, &labels).set(if provider.state == "aside" { 0.0 } else { 1.0 });
            if let Some(head) = provider.head {
                gauge!(PROVIDER_HEAD_BLOCK, &labels).set(head as f64);
            }
            if let Some(ms) = provider.latency_ms {
                gauge!(PROVIDER_ANSWER_SECONDS, &labels).set(ms / 1000.0);
            }
            counter!(PROVIDER_REQUESTS, &labels).absolute(provider.requests);
            counter!(PROVIDER_ERRORS, &labels).absolute(provider.errors);
            counter!(PROVIDER_FALSE, &labels).absolute(provider.false_answers);
        }
    }
    for plugin in &status.plugins {
        for at in &plugin.chains {
            let labels = [("plugin", plugin.name.clone()), ("chain", at.chain.clone())];
            if let Some(lag) = at.lag_blocks {
                gauge!(CHAIN_LAG_BLOCKS, &labels).set(lag as f64);
            }
            if let Some(cursor) = &at.cursor {
                gauge!(CHAIN_LAG_SECONDS, &labels).set(now.saturating_sub(cursor.time) as f64);
            }
        }
    }
    for output in &status.outputs {
        gauge!(LANE_BACKLOG, "output" => output.name.clone()).set(output.backlog as f64);
        gauge!(LANE_BACKLOG_BYTES, "output" => output.name.clone()).set(output.backlog_bytes as f64);
        gauge!(LANE_BACKLOG_AGE, "output" => output.name.clone()).set(output.backlog_age as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BlockStatus, ChainStatus, ConsumerStatus, OutputStatus, PluginStatus, ProviderStatus};

    fn plugin() -> PluginName {
        PluginName::new("whale").unwrap()
    }
    fn output() -> OutputName {
        OutputName::new("orders").unwrap()
    }

    fn touch_everything() {
        let chain = ChainId(1);
        events(&plugin(), chain).increment(2);
        plugin_calls(&plugin()).increment(1);
        plugin_call_seconds(&plugin()).record(Duration::from_millis(3));
        plugin_faults(&plugin()).increment(1);
        emissions(&plugin()).increment(1);
        retractions(&plugin()).increment(1);
        deliveries(&output(), DeliveryOutcome::Dead).increment(1);
        plugin_reloads(plugin().as_str(), ReloadOutcome::RolledBack).increment(1);
        reorg(chain, 7);
        pending_dropped(chain).increment(1);
        transactions_told(chain, "included").increment(1);
        source_errors(chain, SourceErrorKind::False).increment(1);
        journal_commit_seconds().record(0.002);
        picture(&Status {
            chains: vec![ChainStatus {
                chain: "eip155:1".into(),
                head: Some(BlockStatus { number: 99, ..Default::default() }),
                watched: 3,
                providers: vec![ProviderStatus {
                    name: "wss://a".into(),
                    state: "aside".into(),
                    head: Some(98),
                    latency_ms: Some(2.0),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            plugins: vec![PluginStatus {
                name: "whale".into(),
                chains: vec![ConsumerStatus {
                    chain: "eip155:1".into(),
                    cursor: Some(BlockStatus { number: 98, time: 1_600_000_000, ..Default::default() }),
                    lag_blocks: Some(1),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            outputs: vec![OutputStatus { name: "orders".into(), backlog: 5, ..Default::default() }],
            ..Default::default()
        });
    }

    #[test]
    fn every_metric_is_shown_with_its_help_and_kind() {
        touch_everything(); // without a recorder: nothing happens
        let recorder = recorder();
        ::metrics::with_local_recorder(&recorder, touch_everything);
        let text = recorder.handle().render();
        for Metric { name, kind, help, .. } in METRICS {
            let kind = match kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram(_) => "histogram",
            };
            assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}\n{text}");
            assert!(text.contains(&format!("# HELP {name} {help}\n")), "{name}\n{text}");
        }
        for line in [
            "chainweir_deliveries_total{output=\"orders\",outcome=\"dead\"} 1",
            "chainweir_plugin_reloads_total{plugin=\"whale\",outcome=\"rolled_back\"} 1",
            "chainweir_reorg_depth_blocks_bucket{chain=\"eip155:1\",le=\"8\"} 1",
            "chainweir_reorg_depth_blocks_bucket{chain=\"eip155:1\",le=\"5\"} 0",
            "chainweir_chain_head_block{chain=\"eip155:1\"} 99",
            "chainweir_provider_well{chain=\"eip155:1\",provider=\"wss://a\"} 0",
            "chainweir_lane_backlog{output=\"orders\"} 5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }

    #[test]
    fn names_follow_the_convention_of_prometheus() {
        for Metric { name, kind, unit, .. } in METRICS {
            assert!(name.starts_with("chainweir_"));
            assert_eq!(name.ends_with("_total"), matches!(kind, Kind::Counter), "{name}");
            assert_eq!(name.ends_with("_seconds"), *unit == Unit::Seconds, "{name}");
            assert_eq!(name.ends_with("_bytes"), *unit == Unit::Bytes, "{name}");
        }
    }
}
