//! Publishes every delivery to a NATS JetStream stream as a CloudEvents event, acknowledged before the lane moves.
//!
//! **No doubles**: `Nats-Msg-Id` is the delivery id; the server drops a repeat within its duplicate window (ten minutes for a stream that
//! is made here). After a longer pause the last message of the subject tells where to go on (`Chainweir-Position`).
//!
//! **Order**: a batch is published without waiting for each answer, which alone could invert it: when the third message is
//! lost with a connection and the fourth goes through the next one, the third lands after the fourth. So every message but the first says which
//! message must be the last of the stream (`Nats-Expected-Last-Msg-Id`); when the third is missing, the server refuses the fourth and all
//! after it. When another publisher's message comes in between, the chain breaks in the same harmless way, and goes on from the
//! first message that was refused, which then expects nothing. A stream of one's own is therefore fastest. All of this is in servers from 2.2 on.
//!
//! **What an acknowledgement is worth** is the server's: by default it syncs its files every two minutes, so that a single server that loses
//! power may lose what it acknowledged. Three replicas, or `sync_interval: always` in the server, close that gap.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{GetStreamErrorKind, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use async_nats::{ConnectOptions, HeaderName, Subject};
use tokio::sync::Mutex;

use super::cloudevent::{self, Mode};
use super::options::{Options, Secret};
use super::{Kind, Open, Shape, Sink, SinkError, Track};
use crate::model::{ChainId, Delivery, Outcome, OutputName, StreamId, StreamSpec};

pub const KIND: Kind = Kind {
    name: "nats",
    options: &[
        ("url", "nats://host:4222 or tls://host:4222; several servers of a cluster, parted by commas"),
        ("stream", "the JetStream stream; CHAINWEIR"),
        ("create_stream", "false: the stream must be there already; true"),
        ("subject", "subject of a message, with {plugin}, {stream} and {chain}; chainweir.{plugin}.{stream}"),
        ("content_mode", Mode::HELP),
        ("user", "user name, with password_env or password_file"),
        ("password_env", "environment variable with the password"),
        ("password_file", "file with the password"),
        ("token_env", "environment variable with the token"),
        ("token_file", "file with the token"),
        ("creds_file", "file with a user's JWT and key, as nsc writes it"),
        ("tls", "true: refuse a connection without TLS; false"),
        ("ca_file", "PEM file with the certificate authorities to trust besides the system's"),
        ("timeout_ms", "time to wait for a connection and for an acknowledgement; 5000"),
    ],
    open: |open| Box::pin(async move { Ok(Arc::new(Nats::open(open)?) as Arc<dyn Sink>) }),
};

/// Kept by the server for the streams that we make: how long it knows the ids it has seen.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(600);
const BATCH: usize = 256;

/// An offset, and whose it is: everything of the track up to it was stored. Left out where an earlier delivery of the same batch was
/// refused, and where a delivery is sent again. One header: the server goes through all of them for each that it looks for.
const POSITION: HeaderName = HeaderName::from_static("Chainweir-Position");
const CONTENT_TYPE: HeaderName = HeaderName::from_static("Content-Type");

struct Nats {
    name: OutputName,
    journal: String,
    servers: Vec<async_nats::ServerAddr>,
    /// Hosts and ports, for messages.
    place: String,
    auth: Auth,
    tls: bool,
    ca_file: Option<std::path::PathBuf>,
    stream: String,
    create_stream: bool,
    subject: String,
    mode: Mode,
    timeout: Duration,
    /// One for the life of the sink: what an old connection still had in its queue comes out before what is sent after it.
    client: Mutex<Option<jetstream::Context>>,
    /// Counts lost connections: what was under way then is not acknowledged any more.
    lost: tokio::sync::watch::Sender<u64>,
    /// Tracks take turns: two at once would break each other's chains of expectation.
    turn: Mutex<Highest>,
}

/// The highest offset of each track that the stream is known to have.
type Highest = HashMap<Track, u64>;

enum Auth {
    None,
    Password(String, Secret),
    Token(Secret),
    Creds(Secret),
}

