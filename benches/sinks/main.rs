//! Every kind of destination, by Chainweir and by its client library alone: `cargo x sinks [NAME...]`.
//!
//! The same deliveries, ERC-20 transfers with 16 lane keys, go three ways, in turns, three times each; the best of each counts:
//!
//! ```text
//! lane:  journal -> lane -> sink -> server     what a user has; begins with the sink's first call
//! sink:             sink -> server             called as the lane calls it
//! bare:           client -> server             the same event bodies, made beforehand, in batches of the same size
//! ```
//!
//! A bare client waits for the same acknowledgement and promises nothing beyond: no position, no ids, no order after an error. Servers are
//! on this machine, the receiver of webhooks and Kafka's brokers (librdkafka's mock cluster) in this process.

#[path = "../../tests/harness/mod.rs"]
mod harness;
#[cfg(unix)]
#[path = "../../host/heap.rs"]
mod heap;
mod queues;
mod stores;

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, U256, keccak256};
use bytes::Bytes;
use chainweir::journal::sqlite::SqliteJournal;
use chainweir::journal::{ConsumerId, Journal, NewEntry, Step, TrackId, Write};
use chainweir::lane::{Lane, Routed, Settings};
use chainweir::model::*;
use chainweir::sink::{Fill, KINDS, Open, Shape, Sink, SinkError, Track, cloudevent};
use futures::future::BoxFuture;
use tokio::sync::{Notify, watch};

const ROUNDS: usize = 3;
const LANE_KEYS: u64 = 16;
/// Events of a block, and blocks of a step into the journal.
const BLOCK: u64 = 100;
const STEP: usize = 5_000;
/// One after the other, for the time until one is acknowledged.
const SINGLE: u64 = 500;
const PATIENCE: Duration = Duration::from_secs(120);

/// What a bare client has of a delivery.
pub struct Piece {
    pub key: String,
    /// The event, as the sink sends it.
    pub body: Bytes,
    /// The row, in the order of the sink's columns.
    pub row: Vec<Cell>,
}

#[derive(Clone)]
pub enum Cell {
    Null,
    Text(String),
    Integer(i64),
}

#[async_trait::async_trait]
pub trait Bare: Send {
    /// Returns when all of it is acknowledged.
    async fn send(&mut self, batch: &[Piece]);
}

/// A server, or a folder.
#[async_trait::async_trait]
pub trait Place: Send + Sync {
    /// The table of the output.
    fn table(&self) -> String;
    /// A new client. Asked after a sink was prepared: it finds the sink's table there.
    async fn bare(&self) -> Box<dyn Bare>;
    /// Takes away what was delivered: every run begins alike.
    async fn empty(&self) {}
}

struct Case {
    name: &'static str,
    kind: &'static str,
    acknowledged: &'static str,
    /// Deliveries in a run.
    count: u64,
    /// `None`, with a line that says what to install, where there is no server to be had.
    place: fn() -> BoxFuture<'static, Option<Box<dyn Place>>>,
}

const CASES: &[Case] = &[
    Case {
        name: "webhook",
        kind: "webhook",
        acknowledged: "2xx, 16 under way",
        count: 40_000,
        place: || Box::pin(queues::webhook(1)),
    },
    Case {
        name: "webhook-500",
        kind: "webhook",
        acknowledged: "2xx for an array of up to 500",
        count: 200_000,
        place: || Box::pin(queues::webhook(500)),
    },
    Case {
        name: "nats",
        kind: "nats",
        acknowledged: "JetStream's, 256 under way",
        count: 80_000,
        place: || Box::pin(queues::nats()),
    },
    Case {
        name: "kafka",
        kind: "kafka",
        acknowledged: "transactions of 500, all replicas",
        count: 100_000,
        place: || Box::pin(queues::kafka()),
    },
    Case {
        name: "mqtt",
        kind: "mqtt",
        acknowledged: "QoS 1, windows of 500",
        count: 80_000,
        place: || Box::pin(queues::mqtt()),
    },
    Case {
        name: "rabbitmq",
        kind: "rabbitmq",
        acknowledged: "confirms, persistent, windows of 500",
        count: 40_000,
        place: || Box::pin(queues::rabbitmq()),
    },
    Case {
        name: "redis",
        kind: "redis",
        acknowledged: "XADD by 500, appendfsync always",
        count: 100_000,
        place: || Box::pin(queues::redis()),
    },
    Case {
        name: "postgres",
        kind: "postgres",
        acknowledged: "transactions of 1,000, synchronous_commit on",
        count: 60_000,
        place: || Box::pin(stores::postgres()),
    },
    Case {
        name: "mysql",
        kind: "mysql",
        acknowledged: "transactions of 1,000, flushed at commit",
        count: 60_000,
        place: || Box::pin(stores::mysql()),
    },
    Case {
        name: "sqlite",
        kind: "sqlite",
        acknowledged: "transactions of 500, WAL, synchronous full",
        count: 100_000,
        place: || Box::pin(stores::sqlite()),
    },
    Case {
        name: "file",
        kind: "file",
        acknowledged: "fdatasync after 500 lines",
        count: 200_000,
        place: || Box::pin(stores::file()),
    },
    Case {
        name: "object_store",
        kind: "object_store",
        acknowledged: "file:// with fsync, objects of 10,000",
        count: 200_000,
        place: || Box::pin(stores::objects()),
    },
];

