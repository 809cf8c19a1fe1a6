//! Writes deliveries as objects of an S3-compatible store, or files of a folder: NDJSON or Parquet, each delivery in exactly one of them.
//!
//! The lane waits until there is enough for an object (`roll_rows`, `roll_bytes`) or the oldest has waited for `roll_seconds`: what has not
//! been written yet lies in the journal and nowhere else.
//!
//! **Exactly once** by a manifest that is only ever added to. Before an object is written, its entry is made under a name that begins with
//! the object's first offset, and only if there is no such entry yet: so a range is cut once, whoever cuts it, and after a crash an entry
//! without its object says what to write again, to the byte. A reader who takes the objects that the manifest names, or lists them, has every delivery once.
//! In a folder a crash may leave what was to be renamed, `....ndjson#1`: no object, and never looked at again.
//!
//! ```text
//! PREFIX/_manifest/OUTPUT/PLUGIN.STREAM/CHAIN/JOURNAL/00000000000000000001.json   {"object": ..., "first": 1, "last": 500, ...}
//! PREFIX/PLUGIN/STREAM/chain=1/JOURNAL-00000000000000000001-00000000000000000500.ndjson
//! ```
//!
//! What a person puts back has an object of its own, whose names end in `-again`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::object_store::aws::AmazonS3Builder;
use ::object_store::local::LocalFileSystem;
use ::object_store::path::Path;
use ::object_store::prefix::PrefixStore;
use ::object_store::{
    Certificate, ClientOptions, Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig,
};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::options::Options;
use super::table::{Layout, Retract};
use super::{Fill, Kind, Open, Shape, Sink, SinkError, Track, cloudevent, parquet};
use crate::model::{Delivery, Outcome, StreamId, StreamSpec};

pub const KIND: Kind = Kind {
    name: "object_store",
    options: &[
        ("url", "s3://bucket/prefix, or file:///folder"),
        ("endpoint", "of an S3-compatible store that is not Amazon's: https://host:port"),
        ("region", "AWS_REGION unless given, then us-east-1"),
        ("access_key_id_env", "environment variable with the access key; AWS_ACCESS_KEY_ID, or the machine's role"),
        (
            "secret_access_key_env",
            "environment variable with the secret key; AWS_SECRET_ACCESS_KEY, or the machine's role",
        ),
        ("ca_file", "PEM file with certificate authorities to trust besides the system's"),
        (
            "path",
            "folders of an object, with {plugin}, {stream}, {chain}, {date} and {hour} of its block (UTC); {plugin}/{stream}/chain={chain}",
        ),
        ("format", "ndjson: a CloudEvents event a line; parquet: a column for each property of the schema; ndjson"),
        ("compression", "of NDJSON: none or zstd; none. Parquet is compressed with zstd"),
        ("roll_rows", "most deliveries in an object; 10000"),
        ("roll_bytes", "bytes of payload at which an object is full; 16777216"),
        ("roll_seconds", "time to wait for an object to fill up; 60"),
        ("roll_blocks", "an object ends where the block's number divided by this changes; no limit"),
        ("timeout_ms", "time for one request to the store; 30000"),
    ],
    open: |open| Box::pin(async move { Ok(Arc::new(Objects::open(open)?) as Arc<dyn Sink>) }),
};

struct Objects {
    store: Box<dyn ObjectStore>,
    /// The store without what is secret, for messages.
    place: String,
    journal: String,
    path: String,
    parquet: bool,
    zstd: bool,
    rows: usize,
    bytes: usize,
    patience: Duration,
    blocks: Option<u64>,
    /// As the store has them. Taken away while in use: after an error it is asked again.
    tracks: Mutex<HashMap<Track, State>>,
    layouts: std::sync::Mutex<HashMap<StreamId, Arc<Layout>>>,
    /// Rows of the largest object that was begun and is not there.
    owed: AtomicUsize,
}

/// Bytes of an object's payloads.
const LARGEST: usize = 1 << 30;

#[derive(Clone, Debug, Default)]
struct State {
    position: Option<u64>,
    /// The last entry of the manifest, where its object is not there.
    owed: Option<Entry>,
}

/// Of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    object: String,
    /// Offsets, in the journal, of its first and last delivery.
    first: u64,
    last: u64,
    rows: usize,
    first_block: u64,
    last_block: u64,
}

