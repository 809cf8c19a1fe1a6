//! Publishes every delivery to RabbitMQ (AMQP 0-9-1) and waits for the broker's confirm: at least once, `message_id` is the delivery id.
//!
//! What was not confirmed is published again, in order, with the same ids; a consumer knows a repeat by its id. Messages are persistent:
//! a durable queue keeps them through a restart of the broker. A message that no queue takes comes back (`mandatory`). The node of the queue
//! may be away, or whoever declares it may start later than we: it is tried again for `route_wait_ms`, and is a dead letter with the broker's
//! words after that. Exchanges, queues and bindings are the consumers' to declare.
//!
//! **Order.** One channel keeps it. A queue that rejects what does not fit (`x-overflow = reject-publish`) may refuse a message and, when
//! there is room again, take one behind it; that one comes a second time after the first. From the first rejection on, messages
//! go one at a time until they pass again, so that it does not happen twice. With `batch = 1` it never happens.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{FutureExt, Stream, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::tcp::OwnedTLSConfig;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ErrorKind, Event, ExchangeKind};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::cloudevent::{self, Mode};
use super::options::Options;
use super::{Kind, Open, Shape, Sink, SinkError, Track};
use crate::model::{Delivery, Outcome, OutputName, StreamId, StreamSpec};

pub const KIND: Kind = Kind {
    name: "rabbitmq",
    options: &[
        ("url", "amqp://host:5672/vhost, or amqps://host:5671/vhost for TLS, without a password; or url_env"),
        ("url_env", "environment variable with the URL, where it holds a password"),
        ("username", "user name, with password_env or password_file"),
        ("password_env", "environment variable with the password"),
        ("password_file", "file with the password"),
        ("exchange", "an exchange that is there; the default exchange, for which the routing key is a queue's name"),
        ("routing_key", "with {plugin}, {stream} and {chain}; chainweir.{plugin}.{stream}.{chain}"),
        ("mandatory", "false: the broker drops what no queue takes; true: it is refused"),
        (
            "route_wait_ms",
            "time that what no queue takes is tried again, from the first on a connection, before it is refused; 30000",
        ),
        ("content_mode", Mode::HELP),
        ("batch", "most messages on their way to a confirm; 500"),
        ("ca_file", "PEM file with the certificate authorities to trust besides the web's, with amqps://"),
        ("timeout_ms", "time to wait for a connection and for the confirms of a batch; 10000"),
    ],
    open: |open| Box::pin(async move { Ok(Arc::new(RabbitMq::open(open)?) as Arc<dyn Sink>) }),
};

const PERSISTENT: u8 = 2;
/// What the attributes of an event are called as headers: AMQP's binding of CloudEvents allows `_` and `:`, JMS only `_`.
const PREFIX: &str = "cloudEvents_";
/// Replies of the broker (AMQP 0-9-1, "constant").
const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;
const NOT_ALLOWED: u16 = 530;

struct RabbitMq {
    name: OutputName,
    uri: AMQPUri,
    tls: OwnedTLSConfig,
    /// Host and port, for messages.
    place: String,
    exchange: ShortString,
    routing_key: String,
    mandatory: bool,
    route_wait: Duration,
    mode: Mode,
    batch: usize,
    timeout: Duration,
    /// Taken while in use: after an error, or when a caller gave up, what was confirmed is not known any more.
    link: Mutex<Option<Link>>,
}

struct Link {
    line: Line,
    alarm: Alarm,
}

struct Line {
    connection: Connection,
    channel: Channel,
    /// What was published and is not settled: an alarm holds it up, and it goes out when that is over.
    under_way: Option<JoinHandle<Vec<lapin::Result<Confirmation>>>>,
    /// Messages published before the first confirm is waited for.
    window: usize,
    /// Of a body that the broker takes, once it has refused one.
    largest: usize,
    /// Routing keys that no queue takes, and since when.
    astray: HashMap<ShortString, Instant>,
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(task) = &self.under_way {
            task.abort();
        }
    }
}

/// The broker's word that it reads no more of what is published until it has memory or disk again.
struct Alarm {
    events: Pin<Box<dyn Stream<Item = Event> + Send + Sync>>,
    reason: Option<String>,
}