fn output() -> OutputName {
    OutputName::new("out").expect("a name")
}

fn stream() -> StreamId {
    "erc20-transfers.transfers".parse().expect("a name")
}

fn track() -> Track {
    Track { output: output(), stream: stream(), chain: ChainId(1) }
}

fn spec() -> StreamSpec {
    let schema = serde_json::json!({ "type": "object", "properties": {
        "token": { "type": "string", "format": "address" },
        "from": { "type": "string", "format": "address" },
        "to": { "type": "string", "format": "address" },
        "value": { "type": "string", "format": "uint256" },
        "transaction": { "type": "string" },
        "log_index": { "type": "integer" },
    } });
    StreamSpec { name: stream().stream, description: "transfers".into(), schema: Some(schema) }
}

fn block(number: u64) -> BlockRef {
    let hash = |number: u64| B256::from(U256::from(number));
    let parent = hash(number.saturating_sub(1));
    BlockRef { chain: ChainId(1), number, hash: hash(number), parent, time: 1_700_000_000 + number }
}

/// The `n`-th transfer of all runs: token, from, to, value, transaction, log index.
fn transfer(n: u64) -> (Address, Address, Address, String, B256, u64) {
    let words = keccak256(n.to_le_bytes());
    let token = Address::from_word(keccak256((n % LANE_KEYS).to_be_bytes()));
    let value = (u128::from(n) * 1_000_000_000_000_000).to_string();
    (token, Address::from_word(words), Address::from_word(keccak256(words)), value, words, n % BLOCK)
}

fn entry(track: TrackId, n: u64) -> NewEntry {
    let (token, from, to, value, transaction, log) = transfer(n);
    let (block, position) = (block(n / BLOCK), EventPosition::Log(log as u32));
    let payload = format!(
        "{{\"token\":\"{token:?}\",\"from\":\"{from:?}\",\"to\":\"{to:?}\",\"value\":\"{value}\",\
         \"transaction\":\"{transaction:?}\",\"log_index\":{log}}}"
    );
    NewEntry {
        track,
        emission: EmissionId::of(ChainId(1), &block.hash, position, &stream(), 0, 0),
        block,
        position,
        ordinal: 0,
        lane_key: format!("{token:?}"),
        content_type: ContentType::Json,
        payload: payload.into_bytes(),
    }
}

fn delivery(n: u64, offset: u64) -> Delivery {
    let NewEntry { emission: id, block, position, ordinal, lane_key, content_type, payload, .. } = entry(TrackId(0), n);
    let emission = Emission { id, stream: stream(), block, position, ordinal, lane_key, content_type, payload };
    Delivery { id: DeliveryId::of(id, Some(&output()), Op::Apply), op: Op::Apply, offset, emission: Arc::new(emission) }
}

fn piece(n: u64, offset: u64) -> Piece {
    let delivery = delivery(n, offset);
    let emission = &*delivery.emission;
    let (token, from, to, value, transaction, log) = transfer(n);
    let time = cloudevent::rfc3339(emission.block.time).expect("a year of four digits");
    let text = Cell::Text;
    let row = vec![
        text(emission.id.to_string()),
        text(emission.block.chain.to_string()),
        Cell::Integer(emission.block.number as i64),
        text(emission.block.hash.to_string()),
        // As every database takes it.
        text(time.trim_end_matches('Z').replace('T', " ")),
        text(emission.lane_key.clone()),
        Cell::Integer(offset as i64),
        text(format!("{token:?}")),
        text(format!("{from:?}")),
        text(format!("{to:?}")),
        text(value),
        text(format!("{transaction:?}")),
        Cell::Integer(log as i64),
        Cell::Null,
    ];
    Piece { key: emission.lane_key.clone(), body: cloudevent::encode(&delivery).into(), row }
}

