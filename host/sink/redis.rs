//! Hands every delivery to a Redis or Valkey server (Redis 5 or later), by the command of the option `command`.
//!
//! | `command` | goes to | promise |
//! |---|---|---|
//! | `xadd` | a stream | exactly once |
//! | `rpush` | a list | at least once |
//! | `publish` | a channel | at most once, for whoever listens just then |
//!
//! **What is added and the position move in one step.** A batch is one script, which Redis runs undivided: it checks that the
//! position is where this process left it, adds the entries, and moves the position, or does nothing. So a batch whose answer was lost is
//! not added again, and a second process is noticed before it doubles anything. Positions are the fields of the hash
//! `{key}:chainweir` (with the braces: in a cluster it lies where the key does). Others may trim the stream or list, or delete it.
//!
//! **Ids of a stream** are explicit, `{base}-{cursor}`: what is there cannot be added again. A server that is killed while it writes
//! may need that: it leaves the half of a batch in its file, and adds it after all when it crashes a second time (Redis 7.0:
//! `aof-load-truncated` cuts inside of a MULTI). A list has that half twice then. The base is that of the stream's last id, or one
//! more where somebody else, or another stream of ours with the same key, has added something: ids always rise, and a key
//! need not be ours alone.
//!
//! **What an answer is worth** is the server's: with `appendonly yes` and `appendfsync always` it is on disk; with `everysec`, the
//! default, a machine that loses power may lose a second. Entries and position are lost together, so Chainweir's next start sends
//! them again.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ConnectionAddr, ErrorKind, IntoConnectionInfo, RedisError, Script, Value};
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
        (
            "command",
            "xadd: to a stream, exactly once; rpush: to a list, at least once; publish: to a channel, at most once; xadd",
        ),
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

/// Redis does nothing else while a script runs: what is in one of them.
const STEP_BYTES: usize = 4 << 20;
/// Of a word of a command, where the server does not say (`proto-max-bulk-len`).
const LARGEST: usize = 512 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Command {
    Xadd,
    Rpush,
    Publish,
}

struct Redis {
    name: OutputName,
    journal: String,
    client: redis::Client,
    /// Host and port, for messages.
    place: String,
    command: Command,
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
    /// The last id of each stream, likewise.
    tops: HashMap<String, (u64, u64)>,
    largest: usize,
}