impl Objects {
    fn open(open: Open) -> Result<Self, SinkError> {
        let options = Options::new(open, KIND.options)?;
        let text = options.need("url", "s3://bucket/prefix")?;
        let wrong = || options.refused("url must be s3://bucket/prefix or file:///folder");
        let url = url::Url::parse(&text).map_err(|_| wrong())?;
        let timeout = Duration::from_millis(options.number("timeout_ms", 30_000, 1..=600_000)?);
        let store: Box<dyn ObjectStore> = match url.scheme() {
            "s3" => Box::new(PrefixStore::new(s3(&options, &url, timeout)?, url.path())),
            "file" => {
                let folder = url.to_file_path().map_err(|()| wrong())?;
                std::fs::create_dir_all(&folder)
                    .and_then(|()| LocalFileSystem::new_with_prefix(&folder).map_err(Into::into))
                    .map(|store| Box::new(store.with_fsync(true)) as Box<dyn ObjectStore>)
                    .map_err(|error| options.refused(&format!("cannot use {}: {error}", folder.display())))?
            }
            _ => return Err(wrong()),
        };
        let path = options.text("path")?.unwrap_or_else(|| "{plugin}/{stream}/chain={chain}".into());
        let rest = super::filled_alike(&path, "").replace("{date}", "").replace("{hour}", "");
        if rest.contains(['{', '}']) || path.starts_with(['/', '_']) || Path::parse(rest.replace("//", "/")).is_err() {
            return Err(options.refused(
                "path must be folders parted by '/'; {plugin}, {stream}, {chain}, {date} and {hour} are filled in",
            ));
        }
        let parquet = options.word("format", &["ndjson", "parquet"])? == "parquet";
        let zstd = options.word("compression", &["none", "zstd"])? == "zstd";
        Ok(Self {
            store,
            place: format!("the object store {}://{}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path()),
            journal: options.journal().chars().take(16).collect(),
            path,
            parquet,
            zstd: zstd && !parquet,
            rows: options.number("roll_rows", 10_000, 1..=1_000_000)? as usize,
            bytes: options.number("roll_bytes", 16 << 20, 1..=LARGEST as u64)? as usize,
            patience: Duration::from_secs(options.number("roll_seconds", 60, 0..=86_400)?),
            blocks: Some(options.number("roll_blocks", 0, 0..=1 << 40)?).filter(|blocks| *blocks > 0),
            tracks: Mutex::default(),
            layouts: std::sync::Mutex::default(),
            owed: AtomicUsize::new(0),
        })
    }

    fn again(&self, what: &str, error: &Error) -> SinkError {
        let why = format!("{}: {what}: {error}", self.place);
        match error {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => SinkError::Refused {
                why: format!("{why}; check the keys, and that they may list, read and write there"),
            },
            _ => SinkError::Again { why },
        }
    }

    fn manifest(&self, track: &Track) -> Path {
        let chain = track.chain.0.to_string();
        Path::from_iter(["_manifest", track.output.as_str(), &track.stream.to_string(), &chain, &self.journal])
    }

    /// What the store has of a track, by the last entry of its manifest.
    async fn state(&self, track: &Track) -> Result<State, SinkError> {
        let folder = self.manifest(track);
        let entries = self.store.list(Some(&folder)).map_ok(|object| object.location);
        let last = entries
            .try_fold(None, |last: Option<Path>, entry| async move {
                // Of what is sent again nothing follows.
                let counts = entry.filename().is_some_and(|name| !name.contains("-again"));
                Ok(if counts { last.max(Some(entry)) } else { last })
            })
            .await
            .map_err(|error| self.again("cannot list the manifest", &error))?;
        let Some(last) = last else { return Ok(State::default()) };
        let entry = self.entry(&last).await?;
        match self.store.head(&Path::from(entry.object.as_str())).await {
            Ok(_) => Ok(State { position: Some(entry.last), owed: None }),
            // All before it was written, or it would not have been begun.
            Err(Error::NotFound { .. }) => {
                self.owed.fetch_max(entry.rows, Ordering::Relaxed);
                Ok(State { position: entry.first.checked_sub(1).filter(|before| *before > 0), owed: Some(entry) })
            }
            Err(error) => Err(self.again("cannot look for the last object", &error)),
        }
    }

    async fn entry(&self, at: &Path) -> Result<Entry, SinkError> {
        let read = async { self.store.get(at).await?.bytes().await };
        let bytes = read.await.map_err(|error| self.again("cannot read the manifest", &error))?;
        serde_json::from_slice(&bytes).map_err(|error| SinkError::Refused {
            why: format!("{}: {at} is not an entry of a manifest ({error}); remove what was put there", self.place),
        })
    }

    fn body(&self, layout: Option<&Layout>, part: &[Delivery]) -> Result<Vec<u8>, String> {
        let Some(layout) = layout else {
            let lines = super::lines(part);
            return if self.zstd {
                zstd::bulk::compress(&lines, 3).map_err(|error| format!("cannot compress: {error}"))
            } else {
                Ok(lines)
            };
        };
        let rows = part.iter().map(|delivery| (delivery, layout.row_or_why(delivery))).collect();
        parquet::file(layout, rows).map_err(|error| format!("cannot write Parquet: {error}"))
    }

    fn folder(&self, track: &Track, delivery: &Delivery) -> String {
        let time = cloudevent::rfc3339(delivery.emission.block.time).unwrap_or_default();
        let part = |range| time.get(range).unwrap_or("unknown");
        super::filled(&self.path, track).replace("{date}", part(0..10)).replace("{hour}", part(11..13))
    }

    /// How many of these go into one object.
    fn cut(&self, track: &Track, rest: &[Delivery]) -> usize {
        let Some(first) = rest.first() else { return 0 };
        let folder = self.folder(track, first);
        let range = |delivery: &Delivery| self.blocks.map(|blocks| delivery.emission.block.number / blocks);
        // A folder follows from the time, and many events have one.
        let (mut bytes, mut time) = (0, first.emission.block.time);
        let fits = |delivery: &&Delivery| {
            let (full, before) = (bytes >= self.bytes, time);
            bytes += delivery.emission.payload.len();
            time = delivery.emission.block.time;
            !full && range(delivery) == range(first) && (time == before || self.folder(track, delivery) == folder)
        };
        rest.iter().take(self.rows).take_while(fits).count()
    }

    fn object(&self, track: &Track, part: &[Delivery], again: bool) -> Entry {
        let (first, last) = (&part[0], &part[part.len() - 1]);
        let numbers = || part.iter().map(|delivery| delivery.emission.block.number);
        let end = match (self.parquet, self.zstd) {
            (true, _) => "parquet",
            (_, true) => "ndjson.zst",
            _ => "ndjson",
        };
        let (folder, journal, again) = (self.folder(track, first), &self.journal, if again { "-again" } else { "" });
        Entry {
            object: format!("{folder}/{journal}-{:020}-{:020}{again}.{end}", first.offset, last.offset),
            first: first.offset,
            last: last.offset,
            rows: part.len(),
            first_block: numbers().min().unwrap_or_default(),
            last_block: numbers().max().unwrap_or_default(),
        }
    }

    /// Makes the entry, and says what is there: this one, or one that was made before.
    async fn announce(&self, track: &Track, entry: Entry, again: bool) -> Result<Entry, SinkError> {
        let name = format!("{:020}{}.json", entry.first, if again { "-again" } else { "" });
        let at = self.manifest(track).join(name.as_str());
        let bytes = serde_json::to_vec(&entry).expect("texts and numbers always serialise");
        let mode = if again { PutMode::Overwrite } else { PutMode::Create };
        match self.store.put_opts(&at, bytes.into(), PutOptions::from(mode)).await {
            Ok(_) => Ok(entry),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => self.entry(&at).await,
            Err(error) => Err(self.again("cannot add to the manifest", &error)),
        }
    }

    async fn write(&self, track: &Track, entry: Entry, part: &[Delivery], again: bool) -> Result<(), SinkError> {
        let layout = self.parquet.then(|| self.layout(&track.stream));
        let body = self.body(layout.as_deref(), part).map_err(|why| SinkError::Again { why })?;
        let there = self.announce(track, entry.clone(), again).await?;
        if (there.first, there.last, &there.object) != (entry.first, entry.last, &entry.object) {
            let why = format!("{}: {} was begun before; it is written first", self.place, there.object);
            return Err(SinkError::Again { why });
        }
        let put = self.store.put(&Path::from(entry.object.as_str()), PutPayload::from(body)).await;
        put.map(drop).map_err(|error| self.again("cannot write an object", &error))
    }

    fn layout(&self, stream: &StreamId) -> Arc<Layout> {
        let layouts = self.layouts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // The lane prepares a stream before it delivers of it.
        layouts.get(stream).cloned().unwrap_or_else(|| {
            let spec = StreamSpec { name: stream.stream.clone(), description: String::new(), schema: None };
            Arc::new(Layout::of(&spec, Retract::Append))
        })
    }

    async fn deliver_all(
        &self,
        track: &Track,
        state: &mut State,
        batch: &[Delivery],
        done: &mut Vec<Outcome>,
    ) -> Result<(), SinkError> {
        let position = state.position.unwrap_or(0);
        if let [only] = batch
            && only.offset <= position
        {
            self.write(track, self.object(track, batch, true), batch, true).await?;
            done.push(Outcome::Delivered);
            return Ok(());
        }
        // What the store has already.
        done.extend(batch.iter().take_while(|delivery| delivery.offset <= position).map(|_| Outcome::Delivered));
        while done.len() < batch.len() {
            let rest = &batch[done.len()..];
            let count = match &state.owed {
                Some(owed) => match rest.iter().position(|delivery| delivery.offset == owed.last) {
                    Some(at) => at + 1,
                    // The lane hands over more next time: `shape` asks for as much.
                    None => {
                        let why = format!("{}: {} was begun with more than there is now", self.place, owed.object);
                        return Err(SinkError::Again { why });
                    }
                },
                None => self.cut(track, rest),
            };
            let part = &rest[..count];
            let entry = state.owed.clone().unwrap_or_else(|| self.object(track, part, false));
            self.write(track, entry, part, false).await?;
            (state.position, state.owed) = (part.last().map(|delivery| delivery.offset), None);
            self.owed.store(0, Ordering::Relaxed);
            done.extend(vec![Outcome::Delivered; count]);
        }
        Ok(())
    }
}

fn s3(options: &Options, url: &url::Url, timeout: Duration) -> Result<::object_store::aws::AmazonS3, SinkError> {
    super::ring();
    let bucket = url.host_str().ok_or_else(|| options.refused("url has no bucket: s3://bucket/prefix"))?;
    let mut client = ClientOptions::new().with_timeout(timeout).with_connect_timeout(timeout);
    if let Some(pem) = options.file("ca_file")? {
        let authority = Certificate::from_pem(&pem).map_err(|error| options.refused(&format!("ca_file: {error}")))?;
        client = client.with_root_certificate(authority);
    }
    // The lane tries again by itself.
    let once = RetryConfig { max_retries: 0, retry_timeout: timeout, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(once);
    if let Some(endpoint) = options.text("endpoint")? {
        client = client.with_allow_http(endpoint.starts_with("http://"));
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = options.text("region")? {
        builder = builder.with_region(region);
    }
    match (options.env("access_key_id_env")?, options.env("secret_access_key_env")?) {
        (Some(id), Some(key)) => {
            builder = builder.with_access_key_id(id.expose()).with_secret_access_key(key.expose());
        }
        (None, None) => {}
        _ => return Err(options.refused("set both access_key_id_env and secret_access_key_env, or neither")),
    }
    builder.with_client_options(client).build().map_err(|error| options.refused(&error.to_string()))
}

#[async_trait::async_trait]
impl Sink for Objects {
    fn shape(&self) -> Shape {
        Shape { batch: self.rows.max(self.owed.load(Ordering::Relaxed)), concurrency: 1 }
    }

    fn fill(&self) -> Option<Fill> {
        // What was begun may be more than fits now.
        let bytes = if self.owed.load(Ordering::Relaxed) > 0 { LARGEST } else { self.bytes };
        Some(Fill { bytes, patience: self.patience })
    }

    async fn prepare(&self, stream: &StreamId, spec: &StreamSpec) -> Result<(), SinkError> {
        let layout = Arc::new(Layout::of(spec, Retract::Append));
        self.layouts.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(stream.clone(), layout);
        Ok(())
    }

    async fn position(&self, track: &Track) -> Result<Option<u64>, SinkError> {
        let state = self.state(track).await?;
        let position = state.position;
        self.tracks.lock().await.insert(track.clone(), state);
        Ok(position)
    }

    async fn deliver(&self, track: &Track, batch: &[Delivery]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(batch.len());
        let known = self.tracks.lock().await.remove(track);
        let done = async {
            let mut state = match known {
                Some(state) => state,
                None => self.state(track).await?,
            };
            self.deliver_all(track, &mut state, batch, &mut outcomes).await?;
            self.tracks.lock().await.insert(track.clone(), state);
            Ok::<_, SinkError>(())
        };
        if let Err(error) = done.await {
            outcomes.extend(super::retry_all(batch.len() - outcomes.len(), &error.to_string()));
        }
        outcomes
    }
}