/// What this process has used, and what went over the loopback and into files.
#[derive(Clone, Copy)]
struct Usage {
    at: Instant,
    processor: Duration,
    loopback: u64,
    written: u64,
}

impl Usage {
    fn now() -> Self {
        // proc(5): fields 14 and 15, counted behind the name, in ticks of 10 ms.
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        let after = |file: &str, name: &str, field: usize| -> u64 {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
            line.and_then(|line| line.split_whitespace().nth(field)?.parse().ok()).unwrap_or(0)
        };
        let (loopback, written) = (after("/proc/net/dev", "lo:", 8), after("/proc/self/io", "wchar:", 0));
        Self { at: Instant::now(), processor: Duration::from_millis(10 * ticks), loopback, written }
    }
}

/// Of one run.
#[derive(Clone, Copy, Default)]
struct Run {
    rate: f64,
    processor_us: f64,
    /// Both directions of the loopback; for a folder, what was written.
    bytes: f64,
}

impl Run {
    fn between(began: Usage, ended: Usage, count: u64) -> Self {
        let count = count as f64;
        let loopback = ended.loopback - began.loopback;
        let bytes = if loopback as f64 > 10.0 * count { loopback } else { ended.written - began.written };
        Self {
            rate: count / (ended.at - began.at).as_secs_f64(),
            processor_us: (ended.processor - began.processor).as_secs_f64() * 1e6 / count,
            bytes: bytes as f64 / count,
        }
    }
}

/// The sink, and when its first call began and its last ended.
struct Counted {
    sink: Arc<dyn Sink>,
    all: usize,
    done: AtomicUsize,
    began: OnceLock<Usage>,
    ended: OnceLock<Usage>,
    over: Notify,
}

#[async_trait::async_trait]
impl Sink for Counted {
    fn shape(&self) -> Shape {
        self.sink.shape()
    }
    fn fill(&self) -> Option<Fill> {
        self.sink.fill()
    }
    async fn prepare(&self, stream: &StreamId, spec: &StreamSpec) -> Result<(), SinkError> {
        self.sink.prepare(stream, spec).await
    }
    async fn position(&self, track: &Track) -> Result<Option<u64>, SinkError> {
        self.sink.position(track).await
    }
    async fn deliver(&self, track: &Track, batch: &[Delivery]) -> Vec<Outcome> {
        self.began.get_or_init(Usage::now);
        let outcomes = self.sink.deliver(track, batch).await;
        all_delivered(&outcomes);
        if self.done.fetch_add(outcomes.len(), Ordering::SeqCst) + outcomes.len() >= self.all {
            self.ended.get_or_init(Usage::now);
            self.over.notify_one();
        }
        outcomes
    }
}

fn all_delivered(outcomes: &[Outcome]) {
    let failed = outcomes.iter().find(|outcome| **outcome != Outcome::Delivered);
    assert!(failed.is_none(), "a server that is there takes everything: {failed:?}");
}

/// A case with its server.
struct Stand<'a> {
    case: &'a Case,
    place: Box<dyn Place>,
    count: u64,
    /// Transfers that were sent until now: none is sent twice.
    sent: AtomicU64,
    runs: AtomicU64,
}

