//! Publishes every delivery to an MQTT 5 broker with quality of service 1: at least once, acknowledged before the lane moves.
//!
//! What was not acknowledged when a connection broke is published again, in order, with the same ids; a consumer knows a repeat by the
//! event's `id`. An acknowledgement says that the broker has the message: whether it lasts there is the
//! broker's (mosquitto: `persistence true`), and who is not subscribed then, without a session, does not get it. `retain` leaves the last
//! message of a topic there for whoever comes later.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, Packet, PubAckReason, Publish, PublishProperties};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, MqttOptions};
use rumqttc::{NetworkOptions, Outgoing, TlsConfiguration, Transport};
use tokio::sync::{Mutex, mpsc};

use super::cloudevent::{self, Mode};
use super::options::Options;
use super::{Kind, Open, Shape, Sink, SinkError, Track};
use crate::model::{ContentType, Delivery, Outcome, OutputName, StreamId, StreamSpec};

pub const KIND: Kind = Kind {
    name: "mqtt",
    options: &[
        ("url", "mqtt://host:1883, or mqtts://host:8883 for TLS"),
        ("username", "user name, with password_env or password_file"),
        ("password_env", "environment variable with the password"),
        ("password_file", "file with the password"),
        ("client_id", "must be unique at the broker; chainweir- and the journal's id with the output's name"),
        ("topic", "with {plugin}, {stream} and {chain}; chainweir/{plugin}/{stream}/{chain}"),
        ("retain", "true: the broker keeps the last message of a topic; false"),
        ("content_mode", Mode::HELP),
        ("batch", "most messages on their way to an acknowledgement; the broker may allow fewer; 500"),
        ("ca_file", "PEM file with the certificate authorities to trust, with mqtts://"),
        ("timeout_ms", "time to wait for a connection and for the acknowledgements of a batch; 10000"),
    ],
    open: |open| Box::pin(async move { Ok(Arc::new(Mqtt::open(open)?) as Arc<dyn Sink>) }),
};

/// A broker that waits for the TCP acknowledgement of its first answers before it sends the last ones, as mosquitto does by default,
/// takes 40 ms a batch, of whatever size.
const BATCH: u64 = 500;
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Of a packet from the broker, and of ours until the broker says what it takes.
const LARGEST_PACKET: u32 = 256 << 20;
const LONGEST_TOPIC: usize = 65_535;

struct Mqtt {
    name: OutputName,
    options: MqttOptions,
    /// Host and port, for messages.
    place: String,
    topic: String,
    retain: bool,
    mode: Mode,
    batch: usize,
    timeout: Duration,
    /// Taken while in use: after an error, or when a caller gave up, what was acknowledged is not known any more.
    link: Mutex<Option<Link>>,
}