impl Nats {
    fn open(open: Open) -> Result<Self, SinkError> {
        let options = Options::new(open, KIND.options)?;
        let url = options.need("url", "nats://127.0.0.1:4222")?;
        let servers = url
            .split(',')
            .map(|server| server.trim().parse::<async_nats::ServerAddr>())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| options.refused("url is not a NATS address; for example: url = \"nats://127.0.0.1:4222\""))?;
        let place = servers.iter().map(|s| format!("{}:{}", s.host(), s.port())).collect::<Vec<_>>().join(", ");
        let password = options.secret("password_env", "password_file")?;
        let token = options.secret("token_env", "token_file")?;
        let creds = options.content_of("creds_file")?;
        let auth = match (options.text("user")?, password, token, creds) {
            (None, None, None, None) => Auth::None,
            (Some(user), Some(password), None, None) => Auth::Password(user, password),
            (None, None, Some(token), None) => Auth::Token(token),
            (None, None, None, Some(creds)) => Auth::Creds(creds),
            _ => return Err(options.refused("set either user and password_env, or token_env, or creds_file")),
        };
        let subject = options.template("subject", "chainweir.{plugin}.{stream}")?;
        let filled = super::filled_alike(&subject, "x");
        if filled.split('.').any(str::is_empty) || filled.contains(|c: char| c.is_whitespace() || "*>{}".contains(c)) {
            return Err(options.refused(&format!(
                "subject '{subject}' must be words parted by dots, without '*' and '>'; {{plugin}}, {{stream}} and {{chain}} are filled in"
            )));
        }
        let stream = options.text("stream")?.unwrap_or_else(|| "CHAINWEIR".into());
        if stream.contains(|c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c)) {
            return Err(
                options.refused(&format!("stream '{stream}' must be without spaces, dots, '*', '>' and slashes"))
            );
        }
        Ok(Self {
            name: options.name().clone(),
            journal: options.journal().to_owned(),
            servers,
            place,
            auth,
            tls: options.flag("tls", false)?,
            ca_file: options.path("ca_file")?,
            stream,
            create_stream: options.flag("create_stream", true)?,
            subject,
            mode: Mode::of(&options)?,
            timeout: Duration::from_millis(options.number("timeout_ms", 5_000, 1..=600_000)?),
            client: Mutex::new(None),
            lost: tokio::sync::watch::Sender::new(0),
            turn: Mutex::default(),
        })
    }

    fn again(&self, what: &str, error: &dyn std::fmt::Display) -> SinkError {
        SinkError::Again { why: format!("NATS at {}: {what}: {error}", self.place) }
    }

    fn refused(&self, why: &str) -> SinkError {
        SinkError::Refused { why: format!("output.{}: NATS at {}: {why}", self.name, self.place) }
    }

    async fn context(&self) -> Result<jetstream::Context, SinkError> {
        use async_nats::ConnectErrorKind as Kind;
        let mut client = self.client.lock().await;
        if let Some(context) = &*client {
            return match context.client().connection_state() {
                State::Connected => Ok(context.clone()),
                // What is published now would wait in a queue.
                _ => Err(self.again("not connected", &"the client is connecting again")),
            };
        }
        super::ring();
        let lost = self.lost.clone();
        let mut options = ConnectOptions::new()
            .event_callback(move |event| {
                if matches!(event, async_nats::Event::Disconnected) {
                    lost.send_modify(|count| *count += 1);
                }
                async {}
            })
            .name("chainweir")
            .connection_timeout(self.timeout)
            .request_timeout(Some(self.timeout))
            .require_tls(self.tls)
            .max_reconnects(None)
            .reconnect_delay_callback(|attempt| Duration::from_millis((50 << attempt.min(6)) as u64));
        if let Some(file) = &self.ca_file {
            options = options.add_root_certificates(file.clone());
        }
        options = match &self.auth {
            Auth::None => options,
            Auth::Password(user, password) => options.user_and_password(user.clone(), password.expose().to_owned()),
            Auth::Token(token) => options.token(token.expose().to_owned()),
            Auth::Creds(creds) => options
                .credentials(creds.expose())
                .map_err(|_| self.refused("creds_file does not hold a JWT and a key, as nsc writes them"))?,
        };
        let connected = tokio::time::timeout(self.timeout, options.connect(self.servers.clone())).await;
        let connected =
            connected.map_err(|_| self.again("cannot connect", &"no answer in time"))?.map_err(|error| match error
                .kind()
            {
                Kind::Authentication | Kind::AuthorizationViolation => {
                    self.refused(&format!("{}; check user, password_env, token_env or creds_file", error.kind()))
                }
                _ => self.again("cannot connect", &error),
            })?;
        let mut context = jetstream::new(connected);
        context.set_timeout(self.timeout);
        *client = Some(context.clone());
        Ok(context)
    }

    async fn stream(&self, context: &jetstream::Context) -> Result<jetstream::stream::Stream, SinkError> {
        match context.get_stream(&self.stream).await {
            Ok(stream) => return Ok(stream),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(e) if e.error_code() == ErrorCode::STREAM_NOT_FOUND => {}
                GetStreamErrorKind::JetStream(e) if e.error_code() == ErrorCode::JETSTREAM_NOT_ENABLED => {
                    return Err(self.refused("JetStream is not enabled; start the server with -js"));
                }
                _ => return Err(self.again("cannot ask for the stream", &error)),
            },
        }
        if !self.create_stream {
            return Err(self.refused(&format!(
                "there is no stream '{}'; make it, with the subject {}, or take out create_stream = false",
                self.stream,
                self.pattern()
            )));
        }
        let config = jetstream::stream::Config {
            name: self.stream.clone(),
            subjects: vec![self.pattern()],
            duplicate_window: DUPLICATE_WINDOW,
            ..Default::default()
        };
        context.create_stream(config).await.map_err(|error| match error.kind() {
            jetstream::context::CreateStreamErrorKind::JetStream(e) if e.code() < 500 => {
                self.refused(&format!("cannot make the stream '{}': {e}", self.stream))
            }
            _ => self.again("cannot make the stream", &error),
        })?;
        tracing::info!(output = %self.name, stream = self.stream, subjects = self.pattern(), "made the JetStream stream");
        context.get_stream(&self.stream).await.map_err(|error| self.again("cannot ask for the stream", &error))
    }

    /// Every subject that the template can give.
    fn pattern(&self) -> String {
        let filled = super::filled_alike(&self.subject, "*");
        // A wildcard stands for a whole word only.
        filled.split('.').map(|word| if word.contains('*') { "*" } else { word }).collect::<Vec<_>>().join(".")
    }

    /// What an offset of this track is followed by.
    fn whose(&self, chain: ChainId) -> String {
        format!("{} {chain} {}", self.name, self.journal)
    }

    /// `whose` where the position goes with it. The first of a go expects its stream, the others what is before them in it.
    fn message(&self, delivery: &Delivery, expect: Option<&str>, whose: Option<&str>) -> PublishMessage {
        let event = cloudevent::message(delivery, self.mode);
        let mut message = PublishMessage::build().payload(event.body.into()).header(CONTENT_TYPE, event.content_type);
        for (name, value) in &event.attributes {
            message = message.header(format!("ce-{name}").as_str(), cloudevent::header(value).as_str());
        }
        message = message.message_id(delivery.id.to_string());
        if let Some(whose) = whose {
            message = message.header(POSITION, [itoa::Buffer::new().format(delivery.offset), " ", whose].concat());
        }
        match expect {
            Some(id) => message.expected_last_message_id(id),
            None => message.expected_stream(&self.stream),
        }
    }

    fn judge(&self, error: &PublishError, subject: &str) -> Outcome {
        use std::error::Error;
        let why = format!("NATS at {}: {error}", self.place);
        let code = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>()).map(|e| e.error_code());
        match (error.kind(), code) {
            (PublishErrorKind::MaxPayloadExceeded, _)
            | (_, Some(ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM)) => {
                Outcome::Refused { why }
            }
            (PublishErrorKind::StreamNotFound, _) => Outcome::Retry {
                why: format!("{why}: no stream takes the subject {subject}; add it to the stream '{}'", self.stream),
                after: None,
            },
            _ => Outcome::Retry { why, after: None },
        }
    }

    /// Publishes in one go from `batch[at]` on, as far as the chain of expectation holds.
    async fn publish(
        &self,
        context: &jetstream::Context,
        subject: &Subject,
        batch: &[Delivery],
        highest: u64,
        outcomes: &mut Vec<Outcome>,
    ) {
        let at = outcomes.len();
        let whole = !outcomes.iter().any(|outcome| matches!(outcome, Outcome::Refused { .. }));
        let mut lost = self.lost.subscribe();
        let mut sent = Vec::with_capacity(batch.len() - at);
        let mut before: Option<String> = None;
        let mut unsent = None;
        let whose = self.whose(batch[at].emission.block.chain);
        for delivery in &batch[at..] {
            let whose = (whole && delivery.offset > highest).then_some(&*whose);
            let message = self.message(delivery, before.as_deref(), whose);
            match context.send_publish(subject.clone(), message).await {
                Ok(answer) => sent.push(answer),
                Err(error) => {
                    unsent = Some(error);
                    break;
                }
            }
            before = Some(delivery.id.to_string());
        }
        for (index, answer) in sent.into_iter().enumerate() {
            let answer = tokio::select! {
                biased;
                answer = answer.into_future() => answer,
                _ = lost.changed() => {
                    let why = format!("NATS at {}: the connection was lost before the acknowledgement", self.place);
                    return outcomes.push(Outcome::Retry { why, after: None });
                }
            };
            match answer {
                Ok(_stored_now_or_before) => outcomes.push(Outcome::Delivered),
                // Somebody else's message came in between: go on from here, expecting nothing.
                Err(error) if error.kind() == PublishErrorKind::WrongLastMessageId && index > 0 => return,
                Err(error) => {
                    // A wire that fell silent is found out by nobody else for minutes.
                    if error.kind() == PublishErrorKind::TimedOut
                        && let Err(error) = context.client().force_reconnect().await
                    {
                        tracing::debug!(output = %self.name, %error, "cannot connect anew");
                    }
                    return outcomes.push(self.judge(&error, subject));
                }
            }
        }
        if let Some(error) = unsent {
            outcomes.push(self.judge(&error, subject));
        }
    }
}

