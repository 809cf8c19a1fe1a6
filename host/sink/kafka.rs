//! Produces every delivery to Apache Kafka, each once: a batch is one transaction, which holds the messages and how far the
//! track has come. The message's key is the lane key, so that a key's events keep their order in one partition.
//!
//! **Where the position is**: the committed offset of partition 0 of the track's topic, in a consumer group of the track's own. It is
//! written by the transaction itself, and a second process with the same `transactional_id` is fenced off by the broker.
//!
//! **After any error** nothing is assumed. The producer is thrown away; the next one ends by its mere start what the old one had left open, and what
//! lies at the end of the topic is read back before anything is sent: every message says in a header whose it is. That
//! settles a commit without an answer, and is all that a broker without transactions needs (`transactions = false`).
//!
//! Every call to librdkafka may wait, so all of it runs on threads for that, one call at a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

use super::cloudevent::{self, Mode};
use super::options::Options;
use super::{Kind, Open, Shape, Sink, SinkError, Track};
use crate::model::{Delivery, Outcome, OutputName, StreamId, StreamSpec};

pub const KIND: Kind = Kind {
    name: "kafka",
    options: &[
        ("bootstrap_servers", "host:9092; several brokers of a cluster, parted by commas"),
        ("topic", "with {plugin}, {stream} and {chain}; chainweir.{plugin}.{stream}"),
        ("content_mode", Mode::HELP),
        (
            "transactions",
            "false: the broker has none; what is at the topic's end after a restart is not sent again; true",
        ),
        ("transactional_id", "of this output alone; chainweir- and the journal's id with the output's name"),
        ("client_id", "how the broker's logs and quotas name us; chainweir"),
        ("compression_type", "none, gzip, snappy, lz4 or zstd; none"),
        ("linger_ms", "how long the client waits for more messages before it sends; 5"),
        ("message_max_bytes", "largest message, as the topic's max.message.bytes; 1000000"),
        ("batch", "most messages in one transaction; 500"),
        (
            "tail",
            "messages at each partition's end that are read back after a start or an error; more than batch; 1000",
        ),
        (
            "security_protocol",
            "plaintext, ssl, sasl_plaintext or sasl_ssl; ssl is in builds with the feature kafka-tls; plaintext",
        ),
        ("sasl_mechanism", "PLAIN, or, in builds with the feature kafka-tls, SCRAM-SHA-256 or SCRAM-SHA-512; PLAIN"),
        ("sasl_username", "user name, with sasl_password_env or sasl_password_file"),
        ("sasl_password_env", "environment variable with the password"),
        ("sasl_password_file", "file with the password"),
        ("ca_file", "PEM file with the certificate authorities to trust, instead of the system's"),
        ("certificate_file", "PEM file with a certificate of our own, for brokers that ask for one; with key_file"),
        ("key_file", "PEM file with the certificate's private key"),
        ("timeout_ms", "time to wait for each of a connection, acknowledgements and a commit; 10000"),
    ],
    open: |open| Box::pin(async move { Ok(Arc::new(Kafka::open(open)?) as Arc<dyn Sink>) }),
};

/// `{journal} {delivery id}`: on every message, whatever the content mode.
const OURS: &str = "chainweir";
const LONGEST_TOPIC: usize = 249;

struct Kafka {
    settings: Arc<Settings>,
    /// Empty after an error: then nothing is known.
    link: Arc<tokio::sync::Mutex<Option<Link>>>,
}

struct Settings {
    name: OutputName,
    journal: String,
    /// The brokers, for messages.
    place: String,
    /// What a producer and a consumer have in common.
    client: ClientConfig,
    producer: ClientConfig,
    topic: String,
    mode: Mode,
    transactions: bool,
    id: String,
    largest: usize,
    batch: usize,
    tail: i64,
    timeout: Duration,
}

struct Link {
    producer: ThreadedProducer<Ear>,
    /// What became of each message, by its place in the batch.
    answers: mpsc::Receiver<(usize, Option<KafkaError>)>,
    tracks: HashMap<Track, Known>,
}

