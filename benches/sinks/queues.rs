//! Bare clients of what is posted, published and queued.

use std::sync::mpsc;
use std::time::Duration;

use async_nats::jetstream;
use axum::http::StatusCode;
use bytes::Bytes;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use redis::aio::MultiplexedConnection;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, MqttOptions};

use super::harness::nats::Nats;
use super::harness::servers::{PASSWORD, Server, USER};
use super::harness::until;
use super::{Bare, Piece, Place};

const PERSISTENT: u8 = 2;
const TIMEOUT: Duration = Duration::from_secs(30);

struct Webhook {
    url: String,
    batch: usize,
    folder: tempfile::TempDir,
    client: reqwest::Client,
    receiver: tokio::task::JoinHandle<std::io::Result<()>>,
}

pub async fn webhook(batch: usize) -> Option<Box<dyn Place>> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("secret"), "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD").expect("a file in it");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/hook", listener.local_addr().expect("a bound socket has an address"));
    let take = |_: Bytes| async { StatusCode::NO_CONTENT };
    let app = axum::Router::new().fallback(take).layer(axum::extract::DefaultBodyLimit::disable());
    let receiver = tokio::spawn(async move { axum::serve(listener, app).await });
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    Some(Box::new(Webhook { url, batch, folder, client, receiver }))
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.receiver.abort();
    }
}

#[async_trait::async_trait]
impl Place for Webhook {
    fn table(&self) -> String {
        format!(
            "url = '{}'\nallow_private = true\nbatch = {}\nsecret_file = '{}'",
            self.url,
            self.batch,
            self.folder.path().join("secret").display()
        )
    }
    async fn bare(&self) -> Box<dyn Bare> {
        Box::new(Post { client: self.client.clone(), url: self.url.clone(), array: self.batch > 1 })
    }
}

struct Post {
    client: reqwest::Client,
    url: String,
    array: bool,
}

#[async_trait::async_trait]
impl Bare for Post {
    async fn send(&mut self, batch: &[Piece]) {
        let (kind, body) = if self.array {
            let bodies: Vec<&[u8]> = batch.iter().map(|piece| piece.body.as_ref()).collect();
            let array = [b"[".as_slice(), &bodies.join(b",".as_slice()), b"]"].concat();
            ("application/cloudevents-batch+json", array.into())
        } else {
            ("application/cloudevents+json", batch[0].body.clone())
        };
        let request = self.client.post(&self.url).header("content-type", kind).body(body);
        let response = request.send().await.and_then(reqwest::Response::error_for_status).expect("a success");
        response.bytes().await.expect("an answer to its end");
    }
}

struct JetStream(Nats);

pub async fn nats() -> Option<Box<dyn Place>> {
    Some(Box::new(JetStream(Nats::start(None).await?)))
}

#[async_trait::async_trait]
impl Place for JetStream {
    fn table(&self) -> String {
        format!("url = '{}'", self.0.url())
    }
    async fn bare(&self) -> Box<dyn Bare> {
        let context = jetstream::new(async_nats::connect(self.0.url()).await.expect("the server is there"));
        let config =
            jetstream::stream::Config { name: "BARE".into(), subjects: vec!["bare".into()], ..Default::default() };
        context.get_or_create_stream(config).await.expect("a stream");
        Box::new(Publish(context))
    }
    async fn empty(&self) {
        let context = jetstream::new(async_nats::connect(self.0.url()).await.expect("the server is there"));
        for stream in ["CHAINWEIR", "BARE"] {
            if let Ok(stream) = context.get_stream(stream).await {
                stream.purge().await.expect("it is purged");
            }
        }
    }
}

struct Publish(jetstream::Context);

#[async_trait::async_trait]
impl Bare for Publish {
    async fn send(&mut self, batch: &[Piece]) {
        let mut under_way = Vec::with_capacity(batch.len());
        for piece in batch {
            under_way.push(self.0.publish("bare", piece.body.clone()).await.expect("it is sent"));
        }
        for answer in under_way {
            answer.await.expect("it is stored");
        }
    }
}

/// The cluster belongs to one thread, which keeps it until this is dropped.
struct Kafka {
    servers: String,
    _until: mpsc::Sender<()>,
}

const TOPIC: &str = "chainweir.erc20-transfers.transfers";

pub async fn kafka() -> Option<Box<dyn Place>> {
    let (say, servers) = mpsc::channel();
    let (_until, dropped) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        let cluster: MockCluster<'static, DefaultProducerContext> = MockCluster::new(3).expect("a mock cluster");
        for topic in [TOPIC, "bare"] {
            cluster.create_topic(topic, 3, 3).expect("a topic");
        }
        say.send(cluster.bootstrap_servers()).expect("somebody waits");
        dropped.recv().ok();
    });
    let servers = servers.recv().expect("the cluster starts");
    Some(Box::new(Kafka { servers, _until }))
}

#[async_trait::async_trait]
impl Place for Kafka {
    fn table(&self) -> String {
        format!("bootstrap_servers = '{}'", self.servers)
    }
    async fn bare(&self) -> Box<dyn Bare> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.servers).set("transactional.id", "bare").set("linger.ms", "5");
        config.set("partitioner", "murmur2");
        let producer: ThreadedProducer<DefaultProducerContext> = config.create().expect("a producer");
        tokio::task::block_in_place(|| producer.init_transactions(TIMEOUT)).expect("transactions");
        Box::new(Produce(producer))
    }
}

struct Produce(ThreadedProducer<DefaultProducerContext>);