#[async_trait::async_trait]
impl Sink for Nats {
    fn shape(&self) -> Shape {
        Shape { batch: BATCH, concurrency: 1 }
    }

    async fn prepare(&self, _stream: &StreamId, _spec: &StreamSpec) -> Result<(), SinkError> {
        let context = self.context().await?;
        self.stream(&context).await.map(|_| ())
    }

    async fn position(&self, track: &Track) -> Result<Option<u64>, SinkError> {
        let context = self.context().await?;
        let stream = self.stream(&context).await?;
        let last = match stream.get_last_raw_message_by_subject(&super::filled(&self.subject, track)).await {
            Ok(message) => message,
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(None),
            Err(error) => return Err(self.again("cannot read the last message", &error)),
        };
        let said = last.headers.get(POSITION).and_then(|said| said.as_str().split_once(' '));
        let position = said.filter(|(_, whose)| *whose == self.whose(track.chain)).and_then(|said| said.0.parse().ok());
        if let Some(position) = position {
            self.turn.lock().await.insert(track.clone(), position);
        }
        Ok(position)
    }

    async fn deliver(&self, track: &Track, batch: &[Delivery]) -> Vec<Outcome> {
        let mut turn = self.turn.lock().await;
        let highest = turn.get(track).copied().unwrap_or(0);
        let context = match self.context().await {
            Ok(context) => context,
            Err(error) => return super::retry_all(batch.len(), &error.to_string()),
        };
        let subject = Subject::from(super::filled(&self.subject, track));
        let mut outcomes = Vec::with_capacity(batch.len());
        while outcomes.len() < batch.len() {
            // At least one outcome each time: the first message of a go expects nothing.
            self.publish(&context, &subject, batch, highest, &mut outcomes).await;
            if matches!(outcomes.last(), Some(Outcome::Retry { .. })) {
                super::rest_waits(&mut outcomes, batch.len());
            }
        }
        let stored = batch.iter().zip(&outcomes).rfind(|(_, outcome)| **outcome == Outcome::Delivered);
        if let Some((last, _)) = stored {
            turn.insert(track.clone(), highest.max(last.offset));
        }
        outcomes
    }
}