impl Stand<'_> {
    fn next(&self, count: u64) -> u64 {
        // A run begins with a block.
        self.sent.fetch_add(count.next_multiple_of(BLOCK), Ordering::Relaxed)
    }

    /// With the memory of another journal than those before.
    async fn sink(&self, journal: Option<String>) -> Arc<dyn Sink> {
        let kind = KINDS.iter().find(|kind| kind.name == self.case.kind).expect("the kind is in the list");
        let table = self.place.table().parse().expect("the bench's own table");
        let journal = journal.unwrap_or_else(|| format!("bench-{}", self.runs.fetch_add(1, Ordering::Relaxed)));
        let open = Open { name: output(), table, base: Path::new(".").into(), journal };
        (kind.open)(open).await.expect("the sink opens")
    }

    async fn prepared(&self) -> Arc<dyn Sink> {
        let sink = self.sink(None).await;
        // A server may listen before it takes anybody in.
        harness::until("the sink to be ready", || async { sink.prepare(&stream(), &spec()).await.ok() }).await;
        harness::until("the sink's position", || async { sink.position(&track()).await.ok() }).await;
        sink
    }

    async fn by_lane(&self) -> Run {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let journal = SqliteJournal::open(&folder.path().join("journal.db")).expect("a journal");
        let plugin = stream().plugin;
        let consumer = Write::Consumer { plugin, chain: ChainId(1), state_version: 1 };
        let consumer = ConsumerId(journal.commit(consumer).await.expect("it is written").id);
        let track = Write::Track { stream: stream(), chain: ChainId(1), spec: spec() };
        let track = TrackId(journal.commit(track).await.expect("it is written").id);
        let first = self.next(self.count);
        let mut from = None;
        let numbers: Vec<u64> = (first..first + self.count).collect();
        for part in numbers.chunks(STEP) {
            let entries: Vec<NewEntry> = part.iter().map(|n| entry(track, *n)).collect();
            let cursor = entries.last().expect("a chunk is not empty").block;
            let step = Step {
                consumer,
                from,
                cursor,
                undo: false,
                aside: false,
                said: None,
                safe: cursor.number,
                finalized: cursor.number,
                state_version: 1,
                state: vec![],
                entries,
                poison: vec![],
                asks: vec![],
                taken: None,
            };
            journal.commit(Write::Step(step)).await.expect("it is written");
            from = Some(cursor);
        }
        let sink = self.sink(Some(journal.id().to_owned())).await;
        let counted = Arc::new(Counted {
            sink,
            all: self.count as usize,
            done: AtomicUsize::new(0),
            began: OnceLock::new(),
            ended: OnceLock::new(),
            over: Notify::new(),
        });
        let routed = journal.tracks().expect("the track is there").into_iter();
        let routed = routed.map(|track| Routed { track, when: When::Latest }).collect();
        let (_routes, routed) = watch::channel(Arc::new(routed));
        let settings = Settings {
            output: output(),
            kind: self.case.kind.into(),
            attempts: 3,
            stop_on_refused: false,
            disable_after: Duration::MAX,
        };
        let lane = Lane::start(settings, counted.clone(), journal, routed);
        tokio::time::timeout(PATIENCE, counted.over.notified()).await.expect("all is delivered");
        lane.stop().await;
        let (began, ended) = (counted.began.get().expect("it began"), counted.ended.get().expect("it ended"));
        Run::between(*began, *ended, self.count)
    }

    async fn by_sink(&self) -> Run {
        let sink = self.prepared().await;
        let first = self.next(self.count);
        let all: Vec<Delivery> = (0..self.count).map(|n| delivery(first + n, n + 1)).collect();
        let shape = sink.shape();
        if shape.batch > 1 {
            let began = Usage::now();
            for batch in all.chunks(shape.batch) {
                all_delivered(&sink.deliver(&track(), batch).await);
            }
            return Run::between(began, Usage::now(), self.count);
        }
        let began = Usage::now();
        let tasks = split(all, shape.concurrency).into_iter().map(|own| {
            let sink = sink.clone();
            tokio::spawn(async move {
                let track = track();
                for one in own.chunks(1) {
                    all_delivered(&sink.deliver(&track, one).await);
                }
            })
        });
        futures::future::try_join_all(tasks).await.expect("no task panics");
        Run::between(began, Usage::now(), self.count)
    }

    async fn by_bare(&self, shape: Shape) -> Run {
        let first = self.next(self.count);
        let all: Vec<Piece> = (0..self.count).map(|n| piece(first + n, n + 1)).collect();
        if shape.batch > 1 {
            let mut bare = self.place.bare().await;
            let began = Usage::now();
            for batch in all.chunks(shape.batch) {
                bare.send(batch).await;
            }
            return Run::between(began, Usage::now(), self.count);
        }
        let mut tasks = vec![];
        for own in split(all, shape.concurrency) {
            tasks.push((self.place.bare().await, own));
        }
        let began = Usage::now();
        let tasks = tasks.into_iter().map(|(mut bare, own)| {
            tokio::spawn(async move {
                for one in own.chunks(1) {
                    bare.send(one).await;
                }
            })
        });
        futures::future::try_join_all(tasks).await.expect("no task panics");
        Run::between(began, Usage::now(), self.count)
    }

    /// Milliseconds until a single one is acknowledged, by the sink and by the client, one after the other.
    async fn singly(&self, count: u64) -> [Vec<f64>; 2] {
        let (sink, mut bare) = (self.prepared().await, self.place.bare().await);
        let first = self.next(2 * count);
        let mut took = [vec![], vec![]];
        for n in 0..count {
            let one = [delivery(first + 2 * n, n + 1)];
            let began = Instant::now();
            all_delivered(&sink.deliver(&track(), &one).await);
            took[0].push(began.elapsed().as_secs_f64() * 1e3);
            let one = [piece(first + 2 * n + 1, n + 1)];
            let began = Instant::now();
            bare.send(&one).await;
            took[1].push(began.elapsed().as_secs_f64() * 1e3);
        }
        took.iter_mut().for_each(|took| took.sort_by(f64::total_cmp));
        took
    }
}

