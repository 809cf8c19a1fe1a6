//! Objects of a folder and of an S3 server (moto, which keeps them in memory): every delivery in exactly one of them.

use ::object_store::aws::AmazonS3Builder;
use ::object_store::local::LocalFileSystem;
use ::object_store::path::Path as Key;
use ::object_store::{ObjectStore, ObjectStoreExt};
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::Field;
use futures::TryStreamExt;
use std::collections::BTreeMap;
use std::sync::Mutex;

use super::*;
use crate::harness::cable::{Break, Cable};
use crate::harness::servers::Server;

/// What was read before: an object that is there does not change.
type Read = Mutex<BTreeMap<String, Vec<u8>>>;

/// Every object, by name: what a reader finds who lists them.
async fn objects(store: &dyn ObjectStore) -> Vec<(String, Vec<u8>)> {
    objects_of(store, &Read::default()).await
}

async fn objects_of(store: &dyn ObjectStore, read: &Read) -> Vec<(String, Vec<u8>)> {
    let mut all = vec![];
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    for object in listed {
        let name = object.location.to_string();
        let before = read.lock().unwrap().get(&name).cloned();
        let bytes = match before {
            Some(bytes) => bytes,
            None => store.get(&object.location).await.unwrap().bytes().await.unwrap().to_vec(),
        };
        read.lock().unwrap().insert(name.clone(), bytes.clone());
        all.push((name, bytes));
    }
    all.sort();
    all
}

/// What the objects say, in their order; and that the manifest names these and no others, while more are written.
async fn said_by(store: &dyn ObjectStore, read: &Read) -> Vec<String> {
    let (manifest, _): (Vec<_>, Vec<_>) =
        objects_of(store, read).await.into_iter().partition(|(name, _)| name.contains("_manifest/"));
    let mut objects = objects_of(store, read).await;
    let mut entries: Vec<serde_json::Value> =
        manifest.iter().map(|(_, e)| serde_json::from_slice(e).unwrap()).collect();
    entries.sort_by_key(|entry| entry["first"].as_u64());
    let mut said = vec![];
    for entry in &entries {
        let name = entry["object"].as_str().unwrap();
        // The last may be on its way.
        let Some((_, bytes)) = objects.iter().find(|(object, _)| object.ends_with(name)) else {
            assert_eq!(entry, entries.last().unwrap(), "an object that was begun before is missing");
            continue;
        };
        let events = lines_of(name, bytes);
        assert_eq!(events.len() as u64, entry["rows"].as_u64().unwrap());
        said.extend(events);
    }
    let last = entries.last().map_or(String::new(), |entry| format!("{:020}", entry["last"].as_u64().unwrap()));
    let begun = |name: &str| name.rsplit('-').nth(1).is_some_and(|first| first <= last.as_str());
    objects.retain(|(name, _)| !name.contains("_manifest/") && begun(name));
    let rows: usize = objects.iter().map(|(name, bytes)| lines_of(name, bytes).len()).sum();
    assert_eq!(rows, said.len(), "an object that the manifest does not name: {objects:?}");
    said
}

fn lines_of(name: &str, bytes: &[u8]) -> Vec<String> {
    if name.ends_with(".parquet") {
        let reader = SerializedFileReader::new(bytes::Bytes::copy_from_slice(bytes)).unwrap();
        let rows = reader.get_row_iter(None).unwrap();
        return rows
            .map(|row| {
                let row = row.unwrap();
                let of = |name: &str| match row.get_column_iter().find(|(column, _)| *column == name).unwrap().1 {
                    Field::Str(text) => text.clone(),
                    other => other.to_string(),
                };
                assert!(of("_extra").contains("1.10") && of("_time").starts_with("2023-11-14"), "{row}");
                assert_eq!((of("value").as_str(), of("_id").len()), (MAX, 32), "{row}");
                format!("{} {}", of("_op"), of("n"))
            })
            .collect();
    }
    let plain = match name.ends_with(".zst") {
        true => zstd::decode_all(bytes).unwrap(),
        false => bytes.to_vec(),
    };
    plain.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(event).collect()
}

