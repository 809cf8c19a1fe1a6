//! Kafka, by librdkafka's mock cluster. It knows transactions and answers as it is told, but an aborted transaction's messages stay,
//! and a position written in a transaction is not kept: what is read back from the topic has to make up for both. And by Tansu, a
//! real broker without transactions, where `cargo x nightly` has built it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Answer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::*;
use crate::harness::servers::Server;

pub const TOPIC: &str = "chainweir.whale.large-moves";
const GROUP: &str = "chainweir-journal-1-orders-whale.large-moves-1";
const PARTITIONS: i32 = 3;

const FENCED: Answer = Answer::RD_KAFKA_RESP_ERR_PRODUCER_FENCED;
const TOO_LARGE: Answer = Answer::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
const NONE: Answer = Answer::RD_KAFKA_RESP_ERR_NO_ERROR;

type Mock = MockCluster<'static, DefaultProducerContext>;

#[derive(Clone, Debug)]
pub struct Read {
    partition: i32,
    key: Option<String>,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// A reader of all that is ever in the topic: a broker may keep the last of it alone.
pub struct Topic {
    pub servers: String,
    /// The broker counts the last batch as one message: where it is to count, each partition gets a batch of one first.
    marked: bool,
    reader: Arc<BaseConsumer>,
    read: Arc<Mutex<Vec<Read>>>,
    stop: Arc<AtomicBool>,
}

impl Topic {
    fn read(servers: String, marked: bool) -> Self {
        let reader = Arc::new(consumer(&servers, "reader"));
        let mut list = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            list.add_partition_offset(TOPIC, partition, Offset::Beginning).unwrap();
        }
        reader.assign(&list).unwrap();
        let (read, stop) = (Arc::<Mutex<Vec<Read>>>::default(), Arc::<AtomicBool>::default());
        let (consumer, to, stopped) = (reader.clone(), read.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // An error is a broker that is away.
                let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) else { continue };
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
                let headers = headers.map(|header| (header.key.to_owned(), text(header.value.unwrap()))).collect();
                let (partition, key) = (message.partition(), message.key().map(text));
                to.lock().unwrap().push(Read { partition, key, headers, body: message.payload().unwrap().to_vec() });
            }
        });
        Self { servers, marked, reader, read, stop }
    }

    async fn sink(&self, more: &str) -> Arc<dyn Sink> {
        let table = format!("bootstrap_servers = '{}'\ntimeout_ms = 8000\n{more}", self.servers);
        open("kafka", &table, Path::new(".")).await.unwrap()
    }

    /// All that the brokers had until now.
    pub async fn messages(&self) -> Vec<Read> {
        if self.marked {
            let servers = self.servers.clone();
            tokio::task::spawn_blocking(move || mark(&servers)).await.unwrap();
        }
        let written = until("the brokers to count", || async {
            let reader = self.reader.clone();
            let end = move |p| Some(reader.fetch_watermarks(TOPIC, p, Duration::from_secs(10)).ok()?.1);
            tokio::task::spawn_blocking(move || (0..PARTITIONS).map(end).sum::<Option<i64>>()).await.unwrap()
        })
        .await;
        until("the reader to have read", || async {
            let read = self.read.lock().unwrap();
            (read.len() as i64 >= written)
                .then(|| read.iter().filter(|message| !message.headers.is_empty()).cloned().collect())
        })
        .await
    }

    async fn log(&self) -> Vec<String> {
        self.messages().await.iter().map(|message| event(&message.body)).collect()
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Three brokers of librdkafka's.
pub struct Cluster {
    topic: Topic,
    /// The cluster belongs to one thread.
    asks: mpsc::Sender<Box<dyn FnOnce(&Mock) + Send>>,
}

impl Cluster {
    pub fn start() -> Self {
        let (asks, asked) = mpsc::channel::<Box<dyn FnOnce(&Mock) + Send>>();
        let (say, servers) = mpsc::channel();
        std::thread::spawn(move || {
            let cluster = MockCluster::new(3).unwrap();
            cluster.create_topic(TOPIC, PARTITIONS, 3).unwrap();
            say.send(cluster.bootstrap_servers()).unwrap();
            asked.into_iter().for_each(|ask| ask(&cluster));
        });
        Self { topic: Topic::read(servers.recv().unwrap(), false), asks }
    }

    fn with<T: Send + 'static>(&self, work: impl FnOnce(&Mock) -> T + Send + 'static) -> T {
        let (say, said) = mpsc::channel();
        self.asks.send(Box::new(move |cluster| say.send(work(cluster)).unwrap())).unwrap();
        said.recv().unwrap()
    }

    /// The next requests of this sort are answered so.
    fn answer(&self, api: Api, answers: &[Answer]) {
        let answers = answers.to_vec();
        self.with(move |cluster| cluster.request_errors(api, &answers));
    }
}