#[async_trait::async_trait]
impl Bare for Produce {
    async fn send(&mut self, batch: &[Piece]) {
        let Self(producer) = self;
        tokio::task::block_in_place(|| {
            producer.begin_transaction().expect("a transaction");
            for piece in batch {
                let record = BaseRecord::to("bare").key(&piece.key).payload(&piece.body[..]);
                producer.send(record).map_err(|(error, _)| error).expect("it is queued");
            }
            // A commit looks for what is under way only every 100 ms.
            while producer.in_flight_count() > 0 {
                std::thread::sleep(Duration::from_micros(100));
            }
            producer.commit_transaction(TIMEOUT).expect("it is committed");
        });
    }
}

struct Mqtt(Server);

pub async fn mqtt() -> Option<Box<dyn Place>> {
    Some(Box::new(Mqtt(Server::mosquitto(&["allow_anonymous true"]).await?)))
}

#[async_trait::async_trait]
impl Place for Mqtt {
    fn table(&self) -> String {
        format!("url = 'mqtt://127.0.0.1:{}'", self.0.port)
    }
    async fn bare(&self) -> Box<dyn Bare> {
        let (mut options, mut network) =
            (MqttOptions::new("bare", "127.0.0.1", self.0.port), rumqttc::NetworkOptions::new());
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        let (client, mut events) = AsyncClient::new(options, 100);
        let (say, acknowledged) = tokio::sync::mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            loop {
                if let Event::Incoming(Packet::PubAck(_)) = events.poll().await.expect("the broker stays")
                    && say.send(()).is_err()
                {
                    return;
                }
            }
        });
        Box::new(Topic { client, acknowledged, task })
    }
}

struct Topic {
    client: AsyncClient,
    acknowledged: tokio::sync::mpsc::UnboundedReceiver<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Topic {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[async_trait::async_trait]
impl Bare for Topic {
    async fn send(&mut self, batch: &[Piece]) {
        for piece in batch {
            let taken = self.client.publish("bare", QoS::AtLeastOnce, false, piece.body.clone());
            taken.await.expect("it is queued");
        }
        for _ in batch {
            self.acknowledged.recv().await.expect("it is acknowledged");
        }
    }
}

/// With a connection for the queues.
struct RabbitMq {
    url: String,
    _server: Server,
    _connection: Connection,
    channel: Channel,
}

const QUEUE: &str = "chainweir.erc20-transfers.transfers.1";

async fn channel(url: &str) -> lapin::Result<(Connection, Channel)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    Ok((connection, channel))
}

pub async fn rabbitmq() -> Option<Box<dyn Place>> {
    let server = Server::rabbitmq(&[]).await?;
    let url = format!("amqp://{USER}:{PASSWORD}@127.0.0.1:{}", server.port);
    // It listens before it takes anybody in.
    let (connection, channel) = until("RabbitMQ to answer", || async { channel(&url).await.ok() }).await;
    for queue in [QUEUE, "bare"] {
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(queue.into(), durable, FieldTable::default()).await.expect("a queue");
    }
    Some(Box::new(RabbitMq { url, _server: server, _connection: connection, channel }))
}

#[async_trait::async_trait]
impl Place for RabbitMq {
    fn table(&self) -> String {
        format!("url = '{}'", self.url)
    }
    async fn bare(&self) -> Box<dyn Bare> {
        let (connection, channel) = channel(&self.url).await.expect("the broker is there");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        Box::new(Confirmed { _connection: connection, channel })
    }
    async fn empty(&self) {
        for queue in [QUEUE, "bare"] {
            self.channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await.expect("it is purged");
        }
    }
}

struct Confirmed {
    _connection: Connection,
    channel: Channel,
}

#[async_trait::async_trait]
impl Bare for Confirmed {
    async fn send(&mut self, batch: &[Piece]) {
        let mut under_way = Vec::with_capacity(batch.len());
        for piece in batch {
            let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
            let options = BasicPublishOptions::default();
            let taken = self.channel.basic_publish("".into(), "bare".into(), options, &piece.body, properties);
            under_way.push(taken.await.expect("it is sent"));
        }
        for confirm in under_way {
            assert!(confirm.await.expect("an answer").is_ack(), "the queue has room");
        }
    }
}

struct Redis(Server);

pub async fn redis() -> Option<Box<dyn Place>> {
    Some(Box::new(Redis(Server::redis(&[]).await?)))
}

impl Redis {
    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.0.port)
    }

    async fn client(&self) -> MultiplexedConnection {
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(TIMEOUT));
        let client = redis::Client::open(self.url()).expect("a URL");
        client.get_multiplexed_async_connection_with_config(&config).await.expect("the server is there")
    }
}

#[async_trait::async_trait]
impl Place for Redis {
    fn table(&self) -> String {
        format!("url = '{}'", self.url())
    }
    async fn bare(&self) -> Box<dyn Bare> {
        Box::new(Xadd(self.client().await))
    }
    async fn empty(&self) {
        let mut unlink = redis::cmd("UNLINK");
        unlink.arg("chainweir:erc20-transfers:transfers:1").arg("bare");
        unlink.query_async::<()>(&mut self.client().await).await.expect("they are gone");
    }
}

struct Xadd(MultiplexedConnection);

#[async_trait::async_trait]
impl Bare for Xadd {
    async fn send(&mut self, batch: &[Piece]) {
        let mut pipe = redis::Pipeline::with_capacity(batch.len());
        for piece in batch {
            pipe.cmd("XADD").arg("bare").arg("*").arg("event").arg(&piece.body[..]).ignore();
        }
        pipe.query_async::<()>(&mut self.0).await.expect("they are added");
    }
}
