//! What every sink promises, asked of every kind against the real server: order, nothing lost, nothing doubled, and a
//! reason without a secret when it cannot.

pub mod kafka;
pub mod mqtt;
mod mysql;
mod newest;
mod object_store;
pub mod rabbitmq;
mod redis;
mod stores;
mod webhook;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::B256;
use chainweir::model::*;
use chainweir::sink::{KINDS, Open, Sink, SinkError, Track};

use crate::harness::cable::{Break, Cable};
use crate::harness::nats::Nats;
use crate::harness::postgres::Postgres;
use crate::harness::until;

async fn open(kind: &str, table: &str, base: &Path) -> Result<Arc<dyn Sink>, SinkError> {
    let kind = KINDS.iter().find(|k| k.name == kind).expect("the kind is in the list");
    let table = table.parse().expect("the test's own table");
    (kind.open)(Open {
        name: OutputName::new("orders").unwrap(),
        table,
        base: base.into(),
        journal: "journal-1".into(),
    })
    .await
}

fn stream() -> StreamId {
    "whale.large-moves".parse().unwrap()
}

fn track() -> Track {
    Track { output: OutputName::new("orders").unwrap(), stream: stream(), chain: ChainId(1) }
}

fn spec() -> StreamSpec {
    let schema = serde_json::json!({ "type": "object", "properties": {
        "n": { "type": "integer" },
        "value": { "type": "string", "format": "uint256" },
        "to": { "type": "string", "format": "address" },
        "tags": { "type": "array" },
    } });
    StreamSpec { name: stream().stream, description: "moves".into(), schema: Some(schema) }
}

const MAX: &str = "115792089237316195423570985008687907853269984665640564039457584007913129639935";

fn payload(n: u64) -> String {
    format!(r#"{{"n": {n}, "value": "{MAX}", "to": "0xab'\";--{n}", "tags": ["é", {n}], "more": 1.10}}"#)
}

/// What is said of the `n`-th emission.
fn said(op: Op, n: u64, offset: u64, payload: String) -> Delivery {
    let hash = B256::from(alloy_primitives::U256::from(n));
    let block = BlockRef { chain: ChainId(1), number: n, hash, parent: B256::ZERO, time: 1_700_000_000 + n };
    let id = EmissionId::of(ChainId(1), &hash, EventPosition::Log(0), &stream(), 0, 0);
    let emission = Emission {
        id,
        stream: stream(),
        block,
        position: EventPosition::Log(0),
        ordinal: 0,
        lane_key: "key".into(),
        content_type: ContentType::Json,
        payload: payload.into_bytes(),
    };
    Delivery { id: DeliveryId::of(id, Some(&track().output), op), op, offset, emission: Arc::new(emission) }
}

/// The `n`-th emission, applied at the offset `n`.
fn apply(n: u64) -> Delivery {
    said(Op::Apply, n, n, payload(n))
}

fn applies(numbers: std::ops::RangeInclusive<u64>) -> Vec<Delivery> {
    numbers.map(apply).collect()
}

fn all_delivered(outcomes: &[Outcome]) {
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Delivered), "{outcomes:?}");
}

/// A destination, as its reader sees it.
#[async_trait::async_trait]
trait Place: Send + Sync {
    async fn sink(&self) -> Arc<dyn Sink> {
        let (kind, table, _) = self.wire().expect("a place without a wire opens its sink itself");
        open(kind, &table, Path::new(".")).await.unwrap()
    }
    /// Where there is a server: the kind, the output's table, and the port in it.
    fn wire(&self) -> Option<(&'static str, String, u16)> {
        None
    }
    /// Bytes that the server says within some batches: at one of them the wire breaks.
    fn says(&self) -> u64 {
        20_000
    }
    /// The emissions that hold, by their `n`.
    async fn net(&self) -> BTreeSet<u64>;
    /// The events in the order in which they lie there, for a destination that keeps them: `apply 3`.
    async fn log(&self) -> Option<Vec<String>>;
    /// A repeat in one process is seen by the destination itself.
    fn knows_repeats(&self) -> bool {
        true
    }
    /// Whether the destination itself knows how far it has come.
    fn keeps_position(&self) -> bool {
        true
    }
    /// False where there is no server.
    fn kill(&mut self) -> bool;
    async fn restart(&mut self);
}