impl std::ops::Deref for Cluster {
    type Target = Topic;
    fn deref(&self) -> &Topic {
        &self.topic
    }
}

/// A message in each partition that is nobody's.
fn mark(servers: &str) {
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", servers).create().unwrap();
    for partition in 0..PARTITIONS {
        producer.send(BaseRecord::<(), _>::to(TOPIC).partition(partition).payload("mark")).unwrap();
    }
    producer.flush(Duration::from_secs(60)).unwrap();
}

fn consumer(servers: &str, group: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("group.id", group)
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "10")
        .set("reconnect.backoff.max.ms", "500")
        // A wire that fell silent is left.
        .set("socket.timeout.ms", "2000")
        .create()
        .unwrap()
}

fn of(numbers: impl IntoIterator<Item = u64>) -> Vec<String> {
    numbers.into_iter().map(|n| format!("apply {n}")).collect()
}

struct Kafka {
    cluster: Cluster,
    transactions: bool,
}

#[async_trait::async_trait]
impl Place for Kafka {
    async fn sink(&self) -> Arc<dyn Sink> {
        self.cluster.sink(&format!("transactions = {}", self.transactions)).await
    }
    async fn net(&self) -> BTreeSet<u64> {
        net_of(&self.log().await.unwrap())
    }
    async fn log(&self) -> Option<Vec<String>> {
        let log = self.cluster.log().await;
        // What librdkafka sends again without a transaction, the mock's brokers store again; real ones do not.
        Some(if self.transactions { log } else { without_repeats(log) })
    }
    fn keeps_position(&self) -> bool {
        false
    }
    fn kill(&mut self) -> bool {
        self.cluster.with(|cluster| cluster.broker_down(-1).unwrap());
        true
    }
    async fn restart(&mut self) {
        self.cluster.with(|cluster| cluster.broker_up(-1).unwrap());
    }
}

/// A real broker, without transactions.
pub struct Tansu {
    pub topic: Topic,
    _server: Server,
}

impl Tansu {
    /// With the only wire to it.
    pub async fn start() -> Option<(Self, Cable)> {
        let (server, cable) = Server::tansu().await?;
        let servers = format!("127.0.0.1:{}", cable.port);
        let admin: AdminClient<_> = ClientConfig::new().set("bootstrap.servers", &servers).create().unwrap();
        let topic = NewTopic::new(TOPIC, PARTITIONS, TopicReplication::Fixed(1));
        let made = admin.create_topics(&[topic], &AdminOptions::new()).await.unwrap();
        assert!(made.iter().all(Result::is_ok), "{made:?}");
        Some((Self { topic: Topic::read(servers, true), _server: server }, cable))
    }
}