impl Alarm {
    fn hear(&mut self, event: Event) {
        match event {
            Event::ConnectionBlocked(reason) => self.reason = Some(reason),
            Event::ConnectionUnblocked => self.reason = None,
            _ => {}
        }
    }

    async fn raised(&mut self) -> String {
        loop {
            if let Some(reason) = &self.reason {
                match self.events.next().now_or_never() {
                    Some(Some(event)) => self.hear(event),
                    _ => return reason.clone(),
                }
            } else {
                match self.events.next().await {
                    Some(event) => self.hear(event),
                    None => std::future::pending().await,
                }
            }
        }
    }
}

/// Why publishing stopped before the end.
enum Halt {
    /// The connection is as good as before.
    Wait(String),
    /// Nobody knows what the broker has of the rest.
    Lost(lapin::Error),
}

impl RabbitMq {
    fn open(open: Open) -> Result<Self, SinkError> {
        let options = Options::new(open, KIND.options)?;
        let url = options.url("AMQP_URL")?;
        // The parser's own message may quote the URL, and the password with it.
        let wrong = || options.refused("the URL is not of the form amqp://host:5672/vhost or amqps://host:5671/vhost");
        let mut uri: AMQPUri = url.expose().parse().map_err(|_| wrong())?;
        let host = url::Url::parse(url.expose()).ok().and_then(|url| url.host_str().map(str::to_owned));
        let host = host.filter(|host| !host.is_empty()).ok_or_else(wrong)?;
        uri.authority.host = host.trim_matches(['[', ']']).to_owned();
        // By the letter, a URL that ends in a slash names the virtual host "", which nobody has.
        if uri.vhost.is_empty() {
            uri.vhost = "/".into();
        }
        match (options.text("username")?, options.secret("password_env", "password_file")?) {
            (Some(username), Some(password)) => {
                uri.authority.userinfo = lapin::uri::AMQPUserInfo { username, password: password.expose().to_owned() };
            }
            (None, None) => {}
            _ => return Err(options.refused("set both username and password_env (or password_file), or neither")),
        }
        super::ring();
        let cert_chain = options.file("ca_file")?.map(|pem| {
            super::roots(Some(&pem)).map_err(|why| options.refused(&format!("ca_file {why}")))?;
            Ok(String::from_utf8_lossy(&pem).into_owned())
        });
        let exchange = options.text("exchange")?.unwrap_or_default();
        Ok(Self {
            name: options.name().clone(),
            place: format!("RabbitMQ at {}:{}", uri.authority.host, uri.authority.port),
            uri,
            tls: OwnedTLSConfig { identity: None, cert_chain: cert_chain.transpose()? },
            exchange: ShortString::try_new(exchange)
                .map_err(|_| options.refused("exchange is longer than 255 bytes"))?,
            routing_key: options.template("routing_key", "chainweir.{plugin}.{stream}.{chain}")?,
            mandatory: options.flag("mandatory", true)?,
            route_wait: Duration::from_millis(options.number("route_wait_ms", 30_000, 0..=3_600_000)?),
            mode: Mode::of(&options)?,
            batch: options.number("batch", 500, 1..=10_000)? as usize,
            timeout: Duration::from_millis(options.number("timeout_ms", 10_000, 1..=600_000)?),
            link: Mutex::new(None),
        })
    }

    fn told(&self, error: &lapin::Error) -> String {
        match error.kind() {
            ErrorKind::ProtocolError(error) => format!("{}: {}", self.place, error.get_message()),
            _ => format!("{}: {error}", self.place),
        }
    }

    fn judge(&self, error: &lapin::Error) -> SinkError {
        let why = self.told(error);
        let advice = match error.kind() {
            ErrorKind::ProtocolError(error) => match error.get_id() {
                ACCESS_REFUSED => "check username and password_env, and the user's permissions",
                NOT_ALLOWED => "check the virtual host in the URL, and the user's permissions",
                NOT_FOUND => "declare it, or correct exchange",
                _ => return SinkError::Again { why },
            },
            _ => return SinkError::Again { why },
        };
        SinkError::Refused { why: format!("output.{}: {why}; {advice}", self.name) }
    }

