//! Hands every delivery to a Redis or Valkey server (Redis 5 or later): to a stream or a list, exactly once; to a channel, for whoever
//! listens just then.
//!
//! **What is added and the position move in one step.** A batch is one script, which Redis runs undivided: it checks that the
//! position is where this process left it, adds the entries, and moves the position, or does nothing. So a batch whose answer was lost is
//! not added again, and a second process is noticed before it doubles anything. Positions are the fields of the hash
//! `{key}:chainweir` (with the braces: in a cluster it lies where the key does). Others may add to the stream or
//! list, trim it, or delete it; the entries' own ids are Redis's.
//!
//! **What an answer is worth** is the server's: with `appendonly yes` and `appendfsync always` it is on disk; with `everysec`, the
//! default, a machine that loses power may lose a second. Entries and position are lost together, so Chainweir's next start sends
//! them again.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ConnectionAddr, ErrorKind, IntoConnectionInfo, RedisError, Script};
use tokio::sync::Mutex;

use super::cloudevent::{self, Mode};
use super::options::Options;
use super::{Kind, Open, Shape, Sink, SinkError, Track};
use crate::model::{Delivery, Outcome, OutputName};

pub const KIND: Kind = Kind {
    name: "redis",
    options: &[
        ("url", "redis://host:6379/0, or rediss://host:6379/0 for TLS, without a password; or url_env"),
        ("url_env", "environment variable with the URL, where it holds a password"),
        ("username", "user name of an ACL, with password_env or password_file"),
        ("password_env", "environment variable with the password"),
        ("password_file", "file with the password"),
        ("structure", "stream, list or channel; stream"),
        (
            "key",
            "the stream, list or channel, with {plugin}, {stream} and {chain}; chainweir:{plugin}:{stream}:{chain}",
        ),
        ("maxlen", "about how many entries a stream keeps; 0 keeps all; 0"),
        ("content_mode", Mode::HELP),
        ("batch", "most deliveries in one step; 500"),
        ("ca_file", "PEM file with the certificate authorities to trust, with rediss://"),
        ("timeout_ms", "time to wait for a connection and for an answer; 5000"),
    ],
    open: |open| Box::pin(async move { Ok(Arc::new(Redis::open(open)?) as Arc<dyn Sink>) }),
};

/// Answers with the position that it found, where that is not the one expected; else with the new one.
///
/// KEYS: the key, the hash of positions. ARGV: the hash's field, the position expected and the new one (a text; empty for none),
/// the words before an entry's own (how many, and they), and then the entries (how many words, and they).
static ADD: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local found = redis.call('HGET', KEYS[2], ARGV[1]) or ''
         if found ~= ARGV[2] then return found end
         local at = 4
         local function words(list)
             for i = at + 1, at + ARGV[at] do list[#list + 1] = ARGV[i] end
             at = at + 1 + ARGV[at]
             return list
         end
         local before = words({})
         while at <= #ARGV do
             local command = {before[1], KEYS[1]}
             for i = 2, #before do command[#command + 1] = before[i] end
             redis.call(unpack(words(command)))
         end
         redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
         return ARGV[3]",
    )
});

#[derive(Clone, Copy, PartialEq, Eq)]
enum Structure {
    Stream,
    List,
    Channel,
}

struct Redis {
    name: OutputName,
    journal: String,
    client: redis::Client,
    /// Host and port, for messages.
    place: String,
    structure: Structure,
    key: String,
    maxlen: u64,
    mode: Mode,
    batch: usize,
    timeout: Duration,
    /// Taken while in use: after an error, or when a caller gave up, nobody knows what was done, and a new one asks.
    connection: Mutex<Option<Connection>>,
}

struct Connection {
    redis: MultiplexedConnection,
    /// The position of each track as this connection last saw or moved it.
    positions: HashMap<Track, Option<u64>>,
}