#[async_trait::async_trait]
impl Place for Tansu {
    fn wire(&self) -> Option<(&'static str, String, u16)> {
        let servers = &self.topic.servers;
        let port = servers.rsplit(':').next()?.parse().ok()?;
        Some(("kafka", format!("bootstrap_servers = '{servers}'\ntransactions = false"), port))
    }
    async fn net(&self) -> BTreeSet<u64> {
        net_of(&self.log().await.unwrap())
    }
    async fn log(&self) -> Option<Vec<String>> {
        Some(self.topic.log().await)
    }
    fn keeps_position(&self) -> bool {
        false
    }
    fn kill(&mut self) -> bool {
        // All that it has would be lost.
        false
    }
    async fn restart(&mut self) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_kafka_broker_keeps_the_contract() {
    let Some((tansu, _cable)) = Tansu::start().await else { return };
    contract(tansu).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_kafka_broker_loses_and_doubles_nothing_when_the_wire_breaks() {
    let Some((tansu, cable)) = Tansu::start().await else { return };
    cuts_of(&cable, tansu).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_start_goes_on_where_the_topic_of_a_real_kafka_broker_ends() {
    use rand::{Rng, SeedableRng};
    let Some((tansu, _cable)) = Tansu::start().await else { return };
    let mut rng = rand::rngs::StdRng::seed_from_u64(crate::harness::belt::seed());
    let mut from = 1;
    for _ in 0..crate::harness::belt::times(10, 60) {
        let sink = tansu.sink().await;
        let given_up = Duration::from_millis(rng.random_range(0..60));
        tokio::time::timeout(given_up, sink.deliver(&track(), &applies(from..=from + 499))).await.ok();
        // Whatever was begun is done before this is.
        sink.prepare(&stream(), &spec()).await.unwrap();
        let log = tansu.topic.log().await;
        assert_eq!(log, of(1..=log.len() as u64));
        from = (log.len() as u64).saturating_sub(rng.random_range(0..500)).max(1);
    }
    deliver_to_the_end(&*tansu.sink().await, &applies(from..=from + 499)).await;
    assert_eq!(tansu.topic.log().await, of(1..from + 500));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_kafka_broker_without_transactions_is_told_with_what_to_do() {
    let Some((tansu, _cable)) = Tansu::start().await else { return };
    let outcomes = tansu.topic.sink("").await.deliver(&track(), &applies(1..=2)).await;
    assert!(
        matches!(&outcomes[0], Outcome::Retry { why, .. } if why.contains("set transactions = false")),
        "{outcomes:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_keeps_the_contract() {
    contract(Kafka { cluster: Cluster::start(), transactions: true }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_without_transactions_keeps_the_contract() {
    contract(Kafka { cluster: Cluster::start(), transactions: false }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_in_a_transaction_every_message_is_there_once() {
    use Answer::*;
    let cluster = Cluster::start();
    let sink = cluster.sink("").await;
    // What librdkafka sends again by itself, and what ends the transaction or the producer.
    let cases: &[(Api, &[Answer], bool)] = &[
        (Api::AddPartitionsToTxn, &[RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE], false),
        (Api::AddPartitionsToTxn, &[RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS; 3], false),
        (Api::AddPartitionsToTxn, &[RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH], true),
        (Api::Produce, &[RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION], false),
        (Api::Produce, &[RD_KAFKA_RESP_ERR__TRANSPORT], false),
        (Api::Produce, &[RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH], true),
        (Api::Produce, &[RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED], true),
        (Api::AddOffsetsToTxn, &[RD_KAFKA_RESP_ERR_NOT_COORDINATOR], false),
        (Api::AddOffsetsToTxn, &[RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED], true),
        (Api::TxnOffsetCommit, &[RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS], false),
        (Api::TxnOffsetCommit, &[FENCED], true),
        (Api::EndTxn, &[RD_KAFKA_RESP_ERR_NOT_COORDINATOR, RD_KAFKA_RESP_ERR__TRANSPORT], false),
        (Api::EndTxn, &[RD_KAFKA_RESP_ERR_INVALID_TXN_STATE], true),
        (Api::EndTxn, &[FENCED], true),
    ];
    let mut from = 1;
    for (api, answers, fails) in cases {
        cluster.answer(*api, answers);
        let batch = applies(from..=from + 9);
        let outcomes = sink.deliver(&track(), &batch).await;
        let failed = outcomes.iter().all(|outcome| matches!(outcome, Outcome::Retry { .. }));
        assert_eq!(failed, *fails, "{api:?} {answers:?}: {outcomes:?}");
        deliver_to_the_end(&*sink, &batch).await;
        from += 10;
        assert_eq!(cluster.log().await, of(1..from), "{api:?} {answers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_start_in_the_middle_of_a_batch_goes_on_where_the_topic_ends() {
    for transactions in [true, false] {
        let cluster = Cluster::start();
        let settings = format!("transactions = {transactions}");
        let sink = cluster.sink(&settings).await;
        all_delivered(&sink.deliver(&track(), &applies(1..=5)).await);
        // All of this one is there, and nobody knows.
        if transactions {
            cluster.answer(Api::EndTxn, &[FENCED]);
            let outcomes = sink.deliver(&track(), &applies(6..=10)).await;
            assert!(matches!(&outcomes[0], Outcome::Retry { why, .. } if why.contains("fenced")), "{outcomes:?}");
        } else {
            all_delivered(&sink.deliver(&track(), &applies(6..=10)).await);
        }
        drop(sink);
        let sink = cluster.sink(&settings).await;
        // As a lane whose last notes were lost with the process.
        deliver_to_the_end(&*sink, &applies(4..=15)).await;
        assert_eq!(cluster.log().await, of(1..=15));
        // What another journal has sent is none of ours.
        let table = format!("bootstrap_servers = '{}'\n{settings}", cluster.servers).parse().unwrap();
        let kind = KINDS.iter().find(|kind| kind.name == "kafka").unwrap();
        let open = Open { name: track().output, table, base: ".".into(), journal: "journal-2".into() };
        deliver_to_the_end(&*(kind.open)(open).await.unwrap(), &applies(14..=16)).await;
        assert_eq!(cluster.log().await, of((1..=15).chain(14..=16)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_up_on_a_delivery_does_not_double_it() {
    let cluster = Cluster::start();
    let sink = cluster.sink("").await;
    all_delivered(&sink.deliver(&track(), &applies(1..=2)).await);
    cluster.with(|cluster| cluster.broker_round_trip_time(-1, Duration::from_millis(300)).unwrap());
    let batch = applies(3..=8);
    assert!(tokio::time::timeout(Duration::from_millis(1), sink.deliver(&track(), &batch)).await.is_err());
    deliver_to_the_end(&*sink, &batch).await;
    assert_eq!(cluster.log().await, of(1..=8));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_position_is_the_groups_offset() {
    let cluster = Cluster::start();
    // By a plain commit: the mock does not keep one of a transaction.
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(TOPIC, 0, Offset::Offset(7)).unwrap();
    let committer = consumer(&cluster.servers, GROUP);
    tokio::task::spawn_blocking(move || committer.commit(&list, CommitMode::Sync)).await.unwrap().unwrap();
    let sink = cluster.sink("").await;
    assert_eq!(sink.position(&track()).await.unwrap(), Some(7));
    assert_eq!(sink.position(&Track { chain: ChainId(5), ..track() }).await.unwrap(), None);
    all_delivered(&sink.deliver(&track(), &applies(5..=9)).await);
    assert_eq!(cluster.log().await, of([8, 9]));
    // A dead letter that was put back comes alone, and is sent once.
    for _ in 0..2 {
        all_delivered(&sink.deliver(&track(), &applies(3..=3)).await);
    }
    assert_eq!(cluster.log().await, of([8, 9, 3]));
    // Written while there are no transactions, it would be out of date after them.
    drop(sink);
    assert_eq!(cluster.sink("transactions = false").await.position(&track()).await.unwrap(), None);
    assert_eq!(cluster.sink("").await.position(&track()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_key_is_the_key_and_keeps_its_order_in_one_partition() {
    let cluster = Cluster::start();
    let sink = cluster.sink("").await;
    let keys = ["0xa", "0xb", "0xc", "", "0xd", "é"];
    let batch: Vec<Delivery> = (1..=300)
        .map(|n| {
            let delivery = apply(n);
            let lane_key = keys[n as usize % keys.len()].into();
            Delivery { emission: Arc::new(Emission { lane_key, ..(*delivery.emission).clone() }), ..delivery }
        })
        .collect();
    deliver_to_the_end(&*sink, &batch).await;
    let messages = cluster.messages().await;
    let used: BTreeSet<i32> = messages.iter().map(|message| message.partition).collect();
    assert!(used.len() > 1, "{used:?}");
    for (at, key) in keys.iter().enumerate() {
        let of_key = messages.iter().filter(|message| message.key.as_deref().unwrap_or("") == *key);
        let of_key: Vec<(i32, String)> = of_key.map(|message| (message.partition, event(&message.body))).collect();
        let expected = of((1..=300).filter(|n| *n as usize % keys.len() == at));
        assert_eq!(of_key.iter().map(|(_, event)| event.clone()).collect::<Vec<_>>(), expected, "{key}");
        assert!(of_key.iter().all(|(partition, _)| *partition == of_key[0].0), "{key} is in several partitions");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_those_of_the_cloudevents_binding() {
    let cluster = Cluster::start();
    let delivery = {
        let delivery = apply(1);
        Delivery {
            emission: Arc::new(Emission { lane_key: "a b é%".into(), ..(*delivery.emission).clone() }),
            ..delivery
        }
    };
    let ours = ("chainweir".to_owned(), format!("journal-1 {}", delivery.id));
    for (mode, body, expected) in [
        ("structured", None, vec![("content-type", "application/cloudevents+json")]),
        ("bare", Some(payload(1)), vec![("content-type", "application/json")]),
        (
            "binary",
            Some(payload(1)),
            vec![
                ("content-type", "application/json"),
                ("ce_specversion", "1.0"),
                ("ce_id", &*delivery.id.to_string()),
                ("ce_source", "eip155:1"),
                ("ce_type", "whale.large-moves"),
                ("ce_subject", "a b é%"),
                ("ce_time", "2023-11-14T22:13:21Z"),
                ("ce_op", "apply"),
                ("ce_emission", &*delivery.emission.id.to_string()),
                ("ce_block", "1"),
                ("ce_blockhash", "0x0000000000000000000000000000000000000000000000000000000000000001"),
                ("ce_cursor", "1"),
            ],
        ),
    ] {
        // To another topic each, or the second one would be known to be there.
        let cluster = if mode == "structured" { &cluster } else { &Cluster::start() };
        let sink = cluster.sink(&format!("content_mode = '{mode}'")).await;
        all_delivered(&sink.deliver(&track(), std::slice::from_ref(&delivery)).await);
        let messages = cluster.messages().await;
        let mut expected: Vec<_> = expected.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        expected.push(ours.clone());
        assert_eq!(messages[0].headers, expected, "{mode}");
        assert_eq!(messages[0].key.as_deref(), Some("a b é%"));
        match body {
            Some(body) => assert_eq!(messages[0].body, body.into_bytes()),
            None => assert_eq!(event(&messages[0].body), "apply 1"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_too_large_for_kafka_is_refused_alone() {
    for transactions in [true, false] {
        let cluster = Cluster::start();
        // Long enough for the five to go in one request.
        let sink =
            cluster.sink(&format!("transactions = {transactions}\nmessage_max_bytes = 20000\nlinger_ms = 200")).await;
        let mut batch = applies(1..=5);
        batch[2] = said(Op::Apply, 3, 3, format!(r#"{{"n": 3, "more": "{}"}}"#, "x".repeat(30_000)));
        let outcomes = sink.deliver(&track(), &batch).await;
        assert!(matches!(&outcomes[2], Outcome::Refused { why } if why.contains("20000")), "{outcomes:?}");
        all_delivered(&[&outcomes[..2], &outcomes[3..]].concat());
        assert_eq!(cluster.log().await, of([1, 2, 4, 5]));

        // The broker takes less than we were told: it refuses the request as a whole, and does not say for which message.
        cluster.answer(Api::Produce, &[TOO_LARGE, NONE, NONE, TOO_LARGE]);
        let outcomes = sink.deliver(&track(), &applies(6..=10)).await;
        assert!(matches!(&outcomes[2], Outcome::Refused { why } if why.contains("max.message.bytes")), "{outcomes:?}");
        all_delivered(&[&outcomes[..2], &outcomes[3..]].concat());
        assert_eq!(cluster.log().await, of([1, 2, 4, 5, 6, 7, 9, 10]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kafka_will_not_do_is_told_with_what_to_do() {
    let cluster = Cluster::start();
    let denied = Answer::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    cluster.with(move |cluster| cluster.topic_error("closed.1", denied).unwrap());
    let sink = cluster.sink("topic = 'closed.{chain}'").await;
    sink.prepare(&stream(), &spec()).await.unwrap();
    let told = why(sink.position(&track()).await.unwrap_err());
    assert!(told.contains("output.orders") && told.contains("closed.1") && told.contains("allow our user"), "{told}");
    let outcomes = sink.deliver(&track(), &applies(1..=2)).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Retry { .. })), "{outcomes:?}");

    cluster.answer(Api::InitProducerId, &[Answer::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED]);
    let told = why(cluster.sink("").await.prepare(&stream(), &spec()).await.unwrap_err());
    assert!(told.contains("Write and Describe on the transactional_id"), "{told}");

    let nobody = format!("bootstrap_servers = '127.0.0.1:{}'\ntimeout_ms = 1000", crate::harness::free_port());
    let sink = open("kafka", &nobody, Path::new(".")).await.unwrap();
    let told = sink.prepare(&stream(), &spec()).await.unwrap_err();
    assert!(matches!(&told, SinkError::Again { why } if why.contains("Connection refused")), "{told}");
}

#[tokio::test]
async fn kafka_options_that_do_not_go_together_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("password"), "hush-hush").unwrap();
    let sasl = "security_protocol = 'sasl_plaintext'\nsasl_username = 'weir'\nsasl_password_file = 'password'";
    let tls = if cfg!(feature = "kafka-tls") { "ca_file" } else { "--features kafka-tls" };
    for (table, expected) in [
        ("topic = 'a b'", "topic 'a b'"),
        ("topic = '{key}'", "{plugin}, {stream} and {chain}"),
        ("transactions = false\ntransactional_id = 'x'", "take out one"),
        ("security_protocol = 'sasl_plaintext'", "set sasl_username"),
        ("sasl_username = 'weir'\nsasl_password_file = 'password'", "security_protocol"),
        ("ca_file = 'password'", "ca_file is for"),
        ("security_protocol = 'ssl'\nca_file = 'missing'", tls),
        ("compression_type = 'brotli'", "gzip, snappy, lz4, zstd"),
    ] {
        let table = format!("bootstrap_servers = 'localhost:9092'\n{table}");
        let told = why(open("kafka", &table, folder.path()).await.err().unwrap());
        assert!(told.contains("output.orders") && told.contains(expected), "{table}: {told}");
    }
    let told = why(open("kafka", "bootstrap_servers = 'kafka://h:9092'", folder.path()).await.err().unwrap());
    assert!(told.contains("host:9092"), "{told}");
    for compression in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let table = format!("bootstrap_servers = 'localhost:9092'\n{sasl}\ncompression_type = '{compression}'");
        open("kafka", &table, folder.path()).await.unwrap();
    }
}