    /// A connection that is alive, taken out of `slot`.
    async fn connected(&self, slot: &mut Option<Link>) -> Result<Link, SinkError> {
        let alive = |line: &Line| line.connection.status().connected() && line.channel.status().connected();
        if let Some(link) = slot.take().filter(|link| alive(&link.line)) {
            return Ok(link);
        }
        match tokio::time::timeout(self.timeout, self.connect()).await {
            Ok(connected) => connected.map_err(|error| self.judge(&error)),
            Err(_) => Err(SinkError::Again { why: format!("{}: no connection in time", self.place) }),
        }
    }

    async fn connect(&self) -> lapin::Result<Link> {
        let name = format!("chainweir {}", self.name);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let runtime = lapin::runtime::default_runtime()?;
        let connection =
            Connection::connect_uri_with_config(self.uri.clone(), properties, self.tls.clone(), runtime).await?;
        let alarm = Alarm { events: Box::pin(connection.events_listener()), reason: None };
        let channel = connection.create_channel().await?;
        if !self.exchange.as_str().is_empty() {
            let passive = ExchangeDeclareOptions { passive: true, ..Default::default() };
            let kind = ExchangeKind::Direct;
            channel.exchange_declare(self.exchange.clone(), kind, passive, FieldTable::default()).await?;
        }
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let line = Line {
            connection,
            channel,
            under_way: None,
            window: self.batch,
            largest: usize::MAX,
            astray: HashMap::new(),
        };
        Ok(Link { line, alarm })
    }

    fn message(&self, delivery: &Delivery) -> (BasicProperties, Vec<u8>) {
        let message = cloudevent::message(delivery, self.mode);
        let mut properties = BasicProperties::default()
            .with_content_type(message.content_type.into())
            .with_message_id(delivery.id.to_string().into())
            .with_delivery_mode(PERSISTENT)
            .with_app_id("chainweir".into());
        if !message.attributes.is_empty() {
            let mut headers = FieldTable::default();
            for (name, value) in message.attributes {
                headers.insert(format!("{PREFIX}{name}").into(), AMQPValue::LongString(value.into()));
            }
            properties = properties.with_headers(headers);
        }
        (properties, message.body)
    }

    /// Hands `messages` over and waits for the confirm of each. A task of its own: what an alarm holds up is in the
    /// channel's books, and must be waited for before anything else is published on it.
    fn start(
        &self,
        channel: &Channel,
        key: &ShortString,
        messages: Vec<(BasicProperties, Vec<u8>)>,
    ) -> JoinHandle<Vec<lapin::Result<Confirmation>>> {
        let (channel, exchange, key) = (channel.clone(), self.exchange.clone(), key.clone());
        let options = BasicPublishOptions { mandatory: self.mandatory, ..Default::default() };
        tokio::spawn(async move {
            let mut confirms = Vec::with_capacity(messages.len());
            let mut error = None;
            for (properties, body) in messages {
                match channel.basic_publish(exchange.clone(), key.clone(), options, &body, properties).await {
                    Ok(confirm) => confirms.push(confirm),
                    Err(failed) => {
                        error = Some(Err(failed));
                        break;
                    }
                }
            }
            let mut settled = Vec::with_capacity(confirms.len() + 1);
            for confirm in confirms {
                settled.push(confirm.await);
            }
            settled.extend(error);
            settled
        })
    }