/// What the topic has of a track.
struct Known {
    position: Option<u64>,
    group: ConsumerGroupMetadata,
    ids: HashSet<String>,
    /// The ids before those.
    older: HashSet<String>,
}

impl Known {
    fn has(&self, id: &str) -> bool {
        self.ids.contains(id) || self.older.contains(id)
    }

    /// Remembers the newest `most`, and at most twice as many.
    fn add(&mut self, id: String, most: usize) {
        if self.ids.len() >= most {
            self.older = std::mem::take(&mut self.ids);
        }
        self.ids.insert(id);
    }
}

/// Hears what librdkafka has to say.
struct Ear {
    answers: mpsc::Sender<(usize, Option<KafkaError>)>,
    /// The last that went wrong with a connection: a call that waited in vain says only that it did.
    trouble: Mutex<Option<(Option<Code>, String)>>,
}

impl ClientContext for Ear {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // That all brokers are down follows from why each is.
        if error.rdkafka_error_code() != Some(Code::AllBrokersDown) {
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((error.rdkafka_error_code(), reason.to_owned()));
        }
    }
}

impl ProducerContext for Ear {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, place: usize) {
        // Nobody listens any more where the link is given up.
        let _ = self.answers.send((place, result.as_ref().err().map(|(error, _)| error.clone())));
    }
}

impl ConsumerContext for Ear {}

/// Why a batch was not delivered.
enum Fault {
    Now(String),
    /// The broker does not take a message of the batch, which one is not said.
    Message(String),
}

impl From<SinkError> for Fault {
    fn from(error: SinkError) -> Self {
        Self::Now(error.to_string())
    }
}

impl Kafka {
    fn open(open: Open) -> Result<Self, SinkError> {
        let options = Options::new(open, KIND.options)?;
        let servers = options.need("bootstrap_servers", "127.0.0.1:9092")?;
        if servers.contains(['/', '@']) {
            return Err(
                options.refused("bootstrap_servers are of the form host:9092, parted by commas, without a scheme")
            );
        }
        let timeout_ms = options.number("timeout_ms", 10_000, 1_000..=300_000)?;
        let largest = options.number("message_max_bytes", 1_000_000, 1_000..=1_000_000_000)?;
        let batch = options.number("batch", 500, 1..=10_000)?;
        let tail = options.number("tail", batch.max(500) * 2, batch + 1..=1_000_000)?;
        let linger_ms = options.number("linger_ms", 5, 0..=900)?;
        let transactions = options.flag("transactions", true)?;
        let id = options.text("transactional_id")?;
        if id.is_some() && !transactions {
            return Err(
                options.refused("transactional_id is for transactions; take out one of it and transactions = false")
            );
        }
        let id = id.unwrap_or_else(|| format!("chainweir-{}-{}", options.journal(), options.name()));

        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &servers)
            .set("client.id", options.text("client_id")?.unwrap_or_else(|| "chainweir".into()))
            .set("socket.timeout.ms", timeout_ms.to_string())
            .set("socket.connection.setup.timeout.ms", timeout_ms.to_string())
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            // Either end may have a new connection within this time.
            .set("socket.keepalive.enable", "true");
        security(&options, &mut client)?;
        let mut producer = client.clone();
        producer
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", timeout_ms.to_string())
            .set("message.max.bytes", largest.to_string())
            // A set of messages is no larger than one may be, or the topic's limit could refuse the set.
            .set("batch.size", largest.min(1_000_000).to_string())
            .set("linger.ms", linger_ms.to_string())
            .set("compression.type", options.word("compression_type", &["none", "gzip", "snappy", "lz4", "zstd"])?)
            // As the Java clients do it; messages without a key all go to one partition, in their order.
            .set("partitioner", "murmur2");
        if transactions {
            // Readers wait so long for a transaction that a dead process left open.
            let longest = (2 * timeout_ms).max(10_000);
            producer.set("transactional.id", &id).set("transaction.timeout.ms", longest.to_string());
        } else {
            // Nothing overtakes a message that failed.
            producer.set("enable.gapless.guarantee", "true");
        }
        let settings = Settings {
            name: options.name().clone(),
            journal: options.journal().to_owned(),
            place: format!("Kafka at {servers}"),
            client,
            producer,
            topic: topic(&options)?,
            mode: Mode::of(&options)?,
            transactions,
            id,
            largest: largest as usize,
            batch: batch as usize,
            tail: tail as i64,
            timeout: Duration::from_millis(timeout_ms),
        };
        // Nothing is connected yet, so a certificate is looked into later.
        settings.producer.create_native_config().map_err(|error| options.refused(&error.to_string()))?;
        Ok(Self { settings: Arc::new(settings), link: Arc::default() })
    }

    /// Runs `work` where it may wait. It has the link until it is done, whether or not anybody still waits for it.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Settings, &mut Option<Link>) -> T + Send + 'static,
    ) -> Result<T, String> {
        let mut slot = self.link.clone().lock_owned().await;
        let settings = self.settings.clone();
        tokio::task::spawn_blocking(move || work(&settings, &mut slot)).await.map_err(|error| error.to_string())
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        // A producer takes its time to end.
        if let Some(link) = self.link.try_lock().ok().and_then(|mut slot| slot.take()) {
            std::thread::spawn(move || drop(link));
        }
    }
}

