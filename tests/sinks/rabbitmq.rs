//! RabbitMQ: at least once, and what is read here is read without repeats.

use std::sync::Mutex;

use futures::StreamExt;
use lapin::message::Delivery as Message;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};

use super::*;
use crate::harness::servers::{PASSWORD, Server, USER};

const SILENCE: Duration = Duration::from_secs(5);
pub const QUEUE: &str = "chainweir.whale.large-moves.1";

pub fn url(server: &Server) -> String {
    format!("amqp://{USER}:{PASSWORD}@127.0.0.1:{}", server.port)
}

async fn channel(url: &str) -> lapin::Result<(Connection, Channel)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    Ok((connection, channel))
}

/// It listens before it takes anybody in.
pub async fn answering(server: &Server) -> (Connection, Channel) {
    let url = url(server);
    until("RabbitMQ to answer", || async { channel(&url).await.ok() }).await
}

pub async fn declare(channel: &Channel, queue: &str, arguments: &[(&str, AMQPValue)]) {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(queue.into(), durable, table).await.unwrap();
}

/// All that lies in a queue, which is empty then.
async fn take(channel: &Channel, queue: &str) -> Vec<Message> {
    let mut messages = vec![];
    while let Some(message) = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap() {
        messages.push(message.delivery);
    }
    messages
}