fn net_of(log: &[String]) -> BTreeSet<u64> {
    let mut net = BTreeSet::new();
    for event in log {
        let (op, n) = event.split_once(' ').unwrap();
        let n = n.parse().unwrap();
        assert!(if op == "apply" { net.insert(n) } else { net.remove(&n) }, "{event} does not follow from {log:?}");
    }
    net
}

/// As a consumer has it that knows a repeat by its id: here, what is said of an emission is said once.
fn without_repeats(log: Vec<String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    log.into_iter().filter(|event| seen.insert(event.clone())).collect()
}

fn event(line: &[u8]) -> String {
    let event: serde_json::Value = serde_json::from_slice(line).expect("an event is JSON");
    assert_eq!(event["specversion"], "1.0");
    assert_eq!(event["type"], "whale.large-moves");
    format!("{} {}", event["op"].as_str().unwrap(), event["data"]["n"])
}

async fn deliver_to_the_end(sink: &dyn Sink, batch: &[Delivery]) {
    let mut done = 0;
    let mut last = None;
    let start = Instant::now();
    while done < batch.len() {
        // Longer than a server may take to start.
        assert!(start.elapsed() < Duration::from_secs(180), "{done} of {} in 180 s: {last:?}", batch.len());
        let end = batch.len().min(done + sink.shape().batch);
        let outcomes = sink.deliver(&track(), &batch[done..end]).await;
        assert_eq!(outcomes.len(), end - done);
        let delivered = outcomes.iter().take_while(|outcome| **outcome == Outcome::Delivered).count();
        let rest = &outcomes[delivered..];
        assert!(rest.iter().all(|outcome| matches!(outcome, Outcome::Retry { .. })), "after a Retry all are: {rest:?}");
        done += delivered;
        last = rest.first().cloned();
        if !rest.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The promises of a sink that keeps what it gets, one after another.
async fn contract(mut place: impl Place) {
    let sink = place.sink().await;
    let keeps = place.keeps_position();
    let kept = |offset: u64| Some(offset).filter(|_| keeps);
    sink.prepare(&stream(), &spec()).await.unwrap();
    assert_eq!(sink.position(&track()).await.unwrap(), None, "nothing was delivered yet");
    assert_eq!(sink.deliver(&track(), &[]).await, vec![]);

    // In order.
    all_delivered(&sink.deliver(&track(), &applies(1..=10)).await);
    let mut holds: BTreeSet<u64> = (1..=10).collect();
    assert_eq!(place.net().await, holds);
    assert_eq!(sink.position(&track()).await.unwrap(), kept(10));
    if let Some(log) = place.log().await {
        assert_eq!(log, (1..=10).map(|n| format!("apply {n}")).collect::<Vec<_>>());
    }

    // An emission and its retraction cancel, across batches and within one.
    let mixed = vec![
        said(Op::Retract, 10, 11, payload(10)),
        said(Op::Retract, 9, 12, payload(9)),
        apply(13),
        apply(14),
        said(Op::Retract, 13, 15, payload(13)),
    ];
    all_delivered(&sink.deliver(&track(), &mixed).await);
    holds.retain(|n| *n < 9);
    holds.insert(14);
    assert_eq!(place.net().await, holds);

    // A repeat changes nothing.
    if place.knows_repeats() {
        let before = place.log().await;
        all_delivered(&sink.deliver(&track(), &mixed).await);
        assert_eq!((place.net().await, place.log().await), (holds.clone(), before));
    }

    // A new sink goes on where the destination says.
    drop(sink);
    let sink = place.sink().await;
    assert_eq!(sink.position(&track()).await.unwrap(), kept(15));
    sink.prepare(&stream(), &spec()).await.unwrap();
    all_delivered(&sink.deliver(&track(), &applies(16..=20)).await);
    holds.extend(16..=20);
    assert_eq!(place.net().await, holds);

    // Another chain, another output and another journal have positions of their own.
    let other = Track { chain: ChainId(5), ..track() };
    assert_eq!(sink.position(&other).await.unwrap(), None);

    // A server that is gone: all waits, nothing is lost.
    if place.kill() {
        let outcomes = sink.deliver(&track(), &applies(21..=30)).await;
        assert_eq!(outcomes.len(), 10);
        for outcome in &outcomes {
            let Outcome::Retry { why, .. } = outcome else { panic!("{outcome:?}") };
            assert!(!why.is_empty() && !why.contains("correct-horse"), "{why}");
        }
        place.restart().await;
        deliver_to_the_end(&*sink, &applies(21..=30)).await;
        holds.extend(21..=30);
        assert_eq!(place.net().await, holds);

        // A server that dies while batches come without a pause.
        let mut from = 31;
        for round in 0..3 {
            let (stop, stopped) = tokio::sync::watch::channel(false);
            let sink = sink.clone();
            let delivering = tokio::spawn(async move {
                let mut next = from;
                while !*stopped.borrow() {
                    let end = next + sink.shape().batch as u64;
                    deliver_to_the_end(&*sink, &applies(next..=end - 1)).await;
                    next = end;
                }
                next
            });
            let floor = from + 500 + 300 * round;
            until("some of it to be there", || async { place.net().await.contains(&floor).then_some(()) }).await;
            place.kill();
            place.restart().await;
            stop.send_replace(true);
            let next = delivering.await.unwrap();
            holds.extend(from..next);
            assert!(place.net().await == holds, "lost or invented in round {round}");
            from = next;
        }
        if let Some(log) = place.log().await {
            let applied: Vec<u64> =
                log.iter().filter_map(|event| event.strip_prefix("apply ")?.parse().ok()).filter(|n| *n > 20).collect();
            assert!(applied.is_sorted_by(|a, b| a < b), "doubled or out of order");
        }
        assert_eq!(sink.position(&track()).await.unwrap(), kept(from - 1));
    }
}

/// A dead letter that was put back, or what a person asked for once more.
async fn what_is_sent_again_leaves_the_position(place: impl Place) {
    let sink = place.sink().await;
    sink.prepare(&stream(), &spec()).await.unwrap();
    all_delivered(&sink.deliver(&track(), &applies(1..=10)).await);
    // With an id that no server takes for a repeat.
    let again = Delivery { id: DeliveryId::of(apply(3).emission.id, None, Op::Apply), ..apply(3) };
    all_delivered(&sink.deliver(&track(), &[again]).await);
    drop(sink);
    let sink = place.sink().await;
    let kept = sink.position(&track()).await.unwrap();
    assert!(kept == Some(10) || kept.is_none(), "{kept:?}: it would all be sent again from there");
    sink.prepare(&stream(), &spec()).await.unwrap();
    all_delivered(&sink.deliver(&track(), &applies(11..=12)).await);
    // A file has one owner.
    drop(sink);
    assert_eq!(place.sink().await.position(&track()).await.unwrap(), Some(12));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_again_moves_no_position_of_a_store_or_a_queue() {
    what_is_sent_again_leaves_the_position(SqlitePlace(tempfile::tempdir().unwrap(), "")).await;
    what_is_sent_again_leaves_the_position(FilePlace(tempfile::tempdir().unwrap())).await;
    if let Some(server) = Nats::start(None).await {
        what_is_sent_again_leaves_the_position(NatsPlace(server)).await;
    }
    if let Some(server) = Postgres::start().await {
        what_is_sent_again_leaves_the_position(PostgresPlace(server, String::new())).await;
    }
}

/// The wire to the server breaks at any byte of what either says, or falls silent.
async fn cuts(place: impl Place) {
    let (.., port) = place.wire().expect("a server");
    cuts_of(&Cable::to(port).await, place).await;
}

/// The same, by a wire that is there.
async fn cuts_of(cable: &Cable, place: impl Place) {
    use rand::{Rng, SeedableRng};
    let mut rng = rand::rngs::StdRng::seed_from_u64(crate::harness::belt::seed());
    let (kind, table, port) = place.wire().expect("a server");
    let table = table.replace(&format!(":{port}"), &format!(":{}", cable.port)) + "\ntimeout_ms = 1000";
    let sink = open(kind, &table, Path::new(".")).await.unwrap();
    until("the sink to be ready", || async { sink.prepare(&stream(), &spec()).await.ok() }).await;
    let (mut from, mut holds, batch) = (1, BTreeSet::new(), sink.shape().batch as u64);
    for round in 0..crate::harness::belt::times(4, 60) {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let failed = Arc::new(tokio::sync::Notify::new());
        let (to, fails) = (sink.clone(), failed.clone());
        let delivering = tokio::spawn(async move {
            let mut next = from;
            while !*stopped.borrow() {
                let outcomes = to.deliver(&track(), &applies(next..=next + batch - 1)).await;
                let done = outcomes.iter().take_while(|outcome| **outcome == Outcome::Delivered).count() as u64;
                next += done;
                if done < batch {
                    fails.notify_one();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            next
        });
        let how = if round % 4 < 2 { Break::Cut } else { Break::Silence };
        if round % 2 == 0 {
            cable.break_after(rng.random_range(0..place.says()), how);
        } else {
            // Within some five batches, of rows or messages of 400 bytes.
            cable.break_after_asked(rng.random_range(0..5 * 400 * batch), how);
        }
        until("the wire to break", || async { cable.is_broken().then_some(()) }).await;
        failed.notified().await;
        cable.mend();
        stop.send_replace(true);
        // What was under way may be there without an answer: it is said again.
        let next = delivering.await.unwrap();
        let end = next + batch;
        deliver_to_the_end(&*sink, &applies(next..=end - 1)).await;
        holds.extend(from..end);
        assert!(place.net().await == holds, "lost or invented in round {round}");
        from = end;
    }
    if let Some(log) = place.log().await {
        let applied: Vec<u64> = log.iter().filter_map(|event| event.strip_prefix("apply ")?.parse().ok()).collect();
        assert!(applied.is_sorted_by(|a, b| a < b), "doubled or out of order");
    }
}

struct FilePlace(tempfile::TempDir);

impl FilePlace {
    fn path(&self) -> PathBuf {
        self.0.path().join("out.ndjson")
    }
}

#[async_trait::async_trait]
impl Place for FilePlace {
    async fn sink(&self) -> Arc<dyn Sink> {
        // What another test starts has the file of the sink before it too, until it has become a program of its own.
        until("the file to be let go", || async { open("file", "path = 'out.ndjson'", self.0.path()).await.ok() }).await
    }
    async fn net(&self) -> BTreeSet<u64> {
        net_of(&self.log().await.unwrap())
    }
    async fn log(&self) -> Option<Vec<String>> {
        let text = std::fs::read(self.path()).unwrap();
        Some(text.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(event).collect())
    }
    fn knows_repeats(&self) -> bool {
        false
    }
    fn kill(&mut self) -> bool {
        false
    }
    async fn restart(&mut self) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_keeps_the_contract() {
    contract(FilePlace(tempfile::tempdir().unwrap())).await;
}

struct SqlitePlace(tempfile::TempDir, &'static str);

#[async_trait::async_trait]
impl Place for SqlitePlace {
    async fn sink(&self) -> Arc<dyn Sink> {
        open("sqlite", &format!("path = 'out.db'\n{}", self.1), self.0.path()).await.unwrap()
    }
    async fn net(&self) -> BTreeSet<u64> {
        let db = rusqlite::Connection::open(self.0.path().join("out.db")).unwrap();
        let mut select = db.prepare("SELECT n FROM whale_large_moves ORDER BY _cursor").unwrap();
        select.query_map([], |row| row.get::<_, i64>(0)).unwrap().map(|n| n.unwrap() as u64).collect()
    }
    async fn log(&self) -> Option<Vec<String>> {
        None
    }
    fn kill(&mut self) -> bool {
        false
    }
    async fn restart(&mut self) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_keeps_the_contract() {
    contract(SqlitePlace(tempfile::tempdir().unwrap(), "")).await;
}

struct PostgresPlace(Postgres, String);

#[async_trait::async_trait]
impl Place for PostgresPlace {
    fn wire(&self) -> Option<(&'static str, String, u16)> {
        Some(("postgres", format!("url = '{}'\n{}", self.0.url(), self.1), self.0.port()))
    }
    async fn net(&self) -> BTreeSet<u64> {
        if self.1.contains("append") {
            return net_of(&self.log().await.unwrap());
        }
        let mark = if self.1.contains("mark") { "WHERE _retracted_at_cursor IS NULL" } else { "" };
        let client = self.0.client().await;
        let rows = client.query(&format!("SELECT n FROM whale_large_moves {mark}"), &[]).await.unwrap();
        rows.iter().map(|row| row.get::<_, i64>(0) as u64).collect()
    }
    async fn log(&self) -> Option<Vec<String>> {
        if !self.1.contains("append") {
            return None;
        }
        let client = self.0.client().await;
        let rows = client.query("SELECT _op, n FROM whale_large_moves ORDER BY _cursor", &[]).await.unwrap();
        Some(rows.iter().map(|row| format!("{} {}", row.get::<_, String>(0), row.get::<_, i64>(1))).collect())
    }
    fn kill(&mut self) -> bool {
        self.0.kill();
        true
    }
    async fn restart(&mut self) {
        self.0.restart().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_keeps_the_contract() {
    let Some(server) = Postgres::start().await else { return };
    contract(PostgresPlace(server, String::new())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_that_appends_keeps_the_contract() {
    let Some(server) = Postgres::start().await else { return };
    contract(PostgresPlace(server, "retract = 'append'".into())).await;
}

/// A table that was made to delete has no place for what was taken back, and one that appends no single row to delete.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_appends_what_is_taken_back_and_says_when_its_table_was_made_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let sink = open("sqlite", "path = 'out.db'\nretract = 'append'", folder.path()).await.unwrap();
    sink.prepare(&stream(), &spec()).await.unwrap();
    let batch = [apply(1), apply(2), said(Op::Retract, 2, 3, payload(2))];
    all_delivered(&sink.deliver(&track(), &batch).await);
    // Once, however often it comes.
    all_delivered(&sink.deliver(&track(), &batch).await);
    let db = rusqlite::Connection::open(folder.path().join("out.db")).unwrap();
    let rows: Vec<(String, i64, i64)> = db
        .prepare("SELECT _op, n, _cursor FROM whale_large_moves ORDER BY _cursor")
        .unwrap()
        .query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(rows, [("apply".into(), 1, 1), ("apply".into(), 2, 2), ("retract".into(), 2, 3)]);
    drop(sink);
    let sink = open("sqlite", "path = 'out.db'", folder.path()).await.unwrap();
    let told = why(sink.prepare(&stream(), &spec()).await.unwrap_err());
    assert!(told.contains("retract is no longer \"append\"") && told.contains("another table"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_that_marks_keeps_the_contract() {
    let Some(server) = Postgres::start().await else { return };
    contract(PostgresPlace(server, "retract = 'mark'".into())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_loses_and_doubles_nothing_when_the_wire_breaks() {
    let Some(server) = Postgres::start().await else { return };
    cuts(PostgresPlace(server, "batch = 250".into())).await;
}

struct NatsPlace(Nats);

#[async_trait::async_trait]
impl Place for NatsPlace {
    fn wire(&self) -> Option<(&'static str, String, u16)> {
        Some(("nats", format!("url = '{}'", self.0.url()), self.0.port()))
    }
    async fn net(&self) -> BTreeSet<u64> {
        net_of(&self.log().await.unwrap())
    }
    async fn log(&self) -> Option<Vec<String>> {
        Some(nats_log(&self.0.url()).await)
    }
    fn kill(&mut self) -> bool {
        self.0.kill();
        true
    }
    async fn restart(&mut self) {
        self.0.restart().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_loses_and_doubles_nothing_when_the_wire_breaks() {
    let Some(server) = Nats::start(None).await else { return };
    cuts(NatsPlace(server)).await;
}

/// Every message of the stream CHAINWEIR, in its order.
async fn nats_log(url: &str) -> Vec<String> {
    use futures::StreamExt;
    let client = async_nats::connect(url).await.unwrap();
    let context = async_nats::jetstream::new(client);
    let stream = until("the stream", || async { context.get_stream("CHAINWEIR").await.ok() }).await;
    let count = stream.cached_info().state.messages;
    let config = async_nats::jetstream::consumer::pull::OrderedConfig::default();
    let consumer = stream.create_consumer(config).await.unwrap();
    let mut messages = consumer.messages().await.unwrap();
    let mut log = vec![];
    while (log.len() as u64) < count {
        let message = tokio::time::timeout(Duration::from_secs(10), messages.next()).await.unwrap().unwrap().unwrap();
        let headers = message.headers.as_ref().unwrap();
        assert_eq!(headers.get("Content-Type").unwrap().as_str(), "application/cloudevents+json");
        log.push(event(&message.payload));
    }
    log
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_keeps_the_contract() {
    let Some(server) = Nats::start(None).await else { return };
    contract(NatsPlace(server)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tracks_of_one_nats_stream_keep_their_orders() {
    let Some(server) = Nats::start(None).await else { return };
    let table = format!("url = '{}'", server.url());
    let (one, two) =
        (open("nats", &table, Path::new(".")).await.unwrap(), open("nats", &table, Path::new(".")).await.unwrap());
    one.prepare(&stream(), &spec()).await.unwrap();
    two.prepare(&stream(), &spec()).await.unwrap();
    let (odd, even): (Vec<_>, Vec<_>) = applies(1..=2_000).into_iter().partition(|delivery| delivery.offset % 2 == 1);
    tokio::join!(deliver_to_the_end(&*one, &odd), deliver_to_the_end(&*two, &even));
    let log = nats_log(&server.url()).await;
    assert_eq!(log.len(), 2_000);
    for rest in [0, 1] {
        let numbers: Vec<u64> = log.iter().map(|e| e[6..].parse().unwrap()).filter(|n| n % 2 == rest).collect();
        assert!(numbers.is_sorted());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_nats_cannot_store_now_is_not_overtaken() {
    use async_nats::jetstream::stream::{Config, DiscardPolicy};
    let Some(server) = Nats::start(None).await else { return };
    let context = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let mut config = Config {
        name: "CHAINWEIR".into(),
        subjects: vec!["chainweir.>".into()],
        max_bytes: 20_000,
        discard: DiscardPolicy::New,
        ..Default::default()
    };
    context.create_stream(config.clone()).await.unwrap();
    let sink = open("nats", &format!("url = '{}'", server.url()), Path::new(".")).await.unwrap();
    let mut batch = applies(1..=6);
    // No room for this one; there would be for those behind it.
    batch[2] = said(Op::Apply, 3, 3, format!(r#"{{"n": 3, "more": "{}"}}"#, "x".repeat(30_000)));
    let outcomes = sink.deliver(&track(), &batch).await;
    all_delivered(&outcomes[..2]);
    assert!(outcomes[2..].iter().all(|outcome| matches!(outcome, Outcome::Retry { .. })), "{outcomes:?}");
    assert_eq!(nats_log(&server.url()).await, ["apply 1", "apply 2"]);
    config.max_bytes = 1_000_000;
    context.update_stream(config).await.unwrap();
    deliver_to_the_end(&*sink, &batch).await;
    assert_eq!(nats_log(&server.url()).await, (1..=6).map(|n| format!("apply {n}")).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_stream_that_must_be_there_is_asked_for() {
    let Some(server) = Nats::start(None).await else { return };
    let table = format!("url = '{}'\ncreate_stream = false\nsubject = 'shop.{{chain}}.{{plugin}}'", server.url());
    let sink = open("nats", &table, Path::new(".")).await.unwrap();
    let told = why(sink.prepare(&stream(), &spec()).await.unwrap_err());
    assert!(told.contains("no stream 'CHAINWEIR'") && told.contains("shop.*.*"), "{told}");
    let outcomes = sink.deliver(&track(), &applies(1..=2)).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Retry { .. })), "{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_too_large_for_nats_is_refused_alone() {
    let Some(server) = Nats::start(None).await else { return };
    let sink = open("nats", &format!("url = '{}'", server.url()), Path::new(".")).await.unwrap();
    sink.prepare(&stream(), &spec()).await.unwrap();
    let mut batch = applies(1..=5);
    batch[2] = said(Op::Apply, 3, 3, format!(r#"{{"n": 3, "more": "{}"}}"#, "x".repeat(2_000_000)));
    let outcomes = sink.deliver(&track(), &batch).await;
    assert!(matches!(&outcomes[2], Outcome::Refused { why } if why.contains("payload")), "{outcomes:?}");
    all_delivered(&[&outcomes[..2], &outcomes[3..]].concat());
    assert_eq!(net_of(&nats_log(&server.url()).await), BTreeSet::from([1, 2, 4, 5]));
    // The refusal is not settled until the lane has it: the position does not pass it.
    assert_eq!(sink.position(&track()).await.unwrap(), None);
    all_delivered(&sink.deliver(&track(), &applies(6..=6)).await);
    assert_eq!(sink.position(&track()).await.unwrap(), Some(6));
}

fn why(error: SinkError) -> String {
    let why = error.to_string();
    assert!(!why.contains("hush-hush"), "{why}");
    why
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_told_without_the_secret() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("password"), "hush-hush\n").unwrap();
    if let Some(server) = Nats::start(Some(("weir", "right"))).await {
        let table = format!("url = '{}'\nuser = 'weir'\npassword_file = 'password'", server.url());
        let sink = open("nats", &table, folder.path()).await.unwrap();
        let told = why(sink.prepare(&stream(), &spec()).await.unwrap_err());
        assert!(told.contains("output.orders") && told.contains("password_env"), "{told}");
        let outcomes = sink.deliver(&track(), &applies(1..=2)).await;
        assert!(
            outcomes.iter().all(|o| matches!(o, Outcome::Retry { why, .. } if !why.contains("hush-hush"))),
            "{outcomes:?}"
        );
    }
    if let Some(server) = Postgres::start().await {
        let sink = open("postgres", &format!("url = '{}'", server.url_with("hush-hush")), folder.path()).await.unwrap();
        let told = why(sink.prepare(&stream(), &spec()).await.unwrap_err());
        assert!(told.contains("output.orders") && told.contains("password authentication failed"), "{told}");
        // By a file, first with the wrong one in it.
        use crate::harness::postgres::{PASSWORD, USER};
        let table = format!(
            "url = 'postgres://{USER}@127.0.0.1:{}/postgres?sslmode=disable'\npassword_file = 'password'",
            server.port()
        );
        let sink = open("postgres", &table, folder.path()).await.unwrap();
        let told = why(sink.prepare(&stream(), &spec()).await.unwrap_err());
        assert!(told.contains("password authentication failed"), "{told}");
        std::fs::write(folder.path().join("password"), PASSWORD).unwrap();
        open("postgres", &table, folder.path()).await.unwrap().prepare(&stream(), &spec()).await.unwrap();
    }
    let told = why(open("postgres", "url = 'postgres://a:hush-hush@[/x'", folder.path()).await.err().unwrap());
    assert!(told.contains("postgres://user:password@host"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_postgres_refuses_is_refused_alone() {
    let Some(server) = Postgres::start().await else { return };
    let sink = open("postgres", &format!("url = '{}'", server.url()), Path::new(".")).await.unwrap();
    sink.prepare(&stream(), &spec()).await.unwrap();
    let mut batch = applies(1..=6);
    // Found by the host, by the server as data, and by a constraint of the user's.
    batch[1] = said(Op::Apply, 2, 2, r#"{"n": 9223372036854775808}"#.into());
    batch[3] = said(Op::Apply, 4, 4, r#"{"n": 4, "to": "a\u0000b"}"#.into());
    batch[4] = said(Op::Apply, 5, 5, r#"{"n": -5}"#.into());
    let client = server.client().await;
    client.batch_execute("ALTER TABLE whale_large_moves ADD CHECK (n > 0)").await.unwrap();
    let outcomes = sink.deliver(&track(), &batch).await;
    for (index, outcome) in outcomes.iter().enumerate() {
        let refused = [1, 3, 4].contains(&index);
        assert_eq!(matches!(outcome, Outcome::Refused { .. }), refused, "{index}: {outcome:?}");
        assert_eq!(*outcome == Outcome::Delivered, !refused, "{index}: {outcome:?}");
    }
    assert_eq!(sink.position(&track()).await.unwrap(), Some(1), "what was refused is not passed before it is settled");
    all_delivered(&sink.deliver(&track(), &applies(7..=7)).await);
    assert_eq!(sink.position(&track()).await.unwrap(), Some(7));
    // From the dead letters: an old offset is written and does not move the position back.
    all_delivered(&sink.deliver(&track(), &applies(4..=4)).await);
    assert_eq!(sink.position(&track()).await.unwrap(), Some(7));
    let rows = client
        .query("SELECT n, value::text, \"to\", tags::text, _extra::text, _chain, _block, _block_hash, _time::text, _lane_key FROM whale_large_moves WHERE n = 4", &[])
        .await
        .unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].get::<_, &str>(1), MAX, "a uint256 keeps every digit");
    assert_eq!(rows[0].get::<_, &str>(2), "0xab'\";--4");
    assert_eq!(rows[0].get::<_, &str>(3), "[\"é\", 4]");
    assert_eq!(rows[0].get::<_, &str>(4), "{\"more\": 1.10}");
    assert_eq!((rows[0].get::<_, &str>(5), rows[0].get::<_, i64>(6)), ("eip155:1", 4));
    assert!(rows[0].get::<_, &str>(7).starts_with("0x0000") && rows[0].get::<_, &str>(7).ends_with("04"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_connection_checks_the_certificate() {
    use crate::harness::postgres::{PASSWORD, USER};
    let Some(mut server) = Postgres::start().await else { return };
    let plain = format!("url = 'postgres://{USER}:{PASSWORD}@localhost:{}/postgres?sslmode=require'", server.port());
    let sink = open("postgres", &plain, Path::new(".")).await.unwrap();
    let told = why(sink.prepare(&stream(), &spec()).await.unwrap_err());
    assert!(told.contains("TLS"), "a server without TLS is not talked to: {told}");
    let Some(certificate) = server.encrypt().await else { return };
    assert!(sink.prepare(&stream(), &spec()).await.is_err(), "nobody vouches for this certificate");
    let table = format!("{plain}\nca_file = '{}'", certificate.display());
    let sink = open("postgres", &table, Path::new(".")).await.unwrap();
    sink.prepare(&stream(), &spec()).await.unwrap();
    all_delivered(&sink.deliver(&track(), &applies(1..=3)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_grows_with_the_schema_and_refuses_a_changed_type() {
    let mut wider = spec();
    wider.schema.as_mut().unwrap()["properties"]["more"] = serde_json::json!({ "type": "number" });
    let mut changed = spec();
    changed.schema.as_mut().unwrap()["properties"]["n"] = serde_json::json!({ "type": "string" });
    let folder = tempfile::tempdir().unwrap();
    let server = Postgres::start().await;
    let mut sinks = vec![open("sqlite", "path = 'out.db'", folder.path()).await.unwrap()];
    if let Some(server) = &server {
        let table = format!("url = '{}'\nschema = 'Out \"1\"'", server.url());
        sinks.push(open("postgres", &table, Path::new(".")).await.unwrap());
    }
    for sink in &sinks {
        sink.prepare(&stream(), &spec()).await.unwrap();
        all_delivered(&sink.deliver(&track(), &applies(1..=2)).await);
        sink.prepare(&stream(), &wider).await.unwrap();
        sink.prepare(&stream(), &wider).await.unwrap();
        all_delivered(&sink.deliver(&track(), &applies(3..=4)).await);
        let told = why(sink.prepare(&stream(), &changed).await.unwrap_err());
        assert!(told.contains("column n of the table") && told.to_lowercase().contains("bigint"), "{told}");
        // The old table goes on.
        all_delivered(&sink.deliver(&track(), &applies(5..=5)).await);
        // Another stream with the same table's name is not mixed in.
        let twin: StreamId = "whale.large_moves".parse().unwrap();
        assert!(why(sink.prepare(&twin, &spec()).await.unwrap_err()).contains("have the same table"));
    }
    let db = rusqlite::Connection::open(folder.path().join("out.db")).unwrap();
    let row: (String, f64, String) = db
        .query_row("SELECT value, more, tags FROM whale_large_moves WHERE n = 4", [], |r| {
            Ok((r.get(0)?, r.get(1)?, r.get(2)?))
        })
        .unwrap();
    assert_eq!(row, (MAX.to_owned(), 1.10, "[\"é\", 4]".to_owned()));
    if let Some(server) = &server {
        let select = "SELECT count(*), count(more), count(_extra) FROM \"Out \"\"1\"\"\".whale_large_moves";
        let row = server.client().await.query_one(select, &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, i64>(2)), (5, 3, 2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_sqlite_refuses_is_refused_alone_and_a_mark_stays() {
    let folder = tempfile::tempdir().unwrap();
    let sink = open("sqlite", "path = 'out.db'\nretract = 'mark'", folder.path()).await.unwrap();
    sink.prepare(&stream(), &spec()).await.unwrap();
    let mut batch = applies(1..=4);
    batch[1] = said(Op::Apply, 2, 2, r#"{"n": "two"}"#.into());
    let outcomes = sink.deliver(&track(), &batch).await;
    assert!(
        matches!(&outcomes[1], Outcome::Refused { why } if why.contains("'n' must be a whole number")),
        "{outcomes:?}"
    );
    assert_eq!(sink.position(&track()).await.unwrap(), Some(1));
    all_delivered(&sink.deliver(&track(), &[said(Op::Retract, 3, 5, payload(3)), apply(3)]).await);
    let db = rusqlite::Connection::open(folder.path().join("out.db")).unwrap();
    let marked: Vec<(i64, Option<i64>)> = db
        .prepare("SELECT n, _retracted_at_cursor FROM whale_large_moves ORDER BY n")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(marked, [(1, None), (3, Some(5)), (4, None)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_output_takes_lines() {
    let sink = open("stdout", "", Path::new(".")).await.unwrap();
    assert_eq!(sink.position(&track()).await.unwrap(), None);
    all_delivered(&sink.deliver(&track(), &applies(1..=1)).await);
}

#[tokio::test]
async fn every_kind_names_its_options_and_refuses_others() {
    for kind in KINDS {
        let told = why(open(kind.name, "urll = 'x'", Path::new(".")).await.err().unwrap());
        assert!(told.contains("unknown key 'urll'"), "{}: {told}", kind.name);
        for (key, help) in kind.options {
            assert!(help.len() > 10, "{}: {key} has no help", kind.name);
        }
    }
}