fn topic(options: &Options) -> Result<String, SinkError> {
    let topic = options.template("topic", "chainweir.{plugin}.{stream}")?;
    let filled = super::filled_alike(&topic, "x");
    let legal = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c);
    if !filled.chars().all(legal) || filled.len() > LONGEST_TOPIC || filled == "." || filled == ".." {
        return Err(options.refused(&format!(
            "topic '{topic}' must be letters, digits, '.', '_' and '-', of {LONGEST_TOPIC} at most; {{plugin}}, {{stream}} and {{chain}} are filled in"
        )));
    }
    Ok(topic)
}

fn security(options: &Options, client: &mut ClientConfig) -> Result<(), SinkError> {
    let protocol = options.word("security_protocol", &["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"])?;
    let mechanism = options.word("sasl_mechanism", &["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])?;
    let (tls, sasl) = (protocol.ends_with("ssl"), protocol.starts_with("sasl"));
    if !cfg!(feature = "kafka-tls") && (tls || mechanism != "PLAIN") {
        return Err(options.refused(
            "this program was built without TLS and SCRAM for Kafka; build it with: cargo build --release --features kafka-tls (needs \
             perl and make), or let a proxy beside it speak TLS, with security_protocol = \"plaintext\" or \"sasl_plaintext\"",
        ));
    }
    client.set("security.protocol", protocol);
    match (sasl, options.text("sasl_username")?, options.secret("sasl_password_env", "sasl_password_file")?) {
        (true, Some(user), Some(password)) => {
            client.set("sasl.mechanism", mechanism).set("sasl.username", user).set("sasl.password", password.expose());
        }
        (false, None, None) => {}
        (true, ..) => {
            return Err(options.refused("set sasl_username, and sasl_password_env or sasl_password_file"));
        }
        (false, ..) => {
            return Err(options.refused(
                "sasl_username and its password are for security_protocol = \"sasl_ssl\" or \"sasl_plaintext\"; set one of them",
            ));
        }
    }
    let files = [("ca_file", "ssl.ca.pem"), ("certificate_file", "ssl.certificate.pem"), ("key_file", "ssl.key.pem")];
    for (key, property) in files {
        match options.content_of(key)? {
            Some(_) if !tls => {
                return Err(options
                    .refused(&format!("{key} is for security_protocol = \"ssl\" or \"sasl_ssl\"; set one of them")));
            }
            Some(pem) => drop(client.set(property, pem.expose())),
            None if tls && key == "ca_file" => drop(client.set("ssl.ca.location", "probe")),
            None => {}
        }
    }
    Ok(())
}

impl Settings {
    /// librdkafka will not make a client: a certificate or a key is none.
    fn unmade(&self, error: &KafkaError) -> SinkError {
        SinkError::Refused {
            why: format!("output.{}: {error}; check ca_file, certificate_file and key_file", self.name),
        }
    }

    fn judge(&self, what: &str, error: &KafkaError, ear: &Ear) -> SinkError {
        let trouble = ear.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let code = error.rdkafka_error_code();
        let mut why = match error {
            KafkaError::Transaction(error) => error.string(),
            error => code.map_or_else(|| error.to_string(), |code| code.to_string()),
        };
        let mut codes = vec![code];
        if let Some((code, reason)) = trouble {
            why = format!("{why}; {reason}");
            codes.push(code);
        }
        let hint = codes.into_iter().flatten().find_map(|code| {
            Some(match code {
                Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism => {
                    "check sasl_mechanism, sasl_username and the password"
                }
                Code::TopicAuthorizationFailed => "allow our user Write, Read and Describe on the topic",
                Code::GroupAuthorizationFailed => {
                    "allow our user Read on consumer groups that begin with the transactional_id"
                }
                Code::TransactionalIdAuthorizationFailed => "allow our user Write and Describe on the transactional_id",
                Code::ClusterAuthorizationFailed => "allow our user IdempotentWrite on the cluster",
                Code::UnsupportedFeature => "if the broker has no transactions, set transactions = false",
                Code::InvalidTransactionTimeout => {
                    "set a smaller timeout_ms, or a larger transaction.max.timeout.ms in the broker"
                }
                Code::SSL => "check security_protocol and ca_file",
                _ => return None,
            })
        });
        match hint {
            Some(hint) => {
                SinkError::Refused { why: format!("output.{}: {}: {what}: {why}; {hint}", self.name, self.place) }
            }
            None => SinkError::Again { why: format!("{}: {what}: {why}", self.place) },
        }
    }

    fn connected<'a>(&self, slot: &'a mut Option<Link>) -> Result<&'a mut Link, SinkError> {
        if slot.is_none() {
            let (ear, answers) = ear();
            let producer = self.producer.create_with_context(ear).map_err(|error| self.unmade(&error))?;
            let link = Link { producer, answers, tracks: HashMap::new() };
            if self.transactions {
                // Ends what a producer of the same id left open, and fences it off.
                let begun = link.producer.init_transactions(self.timeout);
                begun.map_err(|error| self.judge("cannot begin", &error, link.producer.context()))?;
            }
            *slot = Some(link);
        }
        Ok(slot.as_mut().expect("made above"))
    }

    /// The group's offset, and whatever is ours at the end of every partition.
    fn learn(&self, link: &Link, track: &Track) -> Result<Known, SinkError> {
        let topic = super::filled(&self.topic, track);
        // Asked by the producer, for whom a broker may make the topic.
        let told = |error: KafkaError| self.judge(&format!("topic {topic}"), &error, link.producer.context());
        let metadata = link.producer.client().fetch_metadata(Some(&topic), self.timeout).map_err(told)?;
        let partitions = metadata.topics().iter().find(|found| found.name() == topic);
        let partitions = match partitions.map(|found| (found.error().map(Code::from), found.partitions().len())) {
            Some((None, count)) if count > 0 => count as i32,
            Some((Some(code), _)) if code != Code::UnknownTopicOrPartition && code != Code::LeaderNotAvailable => {
                return Err(told(KafkaError::MetadataFetch(code)));
            }
            _ => {
                let why =
                    format!("{}: there is no topic {topic}; make it, unless the broker is just making it", self.place);
                return Err(SinkError::Again { why });
            }
        };
        let (ear, _) = ear();
        let group = format!("{}-{}-{}", self.id, track.stream, track.chain.0);
        let mut config = self.client.clone();
        config
            .set("group.id", &group)
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "10");
        let consumer: BaseConsumer<Ear> = config.create_with_context(ear).map_err(|error| self.unmade(&error))?;
        let told = |error: KafkaError| {
            self.judge(&format!("reading back the topic {topic} as the group {group}"), &error, consumer.context())
        };

        let mut list = TopicPartitionList::new();
        list.add_partition(&topic, 0);
        let committed = consumer.committed_offsets(list, self.timeout).map_err(told)?;
        let committed = committed.find_partition(&topic, 0);
        committed.as_ref().map_or(Ok(()), |partition| partition.error()).map_err(told)?;
        let mut position = match committed.map(|partition| partition.offset()) {
            // 0 says that there is none.
            Some(Offset::Offset(offset)) => u64::try_from(offset).ok().filter(|offset| *offset > 0),
            _ => None,
        };
        if !self.transactions && position.take().is_some() {
            // It would be believed, and be wrong, once there are transactions again.
            let void = at(&topic, 0, 0).map_err(told)?;
            consumer.commit(&void, CommitMode::Sync).map_err(told)?;
        }

        let (mut ends, mut list) = (BTreeMap::new(), TopicPartitionList::new());
        for partition in 0..partitions {
            let (first, end) = consumer.fetch_watermarks(&topic, partition, self.timeout).map_err(told)?;
            if end > first {
                ends.insert(partition, end);
                let from = Offset::Offset(first.max(end - self.tail));
                list.add_partition_offset(&topic, partition, from).map_err(told)?;
            }
        }
        consumer.assign(&list).map_err(told)?;
        let group = consumer.group_metadata().ok_or_else(|| told(KafkaError::Canceled))?;
        let mut known = Known { position, group, ids: HashSet::new(), older: HashSet::new() };
        // It may be long, but not stand still.
        let mut deadline = Instant::now() + self.timeout;
        while !ends.is_empty() {
            match consumer.poll(deadline.saturating_duration_since(Instant::now())) {
                Some(Ok(message)) => {
                    deadline = Instant::now() + self.timeout;
                    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
                    let said = headers.filter(|header| header.key == OURS).find_map(|header| header.value);
                    if let Some((journal, id)) =
                        said.and_then(|text| std::str::from_utf8(text).ok()).and_then(|text| text.split_once(' '))
                        && journal == self.journal
                    {
                        known.ids.insert(id.to_owned());
                    }
                    // Where others write faster than this reads, there is no end.
                    if ends.get(&message.partition()).is_some_and(|end| message.offset() >= end + self.tail) {
                        ends.remove(&message.partition());
                    }
                }
                // Reading knows the end. What was asked for above need not be it: what ends a transaction takes an offset too
                // and is not shown, and a broker may count the last batch as one message (Tansu 0.6).
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(ends.remove(&partition)),
                Some(Err(error)) => {
                    if let refused @ SinkError::Refused { .. } = told(error) {
                        return Err(refused);
                    }
                }
                None => {}
            }
            if Instant::now() >= deadline {
                return Err(told(KafkaError::MessageConsumption(Code::OperationTimedOut)));
            }
        }
        Ok(known)
    }

    /// The link, which knows the track.
    fn ready<'a>(&self, slot: &'a mut Option<Link>, track: &Track) -> Result<&'a mut Link, SinkError> {
        let link = self.connected(slot)?;
        if !link.tracks.contains_key(track) {
            let known = self.learn(link, track)?;
            link.tracks.insert(track.clone(), known);
        }
        Ok(link)
    }

    fn deliver(&self, slot: &mut Option<Link>, track: &Track, batch: &[Delivery]) -> Vec<Outcome> {
        let why = match self.attempt(slot, track, batch, true) {
            Ok(outcomes) => return outcomes,
            Err(Fault::Now(why)) => return super::retry_all(batch.len(), &why),
            Err(Fault::Message(why)) => why,
        };
        tracing::debug!(output = %self.name, why, "each message goes alone");
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut passes = true;
        for one in batch.chunks(1) {
            match self.attempt(slot, track, one, passes) {
                Ok(said) => outcomes.extend(said),
                Err(Fault::Message(why)) => outcomes.push(Outcome::Refused { why }),
                Err(Fault::Now(why)) => {
                    outcomes.extend(super::retry_all(batch.len() - outcomes.len(), &why));
                    break;
                }
            }
            passes &= matches!(outcomes.last(), Some(Outcome::Delivered));
        }
        outcomes
    }

    fn attempt(
        &self,
        slot: &mut Option<Link>,
        track: &Track,
        batch: &[Delivery],
        passes: bool,
    ) -> Result<Vec<Outcome>, Fault> {
        self.ready(slot, track)?;
        // Gone, unless all goes well.
        let Some(mut link) = slot.take() else { return Err(Fault::Now(format!("{}: no connection", self.place))) };
        let outcomes = self.store(&mut link, track, batch, passes)?;
        *slot = Some(link);
        Ok(outcomes)
    }

    /// One transaction: messages and position. `passes`: nothing before this batch was refused in the same call.
    fn store(&self, link: &mut Link, track: &Track, batch: &[Delivery], passes: bool) -> Result<Vec<Outcome>, Fault> {
        let topic = super::filled(&self.topic, track);
        let Link { producer, answers, tracks } = link;
        let known = tracks.get_mut(track).ok_or_else(|| Fault::Now("the track is not known".into()))?;
        let fault = |what: &str, error: KafkaError| Fault::from(self.judge(what, &error, producer.context()));
        // What went wrong long ago explains nothing.
        *producer.context().trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let mut outcomes = vec![Outcome::Delivered; batch.len()];
        let ids: Vec<String> = batch.iter().map(|delivery| delivery.id.to_string()).collect();
        // What a person put back lies before the position, and comes alone.
        let passed = |offset: u64| batch.len() > 1 && known.position.is_some_and(|position| offset <= position);
        let new = |index: &usize| !known.has(&ids[*index]) && !passed(batch[*index].offset);
        let new: Vec<usize> = (0..batch.len()).filter(new).collect();
        if new.is_empty() {
            return Ok(outcomes);
        }
        if self.transactions {
            producer.begin_transaction().map_err(|error| fault("cannot begin a transaction", error))?;
        }
        let mut waiting = 0;
        for index in new {
            let delivery = &batch[index];
            let message = cloudevent::message(delivery, self.mode);
            let mut record = BaseRecord::with_opaque_to(&topic, index)
                .payload(&message.body)
                .headers(self.headers(&message, &ids[index]));
            if !delivery.emission.lane_key.is_empty() {
                record = record.key(delivery.emission.lane_key.as_str());
            }
            match producer.send(record).map_err(|(error, _)| error) {
                Ok(()) => waiting += 1,
                Err(error) if error.rdkafka_error_code() == Some(Code::MessageSizeTooLarge) => {
                    let (bytes, largest) = (message.body.len(), self.largest);
                    let why = format!("{}: {bytes} bytes; message_max_bytes is {largest}", self.place);
                    outcomes[index] = Outcome::Refused { why };
                }
                Err(error) => return Err(fault("cannot send", error)),
            }
        }
        let mut failed: Option<KafkaError> = None;
        for _ in 0..waiting {
            // Each is answered within the timeout, by librdkafka where nobody else does.
            let Ok((_, error)) = answers.recv_timeout(2 * self.timeout) else {
                return Err(Fault::Now(format!("{}: no acknowledgement in time", self.place)));
            };
            if let Some(error) = error
                && failed.as_ref().is_none_or(|_| of_the_message(&error))
            {
                failed = Some(error);
            }
        }
        if let Some(error) = failed {
            if of_the_message(&error) {
                let why =
                    format!("{}: topic {topic}: {error}; message_max_bytes is to be its max.message.bytes", self.place);
                return Err(Fault::Message(why));
            }
            return Err(fault(&format!("topic {topic}"), error));
        }

        let reached = batch.iter().zip(&outcomes).take_while(|(_, outcome)| **outcome == Outcome::Delivered);
        // Without a position nobody knows whether a single delivery was put back: then it says none.
        let says = passes && (known.position.is_some() || batch.len() > 1);
        let reached = reached.last().map(|(delivery, _)| delivery.offset).filter(|_| says).max(known.position);
        if self.transactions {
            if reached != known.position
                && let Some(position) = reached.and_then(|offset| i64::try_from(offset).ok())
            {
                let said = at(&topic, 0, position)
                    .and_then(|position| producer.send_offsets_to_transaction(&position, &known.group, self.timeout));
                said.map_err(|error| fault("cannot write the position", error))?;
            }
            // An answer is handed on a moment before its message is off the client's list, for which a commit waits by steps of 100 ms.
            let deadline = Instant::now() + self.timeout;
            while producer.in_flight_count() > 0 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_micros(100));
            }
            producer.commit_transaction(self.timeout).map_err(|error| fault("no answer to the commit", error))?;
            known.position = reached;
        }
        for (id, outcome) in ids.into_iter().zip(&outcomes) {
            if *outcome == Outcome::Delivered {
                known.add(id, self.tail as usize);
            }
        }
        Ok(outcomes)
    }

    /// By CloudEvents' Kafka binding, section 3: names with `ce_`, values as UTF-8, and `content-type`.
    fn headers(&self, message: &cloudevent::Message, id: &str) -> OwnedHeaders {
        let header = |key: &str, value: &str, headers: OwnedHeaders| headers.insert(Header { key, value: Some(value) });
        let mut headers = header("content-type", message.content_type, OwnedHeaders::new());
        for (name, value) in &message.attributes {
            headers = header(&format!("ce_{name}"), value, headers);
        }
        header(OURS, &format!("{} {id}", self.journal), headers)
    }
}