/// Each gets the lane keys of its own.
fn split<T>(all: Vec<T>, parts: usize) -> Vec<Vec<T>> {
    let mut split: Vec<Vec<T>> = (0..parts).map(|_| vec![]).collect();
    all.into_iter().enumerate().for_each(|(n, one)| split[n % parts].push(one));
    split
}

fn best(run: Run, best: &mut Run) {
    if run.rate > best.rate {
        *best = run;
    }
}

/// The row of each of the two tables.
async fn measure(case: &Case, smoke: bool) -> Option<[String; 2]> {
    let place = (case.place)().await?;
    let mut stand = Stand { case, place, count: case.count, sent: AtomicU64::new(0), runs: AtomicU64::new(0) };
    let shape = stand.prepared().await.shape();
    if smoke {
        stand.count = shape.batch as u64 * 2;
    }
    let [mut lane, mut sink, mut bare] = [Run::default(); 3];
    for round in 1..=if smoke { 1 } else { ROUNDS } {
        stand.place.empty().await;
        let by_lane = stand.by_lane().await;
        stand.place.empty().await;
        let by_sink = stand.by_sink().await;
        stand.place.empty().await;
        let by_bare = stand.by_bare(shape).await;
        let [a, b, c] = [by_lane, by_sink, by_bare].map(|run| run.rate);
        eprintln!("{} {round}: lane {a:.0}/s, sink {b:.0}/s, bare {c:.0}/s", case.name);
        best(by_lane, &mut lane);
        best(by_sink, &mut sink);
        best(by_bare, &mut bare);
    }
    stand.place.empty().await;
    let [ours, theirs] = stand.singly(if smoke { 5 } else { SINGLE }).await;
    let at = |took: &[f64], share: f64| took[(share * (took.len() - 1) as f64) as usize];
    let name = case.name;
    Some([
        format!(
            "| {name} | {} | {:.0} | {:.0} | {:.0} | {:.2} | {:.2} |",
            case.acknowledged,
            lane.rate,
            sink.rate,
            bare.rate,
            lane.rate / bare.rate,
            sink.rate / bare.rate,
        ),
        format!(
            "| {name} | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} | {:.2} | {:.2} | {:.2} | {:.2} |",
            lane.processor_us,
            sink.processor_us,
            bare.processor_us,
            sink.bytes,
            bare.bytes,
            at(&ours, 0.5),
            at(&ours, 0.99),
            at(&theirs, 0.5),
            at(&theirs, 0.99),
        ),
    ])
}

#[tokio::main]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let (flags, names): (Vec<String>, Vec<String>) = words.into_iter().partition(|word| word.starts_with("--"));
    let smoke = flags.iter().any(|flag| flag == "--smoke");
    // Already installed by another part of the process: the same provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let [mut rates, mut costs] = [vec![], vec![]];
    for case in CASES.iter().filter(|case| names.is_empty() || names.iter().any(|name| case.name.contains(name))) {
        if let Some([rate, cost]) = measure(case, smoke).await {
            rates.push(rate);
            costs.push(cost);
        }
    }
    println!("| destination | acknowledged | lane, deliveries/s | sink, /s | bare, /s | lane to bare | sink to bare |");
    println!("|---|---|---|---|---|---|---|");
    println!("{}\n", rates.join("\n"));
    println!(
        "| destination | lane, us of CPU each | sink, us | bare, us | sink, bytes each | bare, bytes | sink p50, ms | sink p99, ms \
         | bare p50, ms | bare p99, ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    println!("{}", costs.join("\n"));
}