/// A consumer that outlives the broker.
pub struct Reader {
    url: String,
    read: Arc<Mutex<Vec<Message>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Reader {
    pub fn start(url: String) -> Self {
        let read = Arc::<Mutex<Vec<Message>>>::default();
        let (from, to) = (url.clone(), read.clone());
        let task = tokio::spawn(async move {
            loop {
                Self::read(&from, &to).await.ok();
                // The broker is away.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { url, read, task }
    }

    async fn read(url: &str, to: &Mutex<Vec<Message>>) -> lapin::Result<()> {
        let begin = async {
            let (connection, channel) = channel(url).await?;
            let options = BasicConsumeOptions::default();
            let consumer = channel.basic_consume(QUEUE.into(), "".into(), options, FieldTable::default()).await?;
            lapin::Result::Ok((connection, consumer))
        };
        // A broker that was killed may leave a connection that says nothing any more, not even that it has ended: after
        // a silence there is a new one, and what was not acknowledged comes again.
        let Ok(begun) = tokio::time::timeout(SILENCE, begin).await else { return Ok(()) };
        let (_connection, mut consumer): (Connection, lapin::Consumer) = begun?;
        while let Ok(Some(message)) = tokio::time::timeout(SILENCE, consumer.next()).await {
            let message = message?;
            let acker = message.acker.clone();
            // Read, whether or not the broker hears that it was: a repeat is known by its event.
            to.lock().unwrap().push(message);
            let heard = tokio::time::timeout(SILENCE, acker.ack(BasicAckOptions::default())).await;
            let Ok(heard) = heard else { return Ok(()) };
            heard?;
        }
        Ok(())
    }

    /// All that the queue had until now: it hands out one message after another.
    pub async fn messages(&self) -> Vec<(String, Vec<u8>)> {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let mark = format!("mark {}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let options = BasicPublishOptions::default();
        let (_connection, channel) = until("RabbitMQ to answer", || async { channel(&self.url).await.ok() }).await;
        let properties = BasicProperties::default();
        channel.basic_publish("".into(), QUEUE.into(), options, mark.as_bytes(), properties).await.unwrap();
        until("the reader to hear its own mark", || async {
            self.read.lock().unwrap().iter().any(|message| message.data == mark.as_bytes()).then_some(())
        })
        .await;
        let read = self.read.lock().unwrap();
        let said = |message: &Message| {
            let content_type = message.properties.content_type().clone()?;
            Some((content_type.to_string(), message.data.clone()))
        };
        read.iter().filter_map(said).collect()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct RabbitMq {
    server: Server,
    reader: Reader,
}

#[async_trait::async_trait]
impl Place for RabbitMq {
    fn wire(&self) -> Option<(&'static str, String, u16)> {
        Some(("rabbitmq", format!("url = '{}'", url(&self.server)), self.server.port))
    }
    async fn net(&self) -> BTreeSet<u64> {
        net_of(&self.log().await.unwrap())
    }
    async fn log(&self) -> Option<Vec<String>> {
        let messages = self.reader.messages().await;
        assert!(messages.iter().all(|(content_type, _)| content_type == "application/cloudevents+json"));
        Some(without_repeats(messages.iter().map(|(_, body)| event(body)).collect()))
    }
    fn keeps_position(&self) -> bool {
        false
    }
    fn kill(&mut self) -> bool {
        self.server.kill();
        true
    }
    async fn restart(&mut self) {
        self.server.restart().await;
        let (_connection, channel) = answering(&self.server).await;
        // A broker that is killed may not have a queue again that it was just told of.
        declare(&channel, QUEUE, &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_keeps_the_contract() {
    let Some(server) = Server::rabbitmq(&[]).await else { return };
    let (_connection, channel) = answering(&server).await;
    declare(&channel, QUEUE, &[]).await;
    let reader = Reader::start(url(&server));
    contract(RabbitMq { server, reader }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_loses_nothing_when_the_wire_breaks() {
    let Some(server) = Server::rabbitmq(&[]).await else { return };
    let (_connection, channel) = answering(&server).await;
    declare(&channel, QUEUE, &[]).await;
    let reader = Reader::start(url(&server));
    cuts(RabbitMq { server, reader }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rabbitmq_does_not_take_is_refused_or_waits_with_the_reason() {
    let Some(server) = Server::rabbitmq(&["max_message_size = 20000"]).await else { return };
    let (_connection, channel) = answering(&server).await;
    let folder = tempfile::tempdir().unwrap();
    let sink = |more: &str| {
        let table = format!("url = '{}'\n{more}", url(&server));
        let folder = folder.path().to_owned();
        async move { open("rabbitmq", &table, &folder).await.unwrap() }
    };

    // No queue takes it.
    let lost = sink("routing_key = 'nowhere'\nroute_wait_ms = 0").await;
    let outcomes = lost.deliver(&track(), &applies(1..=3)).await;
    assert_eq!(outcomes.len(), 3);
    for outcome in &outcomes {
        assert!(
            matches!(outcome, Outcome::Refused { why } if why.contains("NO_ROUTE") && why.contains("'nowhere'")),
            "{outcome:?}"
        );
    }
    all_delivered(&sink("routing_key = 'nowhere'\nmandatory = false").await.deliver(&track(), &applies(1..=3)).await);

    // No queue takes it yet: nothing is given up, and nothing overtakes.
    let late = sink("routing_key = 'late'").await;
    for _ in 0..2 {
        let outcomes = late.deliver(&track(), &applies(1..=200)).await;
        let Outcome::Retry { why, .. } = &outcomes[0] else { panic!("{outcomes:?}") };
        assert!(why.contains("NO_ROUTE") && why.contains("'late'"), "{why}");
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Retry { .. })), "{outcomes:?}");
    }
    declare(&channel, "late", &[]).await;
    all_delivered(&late.deliver(&track(), &applies(1..=200)).await);
    let read: Vec<_> = take(&channel, "late").await.iter().map(|message| event(&message.data)).collect();
    assert_eq!(read, (1..=200).map(|n| format!("apply {n}")).collect::<Vec<_>>());
    // It went away, and does not come back within the time.
    let brief = sink("routing_key = 'late'\nroute_wait_ms = 300").await;
    all_delivered(&brief.deliver(&track(), &applies(201..=201)).await);
    channel.queue_delete("late".into(), Default::default()).await.unwrap();
    let first = brief.deliver(&track(), &applies(202..=203)).await;
    assert!(matches!(&first[0], Outcome::Retry { .. }), "{first:?}");
    let given_up = until("it to be given up", || async {
        let outcomes = brief.deliver(&track(), &applies(202..=203)).await;
        matches!(&outcomes[0], Outcome::Refused { .. }).then_some(outcomes)
    });
    let outcomes = given_up.await;
    assert!(matches!(&outcomes[1], Outcome::Refused { why } if why.contains("NO_ROUTE")), "{outcomes:?}");

    // Too large, and its neighbours go.
    declare(&channel, QUEUE, &[]).await;
    let binary = sink("content_mode = 'binary'").await;
    let mut batch = applies(1..=5);
    batch[2] = said(Op::Apply, 3, 3, format!(r#"{{"n": 3, "more": "{}"}}"#, "x".repeat(30_000)));
    let outcomes = binary.deliver(&track(), &batch).await;
    assert!(matches!(&outcomes[2], Outcome::Refused { why } if why.contains("20000 at most")), "{outcomes:?}");
    all_delivered(&[&outcomes[..2], &outcomes[3..]].concat());
    let messages = take(&channel, QUEUE).await;
    let bodies = messages.iter().map(|message| String::from_utf8(message.data.clone()).unwrap()).collect();
    assert_eq!(without_repeats(bodies), [payload(1), payload(2), payload(4), payload(5)]);
    let properties = &messages[0].properties;
    assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/json");
    assert_eq!(properties.message_id().as_ref().unwrap().as_str(), batch[0].id.to_string());
    assert_eq!(*properties.delivery_mode(), Some(2));
    let headers = properties.headers().as_ref().unwrap().inner();
    let header = |name: &str| headers[name].as_long_string().unwrap().to_string();
    assert_eq!((header("cloudEvents_specversion"), header("cloudEvents_op")), ("1.0".into(), "apply".into()));
    assert_eq!(header("cloudEvents_id"), batch[0].id.to_string());
    assert!(!headers.contains_key("cloudEvents_datacontenttype"));

    // A full queue.
    let reject =
        [("x-max-length", AMQPValue::LongInt(3)), ("x-overflow", AMQPValue::LongString("reject-publish".into()))];
    declare(&channel, "small", &reject).await;
    let full = sink("routing_key = 'small'").await;
    let outcomes = full.deliver(&track(), &applies(1..=6)).await;
    assert!(outcomes[3..].iter().all(|outcome| matches!(outcome, Outcome::Retry { .. })), "{outcomes:?}");
    let Some(Outcome::Retry { why, .. }) = outcomes.iter().find(|o| **o != Outcome::Delivered) else {
        panic!("{outcomes:?}")
    };
    assert!(why.contains("basic.nack"), "{why}");
    take(&channel, "small").await;
    // One at a time, nothing overtakes what was rejected, whoever makes room meanwhile.
    let single = sink("routing_key = 'small'\nbatch = 1").await;
    let delivering = tokio::spawn(async move { deliver_to_the_end(&*single, &applies(1..=20)).await });
    let mut read = vec![];
    while read.len() < 20 {
        // Full again before there is room for one.
        until("three, or the last ones", || async {
            let passive = QueueDeclareOptions { passive: true, ..Default::default() };
            let queue = channel.queue_declare("small".into(), passive, FieldTable::default()).await.unwrap();
            (queue.message_count() as usize >= 3.min(20 - read.len())).then_some(())
        })
        .await;
        let message = channel.basic_get("small".into(), BasicGetOptions { no_ack: true }).await.unwrap().unwrap();
        read.push(event(&message.delivery.data));
    }
    delivering.await.unwrap();
    assert_eq!(read, (1..=20).map(|n| format!("apply {n}")).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rabbitmq_without_memory_is_waited_for_and_gets_each_message_in_order() {
    let Some(server) = Server::rabbitmq(&[]).await else { return };
    let (_connection, channel) = answering(&server).await;
    declare(&channel, QUEUE, &[]).await;
    let table = format!("url = '{}'\ntimeout_ms = 60000", url(&server));
    let sink = open("rabbitmq", &table, Path::new(".")).await.unwrap();
    sink.prepare(&stream(), &spec()).await.unwrap();
    server.rabbitmqctl(&["set_vm_memory_high_watermark", "0.00001"]).await;
    for _ in 0..2 {
        let start = Instant::now();
        let outcomes = sink.deliver(&track(), &applies(1..=300)).await;
        let Outcome::Retry { why, .. } = outcomes.last().unwrap() else { panic!("{outcomes:?}") };
        assert_eq!((outcomes.len(), why.as_str()), (300, "waits for the one before it"));
        let told =
            outcomes.iter().find(|outcome| matches!(outcome, Outcome::Retry { why, .. } if why.contains("memory")));
        assert!(told.is_some(), "{:?}", outcomes.iter().find(|outcome| **outcome != Outcome::Delivered));
        assert!(start.elapsed() < Duration::from_secs(30), "the alarm is told, not waited out");
    }
    server.rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"]).await;
    deliver_to_the_end(&*sink, &applies(1..=300)).await;
    let log = take(&channel, QUEUE).await.iter().map(|message| event(&message.data)).collect();
    assert_eq!(without_repeats(log), (1..=300).map(|n| format!("apply {n}")).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_wants_the_right_password_and_an_exchange_that_is_there() {
    let Some(server) = Server::rabbitmq(&[]).await else { return };
    let (_connection, channel) = answering(&server).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("wrong"), "hush-hush").unwrap();
    std::fs::write(folder.path().join("right"), PASSWORD).unwrap();
    let table = |password: &str, more: &str| {
        let port = server.port;
        format!("url = 'amqp://127.0.0.1:{port}'\nusername = '{USER}'\npassword_file = '{password}'\n{more}")
    };
    let sink = open("rabbitmq", &table("wrong", ""), folder.path()).await.unwrap();
    let told = why(sink.prepare(&stream(), &spec()).await.unwrap_err());
    assert!(told.contains("output.orders") && told.contains("check username"), "{told}");
    let outcomes = sink.deliver(&track(), &applies(1..=2)).await;
    assert!(matches!(&outcomes[0], Outcome::Retry { why, .. } if !why.contains("hush-hush")), "{outcomes:?}");
    // As soon as the broker knows it.
    server.rabbitmqctl(&["change_password", USER, "hush-hush"]).await;
    sink.prepare(&stream(), &spec()).await.unwrap();
    server.rabbitmqctl(&["change_password", USER, PASSWORD]).await;

    let sink = open("rabbitmq", &table("right", "exchange = 'shop'\nrouting_key = '{plugin}.{chain}'"), folder.path())
        .await
        .unwrap();
    let told = why(sink.prepare(&stream(), &spec()).await.unwrap_err());
    assert!(told.contains("no exchange 'shop'") && told.contains("correct exchange"), "{told}");
    channel
        .exchange_declare("shop".into(), ExchangeKind::Topic, Default::default(), FieldTable::default())
        .await
        .unwrap();
    declare(&channel, "whales", &[]).await;
    channel
        .queue_bind("whales".into(), "shop".into(), "whale.*".into(), Default::default(), FieldTable::default())
        .await
        .unwrap();
    all_delivered(&sink.deliver(&track(), &applies(1..=3)).await);
    let messages = take(&channel, "whales").await;
    assert_eq!(messages.iter().map(|m| m.routing_key.as_str()).collect::<Vec<_>>(), ["whale.1"; 3]);

    let told = why(open("rabbitmq", "url = 'amqp://a:hush-hush@[/x'", Path::new(".")).await.err().unwrap());
    assert!(told.contains("amqp://host:5672/vhost"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_connection_to_rabbitmq_checks_the_certificate() {
    let Some(mut server) = Server::rabbitmq(&[]).await else { return };
    let Some(certificate) = server.encrypt().await else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("password"), PASSWORD).unwrap();
    let plain = format!(
        "url = 'amqps://localhost:{}'\nusername = '{USER}'\npassword_file = 'password'\nmandatory = false",
        server.port
    );
    let table = format!("{plain}\nca_file = '{}'", certificate.display());
    let sink = open("rabbitmq", &table, folder.path()).await.unwrap();
    until("RabbitMQ to answer", || async { sink.prepare(&stream(), &spec()).await.ok() }).await;
    all_delivered(&sink.deliver(&track(), &applies(1..=3)).await);
    let stranger = open("rabbitmq", &plain, folder.path()).await.unwrap();
    let told = why(stranger.prepare(&stream(), &spec()).await.unwrap_err());
    assert!(told.to_lowercase().contains("certificate"), "nobody vouches for this one: {told}");
}