fn ear() -> (Ear, mpsc::Receiver<(usize, Option<KafkaError>)>) {
    let (answers, heard) = mpsc::channel();
    (Ear { answers, trouble: Mutex::default() }, heard)
}

fn at(topic: &str, partition: i32, offset: i64) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    Ok(list)
}

/// A message that no later time will make acceptable: too large, or against the topic's own rules.
fn of_the_message(error: &KafkaError) -> bool {
    let of_the_message =
        [Code::MessageSizeTooLarge, Code::MessageBatchTooLarge, Code::InvalidMessageSize, Code::InvalidRecord];
    error.rdkafka_error_code().is_some_and(|code| of_the_message.contains(&code))
}

#[async_trait::async_trait]
impl Sink for Kafka {
    fn shape(&self) -> Shape {
        Shape { batch: self.settings.batch, concurrency: 1 }
    }

    async fn prepare(&self, _stream: &StreamId, _spec: &StreamSpec) -> Result<(), SinkError> {
        let connected = self.blocking(|settings, slot| settings.connected(slot).map(|_| ())).await;
        connected.unwrap_or_else(|why| Err(SinkError::Again { why }))
    }

    async fn position(&self, track: &Track) -> Result<Option<u64>, SinkError> {
        let track = track.clone();
        let asked = self.blocking(move |settings, slot| {
            let link = settings.connected(slot)?;
            link.tracks.remove(&track);
            Ok(settings.ready(slot, &track)?.tracks.get(&track).and_then(|known| known.position))
        });
        asked.await.unwrap_or_else(|why| Err(SinkError::Again { why }))
    }

    async fn deliver(&self, track: &Track, batch: &[Delivery]) -> Vec<Outcome> {
        if batch.is_empty() {
            return vec![];
        }
        let (track, owned) = (track.clone(), batch.to_vec());
        let delivered = self.blocking(move |settings, slot| settings.deliver(slot, &track, &owned)).await;
        delivered.unwrap_or_else(|why| super::retry_all(batch.len(), &why))
    }
}