struct Link {
    client: AsyncClient,
    /// What the connection says, in order; it ends with why the connection ended.
    heard: mpsc::UnboundedReceiver<Heard>,
    /// Of a packet that the broker takes.
    largest: usize,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

enum Heard {
    /// The largest packet that the broker takes.
    Connected(Option<u32>),
    Sent(u16),
    Acknowledged(u16, PubAckReason),
    Ended(ConnectionError),
}

impl Mqtt {
    fn open(open: Open) -> Result<Self, SinkError> {
        let options = Options::new(open, KIND.options)?;
        let text = options.need("url", "mqtt://127.0.0.1:1883")?;
        let wrong = || options.refused("the URL is not of the form mqtt://host:1883 or mqtts://host:8883");
        let url = url::Url::parse(&text).map_err(|_| wrong())?;
        let (tls, port) = match url.scheme() {
            "mqtt" | "tcp" => (false, 1883),
            "mqtts" | "ssl" => (true, 8883),
            _ => return Err(wrong()),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(
                options.refused("url holds a user or password; set username, and password_env or password_file")
            );
        }
        let (host, port) =
            (url.host_str().filter(|host| !host.is_empty()).ok_or_else(wrong)?, url.port().unwrap_or(port));
        let default = format!("chainweir-{}-{}", options.journal(), options.name());
        let client_id = options.text("client_id")?.unwrap_or(default);
        let batch = options.number("batch", BATCH, 1..=10_000)?;
        let timeout = Duration::from_millis(options.number("timeout_ms", 10_000, 1..=600_000)?);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        let mut mqtt = MqttOptions::new(client_id, host, port);
        mqtt.set_keep_alive(KEEP_ALIVE)
            .set_clean_start(true)
            .set_connection_timeout(timeout.as_secs().max(1))
            .set_max_packet_size(Some(LARGEST_PACKET))
            .set_outgoing_inflight_upper_limit(batch as u16)
            // The last packet of a batch would wait for the acknowledgement of those before it, 40 ms.
            .set_network_options(network);
        match (options.text("username")?, options.secret("password_env", "password_file")?) {
            (Some(user), Some(password)) => drop(mqtt.set_credentials(user, password.expose())),
            (None, None) => {}
            _ => return Err(options.refused("set both username and password_env (or password_file), or neither")),
        }
        let ca = options.file("ca_file")?;
        if tls {
            mqtt.set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::new(super::tls(&options, ca)?))));
        }
        Ok(Self {
            name: options.name().clone(),
            place: format!("MQTT broker at {host}:{port}"),
            options: mqtt,
            topic: topic(&options)?,
            retain: options.flag("retain", false)?,
            mode: Mode::of(&options)?,
            batch: batch as usize,
            timeout,
            link: Mutex::new(None),
        })
    }

    fn judge(&self, error: &ConnectionError) -> SinkError {
        let why = format!("{}: {error}", self.place);
        match error {
            ConnectionError::ConnectionRefused(
                ConnectReturnCode::BadUserNamePassword
                | ConnectReturnCode::NotAuthorized
                | ConnectReturnCode::Banned
                | ConnectReturnCode::ClientIdentifierNotValid
                | ConnectReturnCode::BadAuthenticationMethod
                | ConnectReturnCode::UnsupportedProtocolVersion,
            ) => SinkError::Refused {
                why: format!("output.{}: {why}; check username, password_env and client_id", self.name),
            },
            _ => SinkError::Again { why },
        }
    }

    /// A connection that is alive, taken out of `slot`.
    async fn connected(&self, slot: &mut Option<Link>) -> Result<Link, SinkError> {
        if let Some(link) = slot.take().filter(|link| !link.task.is_finished()) {
            return Ok(link);
        }
        let (client, mut events) = AsyncClient::new(self.options.clone(), self.batch);
        let (say, mut heard) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            loop {
                let said = match events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(answer))) => {
                        Heard::Connected(answer.properties.and_then(|properties| properties.max_packet_size))
                    }
                    Ok(Event::Incoming(Packet::PubAck(answer))) => Heard::Acknowledged(answer.pkid, answer.reason),
                    Ok(Event::Outgoing(Outgoing::Publish(id))) => Heard::Sent(id),
                    Ok(_) => continue,
                    Err(error) => {
                        say.send(Heard::Ended(error)).ok();
                        return;
                    }
                };
                if say.send(said).is_err() {
                    return;
                }
            }
        });
        let wait = tokio::time::timeout(self.timeout, heard.recv()).await;
        let mut link = Link { client, heard, largest: LARGEST_PACKET as usize, task };
        match wait {
            Ok(Some(Heard::Connected(largest))) => {
                link.largest = largest.map_or(link.largest, |largest| largest as usize);
                Ok(link)
            }
            Ok(Some(Heard::Ended(error))) => Err(self.judge(&error)),
            _ => Err(SinkError::Again { why: format!("{}: no connection in time", self.place) }),
        }
    }

    fn message(&self, topic: &str, delivery: &Delivery) -> Publish {
        let message = cloudevent::message(delivery, self.mode);
        let text = self.mode == Mode::Structured || delivery.emission.content_type != ContentType::Bytes;
        let properties = PublishProperties {
            payload_format_indicator: text.then_some(1),
            content_type: Some(message.content_type.to_owned()),
            // A text of MQTT holds no NUL.
            user_properties: message
                .attributes
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.replace('\0', "\u{fffd}")))
                .collect(),
            ..Default::default()
        };
        let mut publish = Publish::new(topic, QoS::AtLeastOnce, Bytes::from(message.body), Some(properties));
        publish.retain = self.retain;
        publish
    }

    /// One outcome for each, until the first that must be tried again.
    async fn publish(&self, link: &mut Link, track: &Track, batch: &[Delivery], outcomes: &mut Vec<Option<Outcome>>) {
        let topic = super::filled(&self.topic, track);
        // Places in `outcomes` of what was handed over, in order; and what went out, by its packet id.
        let mut handed = VecDeque::new();
        let mut sent: Vec<(u16, usize)> = vec![];
        for delivery in batch {
            let publish = self.message(&topic, delivery);
            // The id comes with the sending.
            let size = publish.size() + size_of::<u16>();
            if size > link.largest {
                let why = format!("{}: {size} bytes; the broker takes {} at most", self.place, link.largest);
                outcomes.push(Some(Outcome::Refused { why }));
                continue;
            }
            let Publish { payload, properties, .. } = publish;
            let properties = properties.unwrap_or_default();
            let taken = link.client.publish_with_properties(&topic, QoS::AtLeastOnce, self.retain, payload, properties);
            if let Err(error) = taken.await {
                let why = format!("{}: {error}", self.place);
                outcomes.push(Some(Outcome::Retry { why, after: None }));
                break;
            }
            handed.push_back(outcomes.len());
            outcomes.push(None);
        }
        let mut left = handed.len();
        while left > 0 {
            let why = match link.heard.recv().await {
                Some(Heard::Sent(id)) => {
                    sent.extend(handed.pop_front().map(|place| (id, place)));
                    continue;
                }
                Some(Heard::Acknowledged(id, reason)) => {
                    let Some(at) = sent.iter().position(|(sent, _)| *sent == id) else { continue };
                    let (_, place) = sent.swap_remove(at);
                    left -= 1;
                    let why = format!("{}: refused with {reason:?} on the topic {topic}", self.place);
                    outcomes[place] = Some(match reason {
                        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Outcome::Delivered,
                        PubAckReason::PayloadFormatInvalid => Outcome::Refused { why },
                        _ => Outcome::Retry { why, after: None },
                    });
                    continue;
                }
                Some(Heard::Connected(_)) => "the connection was made anew".into(),
                Some(Heard::Ended(error)) => error.to_string(),
                None => "the connection was closed".into(),
            };
            let retry = Outcome::Retry { why: format!("{}: {why}", self.place), after: None };
            outcomes.iter_mut().filter(|outcome| outcome.is_none()).for_each(|outcome| *outcome = Some(retry.clone()));
            return;
        }
    }
}