impl Redis {
    fn open(open: Open) -> Result<Self, SinkError> {
        let options = Options::new(open, KIND.options)?;
        let url = options.url("REDIS_URL")?;
        // The parser's own message may quote the URL, and the password with it.
        let info = url
            .expose()
            .into_connection_info()
            .map_err(|_| options.refused("the URL is not of the form redis://user@host:6379/0"))?;
        let mut settings = info.redis_settings().clone().set_lib_name("chainweir", env!("CARGO_PKG_VERSION"));
        if let Some(user) = options.text("username")? {
            settings = settings.set_username(user);
        }
        if let Some(password) = options.secret("password_env", "password_file")? {
            settings = settings.set_password(password.expose());
        }
        let place = match info.addr() {
            ConnectionAddr::Unix(path) => format!("Redis at {}", path.display()),
            address => format!("Redis at {address}"),
        };
        let info = info.set_redis_settings(settings);
        // Already installed by another part of the process: the same provider, so nothing to do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = match options.file("ca_file")? {
            None => redis::Client::open(info),
            root_cert => redis::Client::build_with_tls(info, redis::TlsCertificates { client_tls: None, root_cert }),
        };
        let client = client.map_err(|error| options.refused(&format!("the URL cannot be used: {error}")))?;
        let structure = match options.word("structure", &["stream", "list", "channel"])? {
            "list" => Structure::List,
            "channel" => Structure::Channel,
            _ => Structure::Stream,
        };
        Ok(Self {
            name: options.name().clone(),
            journal: options.journal().to_owned(),
            client,
            place,
            structure,
            key: options.template("key", "chainweir:{plugin}:{stream}:{chain}")?,
            maxlen: options.number("maxlen", 0, 0..=u64::from(u32::MAX))?,
            mode: Mode::of(&options)?,
            batch: options.number("batch", 500, 1..=10_000)? as usize,
            timeout: Duration::from_millis(options.number("timeout_ms", 5_000, 1..=600_000)?),
            connection: Mutex::new(None),
        })
    }

    fn judge(&self, error: &RedisError) -> SinkError {
        let why = format!("{}: {error}", self.place);
        // Wrong credentials, missing rights, and a key that holds something else.
        let ours = matches!(error.kind(), ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig)
            || matches!(error.code(), Some("WRONGTYPE" | "NOPERM" | "NOAUTH" | "WRONGPASS"));
        if ours { SinkError::Refused { why: format!("output.{}: {why}", self.name) } } else { SinkError::Again { why } }
    }

    async fn connected(&self, slot: &mut Option<Connection>) -> Result<Connection, SinkError> {
        if let Some(connection) = slot.take() {
            return Ok(connection);
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        let redis = self.client.get_multiplexed_async_connection_with_config(&config).await;
        Ok(Connection { redis: redis.map_err(|error| self.judge(&error))?, positions: HashMap::new() })
    }

    fn hash(&self, track: &Track) -> String {
        format!("{{{}}}:chainweir", super::filled(&self.key, track))
    }

    fn field(&self, track: &Track) -> String {
        format!("{} {} {} {}", self.journal, track.output, track.stream, track.chain)
    }

    async fn position_of(&self, connection: &mut Connection, track: &Track) -> Result<Option<u64>, RedisError> {
        if let Some(position) = connection.positions.get(track) {
            return Ok(*position);
        }
        let mut ask = redis::cmd("HGET");
        ask.arg(self.hash(track)).arg(self.field(track));
        let position = ask.query_async(&mut connection.redis).await?;
        connection.positions.insert(track.clone(), position);
        Ok(position)
    }

    /// The words of the command that adds a delivery, after those of [`Self::before`].
    fn words(&self, delivery: &Delivery) -> Vec<Vec<u8>> {
        let message = cloudevent::message(delivery, self.mode);
        if self.structure != Structure::Stream {
            return vec![message.body];
        }
        let mut words = vec![b"*".to_vec()];
        let content_type = (self.mode == Mode::Binary).then(|| ("datacontenttype", message.content_type.to_owned()));
        for (name, value) in message.attributes.into_iter().chain(content_type) {
            words.extend([name.into(), value.into_bytes()]);
        }
        let name = if self.mode == Mode::Structured { "event" } else { "data" };
        words.extend([name.into(), message.body]);
        words
    }

    /// The command, without the key, up to what is an entry's own.
    fn before(&self) -> Vec<String> {
        match self.structure {
            Structure::Stream if self.maxlen > 0 => {
                vec!["XADD".into(), "MAXLEN".into(), "~".into(), self.maxlen.to_string()]
            }
            Structure::Stream => vec!["XADD".into()],
            Structure::List => vec!["RPUSH".into()],
            Structure::Channel => vec!["PUBLISH".into()],
        }
    }

    /// `Err` is why nothing was done.
    async fn store(&self, connection: &mut Connection, track: &Track, batch: &[Delivery]) -> Result<(), String> {
        let told = |error: RedisError| self.judge(&error).to_string();
        let position = self.position_of(connection, track).await.map_err(told)?;
        let at = position.unwrap_or(0);
        let rest = match batch {
            // A dead letter that a person put back: it is added, and the position stays.
            [old] if old.offset < at => batch,
            _ => &batch[batch.partition_point(|delivery| delivery.offset <= at)..],
        };
        let Some(last) = rest.last() else { return Ok(()) };
        let text = |position: Option<u64>| position.map(|offset| offset.to_string()).unwrap_or_default();
        let (expected, next) = (text(position), text(Some(last.offset.max(at))));
        let mut add = ADD.key(super::filled(&self.key, track));
        add.key(self.hash(track)).arg(self.field(track)).arg(&expected).arg(&next);
        let before = self.before();
        add.arg(before.len()).arg(before);
        for delivery in rest {
            let words = self.words(delivery);
            add.arg(words.len()).arg(words);
        }
        let found: String = add.invoke_async(&mut connection.redis).await.map_err(told)?;
        if found != next {
            return Err(format!(
                "{}: the position of {} was moved from '{expected}' to '{found}' by somebody else; is a second process delivering?",
                self.place, track.stream
            ));
        }
        connection.positions.insert(track.clone(), Some(last.offset.max(at)));
        Ok(())
    }
}

#[async_trait::async_trait]
impl Sink for Redis {
    fn shape(&self) -> Shape {
        Shape { batch: self.batch, concurrency: 1 }
    }

    async fn position(&self, track: &Track) -> Result<Option<u64>, SinkError> {
        let mut slot = self.connection.lock().await;
        let mut connection = self.connected(&mut slot).await?;
        let position = self.position_of(&mut connection, track).await.map_err(|error| self.judge(&error))?;
        *slot = Some(connection);
        Ok(position)
    }

    async fn deliver(&self, track: &Track, batch: &[Delivery]) -> Vec<Outcome> {
        let mut slot = self.connection.lock().await;
        let stored = match self.connected(&mut slot).await {
            Ok(mut connection) => {
                let stored = self.store(&mut connection, track, batch).await;
                if stored.is_ok() {
                    *slot = Some(connection);
                }
                stored
            }
            Err(error) => Err(error.to_string()),
        };
        match stored {
            Ok(()) => vec![Outcome::Delivered; batch.len()],
            Err(why) => super::retry_all(batch.len(), &why),
        }
    }
}