struct Folder(tempfile::TempDir, &'static str);

impl Folder {
    fn new(more: &'static str) -> Self {
        Self(tempfile::tempdir().unwrap(), more)
    }

    fn store(&self) -> LocalFileSystem {
        LocalFileSystem::new_with_prefix(self.0.path()).unwrap()
    }

    async fn open(&self, more: &str) -> Arc<dyn Sink> {
        let table = format!("url = 'file://{}'\n{}\n{more}", self.0.path().display(), self.1);
        open("object_store", &table, Path::new(".")).await.unwrap()
    }
}

#[async_trait::async_trait]
impl Place for Folder {
    async fn sink(&self) -> Arc<dyn Sink> {
        self.open("").await
    }
    async fn net(&self) -> BTreeSet<u64> {
        net_of(&self.log().await.unwrap())
    }
    async fn log(&self) -> Option<Vec<String>> {
        Some(said_by(&self.store(), &Read::default()).await)
    }
    fn kill(&mut self) -> bool {
        false
    }
    async fn restart(&mut self) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_objects_keeps_the_contract() {
    contract(Folder::new("roll_rows = 7")).await;
    contract(Folder::new("compression = 'zstd'")).await;
    contract(Folder::new("format = 'parquet'")).await;
}

struct Bucket {
    server: Server,
    cable: Cable,
    read: Read,
}

impl Bucket {
    async fn start() -> Option<Self> {
        let server = Server::moto().await?;
        let cable = Cable::to(server.port).await;
        let made = reqwest::Client::builder().no_proxy().build().unwrap();
        let made = made.put(format!("http://127.0.0.1:{}/chain", server.port)).send().await.unwrap();
        assert!(made.status().is_success());
        Some(Self { server, cable, read: Read::default() })
    }

    fn table(&self) -> String {
        format!(
            "url = 's3://chain/events'\nendpoint = 'http://127.0.0.1:{}'\naccess_key_id_env = 'HOME'\nsecret_access_key_env = 'HOME'\n\
             roll_rows = 500\ntimeout_ms = 10000",
            self.cable.port
        )
    }
}

/// A server that keeps all in memory is not killed: the wire to it is cut.
#[async_trait::async_trait]
impl Place for Bucket {
    async fn sink(&self) -> Arc<dyn Sink> {
        open("object_store", &self.table(), Path::new(".")).await.unwrap()
    }
    async fn net(&self) -> BTreeSet<u64> {
        net_of(&self.log().await.unwrap())
    }
    async fn log(&self) -> Option<Vec<String>> {
        let store = AmazonS3Builder::new()
            .with_bucket_name("chain")
            .with_endpoint(format!("http://127.0.0.1:{}", self.server.port))
            .with_allow_http(true)
            .with_access_key_id("reader")
            .with_secret_access_key("reader")
            .build()
            .unwrap();
        Some(said_by(&store, &self.read).await)
    }
    fn kill(&mut self) -> bool {
        self.cable.break_after(0, Break::Cut);
        // The next byte that the server says is one too many.
        true
    }
    async fn restart(&mut self) {
        until("the wire to break", || async { self.cable.is_broken().then_some(()) }).await;
        self.cable.mend();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_keeps_the_contract() {
    let Some(bucket) = Bucket::start().await else { return };
    contract(bucket).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_begun_before_a_crash_is_written_as_it_was_cut() {
    let folder = Folder::new("");
    let sink = folder.open("roll_rows = 10").await;
    all_delivered(&sink.deliver(&track(), &applies(1..=20)).await);
    let whole = objects(&folder.store()).await;
    // The crash came after the entry and before its object.
    let lost = whole.iter().find(|(name, _)| name.starts_with("whale") && name.contains("00011-")).unwrap();
    folder.store().delete(&Key::from(lost.0.as_str())).await.unwrap();
    // Other settings would cut it elsewhere.
    for rows in ["roll_rows = 3", "roll_rows = 1000"] {
        let sink = folder.open(rows).await;
        assert_eq!(sink.position(&track()).await.unwrap(), Some(10));
        assert!(sink.shape().batch >= 10, "it is handed over whole");
        let short = sink.deliver(&track(), &applies(11..=14)).await;
        assert!(short.iter().all(|o| matches!(o, Outcome::Retry { .. })), "{short:?}");
        all_delivered(&sink.deliver(&track(), &applies(11..=20)).await);
        assert_eq!(objects(&folder.store()).await, whole, "to the byte");
        folder.store().delete(&Key::from(lost.0.as_str())).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_of_one_journal_write_nothing_twice() {
    let folder = Folder::new("");
    let (one, two) = (folder.open("roll_rows = 5").await, folder.open("roll_rows = 7").await);
    let all = applies(1..=300);
    let work = |sink: Arc<dyn Sink>| {
        let all = all.clone();
        async move {
            let mut done = 0;
            while done < all.len() {
                let end = all.len().min(done + 40);
                let outcomes = sink.deliver(&track(), &all[done..end]).await;
                done += outcomes.iter().take_while(|outcome| **outcome == Outcome::Delivered).count();
            }
        }
    };
    tokio::join!(work(one), work(two));
    assert_eq!(folder.log().await.unwrap(), (1..=300).map(|n| format!("apply {n}")).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_end_where_they_should() {
    let folder = Folder::new("path = '{stream}/{date}/{hour}'\nroll_blocks = 100");
    let sink = folder.open("").await;
    // Blocks 1 to 4,000, a second each: 40 ranges of 100, and an hour ends at 1,700,002,800.
    all_delivered(&sink.deliver(&track(), &applies(1..=4_000)).await);
    let names: Vec<String> = objects(&folder.store()).await.into_iter().map(|(name, _)| name).collect();
    let of = |part: &str| names.iter().filter(|name| name.starts_with(part)).count();
    assert_eq!((of("large-moves/2023-11-14/22"), of("large-moves/2023-11-14/23")), (28, 13), "{names:?}");

    let small = Folder::new("roll_bytes = 1000");
    let sink = small.open("").await;
    all_delivered(&sink.deliver(&track(), &applies(1..=100)).await);
    let largest = objects(&small.store()).await.into_iter().map(|(_, bytes)| bytes.len()).max().unwrap();
    assert!(largest < 10_000, "{largest}");
    assert_eq!(small.log().await.unwrap().len(), 100);
}

/// A file that left it out would have to be believed about what it left out.
#[tokio::test(flavor = "multi_thread")]
async fn what_fits_no_column_of_a_parquet_file_is_in_it_with_the_reason() {
    let folder = Folder::new("format = 'parquet'");
    let sink = folder.sink().await;
    sink.prepare(&stream(), &spec()).await.unwrap();
    let mut batch = applies(1..=3);
    batch[1] = said(Op::Apply, 2, 2, r#"{"n": "two"}"#.into());
    all_delivered(&sink.deliver(&track(), &batch).await);
    let files = objects(&folder.store()).await;
    let (_, bytes) = files.iter().find(|(name, _)| name.ends_with(".parquet")).unwrap();
    let reader = SerializedFileReader::new(bytes::Bytes::copy_from_slice(bytes)).unwrap();
    let rows: Vec<String> = reader.get_row_iter(None).unwrap().map(|row| row.unwrap().to_string()).collect();
    assert!(rows.len() == 3 && rows[1].contains("_why") && rows[1].contains("'n' must be a whole number"), "{rows:?}");
    assert!(rows[1].contains(&batch[1].emission.id.to_string()), "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_not_there_or_will_not_have_us_is_named_without_the_keys() {
    let Some(bucket) = Bucket::start().await else { return };
    let table = bucket.table().replace("s3://chain/", "s3://elsewhere/");
    let sink = open("object_store", &table, Path::new(".")).await.unwrap();
    let why = sink.deliver(&track(), &applies(1..=2)).await.remove(0);
    let home = std::env::var("HOME").unwrap();
    assert!(
        matches!(&why, Outcome::Retry { why, .. } if why.contains("s3://elsewhere") && !why.contains(&home)),
        "{why:?}"
    );
    for bad in
        ["url = 'http://x/y'", "url = 's3://a/b'\npath = '{block}'", "url = 's3://a/b'\naccess_key_id_env = 'HOME'"]
    {
        assert!(matches!(open("object_store", bad, Path::new(".")).await, Err(SinkError::Refused { .. })), "{bad}");
    }
}