fn topic(options: &Options) -> Result<String, SinkError> {
    let topic = options.template("topic", "chainweir/{plugin}/{stream}/{chain}")?;
    if topic.contains(['+', '#', '\0']) || topic.len() > LONGEST_TOPIC {
        return Err(
            options.refused(&format!("topic '{topic}' must be without '+' and '#', and of 65,535 bytes at most"))
        );
    }
    Ok(topic)
}

#[async_trait::async_trait]
impl Sink for Mqtt {
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
        let mut link = match self.connected(&mut slot).await {
            Ok(link) => link,
            Err(error) => return super::retry_all(batch.len(), &error.to_string()),
        };
        let mut outcomes = Vec::with_capacity(batch.len());
        let published = self.publish(&mut link, track, batch, &mut outcomes);
        let in_time = tokio::time::timeout(self.timeout, published).await.is_ok();
        let why = format!("{}: no acknowledgement within {} ms", self.place, self.timeout.as_millis());
        let late = Outcome::Retry { why, after: None };
        let mut outcomes: Vec<Outcome> = outcomes.into_iter().map(|o| o.unwrap_or_else(|| late.clone())).collect();
        let done = outcomes.iter().take_while(|outcome| !matches!(outcome, Outcome::Retry { .. })).count();
        if in_time && done == batch.len() {
            *slot = Some(link);
            return outcomes;
        }
        outcomes.truncate(done + 1);
        if outcomes.len() < batch.len() && outcomes.len() == done {
            outcomes.push(late);
        }
        super::rest_waits(&mut outcomes, batch.len());
        outcomes
    }
}