/// Why nothing more was done.
enum Halt {
    Refused(String),
    Retry(String),
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
        super::ring();
        let client = match options.file("ca_file")? {
            None => redis::Client::open(info),
            root_cert => redis::Client::build_with_tls(info, redis::TlsCertificates { client_tls: None, root_cert }),
        };
        let client = client.map_err(|error| options.refused(&format!("the URL cannot be used: {error}")))?;
        let command = match options.word("command", &["xadd", "rpush", "publish"])? {
            "rpush" => Command::Rpush,
            "publish" => Command::Publish,
            _ => Command::Xadd,
        };
        let maxlen = options.number("maxlen", 0, 0..=u64::from(u32::MAX))?;
        if maxlen > 0 && command != Command::Xadd {
            return Err(options.refused("maxlen is for streams; take it out, or set command = \"xadd\""));
        }
        Ok(Self {
            name: options.name().clone(),
            journal: options.journal().to_owned(),
            client,
            place,
            command,
            key: options.template("key", "chainweir:{plugin}:{stream}:{chain}")?,
            maxlen,
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
        if ours {
            let why =
                format!("output.{}: {why}; check username and password_env, the user's rights and key", self.name);
            SinkError::Refused { why }
        } else {
            SinkError::Again { why }
        }
    }

    async fn connected(&self, slot: &mut Option<Connection>) -> Result<Connection, SinkError> {
        if let Some(connection) = slot.take() {
            return Ok(connection);
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        let redis = self.client.get_multiplexed_async_connection_with_config(&config).await;
        let mut redis = redis.map_err(|error| self.judge(&error))?;
        // Not everybody may ask.
        let mut ask = redis::cmd("CONFIG");
        let told: Result<(String, usize), _> = ask.arg("GET").arg("proto-max-bulk-len").query_async(&mut redis).await;
        let largest = told.map_or(LARGEST, |(_, bytes)| bytes);
        Ok(Connection { redis, positions: HashMap::new(), tops: HashMap::new(), largest })
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

    /// The last id that the stream gave, whatever was trimmed or deleted since.
    async fn top_of(&self, connection: &mut Connection, key: &str) -> Result<(u64, u64), RedisError> {
        if let Some(top) = connection.tops.get(key) {
            return Ok(*top);
        }
        let mut ask = redis::cmd("XINFO");
        let told = ask.arg("STREAM").arg(key).query_async(&mut connection.redis).await;
        let told: HashMap<String, Value> = match told {
            Err(error) if error.to_string().contains("no such key") => HashMap::new(),
            told => told?,
        };
        let id = told.get("last-generated-id").map(redis::from_redis_value_ref::<String>).transpose()?;
        let parts = id.as_deref().and_then(|id| id.split_once('-'));
        let top = parts.and_then(|(base, cursor)| Some((base.parse().ok()?, cursor.parse().ok()?)));
        Ok(top.unwrap_or_default())
    }

    /// The words of the command that adds a delivery, after those of [`Self::before`] and, in a stream, the id.
    fn words(&self, delivery: &Delivery) -> Vec<Vec<u8>> {
        let message = cloudevent::message(delivery, self.mode);
        if self.command != Command::Xadd {
            return vec![message.body];
        }
        let content_type = (self.mode == Mode::Binary).then(|| ("datacontenttype", message.content_type.to_owned()));
        let mut words = vec![];
        for (name, value) in message.attributes.into_iter().chain(content_type) {
            words.extend([name.into(), value.into_bytes()]);
        }
        let name = if self.mode == Mode::Structured { "event" } else { "data" };
        words.extend([name.into(), message.body]);
        words
    }

    /// The command, without the key, up to what is an entry's own.
    fn before(&self) -> Vec<String> {
        match self.command {
            Command::Xadd if self.maxlen > 0 => {
                vec!["XADD".into(), "MAXLEN".into(), "~".into(), self.maxlen.to_string()]
            }
            Command::Xadd => vec!["XADD".into()],
            Command::Rpush => vec!["RPUSH".into()],
            Command::Publish => vec!["PUBLISH".into()],
        }
    }

    /// Runs the script: the position that it answers.
    async fn add(
        &self,
        connection: &mut Connection,
        track: &Track,
        entries: &[(u64, Vec<Vec<u8>>)],
        expected: &str,
        next: &str,
    ) -> Result<String, RedisError> {
        let key = super::filled(&self.key, track);
        let (first, last) = (entries[0].0, entries[entries.len() - 1].0);
        let mut add = ADD.key(&key);
        let before = self.before();
        add.key(self.hash(track)).arg(self.field(track)).arg(expected).arg(next).arg(before.len()).arg(before);
        if self.command != Command::Xadd {
            for (_, words) in entries {
                add.arg(words.len()).arg(words);
            }
            return add.invoke_async(&mut connection.redis).await;
        }
        let top = self.top_of(connection, &key).await?;
        let base = if (top.0, first) > top { top.0 } else { top.0 + 1 };
        for (offset, words) in entries {
            add.arg(words.len() + 1).arg(format!("{base}-{offset}")).arg(words);
        }
        connection.tops.insert(key, (base, last));
        add.invoke_async(&mut connection.redis).await
    }

    /// Adds some of `batch`, from its beginning, in one step: how many.
    async fn store(&self, connection: &mut Connection, track: &Track, batch: &[Delivery]) -> Result<usize, Halt> {
        let told = |error: RedisError| Halt::Retry(self.judge(&error).to_string());
        let position = self.position_of(connection, track).await.map_err(told)?;
        let at = position.unwrap_or(0);
        let before = match batch {
            // A dead letter that a person put back: it is added, and the position stays.
            [old] if old.offset < at => 0,
            _ => batch.partition_point(|delivery| delivery.offset <= at),
        };
        let mut entries = vec![];
        let mut bytes = 0;
        for delivery in &batch[before..] {
            let words = self.words(delivery);
            let largest = words.iter().map(Vec::len).max().unwrap_or(0);
            bytes += words.iter().map(Vec::len).sum::<usize>();
            if entries.is_empty() && largest > connection.largest {
                let most = connection.largest;
                return match before {
                    0 => {
                        Err(Halt::Refused(format!("{}: {largest} bytes; the server takes {most} at most", self.place)))
                    }
                    before => Ok(before),
                };
            }
            if largest > connection.largest || bytes > STEP_BYTES && !entries.is_empty() {
                break;
            }
            entries.push((delivery.offset, words));
        }
        let Some(&(last, _)) = entries.last() else { return Ok(before) };
        let text = |position: Option<u64>| position.map(|offset| offset.to_string()).unwrap_or_default();
        let (expected, next) = (text(position), text(Some(last.max(at))));
        let mut found = self.add(connection, track, &entries, &expected, &next).await;
        if found.as_ref().is_err_and(|error| error.to_string().contains("equal or smaller")) {
            // An entry of somebody else came in since the last id was read.
            connection.tops.remove(&super::filled(&self.key, track));
            found = self.add(connection, track, &entries, &expected, &next).await;
        }
        let found = found.map_err(told)?;
        if found != next {
            return Err(Halt::Retry(format!(
                "{}: the position of {} was moved from '{expected}' to '{found}' by somebody else; is a second process delivering?",
                self.place, track.stream
            )));
        }
        connection.positions.insert(track.clone(), Some(last.max(at)));
        Ok(before + entries.len())
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
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut connection = match self.connected(&mut slot).await {
            Ok(connection) => connection,
            Err(error) => return super::retry_all(batch.len(), &error.to_string()),
        };
        while outcomes.len() < batch.len() {
            match self.store(&mut connection, track, &batch[outcomes.len()..]).await {
                Ok(count) => outcomes.extend(std::iter::repeat_n(Outcome::Delivered, count)),
                // The position must not pass it before it lies in the dead letters, so nothing behind it is added.
                Err(Halt::Refused(why)) => {
                    outcomes.push(Outcome::Refused { why });
                    outcomes.extend(super::retry_all(batch.len() - outcomes.len(), "waits for the refusal before it"));
                }
                Err(Halt::Retry(why)) => {
                    outcomes.extend(super::retry_all(batch.len() - outcomes.len(), &why));
                    return outcomes;
                }
            }
        }
        *slot = Some(connection);
        outcomes
    }
}