    /// An outcome for each, window by window, until the first that must be tried again.
    async fn publish(
        &self,
        line: &mut Line,
        track: &Track,
        batch: &[Delivery],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), Halt> {
        let Ok(key) = ShortString::try_new(super::filled(&self.routing_key, track)) else {
            return Err(Halt::Wait("the routing key is longer than 255 bytes; shorten routing_key".into()));
        };
        if let Some(held_up) = &mut line.under_way {
            held_up.await.ok();
            line.under_way = None;
        }
        while outcomes.len() < batch.len() {
            let rest = &batch[outcomes.len()..];
            let messages = rest.iter().take(line.window).map(|delivery| self.message(delivery));
            let messages: Vec<_> = messages.take_while(|(_, body)| body.len() <= line.largest).collect();
            if messages.is_empty() {
                let (size, largest) = (self.message(&rest[0]).1.len(), line.largest);
                let why = format!("{}: {size} bytes; the broker takes {largest} at most", self.place);
                outcomes.push(Outcome::Refused { why });
                continue;
            }
            let settled = line.under_way.insert(self.start(&line.channel, &key, messages)).await;
            line.under_way = None;
            let settled = settled.map_err(|error| Halt::Wait(error.to_string()))?;
            // The client hands a message that came back to whoever is confirmed next: its id says which it was.
            let mut back = HashMap::new();
            let settled: Vec<_> = settled
                .into_iter()
                .map(|settled| {
                    let settled = settled?;
                    let taken = settled.is_ack();
                    if let Some(message) = settled.take_message() {
                        let id = message.delivery.properties.message_id().clone().unwrap_or_default();
                        back.insert(id.to_string(), message.reply_text.to_string());
                    }
                    Ok(taken)
                })
                .collect();
            for (delivery, taken) in rest.iter().zip(settled) {
                if !taken.map_err(Halt::Lost)? {
                    line.window = 1;
                    return Err(Halt::Wait("rejected (basic.nack); where a queue is full, make room in it".into()));
                }
                let Some(reply) = back.remove(&delivery.id.to_string()) else {
                    line.astray.remove(&key);
                    outcomes.push(Outcome::Delivered);
                    continue;
                };
                let exchange = self.exchange.as_str();
                let why =
                    format!("{reply}: no queue takes the routing key '{key}' of the exchange '{exchange}'; bind one");
                if line.astray.entry(key.clone()).or_insert_with(Instant::now).elapsed() < self.route_wait {
                    // Those behind it may have found a queue: one at a time, none overtakes.
                    line.window = 1;
                    return Err(Halt::Wait(why));
                }
                outcomes.push(Outcome::Refused { why: format!("{}: {why}", self.place) });
            }
            line.window = self.batch.min(line.window * 2);
        }
        Ok(())
    }
}

/// The largest body that the broker takes, where `error` says so.
fn largest(error: &lapin::Error) -> Option<usize> {
    let ErrorKind::ProtocolError(error) = error.kind() else { return None };
    let told = error.get_message().as_str();
    if error.get_id() == PRECONDITION_FAILED { told.rsplit_once("max size ")?.1.parse().ok() } else { None }
}

#[async_trait::async_trait]
impl Sink for RabbitMq {
    fn shape(&self) -> Shape {
        Shape { batch: self.batch, concurrency: 1 }
    }

    async fn prepare(&self, _stream: &StreamId, _spec: &StreamSpec) -> Result<(), SinkError> {
        let mut slot = self.link.lock().await;
        let link = self.connected(&mut slot).await?;
        *slot = Some(link);
        Ok(())
    }

    async fn deliver(&self, track: &Track, batch: &[Delivery]) -> Vec<Outcome> {
        let mut slot = self.link.lock().await;
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut most = usize::MAX;
        let why = loop {
            let mut link = match self.connected(&mut slot).await {
                Ok(link) => link,
                Err(error) => break error.to_string(),
            };
            link.line.largest = link.line.largest.min(most);
            let Link { line, alarm } = &mut link;
            let published = tokio::time::timeout(self.timeout, async {
                tokio::select! {
                    biased;
                    reason = alarm.raised() => Err(Halt::Wait(format!("takes no messages now: {reason}"))),
                    done = self.publish(line, track, batch, &mut outcomes) => done,
                }
            });
            match published.await {
                Ok(Ok(())) => {
                    *slot = Some(link);
                    return outcomes;
                }
                Ok(Err(Halt::Wait(why))) => {
                    *slot = Some(link);
                    break format!("{}: {why}", self.place);
                }
                // It closed the channel on all of them: once more, without the one that is too large.
                Ok(Err(Halt::Lost(error))) => match largest(&error) {
                    Some(bytes) if bytes < most => most = bytes,
                    _ => break self.told(&error),
                },
                Err(_) => break format!("{}: no confirm within {} ms", self.place, self.timeout.as_millis()),
            }
        };
        if outcomes.len() < batch.len() {
            outcomes.push(Outcome::Retry { why, after: None });
        }
        super::rest_waits(&mut outcomes, batch.len());
        outcomes
    }
}
